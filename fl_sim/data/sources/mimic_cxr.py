"""MIMIC-CXR-JPG in its official layout: chest radiographs with CheXpert labels (Johnson et al.).

Access is credentialed, so nothing is downloaded: the user names the folder that has ``files/`` and
the three tables ``mimic-cxr-2.0.0-{split,chexpert,metadata}.csv.gz``.
"""

import csv
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from fl_sim.data.base import (
    DATASETS,
    MULTI_LABEL,
    Dataset,
    DatasetSettings,
    DatasetSource,
    Split,
    Task,
)
from fl_sim.data.cache import cached_images
from fl_sim.data.files import describe_file
from fl_sim.errors import FlSimError, unknown_name

LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
SPLITS = ("train", "validate", "test")
_CACHE_VERSION = 1


class MimicCxrSettings(DatasetSettings):
    """Keys of MIMIC-CXR-JPG.

    Args:
        size: side in pixels; images are resized on their shorter side and cropped in the centre.
        views: values of ViewPosition to keep; frontal views by default.
        uncertain: what a label of -1 becomes: 0, 1, or a reason to leave the image out.
        labels: which of the 14 CheXpert labels; all of them by default.
        limit: at most so many images in each split, the first in the order of their identifiers.
    """

    size: int = Field(224, ge=8, le=1024)
    views: tuple[str, ...] = Field(("AP", "PA"), min_length=1)
    uncertain: Literal["zeros", "ones", "ignore"] = "zeros"
    labels: tuple[str, ...] = Field(LABELS, min_length=1)
    limit: int | None = Field(None, ge=1, le=10_000_000)

    @field_validator("labels")
    @classmethod
    def _known(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        canonical = {label.lower(): label for label in LABELS}
        for label in labels:
            if label.lower() not in canonical:
                raise unknown_name("CheXpert label", label, LABELS)
        if len(set(labels)) < len(labels):
            raise ValueError("a label is named twice in 'labels'; name each once.")
        return tuple(canonical[label.lower()] for label in labels)


@dataclass(frozen=True)
class Image:
    """One row of the tables: where an image lies and what it shows."""

    dicom: str
    study: str
    patient: str
    split: str
    labels: tuple[int, ...]

    def path(self, root: Path) -> Path:
        """Return the image's place in the official layout."""
        folder = root / "files" / f"p{self.patient[:2]}" / f"p{self.patient}" / f"s{self.study}"
        return folder / f"{self.dicom}.jpg"


def load(name: str, settings: MimicCxrSettings, data_root: Path | None) -> Dataset:
    """Load MIMIC-CXR-JPG; the first time, its images are resized into the cache.

    Args:
        name: ``"mimic_cxr"``.
        settings: see :class:`MimicCxrSettings`.
        data_root: the dataset's folder, or the one that has it as ``mimic-cxr-jpg``.

    Raises:
        FlSimError: for a missing or broken table or image, and if a split is left without images.
    """
    root = _root(data_root)
    tables = {which: _table(root, which) for which in ("split", "chexpert", "metadata")}
    files = tuple(describe_file(path) for path in tables.values())
    images = select(tables, settings)
    shape = (len(images), settings.size, settings.size, 1)
    key = _key([file.sha256 for file in files], images, root, settings.size)
    pixels = cached_images(name, key, shape, _Reader(images, root, settings.size))
    train, validation, test = (_split(images, pixels, split) for split in SPLITS)
    task = Task(MULTI_LABEL, settings.labels)
    about = (
        f"MIMIC-CXR-JPG 2.0.0: {'/'.join(settings.views)} views, uncertain labels: "
        f"{settings.uncertain}, {len(train)} / {len(validation)} / {len(test)} images, "
        "PhysioNet Credentialed Health Data License"
    )
    return Dataset(name, task, train, validation, test, files, about)


def select(tables: dict[str, Path], settings: MimicCxrSettings) -> list[Image]:
    """Return the images that the settings ask for, by split and then by identifier.

    Images of studies without a row in the table of labels are left out.

    Args:
        tables: the paths of ``split``, ``chexpert`` and ``metadata``.
        settings: views, labels, policy and limit.

    Raises:
        FlSimError: for a damaged table, and if a split has no image left.
    """
    views = {
        dicom
        for dicom, view in _rows(tables["metadata"], ("dicom_id", "ViewPosition"))
        if view in settings.views
    }
    labels = dict(_labels(tables["chexpert"], settings))
    chosen: dict[str, list[Image]] = {split: [] for split in SPLITS}
    columns = ("dicom_id", "study_id", "subject_id", "split")
    for dicom, study, patient, split in _rows(tables["split"], columns):
        known = labels.get(study)
        if dicom in views and known is not None:
            if split not in chosen:
                raise FlSimError(
                    f"The table {tables['split']} has the split '{split}' for {dicom} instead of "
                    f"one of {', '.join(SPLITS)}; replace it with the published table."
                )
            chosen[split].append(Image(dicom, study, patient, split, known))
    for split, images in chosen.items():
        images.sort(key=lambda image: image.dicom)
        if not images:
            raise FlSimError(
                f"MIMIC-CXR has no image left in the split '{split}' with the views "
                f"{', '.join(settings.views)} and uncertain = '{settings.uncertain}'; widen them."
            )
    return [image for split in SPLITS for image in chosen[split][: settings.limit]]


@dataclass(frozen=True)
class _Reader:
    """Reads and resizes a run of images; Pillow frees the interpreter while it decodes."""

    images: list[Image]
    root: Path
    size: int

    def __call__(self, first: int, last: int) -> NDArray[np.uint8]:
        paths = [image.path(self.root) for image in self.images[first:last]]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return np.stack(list(pool.map(lambda path: read_jpg(path, self.size), paths)))


def read_jpg(path: Path, size: int) -> NDArray[np.uint8]:
    """Return an image as grey uint8 ``[size, size, 1]``, its shorter side resized, then cropped.

    Raises:
        FlSimError: if it is missing or broken.
    """
    from PIL import Image as Pillow

    try:
        with Pillow.open(path, formats=("JPEG",)) as image:
            # The decoder may shrink by a power of two, never below twice the wanted size.
            image.draft("L", (2 * size, 2 * size))
            grey = image.convert("L")
    except FileNotFoundError:
        raise FlSimError(
            f"The image {path} is missing; complete the folder 'files' or set 'limit'."
        ) from None
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError) as error:
        raise FlSimError(f"The image {path} is broken ({error}); fetch it again.") from None
    scale = size / min(grey.size)
    width, height = (max(size, round(side * scale)) for side in grey.size)
    grey = grey.resize((width, height), Pillow.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    cropped = grey.crop((left, top, left + size, top + size))
    return np.asarray(cropped, dtype=np.uint8)[..., None]


def _root(data_root: Path | None) -> Path:
    if data_root is None:
        raise FlSimError(
            "MIMIC-CXR needs a data root; name the folder that has 'mimic-cxr-jpg' with "
            "--data-root or FL_SIM_DATA."
        )
    inner = data_root / "mimic-cxr-jpg"
    return inner if inner.is_dir() else data_root


def _table(root: Path, which: str) -> Path:
    path = root / f"mimic-cxr-2.0.0-{which}.csv.gz"
    if not path.is_file():
        raise FlSimError(
            f"The table {path.name} of MIMIC-CXR-JPG is missing; put it into {root}, beside "
            "'files'."
        )
    return path


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the wanted columns of a gzipped table."""
    try:
        with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            for name in columns:
                if name not in header:
                    raise FlSimError(
                        f"The table {path} lacks the column '{name}'; replace it with the "
                        "published table."
                    )
            places = [header.index(name) for name in columns]
            for row in reader:
                yield tuple(row[place] for place in places)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, IndexError) as error:
        raise FlSimError(
            f"The table {path} is damaged ({error}); replace it with the published table."
        ) from None


def _labels(path: Path, settings: MimicCxrSettings) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the labels of each study, without those that the policy leaves out."""
    uncertain = 1 if settings.uncertain == "ones" else 0
    meaning = {"": 0, "0": 0, "0.0": 0, "1": 1, "1.0": 1, "-1": uncertain, "-1.0": uncertain}
    for study, *values in _rows(path, ("study_id", *settings.labels)):
        if settings.uncertain == "ignore" and any(value.startswith("-1") for value in values):
            continue
        try:
            yield study, tuple(meaning[value] for value in values)
        except KeyError as error:
            raise FlSimError(
                f"The table {path} has the label {error} for study {study} instead of 1.0, 0.0, "
                "-1.0 or nothing; replace it with the published table."
            ) from None


def _key(checksums: list[str], images: list[Image], root: Path, size: int) -> str:
    """Name the cached content: tables, images, size, and a sample of the images' file sizes.

    The sample tells the published JPEGs from shrunken copies that come with the same tables.
    """
    sample = images[:: max(1, len(images) // 64)]
    sizes = [
        path.stat().st_size if path.is_file() else -1 for path in (i.path(root) for i in sample)
    ]
    content = [_CACHE_VERSION, size, checksums, [image.dicom for image in images], sizes]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _split(images: list[Image], pixels: NDArray[np.uint8], split: str) -> Split:
    rows = [row for row, image in enumerate(images) if image.split == split]
    labels = np.array([images[row].labels for row in rows], dtype=np.int64)
    patients = np.array([images[row].patient for row in rows], dtype=np.str_)
    # A split's rows follow one another, so this is a view of the mapped file, not a copy.
    return Split(pixels[rows[0] : rows[-1] + 1], labels, patients)


DATASETS.register(
    "mimic_cxr",
    "MIMIC-CXR-JPG: grey, multi-label, 14 CheXpert labels, from the official folder (credentialed)",
)(DatasetSource(MimicCxrSettings, load))
