"""What is released, and the owner's images: read before anything long begins."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fl_sim.artifact import Artifact, further_entries
from fl_sim.auditing.architecture import Statement
from fl_sim.auditing.identified import identified_artifact
from fl_sim.checkpoints import Checkpoint, read_checkpoint
from fl_sim.data import load_dataset
from fl_sim.data.base import Dataset, Split
from fl_sim.data.splits import HeldOutSettings, divide
from fl_sim.egress.record import Data, ModelThatCame
from fl_sim.egress.sacro import is_target, read_target
from fl_sim.errors import FlSimError, legible
from fl_sim.files import briefly, checksum
from fl_sim.models.lent import require_answers

_ROWS = 4096


@dataclass(frozen=True)
class Handed:
    """A model file that a stranger handed in, with its owner's images.

    Args:
        path: of the file.
        checkpoint: as read.
        stated: what is known of its network.
        artifact: the network with the file's weights, and nothing else of the file.
        data: the owner's images.
        held_out: those that a defence is given.
        came: what a record says of the file.
    """

    path: Path
    checkpoint: Checkpoint
    stated: Statement
    artifact: Artifact
    data: Dataset
    held_out: Split
    came: ModelThatCame


def open_handed(
    file: Path,
    dataset: Dataset | str,
    stated: Statement,
    images: int | None,
    seed: int,
    data_root: Path | None,
) -> Handed:
    """Read a model file, or the target of SACRO-ML that names it, and the owner's images.

    Args:
        file: of any format that ``fl-sim audit`` reads, or a ``target.yaml``.
        dataset: the owner's; a registered name or the path of an ``.npz`` file.
        stated: what the owner says of the network; the images tell the rest.
        images: how many held-out images; all of the validation split where ``None``.
        seed: which they are.
        data_root: folder of data files.

    Raises:
        FlSimError: if a file cannot be read, the network is not known, or it is not for these
            images.
    """
    if is_target(file):
        target = read_target(file)
        file, stated = target.model_path, target.statement(stated)
    checkpoint = read_checkpoint(file)
    own = checkpoint.spec if stated.model is None else None
    side = stated.size or (own.size if own else None)
    if isinstance(dataset, str):
        dataset = load_dataset(dataset, {} if side is None else {"size": side}, data_root)
    known = replace(stated, channels=stated.channels or dataset.channels, size=dataset.size)
    artifact, _ = identified_artifact(checkpoint, known, briefly(file))
    network = artifact.model()
    shape = (dataset.channels, dataset.size, dataset.size)
    if artifact.spec.input_shape != shape or artifact.spec.classes != dataset.task.outputs:
        raise FlSimError(
            f"The network of {legible(briefly(file))} takes images of shape "
            f"{list(artifact.spec.input_shape)} and has {artifact.spec.classes} outputs, and the "
            f"data are {list(shape)} with {dataset.task.outputs}; choose the dataset that it was "
            f"trained on."
        )
    require_answers(artifact.spec, network)
    left = further_entries(artifact.state, network)
    weights = {name: tensor for name, tensor in artifact.state.items() if name not in left}
    held_out = divide(dataset, HeldOutSettings(images=images, public_images=0), seed).held_out
    came = ModelThatCame(
        sha256=_hash(file),
        bytes=_size(file),
        network=artifact.spec.name,
        outputs=artifact.spec.classes,
        input=artifact.spec.input_shape,
        told_by="file" if stated.model is None else "owner",
        left_behind=len(left),
    )
    return Handed(
        file, checkpoint, known, Artifact(artifact.spec, weights), dataset, held_out, came
    )


def data_of(handed: Handed) -> Data:
    """Return what a record says of the owner's images."""
    data, content = handed.data, hashlib.sha256()
    for split in (data.train, handed.held_out, data.test):
        for array in (split.images, split.labels):
            content.update(f"{array.dtype}{tuple(array.shape)}".encode())
            for first in range(0, len(array), _ROWS):
                content.update(np.ascontiguousarray(array[first : first + _ROWS]).tobytes())
    return Data(
        sha256=content.hexdigest(),
        training=len(data.train),
        held_out=len(handed.held_out),
        test=len(data.test),
        task=data.task.kind,
    )


def _hash(file: Path) -> str:
    if file.is_file():
        return checksum(file)
    parts = "".join(checksum(path) for path in sorted(file.rglob("*")) if path.is_file())
    return hashlib.sha256(parts.encode()).hexdigest()


def _size(file: Path) -> int:
    paths = [file] if file.is_file() else [path for path in file.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in paths)
