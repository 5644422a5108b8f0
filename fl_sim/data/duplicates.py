"""Near-duplicates: images of one use that show the same photograph as images of another.

Published splits hold some, which flatter whatever is measured on them. Two images are compared by
their low frequencies: of the grey image the 16 x 16 lowest coefficients of the discrete cosine
transform without the constant one, scaled to length 1 and whitened (each coefficient less its mean,
over its deviation, on training images), so that what all images of a kind have in common does not
count. Their likeness is the cosine of the angle between these vectors. It is the perceptual hash of
Zauner 2010 ("Implementation and benchmarking of perceptual image hash functions") with numbers in
place of signs, which do not tell skin lesions apart.

:data:`LIKENESS` was chosen by looking at pairs. On DermaMNIST rebuilt every pair of another split
and ``train`` from 0.89 on is one photograph, cut, coloured or compressed differently (below, other
photographs of one lesion mix with lesions that look alike): 18 of 1,003 validation images and 26 of
2,005 test images, and 2 validation images are near test images. PneumoniaMNIST has 8 validation
images near training images, all above 0.98, and no other pair above 0.8; the ChestMNIST subset has
none above 0.7.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fl_sim.data.base import Split

LIKENESS = 0.9
"""Images this much alike are near-duplicates."""

FREQUENCIES = 16
MOST_LOOKED_AT = 20_000
"""Among more images near-duplicates are looked for only to drop them: time grows with the square
(10,000 images of 28 pixels take one to two seconds on a core)."""

COMPARED = (
    ("held-out", "train"),
    ("held-out", "test"),
    ("public", "train"),
    ("public", "test"),
    ("test", "train"),
)
"""Whose near-duplicates are counted, and dropped, and among which images."""

_FITTED_ON = 4096
_AT_ONCE = 1024


@dataclass(frozen=True)
class NearDuplicates:
    """How many images of one use have a near-duplicate in another.

    Args:
        counts: by the pairs of :data:`COMPARED`, as ``"held-out near train"``.
        images: how many there are, by use.
        dropped: whether they were left out.
    """

    counts: dict[str, int]
    images: dict[str, int] = field(default_factory=dict)
    dropped: bool = False

    def __str__(self) -> str:
        found = [
            f"{count} of {self.images[pair.partition(' ')[0]]} {pair}"
            for pair, count in self.counts.items()
            if count
        ]
        return ", ".join(found) or "none"


class Looked:
    """Images to be compared, each by a vector that is computed when it is needed.

    Args:
        images: ``[n, height, width, channels]``; read in blocks.
        scale: mean and deviation of every frequency, as :func:`scale_of` gives them.
    """

    def __init__(
        self, images: Split, scale: tuple[NDArray[np.float32], NDArray[np.float32]]
    ) -> None:
        self.images = images
        self._scale = scale

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """Float32 ``[n, frequencies]`` of length 1; zero for an image of one value throughout."""
        frequencies, (mean, deviation) = _frequencies(self.images), self._scale
        whitened = _unit((frequencies - mean) / deviation)
        whitened[~frequencies.any(axis=1)] = 0.0
        return whitened

    def without(self, left_out: NDArray[np.bool_]) -> "Looked":
        """Return these without some, ``[n]``."""
        rest = Looked(self.images.subset(np.flatnonzero(~left_out)), self._scale)
        if "vectors" in vars(self):
            rest.vectors = self.vectors[~left_out]
        return rest


def scale_of(images: Split) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and deviation of each frequency, of at most 4,096 images, evenly spaced."""
    step = max(1, -(-len(images) // _FITTED_ON))
    frequencies = _frequencies(images.subset(np.arange(0, len(images), step, dtype=np.int64)))
    return frequencies.mean(axis=0), np.maximum(frequencies.std(axis=0), 1e-6)


def near(ours: Looked, theirs: Looked, threshold: float = LIKENESS) -> NDArray[np.bool_]:
    """Return which of our images have a near-duplicate among theirs.

    Where patients are known on both sides, only images of one patient are compared: other patients'
    are other images, however alike.

    Args:
        ours, theirs: of one size, with one scale.
        threshold: likeness from which two are near-duplicates.

    Returns:
        Bool ``[n]``.
    """
    found = np.zeros(len(ours.images), dtype=np.bool_)
    rows, among = _comparable(ours.images, theirs.images)
    patients, others = ours.images.patients, theirs.images.patients
    for first in range(0, len(rows) if len(among) else 0, _AT_ONCE):
        block = rows[first : first + _AT_ONCE]
        alike = ours.vectors[block] @ theirs.vectors[among].T >= threshold
        if patients is not None and others is not None:
            alike &= patients[block][:, None] == others[among][None, :]
        found[block] = alike.any(axis=1)
    return found


def look_at(uses: Mapping[str, Split]) -> NearDuplicates | None:
    """Count the near-duplicates between a dataset's uses.

    Args:
        uses: ``"train"``, ``"held-out"``, ``"public"`` and ``"test"``.

    Returns:
        ``None`` where there are more than :data:`MOST_LOOKED_AT` images and patients do not
        separate them.
    """
    sizes = {name: len(split) for name, split in uses.items()}
    counts = dict.fromkeys((f"{one} near {other}" for one, other in COMPARED), 0)
    pairs = [pair for pair in COMPARED if _any_comparable(uses[pair[0]], uses[pair[1]])]
    if not pairs:
        return NearDuplicates(counts, sizes)
    if sum(sizes.values()) > MOST_LOOKED_AT:
        return None
    scale = scale_of(uses["train"])
    looked = {name: Looked(split, scale) for name, split in uses.items()}
    for one, other in pairs:
        counts[f"{one} near {other}"] = int(near(looked[one], looked[other]).sum())
    return NearDuplicates(counts, sizes)


def without_near(uses: Mapping[str, Split]) -> tuple[dict[str, Split], NearDuplicates]:
    """Leave near-duplicates out: of test those near training images, of the others those near both.

    Training images stay all of them, so that an attack has the same images to steal with and
    without; and a test image gives way to a training image, a held-out or public one to either.

    Args:
        uses: ``"train"``, ``"held-out"``, ``"public"`` and ``"test"``, before any is drawn from.

    Returns:
        The same without near-duplicates, and how many there were.
    """
    sizes = {name: len(split) for name, split in uses.items()}
    scale = scale_of(uses["train"])
    looked = {name: Looked(split, scale) for name, split in uses.items()}
    counts: dict[str, int] = {}
    for one in ("test", "held-out", "public"):
        hits = {other: near(looked[one], looked[other]) for name, other in COMPARED if name == one}
        counts |= {f"{one} near {other}": int(hit.sum()) for other, hit in hits.items()}
        looked[one] = looked[one].without(np.logical_or.reduce([*hits.values()]))
    ordered = {f"{one} near {other}": counts[f"{one} near {other}"] for one, other in COMPARED}
    left = {name: images.images for name, images in looked.items()}
    return left, NearDuplicates(ordered, sizes, dropped=True)


def _any_comparable(images: Split, others: Split) -> bool:
    return all(map(len, _comparable(images, others)))


def _comparable(images: Split, others: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of both sides whose patient the other side has, too; all where unknown."""
    if images.patients is None or others.patients is None:
        return np.arange(len(images)), np.arange(len(others))
    rows = np.flatnonzero(np.isin(images.patients, others.patients))
    return rows, np.flatnonzero(np.isin(others.patients, images.patients))


def _frequencies(images: Split) -> NDArray[np.float32]:
    """Return the low frequencies of each image, of length 1, read in blocks."""
    from scipy.fft import dct

    side = images.images.shape[1]
    basis = dct(np.eye(side), axis=0, norm="ortho")[:FREQUENCIES].astype(np.float32)
    parts = []
    for first in range(0, len(images), _AT_ONCE):
        block = np.asarray(images.images[slice(first, first + _AT_ONCE)])
        grey = block.mean(axis=3, dtype=np.float32)
        frequencies = (basis @ grey @ basis.T).reshape(len(grey), -1)[:, 1:]
        parts.append(_unit(frequencies))
    width = min(side, FREQUENCIES) ** 2 - 1
    return np.concatenate(parts) if parts else np.zeros((0, width), dtype=np.float32)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors scaled to length 1; those that are nearly zero become zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(lengths, 1e-3)
    unit[lengths[:, 0] < 1e-3] = 0.0
    return np.asarray(unit, dtype=np.float32)
