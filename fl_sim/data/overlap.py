"""Whether two datasets are the same images: what is called outside must not be what is attacked."""

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from fl_sim.data.base import Dataset, Split
from fl_sim.errors import FlSimError

SMALL_SHARE = 0.01
"""Of either side's images; published datasets have a few in common by accident."""

_AT_ONCE = 256


def refuse_attacked(key: str, external: Dataset, name: str, attacked: Split) -> None:
    """Refuse data from outside that hold the attacked images.

    Images are compared by their pixels, whatever the files are called; those of one value
    throughout do not count. Patients are compared where both sides know them under one dataset's
    name, since the same slices at another size have other pixels.

    Args:
        key: of the scenario that names the data from outside, for the message.
        external: that data; its training and validation images count.
        name: of the attacked dataset.
        attacked: the training images that can be stolen.

    Raises:
        FlSimError: naming the key and how many images there are in common.
    """
    outside = (external.train, external.validation)
    shared, what = 0, "images"
    if external.size == attacked.images.shape[1]:
        shared = len(_digests(attacked) & set().union(*(_digests(split) for split in outside)))
    # Of phantoms, which no file holds, patients of every seed are called alike.
    if not shared and external.name == name and external.files:
        shared, what = _of_patients(attacked, outside), "patients' images"
    if shared > SMALL_SHARE * min(len(attacked), sum(map(len, outside))):
        raise FlSimError(
            f"{key} names data that hold {shared} of the {len(attacked)} attacked {what}, so what "
            f"is trained on them outside would know what is stolen inside; name another dataset."
        )


def _of_patients(attacked: Split, outside: tuple[Split, ...]) -> int:
    """Return how many of the attacked images are of patients who are outside, too."""
    known = [split.patients for split in outside if split.patients is not None]
    if attacked.patients is None or not known:
        return 0
    return int(np.isin(attacked.patients, np.concatenate(known)).sum())


def _digests(split: Split) -> set[bytes]:
    """Return a digest of each image that is not of one value; grey ones as of one channel."""
    found: set[bytes] = set()
    for first in range(0, len(split), _AT_ONCE):
        rows: NDArray[np.uint8] = np.asarray(split.images[slice(first, first + _AT_ONCE)])
        for image in rows:
            plane = image[..., 0]
            whole = plane if (image == image[..., :1]).all() else image
            if whole.min() != whole.max():
                found.add(blake2b(np.ascontiguousarray(whole).data, digest_size=16).digest())
    return found
