"""``fl_sim.audit``: look for hidden content in a checkpoint, a state dictionary or a network."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fl_sim.auditing.architecture import Statement
from fl_sim.auditing.auditor import audit as audit_checkpoint
from fl_sim.auditing.auditor import audit_file
from fl_sim.auditing.report import AuditReport
from fl_sim.bars import chosen_progress
from fl_sim.checkpoints import Checkpoint
from fl_sim.errors import FlSimError, shown
from fl_sim.models import state_of
from fl_sim.models.lent import Pixels, copied, lend, made
from fl_sim.models.pixels import Normalization
from fl_sim.progress import Progress


def audit(
    what: Any,
    /,
    *,
    model: Any = None,
    classes: int | None = None,
    channels: int | None = None,
    size: int | None = None,
    normalize: Normalization = None,
    reference: Path | str | None = None,
    progress: Progress | bool | None = None,
) -> AuditReport:
    """Look for hidden content in a model; nothing of a file is run.

    Args:
        what: path of a checkpoint of any format, or a folder of shards; a state dictionary; or an
            ``nn.Module``.
        model: the network that it is of: an ``nn.Module``, a function that makes one, or a name.
            Otherwise the file's own word, or what explains the file.
        classes, channels, size: of the network, where shapes do not tell.
        normalize: how the network takes pixels, where it is not the file's word or [-1, 1]; see
            :func:`fl_sim.clean`. ``None`` says nothing.
        reference: a checkpoint of an earlier state that its owner trusts.
        progress: ``False`` for silence; by default bars on terminals and in notebooks.

    Returns:
        The report: ``.verdict``, ``.outcome`` (clean, unchecked, suspicious, carries),
        ``.findings``, ``.tensors``, and ``.page(path)``, which writes a page.

    Raises:
        FlSimError: if a file cannot be read, or the network does not exist.
    """
    reporting = chosen_progress(progress)
    if isinstance(what, nn.Module):
        model = what if model is None else model
    network = replace(statement_of(model, classes, channels, size), normalize=normalize)
    if isinstance(what, str | Path):
        earlier = None if reference is None else Path(reference)
        return audit_file(Path(what), network, earlier, reporting)
    if reference is not None:
        raise FlSimError("A reference is compared with a file; give both as paths.")
    return audit_checkpoint(Checkpoint(state=_state(what)), network, None, reporting)


def _state(what: Any) -> dict[str, torch.Tensor]:
    if isinstance(what, nn.Module):
        return state_of(what)
    if not isinstance(what, Mapping) or not all(isinstance(v, torch.Tensor) for v in what.values()):
        raise FlSimError(
            f"{shown(what)} cannot be audited; give a path, a state dictionary or a network."
        )
    return {str(name): value.detach().cpu() for name, value in what.items()}


def statement_of(
    model: Any, classes: int | None, channels: int | None, size: int | None
) -> Statement:
    """Return what somebody says of a checkpoint's network, as the audit takes it.

    Args:
        model: an ``nn.Module``, a function that makes one, a name, or ``None`` for nothing.
        classes, channels, size: of the network; ``None`` where nothing is said.

    Raises:
        FlSimError: if ``model`` is nothing of these, or takes no usual images.
    """
    if model is None or isinstance(model, str):
        return Statement(model, classes, channels, size)
    if not isinstance(model, nn.Module) and not callable(model):
        raise FlSimError(
            f"model is {shown(model)}; give a torch.nn.Module, a function that makes one, or a "
            f"name."
        )
    make = None if isinstance(model, nn.Module) else model
    channels = channels or (3 if make else _channels(model))
    network = made(make, classes or 2, Pixels(channels, size or _SIDES[0]), 0) if make else model
    sides = [size] if size else _sides(network, channels)
    spec = lend(network, Pixels(channels, sides[0]), make)
    # Where several sides will do, none is known: where weights are dead depends on it.
    outputs = classes if make else spec.classes
    return Statement(spec.name, outputs, channels, sides[0] if len(sides) == 1 else None)


def _channels(network: nn.Module) -> int:
    """Return the channels of the first convolution, where there is one."""
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    return 3 if first is None or first.in_channels not in (1, 3) else first.in_channels


@torch.no_grad()
def _sides(network: nn.Module, channels: int) -> list[int]:
    """Return the usual sides of images that a network can take, tried without values.

    Raises:
        FlSimError: if it takes none of them.
    """
    weightless, found = copied(network).eval().to("meta"), []
    for side in _SIDES:
        with contextlib.suppress(Exception):  # whatever a foreign forward method raises
            weightless(torch.zeros(2, channels, side, side, device="meta"))
            found.append(side)
    if not found:
        raise FlSimError(
            f"The network {type(network).__name__} takes no images of {channels} channels and a "
            f"usual side; say which it takes with channels= and size=."
        )
    return found


_SIDES = (28, 32, 64, 96, 128, 224, 256, 299, 384, 512)
