"""Images and labels as people have them: tensors, arrays, datasets, loaders."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.data.base import MULTI_LABEL, SEGMENTATION, Split, Task
from fl_sim.errors import FlSimError, shown

MOST = 1 << 33
"""Pixel values of all images together that are taken into memory, in bytes."""


def split_of(images: Any, labels: Any = None, what: str = "images") -> Split:
    """Return images, and their labels where there are any, as the parts of a study take them.

    Args:
        images: a tensor or array ``[n, channels, height, width]``, ``[n, height, width, channels]``
            or ``[n, height, width]``, uint8, or floats in [0, 1]; a ``medmnist`` dataset; a
            ``torch`` ``Dataset`` or ``DataLoader`` of pairs of image and label; or a ``Split``.
            Floats are rounded to 8 bits, as image files hold them.
        labels: classes ``[n]`` or ``[n, 1]``, zeros and ones ``[n, labels]``, or masks ``[n,
            height, width]``; left out where ``images`` brings them.
        what: they are, for messages.

    Raises:
        FlSimError: if they are nothing of these, not square, or in another range.
    """
    if isinstance(images, Split):
        found, own = images.images, images.labels
    else:
        raw, own = _taken(images, what)
        found = _pixels(raw, what)
    chosen = own if labels is None else labels
    given = None if chosen is None else _labels(chosen, len(found), what)
    # Without labels there is still a column: what never reads it needs none.
    marked = np.full(len(found), UNLABELLED, np.int64) if given is None else given
    return Split(found, marked)


UNLABELLED = -1
"""Label of images that have none."""


def is_labelled(split: Split) -> bool:
    """Whether a split has labels."""
    labels = np.asarray(split.labels[:1])
    return not (labels.ndim == 1 and len(labels) and labels[0] == UNLABELLED)


def pixels_of(split: Split) -> tuple[int, int]:
    """Return channels and side of a split's images."""
    return int(split.images.shape[3]), int(split.images.shape[1])


def outputs_told(labels: NDArray[Any]) -> int:
    """Return the fewest outputs of a network that labels are for; two for one class."""
    return int(labels.shape[1]) if labels.ndim == 2 else max(2, int(labels.max()) + 1)


def task_of(split: Split, outputs: int, segments: bool) -> Task:
    """Return what a network with so many outputs is for, as the labels tell.

    Args:
        split: images with labels, or without.
        outputs: of the network.
        segments: whether it answers each pixel.

    Raises:
        FlSimError: if the labels are not for such a network.
    """
    names = tuple(str(number) for number in range(outputs))
    labels = split.labels
    if segments:
        if is_labelled(split) and labels.ndim != 3:
            raise FlSimError(
                f"The network answers each pixel, so its labels are masks [n, height, width], and "
                f"these have shape {list(labels.shape)}."
            )
        return Task(SEGMENTATION, names)
    if labels.ndim == 3:
        raise FlSimError("The labels are masks, and the network answers a whole image at once.")
    if labels.ndim == 2:
        if labels.shape[1] != outputs:
            raise FlSimError(
                f"The labels have {labels.shape[1]} columns, and the network has {outputs} outputs."
            )
        return Task(MULTI_LABEL, names)
    highest = int(labels.max()) if len(labels) else 0
    if highest >= outputs:
        raise FlSimError(
            f"The labels go up to class {highest}, and the network has {outputs} outputs, for "
            f"classes 0 to {outputs - 1}."
        )
    return Task("binary-class" if outputs == 2 else "multi-class", names)


def pictures(images: Any, what: str) -> torch.Tensor:
    """Return images as float32 ``[n, channels, height, width]``, in whatever range they are.

    Args:
        images: as for :func:`split_of`; tensors and arrays of floats may leave [0, 1].
        what: they are, for messages.

    Raises:
        FlSimError: if they are no images.
    """
    if isinstance(images, torch.Tensor | np.ndarray):
        array = np.asarray(images.detach().cpu() if isinstance(images, torch.Tensor) else images)
        if array.dtype.kind == "f":
            return torch.from_numpy(np.array(_channels_last(array, what), np.float32)).permute(
                0, 3, 1, 2
            )
    return split_of(images, what=what).tensors()[0]


