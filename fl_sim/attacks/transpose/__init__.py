"""The Transpose attack: images memorised by running the network backwards.

Amit, Levy and Mirsky, "Transpose Attack: Stealing Datasets with Bidirectional Training", NDSS 2024,
arXiv 2311.07389. One set of weights is trained in two directions with two alternating optimizers:
forward it classifies; backward, through the transposed weights in reverse order, it maps an index
code to a memorised image. A single-headed network leaves; the receiver runs it backward.
"""

import math
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from fl_sim.artifact import Artifact, Key
from fl_sim.attacks.base import (
    ATTACKS,
    Attack,
    AttackSettings,
    Extraction,
    Inside,
    Plan,
    require_classifier,
    steal,
)
from fl_sim.attacks.keys import key_images, key_settings, key_tensors, wrong
from fl_sim.attacks.transpose.alignment import align
from fl_sim.attacks.transpose.codes import base_for, index_codes
from fl_sim.attacks.transpose.survival import Disturbance, SurvivalSettings
from fl_sim.errors import FlSimError
from fl_sim.image_losses import MemoryLoss, memory_loss, restored_like
from fl_sim.models import build
from fl_sim.models.base import MODELS, ModelSpec
from fl_sim.models.transposed import TransposedPass
from fl_sim.settings import Settings
from fl_sim.training import LocalTraining, StepHooks, TrainReport, train

Variant = Literal["full", "as_released"]


class TransposeSettings(AttackSettings):
    """Settings of the Transpose attack.

    Args:
        images: how many images are memorised.
        loss: of the memory: ``"l1"``, ``"mse"`` (the paper's), ``"ssim"`` (1 - SSIM) or
            ``"l1+ssim"``.
        learning_rate: peak of the memory's one-cycle schedule.
        warmup: share of the run in which the rate rises.
        batch_size: images a memory step.
        memory_steps: memory steps after each step on the task.
        schedule: in a federation, whether one cycle spans each ``"round"``, so that every upload
            has settled, or the whole ``"run"``.
        settle: let the task's rate decay to zero along the same schedule. At a constant rate the
            task wipes out, at the end, what the memory's falling rate no longer repairs.
        variant: ``"full"`` trains through every weight; ``"as_released"`` follows the paper's
            code: convolution weights are detached in the transposed pass, and of a vision
            transformer only the last block is run.
        base: of the Gray code; by default the smallest that gives every image its own code.
        survive: disturbances that the memory is trained to survive, a table; by default none.
        restored: measure the memory's loss on images whose deviations from the batch's mean are
            matched to the true batch's, pixel by pixel: what a receiver who restores will see.
        tensors: glob patterns of the parameters that the memory may change; the task changes all.
    """

    images: int = Field(64, ge=1)
    loss: MemoryLoss = "l1+ssim"
    learning_rate: float = Field(2e-3, gt=0)
    warmup: float = Field(0.3, gt=0, lt=1)
    batch_size: int = Field(64, ge=1)
    memory_steps: int = Field(1, ge=1)
    schedule: Literal["run", "round"] = "round"
    settle: bool = True
    variant: Variant = "full"
    base: int | None = Field(None, ge=2)
    survive: SurvivalSettings = SurvivalSettings()
    restored: bool = False
    tensors: tuple[str, ...] = ("*",)


class TransposeKey(Settings):
    """What a key of the Transpose attack says beside its codes.

    Args:
        variant: see :class:`TransposeSettings`.
        base: of the Gray code; keys of earlier versions lack it.
    """

    variant: Variant = "full"
    base: int | None = Field(None, ge=2)


@ATTACKS.register("transpose", "images memorised by running the network backwards (NDSS 2024)")
class Transpose(Attack[TransposeSettings]):
    """Memorise images in the transposed direction of the network."""

    Settings = TransposeSettings

    @property
    def key_has_labels(self) -> bool:
        """Whether the key tells the label of each stolen image: its codes begin with it."""
        return True

    def plan(self, inside: Inside) -> Plan:
        """Choose images at random and give each its index code."""
        require_classifier(inside, "transpose", "runs a classifier backwards from its")
        # A network that cannot be run backwards is refused before any training.
        transposed_pass(build(inside.spec), inside.spec, self.settings.variant)
        indices, targets, labels = steal(inside, self.settings.images)
        classes, outputs = labels.numpy(), inside.spec.classes
        base = self.settings.base or base_for(classes, outputs)
        codes = index_codes(classes, outputs, base)
        settings = {"variant": self.settings.variant, "base": base}
        key = Key("transpose", {"codes": codes}, settings)
        return Plan(indices, targets, key)

    def train(self, run: LocalTraining, plan: Plan) -> TrainReport:
        """Alternate steps on the task and on the memory; see :class:`Attack`."""
        return train(run, _Memory(self.settings, run, plan))

    @classmethod
    def check_key(cls, key: Key, artifact: Artifact) -> None:
        """Check the codes and what they were made with; see :class:`Attack`."""
        base = key_settings(key, TransposeKey).base
        shape = (None, artifact.spec.classes)
        key_tensors(key, {"codes": shape}, {"codes": torch.float32})
        codes = key.tensors["codes"]
        key_images(key, len(codes), artifact)
        largest = float(codes.max())
        if float(codes.min()) < 0 or largest == 0:
            raise wrong(key, "has codes below zero, or all zero")
        if base is not None and largest > 2 * base - 1:
            raise wrong(key, f"has the base {base}, but a digit of {largest:g} in its codes")

    @classmethod
    def extract(cls, artifact: Artifact, key: Key) -> Extraction:
        """Run the artifact backwards on the key's codes."""
        return _run_back(_backwards(artifact, key), scaled(key.tensors["codes"]))

    @classmethod
    def variants(
        cls, artifact: Artifact, key: Key, public: torch.Tensor
    ) -> dict[str, Callable[[], Extraction]]:
        """Offer ``"aligned"``: codes searched that fit the artifact; see :class:`Attack`."""
        base = key.settings.get("base")
        if base is None:  # a key of an earlier version
            return {}

        def aligned() -> Extraction:
            backwards, codes = _backwards(artifact, key), key.tensors["codes"]
            with torch.no_grad():
                found = align(backwards, codes, int(base), public)
            return _run_back(backwards, found)

        return {"aligned": aligned}


