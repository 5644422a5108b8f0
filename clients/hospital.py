"""What a hospital does in a round: it trains on its share, honestly or hiding images in the model.

No Flower here: the same functions serve the ClientApp, a centralized run and a test. A process
keeps the case, the partition, the plans and one network of each kind, so a round pays for training
only.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clients.settings import HospitalSettings
from fl_sim.attacks.base import (
    ATTACKS,
    Attack,
    Averaging,
    Collusion,
    Embedding,
    Inside,
    Plan,
)
from fl_sim.attacks.checked import make_plan
from fl_sim.case import Case, open_case
from fl_sim.data.base import Split
from fl_sim.data.partitions import cached_partition
from fl_sim.errors import FlSimError
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.models.entries import is_variance
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream
from fl_sim.registry import import_plugins
from fl_sim.training import (
    LocalTraining,
    Proximal,
    TrainReport,
    Window,
    computing_threads,
    train,
)

Metrics = dict[str, float | int]
ATTACK_VALUE = "attack-"
ALWAYS_SAID = ("seconds", "steps", "images", "attacked")
"""Metrics that every upload has beside ``num-examples``."""


@dataclass(frozen=True)
class LocalResult:
    """A hospital's upload.

    Args:
        state: every entry of the trained network's state dictionary, on the CPU.
        metrics: ``num-examples`` (training images of the hospital), ``seconds``, ``steps``,
            ``images`` (seen in training), ``attacked`` (1 or 0), ``loss-<name>``, the last value of
            each loss, ``dp-epsilon`` after private training, and ``attack-<name>``, what the attack
            says of its payload.
    """

    state: dict[str, torch.Tensor]
    metrics: Metrics


def local_round(
    settings: HospitalSettings,
    hospital: int,
    server_round: int,
    state: Mapping[str, torch.Tensor],
    proximal_mu: float = 0.0,
    progress: Progress = SILENT,
    device: str = "cpu",
) -> LocalResult:
    """Train one hospital for one round.

    A pure function of its arguments: the result does not depend on the process, on earlier rounds
    or on other hospitals. It computes with a single CPU thread, because float sums depend on the
    number of threads; the process's own number is restored afterwards.

    Args:
        settings: the federation as its hospitals see it.
        hospital: number, from 0.
        server_round: round, from 1.
        state: the broadcast; it is not changed.
        proximal_mu: weight of FedProx's penalty; 0 for none.
        progress: where to report.
        device: where to train, ``"cpu"`` or ``"cuda"``.

    Returns:
        The upload.

    Raises:
        FlSimError: if the case cannot be opened, the hospital has no images, the broadcast does
            not fit the network, training diverges, or the attack cannot be planned.
    """
    began = time.perf_counter()
    with computing_threads(1):
        case = hospital_case(settings)
        with _network(case.spec, device) as model:
            _load(model, state, case.spec)
            run = LocalTraining(
                model=model,
                spec=case.spec,
                data=hospital_data(settings, hospital),
                task=case.task,
                settings=settings.training,
                stream=Stream(settings.case.seed, ("hospital", hospital, server_round)),
                window=Window((server_round - 1) / settings.rounds, server_round / settings.rounds),
                proximal=Proximal.around(model, proximal_mu) if proximal_mu > 0 else None,
                progress=progress,
            )
            if settings.attacks_in(hospital, server_round):
                report, embedding = _attack(settings, hospital, run, state)
            else:
                report, embedding = train_locally(run), Embedding(state_of(model))
    metrics = _metrics(settings, hospital, server_round, report, time.perf_counter() - began)
    said = report.values | embedding.values
    metrics |= {f"{ATTACK_VALUE}{name}": value for name, value in said.items()}
    return LocalResult(embedding.state, metrics)


def hospital_data(settings: HospitalSettings, hospital: int) -> Split:
    """Return a hospital's share of the training images.

    Raises:
        FlSimError: if there is no such hospital, or the images cannot be shared out so.
    """
    shares = _shares_of(settings)
    if not 0 <= hospital < len(shares):
        raise FlSimError(
            f"There is no hospital {hospital}: they are numbered from 0 to {len(shares) - 1}."
        )
    return hospital_case(settings).train.subset(shares[hospital])


def dealt(settings: HospitalSettings) -> list[int]:
    """Return how many training images each hospital has.

    Raises:
        FlSimError: if the images cannot be shared out so.
    """
    return [len(share) for share in _shares_of(settings)]


def hospital_plan(settings: HospitalSettings, hospital: int) -> tuple[Split, Plan]:
    """Return a malicious hospital's images and its plan for the whole run.

    The plan is the same in every round and process: it is drawn from the case's seed and the
    hospital's number. Hospitals that repeat one payload have one plan, and images, of the first.

    Raises:
        FlSimError: if there is no attack, or it cannot be planned for these images.
    """
    planner = settings.planner(hospital)
    return hospital_data(settings, planner), _plan(settings.model_dump_json(), planner)


def plan_for(
    attack: Attack[Any],
    name: str,
    case: Case,
    data: Split,
    stream: Stream,
    data_root: Path | None = None,
    progress: Progress = SILENT,
    collusion: Collusion | None = None,
) -> Plan:
    """Return what an attack decides for a hospital's images, or for a data lake's, which is one.

    Args:
        attack: the attack.
        name: what it is called in messages.
        case: data and network.
        data: the hospital's training images.
        stream: the hospital's, the same in every round.
        data_root, progress, collusion: see :class:`fl_sim.attacks.base.Inside`.

    Raises:
        FlSimError: if it cannot be planned for these images.
    """
    inside = Inside(
        data, case.task, case.spec, stream, data_root, progress, collusion, public=case.public
    )
    return make_plan(attack, inside, name)


def train_locally(
    run: LocalTraining, attack: Attack[Any] | None = None, plan: Plan | None = None
) -> TrainReport:
    """Train a hospital's network, or a data lake's: honestly, or as the attack does."""
    return train(run) if attack is None or plan is None else attack.train(run, plan)


def boosted(
    trained: Mapping[str, torch.Tensor], broadcast: Mapping[str, torch.Tensor], boost: float
) -> dict[str, torch.Tensor]:
    """Scale an update for model replacement: ``broadcast + boost * (trained - broadcast)``.

    Float entries only; integer buffers stay as trained. Running variances end at zero, since a
    server refuses negative ones. A boost of 1 changes no bit.

    Source: Bagdasaryan et al. 2020, "How To Backdoor Federated Learning", section 4.2.
    """
    if boost == 1.0:
        return dict(trained)
    state = dict(trained)
    for name, value in trained.items():
        if value.is_floating_point():
            moved = broadcast[name] + boost * (value - broadcast[name])
            state[name] = moved.clamp(min=0.0) if is_variance(name) else moved
    return state


def limited(
    trained: Mapping[str, torch.Tensor], broadcast: Mapping[str, torch.Tensor], norm: float
) -> dict[str, torch.Tensor]:
    """Scale an update down to an L2 norm over its float entries; a smaller one is left alone.

    Args:
        trained: the state that would be sent.
        broadcast: what it is counted from.
        norm: the most that the update may have.
    """
    own = update_norm(trained, broadcast)
    return dict(trained) if own <= norm else boosted(trained, broadcast, norm / own)


def update_norm(
    trained: Mapping[str, torch.Tensor], broadcast: Mapping[str, torch.Tensor]
) -> float:
    """Return the L2 norm of an update over its float entries."""
    moved = (v - broadcast[n] for n, v in trained.items() if v.is_floating_point())
    return math.sqrt(sum(float(change.double().square().sum()) for change in moved))


def _honest_norm(run: LocalTraining, broadcast: Mapping[str, torch.Tensor]) -> float:
    """Train honestly from the same broadcast, only to see how far that goes."""
    device = next(run.model.parameters()).device
    with _network(run.spec, device.type) as model:
        _load(model, broadcast, run.spec)
        train(replace(run, model=model))
        return update_norm(state_of(model), broadcast)


def _attack(
    settings: HospitalSettings,
    hospital: int,
    run: LocalTraining,
    broadcast: Mapping[str, torch.Tensor],
) -> tuple[TrainReport, Embedding]:
    """Train maliciously, boost, and write the payload last, so that boosting does not touch it."""
    _, plan = hospital_plan(settings, hospital)
    attack = build_attack(settings)
    report = train_locally(run, attack, plan)
    trained = boosted(state_of(run.model), broadcast, settings.boost)
    if settings.update_norm is not None:
        limit = settings.update_norm
        if limit == "honest":
            limit = _honest_norm(run, broadcast)
        trained = limited(trained, broadcast, limit)
    shares = dealt(settings)
    alike = settings.malicious if settings.collusion == "repeat" else (hospital,)
    averaging = Averaging(dict(broadcast), sum(shares[other] for other in alike) / sum(shares))
    embedding = attack.embed(trained, run.spec, plan, averaging)
    for name, value in broadcast.items():
        if embedding.state[name].dtype != value.dtype:
            raise FlSimError(
                f"The attack sends '{name}' as {embedding.state[name].dtype}, but this federation "
                f'exchanges {value.dtype}; set [attack] precision = "float32".'
            )
    return report, embedding


def build_attack(settings: HospitalSettings) -> Attack[Any]:
    """Build the settings' attack.

    Raises:
        FlSimError: if there is none, or its keys are wrong.
    """
    if settings.attack is None:
        raise FlSimError("These settings have no attack.")
    import_plugins(settings.plugins)
    return settings.attack.build(ATTACKS, "[attack]")


def _metrics(
    settings: HospitalSettings,
    hospital: int,
    server_round: int,
    report: TrainReport,
    seconds: float,
) -> Metrics:
    metrics: Metrics = {
        "num-examples": dealt(settings)[hospital],
        "seconds": seconds,
        "steps": report.steps,
        "images": report.images,
        "attacked": int(settings.attacks_in(hospital, server_round)),
    }
    if report.dp_epsilon is not None:
        metrics["dp-epsilon"] = report.dp_epsilon
    for name, curve in report.losses.items():
        if curve:
            metrics[f"loss-{name}"] = float(curve[-1])
    return metrics


def hospital_case(settings: HospitalSettings) -> Case:
    """Return data and network, opened once in a process."""
    import_plugins(settings.plugins)
    return open_case(settings.case, _data_root(settings))


def _data_root(settings: HospitalSettings) -> Path | None:
    return None if settings.data_root is None else Path(settings.data_root)


def _shares_of(settings: HospitalSettings) -> list[NDArray[np.int64]]:
    # Only what the partition depends on, so that runs with other attacks share it.
    relevant = HospitalSettings(
        case=settings.case,
        hospitals=settings.hospitals,
        partition=settings.partition,
        rounds=1,
        data_root=settings.data_root,
        plugins=settings.plugins,
    )
    return _shares(relevant.model_dump_json())


@lru_cache(maxsize=2)
def _shares(settings_json: str) -> list[NDArray[np.int64]]:
    settings = HospitalSettings.model_validate_json(settings_json)
    case = hospital_case(settings)
    return cached_partition(
        case.train, case.task, settings.hospitals, settings.partition, settings.case.seed
    )


@lru_cache(maxsize=16)
def _plan(settings_json: str, hospital: int) -> Plan:
    settings = HospitalSettings.model_validate_json(settings_json)
    case = hospital_case(settings)
    data = hospital_data(settings, hospital)
    attack = build_attack(settings)
    collusion = None
    if settings.collusion == "split" and len(settings.malicious) > 1:
        if not attack.splits:
            raise FlSimError(
                '[federation] collusion = "split" shares out places in the model, and the attack '
                f"'{settings.attack and settings.attack.name}' has none to choose; take "
                '"repeat", or [attack] name = "dec".'
            )
        secret = Stream(settings.case.seed, ("collusion",))
        number = settings.malicious.index(hospital)
        collusion = Collusion(number, len(settings.malicious), secret)
    name = settings.attack.name if settings.attack else ""
    stream = Stream(settings.case.seed, ("hospital", hospital))
    return plan_for(attack, name, case, data, stream, _data_root(settings), collusion=collusion)


class _Skeletons:
    """One network of each kind that this process keeps, refilled for every round."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._networks: dict[tuple[str, str], nn.Module] = {}

    def take(self, spec: ModelSpec, device: str) -> nn.Module:
        """Take a network out, or build one; whoever takes it has it alone."""
        network = self._networks.pop((spec.model_dump_json(), device), None)
        return build(spec).to(device) if network is None else network

    def give(self, spec: ModelSpec, device: str, network: nn.Module) -> None:
        """Keep a network for the next round; the one kept longest makes room."""
        network.zero_grad(set_to_none=True)
        self._networks[spec.model_dump_json(), device] = network
        while len(self._networks) > self._keep:
            del self._networks[next(iter(self._networks))]


_skeletons = _Skeletons(keep=2)


@contextmanager
def _network(spec: ModelSpec, device: str) -> Iterator[nn.Module]:
    """Lend this process's network of a kind; after an error it is thrown away, not kept."""
    if device == "cuda" and not torch.cuda.is_available():
        raise FlSimError("Hospitals are to train on cuda, but this process sees no GPU.")
    network = _skeletons.take(spec, device)
    yield network
    _skeletons.give(spec, device, network)


def _load(model: nn.Module, state: Mapping[str, torch.Tensor], spec: ModelSpec) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise FlSimError(f"The broadcast does not fit the model '{spec.name}': {error}") from None
