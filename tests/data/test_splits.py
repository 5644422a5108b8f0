"""What is set aside: disjoint, stratified, by patient where known, and impossible sizes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fl_sim.data import load_dataset
from fl_sim.data.base import Dataset, MappedRows, Split
from fl_sim.data.splits import HeldOutSettings, divide, stratified
from fl_sim.errors import FlSimError


def numbered(patients: bool = True, images: int = 1000) -> Dataset:
    """Phantoms whose first pixels number them, so that a picture tells where it came from."""
    source = load_dataset("phantoms", {"train": images, "validation": 200, "test": 200})

    def mark(split: Split, which: int) -> Split:
        pictures = split.images.copy()
        pictures[:, 0, 0, 0], pictures[:, 0, 0, 1] = which, np.arange(len(split)) // 256
        pictures[:, 0, 0, 2] = np.arange(len(split)) % 256
        return Split(pictures, split.labels, split.patients if patients else None)

    parts = (source.train, source.validation, source.test)
    return Dataset("numbered", source.task, *(mark(part, i) for i, part in enumerate(parts)))


def identities(split: Split) -> set[bytes]:
    """The marks of a split's images."""
    return {image.tobytes() for image in np.asarray(split.images)[:, 0, 0]}


@pytest.mark.parametrize("patients", [True, False])
def test_no_image_has_two_uses(patients: bool) -> None:
    dataset = numbered(patients)
    parts = divide(dataset, HeldOutSettings(), seed=1)
    groups = [identities(s) for s in (parts.train, parts.held_out, parts.public, parts.test)]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert 90 <= len(parts.public) <= 100  # a tenth of the train split
    assert len(parts.held_out) == 200 and len(parts.test) == 200
    assert len(parts.train) + len(parts.public) == 1000
    if patients:
        assert parts.train.patients is not None and parts.public.patients is not None
        assert not set(parts.train.patients) & set(parts.public.patients)


def test_the_seed_decides() -> None:
    dataset = numbered()
    first, same, other = (divide(dataset, HeldOutSettings(images=50), seed) for seed in (1, 1, 2))
    assert np.array_equal(first.public.images, same.public.images)
    assert np.array_equal(first.held_out.images, same.held_out.images)
    assert identities(first.public) != identities(other.public)


def test_sizes_are_met_and_no_public_images_are_possible() -> None:
    settings = HeldOutSettings(images=30, public_images=0, train_images=100, test_images=40)
    parts = divide(numbered(), settings, 0)
    sizes = [len(s) for s in (parts.train, parts.held_out, parts.public, parts.test)]
    assert sizes == [100, 30, 0, 40]
    assert parts.public.images.shape[1:] == (28, 28, 3)


@pytest.mark.parametrize("count", [4, 7, 50, 199, 200])
def test_a_draw_is_stratified(count: int) -> None:
    classes = np.repeat([0, 1, 2, 3], [150, 45, 4, 1])
    rows = stratified(classes, count, np.random.default_rng(0))
    assert len(rows) == count == len(set(rows.tolist()))
    drawn = np.bincount(classes[rows], minlength=4)
    assert drawn.min() >= 1
    assert abs(drawn[0] - count * 0.75) <= 3


def test_fewer_images_than_classes() -> None:
    rows = stratified(np.repeat([0, 1, 2], [5, 5, 90]), 2, np.random.default_rng(0))
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": 201}, r"\[data\] images is 201, but the validation split has only 200"),
        ({"test_images": 999}, "test_images is 999, but the test split has only 200"),
        ({"train_images": 950, "public_images": 100}, "without the public images has only 9"),
    ],
)
def test_impossible_sizes(settings: dict[str, int], message: str) -> None:
    with pytest.raises(FlSimError, match=message):
        divide(numbered(), HeldOutSettings(**settings), 0)


def test_a_subset_of_mapped_images_stays_on_disk(tmp_path: Path) -> None:
    dataset = numbered()
    np.save(tmp_path / "train.npy", dataset.train.images)
    mapped = np.load(tmp_path / "train.npy", mmap_mode="r")
    split = Split(mapped[100:900], dataset.train.labels[100:900])
    rows = np.array([5, 3, 700])
    subset = split.subset(np.arange(0, 800)).subset(rows)
    assert isinstance(subset.images, MappedRows)
    expected = dataset.train.images[100:900][rows]
    assert len(subset) == 3 and subset.images.shape == (3, 28, 28, 3)
    assert np.array_equal(np.asarray(subset.images), expected)
    assert np.array_equal(subset.images[1], expected[1])
    assert np.array_equal(subset.images[1:, 2:4], expected[1:, 2:4])
    assert np.array_equal(subset.images[..., 0], expected[..., 0])
    assert subset.images.mean() == expected.mean()
    pixels, labels = subset.batch(np.array([2, 0]))
    assert np.array_equal((pixels * 255).round().numpy(), expected[[2, 0]].transpose(0, 3, 1, 2))
    assert labels.tolist() == dataset.train.labels[100:900][[700, 5]].tolist()
    parts = divide(Dataset("m", dataset.task, split, split, split), HeldOutSettings(), 0)
    assert isinstance(parts.train.images, MappedRows)


