"""Networks that the user states as ``package.module:function``: a function that makes the network.

Only what a user writes (an option, a scenario, a call) is imported; a name of this kind in a file
from elsewhere is never.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from fl_sim.errors import FlSimError, did_you_mean
from fl_sim.models.base import MODELS, ModelEntry, ModelSpec

_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "classes": ("classes", "num_classes", "n_classes"),
    "channels": ("channels", "in_channels", "in_chans", "num_channels"),
    "size": ("size", "image_size", "img_size"),
}
"""What a function may ask for, and under which names of its arguments."""


def state_model(name: str) -> str:
    """Import a network that the user states, so that it is known by this name from now on.

    Args:
        name: ``"package.module:function"``, found as Python finds modules or in the current folder;
            any other name is left as it is. The function is called with those of ``classes``,
            ``channels`` and ``size`` that it has arguments for (also ``num_classes``,
            ``in_channels``, ``image_size`` and the like), and returns a ``torch.nn.Module``.

    Returns:
        ``name``.

    Raises:
        FlSimError: if the module or function is not there or cannot be imported.
    """
    if ":" in name and not MODELS.has(name):
        make = _function(name)
        MODELS.register(name, f"the function {name}")(ModelEntry(_Make(name, make)))
    return name


def made_by(name: str, make: Callable[..., Any]) -> Callable[[ModelSpec], nn.Module]:
    """Return a function that calls a user's with those of its arguments that a network needs.

    Args:
        name: how messages call it.
        make: the user's; see :func:`state_model`.
    """
    return _Make(name, make)


class _Make:
    """Calls the user's function with what it asks for."""

    def __init__(self, name: str, make: Callable[..., Any]) -> None:
        self._name = name
        self._make = make
        self.__module__, self.__qualname__ = type(self).__module__, name

    def __call__(self, spec: ModelSpec) -> nn.Module:
        try:
            network = self._make(**self._wanted(spec))
        except Exception as error:  # whatever a foreign function raises
            raise FlSimError(
                f"The model '{self._name}' cannot be built: {type(error).__name__}: {error}."
            ) from error
        if not isinstance(network, nn.Module):
            raise FlSimError(
                f"The model '{self._name}' is to be a function that returns a torch.nn.Module, and "
                f"it returned {type(network).__name__}."
            )
        return network

    def _wanted(self, spec: ModelSpec) -> dict[str, int]:
        known = inspect.signature(self._make).parameters
        wanted = {}
        for what, names in _ARGUMENTS.items():
            name = next((n for n in names if n in known), None)
            if name is not None:
                wanted[name] = getattr(spec, what)
        # Torchvision's own functions take it among their keywords.
        if str(self._make.__module__).startswith("torchvision.models"):
            wanted["num_classes"] = spec.classes
        return wanted


def _function(name: str) -> Callable[..., Any]:
    module_name, _, function = name.partition(":")
    module = _module(module_name, name)
    found = getattr(module, function, None)
    if found is None:
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise FlSimError(
            f"The module '{module_name}' has nothing called '{function}'."
            f"{did_you_mean(function, names)}"
        )
    if not callable(found):
        raise FlSimError(f"The model '{name}' is no function but {type(found).__name__}.")
    return found


def _module(module: str, name: str) -> Any:
    here = os.getcwd()
    added = here not in sys.path
    if added:  # a console script does not look in the current folder, and `python -m` does
        sys.path.append(here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise FlSimError(
            f"The model '{name}' cannot be imported: {error}; name it as package.module:function "
            f"from where the command is started, or install the package."
        ) from None
    except (Exception, SystemExit) as error:
        raise FlSimError(
            f"The model '{name}' cannot be imported: {type(error).__name__}: {error}."
        ) from error
