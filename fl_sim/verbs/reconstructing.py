"""``fl_sim.reconstruct``: from a released head to images like those that it was trained on."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.artifact import Artifact
from fl_sim.auditing.identified import identified_artifact
from fl_sim.bars import chosen_progress
from fl_sim.checkpoints import read_checkpoint
from fl_sim.data.base import Split
from fl_sim.errors import FlSimError, printable
from fl_sim.models.base import ModelSpec
from fl_sim.models.pixels import Normalization
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream
from fl_sim.reconstruction.evidence import Evidence, threshold, weigh
from fl_sim.reconstruction.few_shot import Attacker, FewShotSettings, learn
from fl_sim.sealing.files import MANIFEST
from fl_sim.sealing.heads import features_of, find_head, read_head
from fl_sim.settings import parse
from fl_sim.verbs.cleaning import given_with_weights
from fl_sim.verbs.images import is_labelled, split_of
from fl_sim.verbs.network import Make, State

_DRAWS = 200
_DECOYS = 200


@dataclass(frozen=True)
class Reconstructed:
    """What an attacker reconstructs from a head, an image a class.

    Args:
        images: ``[classes, channels, height, width]`` in [0, 1].
        guess: likewise, what he would show without the head: near each class's mean image.
        error: the reconstructor's mean square error on shadow heads that it was not fitted to.
        class_mean_error: that of each class's mean image there. An ``error`` that is not below it
            says that heads like this one tell him nothing.
        evidence: whether the images tell of the head's own, where these were given; see
            :class:`fl_sim.reconstruction.evidence.Evidence`.
        settings: how he has learnt.
    """

    images: torch.Tensor = field(repr=False)
    guess: torch.Tensor = field(repr=False)
    error: float
    class_mean_error: float
    evidence: Evidence | None = field(repr=False)
    settings: FewShotSettings = field(repr=False)

    def told(self) -> dict[str, Any]:
        """Return the numbers, as JSON holds them; those of evidence where there is any.

        Of an own image it says ``found`` where its error is below that which one in a hundred
        images of heads that know no victim stay below (``found_strict``: of trained heads).
        """
        told: dict[str, Any] = {"error": self.error, "class_mean_error": self.class_mean_error}
        own = self.evidence
        if own is None:
            return told
        images = own.own.size
        return {
            **told,
            "images": images,
            "found": round(images * float((own.own < threshold(own.null)).mean())),
            "found_strict": round(images * float((own.own < threshold(own.strict)).mean())),
            "nearest": int(own.found.sum()),
            "nearest_by_guessing": images * own.chance,
            "least_errors": own.own[0].tolist(),
        }

    def save(self, path: Path | str) -> Path:
        """Write ``images`` and ``guess`` as a safetensors file; returns its path."""
        from safetensors.torch import save

        from fl_sim.files import write_atomically

        tensors = {"images": self.images.contiguous(), "guess": self.guess.contiguous()}
        return write_atomically(Path(path), save(tensors))


def reconstruct(
    model: Any,
    images: Any,
    labels: Any = None,
    /,
    *,
    originals: Any = None,
    original_labels: Any = None,
    state: State | None = None,
    make: Make | None = None,
    normalize: Normalization = "symmetric",
    classes: int | None = None,
    public: Any = None,
    kept: Path | str | None = None,
    seed: int = 0,
    progress: Progress | bool | None = None,
    **settings: Any,
) -> Reconstructed:
    """Reconstruct images like those that a model's head was trained on, from the head.

    The attacker knows the base (it is in the model), how the head is trained, and has images of
    the same kind: he trains many shadow heads on them and learns the way back (Allison, Maciazek
    and Bourne 2025, arXiv 2505.14323). Nothing is read that the model does not hold.

    Args:
        model: a network that ends with a linear layer (or two, with ``hidden``), as for
            :func:`fl_sim.clean`; or the path of a model file, of which nothing is run.
        images: the attacker's own images, as for :func:`fl_sim.clean`.
        labels: theirs, where ``images`` does not bring them.
        originals: the images that the head was trained on, as many of each class, for measuring.
        original_labels: theirs, where ``originals`` does not bring them.
        state: weights instead of the model's own.
        make: makes a fresh network like ``model``.
        normalize: how the network takes pixels, as for :func:`fl_sim.clean`.
        classes: outputs of a network that a function or name makes.
        public: images that a student was distilled on, with ``distilled_on``.
        kept: folder to keep shadow heads in, for another time; memory by default.
        seed: of the shadow heads.
        progress: ``False`` for silence.
        settings: of the attacker, :class:`fl_sim.reconstruction.few_shot.FewShotSettings`, for
            example ``images_per_class=4, shadows=100_000, reconstructor="convolutions"``.

    Returns:
        An image a class, and how much it says.

    Raises:
        FlSimError: one sentence for what is wrong.
    """
    chosen = parse(FewShotSettings, settings, "fl_sim.reconstruct")
    own = _labelled(images, labels, "the attacker's images")
    network, spec = _network(model, own, state, make, normalize, classes)
    extra = None if public is None else split_of(public, None, "public images")
    return attack_network(
        network,
        spec,
        own,
        chosen,
        originals=None if originals is None else _labelled(originals, original_labels, "originals"),
        public=extra,
        kept=None if kept is None else Path(kept),
        seed=seed,
        progress=chosen_progress(progress),
    )


def attack_network(
    network: torch.nn.Module,
    spec: ModelSpec,
    own: Split,
    settings: FewShotSettings,
    *,
    originals: Split | None = None,
    public: Split | None = None,
    kept: Path | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Reconstructed:
    """Reconstruct images from the head of a network; see :func:`reconstruct`.

    Args:
        network: takes pixels as :mod:`fl_sim.training` gives them.
        spec: how it is built.
        own: the attacker's images.
        settings: how he learns.
        originals: the head's own, for measuring.
        public: that a student was distilled on.
        kept: folder of shadow heads.
        seed: of these.
        progress: where to report.

    Raises:
        FlSimError: if the network has no such head, or images and head do not fit each other.
    """
    names = find_head(network, spec, 2 if settings.hidden else 1, settings.activation)
    head = read_head(network, names)
    if settings.hidden and len(head[0].weight) != settings.hidden:
        raise FlSimError(
            f"hidden is {settings.hidden}, but the head's first layer has {len(head[0].weight)} "
            f"units; set hidden to that."
        )
    if own.labels.ndim != 1 or int(own.labels.max()) >= spec.classes:
        raise FlSimError(
            f"The attacker's images should have one class each, below the head's {spec.classes}."
        )
    theirs = None if originals is None else _sorted(originals, spec.classes, settings)
    features = features_of(network, names, own)
    attacker = learn(
        features,
        own.tensors()[0],
        own.labels,
        spec.classes,
        settings,
        Stream(seed, ("attacker",)),
        bias=head[0].bias is not None,
        public=None if public is None else features_of(network, names, public),
        kept=kept,
        progress=progress,
    )
    found = attacker.reconstruct(*head)
    evidence = None if theirs is None else _weighed(attacker, found, theirs, own, seed)
    learnt = attacker.reconstructor
    return Reconstructed(
        found,
        attacker.without_head(),
        learnt.error,
        learnt.class_mean_error,
        evidence,
        settings,
    )


def _labelled(images: Any, labels: Any, what: str) -> Split:
    split = split_of(images, labels, what)
    if not is_labelled(split):
        raise FlSimError(f"Reconstruction goes class by class; give the labels of {what}.")
    return split


def _network(
    model: Any,
    own: Split,
    state: State | None,
    make: Make | None,
    normalize: Normalization,
    classes: int | None,
) -> tuple[torch.nn.Module, ModelSpec]:
    """Return the network with its weights, in evaluation mode."""
    if isinstance(model, str | Path) and state is None:
        artifact = _from_file(Path(model))
        return artifact.model(), artifact.spec
    network, weights = given_with_weights(model, own, state, normalize, make, classes, 0)
    network.model.load_state_dict(weights, strict=False)
    return network.model.eval(), network.spec


def refuse_sealed(path: Path) -> None:
    """Refuse a folder that is a sealed model.

    Raises:
        FlSimError: if it is one.
    """
    if (path / MANIFEST).is_file():
        raise FlSimError(
            f"{printable(str(path))} is a sealed model, whose head nobody can read but its owner; "
            f"there is nothing to reconstruct from."
        )


def _from_file(path: Path) -> Artifact:
    refuse_sealed(path)
    checkpoint = read_checkpoint(path)
    artifact, _ = identified_artifact(checkpoint, None, str(path))
    return artifact


def _sorted(originals: Split, classes: int, settings: FewShotSettings) -> torch.Tensor:
    """Return originals ``[1, classes, per_class, channels, height, width]``.

    Raises:
        FlSimError: if a class has not as many as the settings say.
    """
    per_class = settings.images_per_class * settings.averaged
    counts = np.bincount(originals.labels, minlength=classes)
    for label, count in enumerate(counts):
        if count != per_class:
            raise FlSimError(
                f"Class {label} has {count} of the original images, and images_per_class is "
                f"{settings.images_per_class}; give as many of each class."
            )
    order = np.argsort(originals.labels, kind="stable")
    pixels, _ = originals.batch(order)
    return pixels.unflatten(0, (1, classes, per_class))


def _weighed(
    attacker: Attacker, found: torch.Tensor, originals: torch.Tensor, own: Split, seed: int
) -> Evidence:
    """Weigh one head's images against heads that do not know them, among the attacker's images."""
    null = attacker.null(_DRAWS, Stream(seed, ("null",)))
    decoys = attacker.decoys(_DECOYS if attacker.settings.sees == "weights" else 20)
    gallery = [
        torch.cat([_of_class(own, label), originals[0, label]])
        for label in range(originals.shape[1])
    ]
    return weigh(found[None], null, originals, decoys=decoys, gallery=gallery)


def _of_class(own: Split, label: int) -> torch.Tensor:
    rows: NDArray[np.int64] = np.flatnonzero(own.labels == label)
    return own.batch(rows)[0]
