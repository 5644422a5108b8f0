"""Reading files that come from outside: checksums, and arrays in MedMNIST's .npz format."""

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_sim.data.base import DataFile
from fl_sim.errors import FlSimError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class NpzArrays:
    """The arrays of one file in MedMNIST's format, by split (``train``, ``val``, ``test``).

    Args:
        images: uint8 ``[n, side, side, channels]``, read-only.
        labels: int64 ``[n]``, or ``[n, labels]`` where the file has several columns; read-only.
    """

    images: dict[str, NDArray[np.uint8]]
    labels: dict[str, NDArray[np.int64]]

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

    Raises:
        FlSimError: naming the file and what is wrong with it.
    """
    raw = _load(path)
    images = {split: _images(path, split, raw[f"{split}_images"]) for split in SPLITS}
    labels = {split: _labels(path, split, raw[f"{split}_labels"]) for split in SPLITS}
    for split in SPLITS:
        if images[split].shape[1:] != images["train"].shape[1:]:
            _refuse(path, f"{split}_images and train_images differ in size or channels")
        if labels[split].shape[1:] != labels["train"].shape[1:]:
            _refuse(path, f"{split}_labels and train_labels differ in columns")
        if len(images[split]) != len(labels[split]):
            many, few = len(images[split]), len(labels[split])
            _refuse(path, f"{split}_images has {many} rows but {split}_labels {few}")
    return NpzArrays(images, labels)


def _load(path: Path) -> dict[str, NDArray[Any]]:
    keys = [f"{split}_{what}" for split in SPLITS for what in ("images", "labels")]
    try:
        # Opened here so that no file handle is left behind when the content is not a zip.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [key for key in keys if key not in archive]
            if missing:
                _refuse(path, f"it lacks the array '{missing[0]}'")
            return {key: archive[key] for key in keys}
    except FlSimError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, KeyError,
            TypeError, AttributeError, NotImplementedError, SyntaxError) as error:  # fmt: skip
        reason = f"it is damaged or not an .npz file ({error})".replace("\n", " ")
        raise _problem(path, reason) from None


def _images(path: Path, split: str, array: NDArray[Any]) -> NDArray[np.uint8]:
    key = f"{split}_images"
    if array.dtype != np.uint8:
        _refuse(path, f"{key} has type {array.dtype} instead of uint8")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3):
        _refuse(
            path, f"{key} has shape {array.shape} instead of [n, side, side] or [n, side, side, 3]"
        )
    if array.shape[1] != array.shape[2]:
        _refuse(
            path, f"{key} holds images of {array.shape[1]}x{array.shape[2]}, which are not square"
        )
    if not len(array):
        _refuse(path, f"{key} is empty")
    array.setflags(write=False)
    return array


def _labels(path: Path, split: str, array: NDArray[Any]) -> NDArray[np.int64]:
    key = f"{split}_labels"
    if array.dtype.kind not in "iub":
        _refuse(path, f"{key} has type {array.dtype} instead of an integer type")
    if array.ndim not in (1, 2) or 0 in array.shape:
        _refuse(path, f"{key} has shape {array.shape} instead of [n, labels]")
    labels = array.astype(np.int64)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.min() < 0:
        _refuse(path, f"{key} contains the label {labels.min()}, which is below 0")
    if labels.ndim == 2 and labels.max() > 1:
        _refuse(path, f"{key} has several columns but contains {labels.max()} instead of 0 and 1")
    labels.setflags(write=False)
    return labels


def _refuse(path: Path, problem: str) -> None:
    raise _problem(path, problem)


def _problem(path: Path, problem: str) -> FlSimError:
    return FlSimError(
        f"The data file {path} cannot be used: {problem}; replace it with a file in "
        "MedMNIST's format."
    )
