"""Notebooks: each shows one thing from beginning to end, and is committed with what came out.

:mod:`experiments.notebooks.execution` runs and tidies them; ``python -m experiments.notebooks``
writes them anew.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
NOTEBOOKS = (
    "attack_and_look",
    "lake_and_federation",
    "defences_over_seeds",
    "your_own_checkpoint",
)
"""Names of the files, in the order in which they are read."""


def path_of(name: str) -> Path:
    """Return the file of a notebook."""
    return FOLDER / f"{name}.ipynb"
