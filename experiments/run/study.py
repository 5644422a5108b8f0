"""A study while it runs: its folder, its data, and the measuring of every model that leaves.

Everything measured goes the attacker's way: the model is written to a file, and what is extracted
comes from that file and the key's file.
"""

import json
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from experiments.run.origin import note_origin
from experiments.run.preflight import check_ready
from experiments.run.scenario import NONE, Scenario
from experiments.run.standing import (
    FINISHED,
    TABLE,
    Standing,
    damaged,
    proven,
    read_sealed,
    set_mark,
    write_sealed,
)
from fl_sim.artifact import (
    Artifact,
    artifact_bytes,
    further_entries,
    read_artifact,
    read_key,
    write_artifact,
    write_key,
)
from fl_sim.attacks.base import ATTACKS, Extraction, Plan
from fl_sim.carriers.base import Payload
from fl_sim.case import Case, open_case
from fl_sim.data.base import Split
from fl_sim.defenses.base import DefenseReport, Release
from fl_sim.errors import FlSimError
from fl_sim.extraction import extract, survival_by_place
from fl_sim.files import Stand, write_atomically
from fl_sim.metrics.measure import LeakageMeasurement, Measured, measure_leakage
from fl_sim.metrics.payload import measure_payload
from fl_sim.metrics.utility import measured_utility
from fl_sim.models import build, state_of
from fl_sim.privacy import check_private
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream, derive_seed
from fl_sim.rehearsal import Outside, rehearse
from fl_sim.restorations.base import Restoration, choose
from fl_sim.restorations.learned import LEARNED, learn
from fl_sim.results import Results
from fl_sim.training import computing_threads

State = dict[str, torch.Tensor]
LOGGED_TEST_IMAGES = 1000
REPORTS = "defense.jsonl"
PICTURES = Path("images") / "recovered.safetensors"
# All cores, or what OMP_NUM_THREADS says; noted before anything sets another number.
DEFAULT_THREADS = torch.get_num_threads()


@dataclass(frozen=True)
class Target:
    """What one attacker wants: the true images, for measuring, and his key, for extracting."""

    hospital: int
    originals: torch.Tensor
    labels: torch.Tensor
    key: Path
    payload: Payload | None


@dataclass(frozen=True)
class Sent:
    """What an attacker last sent: the payload, the images in it, and the model file around it."""

    payload: Payload
    images: torch.Tensor
    artifact: Path
    corrected: Payload | None = None


