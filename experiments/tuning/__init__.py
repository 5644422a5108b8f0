"""Tuning: the settings of defences, chosen away from the test set.

``from experiments.tuning import tune`` is the way in; what is heavy is imported when it is called.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.tuning.start import Tuning, tune

__all__ = ["Tuning", "tune"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'experiments.tuning' has no attribute '{name}'")
    from experiments.tuning import start

    return getattr(start, name)
