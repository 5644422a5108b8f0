"""What an interrupted run stands on: marks and sealed files, and that the table belongs to them.

A mark is a file whose content proves it: how far the table had come when it was set, and the
checksums of the files that go with it. A sealed file holds tensors, their
order, and a checksum of both, because a flipped bit in a weight would change numbers unseen.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fl_sim.errors import FlSimError
from fl_sim.files import Stand, checksum, sweep_temporaries, write_atomically

FINISHED = "finished"
TRAINED = "trained"
TABLE = "results.csv"
_SEAL = "fl_sim.seal"


@dataclass(frozen=True)
class Standing:
    """What a checkpoint says about the files that go with it.

    Args:
        table: how far ``results.csv`` had come.
        reports: how far ``defense.jsonl`` had come.
        pictures: whether recovered images had been written.
    """

    table: Stand
    reports: Stand
    pictures: bool

    @classmethod
    def of(cls, note: Mapping[str, Any]) -> "Standing":
        """Read it from plain values.

        Raises:
            LookupError, TypeError, ValueError: if they are not what ``asdict`` gives.
        """
        table, reports = (
            Stand(int(note[name]["size"]), str(note[name]["sha256"]))
            for name in ("table", "reports")
        )
        return cls(table, reports, bool(note["pictures"]))


def damaged(path: Path, folder: Path) -> FlSimError:
    """Build the error for a file that a run in ``folder`` needs and cannot use."""
    return FlSimError(
        f"The file {path} is missing or not as the run had written it; put it back, or delete the "
        f"folder {folder} to begin anew."
    )


def sweep_run(folder: Path) -> None:
    """Remove what a killed run left half-written in a folder that this process has claimed."""
    for place in (folder, *(folder / name for name in ("answers", "artifacts", "images", "keys"))):
        sweep_temporaries(place.glob(".*"))


def set_mark(folder: Path, name: str, stand: Stand, files: Iterable[Path] = ()) -> None:
    """Set a mark.

    Args:
        folder: of the run.
        name: of the mark.
        stand: how far its table has come.
        files: of the run, which must stay as they are for the mark to hold.
    """
    content = {
        "table": asdict(stand),
        "files": {str(file.relative_to(folder)): checksum(file) for file in files},
    }
    write_atomically(folder / name, (json.dumps(content) + "\n").encode())


def proven(folder: Path, name: str, whole: bool = False) -> Stand | None:
    """Return the table's stand when a mark was set; ``None`` if there is no such mark.

    Args:
        folder: of the run.
        name: of the mark.
        whole: whether nothing may have been added to the table since.

    Raises:
        FlSimError: if the mark, the table or a file that goes with it is damaged or missing.
    """
    path, table = folder / name, folder / TABLE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
        stand = Stand(int(content["table"]["size"]), str(content["table"]["sha256"]))
        files = {folder / str(file): str(sha256) for file, sha256 in content["files"].items()}
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise damaged(path, folder) from None
    if not stand.begins(table) or (whole and table.stat().st_size != stand.size):
        raise damaged(table, folder)
    for file, sha256 in files.items():
        if not file.is_file() or checksum(file) != sha256:
            raise damaged(file, folder)
    return stand


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a finished run, all of whose rows are there."""
    try:
        return proven(folder, FINISHED, whole=True) is not None
    except FlSimError:
        return False


def write_sealed(path: Path, tensors: Mapping[str, torch.Tensor], note: Any = None) -> None:
    """Write tensors, their order and a note that JSON can hold, so that damage can be told."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    said = json.dumps({"order": list(plain), "note": note})
    metadata = {_SEAL: json.dumps({"said": said, "sha256": _digest(plain, said)})}
    write_atomically(path, save(plain, metadata))


def read_sealed(path: Path, folder: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """Read what :func:`write_sealed` has written: tensors in their order, and the note.

    Args:
        path: the file.
        folder: of the run, for the message.

    Raises:
        FlSimError: if it is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            seal = json.loads((file.metadata() or {})[_SEAL])
            said = json.loads(seal["said"])
            tensors = {name: file.get_tensor(name) for name in said["order"]}
        if _digest(tensors, seal["said"]) == seal["sha256"]:
            return tensors, said["note"]
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RecursionError):
        pass
    raise damaged(path, folder)


def _digest(tensors: Mapping[str, torch.Tensor], said: str) -> str:
    content = hashlib.sha256(said.encode())
    for name, tensor in tensors.items():
        content.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        content.update(save({"": tensor}))
    return content.hexdigest()
