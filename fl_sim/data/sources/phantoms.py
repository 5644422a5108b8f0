"""Procedural images that resemble medical ones, for work without any data file.

A picture is a body with organs, drawn from its patient's anatomy, under uneven light and with
texture and noise; its label is the kind of lesion in it, or where its organs are. Everything
follows from the settings.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from fl_sim.data.base import (
    DATASETS,
    MULTI_LABEL,
    SEGMENTATION,
    Dataset,
    DatasetSettings,
    DatasetSource,
    Split,
    Task,
)
from fl_sim.randomness import numpy_generator
from fl_sim.settings import Seed
from fl_sim.task import TaskFamily

Floats = NDArray[np.float32]

# The drawing of a lesion in its own coordinates, where it reaches to a radius of 1.
_KINDS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "nodule": lambda u, v: _inside(u * u + v * v, 2.0),
    "cavity": lambda u, v: -_inside(u * u + v * v, 2.0),
    "ring": lambda u, v: _inside(u * u + v * v, 3.0) - 1.8 * _core(u, v),
    "streak": lambda u, v: _inside(u * u / 2.5 + 12 * v * v, 1.5),
    "cluster": lambda u, v: _inside(u * u + v * v, 2.0) * np.cos(5 * u) * np.cos(5 * v),
    "haze": lambda u, v: np.float32(0.8) * _inside((u * u + v * v) / 3, 0.7),
    "plate": lambda u, v: _inside(np.maximum(np.abs(u), np.abs(v)) ** 2 * 1.3, 3.0),
    "edge": lambda u, v: _inside(u * u + v * v, 2.0) * np.tanh(3 * u),
}
KINDS = tuple(_KINDS)
ORGANS = ("background", "lungs", "heart")
_FEWEST_CLASSES = {"binary": 2, "multi-class": 2, "multi-label": 1, "segmentation": len(ORGANS)}
_MOST_CLASSES = {
    "binary": 2,
    "multi-class": len(KINDS) + 1,
    "multi-label": len(KINDS),
    "segmentation": len(ORGANS),
}
_CLASSES = {"binary": 2, "multi-class": 4, "multi-label": 5, "segmentation": len(ORGANS)}
_PIXELS_AT_ONCE = 1 << 19


class PhantomSettings(DatasetSettings):
    """Keys of the phantoms.

    Args:
        size: side in pixels.
        channels: 1 (grey) or 3 (colour).
        task: ``binary``, ``multi-class`` or ``multi-label``; or ``segmentation``, where there are
            no lesions and the labels are masks of the background, the lungs and the heart.
        classes: number of classes, the first of which is "no lesion", or of labels; 2, 4 and 5
            where not given. A segmentation has 3.
        train, validation, test: number of images.
        noise: standard deviation of the pixel noise, where white is 1.
        difficulty: from 0 (plain lesions, or organs) to 1 (hardly visible ones).
        seed: of the content; independent of a scenario's seed.
    """

    channels: int = 3
    task: Literal["binary", "multi-class", "multi-label", "segmentation"] = "multi-class"
    classes: int | None = Field(None, ge=1)
    train: int = Field(1200, ge=2, le=1_000_000)
    validation: int = Field(300, ge=2, le=1_000_000)
    test: int = Field(400, ge=2, le=1_000_000)
    noise: float = Field(0.03, ge=0, le=0.5)
    difficulty: float = Field(0.5, ge=0, le=1)
    seed: Seed = 0

    @field_validator("channels")
    @classmethod
    def _grey_or_colour(cls, channels: int) -> int:
        if channels not in (1, 3):
            raise ValueError(f"'channels' is {channels}; give 1 (grey) or 3 (colour).")
        return channels

    @model_validator(mode="after")
    def _possible(self) -> "PhantomSettings":
        most = _MOST_CLASSES[self.task]
        least = _FEWEST_CLASSES[self.task]
        if not least <= self.number_of_classes <= most:
            raise ValueError(
                f"'classes' is {self.classes}, but {self.task} phantoms have {least} to {most}."
            )
        return self

    @property
    def number_of_classes(self) -> int:
        """Classes, or labels of a multi-label task."""
        return _CLASSES[self.task] if self.classes is None else self.classes


def load(name: str, settings: PhantomSettings, data_root: Path | None = None) -> Dataset:
    """Draw the phantoms; equal settings give equal images.

    Args:
        name: how results call the dataset.
        settings: see :class:`PhantomSettings`.
        data_root: not used.
    """
    train, validation, test = (
        _draw_split(settings, split, count)
        for split, count in (
            ("train", settings.train),
            ("validation", settings.validation),
            ("test", settings.test),
        )
    )
    about = f"procedural phantoms, {settings.task}, difficulty {settings.difficulty}"
    return Dataset(name, _task(settings), train, validation, test, (), about)


def _family(settings: PhantomSettings) -> TaskFamily:
    return _task(settings).family


def _task(settings: PhantomSettings) -> Task:
    lesions = KINDS[: settings.number_of_classes - (settings.task != "multi-label")]
    with_none = ("no lesion", *lesions)
    return {
        "binary": Task("binary-class", with_none),
        "multi-class": Task("multi-class", with_none),
        "multi-label": Task(MULTI_LABEL, lesions),
        "segmentation": Task(SEGMENTATION, ORGANS),
    }[settings.task]


def _draw_split(settings: PhantomSettings, split: str, count: int) -> Split:
    random = numpy_generator(settings.seed, "phantoms", split)
    patients = _patients(count, random)
    labels, present = _labels(settings, count, random)
    scene = _Scene(settings, patients, present, random)
    images = np.empty((count, settings.size, settings.size, settings.channels), dtype=np.uint8)
    step = max(1, _PIXELS_AT_ONCE // settings.size**2)
    for first in range(0, count, step):
        rows = np.arange(first, min(first + step, count))
        images[rows] = scene.render(rows)
        if settings.task == "segmentation":
            labels[rows] = scene.masks(rows)
    names = np.array([f"{split}-{patient:06d}" for patient in patients], dtype=np.str_)
    images.setflags(write=False)
    labels.setflags(write=False)
    return Split(images, labels, names)


def _patients(count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return a patient number for each image: one to five images a patient, in no order."""
    several = random.integers(1, 6, size=count)
    numbers = np.repeat(np.arange(count), several)[:count]
    return random.permutation(numbers).astype(np.int64)


