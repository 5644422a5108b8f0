"""What a study sets aside: the owner's held-out images, an attacker's public ones, a test set."""

from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fl_sim.data.base import Dataset, Split, Task
from fl_sim.data.by_patient import by_patient
from fl_sim.data.duplicates import NearDuplicates, without_near
from fl_sim.data.partitions import single_labels
from fl_sim.errors import FlSimError
from fl_sim.randomness import numpy_generator
from fl_sim.settings import Settings

PUBLIC_SHARE = 0.1
MOST_IMAGES = 100_000_000


class HeldOutSettings(Settings):
    """Which images are set aside.

    Args:
        images: the data owner's clean held-out images, from the validation split; all of it where
            not given.
        public_images: images of the same kind that an attacker may use to restore others; taken
            out of the train split, at most a tenth of it.
        train_images: train on only so many images.
        test_images: test on only so many images.
        split: ``"published"``, or ``"patient"``: all images are dealt out anew, a patient's to one
            of the three splits, which have nearly the published sizes; where patients are known.
        duplicates: images of another use that show the same photograph (see
            :mod:`fl_sim.data.duplicates`): ``"warn"`` counts them, among 20,000 images at most;
            ``"drop"`` leaves out test images near training images, and held-out and public images
            near either, before any are drawn; ``"keep"`` does not look.
        validation_share: to choose settings by: this share of the held-out images (of the
            patients, where these are known) is set aside, each class in proportion; utility is
            measured on it, and the test set stays closed, to ``duplicates`` too. The defence has
            the others. Where not given, it has all, and utility is measured on the test set.
    """

    images: int | None = Field(None, ge=1, le=MOST_IMAGES)
    public_images: int = Field(256, ge=0, le=MOST_IMAGES)
    train_images: int | None = Field(None, ge=1, le=MOST_IMAGES)
    test_images: int | None = Field(None, ge=1, le=MOST_IMAGES)
    split: Literal["published", "patient"] = "published"
    duplicates: Literal["warn", "drop", "keep"] = "warn"
    validation_share: float | None = Field(None, gt=0, lt=1)

    @model_validator(mode="after")
    def _one_set_to_test_on(self) -> Self:
        if self.validation_share is not None and self.test_images is not None:
            raise ValueError(
                "test_images is of the test set, which validation_share keeps closed; leave one of "
                "them out"
            )
        return self


@dataclass(frozen=True)
class Divided:
    """A dataset's images by their use; no row of the dataset is in two of them.

    Photographs may be, unless near-duplicates are dropped: of DermaMNIST rebuilt 18 of 1,003
    validation images and 26 of 2,005 test images show the same as a training image, and one public
    image at seed 0 is, byte for byte, a training image. Other photographs of one lesion or patient
    are not counted.

    Args:
        train: dealt out to hospitals, and what an attack can steal.
        held_out: the data owner's, for cleaning a model.
        public: the attacker's; may be empty. Where patients are known, no patient of these is in
            ``train``, and there may be a few less than asked for.
        test: for measuring only; with ``validation_share`` a part of the held-out images, and no
            image of the test split.
        dropped: which near-duplicates were left out; ``None`` where none were to be.
    """

    train: Split
    held_out: Split
    public: Split
    test: Split
    dropped: NearDuplicates | None = None


def divide(dataset: Dataset, settings: HeldOutSettings, seed: int) -> Divided:
    """Set images aside, each draw keeping the proportions of the classes.

    Held-out and test images come from splits of their own, as published or by patient.

    Args:
        dataset: the published splits.
        settings: how many images for what, and what becomes of patients and near-duplicates.
        seed: the scenario's.

    Raises:
        FlSimError: if more images are asked for than there are; the message gives the maximum. Or
            if a split by patient is asked for and patients are not known, or there are too few
            held-out images to set ``validation_share`` of them aside.
    """
    if settings.split == "patient":
        dataset = by_patient(dataset, seed)
    public_rows, rest = _public(dataset.train, settings.public_images, seed)
    train, public = _without(dataset.train, rest), dataset.train.subset(public_rows)
    test = dataset.test
    if settings.validation_share is not None:
        test = test.subset(np.arange(0))  # closed
    uses = {"train": train, "held-out": dataset.validation, "public": public, "test": test}
    dropped, less = None, ""
    if settings.duplicates == "drop":
        uses, dropped = without_near(uses)
        less = " without near-duplicates"
    held_out, test = uses["held-out"], uses["test"]
    _require("[data] images", settings.images, len(held_out), f"validation split{less}")
    if settings.validation_share is None:
        _require("[data] test_images", settings.test_images, len(test), f"test split{less}")
    where = "train split without the public images"
    _require("[data] train_images", settings.train_images, len(train), where)
    task = dataset.task
    held_out, test = _owners(held_out, test, task, settings, seed)
    return Divided(
        train=_draw(train, task, settings.train_images, seed, "train"),
        held_out=held_out,
        public=uses["public"],
        test=test,
        dropped=dropped,
    )


