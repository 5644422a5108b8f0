"""The network that training starts from: fresh, one that was handed over, or a checkpoint's."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from fl_sim.data.base import DataFile
from fl_sim.errors import FlSimError, printable
from fl_sim.files import checksum
from fl_sim.models import MODELS, ModelSpec, build, skeleton

if TYPE_CHECKING:
    from fl_sim.auditing.architecture import Match

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Weights:
    """What a checkpoint gives a network to start from.

    Args:
        state: entries by the network's names.
        said: where they come from, and which are left out, a sentence.
    """

    state: State
    said: str


@dataclass(frozen=True)
class Starting:
    """A network before its training.

    Args:
        model: the network, on the CPU.
        said: where its weights come from, a sentence; empty for fresh ones.
    """

    model: nn.Module
    said: str = ""


def starting(spec: ModelSpec, weights: Weights | None, seed: int) -> Starting:
    """Return the network that training starts from.

    Args:
        spec: the network.
        weights: a checkpoint's, see :func:`read_weights`; ``None`` for fresh ones, or those of a
            network that was handed over.
        seed: of the weights that are fresh.
    """
    model = build(spec, seed)
    lent = MODELS.lent(spec.name)
    if weights is None:
        if lent is not None and lent.initial is not None:
            model.load_state_dict(lent.initial())
        return Starting(model)
    model.load_state_dict(weights.state, strict=False)
    return Starting(model, weights.said)


def read_weights(weights: Path, spec: ModelSpec) -> Weights:
    """Read a checkpoint that a network is to start from.

    Args:
        weights: of any format; nothing in it is run.
        spec: the network.

    Raises:
        FlSimError: if it cannot be read or is not of this network.
    """
    state, left = _fitting(weights, spec)
    said = f"Training starts from {printable(weights.name)}"
    if left:
        said += f", except for {', '.join(left)}, of another number of outputs, which begin anew"
    return Weights(state, f"{said}.")


def starting_file(weights: Path) -> DataFile:
    """Return a checkpoint as a file that results depend on.

    Raises:
        FlSimError: if it does not exist.
    """
    if not weights.exists():
        raise FlSimError(f"[model] weights: {printable(str(weights))} does not exist.")
    return DataFile(weights.name, checksum(weights) if weights.is_file() else "", None)


def _fitting(weights: Path, spec: ModelSpec) -> tuple[State, list[str]]:
    """Return the entries of a checkpoint by the network's names, and those of its last layer."""
    from fl_sim.auditing.architecture import Statement
    from fl_sim.auditing.identified import identified
    from fl_sim.checkpoints import read_checkpoint

    checkpoint = read_checkpoint(weights)
    stated = Statement(spec.name, None, spec.channels, spec.size, spec.stem)
    known = identified(checkpoint, stated)
    match, file = known.match, printable(str(weights))
    if match is None or known.masks or checkpoint.layouts:
        raise FlSimError(f"[model] weights: {file} is not of the network '{spec.name}'.")
    own = skeleton(spec)
    state = known.renamed(checkpoint.state)
    left = [n for n, v in own.items() if n in state and state[n].shape != v.shape]
    odd = [name for name in left if not _of_outputs(own[name], state[name], match, spec)]
    lacking = [name for name in match.missing if name not in left]
    if odd or lacking:
        raise FlSimError(
            f"[model] weights: {file} is not of the network '{spec.name}': it "
            + (f"lacks '{lacking[0]}'." if lacking else f"has '{odd[0]}' in another shape.")
        )
    return {n: v for n, v in state.items() if n in own and n not in left}, left


def _of_outputs(own: torch.Tensor, other: torch.Tensor, match: "Match", spec: ModelSpec) -> bool:
    """Whether two entries differ in the number of the network's outputs alone."""
    return (
        own.ndim == other.ndim
        and own.shape[1:] == other.shape[1:]
        and (own.shape[0], other.shape[0]) == (spec.classes, match.spec.classes)
    )
