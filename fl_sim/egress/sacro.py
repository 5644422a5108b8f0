"""SACRO-ML's files: its ``target.yaml`` read without running anything, its ``report.json`` written.

SACRO-ML (AI-SDC, 2.0) describes a model in a folder: ``target.yaml`` names the model's file, its
class and that class's module, and arrays as pickles. Its own checker imports the module and
unpickles the arrays. Here the weights are read as every model file is, the network is one that is
known by name (registered, torchvision's, or a function that the owner states), and arrays are
taken from ``.npy`` and ``.npz`` only.
"""

import json
import math
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fl_sim.auditing.architecture import Statement
from fl_sim.checkpoints import LEVELS
from fl_sim.errors import FlSimError, legible, shown
from fl_sim.files import briefly, write_atomically
from fl_sim.models.base import MODELS
from fl_sim.plain import check_plain, parse_json

if TYPE_CHECKING:
    from fl_sim.auditing.report import AuditReport
    from fl_sim.egress.record import Record

TARGET = "target.yaml"
ATTACK = "fl-sim"
ARRAYS = tuple(
    f"{kind}_{part}" for kind in ("X", "y", "proba", "indices") for part in ("train", "test")
)
_LONGEST = 1 << 20
_LONGEST_REPORT = 1 << 26
_MOST_TOKENS = 100_000
_QUANTILE = 1.959964
_SMALLEST = 1e-9
_PARAMS = {"num_classes": "classes", "n_classes": "classes", "in_channels": "channels"}


@dataclass(frozen=True)
class Target:
    """A target of SACRO-ML.

    Args:
        folder: that its paths start from.
        model_path: the model's file.
        model_name: class of the model, as the target calls it.
        model_params: of that class.
        arrays: files of arrays, by name.
    """

    folder: Path
    model_path: Path
    model_name: str
    model_params: dict[str, Any]
    arrays: dict[str, Path]

    def statement(self, stated: Statement) -> Statement:
        """Return what is known of the network: what the owner says, else what the target says.

        A class that is not known here by its name is left to what explains the file.
        """
        numbers = {
            own: value
            for theirs, own in _PARAMS.items()
            if isinstance(value := self.model_params.get(theirs), int) and 0 < value < 1 << 20
        }
        name = self.model_name.lower()
        if stated.model is None and _known(name):
            stated = replace(stated, model=name)
        return replace(
            stated,
            classes=stated.classes or numbers.get("classes"),
            channels=stated.channels or numbers.get("channels"),
        )

    def array(self, name: str) -> NDArray[Any]:
        """Return an array.

        Raises:
            FlSimError: if there is none, it is a pickle, or it cannot be read.
        """
        path = self.arrays.get(name)
        if path is None:
            raise FlSimError(f"The target has no array {shown(name)}.")
        if path.suffix.lower() not in (".npy", ".npz"):
            raise FlSimError(
                f"The target's array {shown(name)} is {legible(path.name)}; a pickle runs code "
                f"when it is read, so only .npy and .npz are taken: in the environment that wrote "
                f"it, save it with numpy.save(..., allow_pickle=False)."
            )
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
            if isinstance(found, np.lib.npyio.NpzFile):
                with found:
                    return np.asarray(found[found.files[0]])
            return np.asarray(found)
        except Exception as error:  # numpy's and zipfile's own, of many kinds
            said = legible(str(error).partition("\n")[0])
            raise FlSimError(f"The array {legible(path.name)} cannot be read: {said}.") from None


def is_target(path: Path) -> bool:
    """Whether a path is a ``target.yaml``, or a folder that has one."""
    return path.name == TARGET or (path / TARGET).is_file()


def read_target(path: Path) -> Target:
    """Read a ``target.yaml``; no module that it names is imported, and nothing is unpickled.

    Args:
        path: of the file, or of its folder.

    Raises:
        FlSimError: if it is missing or damaged, or names no model file in its folder.
    """
    file = path / TARGET if path.is_dir() else path
    where = f"The target {legible(briefly(file))}"
    try:
        with open(file, "rb") as opened:
            content = opened.read(_LONGEST + 1)
    except OSError as error:
        raise FlSimError(f"{where} cannot be read: {error.strerror}.") from None
    if len(content) > _LONGEST:
        raise FlSimError(f"{where} is longer than {_LONGEST >> 20} MiB.")
    values = _parsed(content, where)
    kind = values.get("model_type")
    if kind not in (None, "", "PytorchModel"):
        raise FlSimError(f"{where} is of a {shown(kind)}; only networks of PyTorch are read.")
    name = values.get("model_path")
    if not isinstance(name, str) or not name:
        raise FlSimError(f"{where} names no model file (model_path).")
    params = values.get("model_params")
    arrays = {}
    for array in ARRAYS:
        other = values.get(f"{array}_path")
        if isinstance(other, str) and other:
            arrays[array] = _inside(file.parent, other, where)
    called = values.get("model_name")
    return Target(
        file.parent,
        _inside(file.parent, name, where),
        called if isinstance(called, str) else "",
        params if isinstance(params, dict) else {},
        arrays,
    )


