"""What a dataset is: uint8 images with labels in three splits, a task, and the files behind it."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fl_sim.registry import Registry
from fl_sim.settings import Settings
from fl_sim.task import TaskFamily

MULTI_LABEL = "multi-label, binary-class"
SEGMENTATION = "segmentation"
NO_ANSWER = 255
"""In a predicted mask: the network's output for this image was not finite."""


@dataclass(frozen=True)
class Task:
    """What a network is for: a classification, in MedMNIST's terms, or a segmentation.

    Args:
        kind: ``"binary-class"``, ``"multi-class"``, ``"ordinal-regression"``, ``MULTI_LABEL`` or
            ``SEGMENTATION``. Ordinal tasks are trained as multi-class ones, as MedMNIST's own
            experiments do.
        label_names: the classes, or for a multi-label task the labels; for a segmentation the
            background first.
    """

    kind: str
    label_names: tuple[str, ...]

    @property
    def outputs(self) -> int:
        """Number of logits, of an image or of each pixel: one a class (two if binary) or label."""
        return len(self.label_names)

    @property
    def is_segmentation(self) -> bool:
        """Whether labels are masks, one class a pixel."""
        return self.kind == SEGMENTATION

    @property
    def family(self) -> TaskFamily:
        """``"segmentation"`` or ``"classification"``: which networks are for it."""
        return "segmentation" if self.is_segmentation else "classification"

    @property
    def main_metric(self) -> str:
        """The metric of utility that one number stands for: ``"dice"`` or ``"auc"``."""
        return "dice" if self.is_segmentation else "auc"

    @property
    def multi_label(self) -> bool:
        """Whether an image can have any number of labels."""
        return self.kind == MULTI_LABEL

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean task loss.

        Cross entropy; sigmoid cross entropy for multi-label; for a segmentation cross entropy plus
        soft Dice loss over the foreground classes, pooled over the batch (as nnU-Net, Isensee et
        al. 2021).

        Args:
            logits: ``[n, outputs]``, or ``[n, outputs, height, width]`` for a segmentation.
            labels: int64 ``[n]``; ``[n, outputs]`` zeros and ones for multi-label; masks
                ``[n, height, width]`` for a segmentation.
        """
        if self.is_segmentation:
            loss: torch.Tensor = _dice_and_cross_entropy()(logits, labels[:, None])
            return loss
        if self.multi_label:
            return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
        return torch.nn.functional.cross_entropy(logits, labels)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Turn logits into probabilities: softmax over classes, or sigmoid for multi-label."""
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=1)


def predicted_masks(scores: torch.Tensor) -> torch.Tensor:
    """Return each pixel's most probable class, uint8 ``[n, height, width]``.

    Args:
        scores: ``[n, classes, height, width]``; an image with a score that is not finite is
            ``NO_ANSWER`` throughout.
    """
    masks = scores.argmax(dim=1).to(torch.uint8)
    finite = scores.isfinite().flatten(1).all(dim=1)
    return torch.where(finite[:, None, None], masks, NO_ANSWER)


@functools.cache
def _dice_and_cross_entropy() -> torch.nn.Module:
    # Takes seconds to import, and only a process with a segmentation needs it.
    from monai.losses.dice import DiceCELoss

    # Pooled over the batch, since a slice may lack a class altogether.
    loss: torch.nn.Module = DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True
    )
    return loss


class MappedRows:
    """Some rows of a memory-mapped array, read from disk only when they are indexed.

    A subset of a mapped split must not pull gigabytes into memory. It answers to ``len``, indexing
    and ``np.asarray`` like the array that it stands for, and to everything else by reading all.

    Args:
        mapped: the memory-mapped array ``[rows, ...]``.
        rows: int64 ``[n]``, the rows that this one has.
    """

    def __init__(self, mapped: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
        self._mapped = mapped
        self._rows = rows
        self.shape = (len(rows), *mapped.shape[1:])
        self.dtype = mapped.dtype
        self.ndim = mapped.ndim

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Any) -> Any:
        """Index as NumPy does; only the first axis saves reading."""
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) and key else (key, ())
        if first is Ellipsis or first is None:
            return np.asarray(self)[key]
        chosen = self._mapped[self._rows[first]]
        axes = 0 if np.ndim(self._rows[first]) == 0 else 1
        return chosen[(slice(None),) * axes + tuple(rest)] if rest else chosen

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self._mapped[self._rows], dtype=dtype)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(np.asarray(self), name)

    def take_rows(self, indices: NDArray[np.int64]) -> "MappedRows":
        """Return a subset, still unread."""
        return MappedRows(self._mapped, self._rows[indices])


class _Stack:
    """Arrays one below the other, of which rows are read only when they are indexed."""

    def __init__(self, parts: Sequence[NDArray[Any]]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])
        self.shape = (int(self._starts[-1]), *parts[0].shape[1:])
        self.dtype = parts[0].dtype
        self.ndim = parts[0].ndim

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        wanted = np.atleast_1d(rows)
        found = np.empty((len(wanted), *self.shape[1:]), dtype=self.dtype)
        for part, start in zip(self._parts, self._starts[:-1], strict=True):
            own = (wanted >= start) & (wanted < start + len(part))
            if own.any():
                found[own] = part[wanted[own] - start]
        return found if np.ndim(rows) else found[0]


