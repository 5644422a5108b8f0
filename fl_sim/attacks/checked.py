"""A plan as it is used: checked before any training, so that a wrong one costs nothing."""

import json
from typing import Any

import numpy as np
import torch

from fl_sim.artifact import Key
from fl_sim.attacks.base import ATTACKS, Attack, Inside, Plan
from fl_sim.errors import FlSimError, shown
from fl_sim.faults import blaming
from fl_sim.plain import check_plain


def make_plan(attack: Attack[Any], inside: Inside, name: str) -> Plan:
    """Let an attack plan, and check what it says.

    Args:
        attack: built in, or a plug-in.
        inside: what it finds.
        name: how messages call it.

    Raises:
        FlSimError: naming the attack, if it raises anything, its key could not be written to a file
            or names another attack, or the images are not the hospital's at the plan's indices.
    """
    what = f"The attack '{name}'"
    with blaming(what, sentences=False):
        plan = attack.plan(inside)
    with blaming(what):
        if not isinstance(plan, Plan):
            raise FlSimError(f"Its plan is {shown(plan)}, not a fl_sim.attacks.base.Plan.")
        _check_key(plan.key)
        _check_images(plan, inside)
    return plan


def _check_key(key: Any) -> None:
    if not isinstance(key, Key):
        raise FlSimError(f"Its plan's key is {shown(key)}, not a fl_sim.artifact.Key.")
    if not isinstance(key.attack, str):
        raise FlSimError(
            f"Its key is Key({shown(key.attack)}, ...); the first argument is the attack's "
            f"registered name, the tensors and settings follow."
        )
    ATTACKS.get(key.attack)
    for name, tensor in _mapping(key.tensors, "tensors").items():
        if not isinstance(tensor, torch.Tensor):
            raise FlSimError(f"Its key holds {shown(tensor)} as '{name}', where a tensor belongs.")
    settings = _mapping(key.settings, "settings")
    try:
        plain = json.loads(json.dumps(settings))
    except (TypeError, ValueError) as error:
        raise FlSimError(f"Its key's settings cannot be written as JSON: {error}.") from None
    check_plain(plain, "Its key's settings")


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise FlSimError(
            f"Its key's {what} are {shown(value)}, where a dictionary by name belongs."
        )
    return value


def _check_images(plan: Plan, inside: Inside) -> None:
    indices = np.asarray(plan.indices)
    images = len(inside.data)
    if indices.ndim != 1 or len(indices) == 0 or indices.dtype.kind not in "iu":
        raise FlSimError(
            f"Its plan's indices are {shown(plan.indices)}, where whole numbers [n] of the stolen "
            f"images belong."
        )
    if indices.min() < 0 or indices.max() >= images:
        raise FlSimError(
            f"Its plan's indices reach {indices.max()}, and there are {images} images."
        )
    wanted = (len(indices), *inside.data.batch(indices[:1])[0].shape[1:])
    if not isinstance(plan.targets, torch.Tensor) or tuple(plan.targets.shape) != wanted:
        raise FlSimError(
            f"Its plan's targets are to be the {len(indices)} images at its indices, a tensor of "
            f"shape {list(wanted)}, and are {_form(plan.targets)}."
        )


def _form(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return shown(value) if shape is None else f"of shape {list(shape)}"
