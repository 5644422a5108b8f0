"""Every 2-D dataset of MedMNIST, from its .npz files at 28, 64, 128 or 224 pixels.

Names, tasks, labels and checksums come from the ``medmnist`` package (Yang et al., 2023,
"MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D biomedical image classification").
"""

import functools
import hashlib
import importlib.util
import os
import shutil
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from pydantic import field_validator

from fl_sim.data.base import DATASETS, Dataset, DatasetSettings, DatasetSource, Split, Task
from fl_sim.data.files import NpzArrays, describe_file, read_npz
from fl_sim.errors import FlSimError

SIZES = (28, 64, 128, 224)
_TIMEOUT_SECONDS = 15.0


class MedMnistSettings(DatasetSettings):
    """Keys of a MedMNIST dataset.

    Args:
        size: 28, 64, 128 or 224 pixels; each is a file of its own.
    """

    @field_validator("size")
    @classmethod
    def _published(cls, size: int) -> int:
        if size not in SIZES:
            raise ValueError(f"MedMNIST has no size {size}; choose 28, 64, 128 or 224.")
        return size


@functools.cache
def catalogue() -> dict[str, dict[str, Any]]:
    """Return medmnist's own record of each 2-D dataset, by name.

    Raises:
        FlSimError: if the ``medmnist`` package is not installed.
    """
    # Importing medmnist itself imports torchvision and scikit-learn, which takes seconds; its
    # info module needs neither.
    package = importlib.util.find_spec("medmnist")
    if package is None or not package.submodule_search_locations:
        raise FlSimError("The package 'medmnist' is not installed; run 'pip install medmnist'.")
    file = Path(package.submodule_search_locations[0]) / "info.py"
    spec = importlib.util.spec_from_file_location("_fl_sim_medmnist_info", file)
    if spec is None or spec.loader is None:
        raise FlSimError(f"The medmnist package's {file} cannot be read; reinstall medmnist.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: info for name, info in module.INFO.items() if not name.endswith("3d")}


def label_names(info: dict[str, Any]) -> tuple[str, ...]:
    """Return the label names of one of medmnist's records, in the order of their numbers."""
    return tuple(info["label"][str(number)] for number in range(len(info["label"])))


def summary(info: dict[str, Any]) -> str:
    """Say in one line what a dataset is."""
    kind = {1: "grey", 3: "RGB"}[info["n_channels"]]
    counts = " / ".join(str(info["n_samples"][split]) for split in ("train", "val", "test"))
    unit = "labels" if "multi-label" in info["task"] else "classes"
    return (
        f"{info['python_class']}: {kind}, {info['task']}, {len(info['label'])} {unit}, "
        f"{counts} images, {info['license']}"
    )


def file_name(name: str, size: int) -> str:
    """Return medmnist's name for the file of a dataset at a size."""
    return f"{name}.npz" if size == 28 else f"{name}_{size}.npz"


def load(name: str, settings: MedMnistSettings, data_root: Path | None) -> Dataset:
    """Load a MedMNIST dataset, downloading its file where it is absent and the network allows.

    Args:
        name: medmnist's name, for example ``"dermamnist"``.
        settings: see :class:`MedMnistSettings`.
        data_root: searched first, together with its folder ``medmnist``; then ``~/.medmnist``.

    Raises:
        FlSimError: if the file is absent and cannot be downloaded, or is not what it should be.
    """
    info = catalogue()[name]
    path = _find(name, settings.size, data_root)
    arrays = read_npz(path)
    check(path, arrays, info, settings.size)
    task = Task(info["task"], label_names(info))
    record = describe_file(path, info[_key("MD5", settings.size)])
    return as_dataset(name, task, arrays, (record,), summary(info))


def check(path: Path, arrays: NpzArrays, info: dict[str, Any], size: int) -> None:
    """Check a file's arrays against medmnist's record.

    Raises:
        FlSimError: naming the file and what does not fit.
    """
    classes, problem = len(info["label"]), ""
    if arrays.side != size:
        problem = f"its images are {arrays.side} pixels wide instead of {size}"
    elif arrays.channels != info["n_channels"]:
        problem = f"its images have {arrays.channels} channels instead of {info['n_channels']}"
    elif arrays.columns != (classes if "multi-label" in info["task"] else 1):
        problem = f"its labels have {arrays.columns} columns, which does not fit {info['task']}"
    elif arrays.columns == 1 and arrays.largest_label >= classes:
        problem = f"it contains the label {arrays.largest_label}, but labels end at {classes - 1}"
    if problem:
        raise FlSimError(
            f"The data file {path} is not {info['python_class']} at {size} pixels: {problem}; "
            "replace it with the published file."
        )


def as_dataset(
    name: str,
    task: Task,
    arrays: NpzArrays,
    files: tuple[Any, ...],
    description: str,
    patients: dict[str, Any] | None = None,
) -> Dataset:
    """Put checked arrays into a dataset; ``patients`` gives string arrays by split."""
    known = patients or {}
    train, validation, test = (
        Split(arrays.images[split], arrays.labels[split], known.get(split))
        for split in ("train", "val", "test")
    )
    return Dataset(name, task, train, validation, test, files, description)


def _find(name: str, size: int, data_root: Path | None) -> Path:
    default = Path("~/.medmnist").expanduser()
    roots = [data_root, data_root / "medmnist"] if data_root else []
    file = file_name(name, size)
    for folder in [*roots, default]:
        if (folder / file).is_file():
            return folder / file
    target = default if data_root is None else data_root
    if data_root is not None and (data_root / "medmnist").is_dir():
        target = data_root / "medmnist"
    reason = "FL_SIM_OFFLINE forbids to download it"
    if os.environ.get("FL_SIM_OFFLINE", "") in ("", "0"):
        try:
            return _download(catalogue()[name], size, target / file)
        except (OSError, ValueError) as error:
            reason = f"downloading it failed ({error})"
    raise FlSimError(
        f"The file {file} of '{name}' is missing and {reason}; put it into {target}, "
        "or name the folder that has it as the data root."
    )


def _download(info: dict[str, Any], size: int, path: Path) -> Path:
    """Fetch the published file from medmnist's own address, verify its MD5, and only then name it.

    medmnist's ``download`` is not used: it has no timeout and leaves half-written files behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as folder:
        part = Path(folder) / path.name
        address = info[_key("url", size)]
        with (
            urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as answer,
            open(part, "wb") as file,
        ):
            shutil.copyfileobj(answer, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        with open(part, "rb") as file:
            digest = hashlib.file_digest(
                file, functools.partial(hashlib.md5, usedforsecurity=False)
            ).hexdigest()
        if digest != info[_key("MD5", size)]:
            raise ValueError("what arrived is not the published file")
        os.replace(part, path)
    return path


def _key(what: str, size: int) -> str:
    return what if size == 28 else f"{what}_{size}"


SOURCE = DatasetSource(MedMnistSettings, load)
for _name, _info in catalogue().items():
    DATASETS.register(_name, summary(_info))(SOURCE)