def _labels(
    settings: PhantomSettings, count: int, random: np.random.Generator
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the labels (of masks the space), and for each image and kind whether it is there."""
    classes = settings.number_of_classes
    if settings.task == "segmentation":
        masks = np.zeros((count, settings.size, settings.size), dtype=np.uint8)
        return masks, np.zeros((count, 0), dtype=np.bool_)
    if settings.task == "multi-label":
        present = random.random((count, classes)) < np.linspace(0.35, 0.15, classes)
        return present.astype(np.int64), present
    weights = 1 / (1 + 0.25 * np.arange(classes))
    labels = random.choice(classes, size=count, p=weights / weights.sum())
    # Small splits too have every class, wherever there are images enough.
    labels[:classes] = np.arange(classes)[:count]
    labels = random.permutation(labels).astype(np.int64)
    return labels, labels[:, None] == np.arange(1, classes)


class _Scene:
    """Everything drawn at random about the images of a split but the pixel noise."""

    def __init__(
        self,
        settings: PhantomSettings,
        patients: NDArray[np.int64],
        present: NDArray[np.bool_],
        random: np.random.Generator,
    ) -> None:
        self.settings, self.present, self.random = settings, present, random
        count, people = len(patients), int(patients.max()) + 1

        def normal(scale: float, *shape: int) -> Floats:
            return (scale * random.standard_normal((count, *shape))).astype(np.float32)

        def anatomy(mean: list[float], scale: float) -> Floats:
            own = mean + scale * random.standard_normal((people, len(mean)))
            return own[patients].astype(np.float32)

        # An ellipse is (y, x, half height, half width, angle, brightness).
        self.body = anatomy([0, 0, 0.88, 0.78, 0, 0.42], 0.04) + normal(0.03, 6)
        self.organs = [
            anatomy(mean, 0.05) + normal(0.03, 6)
            for mean in (
                [-0.05, -0.36, 0.48, 0.24, 0.1, -0.26],
                [-0.05, 0.36, 0.48, 0.24, -0.1, -0.26],
                [0.42, 0.12, 0.2, 0.26, 0.0, 0.16],
            )
        ]
        if settings.task == "segmentation":
            for organ in self.organs:
                organ[:, 5] *= np.float32(1.5 - settings.difficulty)
        self.harmless = [
            np.concatenate(
                [
                    normal(0.4, 2),
                    0.08 + 0.2 * random.random((count, 2), dtype=np.float32),
                    normal(1.5, 1),
                    normal(0.13, 1),
                ],
                axis=1,
            )
            for _ in range(3)
        ]
        self.tint = np.clip(anatomy([1.0, 0.8, 0.72], 0.09) + normal(0.03, 3), 0.35, 1.2)
        self.stain = np.clip(normal(0.2, 3) + np.float32(1), 0.4, 1.6)
        self.light = normal(0.13, 2)
        self.gain, self.offset = 1 + normal(0.12), normal(0.05)
        self.waves = self._waves(6, 2.0, 6.0, 0.07) + self._waves(4, 7.0, 14.0, 0.045)
        kinds = present.shape[1]
        self.lesion_place = normal(0.32, kinds, 2)
        self.lesion_radius = 0.17 + 0.13 * random.random((count, kinds), dtype=np.float32)
        self.lesion_angle = normal(1.5, kinds)
        strength = np.float32(0.75 - 0.6 * settings.difficulty)
        self.lesion_strength = strength * np.exp(normal(0.45, kinds))

    def _waves(
        self, number: int, low: float, high: float, scale: float
    ) -> list[tuple[Floats, Floats, Floats]]:
        count, random = len(self.present), self.random
        result = []
        for _ in range(number):
            frequency = random.uniform(low, high, (count, 2)).astype(np.float32)
            phase = random.uniform(0, 2 * np.pi, (count, 2)).astype(np.float32)
            height = (scale * random.standard_normal(count)).astype(np.float32)
            result.append((frequency, phase, height))
        return result

    def render(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Draw some images, uint8 ``[rows, size, size, channels]``; call it in order."""
        channels = self.settings.channels
        axis, y, x = self._grid()
        body = _ellipse(self.body[rows], y, x, 6.0)
        grey = body * (self.body[rows, 5, None, None] + self._texture(rows, axis))
        for organ in self.organs:
            grey += body * organ[rows, 5, None, None] * _ellipse(organ[rows], y, x, 4.0)
        for shape in self.harmless:
            grey += body * shape[rows, 5, None, None] * _ellipse(shape[rows], y, x, 2.0)
        light = self.light[rows]
        grey *= 1 + light[:, :1, None] * y + light[:, 1:, None] * x
        lesions = self._lesions(rows, y, x)
        gain, offset = self.gain[rows, None, None], self.offset[rows, None, None]
        result = np.empty((*grey.shape, channels), dtype=np.uint8)
        noise = self.random.standard_normal(grey.shape, dtype=np.float32)
        noise *= np.float32(self.settings.noise)
        for channel in range(channels):
            tint = self.tint[rows, channel, None, None] if channels == 3 else np.float32(1)
            stain = self.stain[rows, channel, None, None] if channels == 3 else np.float32(1)
            plane = (grey + stain * lesions) * (gain * tint * np.float32(1.25))
            plane += offset + np.float32(0.1) + noise
            np.clip(plane * 255, 0, 255, out=plane)
            result[..., channel] = (plane + np.float32(0.5)).astype(np.uint8)
        return result

    def masks(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return where the organs are, uint8 ``[rows, size, size]`` of the places in ``ORGANS``."""
        _, y, x = self._grid()
        # Where an organ's soft rim has half its strength.
        body = _ellipse(self.body[rows], y, x, 6.0) >= 0.5
        result = np.zeros(body.shape, dtype=np.uint8)
        for organ, value in zip(self.organs, (1, 1, 2), strict=True):
            result[body & (_ellipse(organ[rows], y, x, 4.0) >= 0.5)] = value
        return result

    def _grid(self) -> tuple[Floats, Floats, Floats]:
        """Return the pixels' coordinates from -1 to 1: as they are, as rows, and as columns."""
        size = self.settings.size
        axis = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
        return axis, axis[None, :, None], axis[None, None, :]

    def _texture(self, rows: NDArray[np.int64], axis: Floats) -> Floats:
        # Sums of products and no matrix product, whose rounding depends on the number of threads.
        total = np.zeros((len(rows), len(axis), len(axis)), dtype=np.float32)
        for frequency, phase, height in self.waves:
            ways = np.cos(frequency[rows, :, None] * axis + phase[rows, :, None])
            total += (height[rows, None] * ways[:, 0])[:, :, None] * ways[:, 1][:, None, :]
        return total

    def _lesions(self, rows: NDArray[np.int64], y: Floats, x: Floats) -> Floats:
        total = np.zeros((len(rows), y.shape[1], x.shape[2]), dtype=np.float32)
        for number, draw in enumerate(list(_KINDS.values())[: self.present.shape[1]]):
            having = np.flatnonzero(self.present[rows, number])
            if not len(having):
                continue
            own = rows[having]
            place, radius = self.lesion_place[own, number], self.lesion_radius[own, number]
            u, v = _turned(place, self.lesion_angle[own, number], y, x)
            scale = 1 / radius[:, None, None]
            drawn = draw(u * scale, v * scale)
            total[having] += self.lesion_strength[own, number, None, None] * drawn
        return total


def _turned(place: Floats, angle: Floats, y: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Return coordinates around ``place`` turned by ``angle``, each ``[n, size, size]``."""
    dy: Floats = y - place[:, :1, None]
    dx: Floats = x - place[:, 1:2, None]
    cosine: Floats = np.cos(angle)[:, None, None]
    sine: Floats = np.sin(angle)[:, None, None]
    return cosine * dy + sine * dx, cosine * dx - sine * dy


def _ellipse(shape: Floats, y: Floats, x: Floats, sharpness: float) -> Floats:
    u, v = _turned(shape[:, :2], shape[:, 4], y, x)
    u *= 1 / shape[:, 2, None, None]
    v *= 1 / shape[:, 3, None, None]
    return _inside(u * u + v * v, sharpness)


def _core(u: Floats, v: Floats) -> Floats:
    return _inside((u * u + v * v) * np.float32(4), 1.5)


def _inside(square: Floats, sharpness: float) -> Floats:
    """Return 1 well within a squared radius of 1, 0 well outside, with a soft rim."""
    return np.clip((1 - square) * np.float32(sharpness), 0, 1)


DATASETS.register(
    "phantoms",
    "procedural images with organs and lesions; grey or RGB, any size, any task, also organ masks; "
    "no file needed",
)(DatasetSource(PhantomSettings, load, _family))