def stacked(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return arrays one below the other; memory-mapped ones stay on disk.

    Args:
        parts: ``[n, ...]`` each, alike but for ``n``.
    """
    if not any(isinstance(part, np.memmap | MappedRows) for part in parts):
        return np.concatenate(parts)
    stack = _Stack(parts)
    rows = np.arange(stack.shape[0], dtype=np.int64)
    return cast(NDArray[Any], MappedRows(cast(NDArray[np.uint8], stack), rows))


def _rows(images: NDArray[Any], indices: NDArray[np.int64]) -> NDArray[Any]:
    """Index the first axis; memory-mapped arrays stay on disk."""
    if isinstance(images, MappedRows):
        return cast(NDArray[np.uint8], images.take_rows(indices))
    if isinstance(images, np.memmap):
        chosen = np.arange(len(images), dtype=np.int64)[indices]
        return cast(NDArray[np.uint8], MappedRows(images, chosen))
    return images[indices]


@dataclass(frozen=True)
class Split:
    """Images with labels.

    Args:
        images: uint8 ``[n, height, width, channels]``; may be memory-mapped.
        labels: int64 ``[n]``, or ``[n, labels]`` of zeros and ones for a multi-label task; for a
            segmentation uint8 masks ``[n, height, width]``, which may be memory-mapped too.
        patients: patient of each image as a string array ``[n]``, where known; of a slice the
            volume.
    """

    images: NDArray[np.uint8]
    labels: NDArray[Any]
    patients: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: NDArray[np.int64]) -> "Split":
        """Return the images at ``indices``, in that order."""
        patients = None if self.patients is None else self.patients[indices]
        return Split(_rows(self.images, indices), _rows(self.labels, indices), patients)

    def batch(self, indices: NDArray[np.int64] | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 images ``[n, channels, height, width]`` in [0, 1], and int64 labels.

        Labels have the shape of :attr:`labels`: masks are ``[n, height, width]``.

        Both are copies: what is done to them does not reach the dataset.
        """
        rows = np.ascontiguousarray(self.images[indices])
        if not rows.flags.writeable:  # torch warns of arrays that it must not write to
            rows = rows.copy()
        images = torch.from_numpy(rows)
        pixels = images.permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255.0)
        return pixels, torch.from_numpy(np.array(self.labels[indices], dtype=np.int64))

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the whole split as :meth:`batch` does."""
        return self.batch(slice(None))


def joined(*splits: Split) -> Split:
    """Return the images of splits, one behind the other; memory-mapped ones stay on disk.

    Patients are known where every split knows them.
    """
    patients = [split.patients for split in splits if split.patients is not None]
    return Split(
        stacked([split.images for split in splits]),
        stacked([split.labels for split in splits]),
        np.concatenate(patients) if len(patients) == len(splits) else None,
    )


@dataclass(frozen=True)
class DataFile:
    """A file that results depend on.

    Args:
        name: the file's name, without its folder.
        sha256: of its content.
        official: whether it is byte for byte medmnist's official file; ``None`` where there is
            no official checksum to compare with.
    """

    name: str
    sha256: str
    official: bool | None


@dataclass(frozen=True)
class Dataset:
    """A dataset ready for a study.

    Args:
        name: how results call it: the registered name, or the file's stem.
        task: what its labels mean.
        train, validation, test: the published splits.
        files: the files it was read from (none for phantoms).
        description: one line for reports, with its licence where known.
    """

    name: str
    task: Task
    train: Split
    validation: Split
    test: Split
    files: tuple[DataFile, ...] = ()
    description: str = ""

    def at_most(self, images: int) -> "Dataset":
        """Return the dataset with so many images a split at most, evenly spaced over each."""

        def cut(split: Split) -> Split:
            if len(split) <= images:
                return split
            return split.subset(np.arange(images, dtype=np.int64) * len(split) // images)

        return replace(
            self, train=cut(self.train), validation=cut(self.validation), test=cut(self.test)
        )

    @property
    def channels(self) -> int:
        """Number of colour channels: 1 or 3."""
        return int(self.train.images.shape[3])

    @property
    def size(self) -> int:
        """Side of the square images, in pixels."""
        return int(self.train.images.shape[1])


class DatasetSettings(Settings):
    """Keys every dataset understands.

    Args:
        size: side of the square images in pixels.
    """

    size: int = Field(28, ge=8, le=1024)


@dataclass(frozen=True)
class DatasetSource:
    """What a dataset's file registers: its settings and how to load it.

    Args:
        settings: the settings class, a subclass of :class:`DatasetSettings`.
        load: ``load(name, settings, data_root) -> Dataset``; ``data_root`` is ``None`` where the
            user named none. Raises :class:`fl_sim.errors.FlSimError` for a missing or broken file.
        family: what its networks are for, from its settings, so that one for something else is
            refused before anything is loaded.
    """

    settings: type[DatasetSettings]
    load: Callable[[str, Any, Path | None], Dataset]
    family: Callable[[Any], TaskFamily] = lambda settings: "classification"


DATASETS: Registry[DatasetSource] = Registry("dataset", "fl_sim.data.sources")