def _taken(images: Any, what: str) -> tuple[NDArray[Any], Any]:
    """Return the images as an array, and the labels that come with them."""
    if isinstance(images, torch.Tensor):
        return images.detach().cpu().numpy(), None
    if isinstance(images, np.ndarray):
        return images, None
    if hasattr(images, "imgs") and isinstance(images.imgs, np.ndarray):  # medmnist's
        return images.imgs, getattr(images, "labels", None)
    if isinstance(images, list | tuple) and images and isinstance(images[0], torch.Tensor):
        return torch.stack(list(images)).detach().cpu().numpy(), None
    pairs = _loaded(images, what)
    if not pairs:
        raise FlSimError(f"The {what} are empty.")
    parts, labels = zip(*pairs, strict=True)
    return np.concatenate(parts), np.concatenate(labels)


def _loaded(source: Any, what: str) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Read a dataset, image by image, or a loader, batch by batch."""
    batches = isinstance(source, torch.utils.data.DataLoader)
    items: Iterable[Any]
    if batches or isinstance(source, torch.utils.data.IterableDataset):
        items = source
    elif hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        items = (source[number] for number in range(len(source)))
    else:
        raise FlSimError(
            f"The {what} are {shown(source)}; give a tensor or array, a dataset or a loader of "
            f"pairs of image and label."
        )
    found, held = [], 0
    for item in items:
        if not isinstance(item, list | tuple) or len(item) < 2:
            raise FlSimError(f"The {what} should come as pairs of image and label.")
        image, label = np.asarray(item[0]), np.asarray(item[1])
        if not batches:
            image, label = image[None], label[None]
        held += image.nbytes
        if held > MOST:
            raise FlSimError(f"The {what} are larger than {MOST >> 30} GiB; give fewer of them.")
        found.append((image, label))
    return found


def _pixels(array: NDArray[Any], what: str) -> NDArray[np.uint8]:
    array = _channels_last(array, what)
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind != "f":
        raise FlSimError(
            f"The {what} are of type {array.dtype}; give uint8, or floats between 0 and 1."
        )
    least, most = float(array.min()), float(array.max())
    if not (least >= -1e-6 and most <= 1 + 1e-6):  # also where they are not numbers
        raise FlSimError(
            f"The {what} go from {least:.3g} to {most:.3g}; give pixels between 0 and 1, and say "
            f"with normalize how the network takes them."
        )
    return np.ascontiguousarray(np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8))


def _channels_last(array: NDArray[Any], what: str) -> NDArray[Any]:
    if array.ndim == 3:
        array = array[..., None]
    elif array.ndim == 4 and array.shape[1] in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[3] not in (1, 3) or len(array) == 0:
        raise FlSimError(
            f"The {what} have shape {list(array.shape)}; give [n, channels, height, width] with 1 "
            f"or 3 channels and one image or more."
        )
    if array.shape[1] != array.shape[2]:
        raise FlSimError(
            f"The {what} have {array.shape[1]} x {array.shape[2]} pixels; give square ones."
        )
    return array


def _labels(labels: Any, images: int, what: str) -> NDArray[Any]:
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim not in (1, 2, 3) or len(array) != images:
        raise FlSimError(
            f"The labels have shape {list(array.shape)}, and there are {images} {what}; give one "
            f"label (or row, or mask) an image."
        )
    whole = array.astype(np.int64) if array.dtype.kind in "iufb" else None
    if whole is None or not np.array_equal(whole, array) or whole.min() < 0:
        raise FlSimError("Labels are whole numbers from 0: classes, zeros and ones, or masks.")
    if array.ndim == 2 and whole.max() > 1:
        raise FlSimError("Labels with several columns are zeros and ones, one column a label.")
    return whole