def _parsed(content: bytes, where: str) -> dict[str, Any]:
    """Parse YAML without tags, anchors or nesting that could cost more than the file is long."""
    import yaml

    try:
        text = content.decode()
        for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
            if isinstance(event, yaml.AliasEvent):
                raise FlSimError(f"{where} has an alias (*), which is not taken.")
            if number > _MOST_TOKENS:
                raise FlSimError(f"{where} has too many values.")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, FlSimError):
            raise
        said = legible(str(error).partition("\n")[0])
        raise FlSimError(f"{where} cannot be read as plain YAML: {said}.") from None
    if not isinstance(values, dict):
        raise FlSimError(f"{where} is no table of keys.")
    plain = {str(key): value for key, value in values.items()}
    plain.pop("features", None)  # of tables; their keys are numbers
    check_plain({key: value for key, value in plain.items() if value is not None}, where)
    return plain


def _inside(folder: Path, name: str, where: str) -> Path:
    """Return the path of a file that a target names.

    Raises:
        FlSimError: if it leaves the folder.
    """
    path = folder / name
    if "\0" in name or not path.resolve().is_relative_to(folder.resolve()):
        raise FlSimError(f"{where} names {shown(name)}, which is outside its folder.")
    return path


def _known(name: str) -> bool:
    if ":" in name or not name.isidentifier():
        return False
    try:
        MODELS.get(name)
    except FlSimError:
        return False
    return True


def entry_of_record(record: "Record") -> dict[str, Any]:
    """Return a decision as an entry of SACRO-ML's ``report.json``.

    Its report reads AUC and ``P_HIGHER_AUC`` of an ``attack_experiment_logger``, and counts what is
    not significant as evidence for release. So only a model that may leave, and whose membership
    was measured, has one here; a refused one must not be counted so.
    """
    told = {criterion.name: criterion.value for criterion in record.criteria}
    metrics = {"decision": record.decision, "reasons": list(record.reasons), "figures": told}
    params = {"policy": record.policy.name, "policy_sha256": record.policy.sha256}
    groups = record.membership if record.decision == "release" else {}
    instances = {
        f"instance_{number}": _instance(group) for number, group in enumerate(groups.values())
    }
    words = "release" if record.decision == "release" else "refusal"
    version = record.versions.get("fl-sim", "")
    return _entry(words, params, metrics, instances, record.input.network, version)


def entry_of_audit(report: "AuditReport", version: str) -> dict[str, Any]:
    """Return an audit as an entry of SACRO-ML's ``report.json``; it measures no membership."""
    levels = [finding.level for finding in report.findings]
    told: dict[str, Any] = {level: levels.count(level) for level in LEVELS}
    told |= {"checks_run": len(report.ran), "checks_not_run": len(report.unchecked)}
    told |= {"outcome": report.outcome, "verdict": report.verdict}
    return _entry("audit", {}, told, {}, report.architecture, version)


def _instance(group: dict[str, Any]) -> dict[str, float]:
    """Return what was found of one group's membership by the names that SACRO-ML has."""
    low, high = group["auc_95_percent"]
    error = max(_SMALLEST, (high - low) / (2 * _QUANTILE))
    found = {
        "AUC": float(group["auc"]),
        # One-sided, by the normal approximation that the interval is made with.
        "P_HIGHER_AUC": math.erfc((group["auc"] - 0.5) / error / math.sqrt(2)) / 2,
        "n_pos_test_examples": float(group["members"]),
        "n_neg_test_examples": float(group["nonmembers"]),
    }
    for row in group["tpr"]:
        found[f"TPR@{100 * row['false_positive_rate']:g}%"] = float(row["found"])
    return found


def _entry(
    what: str,
    params: dict[str, Any],
    told: dict[str, Any],
    instances: dict[str, dict[str, float]],
    network: str,
    version: str,
) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "log_id": str(uuid.uuid4()),
        "log_time": datetime.now(UTC).strftime("%d/%m/%Y %H:%M:%S"),
        "metadata": {
            "sacroml_version": "",
            "attack_name": f"{ATTACK} {what}",
            "attack_params": {"fl_sim_version": version, **params},
            "global_metrics": told,
            "target_model": network,
            "target_model_params": {},
            "target_train_params": {},
        },
    }
    if instances:
        entry["attack_experiment_logger"] = {"attack_instance_logger": instances}
    return entry


def add_entry(path: Path, entry: dict[str, Any]) -> Path:
    """Add an entry to a ``report.json`` of SACRO-ML's, or begin one. Returns ``path``.

    Raises:
        FlSimError: if the file is there and no such report.
    """
    where = f"The report {legible(briefly(path))}"
    entries: Any = {}
    if path.is_file() and path.stat().st_size:
        with open(path, "rb") as file:
            content = file.read(_LONGEST_REPORT + 1)
        if len(content) > _LONGEST_REPORT:
            raise FlSimError(f"{where} is longer than {_LONGEST_REPORT >> 20} MiB.")
        entries = parse_json(content, where)
        if not isinstance(entries, dict):
            raise FlSimError(f"{where} is no report of SACRO-ML: it is no table of entries.")
    entries[f"{entry['metadata']['attack_name']}_{entry['log_id']}"] = entry
    return write_atomically(path, (json.dumps(entries, indent=4) + "\n").encode())
