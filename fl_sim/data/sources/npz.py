"""Any .npz file in MedMNIST's format, named by its path."""

import csv
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fl_sim.data.base import (
    MULTI_LABEL,
    DataFile,
    Dataset,
    DatasetSettings,
    DatasetSource,
    Task,
)
from fl_sim.data.files import SPLITS, NpzArrays, describe_file, one_hot_as_classes, read_npz
from fl_sim.data.sources import medmnist
from fl_sim.errors import FlSimError, printable

_COLUMNS = ("split", "index", "patient")


class NpzSettings(DatasetSettings):
    """Keys of a dataset that is a file.

    Args:
        size: where given, the file's images must have this side.
        patients: CSV with the columns split (train, val, test), index (row in the split) and
            patient; relative to the .npz file's folder. Default: the file ``<stem>_ids.csv``
            beside it, where there is one (the stem with or without its size).
    """

    patients: str | None = Field(None, min_length=1)

    def plain(self) -> dict[str, Any]:
        """Return the keys; ``size`` only where it was given, since the file has one of its own."""
        given = "size" in self.model_fields_set
        return self.model_dump(mode="json", exclude=None if given else {"size"})


def load(name: str, settings: NpzSettings, data_root: Path | None) -> Dataset:
    """Load a file in MedMNIST's format; its task is read off its labels and its name.

    Args:
        name: the path, absolute or relative to the current folder, the data root, or its folder
            ``medmnist``.
        settings: see :class:`NpzSettings`.
        data_root: where relative paths are also looked for.

    Raises:
        FlSimError: if the file or its table of patients is missing, damaged or inconsistent.
    """
    path = find(name, data_root)
    arrays = read_npz(path)
    stem = printable(path.stem)
    if "size" in settings.model_fields_set and settings.size != arrays.side:
        raise FlSimError(
            f"The data file {path} holds images of {arrays.side} pixels, but size is "
            f"{settings.size}; leave size out or give {arrays.side}."
        )
    known = medmnist_name(path.stem)
    if not _labels_as_published(arrays, known):
        arrays = one_hot_as_classes(arrays)
    task = _task(path, arrays, known)
    patients, table = _patients(path, settings, arrays)
    official = medmnist.catalogue().get(known or "", {}).get(_md5_key(arrays.side))
    files = (describe_file(path, official if path.stem == _stem(known, arrays.side) else None),)
    read_as = ", one-hot labels read as classes" if arrays.one_hot else ""
    description = f"{stem}.npz: {task.kind}, {task.outputs} outputs, {arrays.side} pixels{read_as}"
    return medmnist.as_dataset(stem, task, arrays, files + table, description, patients)


def find(name: str, data_root: Path | None) -> Path:
    """Return the file that a path means.

    Raises:
        FlSimError: if no such file exists; the message gives the places that were tried.
    """
    path = _expanded(name)
    folders = [Path()]
    if not path.is_absolute() and data_root is not None:
        folders += [data_root, data_root / "medmnist"]
    for folder in folders:
        if os.path.isfile(folder / path):
            return folder / path
    tried = ", ".join(printable(str(folder.absolute())) for folder in folders)
    where = "" if path.is_absolute() else f" in {tried}"
    said = printable(str(path))
    if "\\" in name and os.sep == "/":
        where += ", where folders are separated by /"
    raise FlSimError(f"There is no data file {said}{where}; give the path of an .npz file.")


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # "~somebody", who is not known here
        return Path(name)


def medmnist_name(stem: str) -> str | None:
    """Return the MedMNIST dataset that a file's stem begins with, if any."""
    return next(
        (name for name in medmnist.catalogue() if re.match(rf"{name}(?![a-z0-9])", stem)), None
    )


def _stem(known: str | None, side: int) -> str | None:
    return None if known is None else Path(medmnist.file_name(known, side)).stem


def _md5_key(side: int) -> str:
    return "MD5" if side == 28 else f"MD5_{side}"