def stratified(
    classes: NDArray[np.int64], images: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw images so that classes keep their shares, and each class at least one where possible.

    Args:
        classes: ``[n]``, the class of each image.
        images: how many to draw, at most ``n``.
        generator: the randomness.

    Returns:
        Sorted int64 indices ``[images]``.
    """
    names, counts = np.unique(classes, return_counts=True)
    quotas = _quotas(counts, images)
    drawn = [
        generator.choice(np.flatnonzero(classes == name), size=quota, replace=False)
        for name, quota in zip(names, quotas, strict=True)
    ]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def _quotas(counts: NDArray[np.int64], images: int) -> NDArray[np.int64]:
    """Share ``images`` out over classes of ``counts`` images by largest remainder."""
    exact = counts * (images / counts.sum())
    quotas: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    if images >= len(counts):
        quotas = np.maximum(quotas, 1)
    while (missing := images - int(quotas.sum())) != 0:
        # Who is furthest below its share gets one more; who is furthest above gives one back.
        lack = exact - quotas
        if missing > 0:
            quotas[np.where(quotas < counts, lack, -np.inf).argmax()] += 1
        else:
            quotas[np.where(quotas > 1, lack, np.inf).argmin()] -= 1
    return quotas


def _require(key: str, wanted: int | None, available: int, where: str) -> None:
    if wanted is not None and wanted > available:
        raise FlSimError(f"{key} is {wanted}, but the {where} has only {available} images.")


def _public(train: Split, wanted: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of the public images and the rows that remain for training."""
    count = min(wanted, int(len(train) * PUBLIC_SHARE))
    generator = numpy_generator(seed, "public images")
    everything = np.arange(len(train), dtype=np.int64)
    if count == 0:
        return everything[:0], everything
    if train.patients is None:
        public = np.sort(generator.permutation(len(train))[:count]).astype(np.int64)
        return public, np.setdiff1d(everything, public)
    _, of_image, counts = np.unique(train.patients, return_inverse=True, return_counts=True)
    taken = np.isin(of_image, _patients_for(count, counts, generator))
    return np.flatnonzero(taken)[:count], np.flatnonzero(~taken)


def _patients_for(
    count: int, counts: NDArray[np.int64], generator: np.random.Generator
) -> list[int]:
    """Choose patients at random with at most ``count`` images together, but at least one."""
    chosen, images = [], 0
    for patient in generator.permutation(len(counts)):
        if images + counts[patient] <= count:
            chosen.append(int(patient))
            images += int(counts[patient])
    return chosen or [int(counts.argmin())]


def _without(train: Split, rest: NDArray[np.int64]) -> Split:
    return train if len(rest) == len(train) else train.subset(rest)


def _owners(
    held_out: Split, test: Split, task: Task, settings: HeldOutSettings, seed: int
) -> tuple[Split, Split]:
    """Return the images of the owner's defence, and those that utility is measured on."""
    held_out = _draw(held_out, task, settings.images, seed, "held-out")
    if settings.validation_share is None:
        return held_out, _draw(test, task, settings.test_images, seed, "test")
    part = _validation_part(held_out, task, settings.validation_share, seed)
    return held_out.subset(np.flatnonzero(~part)), held_out.subset(np.flatnonzero(part))


def _validation_part(held_out: Split, task: Task, share: float, seed: int) -> NDArray[np.bool_]:
    """Return which held-out images are measured on: whole patients, where these are known."""
    units = np.arange(len(held_out)) if held_out.patients is None else held_out.patients
    _, firsts, unit_of_image = np.unique(units, return_index=True, return_inverse=True)
    count = round(share * len(firsts))
    if not 0 < count < len(firsts):
        what = "images" if held_out.patients is None else "patients"
        raise FlSimError(
            f"[data] validation_share is {share:g}, which leaves {count} of {len(firsts)} held-out "
            f"{what} to measure on and {len(firsts) - count} to the defence; hold out more images."
        )
    classes = single_labels(held_out.labels, task)[firsts]
    generator = numpy_generator(seed, "divide", "validation share")
    return np.isin(unit_of_image, stratified(classes, count, generator))


def _draw(split: Split, task: Task, images: int | None, seed: int, what: str) -> Split:
    if images is None or images == len(split):
        return replace(split)
    classes = single_labels(split.labels, task)
    return split.subset(stratified(classes, images, numpy_generator(seed, "divide", what)))
