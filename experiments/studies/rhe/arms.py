"""One attacker of one arm, against the victims of every seed: a row a seed."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.studies.rhe.world import HEAD, World
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream
from fl_sim.reconstruction.arms import ARMS, settings_of
from fl_sim.reconstruction.convolutions import ConvolutionSettings
from fl_sim.reconstruction.evidence import Evidence, weigh
from fl_sim.reconstruction.few_shot import Attacker, FewShotSettings, learn, victims_head
from fl_sim.reconstruction.private import epsilon_of
from fl_sim.sealing.heads import Linear, head_logits

DRAWS = 200
DECOYS = {"weights": 200, "decisions": 20}
"""Trained heads in the strict null; from decisions each takes a regression."""
ATTACKER = Stream(0, ("attacker",))


@dataclass(frozen=True)
class Cell:
    """One attacker.

    Args:
        arm: key of :data:`fl_sim.reconstruction.arms.ARMS`.
        per_class: images of each class in a victim's set.
        shadows: heads.
        reconstructor: ``"ridge"`` or ``"convolutions"``.
    """

    arm: str
    per_class: int
    shadows: int
    reconstructor: str = "ridge"

    def settings(self, classes: int) -> FewShotSettings:
        """Return what the attacker does."""
        values: dict[str, Any] = {"reconstructor": self.reconstructor}
        own = FewShotSettings(
            images_per_class=self.per_class,
            shadows=self.shadows,
            head=HEAD,
            convolutions=ConvolutionSettings(epochs=3),
            **values,
        )
        return settings_of(self.arm, own, classes)

    def key(self, seed: int) -> tuple[str, ...]:
        """Return what tells the rows of cells and seeds apart."""
        return (
            self.arm,
            str(self.per_class),
            str(self.shadows),
            self.reconstructor,
            str(seed),
        )


class Bench:
    """What cells share: attackers of the same settings, and victims' heads.

    Args:
        world: the case.
        kept: folder of shadow heads.
        progress: where to report.
    """

    def __init__(self, world: World, kept: Path, progress: Progress = SILENT) -> None:
        self.world, self._kept, self._progress = world, kept, progress
        self._attacker: tuple[str, Attacker, float] | None = None
        self._victims: dict[str, Victims] = {}

    def attacker(self, settings: FewShotSettings) -> tuple[Attacker, float]:
        """Return who has learnt with these settings, and the CPU minutes that it took."""
        name, world = settings.model_dump_json(), self.world
        if self._attacker is None or self._attacker[0] != name:
            began = time.process_time()
            learnt = learn(
                world.attacker.features,
                world.attacker.pixels,
                world.attacker.labels,
                world.classes,
                settings,
                ATTACKER.at(settings.images_per_class),
                public=world.public.features,
                kept=self._kept,
                progress=self._progress,
            )
            self._attacker = (name, learnt, _minutes(began))
        return self._attacker[1:]

    def victims(self, settings: FewShotSettings, seed: int) -> "Victims":
        """Return a seed's victims, whose heads leave as the settings say."""
        training = settings.model_dump(include=_OF_VICTIMS, mode="json")
        name = json.dumps([training, seed], sort_keys=True)
        if name not in self._victims:
            heads, sets = victims(self.world, settings, seed)
            aucs = [_auc(self.world, h, s) for h, s in zip(heads, sets, strict=True)]
            self._victims[name] = Victims(heads, sets, float(np.mean(aucs)))
        return self._victims[name]


_OF_VICTIMS = {"images_per_class", "head", "dp", "distilled_on", "averaged"}


@dataclass(frozen=True)
class Victims:
    """Owners whose heads are attacked.

    Args:
        heads: as they leave.
        sets: ``[heads, images]``, rows of the pool, class by class.
        auc: mean of their heads.
    """

    heads: list[tuple[Linear, ...]]
    sets: NDArray[np.int32]
    auc: float


