"""Reading NIfTI volumes: canonical orientation, checksums, how much of each label a slice has."""

import hashlib
import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_sim.data.base import DataFile
from fl_sim.data.cache import cache_folder
from fl_sim.data.files import describe_file
from fl_sim.data.sources.nifti_files import Collection, Volume
from fl_sim.errors import FlSimError
from fl_sim.files import write_atomically

_BROKEN = (OSError, EOFError, ValueError, TypeError, IndexError, MemoryError, zlib.error)
"""What nibabel raises over a damaged file, beside its own error."""

_SURVEY_VERSION = 1
_THREADS = 4  # a label volume of LiTS takes 200 MB


@dataclass(frozen=True)
class Surveyed:
    """What is known of a volume without its pixels.

    Args:
        voxels: of each label value that it has, the number in each slice ``[slices]``.
        image, label: SHA-256 of the two files.
    """

    voxels: dict[int, list[int]]
    image: str
    label: str

    def foreground(self) -> NDArray[np.int64]:
        """Return the number of labelled voxels in each slice."""
        slices = len(next(iter(self.voxels.values())))
        total = np.zeros(slices, dtype=np.int64)
        for value, counts in self.voxels.items():
            if value != 0:
                total += np.array(counts, dtype=np.int64)
        return total


def survey(collection: Collection, axis: int, name: str) -> list[Surveyed]:
    """Look once through all label volumes of a collection; from disk when nothing has changed.

    Args:
        collection: the files.
        axis: along which slices are counted, in canonical orientation.
        name: folder of the cache.

    Raises:
        FlSimError: if a file is broken, or the shapes of an image and its labels differ.
    """
    files = [path for volume in collection.volumes for path in (volume.image, volume.label)]
    stats = [(str(path), (found := _stat(path)).st_size, found.st_mtime_ns) for path in files]
    content = [_SURVEY_VERSION, axis, stats]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
    path = cache_folder() / name / f"survey-{digest}.json"
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        return [_surveyed_before(row) for row in known]
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        rows = list(pool.map(lambda volume: _surveyed(volume, axis), collection.volumes))
    write_atomically(path, json.dumps([asdict(row) for row in rows]).encode())
    return rows


def checksum(collection: Collection, rows: list[Surveyed]) -> DataFile:
    """Return one record for all files: the SHA-256 over the sorted list of names and checksums."""
    lines = sorted(
        f"{path.name} {digest}"
        for volume, row in zip(collection.volumes, rows, strict=True)
        for path, digest in ((volume.image, row.image), (volume.label, row.label))
    )
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    name = f"{collection.folder.name} ({len(rows)} volumes with labels)"
    return DataFile(name, digest, None)


def read_volume(path: Path, channel: int = 0) -> NDArray[Any]:
    """Return a volume ``[right, anterior, superior]`` in the file's own type.

    Axes are reordered and flipped to the closest canonical (RAS+) orientation.

    Args:
        path: of a NIfTI file with three axes, or four.
        channel: along the fourth axis.

    Raises:
        FlSimError: if it is missing, broken, has other axes, or lacks the channel.
    """
    import nibabel

    try:
        image: Any = nibabel.as_closest_canonical(nibabel.load(path))
        values = np.asanyarray(image.dataobj)
    except FileNotFoundError:
        raise FlSimError(f"The volume {path} is missing; put it there.") from None
    except (*_BROKEN, nibabel.filebasedimages.ImageFileError) as error:
        reason = str(error).replace("\n", " ")
        raise FlSimError(f"The volume {path} is broken ({reason}); fetch it again.") from None
    if values.dtype.kind not in "fiub" or values.ndim not in (3, 4) or 0 in values.shape:
        raise FlSimError(
            f"The volume {path} has the shape {values.shape} and the type {values.dtype} instead "
            "of three or four axes of numbers."
        )
    if values.ndim == 3 and channel == 0:
        return values
    channels = 1 if values.ndim == 3 else values.shape[3]
    if channel >= channels:
        raise FlSimError(
            f"The volume {path} has {channels} modalities, numbered from 0, and no {channel}."
        )
    return values[..., channel]


def read_labels(path: Path) -> NDArray[np.uint8]:
    """Return a label volume as uint8, oriented as :func:`read_volume` does.

    Raises:
        FlSimError: as :func:`read_volume`, and if a value is no whole number from 0 to 255.
    """
    values = read_volume(path)
    if values.dtype != np.uint8:
        # A comparison with a value that is not a number is false, so that one is refused too.
        whole = (values >= 0) & (values <= 255) & (values == np.rint(values))
        if not whole.all():
            odd = values[~whole].flat[0]
            raise FlSimError(
                f"The label file {path} has the value {odd}; labels are whole numbers from 0 to "
                "255."
            )
    return values.astype(np.uint8, copy=False)


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise FlSimError(f"The volume {path} cannot be read: {error.strerror}.") from None


def _surveyed_before(row: dict[str, Any]) -> Surveyed:
    voxels = {int(value): counts for value, counts in row["voxels"].items()}
    return Surveyed(voxels, row["image"], row["label"])


def _surveyed(volume: Volume, axis: int) -> Surveyed:
    labels = read_labels(volume.label)
    shape = _shape(volume.image)
    if shape != labels.shape:
        raise FlSimError(
            f"The volume {volume.image} has the shape {shape}, but its label {volume.label} has "
            f"{labels.shape}; they must be equal."
        )
    slices = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
    counts = np.stack([np.bincount(plane, minlength=256) for plane in slices])
    voxels = {int(value): counts[:, value].tolist() for value in np.flatnonzero(counts.any(axis=0))}
    files = (describe_file(volume.image).sha256, describe_file(volume.label).sha256)
    return Surveyed(voxels, *files)


def _shape(path: Path) -> tuple[int, ...]:
    """Return a volume's three sides in canonical orientation, without its pixels."""
    import nibabel

    try:
        image: Any = nibabel.load(path)
        axes = nibabel.io_orientation(image.affine)[:, 0].astype(int)
        sides = image.shape[:3]
        return tuple(int(sides[list(axes).index(axis)]) for axis in range(3))
    except (*_BROKEN, nibabel.filebasedimages.ImageFileError) as error:
        reason = str(error).replace("\n", " ")
        raise FlSimError(f"The volume {path} is broken ({reason}); fetch it again.") from None
