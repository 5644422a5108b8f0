"""Which NIfTI files of a folder belong together, in the layouts that public collections come in.

=====================================  ========================================================
Medical Segmentation Decathlon         ``imagesTr/`` and ``labelsTr/``, paired by file name, and
                                       ``dataset.json``
plain pairs                            ``images/`` and ``labels/``, paired by file name
LiTS                                   ``volume-<n>.nii`` and ``segmentation-<n>.nii``, anywhere
BraTS                                  ``<case>/<case>_flair.nii.gz`` and ``<case>_seg.nii.gz``
=====================================  ========================================================

Any file may be ``.nii`` or ``.nii.gz``.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_sim.errors import FlSimError, unknown_name

BRATS_MODALITIES = ("flair", "t1", "t1ce", "t2")
_PAIRED_FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"))
_LITS = re.compile(r"(volume|segmentation)-(\d+)")


@dataclass(frozen=True)
class Volume:
    """An image and its labels: two NIfTI files, and the name of the patient."""

    name: str
    image: Path
    label: Path


@dataclass(frozen=True)
class Collection:
    """What a folder holds.

    Args:
        folder: where it lies.
        volumes: by name.
        channel: of images with four axes, which one to take.
        classes: names by label value, where the collection says them.
        table: the file that says so.
    """

    folder: Path
    volumes: tuple[Volume, ...]
    channel: int = 0
    classes: dict[int, str] | None = None
    table: Path | None = None


def find_collection(folder: Path, modality: str | None = None) -> Collection:
    """Return the volumes in a folder, whichever layout it has.

    Args:
        folder: of the collection.
        modality: which of several images of a patient; the first, or in BraTS ``"flair"``, where
            not given.

    Raises:
        FlSimError: if there are no volumes, a label is missing, or there is no such modality.
    """
    for images, labels in _PAIRED_FOLDERS:
        if (folder / images).is_dir():
            volumes = _pairs(folder / images, folder / labels)
            return _described(folder, tuple(volumes), modality)
    found = sorted(_files(folder))
    lits = {key: path for path in found if (key := _lits_key(path))}
    if any(kind == "volume" for kind, _ in lits):
        if modality is not None:
            raise FlSimError(f"The volumes in {folder} have one modality; leave 'modality' out.")
        return Collection(folder, tuple(_lits_pairs(lits)))
    brats = tuple(_brats_pairs(found, modality))
    if brats:
        return Collection(folder, brats)
    raise FlSimError(
        f"The folder {folder} has no volumes: neither images/ and labels/ (or imagesTr/ and "
        f"labelsTr/) nor volume-<n>.nii nor <case>_{modality or BRATS_MODALITIES[0]}.nii.gz."
    )


def stem(path: Path) -> str:
    """Return a file's name without ``.nii`` or ``.nii.gz``."""
    return re.sub(r"\.nii(\.gz)?$", "", path.name)


def _files(folder: Path) -> Iterator[Path]:
    # Archives made on a Mac have a hidden companion of each file.
    for path in folder.rglob("*.nii*"):
        if path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith("."):
            yield path


def _pairs(images: Path, labels: Path) -> Iterator[Volume]:
    known = {stem(path): path for path in sorted(_files(labels))}
    found = {stem(path): path for path in sorted(_files(images))}
    if not found:
        raise FlSimError(f"The folder {images} has no NIfTI files; put the volumes there.")
    for name, path in sorted(found.items()):
        if name not in known:
            raise FlSimError(f"The volume {path} has no label {labels / path.name}; add it.")
        yield Volume(name, path, known[name])


def _lits_key(path: Path) -> tuple[str, int] | None:
    match = _LITS.fullmatch(stem(path))
    return (match[1], int(match[2])) if match else None


def _lits_pairs(files: dict[tuple[str, int], Path]) -> Iterator[Volume]:
    for (kind, number), path in sorted(files.items()):
        if kind == "volume":
            if ("segmentation", number) not in files:
                raise FlSimError(f"The volume {path} has no label segmentation-{number}; add it.")
            yield Volume(stem(path), path, files["segmentation", number])


def _brats_pairs(files: list[Path], modality: str | None) -> Iterator[Volume]:
    wanted = (modality or BRATS_MODALITIES[0]).lower()
    labels = {stem(path): path for path in files if stem(path).endswith("_seg")}
    if labels and wanted not in BRATS_MODALITIES:
        raise unknown_name("modality", wanted, BRATS_MODALITIES)
    for path in files:
        case, _, kind = stem(path).rpartition("_")
        if case and kind == wanted:
            if f"{case}_seg" not in labels:
                raise FlSimError(f"The volume {path} has no label {case}_seg.nii.gz; add it.")
            yield Volume(case, path, labels[f"{case}_seg"])


def _described(folder: Path, volumes: tuple[Volume, ...], modality: str | None) -> Collection:
    """Add what ``dataset.json`` says of pairs."""
    table = folder / "dataset.json"
    content = _read_table(table) if table.is_file() else {}
    modalities = [name.lower() for _, name in _numbered(content, "modality", table)]
    classes = dict(_numbered(content, "labels", table)) or None
    if modality is None:
        channel = 0
    elif modality.isdecimal():
        channel = int(modality)
    elif modality.lower() in modalities:
        channel = modalities.index(modality.lower())
    else:
        numbers = [str(number) for number in range(len(modalities))] or ["0"]
        raise unknown_name("modality", modality, [*modalities, *numbers])
    return Collection(folder, volumes, channel, classes, table if content else None)


def _read_table(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FlSimError(f"The table {path} is damaged ({error}); fetch it again.") from None
    if not isinstance(content, dict):
        raise FlSimError(f"The table {path} is not an object of JSON; fetch it again.")
    return content


def _numbered(content: dict[str, Any], key: str, table: Path) -> list[tuple[int, str]]:
    """Return the names by number of a table such as ``{"0": "background", "1": "liver"}``."""
    names = content.get(key, {})
    try:
        return sorted((int(number), str(name)) for number, name in names.items())
    except (AttributeError, ValueError):
        raise FlSimError(
            f'The table {table} has \'{key}\' in another form than {{"0": "name", ...}}.'
        ) from None
