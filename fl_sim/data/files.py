"""Reading files that come from outside: checksums, and arrays in MedMNIST's .npz format."""

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_sim.data.archive import ArrayHeader, open_archive
from fl_sim.data.base import DataFile
from fl_sim.errors import FlSimError, printable

SPLITS = ("train", "val", "test")
MOST_CLASSES = 4096


@dataclass(frozen=True)
class NpzArrays:
    """The arrays of one file in MedMNIST's format, by split (``train``, ``val``, ``test``).

    Args:
        images: uint8 ``[n, side, side, channels]``, read-only.
        labels: int64 ``[n]``, or ``[n, labels]`` where the file has several columns; read-only.
        one_hot: columns of the file's labels where exactly one in each row is 1, so that they were
            read as classes; else 0.
    """

    images: dict[str, NDArray[np.uint8]]
    labels: dict[str, NDArray[np.int64]]
    one_hot: int = 0

    @property
    def side(self) -> int:
        """Side of the square images in pixels."""
        return int(self.images["train"].shape[1])

    @property
    def channels(self) -> int:
        """1 or 3."""
        return int(self.images["train"].shape[3])

    @property
    def columns(self) -> int:
        """Label columns of the file: 1 for a single label an image."""
        labels = self.labels["train"]
        return 1 if labels.ndim == 1 else int(labels.shape[1])

    @property
    def largest_label(self) -> int:
        """The largest label in any split."""
        return max(int(labels.max()) for labels in self.labels.values())


def describe_file(path: Path, official_md5: str | None = None) -> DataFile:
    """Return the record of a file: name, SHA-256, and whether its MD5 is the official one.

    Raises:
        FlSimError: if it cannot be read.
    """
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                sha256.update(block)
                md5.update(block)
    except OSError as error:
        raise FlSimError(f"The data file {path} cannot be read: {error.strerror}.") from None
    official = None if official_md5 is None else md5.hexdigest() == official_md5
    return DataFile(path.name, sha256.hexdigest(), official)


def read_npz(path: Path) -> NpzArrays:
    """Read and check a file in MedMNIST's 2-D format; nothing in it is unpickled.

    What the headers say is checked before anything is decompressed, so a file costs no more memory
    than its images.

    Raises:
        FlSimError: naming the file and what is wrong with it.
    """
    keys = [f"{split}_{what}" for split in SPLITS for what in ("images", "labels")]
    with open_archive(path, partial(_problem, path)) as archive:
        headers = archive.headers(keys)
        _check_headers(path, headers)
        raw = {key: archive.array(key) for key in keys}
    images = {split: _images(raw[f"{split}_images"]) for split in SPLITS}
    labels = {split: _labels(path, split, raw[f"{split}_labels"]) for split in SPLITS}
    return NpzArrays(images, labels)


def one_hot_as_classes(arrays: NpzArrays) -> NpzArrays:
    """Return the arrays with classes for labels where exactly one label of every image is 1.

    Labels of several columns mean that an image can have any number of them; where no image of any
    split has none or two, they are classes, written one-hot.
    """
    rows = arrays.labels.values()
    if arrays.columns == 1 or not all((split.sum(axis=1) == 1).all() for split in rows):
        return arrays
    classes = {split: labels.argmax(axis=1) for split, labels in arrays.labels.items()}
    for labels in classes.values():
        labels.setflags(write=False)
    return replace(arrays, labels=classes, one_hot=arrays.columns)


def _check_headers(path: Path, headers: dict[str, ArrayHeader]) -> None:
    train = {what: headers[f"train_{what}"].shape for what in ("images", "labels")}
    for split in SPLITS:
        images, labels = headers[f"{split}_images"], headers[f"{split}_labels"]
        _check_images(path, f"{split}_images", images)
        _check_labels(path, f"{split}_labels", labels)
        if images.shape[1:] != train["images"][1:]:
            _refuse(path, f"{split}_images and train_images differ in size or channels")
        if labels.shape[1:] != train["labels"][1:]:
            _refuse(path, f"{split}_labels and train_labels differ in columns")
        if images.shape[0] != labels.shape[0]:
            many, few = images.shape[0], labels.shape[0]
            _refuse(path, f"{split}_images has {many} rows but {split}_labels {few}")


def _check_images(path: Path, key: str, header: ArrayHeader) -> None:
    shape = header.shape
    if header.dtype != np.uint8:
        _refuse(path, f"{key} has type {header.dtype} instead of uint8")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3)):
        _refuse(path, f"{key} has shape {shape} instead of [n, side, side] or [n, side, side, 3]")
    if shape[1] != shape[2]:
        _refuse(path, f"{key} holds images of {shape[1]}x{shape[2]}, which are not square")
    if 0 in shape:
        _refuse(path, f"{key} is empty")


def _check_labels(path: Path, key: str, header: ArrayHeader) -> None:
    shape = header.shape
    if header.dtype.kind not in "iub":
        _refuse(
            path,
            f"{key} has type {header.dtype} instead of an integer type; labels are class numbers "
            f"from 0, or columns of 0 and 1",
        )
    if len(shape) not in (1, 2) or 0 in shape:
        _refuse(path, f"{key} has shape {shape} instead of [n, labels]")
    if len(shape) == 2 and shape[1] > MOST_CLASSES:
        _refuse(path, f"{key} has {shape[1]} columns; at most {MOST_CLASSES} labels can be told")


def _images(array: NDArray[Any]) -> NDArray[np.uint8]:
    array = array[..., None] if array.ndim == 3 else array
    array.setflags(write=False)
    return array


def _labels(path: Path, split: str, array: NDArray[Any]) -> NDArray[np.int64]:
    key = f"{split}_labels"
    least, largest = int(array.min()), int(array.max())
    labels = array.astype(np.int64)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if least < 0:
        _refuse(path, f"{key} contains the label {least}, which is below 0")
    if labels.ndim == 2 and largest > 1:
        _refuse(path, f"{key} has several columns but contains {largest} instead of 0 and 1")
    if largest >= MOST_CLASSES:
        _refuse(
            path, f"{key} contains the label {largest}; at most {MOST_CLASSES} classes can be told"
        )
    labels.setflags(write=False)
    return labels


def _refuse(path: Path, problem: str) -> None:
    raise _problem(path, problem)


def _problem(path: Path, problem: str) -> FlSimError:
    return FlSimError(
        f"The data file {printable(str(path))} cannot be used: {problem}; replace it with a file "
        "in MedMNIST's format."
    )
