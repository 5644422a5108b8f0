"""``fl_sim.membership``: which images a model was trained on, as far as its answers tell."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fl_sim.auditing.identified import identified_artifact
from fl_sim.bars import chosen_progress
from fl_sim.checkpoints import read_checkpoint
from fl_sim.data.base import Split, Task, joined
from fl_sim.errors import FlSimError
from fl_sim.membership_inference.base import MembershipSettings, Mode, method_of
from fl_sim.membership_inference.infer import infer
from fl_sim.membership_inference.outcome import Membership
from fl_sim.membership_inference.references import Recipe, pool_of
from fl_sim.membership_inference.references import references as trained_references
from fl_sim.membership_inference.signals import ask
from fl_sim.models.base import ModelSpec
from fl_sim.models.pixels import Normalization
from fl_sim.progress import Progress
from fl_sim.settings import parse
from fl_sim.training import TrainingSettings
from fl_sim.verbs.auditing import statement_of
from fl_sim.verbs.cleaning import given_with_weights
from fl_sim.verbs.images import is_labelled, pixels_of, split_of, task_of
from fl_sim.verbs.network import Make, State, fits

_COUNT = 4


def membership(
    model: Any,
    members: Any,
    nonmembers: Any,
    /,
    *,
    member_labels: Any = None,
    nonmember_labels: Any = None,
    method: str = "rmia",
    mode: Mode = "online",
    references: int = _COUNT,
    training: TrainingSettings | Mapping[str, Any] | None = None,
    further: Any = None,
    state: State | None = None,
    make: Make | str | nn.Module | None = None,
    normalize: Normalization = None,
    classes: int | None = None,
    device: str | None = None,
    progress: Progress | bool | None = None,
) -> Membership:
    """Tell from a model's answers which images it was trained on, and how well that can be told.

    Reference models are trained, as many as asked for, each on half of all the images; they are
    kept on disk (``FL_SIM_CACHE``) where the network has a registered name, and in this process
    otherwise, so that a second model that is asked about the same images has them at once.

    Args:
        model: the network; what :func:`fl_sim.attack` or :func:`fl_sim.clean` returned; the path of
            a model file; or a function or a name, with ``state``.
        members: images that it was trained on; see :func:`fl_sim.verbs.images.split_of`. A
            ``Split`` that knows its patients has risks by patient, too.
        nonmembers: images of the same kind that it has never seen.
        member_labels, nonmember_labels: theirs, where the images do not bring them.
        method: the attack: ``"rmia"`` (Zarifzadeh et al., ICML 2024), which does with few reference
            models, or ``"lira"`` (Carlini et al., S&P 2022), for 16 or more.
        mode: whether the attacker has reference models that were trained with the very image
            (``"online"``), or takes only those without it (``"offline"``).
        references: how many reference models, an even number.
        training: how they are trained: as the model was, or as an attacker thinks that it was. A
            table as ``[training]`` has it; the defaults where not given.
        further: further labelled images of the same kind that reference models learn from.
        state: weights instead of the model's own.
        make: a function that makes a fresh network like ``model``; of a model file also a network
            or a name, where the file does not tell it.
        normalize: how the network takes pixels, as in :func:`fl_sim.clean`.
        classes: outputs of a network that a function or name makes; otherwise told by the labels.
        device: where reference models are trained; by default where the model is.
        progress: ``False`` for silence; by default bars on terminals and in notebooks.

    Returns:
        What was found: ``.auc`` and ``.tpr(0.001)`` with ``.auc_interval`` and
        ``.tpr_interval(0.001)``, ``.chance(0.001)`` by guessing; ``.records`` and ``.by_patient``,
        which name images and patients and are their owner's alone; ``.as_dict()``, which does not.

    Raises:
        FlSimError: if images have no labels, or they and the network do not fit.
    """
    settings = parse(
        MembershipSettings, {"name": method, "mode": mode, "references": references}, "membership"
    )
    method_of(settings.name, settings.mode, settings.references)
    taught = _training(training)
    seen = _labelled(members, member_labels, "members")
    fresh = _labelled(nonmembers, nonmember_labels, "images that are no members")
    others = [] if further is None else [_labelled(further, None, "further images")]
    both = joined(seen, fresh)
    network, spec, task = _target(model, both, state, make, normalize, classes)
    network.to(device or next(network.parameters()).device)
    pool = pool_of(seen, fresh, *others)
    recipe = Recipe(spec, task, taught, device=next(network.parameters()).device.type)
    known = trained_references(pool, recipe, settings.references, chosen_progress(progress))
    asked = np.concatenate(pool.places[:2])
    return infer(ask(network, both, task), known.of(asked), len(seen), settings, both.patients)


def _training(stated: TrainingSettings | Mapping[str, Any] | None) -> TrainingSettings:
    if isinstance(stated, TrainingSettings):
        return stated
    return parse(TrainingSettings, dict(stated or {}), "training")


def _labelled(images: Any, labels: Any, what: str) -> Split:
    split = split_of(images, labels, what)
    if isinstance(images, Split) and images.patients is not None:
        split = Split(split.images, split.labels, images.patients)
    if not is_labelled(split):
        raise FlSimError(
            f"Membership is told from what a model says of true labels; give those of the {what}."
        )
    return split


def _target(
    model: Any,
    both: Split,
    state: State | None,
    make: Make | str | nn.Module | None,
    normalize: Normalization,
    classes: int | None,
) -> tuple[nn.Module, ModelSpec, Task]:
    """Return the network that is asked, how it is known, and what it is for."""
    if isinstance(model, Path) or (isinstance(model, str) and state is None):
        channels, side = pixels_of(both)
        stated = replace(statement_of(make, classes, channels, side), normalize=normalize)
        artifact, _ = identified_artifact(read_checkpoint(Path(model)), stated, str(model))
        network, spec = artifact.model(), artifact.spec
    else:
        chosen = "symmetric" if normalize is None else normalize
        if isinstance(make, str | nn.Module):
            raise FlSimError(
                "make is the function that makes a fresh network like the model; a network or a "
                "name is for a model file, whose network the file does not tell."
            )
        given, weights = given_with_weights(model, both, state, chosen, make, classes, 0)
        fits(weights, given.model, "The state dictionary")
        given.model.load_state_dict(weights, strict=False)
        network, spec = given.model, given.spec
    return network, spec, task_of(both, spec.classes, spec.task == "segmentation")
