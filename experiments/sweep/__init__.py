"""Many scenarios: grids, the jobs that their cells share, the workers that do them, comparisons.

``from experiments.sweep import sweep`` is the way in; what is heavy is imported when it is called.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.sweep.start import SweepResult, sweep

__all__ = ["SweepResult", "sweep"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'experiments.sweep' has no attribute '{name}'")
    from experiments.sweep import start

    return getattr(start, name)
