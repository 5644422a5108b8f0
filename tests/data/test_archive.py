"""Data files made to hurt: headers that claim too much, archives that are none, odd labels."""

import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fl_sim.data import load_dataset
from fl_sim.data.base import MULTI_LABEL
from fl_sim.errors import FlSimError

Arrays = dict[str, np.ndarray]


def arrays(side: int = 12, count: int = 12) -> Arrays:
    random = np.random.default_rng(0)
    content: Arrays = {}
    for split in ("train", "val", "test"):
        content[f"{split}_images"] = random.integers(0, 256, (count, side, side), dtype=np.uint8)
        content[f"{split}_labels"] = (np.arange(count) % 4).astype(np.uint8)[:, None]
    return content


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


def archive(path: Path, records: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write an .npz file whose train images are what a hostile writer made of them."""
    whole = {name: npy(array) for name, array in arrays().items()} | records
    with zipfile.ZipFile(path, "w", how) as file:
        for name, content in whole.items():
            file.writestr(f"{name}.npy", content)
    return path


def header(text: str, version: int = 1) -> bytes:
    """Return a record that is a header and nothing else."""
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode()


def claims(shape: str, descr: str = "'|u1'") -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n")


HOSTILE = {
    "terabytes an element": claims("(3136,)", "'|V2147483647'"),
    "more elements than 64 bits": claims("(4611686018427387904, 28, 28)"),
    "negative": claims("(-1, 28, 28)"),
    "huge and negative": claims("(-4611686018427387904, -4611686018427387904, 2)"),
    "elements of no size": claims("(4611686018427387904, 28, 28)", "'|V0'"),
    "objects": claims("(12, 12, 12)", "'|O'"),
    "deep": header("(" * 900 + "1" + ")" * 900),
    "no closing bracket": header("{'descr': (" + "(" * 500),
    "a header of gigabytes": header("x" * 2000, version=2)[:40],
    "a number of 900 digits": claims(f"({'9' * 700}, 12, 12)"),
    "later format": header("{}", 2).replace(b"NUMPY\x02", b"NUMPY\x07"),
    "code for a descr": claims("(12, 12, 12)", "__import__('os')"),
    "nothing": b"",
    "not NumPy's": b"GIF89a" * 50,
    "less than it claims": claims("(12, 12, 12)") + bytes(100),
    "more than it claims": npy(arrays()["train_images"]) + b"hidden",
}


def _peak(call: Callable[[], object]) -> int:
    """Return the most memory that Python's allocators, and NumPy's, held during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _refused(path: Path, words: str = "cannot be used") -> None:
    with pytest.raises(FlSimError, match=words) as refusal:
        load_dataset(str(path))
    assert path.name in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_without_its_memory(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "data.npz", {"train_images": HOSTILE[name]})
    assert _peak(lambda: _refused(path)) < 4e6


def test_claims_that_agree_with_each_other_are_refused_too(tmp_path: Path) -> None:
    many = 1 << 36
    records = {"train_images": claims(f"({many}, 12, 12)"), "train_labels": claims(f"({many}, 1)")}
    assert _peak(lambda: _refused(archive(tmp_path / "data.npz", records), "claims")) < 4e6


def test_what_is_refused_for_its_shape_is_not_decompressed(tmp_path: Path) -> None:
    wide = npy(np.zeros((40_000, 32, 16), np.uint8))  # 20 MB in 20 kB
    path = archive(tmp_path / "data.npz", {"train_images": wide})
    assert path.stat().st_size < 1e5
    assert _peak(lambda: _refused(path, "32x16")) < 2e6


def test_more_zeros_than_any_image_has_are_not_decompressed(tmp_path: Path) -> None:
    blank = npy(np.zeros((80_000, 32, 32), np.uint8))  # 82 MB in 80 kB
    path = archive(tmp_path / "data.npz", {"train_images": blank})
    assert _peak(lambda: _refused(path, "would grow")) < 2e6


def test_what_compresses_well_is_read(tmp_path: Path) -> None:
    blank = {
        f"{split}_images": npy(np.zeros((12, 64, 64), np.uint8))
        for split in ("train", "val", "test")
    }
    assert load_dataset(str(archive(tmp_path / "data.npz", blank))).size == 64


@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(tmp_path: Path, how: int) -> None:
    _refused(archive(tmp_path / "data.npz", {}, how), "compressed")


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", b"PK\x03\x04" + bytes(200), b"<html>"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    _refused(path, "not an .npz file")


def test_a_damaged_record_is_noticed(tmp_path: Path) -> None:
    path = archive(tmp_path / "data.npz", {}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.find(b"train_images") + 400] ^= 1
    path.write_bytes(content)
    _refused(path, "CRC")


def _labelled(path: Path, **labels: np.ndarray) -> Path:
    given = {f"{name}_labels": npy(array) for name, array in labels.items()}
    return archive(path, given)


def _one_hot(columns: int) -> np.ndarray:
    return np.eye(columns, dtype=np.uint8)[np.arange(12) % columns]


@pytest.mark.parametrize("columns", [2, 4])
def test_one_hot_labels_are_classes(tmp_path: Path, columns: int) -> None:
    rows = _one_hot(columns)
    dataset = load_dataset(str(_labelled(tmp_path / "d.npz", train=rows, val=rows, test=rows)))
    assert dataset.task.kind == ("binary-class" if columns == 2 else "multi-class")
    assert dataset.task.outputs == columns and "one-hot" in dataset.description
    assert dataset.test.labels.tolist() == (np.arange(12) % columns).tolist()


@pytest.mark.parametrize("sum_of_row", [0, 2])
def test_several_labels_or_none_of_one_image_are_several_labels(
    tmp_path: Path, sum_of_row: int
) -> None:
    rows, other = _one_hot(4), _one_hot(4)
    other[5] = [0] * 4 if sum_of_row == 0 else [1, 0, 1, 0]
    dataset = load_dataset(str(_labelled(tmp_path / "d.npz", train=rows, val=rows, test=other)))
    assert dataset.task.kind == MULTI_LABEL and dataset.train.labels.shape == (12, 4)
    assert "one-hot" not in dataset.description


def test_a_published_multi_label_dataset_stays_one(tmp_path: Path) -> None:
    rows = _one_hot(14)
    path = _labelled(tmp_path / "chestmnist_few.npz", train=rows, val=rows, test=rows)
    assert load_dataset(str(path)).task.kind == MULTI_LABEL


ODD_LABELS = {
    "floats": (np.zeros((12, 1)), "float64 instead of an integer"),
    "not a number": (np.full((12, 1), np.nan), "instead of an integer"),
    "complex": (np.zeros((12, 1), complex), "instead of an integer"),
    "text": (np.array([["a"]] * 12), "instead of an integer"),
    "negative": (np.full((12, 1), -3, np.int8), "label -3"),
    "beyond 63 bits": (np.full((12, 1), 2**63 + 7, np.uint64), "label 9223372036854775815"),
    "four billion classes": (np.full((12, 1), 4_000_000_000, np.uint32), "label 4000000000"),
    "many columns": (np.zeros((12, 5000), np.uint8), "5000 columns"),
    "three dimensions": (np.zeros((12, 1, 1), np.uint8), "shape"),
}


@pytest.mark.parametrize("name", ODD_LABELS)
def test_odd_labels_are_refused(tmp_path: Path, name: str) -> None:
    labels, words = ODD_LABELS[name]
    _refused(_labelled(tmp_path / "d.npz", train=labels, val=labels, test=labels), words)


def test_a_file_of_any_size_has_its_own(tmp_path: Path) -> None:
    assert load_dataset(str(archive(tmp_path / "d.npz", {}))).size == 12
