"""The architecture that a file's header states, believed within bounds only."""

import json
import re
from typing import Any

from fl_sim.checkpoints.finding import Finding
from fl_sim.errors import FlSimError, legible
from fl_sim.models.base import ModelSpec
from fl_sim.settings import parse

_LONGEST = 1 << 16
_DEEPEST = 8
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_BOUNDS = {"classes": (1, 100_000), "size": (1, 4096), "channels": (1, 4)}


def stated_model(text: str) -> tuple[ModelSpec | None, list[Finding]]:
    """Return the specification in a header, or ``None`` and a finding that says why not.

    Whether it can be built, and fits the weights, is for the caller to see.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    try:
        if size > _LONGEST:
            raise FlSimError(f"its specification has {size} bytes")
        spec = _checked(parse(ModelSpec, json.loads(text), "its specification"))
    except (FlSimError, ValueError, RecursionError, TypeError) as error:
        reason = str(error) if isinstance(error, FlSimError) else "its specification is not legible"
        what = f"The network that its header states was not believed: {legible(reason, 160)}"
        evidence: dict[str, float] = {"bytes": size}
        return None, [Finding("file", "suspicious", what.rstrip(".") + ".", None, evidence)]
    longer = size - len(spec.model_dump_json())
    if longer > len(json.dumps(spec.model_dump())) // 4 + 16:
        what = f"The specification in its header is {longer} bytes longer than it needs to be."
        return spec, [Finding("file", "suspicious", what, None, {"bytes": longer})]
    return spec, []


def _checked(spec: ModelSpec) -> ModelSpec:
    if not _NAME.fullmatch(spec.name):
        raise FlSimError(f"its specification names a network '{legible(spec.name, 40)}'")
    for key, (least, most) in _BOUNDS.items():
        value = getattr(spec, key)
        if not least <= value <= most:
            raise FlSimError(f"its specification says {key} = {_short(value)}")
    if _depth(spec.settings) > _DEEPEST:
        raise FlSimError("its specification's settings are nested too deeply")
    return spec


def _short(value: int) -> str:
    return str(value) if value.bit_length() < 128 else f"an integer of {value.bit_length()} bits"


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level and depth <= _DEEPEST:
        depth += 1
        level = [
            item
            for one in level
            if isinstance(one, dict | list)
            for item in (one.values() if isinstance(one, dict) else one)
        ]
    return depth
