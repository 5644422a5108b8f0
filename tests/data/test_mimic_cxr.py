"""MIMIC-CXR in a made-up small tree: selection, labels, the cache, and everything broken."""

import csv
import gzip
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fl_sim.data import _load, cache, load_dataset
from fl_sim.data.base import Dataset
from fl_sim.data.sources.mimic_cxr import LABELS, read_jpg
from fl_sim.errors import FlSimError

PATIENTS = 20


def table(path: Path, rows: list[list[str]]) -> None:
    """Write a gzipped table."""
    with gzip.open(path, "wt", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A data root with mimic-cxr-jpg: each patient has a frontal and a lateral image."""
    _load.cache_clear()
    root = tmp_path / "data" / "mimic-cxr-jpg"
    random = np.random.default_rng(0)
    split = [["dicom_id", "study_id", "subject_id", "split"]]
    labels = [["subject_id", "study_id", *LABELS]]
    metadata = [["dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "Columns"]]
    for number in range(PATIENTS):
        patient, study = str(10000000 + number), str(50000000 + number)
        part = "train" if number < 12 else "validate" if number < 16 else "test"
        values = ["1.0" if number % 2 else "0.0", "-1.0" if number % 4 == 0 else "", *[""] * 12]
        if number != 11:  # a study without labels
            labels.append([patient, study, *values])
        folder = root / "files" / "p10" / f"p{patient}" / f"s{study}"
        folder.mkdir(parents=True)
        for view in ("PA" if number % 2 else "AP", "LATERAL"):
            dicom = f"{number:08x}-{view.lower()}"
            split.append([dicom, study, patient, part])
            metadata.append([dicom, patient, study, view, "60", "40"])
            picture = random.integers(0, 255, (60, 40), dtype=np.uint8)
            Image.fromarray(picture).save(folder / f"{dicom}.jpg", quality=95)
    table(root / "mimic-cxr-2.0.0-split.csv.gz", split)
    table(root / "mimic-cxr-2.0.0-chexpert.csv.gz", labels)
    table(root / "mimic-cxr-2.0.0-metadata.csv.gz", metadata)
    return root.parent


def load(root: Path, **settings: object) -> Dataset:
    """Load at a small size, afresh."""
    _load.cache_clear()
    return load_dataset("mimic_cxr", {"size": 16, **settings}, root)


def cached(root: Path) -> list[str]:
    """What lies in the cache, but the lock files."""
    folder = root.parent / "cache" / "mimic_cxr"
    return sorted(path.suffixes[-1] for path in folder.glob("*") if path.suffix != ".lock")


def test_frontal_images_and_their_patients(tree: Path) -> None:
    dataset = load(tree)
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [11, 4, 4]
    assert dataset.task.multi_label and dataset.task.label_names == LABELS
    assert (dataset.size, dataset.channels) == (16, 1)
    assert dataset.train.patients is not None
    assert dataset.train.patients[2] == "10000002"
    assert dataset.train.labels[:, 0].tolist() == [0, 1] * 5 + [0]
    assert isinstance(dataset.train.images, np.memmap)
    assert [file.official for file in dataset.files] == [None] * 3
    assert load(tree / "mimic-cxr-jpg").files == dataset.files


def test_pixels_are_those_of_the_right_image(tree: Path) -> None:
    dataset = load(tree)
    path = next((tree / "mimic-cxr-jpg").rglob("00000003-pa.jpg"))
    assert np.array_equal(dataset.train.images[3], read_jpg(path, 16))
    with Image.open(path) as image:
        centre = image.resize((16, 24), Image.Resampling.BICUBIC).crop((0, 4, 16, 20))
    assert np.abs(np.asarray(centre, dtype=int) - dataset.train.images[3, :, :, 0]).max() < 3
    pixels, _ = dataset.test.tensors()
    assert pixels.shape == (4, 1, 16, 16)


def test_views_labels_and_limit(tree: Path) -> None:
    lateral = load(tree, views=["LATERAL"], labels=["edema", "Atelectasis"], limit=2)
    assert [len(s) for s in (lateral.train, lateral.validation, lateral.test)] == [2, 2, 2]
    assert lateral.task.label_names == ("Edema", "Atelectasis")
    assert lateral.train.labels.tolist() == [[0, 0], [0, 1]]
    assert len(load(tree, views=["PA"]).train) == 5


def test_uncertain_labels(tree: Path) -> None:
    assert load(tree, uncertain="zeros").train.labels[:, 1].sum() == 0
    ones = load(tree, uncertain="ones").train.labels[:, 1]
    assert ones.tolist() == [int(n % 4 == 0) for n in range(11)]
    assert len(load(tree, uncertain="ignore").train) == 8
    # The uncertain label is not one of those asked for.
    assert len(load(tree, uncertain="ignore", labels=["Edema"]).train) == 11


def test_the_cache_is_reused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(tree)
    assert cached(tree) == [".npy"]

    def never(*_: object) -> None:
        raise AssertionError("read an image though the cache has it")

    monkeypatch.setattr("fl_sim.data.sources.mimic_cxr.read_jpg", never)
    assert np.array_equal(load(tree).train.images, first.train.images)
    load(tree, labels=["Edema"], uncertain="ones")  # the same images with other labels
    assert cached(tree) == [".npy"]
    monkeypatch.undo()
    monkeypatch.setenv("FL_SIM_CACHE", str(tree.parent / "cache"))
    load(tree, size=24)
    assert cached(tree) == [".npy", ".npy"]


def test_other_images_with_the_same_tables_are_another_cache(tree: Path) -> None:
    load(tree)
    path = next((tree / "mimic-cxr-jpg").rglob("00000003-pa.jpg"))
    Image.new("L", (20, 20)).save(path)
    assert load(tree).train.images[3].max() < 5


def build_and_die(root: Path, after: int) -> None:
    """Load in a process that is killed at its ``after``-th image."""
    from fl_sim.data.sources import mimic_cxr

    cache._CHUNK = 4
    real, seen = mimic_cxr.read_jpg, []

    def deadly(path: Path, size: int) -> np.ndarray:
        seen.append(path)
        if len(seen) > after:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path, size)

    mimic_cxr.read_jpg = deadly
    load(root)


def start(target: object, *arguments: object) -> "multiprocessing.process.BaseProcess":
    """Start a forked process."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def test_a_killed_build_is_not_taken_for_complete(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(build_and_die, tree, 9)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert ".npy" in cached(tree) and ".done" in cached(tree)
    folder = tree.parent / "cache" / "mimic_cxr"
    assert [path.name.endswith(".part.npy") for path in folder.glob("*.npy")] == [True]
    from fl_sim.data.sources import mimic_cxr

    read: list[Path] = []
    real = mimic_cxr.read_jpg

    def noted(path: Path, size: int) -> Any:
        read.append(path)
        return real(path, size)

    monkeypatch.setattr(mimic_cxr, "read_jpg", noted)
    resumed = load(tree)
    assert len(read) == 19 - 8  # two chunks of four were kept
    assert cached(tree) == [".npy"]
    assert all(image.any() for image in np.asarray(resumed.train.images))
    path = next((tree / "mimic-cxr-jpg").rglob("00000000-ap.jpg"))
    assert np.array_equal(resumed.train.images[0], real(path, 16))


def test_a_damaged_half_build_is_begun_again(tree: Path) -> None:
    process = start(build_and_die, tree, 9)
    process.join()
    part = next((tree.parent / "cache" / "mimic_cxr").glob("*.part.npy"))
    part.write_bytes(part.read_bytes()[:100])
    assert load(tree).train.images[0].any()


def test_two_processes_build_at_once(tree: Path) -> None:
    processes = [start(load, tree) for _ in range(3)]
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert cached(tree) == [".npy"]
    assert all(image.any() for image in np.asarray(load(tree).train.images))


def test_progress_is_reported(tree: Path) -> None:
    class Counter:
        total = done = 0

        def start(self, what: str, total: int) -> None:
            self.total = total

        def step(self, note: str = "", advance: int = 1) -> None:
            self.done += advance

        def finish(self) -> None:
            pass

    counter = Counter()
    load_dataset("mimic_cxr", {"size": 8}, tree, counter)
    assert counter.total == counter.done == 19


def test_missing_and_broken_images(tree: Path) -> None:
    path = next((tree / "mimic-cxr-jpg").rglob("00000003-pa.jpg"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(FlSimError, match=r"00000003-pa\.jpg is broken"):
        load(tree)
    path.write_bytes(b"no picture")
    with pytest.raises(FlSimError, match=r"00000003-pa\.jpg is broken"):
        load(tree)
    path.unlink()
    with pytest.raises(FlSimError, match=r"00000003-pa\.jpg is missing"):
        load(tree)
    path.write_bytes(content)
    assert len(load(tree).train) == 11


def test_bad_tables(tree: Path) -> None:
    path = tree / "mimic-cxr-jpg" / "mimic-cxr-2.0.0-chexpert.csv.gz"
    content = path.read_bytes()
    for bad, message in [(content[:60], "damaged"), (b"plain text", "damaged")]:
        path.write_bytes(bad)
        with pytest.raises(FlSimError, match=message):
            load(tree)
    table(path, [["subject_id", "study_id"], ["10000000", "50000000"]])
    with pytest.raises(FlSimError, match="lacks the column 'Atelectasis'"):
        load(tree)
    table(path, [["study_id", *LABELS], ["50000000", "maybe", *[""] * 13]])
    with pytest.raises(FlSimError, match="has the label 'maybe' for study 50000000"):
        load(tree)
    path.unlink()
    with pytest.raises(FlSimError, match=r"chexpert\.csv\.gz of MIMIC-CXR-JPG is missing"):
        load(tree)


def test_bad_settings(tree: Path) -> None:
    with pytest.raises(FlSimError, match="Did you mean 'Edema'"):
        load(tree, labels=["edma", "Edema"])
    with pytest.raises(FlSimError, match="'uncertain' is 'maybe'"):
        load(tree, uncertain="maybe")
    with pytest.raises(FlSimError, match="no image left in the split 'train'"):
        load(tree, views=["XX"])
    _load.cache_clear()
    with pytest.raises(FlSimError, match="needs a data root"):
        load_dataset("mimic_cxr", {}, None)


def test_a_cache_that_cannot_be_written(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tree.parent / "blocked"
    blocked.write_text("a file where a folder should be")
    monkeypatch.setenv("FL_SIM_CACHE", str(blocked))
    with pytest.raises(FlSimError, match=r"image cache .* cannot be written"):
        load(tree)