def _labels_as_published(arrays: NpzArrays, known: str | None) -> bool:
    """Whether the columns are those of a published multi-label dataset."""
    info = medmnist.catalogue().get(known or "", {"label": (), "task": ""})
    return info["task"] == MULTI_LABEL and arrays.columns == len(info["label"])


def _task(path: Path, arrays: NpzArrays, known: str | None) -> Task:
    largest = arrays.largest_label
    if known is not None:
        info = medmnist.catalogue()[known]
        names, multi = medmnist.label_names(info), info["task"] == MULTI_LABEL
        fits = arrays.columns == len(names) if multi else largest < len(names)
        if multi == (arrays.columns > 1) and fits:
            return Task(info["task"], names)
    if arrays.columns > 1:
        return Task(MULTI_LABEL, tuple(f"label {n}" for n in range(arrays.columns)))
    if arrays.one_hot:
        kind = "binary-class" if arrays.one_hot == 2 else "multi-class"
        return Task(kind, tuple(f"class {n}" for n in range(arrays.one_hot)))
    if largest == 0:
        raise FlSimError(
            f"The data file {path} has only one class: all its labels are 0; give one with two."
        )
    kind = "binary-class" if largest == 1 else "multi-class"
    return Task(kind, tuple(f"class {n}" for n in range(largest + 1)))


def _patients(
    path: Path, settings: NpzSettings, arrays: NpzArrays
) -> tuple[dict[str, NDArray[np.str_]] | None, tuple[DataFile, ...]]:
    table = _patients_file(path, settings)
    if table is None:
        return None, ()
    counts = {split: len(arrays.images[split]) for split in SPLITS}
    return read_patients(table, counts), (describe_file(table),)


def _patients_file(path: Path, settings: NpzSettings) -> Path | None:
    if settings.patients is not None:
        given = Path(settings.patients).expanduser()
        for table in (path.parent / given, given):
            if table.is_file():
                return table
        raise FlSimError(
            f"The table of patients {given} does not exist, neither beside {path} nor in the "
            "current folder; correct 'patients' or leave it out."
        )
    bare = re.sub(r"_(28|64|128|224)(?=_|$)", "", path.stem, count=1)
    candidates = (path.with_name(f"{stem}_ids.csv") for stem in (path.stem, bare))
    return next((table for table in candidates if table.is_file()), None)


def read_patients(table: Path, counts: dict[str, int]) -> dict[str, NDArray[np.str_]]:
    """Read the patient of each image.

    Args:
        table: CSV with the columns split, index and patient.
        counts: number of images by split (``train``, ``val``, ``test``).

    Returns:
        A string array ``[n]`` for each split.

    Raises:
        FlSimError: if a column, a row or a patient is missing, or a row is given twice.
    """
    found: dict[str, dict[int, str]] = {split: {} for split in counts}
    try:
        with open(table, newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise FlSimError(f"The table of patients {table} lacks the column '{missing[0]}'.")
            for line, row in enumerate(rows, start=2):
                _add_patient(found, row, f"Line {line} of the table of patients {table}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FlSimError(f"The table of patients {table} cannot be read: {error}.") from None
    for split, count in counts.items():
        if sorted(found[split]) != list(range(count)):
            raise FlSimError(
                f"The table of patients {table} has {len(found[split])} rows for the split "
                f"'{split}' instead of one for each index from 0 to {count - 1}."
            )
    return {
        split: np.array([rows[index] for index in sorted(rows)], dtype=np.str_)
        for split, rows in found.items()
    }


def _add_patient(found: dict[str, dict[int, str]], row: dict[str, str], where: str) -> None:
    split, index, patient = (row[name] or "" for name in _COLUMNS)
    if split not in found:
        raise FlSimError(f"{where} has the split '{split}' instead of one of {', '.join(found)}.")
    if not index.isdecimal() or not patient:
        raise FlSimError(f"{where} lacks its index or its patient.")
    if int(index) in found[split]:
        raise FlSimError(f"{where} gives index {index} of '{split}' a second time.")
    found[split][int(index)] = patient


SOURCE = DatasetSource(NpzSettings, load)
