"""One scenario: what it says, how it runs in a data lake or a federation, and what it leaves.

``from experiments.run import run`` is the way in; what is heavy is imported when it is called.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.run.start import default_folder, run

__all__ = ["default_folder", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'experiments.run' has no attribute '{name}'")
    from experiments.run import start

    return getattr(start, name)