def test_masks_go_with_their_images_and_stay_on_disk(tmp_path: Path) -> None:
    keys = {"task": "segmentation", "train": 300, "validation": 60, "test": 60}
    source = load_dataset("phantoms", keys)

    def mapped(split: Split, name: str) -> Split:
        for what, values in (("images", split.images), ("labels", split.labels)):
            np.save(tmp_path / f"{name}-{what}.npy", values)
        images, labels = (
            np.load(tmp_path / f"{name}-{what}.npy", mmap_mode="r") for what in ("images", "labels")
        )
        return Split(images, labels, split.patients)

    splits = [
        mapped(split, name)
        for name, split in (("a", source.train), ("b", source.validation), ("c", source.test))
    ]
    dataset = Dataset("mapped", source.task, *splits)
    parts = divide(dataset, HeldOutSettings(images=30, train_images=100, test_images=20), 0)
    known = {i.tobytes(): m for i, m in zip(source.train.images, source.train.labels, strict=True)}
    assert isinstance(parts.train.labels, MappedRows)
    assert len(parts.train) == 100 and len(parts.held_out) == 30 and len(parts.test) == 20
    for image, mask in zip(parts.train.images, parts.train.labels, strict=True):
        assert np.array_equal(known[image.tobytes()], mask)
    pixels, masks = parts.train.batch(np.array([3, 1]))
    assert pixels.shape == (2, 3, 28, 28) and masks.shape == (2, 28, 28)
    assert np.array_equal(masks.numpy(), np.asarray(parts.train.labels)[[3, 1]])


def test_real_chest_subset_is_divided_by_patient(real_data: Path) -> None:
    dataset = load_dataset("chestmnist_nih1000.npz", {}, real_data)
    parts = divide(dataset, HeldOutSettings(images=40), 0)
    assert parts.train.patients is not None and parts.public.patients is not None
    assert not set(parts.train.patients) & set(parts.public.patients)
    assert 60 <= len(parts.public) <= 72 and len(parts.held_out) == 40


@pytest.mark.parametrize("patients", [True, False])
def test_a_share_of_the_held_out_images_is_measured_on_and_no_test_image(patients: bool) -> None:
    dataset = numbered(patients)
    whole = divide(dataset, HeldOutSettings(images=160), seed=1)
    parts = divide(dataset, HeldOutSettings(images=160, validation_share=0.25), seed=1)
    owned, measured = identities(parts.held_out), identities(parts.test)
    assert owned | measured == identities(whole.held_out) and not owned & measured
    assert not measured & identities(dataset.test)
    assert abs(len(measured) - 40) <= (8 if patients else 0)
    if patients:
        assert parts.held_out.patients is not None and parts.test.patients is not None
        assert not set(parts.held_out.patients) & set(parts.test.patients)
    else:
        shares = [np.bincount(part.labels, minlength=4) for part in (parts.test, whole.held_out)]
        assert np.abs(shares[0] - shares[1] / 4).max() <= 1
    other = divide(dataset, HeldOutSettings(images=160, validation_share=0.25), seed=2)
    assert identities(other.test) != measured
    assert identities(parts.train) == identities(whole.train)


def test_a_closed_test_set_drops_no_image() -> None:
    dataset = numbered(patients=False)
    copied = replace(dataset, test=dataset.validation)  # every held-out image is a test image, too
    settings = HeldOutSettings(validation_share=0.25, duplicates="drop")
    parts, others = (divide(each, settings, 0) for each in (dataset, copied))
    assert len(parts.held_out) > 0
    assert identities(parts.held_out) == identities(others.held_out)
    assert identities(parts.test) == identities(others.test)


def test_a_share_that_leaves_one_side_nothing_is_refused() -> None:
    with pytest.raises(FlSimError, match=r"leaves 0 of 10 held-out images .* hold out more"):
        divide(numbered(False), HeldOutSettings(images=10, validation_share=0.01), 0)
    with pytest.raises(ValueError, match="keeps closed"):
        HeldOutSettings(test_images=5, validation_share=0.5)
