"""Small training sets cut from many images: the same number of images of each class."""

import numpy as np
from numpy.typing import NDArray

from fl_sim.errors import FlSimError
from fl_sim.randomness import Stream


def balanced_sets(
    labels: NDArray[np.int64], classes: int, sets: int, per_class: int, stream: Stream
) -> NDArray[np.int32]:
    """Return the rows of the images in each set, class by class.

    Each class's images are shuffled and cut; once they are used up they are shuffled anew. Two
    sets share no image of a class until then.

    Args:
        labels: ``[images]``, in 0 to ``classes - 1``.
        classes: how many there are; each must have ``per_class`` images.
        sets: how many to cut, at least 1.
        per_class: images of each class in a set, at least 1.
        stream: where the order is drawn from.

    Returns:
        ``[sets, classes * per_class]``; the first ``per_class`` are of class 0, and so on.

    Raises:
        FlSimError: if a class has too few images.
    """
    columns = []
    for label in range(classes):
        own = np.flatnonzero(np.asarray(labels) == label).astype(np.int32)
        if len(own) < per_class:
            raise FlSimError(
                f"Class {label} has {len(own)} images, but each set takes {per_class} of a class; "
                f"lower images_per_class or give more images."
            )
        columns.append(_cuts(own, sets, per_class, stream.at(label)))
    return np.concatenate(columns, axis=1)


def labels_of_sets(classes: int, per_class: int) -> NDArray[np.int64]:
    """Return the label of each column of :func:`balanced_sets`."""
    return np.repeat(np.arange(classes), per_class)


def _cuts(own: NDArray[np.int32], sets: int, per_class: int, stream: Stream) -> NDArray[np.int32]:
    generator = stream.numpy("order of images in shadow sets")
    whole = len(own) // per_class
    rounds = [
        generator.permutation(own)[: whole * per_class].reshape(whole, per_class)
        for _ in range(-(-sets // whole))
    ]
    return np.concatenate(rounds)[:sets]
