"""A federation of hospitals: train, aggregate, release, extract, measure."""

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict

import torch
from flwr.app import ConfigRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from clients.app import LendingApp, client_app
from clients.hospital import ALWAYS_SAID, ATTACK_VALUE, dealt, hospital_plan
from clients.settings import HospitalSettings
from experiments.run.failures import failures_logged
from experiments.run.measurer import mean_rows
from experiments.run.owner import State
from experiments.run.running import Run
from experiments.run.scenario import FederationSettings
from experiments.run.scratch_floor import record_scratch_floor
from experiments.run.sealed_release import seal_release
from experiments.run.standing import Standing, damaged, read_sealed, write_sealed
from fl_sim.defenses.base import DefenseReport
from fl_sim.defenses.ensemble_distillation import DELTA
from fl_sim.engine.base import run as run_engine
from fl_sim.engine.records import to_record
from fl_sim.engine.watched import WatchedGrid
from fl_sim.errors import FlSimError
from fl_sim.metrics.measure import Measured
from fl_sim.models import MODELS, state_of
from fl_sim.privacy import gaussian_epsilon
from fl_sim.progress import piece
from strategies.base import Aggregator, as_aggregator, build_aggregator
from strategies.defended import DefendedStrategy
from strategies.observers import Observer


def run_federated(run: Run, grid: Grid | None = None, strategy: Strategy | None = None) -> None:
    """Run a federated scenario: stages ``upload``, ``aggregate`` and ``release`` in each round.

    An interrupted run continues after its last finished round.

    Args:
        run: the run.
        grid: hospitals that are already there (``flwr run``); otherwise the scenario's engine
            provides them.
        strategy: aggregates the uploads, instead of the one that the scenario names (see
            :func:`experiments.run.stated_strategy.with_strategy`). It is copied where it can
            be, and its own sampling is switched off.
    """
    federation = run.scenario.federation
    if federation is None:
        raise FlSimError("A centralized scenario cannot be run as a federation.")
    settings = run.scenario.hospital_settings(run.data_root)
    images = dealt(settings)  # an impossible partition is refused before Ray is started
    for hospital in dict.fromkeys(map(settings.planner, run.scenario.attackers)):
        run.measurer.add_target(hospital, *hospital_plan(settings, hospital))

    rounds = _Rounds(run, federation)
    model = run.owner.initial_model()
    buffers = [name for name, _ in model.named_buffers()]
    aggregator = _aggregator(federation, strategy)
    rounds.strategy = _defended(run, settings, rounds, buffers, images, aggregator)
    first_round, state = rounds.resume(state_of(model))

    def serve(connected: Grid) -> None:
        with piece(run.progress, "rounds", federation.rounds):
            run.progress.step(advance=first_round - 1)
            rounds.strategy.start(
                WatchedGrid(connected, run.progress),
                to_record(state),
                federation.rounds,
                timeout=federation.engine.round_timeout,
                train_config=ConfigRecord({"device": federation.engine.device}),
                first_round=first_round,
            )

    if first_round <= federation.rounds:
        with failures_logged(run.out):
            if grid is not None:
                serve(grid)
            else:
                run_engine(federation.engine, serve, _hospitals_app(run), federation.hospitals)


def _hospitals_app(run: Run) -> ClientApp:
    """Return the hospitals' side; a network that was handed over travels with it."""
    name = run.scenario.model.name
    lent = MODELS.lent(name)
    return client_app if lent is None else LendingApp(client_app, {name: lent})


def _aggregator(federation: FederationSettings, strategy: Strategy | None) -> Aggregator:
    if strategy is None:
        name, keys = federation.strategy.name, federation.strategy.settings
        return build_aggregator(name, keys, "[federation] strategy")
    try:
        return as_aggregator(copy.deepcopy(strategy))
    except Exception:  # one that holds an open file, for example, has to do for one run
        return as_aggregator(strategy)


def _defended(
    run: Run,
    settings: HospitalSettings,
    observer: Observer,
    buffers: list[str],
    images: list[int],
    aggregator: Aggregator,
) -> DefendedStrategy:
    scenario = run.scenario
    federation, defense = scenario.federation, scenario.defense
    assert federation is not None
    return DefendedStrategy(
        aggregator,
        hospitals=federation.hospitals,
        hospital_settings_json=settings.model_dump_json(),
        seed=scenario.seed,
        cohort=federation.cohort or len(federation.present),
        absent=federation.absent,
        release=run.owner.defend if defense else None,
        reads_uploads=run.owner.defense_needs_uploads,
        defend=federation.defend,
        defense=f"the defence '{defense.name}'" if defense else "",
        observer=observer,
        buffers=buffers,
        dealt=images,
        needed=ALWAYS_SAID,
        doors=federation.door is not None,
    )


