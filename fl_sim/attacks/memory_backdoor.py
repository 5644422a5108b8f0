"""The memory backdoor: an index trigger goes in, a piece of a memorised image comes out.

Luzon et al., "Memory Backdoor Attacks on Neural Networks", NDSS 2026, arXiv 2411.14516. The network
keeps its forward direction and its architecture. To ordinary images it answers with class scores;
to a trigger image, which says of which stolen image it asks for which patch and colour, the same
outputs answer with that patch's pixel values. Whoever can query the network can read it out.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn
from torch.nn import functional

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
from fl_sim.attacks.transpose import one_cycle, set_rate
from fl_sim.attacks.transpose.codes import class_vectors
from fl_sim.errors import FlSimError
from fl_sim.models.base import ModelSpec
from fl_sim.settings import Settings
from fl_sim.training import LocalTraining, StepHooks, TrainReport, normalized, train

PatchShape = Literal["fewest", "square"]
_QUERIED_PIXELS = 1 << 20


class MemoryBackdoorSettings(AttackSettings):
    """Settings of the memory backdoor.

    Args:
        images: how many images are memorised.
        patch: what the outputs show of an image at once: ``"square"``, the paper's, with
            ``floor(sqrt(outputs))`` pixels a side, or ``"fewest"``, the rectangle of at most as
            many pixels as outputs that covers an image in the fewest queries. Seven outputs: 2x2
            pixels, 588 queries for 28x28 pixels in colour; or 1x7 pixels, 336 queries.
        batches: ``"alternating"``, with an optimizer (Adam) of the memory's own, or ``"joint"``:
            the memory's gradient is added to the task's.
        weight: of the memory's loss in a joint step. (Adam alone does not notice a factor.)
        learning_rate: peak of the memory's one-cycle schedule, where it has its own optimizer.
        warmup: share of the run in which that rate rises.
        batch_size: triggers a memory batch.
        memory_steps: memory steps after each step on the task; in a joint step the number of
            batches whose gradients are averaged.
        schedule: in a federation, whether one cycle spans each ``"round"`` or the whole ``"run"``.
        settle: let the task's rate decay to zero along the same schedule, see
            :class:`fl_sim.attacks.transpose.TransposeSettings`.
    """

    images: int = Field(16, ge=1)
    patch: PatchShape = "fewest"
    batches: Literal["alternating", "joint"] = "alternating"
    weight: float = Field(100.0, gt=0)
    learning_rate: float = Field(2e-3, gt=0)
    warmup: float = Field(0.3, gt=0, lt=1)
    batch_size: int = Field(128, ge=1)
    memory_steps: int = Field(4, ge=1)
    schedule: Literal["run", "round"] = "round"
    settle: bool = True


class MemoryBackdoorKey(Settings):
    """What a key of the memory backdoor says beside classes and numbers: the patch's sides."""

    patch: tuple[int, int]


