"""timm's classifiers by name, ``timm/convnext_atto``, where the package timm is installed."""

import contextlib
import importlib.util
from functools import cache
from typing import Any

from torch import nn

from fl_sim.errors import FlSimError, unknown_name
from fl_sim.models.base import ModelEntry, ModelSpec

PREFIX = "timm/"


def entry(name: str) -> ModelEntry | None:
    """Return how to build a classifier of timm's; ``None`` for a name without ``timm/``.

    Args:
        name: for example ``"timm/resnet10t"``. No weights are downloaded.

    Raises:
        FlSimError: if timm is not installed, or has no such network.
    """
    if not name.startswith(PREFIX):
        return None
    own = name.removeprefix(PREFIX)
    if importlib.util.find_spec("timm") is None:
        raise FlSimError(
            f"The model '{name}' is one of timm's, which is not installed; install it with "
            f"pip install timm, or fl-sim with its extra: fl-sim[timm]."
        )
    if own not in _names():
        raise unknown_name("model of timm", own, _names())
    return ModelEntry(lambda spec: _build(own, spec))


@cache
def _names() -> tuple[str, ...]:
    import timm

    return tuple(timm.list_models())


def _build(name: str, spec: ModelSpec) -> nn.Module:
    import timm

    arguments: dict[str, Any] = {
        "pretrained": False,
        "num_classes": spec.classes,
        "in_chans": spec.channels,
    }
    # Networks with positions learned for one size want to be told; the others refuse the argument.
    with contextlib.suppress(TypeError):
        sized: nn.Module = timm.create_model(name, img_size=spec.size, **arguments)
        return sized
    network: nn.Module = timm.create_model(name, **arguments)
    return network