def rows_of_cell(
    bench: Bench, cell: Cell, seeds: Iterable[int]
) -> tuple[list[dict[str, Any]], torch.Tensor, torch.Tensor]:
    """Let an attacker learn, and attack the victims of seeds.

    Args:
        bench: what cells share.
        cell: who attacks what.
        seeds: of victims.

    Returns:
        A row a seed; what was reconstructed of the first seed's first victim, and his images, one
        a class, ``[classes, channels, height, width]`` each.
    """
    world, settings = bench.world, cell.settings(bench.world.classes)
    attacker, learning = bench.attacker(settings)
    null = attacker.null(DRAWS, ATTACKER.at("null"))
    decoys = attacker.decoys(DECOYS[settings.sees])
    rows, shown, own = [], None, None
    for seed in seeds:
        began, found = time.process_time(), bench.victims(settings, seed)
        recovered = torch.stack([_recovered(attacker, cell, head) for head in found.heads])
        originals = _by_class(world.pool.pixels, found.sets, world.classes)
        evidence = weigh(recovered, null, originals, decoys=decoys, gallery=world.gallery())
        values = _values(attacker, evidence, found.auc)
        spent = {"cpu_minutes": learning, "victims_cpu_minutes": _minutes(began)}
        rows.append({**_labels(cell, settings, world.classes, seed), **values, **spent})
        if shown is None:
            shown, own = recovered[0], originals[0, :, 0]
    assert shown is not None and own is not None
    return rows, shown, own


def victims(
    world: World, settings: FewShotSettings, seed: int
) -> tuple[list[tuple[Linear, ...]], NDArray[np.int32]]:
    """Return heads as they leave, and the images behind each, ``[heads, images]``, by class."""
    sets = world.victims(settings, seed)
    labels = torch.from_numpy(world.pool.labels)
    heads = [
        victims_head(
            world.pool.features[torch.from_numpy(own).long()],
            labels[torch.from_numpy(own).long()],
            world.dataset.task,
            settings,
            Stream(seed, ("victim", victim)),
            public=world.public.features,
        )
        for victim, own in enumerate(sets)
    ]
    if settings.averaged == 1:
        return heads, sets
    together = settings.averaged
    groups = [heads[first : first + together] for first in range(0, len(heads), together)]
    by_class = sets.reshape(len(groups), together, world.classes, -1).transpose(0, 2, 1, 3)
    return [(_mean(group),) for group in groups], by_class.reshape(len(groups), -1)


def _mean(heads: list[tuple[Linear, ...]]) -> Linear:
    """Return FedAvg of linear heads of equally many images."""
    matrix = np.mean([head[0].matrix() for head in heads], axis=0)
    mean = torch.from_numpy(matrix).float()
    return Linear(mean[:, :-1], mean[:, -1])


def _recovered(attacker: Attacker, cell: Cell, head: tuple[Linear, ...]) -> torch.Tensor:
    if ARMS[cell.arm].without_head:
        return attacker.without_head()
    return attacker.reconstruct(*head)


def _by_class(pixels: torch.Tensor, sets: NDArray[np.int32], classes: int) -> torch.Tensor:
    """Return images ``[heads, classes, per_class, channels, height, width]``."""
    return pixels[torch.from_numpy(sets).long()].unflatten(1, (classes, -1))


def _auc(world: World, head: tuple[Linear, ...], own: NDArray[np.int32]) -> float:
    """Return the AUC of a head on the pool's images but its own, one class against the rest."""
    from sklearn.metrics import roc_auc_score

    others = np.setdiff1d(np.arange(len(world.pool.labels)), own)
    logits = head_logits(head, world.pool.features[torch.from_numpy(others)])
    scores = torch.softmax(logits.double(), dim=1).numpy()
    return float(roc_auc_score(world.pool.labels[others], scores, multi_class="ovr"))


def _labels(cell: Cell, settings: FewShotSettings, classes: int, seed: int) -> dict[str, Any]:
    dp = settings.dp
    return {
        "arm": cell.arm,
        "base": ARMS[cell.arm].base,
        "images": classes * cell.per_class,
        "per_class": cell.per_class,
        "shadows": cell.shadows,
        "reconstructor": cell.reconstructor,
        "seed": seed,
        "epsilon": "" if dp is None else epsilon_of(dp, settings.head),
        "delta": "" if dp is None else dp.delta,
    }


def _values(attacker: Attacker, evidence: Evidence, auc: float) -> dict[str, Any]:
    victims, classes = evidence.own.shape
    return {
        "victims": victims,
        "trials": victims * classes,
        "tpr": evidence.true_positives().mean,
        "tpr_strict": evidence.true_positives(strict=True).mean,
        "identified": evidence.identified.mean,
        "chance": evidence.chance,
        "mse_own": float(evidence.own.mean()),
        "mse_null": float(evidence.null.mean()),
        "mse_strict": float(evidence.strict.mean()),
        "mse_shadows": attacker.reconstructor.error,
        "mse_class_mean": attacker.reconstructor.class_mean_error,
        "auc": auc,
    }


def _minutes(began: float) -> float:
    return (time.process_time() - began) / 60
