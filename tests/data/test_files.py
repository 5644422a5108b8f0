"""MedMNIST files, by registered name and by path: good ones, and every way to be bad."""

import hashlib
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_sim.data import data_root, load_dataset
from fl_sim.data.base import DATASETS, MULTI_LABEL
from fl_sim.data.sources import medmnist
from fl_sim.errors import FlSimError


def arrays(
    side: int = 28, channels: int = 1, columns: int = 1, classes: int = 2, count: int = 12
) -> dict[str, np.ndarray]:
    """Made-up content of a file in MedMNIST's format."""
    random = np.random.default_rng(0)
    shape = (side, side) if channels == 1 else (side, side, channels)
    result: dict[str, np.ndarray] = {}
    for split in ("train", "val", "test"):
        result[f"{split}_images"] = random.integers(0, 256, (count, *shape), dtype=np.uint8)
        labels = np.arange(count * columns).reshape(count, columns) % classes
        result[f"{split}_labels"] = labels.astype(np.uint8)
    return result


def write(path: Path, content: dict[str, np.ndarray]) -> Path:
    """Write an .npz file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **content)
    return path


def test_every_2d_dataset_is_listed() -> None:
    names = DATASETS.summaries()
    assert {"dermamnist", "chestmnist", "pneumoniamnist", "retinamnist", "mimic_cxr"} <= set(names)
    assert not [name for name in names if name.endswith("3d")]
    assert all(names.values())
    assert len(medmnist.catalogue()) == 12


@pytest.mark.parametrize("folder", ["", "medmnist"])
@pytest.mark.parametrize("size", [28, 64])
def test_a_registered_dataset_is_found_and_read(tmp_path: Path, folder: str, size: int) -> None:
    path = tmp_path / folder / medmnist.file_name("pneumoniamnist", size)
    write(path, arrays(side=size))
    dataset = load_dataset("pneumoniamnist", {"size": size}, tmp_path)
    assert dataset.name == "pneumoniamnist"
    assert (dataset.size, dataset.channels) == (size, 1)
    assert dataset.task.kind == "binary-class"
    assert dataset.task.label_names == ("normal", "pneumonia")
    assert dataset.train.labels.shape == (12,) and dataset.train.labels.dtype == np.int64
    assert dataset.files[0].official is False
    assert dataset.files[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_default_folder_is_searched(tmp_path: Path) -> None:
    write(tmp_path / "home" / ".medmnist" / "breastmnist.npz", arrays())
    assert len(load_dataset("breastmnist", {}, None).train) == 12


def test_multi_label_and_colour(tmp_path: Path) -> None:
    write(tmp_path / "chestmnist.npz", arrays(columns=14))
    write(tmp_path / "dermamnist.npz", arrays(channels=3, classes=7))
    chest, derma = (
        load_dataset("chestmnist", {}, tmp_path),
        load_dataset("dermamnist", {}, tmp_path),
    )
    assert chest.task.multi_label and chest.train.labels.shape == (12, 14)
    assert derma.channels == 3 and derma.task.outputs == 7


def test_a_dataset_is_loaded_once_and_cannot_be_changed(tmp_path: Path) -> None:
    write(tmp_path / "pneumoniamnist.npz", arrays())
    dataset = load_dataset("pneumoniamnist", {}, tmp_path)
    assert load_dataset("pneumoniamnist", {}, tmp_path) is dataset
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of read-only memory
        pixels, labels = dataset.train.tensors()
    labels.zero_()
    pixels.zero_()
    assert dataset.train.labels.any() and dataset.train.images.any()
    with pytest.raises(ValueError, match="read-only"):
        dataset.train.images[0] = 0


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FlSimError, match=r"bloodmnist_64\.npz .* is missing .* put it into"):
        load_dataset("bloodmnist", {"size": 64}, tmp_path)


def test_download_is_verified_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "server" / "octmnist.npz", arrays(classes=4))
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setenv("FL_SIM_OFFLINE", "0")
    info: dict[str, Any] = medmnist.catalogue()["octmnist"]
    monkeypatch.setitem(info, "url", source.as_uri())
    with pytest.raises(FlSimError, match=r"downloading it failed .*not the published file"):
        load_dataset("octmnist", {}, root)
    assert list(root.iterdir()) == []
    monkeypatch.setitem(info, "MD5", hashlib.md5(source.read_bytes()).hexdigest())
    dataset = load_dataset("octmnist", {}, root)
    assert dataset.files[0].official is True
    assert [path.name for path in root.iterdir()] == ["octmnist.npz"]


def test_a_download_without_a_network_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FL_SIM_OFFLINE", "")
    monkeypatch.setitem(medmnist.catalogue()["octmnist"], "url", "http://127.0.0.1:9/octmnist.npz")
    with pytest.raises(FlSimError, match="downloading it failed") as caught:
        load_dataset("octmnist", {}, tmp_path)
    assert "\n" not in str(caught.value)


def without(key: str) -> dict[str, np.ndarray]:
    """Content without one array."""
    return {name: array for name, array in arrays().items() if name != key}


BAD: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "missing key": (without("val_labels"), "lacks the array 'val_labels'"),
    "dtype": (arrays() | {"train_images": np.zeros((12, 28, 28))}, "float64 instead of uint8"),
    "objects": (arrays() | {"train_labels": np.array([[{}]] * 12)}, "Python objects"),
    "float labels": (arrays() | {"test_labels": np.zeros((12, 1))}, "instead of an integer"),
    "not square": (
        arrays() | {"train_images": np.zeros((12, 28, 27), dtype=np.uint8)},
        "28x27, which are not square",
    ),
    "dimensions": (
        arrays() | {"train_images": np.zeros((12, 28), dtype=np.uint8)},
        "train_images has shape",
    ),
    "split sizes": (
        arrays() | {"val_images": np.zeros((12, 64, 64), dtype=np.uint8)},
        "val_images and train_images differ",
    ),
    "counts": (
        arrays() | {"test_labels": np.zeros((5, 1), dtype=np.uint8)},
        "test_images has 12 rows but test_labels 5",
    ),
    "range": (arrays(classes=3), "contains the label 2, but labels end at 1"),
    "negative": (arrays() | {"val_labels": np.full((12, 1), -1)}, "label -1, which is below 0"),
    "columns": (arrays(columns=3), "3 columns"),
    "channels": (arrays(channels=3), "3 channels instead of 1"),
    "side": (arrays(side=64), "64 pixels wide instead of 28"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    write(tmp_path / "pneumoniamnist.npz", content)
    with pytest.raises(FlSimError, match=message) as caught:
        load_dataset("pneumoniamnist", {}, tmp_path)
    assert "pneumoniamnist.npz" in str(caught.value)


@pytest.mark.parametrize("keep", [0, 10, 700, -200])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "pneumoniamnist.npz", arrays())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FlSimError, match=r"pneumoniamnist\.npz cannot be used"):
        load_dataset("pneumoniamnist", {}, tmp_path)


@pytest.mark.parametrize("start", [100, 3000, 9000])
def test_flipped_bytes_are_noticed(tmp_path: Path, start: int) -> None:
    path = write(tmp_path / "pneumoniamnist.npz", arrays())
    content = bytearray(path.read_bytes())
    content[start : start + 40] = bytes(255 - byte for byte in content[start : start + 40])
    path.write_bytes(content)
    with pytest.raises(FlSimError, match=r"pneumoniamnist\.npz cannot be used"):
        load_dataset("pneumoniamnist", {}, tmp_path)


def test_names_and_keys_are_checked(tmp_path: Path) -> None:
    with pytest.raises(FlSimError, match="Did you mean 'dermamnist'"):
        load_dataset("dermamist", {}, tmp_path)
    with pytest.raises(FlSimError, match=r"\[dataset\] has no key 'sise'. Did you mean 'size'"):
        load_dataset("dermamnist", {"sise": 28}, tmp_path)
    with pytest.raises(FlSimError, match="no size 32; choose 28, 64, 128 or 224"):
        load_dataset("dermamnist", {"size": 32}, tmp_path)
    assert DATASETS.get("dermamnist").settings.__name__ == "MedMnistSettings"


def test_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data_root(None) is None
    monkeypatch.setenv("FL_SIM_DATA", str(tmp_path))
    assert data_root(None) == tmp_path
    with pytest.raises(FlSimError, match="given is not a folder"):
        data_root(tmp_path / "no")
    monkeypatch.setenv("FL_SIM_DATA", str(tmp_path / "no"))
    with pytest.raises(FlSimError, match="FL_SIM_DATA is not a folder"):
        load_dataset("dermamnist", {}, None)


# Files named by their path.


def test_the_task_of_a_file_is_read_off_its_labels(tmp_path: Path) -> None:
    kinds = {
        "two": (arrays(), "binary-class", 2),
        "five": (arrays(classes=5), "multi-class", 5),
        "many": (arrays(columns=3), MULTI_LABEL, 3),
        "retinamnist_mine": (arrays(classes=5, channels=3), "ordinal-regression", 5),
        "retinamnist_other": (arrays(classes=6), "multi-class", 6),
        "chestmnist_64_mine": (arrays(side=64, columns=14), MULTI_LABEL, 14),
    }
    for stem, (content, kind, outputs) in kinds.items():
        path = write(tmp_path / f"{stem}.npz", content)
        dataset = load_dataset(str(path), {}, None)
        assert (dataset.name, dataset.task.kind, dataset.task.outputs) == (stem, kind, outputs)
        assert dataset.train.patients is None and dataset.files[0].official is None
    assert load_dataset(str(path), {}, None).task.label_names[1] == "cardiomegaly"


def test_a_path_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "root" / "medmnist" / "a.npz", arrays())
    write(tmp_path / "here" / "b.npz", arrays())
    monkeypatch.chdir(tmp_path / "here")
    assert load_dataset("a.npz", {}, tmp_path / "root").name == "a"
    assert load_dataset("medmnist/a.npz", {}, tmp_path / "root").name == "a"
    assert load_dataset("b.npz", {"size": 28}, tmp_path / "root").name == "b"
    with pytest.raises(FlSimError, match=r"no data file c\.npz in .*here.*medmnist"):
        load_dataset("c.npz", {}, tmp_path / "root")
    with pytest.raises(FlSimError, match="size is 64; leave size out or give 28"):
        load_dataset("b.npz", {"size": 64}, None)


def test_labels_that_make_no_task_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "one.npz", arrays(classes=1))
    with pytest.raises(FlSimError, match="only one class"):
        load_dataset(str(path), {}, None)
    path = write(tmp_path / "odd.npz", arrays(columns=3, classes=4))
    with pytest.raises(FlSimError, match="several columns but contains 3"):
        load_dataset(str(path), {}, None)


def patients(rows: int = 12) -> list[str]:
    """Lines of a table of patients, two images each."""
    lines = [f"{s},{i},x.png,{s}{i // 2}" for s in ("train", "val", "test") for i in range(rows)]
    return ["split,index,image,patient", *lines]


@pytest.mark.parametrize("stem", ["mine_28_x", "mine_64", "mine"])
def test_patients_are_found_beside_the_file(tmp_path: Path, stem: str) -> None:
    table = tmp_path / {"mine_28_x": "mine_x_ids.csv"}.get(stem, "mine_ids.csv")
    table.write_text("\n".join(patients()))
    dataset = load_dataset(str(write(tmp_path / f"{stem}.npz", arrays())), {}, None)
    assert dataset.train.patients is not None
    assert list(dataset.train.patients[:3]) == ["train0", "train0", "train1"]
    assert [file.name for file in dataset.files] == [f"{stem}.npz", table.name]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["split,index,image"], "lacks the column 'patient'"),
        (patients(11), "has 11 rows for the split 'train'"),
        ([*patients(), "train,0,x.png,p"], "a second time"),
        ([*patients(), "dev,0,x.png,p"], "Line 38 .* has the split 'dev'"),
        ([*patients(), "train,12,x.png,"], "Line 38 .* lacks its index or its patient"),
    ],
)
def test_a_bad_table_of_patients_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    (tmp_path / "who.csv").write_text("\n".join(lines))
    path = write(tmp_path / "mine.npz", arrays())
    with pytest.raises(FlSimError, match=message):
        load_dataset(str(path), {"patients": "who.csv"}, None)
    with pytest.raises(FlSimError, match="does not exist"):
        load_dataset(str(path), {"patients": "nobody.csv"}, None)


def test_many_threads_get_equal_datasets(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.npz", arrays())
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(len(load_dataset(str(path), {}, None).train)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [12] * 4


# Real files.


def test_real_pneumoniamnist_is_the_published_file(real_data: Path) -> None:
    dataset = load_dataset("pneumoniamnist", {}, real_data)
    assert dataset.files[0].official is True
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [4708, 524, 624]


def test_real_dermamnist(real_data: Path) -> None:
    dataset = load_dataset("dermamnist", {}, real_data)
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [7007, 1003, 2005]
    assert dataset.channels == 3 and dataset.task.outputs == 7


@pytest.mark.parametrize(("name", "size"), [("chestmnist", 28), ("chestmnist_64", 64)])
def test_real_chest_subset_has_patients(real_data: Path, name: str, size: int) -> None:
    dataset = load_dataset(f"{name}_nih1000.npz", {}, real_data)
    assert dataset.size == size and dataset.task.multi_label and dataset.task.outputs == 14
    groups = []
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.patients is not None
        groups.append(set(split.patients))
    assert sum(map(len, groups)) == len(set.union(*groups)) == 264