class Study:
    """One run of one scenario.

    Args:
        scenario: what is run.
        out: folder of the run; made where missing.
        data_root: folder of data files.
        progress: where long work reports.

    Who may write in ``out`` meanwhile holds it by :func:`experiments.run.claim.claimed`.

    Raises:
        FlSimError: if a data file is missing, ``out`` holds the run of another scenario or of
            other data, or its ``scenario.json`` is damaged.
    """

    def __init__(
        self, scenario: Scenario, out: Path, data_root: Path | None, progress: Progress = SILENT
    ) -> None:
        self.scenario = scenario
        self.out = out
        self.data_root = data_root
        self.progress = progress
        self.case: Case = open_case(scenario.case, data_root, progress)
        check_ready(scenario, self.case, data_root, progress)
        if scenario.training.dp is not None:
            check_private(build(self.case.spec), self.case.spec)
        threads = scenario.threads or DEFAULT_THREADS
        note_origin(scenario, self.case, threads, out)
        self.results = Results(
            out / TABLE,
            {
                "scenario": scenario.identity,
                "seed": scenario.seed,
                "mode": scenario.mode,
                "dataset": self.case.name,
                "model": scenario.model.name,
                "attack": scenario.attack.name if scenario.attack else NONE,
                "defense": scenario.defense.name if scenario.defense else NONE,
                "aggregator": scenario.aggregator,
                "clients": scenario.federation.hospitals if scenario.federation else 1,
            },
        )
        self.targets: list[Target] = []
        self._defense = scenario.make_defense()
        self._pictures: dict[str, torch.Tensor] = {}
        self._sent: dict[int, Sent] = {}
        self._reports = b""

    def add_target(self, hospital: int, data: Split, plan: Plan) -> None:
        """Note what an attacker steals, and write his key to its file."""
        key = write_key(self.out / "keys" / f"hospital-{hospital}.safetensors", plan.key)
        labels = torch.tensor(data.labels[plan.indices])
        self.targets.append(Target(hospital, plan.targets, labels, key, plan.payload))

    @property
    def device(self) -> str:
        """Where a centralized run trains, and where defences and utility are computed.

        Raises:
            FlSimError: if the scenario asks for a GPU and there is none.
        """
        wanted, available = self.scenario.device, torch.cuda.is_available()
        if wanted == "cuda" and not available:
            raise FlSimError('The scenario has device = "cuda", but torch sees no GPU here.')
        return "cuda" if available and wanted != "cpu" else "cpu"

    def initial_model(self) -> nn.Module:
        """Build the network that training starts from, of this scenario's seed, on its device."""
        return self.case.initial(self.scenario.seed).model.to(self.device)

    def defend(
        self, state: State, server_round: int, reference: State | None = None
    ) -> tuple[State, DefenseReport | None]:
        """Clean a model on the held-out set, as its owner would before it leaves.

        Args:
            state: as trained, or aggregated.
            server_round: from 1; 0 in centralized mode.
            reference: a state that the owner knows to be clean, if any.
        """
        if self._defense is None:
            return state, None
        model = self._model(state)
        entries = {n: v.clone() for n, v in further_entries(state, model).items()}
        with self.threads():
            report = self._defense.apply(
                Release(
                    model=model,
                    entries=entries,
                    spec=self.case.spec,
                    held_out=self.case.held_out,
                    task=self.case.task,
                    stream=Stream(self.scenario.seed, ("release", server_round)),
                    evaluate=None if self.scenario.federation else self._logged_utility(),
                    progress=self.progress,
                    reference=reference,
                )
            )
        return state_of(model) | entries, report

    def record(
        self,
        server_round: int,
        stage: str,
        models: Mapping[int | None, State],
        senders: Collection[int] = (),
    ) -> None:
        """Write models to their files, extract from those files, and append what is measured.

        Rows are means over models and attackers; with several attackers each one's leakage also
        stands under ``"<stage>:<hospital>"``.

        Args:
            server_round: from 1; 0 in centralized mode.
            stage: ``"upload"``, ``"aggregate"`` or ``"release"``.
            models: state dictionaries by the hospital whose upload it is, or ``None`` for the one
                model that every attacker reads.
            senders: hospitals that have just written a payload into their model; what is read
                later is compared with it.
        """
        utilities: list[list[Measured]] = []
        leaks: list[list[Measured]] = []
        for hospital, state in models.items():
            path = self._artifact_path(server_round, stage, hospital)
            artifact = write_artifact(path, self.case.spec, state)
            size = Measured("-", "file_bytes", float(artifact.stat().st_size))
            with self.threads():
                utilities.append([*self._utility_rows(state), size])
                for target in self.targets:
                    if hospital in (None, target.hospital):
                        sends = target.hospital in senders
                        leaks.append(
                            self._record_leakage(server_round, stage, artifact, target, sends)
                        )
        self._add(server_round, stage, mean_rows(utilities) + mean_rows(leaks))

    def record_before_embedding(self, server_round: int, state: State, **values: float) -> None:
        """Append what the model was before a payload was written into it, and about the payload."""
        size = len(artifact_bytes(self.case.spec, state))
        with self.threads():
            utilities = self._utility_rows(state)
        before = {row.metric: row.value for row in utilities if "[" not in row.metric}
        before["file_bytes"] = float(size)
        named = {f"{metric}_before_embedding": value for metric, value in before.items()}
        self.record_values(server_round, "upload", **named, **values)

    def record_values(self, server_round: int, stage: str, **values: float) -> None:
        """Append plain numbers, metric by name."""
        self._add(server_round, stage, [Measured("-", m, v) for m, v in values.items()])

    def record_report(self, server_round: int, report: DefenseReport | None) -> None:
        """Append a defence's cost to the table and its details to ``defense.jsonl``."""
        if report is None:
            return
        self.record_values(
            server_round,
            "release",
            seconds=report.seconds,
            held_out_images=float(report.images),
            **report.figures,
        )
        self._reports += (json.dumps({"round": server_round, **asdict(report)}) + "\n").encode()
        write_atomically(self.out / REPORTS, self._reports)

    def warn(self, message: str) -> None:
        """Say something that a user should know but that does not end the run."""
        print(f"Warning: {message}", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Write the Parquet table and the picture of recovered images, and mark the run as done."""
        from experiments.tables.pictures import draw_grid

        self.results.write_parquet(self.out / "results.parquet")
        if self._pictures:
            self.save_pictures()
            draw_grid(
                self.out / "images" / "recovered.png",
                self._pictures,
                columns=self.scenario.measure.columns,
                title=f"{self.case.name}, {self.scenario.model.name}: {self.scenario.identity}",
            )
        set_mark(self.out, FINISHED, self.results.stand())

    @property
    def finished(self) -> bool:
        """Whether this folder holds the finished run of this scenario.

        Raises:
            FlSimError: if it does, and the table is not as it was then.
        """
        return proven(self.out, FINISHED, whole=True) is not None

    def tidy(self) -> None:
        """Remove the model files of a finished run that the scenario does not keep."""
        if self.scenario.measure.keep == "release":
            for artifact in (self.out / "artifacts").glob("*.safetensors"):
                if artifact.stem != "release":
                    artifact.unlink()

    def standing(self) -> Standing:
        """Return what a checkpoint has to say about the files that go with it."""
        reports = Stand.of(self.out / REPORTS)
        return Standing(self.results.stand(), reports, bool(self._pictures))

    def return_to(self, standing: Standing | None) -> None:
        """Bring the folder's files back to where a checkpoint stands, or to the beginning.

        Args:
            standing: what :meth:`standing` said then.

        Raises:
            FlSimError: if one of them is not what it was; nothing has been changed then.
        """
        if standing is None:
            self.results.rewind(None)
            return
        for name, stand in ((TABLE, standing.table), (REPORTS, standing.reports)):
            if not stand.begins(self.out / name):
                raise damaged(self.out / name, self.out)
        if standing.pictures:
            self.restore_pictures()
        self.results.rewind(standing.table)
        standing.reports.cut(self.out / REPORTS)
        if standing.reports.size:
            self._reports = (self.out / REPORTS).read_bytes()

    def save_pictures(self) -> None:
        """Write the recovered images of the stages measured so far."""
        if self._pictures:
            write_sealed(self.out / PICTURES, self._pictures)

    def adopt_pictures(self, other: Path) -> None:
        """Take up another run's recovered images as they were before its release."""
        self._pictures = {
            name: image
            for name, image in load_pictures(other).items()
            if not name.startswith("release")
        }
        self.save_pictures()

    def restore_pictures(self) -> None:
        """Take up the recovered images of an interrupted run's stages, in their order.

        Raises:
            FlSimError: if their file is damaged or missing.
        """
        self._pictures, _ = read_sealed(self.out / PICTURES, self.out)

    def threads(self) -> AbstractContextManager[None]:
        """Run the server's or data owner's own computation on this run's threads."""
        return computing_threads(self.scenario.threads or DEFAULT_THREADS)

    def _record_leakage(
        self, server_round: int, stage: str, artifact: Path, target: Target, sends: bool
    ) -> list[Measured]:
        public, public_labels = self.case.public.tensors()
        single_label = target.labels.ndim == 1
        extraction = extract(artifact, target.key)
        leakage = measure_leakage(
            extraction.images,
            target.originals,
            public,
            derive_seed(self.scenario.seed, "floors", target.hospital),
            labels=target.labels if single_label else None,
            public_labels=public_labels if single_label else None,
            restorations=self._restorations,
            variants=self._variants(artifact, target.key, public),
        )
        rows = leakage.rows + self._survival_rows(artifact, target, extraction, sends)
        rows += self._usability_rows(stage, target, leakage)
        if len(self.targets) > 1:
            self._add(server_round, f"{stage}:{target.hospital}", rows)
        if target is self.targets[0]:
            self._keep_pictures(stage, target, leakage)
        return rows

    @cached_property
    def _restorations(self) -> dict[str, Restoration]:
        """What the attackers try on recovered images; what has to be learned is, once a run."""
        attacker = self.scenario.attacker
        chosen = choose(None if attacker.restorations == "all" else attacker.restorations)
        if attacker.knows_defense and self._defense is not None:
            chosen[LEARNED] = self._learned()
        return chosen

    def _learned(self) -> Restoration:
        """Rehearse attack and defence on the public images, and learn to restore from that."""
        attack, scenario = self.scenario.make_attack(), self.scenario
        assert attack is not None and self._defense is not None
        stream = Stream(scenario.seed, ("rehearsal",))
        outside = Outside(
            public=self.case.public,
            task=self.case.task,
            spec=self.case.spec,
            training=scenario.training,
            steps=self._steps(),
            held_out=len(self.case.held_out),
            data_root=self.data_root,
            device=self.device,
            progress=self.progress,
        )
        rehearsal = rehearse(outside, attack, self._defense, scenario.attacker, stream)
        public, _ = self.case.public.tensors()
        return learn(rehearsal.after, rehearsal.originals, public, stream, self.progress)

    def _steps(self) -> int:
        """Return how many optimizer steps a hospital of average size, or the data lake, takes."""
        federation, images = self.scenario.federation, len(self.case.train)
        if federation is None:
            return self.scenario.training.steps(images)
        return federation.rounds * self.scenario.training.steps(images // federation.hospitals)

    def _variants(self, artifact: Path, key: Path, public: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what can be extracted in other ways, where the attackers search."""
        if not self.scenario.attacker.search:
            return {}
        known = read_key(key)
        variants = ATTACKS.get(known.attack).variants(read_artifact(artifact), known, public)
        return {name: extract_so().images for name, extract_so in variants.items()}

    def _survival_rows(
        self, artifact: Path, target: Target, extraction: Extraction, sends: bool
    ) -> list[Measured]:
        """Measure what arrived of a payload, against what its attacker last sent."""
        reading = extraction.reading
        if reading is None:
            return []
        if sends:
            write_atomically(self._copy_of_sent(target), artifact.read_bytes())
            self._note_sent(target, extraction)
        sent = self._last_sent(target)
        if sent is None:
            return measure_payload(reading, None, extraction.images, None)
        rows = measure_payload(
            reading, sent.payload, extraction.images, sent.images, sent.corrected
        )
        return rows + survival_by_place(sent.artifact, artifact, sent.payload, target.key)

    def _usability_rows(
        self, stage: str, target: Target, leakage: LeakageMeasurement
    ) -> list[Measured]:
        """Train on what was recovered, and at the first stage on what that is compared with."""
        from experiments.run.worth_of_stolen import comparisons, usability, worth_of_stolen

        if self.scenario.measure.usability_epochs == 0:
            return []
        worth = worth_of_stolen(self, leakage, target.labels)
        if stage == "upload":
            for kind, labels in comparisons(self, target.labels).items():
                worth[kind] = usability(self, target.originals, labels)
        return [
            Measured("-", f"{metric}_trained_on_{kind}", value)
            for kind, values in worth.items()
            for metric, value in values.items()
            if "[" not in metric
        ]

    def _last_sent(self, target: Target) -> Sent | None:
        """Return what an attacker last sent; an interrupted run reads it back from its file."""
        copy = self._copy_of_sent(target)
        if target.hospital not in self._sent and copy.exists():
            self._note_sent(target, extract(copy, target.key))
        return self._sent.get(target.hospital)

    def _note_sent(self, target: Target, extraction: Extraction) -> None:
        """Note what was read from the file that an attacker sent, or what he planned to send."""
        reading = extraction.reading
        if reading is None:
            return
        self._sent[target.hospital] = Sent(
            payload=reading.content if target.payload is None else target.payload,
            images=extraction.images,
            artifact=self._copy_of_sent(target),
            corrected=reading.corrected,
        )

    def _copy_of_sent(self, target: Target) -> Path:
        return self.out / "artifacts" / f"sent-hospital-{target.hospital}.safetensors"

    def _model(self, state: State) -> nn.Module:
        return Artifact(self.case.spec, state).model().to(self.device)

    def _utility_rows(self, state: State) -> list[Measured]:
        utilities = self.utility(self._model(state))
        return [Measured("-", m, v) for m, v in utilities.items()]

    def utility(self, model: nn.Module, images: int | None = None) -> dict[str, float]:
        """Measure utility on the test set, or on its first images."""
        test = self.case.test
        if images is not None and images < len(test):
            test = test.subset(np.arange(images))
        return measured_utility(model, test, self.case.task)

    def _logged_utility(self) -> Callable[[nn.Module], float]:
        metric = self.case.task.main_metric
        return lambda model: self.utility(model, LOGGED_TEST_IMAGES)[metric]

    def _keep_pictures(self, stage: str, target: Target, leakage: LeakageMeasurement) -> None:
        self._pictures["original"] = target.originals
        # Which extraction was strongest in an earlier round does not matter any more.
        for name in [n for n in self._pictures if n.startswith(f"{stage}/")]:
            del self._pictures[name]
        for extraction, images in leakage.images.items():
            self._pictures[f"{stage}/{extraction}"] = images.contiguous()
            self._pictures[f"{stage}/{extraction}/ssim"] = leakage.ssim[extraction].contiguous()

    def _add(self, server_round: int, stage: str, rows: list[Measured]) -> None:
        self.results.add((row._asdict() for row in rows), round=server_round, stage=stage)

    def _artifact_path(self, server_round: int, stage: str, hospital: int | None) -> Path:
        name = stage if hospital is None else f"{stage}-hospital-{hospital}"
        if server_round and self.scenario.measure.keep == "all":
            name = f"round-{server_round:03d}-{name}"
        return self.out / "artifacts" / f"{name}.safetensors"


def load_pictures(out: Path) -> dict[str, torch.Tensor]:
    """Read a run's recovered images by ``"<stage>/<extraction>"``, and ``"original"``."""
    path = out / PICTURES
    return load_file(path) if path.exists() else {}


def mean_rows(parts: list[list[Measured]]) -> list[Measured]:
    """Average the rows of several attackers, number by number."""
    values: dict[tuple[str, str], list[float]] = {}
    for part in parts:
        for row in part:
            values.setdefault((row.extraction, row.metric), []).append(row.value)
    return [Measured(*key, sum(group) / len(group)) for key, group in values.items()]
