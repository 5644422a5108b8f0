"""3-D scans with masks, cut into 2-D slices for segmentation: any NIfTI collection.

Hippocampus (Antonelli et al. 2022, "The Medical Segmentation Decathlon"), LiTS (Bilic et al. 2023,
"The Liver Tumor Segmentation Benchmark") and BraTS 2021 (Baid et al. 2021, arXiv 2107.02314) by
name, any other by its folder. Nothing is downloaded.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from fl_sim.data.base import (
    DATASETS,
    SEGMENTATION,
    DataFile,
    Dataset,
    DatasetSettings,
    DatasetSource,
    Split,
    Task,
)
from fl_sim.data.cache import cached_images
from fl_sim.data.files import describe_file
from fl_sim.data.sources.nifti_files import Collection, find_collection
from fl_sim.data.sources.nifti_volumes import (
    Surveyed,
    checksum,
    read_labels,
    read_volume,
    survey,
)
from fl_sim.errors import FlSimError
from fl_sim.randomness import derive_seed
from fl_sim.task import TaskFamily

SHARE = 0.15
"""Share of the volumes that are for validation, and of those for testing."""
_CACHE_VERSION = 1
_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
Fit = Literal["crop", "resize"]


class SliceSettings(DatasetSettings):
    """Keys of a collection of volumes.

    Args:
        size: side of the square slices in pixels.
        fit: a slice that is larger is cut in its centre (``"crop"``) or scaled down until it fits
            (``"resize"``). Where it is smaller, its edge is repeated, and the mask's is background.
        axis: along which volumes are cut. Slices stand upright: anterior or superior is above.
        neighbours: each slice with the one below and the one above as three channels (at the ends
            the slice itself), as DEC's authors fill a codec's RGB input; else grey.
        min_foreground: leave out slices with fewer labelled voxels; 0 keeps all.
        binary: merge all labels into one.
        percentiles: of a volume's voxels, which become black and white; by default its minimum and
            maximum. A single bright voxel can make a whole volume black.
        volumes: use only so many volumes, by name.
        first_volume: leave out so many volumes before those, by name. Two ranges that do not
            overlap share no patient: those that an attacker's codec knows, and his victim's. They
            are of one collection all the same, not of two sites.
    """

    size: int = Field(64, ge=8, le=1024)
    fit: Fit = "crop"
    axis: Literal["axial", "coronal", "sagittal"] = "axial"
    neighbours: bool = False
    min_foreground: int = Field(1, ge=0, le=1024**2)
    binary: bool = False
    percentiles: tuple[float, float] = (0.0, 100.0)
    volumes: int | None = Field(None, ge=3)
    first_volume: int = Field(0, ge=0)

    @field_validator("percentiles")
    @classmethod
    def _ordered(cls, percentiles: tuple[float, float]) -> tuple[float, float]:
        low, high = percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"'percentiles' is [{low}, {high}]; give two between 0 and 100.")
        return percentiles


class LitsSettings(SliceSettings):
    """Keys of LiTS, whose slices have 512 pixels; see :class:`SliceSettings`."""

    size: int = Field(256, ge=8, le=1024)
    fit: Fit = "resize"


class BratsSettings(SliceSettings):
    """Keys of BraTS, whose slices have 240 pixels; see :class:`SliceSettings`.

    Args:
        modality: which of the four images of a patient.
    """

    size: int = Field(256, ge=8, le=1024)
    modality: Literal["flair", "t1", "t1ce", "t2"] = "flair"


class NiftiSettings(SliceSettings):
    """Keys of any other collection; see :class:`SliceSettings`.

    Args:
        path: its folder, absolute or relative to the current folder or the data root.
        modality: of images with a fourth axis, by its name in ``dataset.json`` or its number from
            0; of BraTS's layout ``"flair"``, ``"t1"``, ``"t1ce"`` or ``"t2"``. The first one where
            not given.

    Example:
        path = "my_volumes"
    """

    path: str = Field(min_length=1)
    modality: str | None = None


@dataclass(frozen=True)
class Known:
    """What is known of a published collection.

    Args:
        folders: names that its folder has.
        classes: names by label value.
        merged: what all labels together are.
        about: one line, with its licence.
    """

    folders: tuple[str, ...]
    classes: dict[int, str]
    merged: str
    about: str


KNOWN = {
    "hippocampus": Known(
        ("hippocampus", "Task04_Hippocampus"),
        {1: "anterior", 2: "posterior"},
        "hippocampus",
        "hippocampus in brain MR (Medical Segmentation Decathlon, Task04), CC BY-SA 4.0",
    ),
    "lits": Known(
        ("lits", "LiTS", "LiTS17", "Task03_Liver"),
        {1: "liver", 2: "tumour"},
        "liver",
        "liver and tumours in CT (LiTS), CC BY-NC-ND 4.0",
    ),
    "brats": Known(
        ("brats", "BraTS2021", "BraTS2021_Training_Data"),
        {1: "necrotic core", 2: "oedema", 4: "enhancing tumour"},
        "whole tumour",
        "glioma in brain MR (BraTS 2021), registration required",
    ),
}


def _family(settings: SliceSettings) -> TaskFamily:
    return "segmentation"


def load(name: str, settings: SliceSettings, data_root: Path | None) -> Dataset:
    """Load a collection; the first time, its slices are cut and kept in the cache.

    Volumes are split 70/15/15 into train, validation and test, by an order that follows from their
    names alone: the same in every study, whatever its seed. The collections' own test volumes have
    no public labels.

    Args:
        name: ``"nifti"`` or a key of ``KNOWN``.
        settings: see :class:`SliceSettings`.
        data_root: folder that has the collection's folder.

    Raises:
        FlSimError: for missing or broken files, labels without a meaning, and a split without
            slices.
    """
    known = KNOWN.get(name)
    folder = _known_folder(name, known, data_root) if known else _named_folder(settings, data_root)
    collection = find_collection(folder, getattr(settings, "modality", None))
    if settings.volumes is not None or settings.first_volume:
        volumes = collection.volumes[settings.first_volume :][: settings.volumes]
        collection = Collection(**{**vars(collection), "volumes": volumes})
    name = name if known else folder.name
    rows = survey(collection, _AXES[settings.axis], name)
    values, task = _task(collection, rows, settings, known)
    parts = split_volumes([volume.name for volume in collection.volumes])
    slices = _Slices(collection, settings, values, tuple(_chosen(rows, parts, settings)))
    files = _files(collection, rows)
    images, masks = slices.cached(name, files[0].sha256)
    train, validation, test = (
        _split(slices, images, masks, part, which) for which, part in parts.items()
    )
    about = known.about if known else f"NIfTI volumes of {folder.name}"
    about += (
        f"; {len(rows)} volumes, {settings.axis} slices, {len(train)} / {len(validation)} / "
        f"{len(test)}"
    )
    return Dataset(name, task, train, validation, test, files, about)


def split_volumes(names: list[str]) -> dict[str, list[int]]:
    """Return the places in ``names`` of each split's volumes, sorted.

    Raises:
        FlSimError: if there are fewer than three volumes.
    """
    if len(names) < 3:
        raise FlSimError(
            f"There are {len(names)} volumes, but training, validation and testing need one each."
        )
    order = sorted(range(len(names)), key=lambda i: derive_seed(0, "volumes", names[i]))
    count = max(1, round(SHARE * len(names)))
    return {
        "train": sorted(order[2 * count :]),
        "validation": sorted(order[:count]),
        "test": sorted(order[count : 2 * count]),
    }


@dataclass(frozen=True)
class _Slices:
    """The slices of all splits, one after the other: how each is cut out of its volume.

    Args:
        collection: the files.
        settings: how to cut.
        values: label value of each class, ascending; 0 first.
        places: of each slice its volume's place and its place in the volume.
    """

    collection: Collection
    settings: SliceSettings
    values: tuple[int, ...]
    places: tuple[tuple[int, int], ...]

    def cached(self, name: str, files: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return all images ``[n, size, size, channels]`` and masks ``[n, size, size]``."""
        size, settings = self.settings.size, self.settings
        cut = settings.model_dump(mode="json", exclude={"binary", "path", "modality"})
        content = [_CACHE_VERSION, files, cut, self.collection.channel]
        shape = (len(self.places), size, size)
        channels = 3 if settings.neighbours else 1
        images = cached_images(name, _key("images", content), (*shape, channels), self.images)
        content += [self.values, settings.binary]
        return images, cached_images(name, _key("masks", content), shape, self.masks)

    def images(self, first: int, last: int) -> NDArray[np.uint8]:
        """Cut the images of some slices."""
        axis, steps = _AXES[self.settings.axis], (-1, 0, 1) if self.settings.neighbours else (0,)
        result = []
        for volume, places in self._by_volume(first, last):
            path = self.collection.volumes[volume].image
            values = np.moveaxis(read_volume(path, self.collection.channel), axis, 0)
            low, high = _range(values, self.settings.percentiles, path)
            for place in places:
                around = [min(max(place + step, 0), len(values) - 1) for step in steps]
                planes = [_eight_bits(values[near], low, high) for near in around]
                fitted = [fit(plane, self.settings.size, self.settings.fit) for plane in planes]
                result.append(np.stack(fitted, axis=-1))
        return np.stack(result)

    def masks(self, first: int, last: int) -> NDArray[np.uint8]:
        """Cut the masks of some slices."""
        meaning = np.zeros(256, dtype=np.uint8)
        meaning[list(self.values)] = np.arange(len(self.values))
        if self.settings.binary:
            meaning[1:] = 1
        result = []
        for volume, places in self._by_volume(first, last):
            labels = read_labels(self.collection.volumes[volume].label)
            planes = np.moveaxis(meaning[labels], _AXES[self.settings.axis], 0)
            size, how = self.settings.size, self.settings.fit
            result += [fit(planes[place], size, how, mask=True) for place in places]
        return np.stack(result)

    def _by_volume(self, first: int, last: int) -> Iterator[tuple[int, list[int]]]:
        """Yield the slices first..last-1 volume by volume, which lie one after the other."""
        wanted = self.places[first:last]
        for volume in dict.fromkeys(volume for volume, _ in wanted):
            yield volume, [place for own, place in wanted if own == volume]