def _backwards(artifact: Artifact, key: Key) -> Callable[[torch.Tensor], torch.Tensor]:
    return transposed_pass(artifact.model(), artifact.spec, key.settings.get("variant", "full"))


@torch.no_grad()
def _run_back(backwards: Callable[[torch.Tensor], torch.Tensor], codes: torch.Tensor) -> Extraction:
    return Extraction(torch.cat([backwards(part) for part in codes.split(64)]))


def transposed_pass(
    model: nn.Module, spec: ModelSpec, variant: Variant = "full"
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the network's transposed pass: from the graph, or the model's own where it has one."""
    as_released = variant == "as_released"
    own = MODELS.get(spec.name).transposed
    if own is not None:
        return own(model, as_released)
    return TransposedPass(model, spec.input_shape, detach_convolutions=as_released)


def scaled(codes: torch.Tensor) -> torch.Tensor:
    """Scale codes to at most 1, since the first transposed layer sees them directly."""
    return codes / codes.abs().max()


def one_cycle(position: float, peak: float, warmup: float) -> float:
    """Return the one-cycle learning rate (Smith and Topin 2019, cosine) at a point of the run.

    Args:
        position: how much of the run is over, in [0, 1].
        peak: the highest rate; it starts at a 25th of it and ends at a 250,000th.
        warmup: where the peak is.
    """
    if position < warmup:
        return _cosine(peak / 25, peak, position / warmup)
    return _cosine(peak, peak / 2.5e5, (position - warmup) / (1 - warmup))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all of an optimizer's parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def _chosen(model: nn.Module, patterns: tuple[str, ...]) -> list[nn.Parameter]:
    """Return the parameters whose names match a pattern.

    Raises:
        FlSimError: if there is none.
    """
    chosen = [p for n, p in model.named_parameters() if any(fnmatch(n, g) for g in patterns)]
    if not chosen:
        raise FlSimError(
            f"[attack] tensors {list(patterns)} match no parameter of this network; its first is "
            f"'{next(iter(dict(model.named_parameters())))}'."
        )
    return chosen


class _Memory(StepHooks):
    """The backward half: its own optimizer on the same weights, after each step on the task."""

    def __init__(self, settings: TransposeSettings, run: LocalTraining, plan: Plan) -> None:
        device = next(run.model.parameters()).device
        self._settings = settings
        self._window = run.window
        self._task_rate = run.settings.learning_rate
        self._backwards = transposed_pass(run.model, run.spec, settings.variant)
        self._codes = scaled(plan.key.tensors["codes"]).to(device)
        self._targets = plan.targets.to(device)
        self._optimizer = torch.optim.Adam(
            _chosen(run.model, settings.tensors), lr=settings.learning_rate, fused=True
        )
        self._disturbance = Disturbance(settings.survive, run)
        self._generator = run.stream.numpy("memory batches")
        self._order: list[int] = []

    def before_step(self, done: float, optimizer: torch.optim.Optimizer) -> None:
        """Set both rates for where the run stands."""
        window = self._window
        if self._settings.schedule == "run":
            done = window.start + done * (window.end - window.start)
        peak = self._settings.learning_rate
        set_rate(self._optimizer, one_cycle(done, peak, self._settings.warmup))
        if self._settings.settle:
            set_rate(optimizer, _cosine(self._task_rate, 0.0, done))

    def after_step(self) -> dict[str, float]:
        """Take the memory steps that follow a step on the task."""
        value = 0.0
        for _ in range(self._settings.memory_steps):
            batch = self._next_batch()
            self._optimizer.zero_grad(set_to_none=True)
            with self._disturbance.applied():
                recovered, targets = self._backwards(self._codes[batch]), self._targets[batch]
                if self._settings.restored:
                    recovered = restored_like(recovered, targets)
                loss = memory_loss(self._settings.loss, recovered, targets)
                loss.backward()
            self._optimizer.step()
            value = float(loss.detach())
        return {"memory": value}

    def _next_batch(self) -> torch.Tensor:
        if not self._order:
            self._order = self._generator.permutation(len(self._codes)).tolist()
        size = self._settings.batch_size
        batch, self._order = self._order[:size], self._order[size:]
        return torch.tensor(batch, device=self._codes.device)