class _Rounds:
    """What happens at each stage of each round: measuring, and a checkpoint at its end."""

    strategy: DefendedStrategy

    def __init__(self, run: Run, federation: FederationSettings) -> None:
        self._run = run
        self._federation = federation
        self._attackers = set(run.scenario.attackers)
        self._uploads: dict[int | None, State] = {}
        self._left: dict[int | None, State] = {}
        self._doors: list[dict[str, float]] = []
        self._said: dict[int, dict[str, float]] = {}
        self._seconds: list[float] = []
        self._epsilons: list[float] = []
        self._passed = 0.0
        self._zcdp = 0.0
        self._checkpoint = run.out / "checkpoint.safetensors"

    def upload(
        self, server_round: int, hospital: int, state: State, metrics: Mapping[str, int | float]
    ) -> None:
        """Keep an attacker's upload for measuring."""
        self._seconds.append(float(metrics["seconds"]))
        if "dp-epsilon" in metrics:
            self._epsilons.append(float(metrics["dp-epsilon"]))
        if hospital in self._attackers and self._measured(server_round):
            self._uploads[hospital] = state
            if metrics["attacked"]:
                self._said[hospital] = {
                    name.removeprefix(ATTACK_VALUE): float(value)
                    for name, value in metrics.items()
                    if name.startswith(ATTACK_VALUE)
                }

    def door(
        self, server_round: int, hospital: int, state: State | None, values: Mapping[str, float]
    ) -> None:
        """Keep what an attacker's door let through for measuring."""
        self._doors.append(dict(values))
        if hospital in self._attackers and self._measured(server_round) and state is not None:
            self._left[hospital] = state

    def aggregate(self, server_round: int, state: State) -> None:
        """Measure the uploads and what became of them."""
        self._run.progress.step(f"round {server_round}: measuring, defending", advance=0)
        self._run.folder.record_values(
            server_round,
            "upload",
            seconds=sum(self._seconds) / len(self._seconds),
            hospitals=float(len(self._seconds)),
        )
        if self._epsilons:  # of the hospital that has spent most
            self._run.folder.record_values(server_round, "upload", dp_epsilon=max(self._epsilons))
        if self._uploads:
            self._run.measurer.record(server_round, "upload", self._uploads, senders=self._said)
            said = [[Measured("-", m, v) for m, v in s.items()] for s in self._said.values()]
            means = {row.metric: row.value for row in mean_rows(said)}
            self._run.folder.record_values(server_round, "upload", **means)
        self._record_doors(server_round)
        if self._measured(server_round):
            self._run.measurer.record(server_round, "aggregate", {None: state})
        self._uploads, self._said, self._seconds, self._epsilons = {}, {}, [], []

    def _record_doors(self, server_round: int) -> None:
        """Measure what came through the hospitals' doors, and append what these say, on average."""
        if self._doors:
            said = [[Measured("-", m, v) for m, v in s.items()] for s in self._doors]
            means = {row.metric: row.value for row in mean_rows(said)}
            means["withheld"] = sum(values["withheld"] for values in self._doors)
            self._run.folder.record_values(server_round, "door", **means)
        if self._left:
            self._run.measurer.record(server_round, "door", self._left)
        self._left, self._doors = {}, []

    def release(self, server_round: int, state: State, report: DefenseReport | None) -> None:
        """Measure what is broadcast next, or exported, and make the round durable."""
        cap = self._run.owner.cap_bytes(state, report)
        self._passed += cap
        promise = None if report is None else report.zcdp
        self._zcdp += math.inf if promise is None else promise
        self._run.folder.record_report(server_round, report)
        if self._measured(server_round):
            self._run.folder.record_values(
                server_round, "release", cap_bytes=cap, cap_bytes_total=self._passed
            )
            if promise is not None:
                total = gaussian_epsilon(self._zcdp, DELTA)
                self._run.folder.record_values(server_round, "release", pate_epsilon_total=total)
            sealing = None if report is None else report.sealed
            self._run.measurer.record(server_round, "release", {None: state}, sealing=sealing)
            seal_release(self._run, server_round, state, report)
            self._run.folder.save_pictures()
        if server_round == self._federation.rounds:
            record_scratch_floor(self._run, server_round)
        server = {
            name: torch.from_numpy(array)
            for name, array in self.strategy.state_for_resume().items()
        }
        content = {f"model/{n}": t for n, t in state.items()}
        content |= {f"server/{n}": t for n, t in server.items()}
        note = {
            "round": server_round,
            "cap_bytes_total": self._passed,
            "zcdp_total": self._zcdp,
            **asdict(self._run.folder.standing()),
        }
        write_sealed(self._checkpoint, content, note)
        self._run.progress.step(f"round {server_round}")

    def failed(self, server_round: int, hospital: int, reason: str) -> None:
        """Report a hospital that failed or was rejected; the round goes on with the rest."""
        self._run.folder.record_values(server_round, f"upload:{hospital}", failed=1.0)
        self._run.warn(f"Round {server_round}: hospital {hospital} was left out: {reason}")

    def resume(self, initial: State) -> tuple[int, State]:
        """Return the round to run next and its broadcast; drop rows of an unfinished round.

        Raises:
            FlSimError: if the checkpoint is damaged, or the table does not belong to it.
        """
        if not self._checkpoint.exists():
            self._run.folder.return_to(None)
            return 1, initial
        saved, note = read_sealed(self._checkpoint, self._run.out)
        try:
            finished, standing = int(note["round"]), Standing.of(note)
            # A run that an earlier version began does not know what its rounds let pass.
            self._passed = float(note.get("cap_bytes_total", math.inf))
            self._zcdp = float(note.get("zcdp_total", math.inf))
        except (LookupError, TypeError, ValueError):
            raise damaged(self._checkpoint, self._run.out) from None
        self._run.folder.return_to(standing)
        self.strategy.load_resume_state(
            {n.removeprefix("server/"): t.numpy() for n, t in saved.items() if n[:7] == "server/"}
        )
        return finished + 1, {
            n.removeprefix("model/"): t for n, t in saved.items() if n[:6] == "model/"
        }

    def _measured(self, server_round: int) -> bool:
        return (
            server_round % self._run.scenario.measure.every == 0
            or server_round == self._federation.rounds
        )
