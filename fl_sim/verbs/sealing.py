"""``fl_sim.seal``, ``fl_sim.predict_sealed``, ``fl_sim.decide``: a head only its owner can read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fl_sim.artifact import Artifact
from fl_sim.bars import chosen_progress
from fl_sim.defenses.base import DefenseReport
from fl_sim.models.base import ModelSpec
from fl_sim.models.pixels import Normalization
from fl_sim.progress import Progress
from fl_sim.sealing.answers import decide as decided
from fl_sim.sealing.answers import encrypted_answers
from fl_sim.sealing.files import SealedFiles, read_sealed, write_sealed
from fl_sim.sealing.view import as_received
from fl_sim.verbs.cleaning import cleaned_release, defense_of, release_of
from fl_sim.verbs.images import split_of
from fl_sim.verbs.network import Make, State


@dataclass(frozen=True)
class Sealed:
    """A network whose head left encrypted.

    Args:
        model: the owner's network, with the head in clear, in evaluation mode; it stays with him.
        report: what was done: the head's last loss, seconds, images.
        files: what leaves (``files.artifact``) and the owner's key (``files.key``).
        spec: how the network is known here.
        state: what a receiver can read of it, with a stand-in for the head.
    """

    model: nn.Module = field(repr=False)
    report: DefenseReport
    files: SealedFiles
    spec: ModelSpec
    state: State = field(repr=False)

    @property
    def artifact(self) -> Artifact:
        """What a receiver can read; see :func:`fl_sim.sealing.view.as_received`."""
        return Artifact(self.spec, self.state)


def seal(
    model: Any,
    images: Any,
    labels: Any = None,
    /,
    *,
    out: Path | str,
    owner: Path | str,
    state: State | None = None,
    make: Make | None = None,
    normalize: Normalization = "symmetric",
    classes: int | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | bool | None = None,
    **settings: Any,
) -> Sealed:
    """Train a new head on a frozen base, encrypt it, and write what leaves and what stays.

    Args:
        model: the network (it is copied), as for :func:`fl_sim.clean`.
        images: the owner's images that the head is trained on.
        labels: theirs, where ``images`` does not bring them.
        out: folder that leaves; must not be there.
        owner: folder that stays with the owner, elsewhere; must not be there either.
        state: weights to start from instead of the model's own; the head's are not used.
        make: makes a fresh network like ``model``, for ``base="fresh"``.
        normalize: how the network takes pixels, as for :func:`fl_sim.clean`.
        classes: outputs of a network that a function or name makes.
        seed: of the head's initial weights. Keys and ciphertexts are not of it.
        device: where the base computes.
        progress: ``False`` for silence.
        settings: of the defence ``rhe``, for example ``base="base.safetensors", sha256="..."``.

    Returns:
        The owner's network, and where the files are.

    Raises:
        FlSimError: one sentence for what is wrong.
    """
    chosen, name = defense_of("rhe", settings)
    network, release, weights = release_of(
        model,
        images,
        labels,
        chosen,
        name,
        state=state,
        make=make,
        normalize=normalize,
        classes=classes,
        seed=seed,
        device=device,
        progress=progress,
    )
    own, report = cleaned_release(chosen, name, release, weights)
    assert report.sealed is not None  # as rhe's is
    files = write_sealed(Path(out), Path(owner), network.spec, own, report.sealed, release.task)
    left = as_received(own, report.sealed)
    return Sealed(network.back(own), report, files, network.spec, left)


def predict_sealed(
    artifact: Path | str,
    images: Any,
    /,
    out: Path | str,
    *,
    progress: Progress | bool | None = None,
) -> Path:
    """Play the receiver: let a sealed model answer, and write its encrypted answers.

    Args:
        artifact: folder that :func:`seal` wrote.
        images: as for :func:`fl_sim.clean`; labels are not used.
        out: file of answers to write (safetensors), for the owner of the key.
        progress: ``False`` for silence.

    Raises:
        FlSimError: if the sealed model is damaged, or does not take such images.
    """
    split = split_of(images, what="images")
    received = read_sealed(Path(artifact))
    return encrypted_answers(received, split, Path(out), chosen_progress(progress))


def decide(key: Path | str, answers: Path | str, /) -> NDArray[np.int64]:
    """Play the owner: decrypt answers, and return decisions and nothing else.

    Args:
        key: the owner's key, ``secret.safetensors``, with ``answered.json`` beside it.
        answers: file that :func:`predict_sealed` wrote.

    Returns:
        The class of each image ``[n]``, or zeros and ones ``[n, labels]``.

    Raises:
        FlSimError: if the answers are no answers, or more than the owner gives.
    """
    return decided(Path(key), Path(answers))
