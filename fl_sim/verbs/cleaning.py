"""``fl_sim.clean``: let a defence clean a network before it leaves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fl_sim.artifact import Artifact, further_entries, write_artifact
from fl_sim.bars import chosen_progress
from fl_sim.component import Component
from fl_sim.data.base import Split
from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release, refuse_sealing
from fl_sim.defenses.ledger import cap_bits
from fl_sim.errors import FlSimError, shown
from fl_sim.faults import blaming
from fl_sim.models import MODELS, build, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.models.entries import require_sound
from fl_sim.models.lent import copied
from fl_sim.models.pixels import Normalization
from fl_sim.progress import Progress
from fl_sim.randomness import Stream
from fl_sim.verbs.attacking import Attacked
from fl_sim.verbs.images import is_labelled, outputs_told, pixels_of, split_of, task_of
from fl_sim.verbs.network import Given, Make, State, fits, given


@dataclass(frozen=True)
class Cleaned:
    """A network as a defence leaves it.

    Args:
        model: the network, in evaluation mode.
        report: what the defence did: losses, change by layer, seconds.
        state: every entry of the file that leaves; those that ``model`` has not came in with the
            file and were kept by the defence.
        spec: how the network is known here.
        cap_bytes: the most bytes that can have passed from the model as it came into what leaves,
            whoever attacked it; see :mod:`fl_sim.defenses.ledger`.
    """

    model: nn.Module = field(repr=False)
    report: DefenseReport
    state: State = field(repr=False)
    spec: ModelSpec
    cap_bytes: float

    @property
    def artifact(self) -> Artifact:
        """What leaves."""
        return Artifact(self.spec, self.state)

    def save(self, path: Path | str) -> Path:
        """Write the model file that leaves (safetensors)."""
        return write_artifact(Path(path), self.spec, self.state)


def clean(
    model: Any,
    images: Any,
    labels: Any = None,
    /,
    *,
    defense: str | Mapping[str, Any] | Defense[Any] = "consistent_distillation",
    state: State | None = None,
    make: Make | None = None,
    normalize: Normalization = "symmetric",
    classes: int | None = None,
    seed: int = 0,
    reference: State | None = None,
    training: Any = None,
    uploads: Sequence[State] | None = None,
    stream: Stream | None = None,
    device: str | None = None,
    progress: Progress | bool | None = None,
    **settings: Any,
) -> Cleaned:
    """Let a defence clean a network on held-out images, as its owner would before it leaves.

    Args:
        model: the network (it is copied); what :func:`fl_sim.attack` returned; or a function or a
            name, with ``state``.
        images: the owner's clean held-out images; see :func:`fl_sim.verbs.images.split_of`.
        labels: theirs, where ``images`` does not bring them. Some defences do without.
        defense: its name (``fl-sim list defenses``), a table of name and settings as in TOML, or a
            defence.
        state: weights to clean instead of the model's own; further entries leave with it, unless
            the defence removes them.
        make: a function that makes a fresh network like ``model``, for defences that start anew
            (distillation, training from scratch) where the network cannot be initialised anew.
        normalize: how the network takes pixels: ``"symmetric"`` ([-1, 1]), ``"none"`` ([0, 1]),
            ``"imagenet"``, or a pair of mean and deviation.
        classes: outputs of a network that a function or name makes; otherwise told by the labels.
        seed: everything random follows from it.
        reference: a state dictionary of the same network that is known to be clean.
        training: the owner's images that the model was trained on, with their labels, for defences
            that ask for them (``images="training"``, ``trusted_training``).
        uploads: state dictionaries of the same network that hospitals sent in a federation's round,
            for defences that ask for them (``ensemble_distillation``).
        stream: where randomness is derived from, instead of ``seed``.
        device: ``"cpu"``, ``"cuda"``; by default where the model is.
        progress: ``False`` for silence; by default bars on terminals and in notebooks.
        settings: of the defence, for example ``epochs=5``.

    Returns:
        The cleaned network and what was done.

    Raises:
        FlSimError: one sentence for what is wrong; a defence that breaks the network is named.
    """
    chosen, name = defense_of(defense, settings)
    refuse_sealing(chosen, name, "fl_sim.clean")
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
        reference=reference,
        training=training,
        uploads=uploads,
        stream=stream,
        device=device,
        progress=progress,
    )
    cleaned, report = cleaned_release(chosen, name, release, weights)
    cap = cap_bits(report, state_of(network.model), release.entries) / 8
    return Cleaned(network.back(cleaned), report, cleaned, network.spec, cap)


def release_of(
    model: Any,
    images: Any,
    labels: Any,
    chosen: Defense[Any],
    name: str,
    *,
    state: State | None = None,
    make: Make | None = None,
    normalize: Normalization = "symmetric",
    classes: int | None = None,
    seed: int = 0,
    reference: State | None = None,
    training: Any = None,
    uploads: Sequence[State] | None = None,
    stream: Stream | None = None,
    device: str | None = None,
    progress: Progress | bool | None = None,
) -> tuple[Given, Release, State]:
    """Return a network as a defence is given it; for the arguments see :func:`clean`.

    Args:
        model, images, labels: the network, and its owner's images.
        chosen: the defence.
        name: how messages call it.

    Returns:
        The network, what the defence is given, and the state as it came.
    """
    split = split_of(images, labels, "held-out images")
    if chosen.uses_labels and not is_labelled(split):
        raise FlSimError(
            f"The defence '{name}' learns from labels; give those of the held-out images, or take "
            f"one that does without, such as consistent_distillation with labels=0."
        )
    network, weights = given_with_weights(model, split, state, normalize, make, classes, seed)
    task = task_of(split, network.spec.classes, network.spec.task == "segmentation")
    if not is_labelled(split):
        split = replace(split, labels=np.zeros(_no_labels(split, network.spec), np.int64))
    fits(weights, network.model, "The state dictionary")
    network.model.load_state_dict(weights, strict=False)
    network.model.to(device or next(network.model.parameters()).device)
    entries = {n: v.clone() for n, v in further_entries(weights, network.model).items()}
    release = Release(
        network.model,
        network.spec,
        split,
        task,
        stream or Stream(seed, ("release", 0)),
        progress=chosen_progress(progress),
        entries=entries,
        reference=reference,
        training=None if training is None else split_of(training, None, "training images"),
        uploads=uploads,
    )
    return network, release, weights


def cleaned_release(
    defense: Defense[Any], name: str, release: Release, before: State
) -> tuple[State, DefenseReport]:
    """Let a defence clean a release, and refuse one that it has broken.

    Args:
        defense: the defence.
        name: how messages call it.
        release: what is cleaned, in place.
        before: the state as it came.

    Raises:
        FlSimError: naming the defence, whatever it raises, or the entry that it broke.
    """
    with blaming(f"The defence '{name}'"):
        report = defense.apply(release)
        cleaned = state_of(release.model) | release.entries
        require_sound(cleaned, before)
    return cleaned, report


def defense_of(
    defense: str | Mapping[str, Any] | Defense[Any], settings: Mapping[str, Any] | None = None
) -> tuple[Defense[Any], str]:
    """Return a defence as people name it, and how messages call it.

    Args:
        defense: a name, a table as in TOML, or a defence.
        settings: of the defence, beside those in the table.

    Raises:
        FlSimError: if there is no such defence, or a key is wrong; with the nearest name.
    """
    if isinstance(defense, Defense):
        if settings:
            raise FlSimError(
                f"The defence is built already, so '{next(iter(settings))}' cannot be set; give "
                f"its name instead."
            )
        return defense, type(defense).__name__
    choice = Component.of(defense, "defense")
    choice = Component(name=choice.name, settings={**choice.settings, **(settings or {})})
    return choice.build(DEFENSES, f"The defence '{choice.name}'"), choice.name


def given_with_weights(
    model: Any,
    split: Split,
    state: State | None,
    normalize: Normalization,
    make: Make | None,
    classes: int | None,
    seed: int,
) -> tuple[Given, State]:
    """Return the network, and the weights that are to be cleaned or measured.

    Args:
        model, state, normalize, make, classes, seed: as of :func:`clean`.
        split: images that it takes.

    Raises:
        FlSimError: if it is no network, has no weights, or does not take such images.
    """
    if isinstance(model, Attacked | Cleaned):
        if MODELS.lent(model.spec.name) is None:  # one that was given by its name keeps it
            built = Given(model.spec, build(model.spec, seed), copied(model.model))
            return built, _tensors(state or model.state)
        normalize = (model.spec.mean, model.spec.std)
        model, state = model.model, state or model.state
    if state is None and not isinstance(model, nn.Module):
        raise FlSimError(
            f"The model is {shown(model)}, which has no trained weights; give a trained "
            f"torch.nn.Module, or state= with a state dictionary."
        )
    outputs = classes or outputs_told(split.labels)
    network = given(model, pixels_of(split), normalize, make, outputs, seed)
    return network, state_of(network.model) if state is None else _tensors(state)


def _tensors(state: Any) -> State:
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise FlSimError("state should be a state dictionary: tensors by name.")
    return {name: value.detach().cpu() for name, value in state.items()}


def _no_labels(split: Split, spec: ModelSpec) -> tuple[int, ...]:
    """Return the shape of labels that nothing reads."""
    images = len(split)
    return (images, spec.size, spec.size) if spec.task == "segmentation" else (images,)
