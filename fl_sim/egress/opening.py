"""What is released, and the owner's images: read before anything long begins."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_sim.artifact import Artifact, further_entries
from fl_sim.auditing.architecture import Statement
from fl_sim.checkpoints import Checkpoint
from fl_sim.data.base import Dataset, Split
from fl_sim.egress.record import Data, ModelThatCame
from fl_sim.egress.sacro import is_target, read_target
from fl_sim.files import checksum
from fl_sim.verbs.opening import open_model_file

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
    opened = open_model_file(file, stated, dataset, data_root, images, seed)
    artifact = opened.artifact
    network = artifact.model()
    opened.require_fitting(network)
    left = further_entries(artifact.state, network)
    weights = {name: tensor for name, tensor in artifact.state.items() if name not in left}
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
        file,
        opened.checkpoint,
        opened.stated,
        Artifact(artifact.spec, weights),
        opened.dataset,
        opened.held_out,
        came,
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