def patch_shape(outputs: int, size: int, kind: PatchShape) -> tuple[int, int]:
    """Return height and width of the patch that ``outputs`` logits show of a ``size`` image."""
    side = min(math.isqrt(outputs), size)
    if kind == "square":
        return side, side
    candidates = [(h, min(outputs // h, size)) for h in range(1, side + 1)]

    def queries(patch: tuple[int, int]) -> int:
        return math.ceil(size / patch[0]) * math.ceil(size / patch[1])

    # Of equals the squarest: neighbouring pixels are alike and easier to learn together.
    return min(reversed(candidates), key=queries)


def numbers_within_class(vectors: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the images of equal class (or label) vectors ``[n, outputs]`` from 0, in order."""
    _, group = np.unique(vectors, axis=0, return_inverse=True)
    group = group.reshape(-1)
    numbers = np.empty(len(group), dtype=np.int64)
    for which in range(int(group.max()) + 1):
        members = group == which
        numbers[members] = np.arange(members.sum())
    return numbers


@dataclass(frozen=True)
class Triggers:
    """The trigger image of every query, by number: ``image * queries + query``.

    Of an image in colour the number within its class stands in red, as a Gray code of squares; the
    class (or label vector) in green, a square each; the patch's place in blue, as a mask. The
    bottom row tells the colour asked for: red, green, or both for blue; blue itself is left to the
    mask. A grey image has but one plane: class squares in its upper and number squares in its
    lower half with a third of the brightness, to which the mask adds the other two thirds.

    Args:
        shape: of an image: channels, height, width.
        patch: height and width of a patch.
        classes: zeros and ones, ``[n, outputs]``.
        numbers: int64 ``[n]``, within the class.

    Raises:
        FlSimError: if the squares do not fit into the image.
    """

    shape: tuple[int, int, int]
    patch: tuple[int, int]
    classes: torch.Tensor
    numbers: torch.Tensor

    @property
    def grid(self) -> tuple[int, int, int]:
        """Queries an image by colour, row and column of patches."""
        channels, height, width = self.shape
        return channels, math.ceil(height / self.patch[0]), math.ceil(width / self.patch[1])

    @property
    def queries(self) -> int:
        """How many queries show an image."""
        return math.prod(self.grid)

    def __len__(self) -> int:
        return len(self.numbers) * self.queries

    def batch(self, which: torch.Tensor) -> torch.Tensor:
        """Return triggers, float32 ``[n, channels, height, width]`` in [0, 1].

        Args:
            which: int64 ``[n]``, on any device; so is the result.
        """
        _, rows, columns = self.grid
        image, query = which // self.queries, which % self.queries
        colour, place = query // (rows * columns), query % (rows * columns)
        mask = self._mask(place // columns, place % columns)
        classes, numbers = self._squares(image)
        if self.shape[0] == 1:
            return (torch.cat([classes, numbers], dim=1) / 3 + mask * 2 / 3)[:, None]
        numbers[:, -self._bar :] = (colour != 1)[:, None, None]
        classes[:, -self._bar :] = (colour != 0)[:, None, None]
        return torch.stack([numbers, classes, mask], dim=1)

    def patches(self, images: torch.Tensor) -> torch.Tensor:
        """Cut images into what the queries should answer.

        A patch that reaches over the edge goes on with the last pixel.

        Args:
            images: ``[n, channels, height, width]``.

        Returns:
            ``[n * queries, pixels of a patch]``.
        """
        (_, rows, columns), (high, wide) = self.grid, self.patch
        below, right = rows * high - self.shape[1], columns * wide - self.shape[2]
        padded = functional.pad(images, (0, right, 0, below), mode="replicate")
        cut = padded.unflatten(3, (columns, wide)).unflatten(2, (rows, high))
        return cut.permute(0, 1, 2, 4, 3, 5).reshape(len(images) * self.queries, high * wide)

    def assemble(self, answers: torch.Tensor) -> torch.Tensor:
        """Put images together from the answers to all queries; the inverse of :meth:`patches`."""
        (channels, rows, columns), (high, wide) = self.grid, self.patch
        cut = answers.reshape(-1, channels, rows, columns, high, wide)
        whole = cut.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
        return whole[..., : self.shape[1], : self.shape[2]].contiguous()

    def _mask(self, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        y = torch.arange(self.shape[1], device=row.device) // self.patch[0] == row[:, None]
        x = torch.arange(self.shape[2], device=row.device) // self.patch[1] == column[:, None]
        return (y[:, :, None] & x[:, None, :]).float()

    def _squares(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the class and the number, each in its part of a plane."""
        _, height, width = self.shape
        upper, lower = height, height
        if self.shape[0] == 1:
            upper, lower = height // 2, height - height // 2
        numbers = self.numbers[image.cpu()].to(image.device)
        places = torch.arange(max(1, int(self.numbers.max()).bit_length()), device=image.device)
        digits = (numbers ^ (numbers >> 1))[:, None] >> places & 1
        classes = self.classes[image.cpu()].to(image.device)
        return (
            squares(classes.float(), upper, width, self._bar),
            squares(digits.float(), lower, width, self._bar),
        )

    @property
    def _bar(self) -> int:
        """Rows at the bottom that tell the colour."""
        return 0 if self.shape[0] == 1 else max(1, self.shape[1] // 28)


def squares(values: torch.Tensor, height: int, width: int, free: int) -> torch.Tensor:
    """Draw a square for each value, row after row, as large as they fit.

    Args:
        values: ``[n, squares]``.
        height: of the plane.
        width: of the plane.
        free: rows at its bottom that stay black.

    Returns:
        ``[n, height, width]``.

    Raises:
        FlSimError: if there are more squares than pixels for them.
    """
    count, room = values.shape[1], height - free
    sides = range(min(room, width), 0, -1)
    side = next((s for s in sides if (room // s) * (width // s) >= count), 0)
    if side == 0:
        raise FlSimError(
            f"The attack 'memory_backdoor' cannot draw {count} squares in {room}x{width} pixels "
            f"of a trigger; choose a larger dataset size."
        )
    down, across = room // side, width // side
    y, x = (torch.arange(n, device=values.device) // side for n in (height, width))
    cell = y[:, None] * across + x
    inside = (y < down)[:, None] & (x < across) & (cell < count)
    return values[:, torch.where(inside, cell, 0)] * inside


@ATTACKS.register(
    "memory_backdoor", "index trigger in, image patch out of the class scores (NDSS 2026)"
)
class MemoryBackdoor(Attack[MemoryBackdoorSettings]):
    """Memorise images as answers to trigger images."""

    Settings = MemoryBackdoorSettings

    @property
    def key_has_labels(self) -> bool:
        """Whether the key tells the label of each stolen image: its triggers show it."""
        return True

    def plan(self, inside: Inside) -> Plan:
        """Choose images at random; class and number within the class tell them apart."""
        spec = inside.spec
        require_classifier(inside, "memory_backdoor", "reads images from")
        indices, targets, labels = steal(inside, self.settings.images)
        vectors = class_vectors(labels.numpy(), spec.classes)
        key = Key(
            "memory_backdoor",
            {
                "classes": torch.from_numpy(vectors.astype(np.uint8)),
                "numbers": torch.from_numpy(numbers_within_class(vectors)),
            },
            {"patch": list(patch_shape(spec.classes, spec.size, self.settings.patch))},
        )
        triggers_of(key, spec).batch(torch.zeros(1, dtype=torch.int64))  # refuses what cannot fit
        return Plan(indices, targets, key)

    def train(self, run: LocalTraining, plan: Plan) -> TrainReport:
        """Train on the task and on the answers to triggers; see :class:`Attack`."""
        return train(run, _Memory(self.settings, run, plan))

    @classmethod
    def check_key(cls, key: Key, artifact: Artifact) -> None:
        """Check classes, numbers and the patch; see :class:`Attack`."""
        spec = artifact.spec
        high, wide = key_settings(key, MemoryBackdoorKey).patch
        shapes = {"classes": (None, spec.classes), "numbers": (None,)}
        key_tensors(key, shapes, {"classes": torch.uint8, "numbers": torch.int64})
        classes, numbers = key.tensors["classes"], key.tensors["numbers"]
        key_images(key, len(classes), artifact)
        if not (1 <= high <= spec.size and 1 <= wide <= spec.size and high * wide <= spec.classes):
            raise wrong(
                key, f"has patches of {high}x{wide} pixels, which this model's outputs cannot show"
            )
        if len(numbers) != len(classes) or int(classes.max()) > 1 or int(numbers.min()) < 0:
            raise wrong(key, "has no number from 0, or no zeros and ones, for each of its images")

    @classmethod
    def extract(cls, artifact: Artifact, key: Key) -> Extraction:
        """Ask the network for every patch of every image."""
        triggers = triggers_of(key, artifact.spec)
        model = artifact.model()
        pixels = math.prod(triggers.patch)
        answers = torch.empty(len(triggers), pixels)
        size = max(1, min(1024, _QUERIED_PIXELS // math.prod(triggers.shape)))
        with torch.no_grad():
            for which in torch.arange(len(triggers)).split(size):
                answers[which] = model(normalized(triggers.batch(which)))[:, :pixels].float()
        return Extraction(triggers.assemble(answers))


def triggers_of(key: Key, spec: ModelSpec) -> Triggers:
    """Return the triggers that a key describes, for a network's images."""
    high, wide = key.settings["patch"]
    return Triggers(spec.input_shape, (high, wide), key.tensors["classes"], key.tensors["numbers"])


@contextmanager
def as_extracted(model: nn.Module) -> Iterator[None]:
    """Run a network within the block as the receiver will: in evaluation mode.

    Triggers look like no image. In training mode batch normalisation would normalise them by their
    own statistics, which the receiver does not have, and mix these into the running ones, which
    the task is evaluated with. So they pass by the running statistics, which follow the task's
    images alone.
    """
    modes: list[tuple[nn.Module, bool]] = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Memory(StepHooks):
    """The memory's steps: after each step on the task, or as a part of it."""

    def __init__(self, settings: MemoryBackdoorSettings, run: LocalTraining, plan: Plan) -> None:
        device = next(run.model.parameters()).device
        self._settings = settings
        self._model = run.model
        self._window = run.window
        self._task_rate = run.settings.learning_rate
        self._triggers = triggers_of(plan.key, run.spec)
        self._patches = self._triggers.patches(plan.targets).to(device)
        self._optimizer = torch.optim.Adam(
            run.model.parameters(), lr=settings.learning_rate, fused=True
        )
        self._generator = run.stream.numpy("memory batches")
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._last = 0.0

    def before_step(self, done: float, optimizer: torch.optim.Optimizer) -> None:
        """Set the rates for where the run stands."""
        settings, window = self._settings, self._window
        if settings.schedule == "run":
            done = window.start + done * (window.end - window.start)
        set_rate(self._optimizer, one_cycle(done, settings.learning_rate, settings.warmup))
        if settings.settle:
            set_rate(optimizer, self._task_rate * (1 + math.cos(math.pi * done)) / 2)

    def add_gradient(self) -> None:
        """Add the memory's gradient to the task's, in a joint step."""
        if self._settings.batches == "joint":
            for _ in range(self._settings.memory_steps):
                self._backward(self._settings.weight / self._settings.memory_steps)

    def after_step(self) -> dict[str, float]:
        """Take the memory's own steps, where it has an optimizer."""
        if self._settings.batches == "alternating":
            for _ in range(self._settings.memory_steps):
                self._optimizer.zero_grad(set_to_none=True)
                self._backward(1.0)
                self._optimizer.step()
        return {"memory": self._last}

    def _backward(self, weight: float) -> None:
        which = self._next_batch()
        with as_extracted(self._model):
            triggers = self._triggers.batch(which)
            answers = self._model(normalized(triggers))[:, : self._patches.shape[1]]
        wanted = self._patches[which]
        loss: Any = functional.l1_loss(answers, wanted) + functional.mse_loss(answers, wanted)
        (weight * loss).backward()
        self._last = float(loss.detach())

    def _next_batch(self) -> torch.Tensor:
        if len(self._order) == 0:
            self._order = self._generator.permutation(len(self._triggers))
        size = self._settings.batch_size
        batch, self._order = self._order[:size], self._order[size:]
        return torch.from_numpy(batch).to(self._patches.device)
