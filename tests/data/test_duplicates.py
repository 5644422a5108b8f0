"""Near-duplicates between uses: found, counted, left out; and splits by patient."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_sim.data import duplicates as module
from fl_sim.data import load_dataset
from fl_sim.data.base import Dataset, MappedRows, Split, Task, stacked
from fl_sim.data.by_patient import by_patient
from fl_sim.data.duplicates import Looked, look_at, near, scale_of
from fl_sim.data.splits import Divided, HeldOutSettings, divide
from fl_sim.errors import FlSimError

TASK = Task("multi-class", ("a", "b", "c"))


def smooth(images: int, seed: int, side: int = 28) -> NDArray[np.uint8]:
    """Pictures with a blob in the middle, as of one kind, each with details of its own."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).normal(size=(images, side, side))
    detail = gaussian_filter(noise, (0, side / 20, side / 20)) * side / 2
    y, x = np.indices((side, side)) / side - 0.5
    pictures = 160 - 60 * np.exp(-20 * (x**2 + y**2)) + 20 * detail
    return np.repeat(pictures.clip(0, 255).astype(np.uint8)[..., None], 3, axis=3)


def retouched(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same photographs, darker, with less contrast, another tint and noise."""
    noise = np.random.default_rng(9).normal(0, 2, images.shape)
    changed = images.astype(np.float64) * (0.8, 0.7, 0.75) + 10 + noise
    return changed.clip(0, 255).astype(np.uint8)


def dataset(patients: bool = False) -> Dataset:
    """400 training images; the first validation and two test images are copies of some."""
    parts = [smooth(400, 1), smooth(40, 2), smooth(60, 3)]
    parts[1][0] = retouched(parts[0][5:6])[0]
    parts[2][:2] = retouched(parts[0][7:9])
    parts[1][1] = parts[2][10]
    splits = []
    for name, images in zip("abc", parts, strict=True):
        own = np.array([f"{name}{n // 4}" for n in range(len(images))]) if patients else None
        splits.append(Split(images, np.arange(len(images)) % 3, own))
    return Dataset("made", TASK, *splits)


def uses(parts: Divided) -> dict[str, Split]:
    return {
        "train": parts.train,
        "held-out": parts.held_out,
        "public": parts.public,
        "test": parts.test,
    }


def test_the_same_photograph_is_found_and_pictures_of_a_kind_are_not() -> None:
    parts = divide(dataset(), HeldOutSettings(public_images=0), 0)
    scale = scale_of(parts.train)
    train = Looked(parts.train, scale)
    assert np.flatnonzero(near(Looked(parts.held_out, scale), train)).tolist() == [0]
    assert np.flatnonzero(near(Looked(parts.test, scale), train)).tolist() == [0, 1]
    counts = look_at(uses(parts))
    assert counts is not None
    assert counts.counts == {
        "held-out near train": 1,
        "held-out near test": 1,
        "public near train": 0,
        "public near test": 0,
        "test near train": 2,
    }
    assert str(counts) == (
        "1 of 40 held-out near train, 1 of 40 held-out near test, 2 of 60 test near train"
    )


@pytest.mark.parametrize("side", [8, 28, 64])
def test_every_size_is_compared_and_an_even_image_is_like_none(side: int) -> None:
    images = smooth(300, 4, side)
    images[:2] = 90
    first = Split(images, np.zeros(300, dtype=np.int64))
    scale = scale_of(first)
    again = Looked(first.subset(np.arange(20)), scale)
    assert near(again, Looked(first, scale)).tolist() == [False, False, *[True] * 18]
    other = Looked(Split(smooth(30, 5, side), np.zeros(30, dtype=np.int64)), scale)
    assert not near(other, Looked(first, scale)).any()


def test_dropping_leaves_training_images_and_draws_after_it() -> None:
    data = dataset()
    kept = divide(data, HeldOutSettings(public_images=20), 3)
    parts = divide(data, HeldOutSettings(public_images=20, duplicates="drop"), 3)
    assert np.array_equal(parts.train.images, kept.train.images)
    assert parts.dropped is not None and parts.dropped.dropped
    assert len(parts.held_out) == 38
    assert len(parts.test) == 60 - parts.dropped.counts["test near train"]
    left = look_at(uses(parts))
    assert left is not None and not any(left.counts.values())
    with pytest.raises(FlSimError, match="validation split without near-duplicates has only 38"):
        divide(data, HeldOutSettings(images=39, duplicates="drop"), 3)
    drawn = divide(data, HeldOutSettings(images=38, duplicates="drop"), 3)
    assert len(drawn.held_out) == 38


def test_images_of_different_patients_are_other_images() -> None:
    data = dataset(patients=True)
    parts = divide(data, HeldOutSettings(), 0)
    looked = look_at(uses(parts))
    assert looked is not None and not any(looked.counts.values())
    # One patient on both sides: only his own images are compared.
    assert data.train.patients is not None and data.validation.patients is not None
    shared = data.validation.patients.copy()
    shared[:2] = data.train.patients[5]
    data = replace(data, validation=replace(data.validation, patients=shared))
    looked = look_at(uses(divide(data, HeldOutSettings(public_images=0), 0)))
    assert looked is not None and looked.counts["held-out near train"] == 1


def test_too_many_images_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_LOOKED_AT", 499)
    assert look_at(uses(divide(dataset(), HeldOutSettings(), 0))) is None
    separate = divide(dataset(patients=True), HeldOutSettings(), 0)
    assert look_at(uses(separate)) is not None
    dropped = divide(dataset(), HeldOutSettings(duplicates="drop"), 0).dropped
    assert dropped is not None


def test_mapped_images_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset()
    np.save(tmp_path / "images.npy", data.train.images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    rows = Split(mapped, data.train.labels).subset(np.arange(400))
    monkeypatch.setattr(module, "_AT_ONCE", 50)
    read: list[int] = []
    whole = MappedRows.__getitem__
    monkeypatch.setattr(MappedRows, "__array__", None)

    def noted(self: MappedRows, key: Any) -> Any:
        found = whole(self, key)
        read.append(len(found))
        return found

    monkeypatch.setattr(MappedRows, "__getitem__", noted)
    scale = scale_of(rows)
    assert near(Looked(rows, scale), Looked(rows, scale)).all()
    assert max(read) == 50


def test_real_dermamnist_holds_some_photographs_twice(real_data: Path) -> None:
    source = load_dataset("dermamnist", {}, real_data)
    parts = divide(source, HeldOutSettings(), 0)
    found = look_at(uses(parts))
    assert found is not None
    # The pairs were looked at; see the module. One public image is a training image byte for byte.
    assert found.counts["held-out near train"] == 18
    assert found.counts["test near train"] == 24
    train = {image.tobytes() for image in parts.train.images}
    exact = sum(image.tobytes() in train for image in parts.public.images)
    assert 1 <= exact <= found.counts["public near train"] == 4
    dropped = divide(source, HeldOutSettings(duplicates="drop"), 0)
    assert (len(dropped.train), len(dropped.held_out), len(dropped.test)) == (6751, 984, 1981)


def test_no_patient_is_in_two_splits_and_sizes_and_classes_are_nearly_kept(
    real_data: Path,
) -> None:
    source = load_dataset("chestmnist_nih1000.npz", {}, real_data)
    dealt = by_patient(source, 0)
    splits = (dealt.train, dealt.validation, dealt.test)
    patients = [set(split.patients) for split in splits if split.patients is not None]
    assert len(patients) == 3
    assert sum(map(len, patients)) == len(set.union(*patients)) == 264
    assert sum(map(len, splits)) == 1000
    assert [abs(len(s) - n) <= 5 for s, n in zip(splits, (725, 94, 181), strict=True)] == [True] * 3
    for split in splits:
        assert np.abs(split.labels.mean(axis=0) - source.train.labels.mean(axis=0)).max() < 0.1
    again, other = by_patient(source, 0), by_patient(source, 1)
    assert np.array_equal(again.test.images, dealt.test.images)
    assert not np.array_equal(other.test.images, dealt.test.images)
    assert dealt.description.endswith("split by patient")


def test_patients_that_published_splits_share_are_separated_with_their_own_labels() -> None:
    data = dataset(patients=True)
    rows = np.arange(400)
    names = np.array([f"p{n % 50}" for n in rows])
    data = replace(
        data,
        train=replace(data.train, patients=names),
        validation=replace(data.validation, patients=names[:40]),
        test=replace(data.test, patients=names[:60]),
    )
    parts = divide(data, HeldOutSettings(split="patient"), 0)
    known = [set(split.patients) for split in uses(parts).values() if split.patients is not None]
    assert sum(map(len, known)) == len(set.union(*known)) == 50
    label_of = {
        image.tobytes(): int(label)
        for split in (data.train, data.validation, data.test)
        for image, label in zip(split.images, split.labels, strict=True)
    }
    for image, label in zip(parts.test.images, parts.test.labels, strict=True):
        assert label_of[image.tobytes()] == label


def test_a_split_by_patient_needs_patients_and_enough_of_them() -> None:
    with pytest.raises(FlSimError, match=r'split = "patient" needs .* made does not say'):
        divide(dataset(), HeldOutSettings(split="patient"), 0)
    data = dataset(patients=True)

    def one(split: Split) -> Split:
        return replace(split, patients=np.full(len(split), "same"))

    few = replace(data, train=one(data.train), validation=one(data.validation), test=one(data.test))
    with pytest.raises(FlSimError, match="finds 1 patients in made, too few"):
        divide(few, HeldOutSettings(split="patient"), 0)


def test_stacked_mapped_arrays_stay_on_disk(tmp_path: Path) -> None:
    parts = []
    for number, count in enumerate((5, 0, 3)):
        np.save(tmp_path / f"{number}.npy", np.arange(count * 4, dtype=np.uint8).reshape(-1, 2, 2))
        parts.append(np.load(tmp_path / f"{number}.npy", mmap_mode="r" if count else None))
    whole = np.concatenate(parts)
    stack = stacked(parts)
    assert isinstance(stack, MappedRows)
    assert np.array_equal(stack[np.array([7, 0, 5, 4])], whole[[7, 0, 5, 4]])
    assert np.array_equal(stack[6], whole[6])
    assert np.array_equal(stack[2:7], whole[2:7])
    assert np.array_equal(np.asarray(stack), whole)
    assert np.array_equal(np.asarray(stack.take_rows(np.array([6, 1]))), whole[[6, 1]])
    assert isinstance(stacked([whole, whole]), np.ndarray)
