"""What a run is: ``scenario.json``, and that a folder holds no other run."""

import json
import os
import platform
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from experiments.report.about import read_about, whose_run
from experiments.run.preflight import duplicates_record, task_record
from experiments.run.scenario import Scenario
from experiments.run.standing import damaged
from fl_sim import __version__
from fl_sim.case import Case
from fl_sim.data.base import DataFile
from fl_sim.errors import FlSimError, printable
from fl_sim.files import write_atomically

PACKAGES = ("torch", "torchvision", "numpy", "flwr", "ray", "medmnist", "scikit-image", "pandas")


def note_origin(scenario: Scenario, case: Case, threads: int, out: Path) -> None:
    """Write ``scenario.json``: scenario, task, versions, machine, checksums of the data files.

    Does nothing where the folder has one of the same scenario and data already.

    Args:
        scenario: what is run.
        case: its data and network.
        threads: with which it computes.
        out: folder of the run.

    Raises:
        FlSimError: if the folder holds another run, or its ``scenario.json`` is damaged.
    """
    path, data = out / "scenario.json", list(case.files)
    if path.exists():
        _require_same(scenario, data, path)
        return
    content = {
        "identity": scenario.identity,
        "scenario": scenario.model_dump(mode="json"),
        "task": task_record(case),
        "data": [asdict(file) for file in data],
        "near_duplicates": duplicates_record(scenario, case),
        "versions": versions(),
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": threads,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def versions() -> dict[str, str]:
    """Return the versions of fl-sim and of the packages that numbers depend on."""
    return {"fl-sim": __version__, **{p: version(p) for p in PACKAGES}}


def _require_same(scenario: Scenario, data: list[DataFile], path: Path) -> None:
    out = path.parent
    try:
        identity, seed = whose_run(path)
        checksums = {str(f["name"]): str(f["sha256"]) for f in read_about(path)["data"]}
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        raise damaged(path, out) from None
    if (identity, seed) != (scenario.identity, scenario.seed):
        raise FlSimError(
            f"The folder {out} holds the run of another scenario ({printable(identity)[:200]}, "
            f"seed {seed}); give another --out."
        )
    for file in data:
        if checksums.get(file.name) != file.sha256:
            raise FlSimError(
                f"The data file {file.name} is not the one that the run in {out} began with; give "
                "another --out."
            )
