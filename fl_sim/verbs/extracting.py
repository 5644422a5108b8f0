"""``fl_sim.extract``: read images back from what left, with the attacker's key."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fl_sim.artifact import Artifact, Key, read_key
from fl_sim.attacks.base import ATTACKS
from fl_sim.attacks.doubt import doubt
from fl_sim.auditing.architecture import Statement
from fl_sim.auditing.identified import identified_artifact
from fl_sim.checkpoints import read_checkpoint
from fl_sim.errors import FlSimError, shown
from fl_sim.models import MODELS, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.models.lent import Pixels, lend
from fl_sim.verbs.attacking import Attacked
from fl_sim.verbs.cleaning import Cleaned
from fl_sim.verbs.network import Make, State, fits
from fl_sim.verbs.sealing import Sealed


def extract(
    model: Any, key: Key | Path | str, /, *, network: Any = None, make: Make | None = None
) -> torch.Tensor:
    """Play the receiver: read images back from a network that left.

    Args:
        model: the network; a state dictionary; a model file (whatever ``fl-sim audit`` reads); or
            what :func:`fl_sim.attack`, :func:`fl_sim.clean` or :func:`fl_sim.seal` returned.
        key: the attacker's, or its file.
        network: an ``nn.Module`` or a name of the architecture, where ``model`` is a file or a
            state dictionary and neither it nor the key names one that is known here.
        make: a function that makes such a network.

    Returns:
        Float32 ``[n, channels, height, width]`` in the order in which they were hidden, as they
        come out: values may leave [0, 1].

    Raises:
        FlSimError: if the key does not fit the network.

    Warns:
        UserWarning: if what comes out does not look like pictures, which a key that belongs to
            another file gives, and a model that was cleaned.
    """
    known = key if isinstance(key, Key) else read_key(Path(key))
    artifact = _artifact(model, known, network, make)
    kind = ATTACKS.get(known.attack)
    kind.check_key(known, artifact)
    extraction = kind.extract(artifact, known)
    said = doubt(extraction)
    if said:
        warnings.warn(said, UserWarning, stacklevel=2)
    return extraction.images


def _artifact(model: Any, key: Key, network: Any, make: Make | None) -> Artifact:
    if isinstance(model, Attacked | Cleaned | Sealed):
        return model.artifact
    if isinstance(model, nn.Module):
        return Artifact(_spec(model, key, make), state_of(model))
    stated = _stated(network, key, make)
    if isinstance(model, str | Path):
        checkpoint = read_checkpoint(Path(model))
        own = checkpoint.spec if checkpoint.spec and MODELS.has(checkpoint.spec.name) else None
        artifact, _ = identified_artifact(checkpoint, stated or own or key.network, str(model))
        return artifact
    if not isinstance(model, Mapping):
        raise FlSimError(
            f"The model is {shown(model)}; give a torch.nn.Module, a state dictionary or a file."
        )
    spec = stated if isinstance(stated, ModelSpec) else key.network
    if spec is None:
        raise FlSimError("A state dictionary does not tell its network; give it as network=.")
    state: State = dict(model)
    fits(state, MODELS.get(spec.name).build(spec), "The state dictionary")
    return Artifact(spec, state)


def _stated(network: Any, key: Key, make: Make | None) -> ModelSpec | Statement | None:
    if network is None and make is None:
        return None
    if isinstance(network, str):
        return Statement(network)
    if network is None and make is not None:
        network = make()
    return _spec(network, key, make)


def _spec(model: nn.Module, key: Key, make: Make | None) -> ModelSpec:
    """Return how a network that is handed over is known, as the key says that it takes images."""
    wanted = key.network
    if wanted is None:
        raise FlSimError(
            "The key does not say which images its network takes (keys of fl_sim.attack do); give "
            "the model's file instead, which does."
        )
    if "@" not in wanted.name:  # a network that everybody can build
        fits(state_of(model), MODELS.get(wanted.name).build(wanted), "The model")
        return wanted
    found = lend(model, Pixels(wanted.channels, wanted.size, wanted.mean, wanted.std), make)
    if found != wanted:
        raise FlSimError(
            f"The key is for a network '{wanted.name}' of {wanted.classes} outputs, and this one "
            f"is '{found.name}' of {found.classes}."
        )
    return found
