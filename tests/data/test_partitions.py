"""Partitions: properties of every scheme, their limits, and the full size of ChestX-ray14."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fl_sim.data.base import MULTI_LABEL, SEGMENTATION, Split, Task
from fl_sim.data.partitions import (
    SCHEMES,
    PartitionSettings,
    cached_partition,
    partition,
    single_labels,
)
from fl_sim.errors import FlSimError
from fl_sim.settings import parse

SINGLE = Task("multi-class", tuple("abcdefg"))
MULTI = Task(MULTI_LABEL, tuple("abcde"))
MASKS = Task(SEGMENTATION, tuple("abcdef"))


def split_of(task: Task, images: int = 700, patients: bool = True) -> Split:
    """Made-up labels and patients; images do not matter."""
    random = np.random.default_rng(5)
    if task.multi_label:
        labels = (random.random((images, task.outputs)) < 0.2).astype(np.int64)
    elif task.is_segmentation:
        labels = np.zeros((images, 8, 8), dtype=np.uint8)
        labels[:, :4, :4] = random.integers(0, task.outputs, size=(images, 1, 1))
    else:
        labels = random.choice(task.outputs, size=images).astype(np.int64)
    who = random.integers(0, images // 4, size=images).astype(np.str_) if patients else None
    return Split(np.zeros((images, 8, 8, 1), dtype=np.uint8), labels, who)


def settings(scheme: str, **keys: object) -> PartitionSettings:
    """Parse as from a scenario."""
    return parse(PartitionSettings, {"scheme": scheme, **keys}, "[partition]")


def check(parts: list[np.ndarray], images: int, hospitals: int) -> None:
    """Disjoint, complete, sorted, int64."""
    assert len(parts) == hospitals
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(images))


@pytest.mark.parametrize("task", [SINGLE, MULTI, MASKS], ids=["single", "multi", "masks"])
@pytest.mark.parametrize("hospitals", [1, 4, 9])
@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "pathological", "patient"])
def test_every_scheme_deals_out_everything(scheme: str, hospitals: int, task: Task) -> None:
    train = split_of(task)
    each = 7 if hospitals == 1 else 2
    each = each if task is SINGLE else min(each, 6)
    keys = settings(scheme, classes_per_hospital=each)
    parts = partition(train, task, hospitals, keys, seed=3)
    check(parts, len(train), hospitals)
    assert min(map(len, parts)) >= 2
    again = partition(train, task, hospitals, keys, seed=3)
    assert all(np.array_equal(one, two) for one, two in zip(parts, again, strict=True))
    other = partition(train, task, hospitals, keys, seed=4)
    changed = any(not np.array_equal(one, two) for one, two in zip(parts, other, strict=True))
    assert changed or hospitals == 1


def test_all_schemes_are_tested() -> None:
    assert SCHEMES.names() == ["dirichlet", "iid", "pathological", "patient"]


_PRINT = """
import zlib
import numpy as np
from fl_sim.data.base import Split, Task
from fl_sim.data.partitions import SCHEMES, PartitionSettings, partition
images, who = np.zeros((200, 8, 8, 1), np.uint8), (np.arange(200) // 3).astype(str)
train, task = Split(images, np.arange(200) % 7, who), Task("multi-class", tuple("abcdefg"))
sums = []
for scheme in SCHEMES.names():
    parts = partition(train, task, 5, PartitionSettings(scheme=scheme), 1)
    sums.append(zlib.crc32(b"|".join(part.tobytes() for part in parts)))
print(sums)
"""


def test_another_process_partitions_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    exec(_PRINT, {})
    here = capsys.readouterr().out
    run = subprocess.run(
        [sys.executable, "-c", _PRINT],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "1"},
    )
    assert run.stdout == here
    assert here.count(",") == 3


def test_iid_is_even_and_mixed() -> None:
    parts = partition(split_of(SINGLE), SINGLE, 7, settings("iid"), 0)
    assert {len(part) for part in parts} == {100}
    assert np.abs(np.mean(parts[0]) - 350) < 80


def test_dirichlet_alpha_makes_it_even() -> None:
    train = split_of(SINGLE, 3000)

    def spread(alpha: float) -> float:
        parts = partition(train, SINGLE, 5, settings("dirichlet", alpha=alpha), 0)
        shares = [np.bincount(train.labels[part], minlength=7) / len(part) for part in parts]
        return float(np.std(shares, axis=0).mean())

    assert spread(0.1) > 3 * spread(100.0)


def test_pathological_hospitals_have_few_classes_and_no_class_is_lost() -> None:
    train = split_of(SINGLE)
    for hospitals, each in [(4, 2), (7, 1), (20, 3)]:
        keys = settings("pathological", classes_per_hospital=each)
        parts = partition(train, SINGLE, hospitals, keys, 2)
        assert all(len(set(train.labels[part])) == each for part in parts)
        check(parts, len(train), hospitals)


def test_no_patient_is_in_two_hospitals() -> None:
    train = split_of(SINGLE)
    assert train.patients is not None
    parts = partition(train, SINGLE, 6, settings("patient"), 0)
    groups = [set(train.patients[part]) for part in parts]
    assert sum(map(len, groups)) == len(set.union(*groups))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 2


def test_a_multi_label_image_counts_as_its_rarest_label() -> None:
    task = Task(MULTI_LABEL, ("common", "rare", "never"))
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]])
    assert single_labels(labels, task).tolist() == [0, 1, 3, 0]


@pytest.mark.parametrize(
    ("scheme", "keys", "hospitals", "message"),
    [
        ("iid", {}, 351, "at most 350 hospitals"),
        ("iid", {}, 0, "give at least 1"),
        ("dirichlet", {"alpha": 0.001, "min_images": 50}, 9, "No Dirichlet partition .* raise"),
        ("pathological", {"classes_per_hospital": 8}, 9, "give at most 7"),
        ("pathological", {"classes_per_hospital": 2}, 3, "at least 4 hospitals .* to 3"),
        ("pathological", {"classes_per_hospital": 7, "min_images": 1}, 300, "rarest class has"),
        ("patient", {}, 200, "patients of the training images cannot"),
        ("patient", {"min_images": 5}, 139, "leaves a hospital with|at most"),
    ],
)
def test_impossible_partitions(
    scheme: str, keys: dict[str, object], hospitals: int, message: str
) -> None:
    with pytest.raises(FlSimError, match=message):
        partition(split_of(SINGLE), SINGLE, hospitals, settings(scheme, **keys), 0)


def test_a_mask_counts_as_its_most_frequent_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_sim.data.partitions._MASKS_AT_ONCE", 2)
    masks = np.zeros((5, 4, 4), dtype=np.uint8)
    masks[0, 0, :3], masks[0, 1, :2] = 2, 1  # 3 pixels of class 2, 2 of class 1
    masks[2, 0, 0] = 5
    masks[4, 0, :2], masks[4, 1, :2] = 3, 4  # as many of each
    assert single_labels(masks, MASKS).tolist() == [2, 0, 5, 0, 3]
    assert single_labels(masks[:0], MASKS).tolist() == []


@pytest.mark.parametrize("scheme", ["iid", "dirichlet"])
def test_a_cached_partition_of_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path))
    data, keys = split_of(MASKS), settings(scheme)
    computed = partition(data, MASKS, 3, keys, 0)
    for _ in range(2):
        cached = cached_partition(data, MASKS, 3, keys, 0)
        assert [list(share) for share in cached] == [list(share) for share in computed]
    other = Split(data.images, data.labels[::-1], data.patients)
    cached_partition(other, MASKS, 3, keys, 0)
    # Where classes count, other masks are another partition.
    assert len(list(tmp_path.rglob("*.npy"))) == (2 if scheme == "dirichlet" else 1)


def test_patients_must_be_known_and_schemes_too() -> None:
    with pytest.raises(FlSimError, match="needs to know the patient"):
        partition(split_of(SINGLE, patients=False), SINGLE, 3, settings("patient"), 0)
    with pytest.raises(FlSimError, match="Did you mean 'dirichlet'"):
        settings("dirichlett")
    with pytest.raises(FlSimError, match="'alpha' is 0"):
        settings("dirichlet", alpha=0)


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "pathological", "patient"])
def test_chestxray14_at_full_size(real_data: Path, scheme: str) -> None:
    table = real_data / "chest_labels" / "train_list.txt.gz"
    if not table.is_file():
        pytest.skip("needs real data: FL_SIM_DATA has no chest_labels")
    with gzip.open(table, "rt") as file:
        rows = [line.split() for line in file]
    labels = np.array([[int(value) for value in row[1:]] for row in rows])
    patients = np.array([row[0].split("_")[0] for row in rows])
    train = Split(np.zeros((len(rows), 1, 1, 1), dtype=np.uint8), labels, patients)
    task = Task(MULTI_LABEL, tuple(map(str, range(14))))
    parts = partition(train, task, 10, settings(scheme), 0)
    assert len(rows) == 78468
    check(parts, 78468, 10)


def test_a_cached_partition_is_the_computed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path))
    data, settings = split_of(SINGLE), PartitionSettings(scheme="dirichlet")
    computed = partition(data, SINGLE, 3, settings, 0)
    for _ in range(2):
        cached = cached_partition(data, SINGLE, 3, settings, 0)
        assert [list(share) for share in cached] == [list(share) for share in computed]
    assert len(list(tmp_path.rglob("*.npy"))) == 1
    fewer = data.subset(np.arange(699))
    assert sum(map(len, cached_partition(fewer, SINGLE, 3, settings, 0))) == 699