def fit(plane: NDArray[np.uint8], size: int, how: Fit, mask: bool = False) -> NDArray[np.uint8]:
    """Turn a plane of a canonical volume upright and make it a square of ``size`` pixels.

    Args:
        plane: uint8 ``[right or anterior, anterior or superior]``.
        size: side in pixels.
        how: see :class:`SliceSettings`.
        mask: scale to the nearest pixel, and pad with background.
    """
    from PIL import Image

    upright = np.rot90(plane)
    height, width = upright.shape
    if how == "resize" and max(height, width) > size:
        scale = size / max(height, width)
        height, width = (max(1, round(side * scale)) for side in (height, width))
        method = Image.Resampling.NEAREST if mask else Image.Resampling.BILINEAR
        picture = Image.fromarray(np.ascontiguousarray(upright))
        upright = np.asarray(picture.resize((width, height), method))
    short = [max(0, size - side) for side in upright.shape]
    around = [(missing // 2, missing - missing // 2) for missing in short]
    padded = np.pad(upright, around) if mask else np.pad(upright, around, mode="edge")
    top, left = ((side - size) // 2 for side in padded.shape)
    return padded[top : top + size, left : left + size]


def _range(
    values: NDArray[Any], percentiles: tuple[float, float], path: Path
) -> tuple[float, float]:
    """Return which values are black and white."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if finite.size == 0:
        raise FlSimError(f"The volume {path} is broken (no value is a number); fetch it again.")
    if percentiles == (0.0, 100.0):
        return float(finite.min()), float(finite.max())
    low, high = np.percentile(finite, percentiles)
    return float(low), float(high)


def _eight_bits(plane: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    if high <= low:
        return np.zeros(plane.shape, dtype=np.uint8)
    share = (np.nan_to_num(plane.astype(np.float64), nan=low) - low) / (high - low)
    return np.rint(share.clip(0, 1) * 255).astype(np.uint8)


def _chosen(
    rows: list[Surveyed], parts: dict[str, list[int]], settings: SliceSettings
) -> Iterator[tuple[int, int]]:
    """Yield volume and place of each slice that is kept, split by split."""
    for which, volumes in parts.items():
        kept = [
            (volume, int(place))
            for volume in volumes
            for place in np.flatnonzero(rows[volume].foreground() >= settings.min_foreground)
        ]
        if not kept:
            raise FlSimError(
                f"No slice of the {len(volumes)} volumes for {which} has {settings.min_foreground} "
                "labelled voxels; lower min_foreground, or raise volumes."
            )
        yield from kept


def _task(
    collection: Collection, rows: list[Surveyed], settings: SliceSettings, known: Known | None
) -> tuple[tuple[int, ...], Task]:
    """Return the label value of each class, and the task."""
    present = sorted({value for row in rows for value in row.voxels if value != 0})
    names = known.classes if known else collection.classes
    if settings.binary:
        merged = known.merged if known else "foreground"
        return (0,), Task(SEGMENTATION, ("background", merged))
    names = {value: f"label {value}" for value in present} if names is None else names
    strange = [value for value in present if value not in names]
    if strange:
        place = next(i for i, row in enumerate(rows) if strange[0] in row.voxels)
        raise FlSimError(
            f"The label file {collection.volumes[place].label} has the value {strange[0]}, which "
            f"is none of {', '.join(map(str, sorted({0, *names})))}; correct it, or set binary = "
            "true."
        )
    names = {0: "background", **names}
    if len(names) < 2:
        raise FlSimError(f"No label file in {collection.folder} has a labelled voxel.")
    values = tuple(sorted(names))
    return values, Task(SEGMENTATION, tuple(names[value] for value in values))


def _split(
    slices: _Slices,
    images: NDArray[np.uint8],
    masks: NDArray[np.uint8],
    volumes: list[int],
    which: str,
) -> Split:
    own = set(volumes)
    rows = [row for row, (volume, _) in enumerate(slices.places) if volume in own]
    names = [slices.collection.volumes[slices.places[row][0]].name for row in rows]
    # A split's rows follow one another, so these are views of the mapped files, not copies.
    part = slice(rows[0], rows[-1] + 1)
    return Split(images[part], masks[part], np.array(names, dtype=np.str_))


def _files(collection: Collection, rows: list[Surveyed]) -> tuple[DataFile, ...]:
    table = () if collection.table is None else (describe_file(collection.table),)
    return (checksum(collection, rows), *table)


def _key(what: str, content: list[Any]) -> str:
    return f"{what}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]}"


def _known_folder(name: str, known: Known, data_root: Path | None) -> Path:
    if data_root is None:
        raise FlSimError(
            f"The dataset '{name}' needs a data root; name the folder that has "
            f"'{known.folders[0]}' with --data-root or FL_SIM_DATA."
        )
    places = [data_root / folder for folder in known.folders]
    if data_root.name in known.folders:
        places.append(data_root)
    for place in places:
        if place.is_dir():
            return place
    raise FlSimError(
        f"The dataset '{name}' is not in {data_root}; put it there as one of the folders "
        f"{', '.join(known.folders)}."
    )


def _named_folder(settings: SliceSettings, data_root: Path | None) -> Path:
    path = Path(settings.path if isinstance(settings, NiftiSettings) else "").expanduser()
    for base in (Path(), *([data_root] if data_root else [])):
        if (base / path).is_dir():
            return (base / path).resolve()
    raise FlSimError(f"There is no folder {path}; give the path of a folder of NIfTI volumes.")


for _name, _kind in (
    ("hippocampus", SliceSettings),
    ("lits", LitsSettings),
    ("brats", BratsSettings),
):
    DATASETS.register(_name, f"{KNOWN[_name].about}; slices with masks, from the official folder")(
        DatasetSource(_kind, load, _family)
    )
DATASETS.register("nifti", "any NIfTI volumes with masks, by the 'path' of their folder")(
    DatasetSource(NiftiSettings, load, _family)
)
