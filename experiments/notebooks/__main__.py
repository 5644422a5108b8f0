"""``python -m experiments.notebooks [NAME ...]``: run notebooks on real images, and keep them."""

import sys
import tempfile
from pathlib import Path

from experiments.notebooks import NOTEBOOKS, path_of
from experiments.notebooks.execution import execute, read, tidied
from fl_sim.data import data_root
from fl_sim.errors import FlSimError, unknown_name
from fl_sim.files import write_atomically

LARGEST = 500_000
"""Bytes of a notebook with its outputs."""


def write(name: str) -> Path:
    """Run a notebook and write it with what came out. Returns its path.

    Raises:
        FlSimError: if there is no such notebook, a cell fails, or it grew larger than ``LARGEST``.
    """
    import nbformat

    if name not in NOTEBOOKS:
        raise unknown_name("notebook", name, NOTEBOOKS)
    path = path_of(name)
    with tempfile.TemporaryDirectory() as folder:
        text = nbformat.writes(tidied(execute(read(path), Path(folder)))) + "\n"
    if len(text) > LARGEST:
        raise FlSimError(
            f"{path.name} with its outputs has {len(text)} bytes, more than {LARGEST}; "
            f"let its cells draw less."
        )
    return write_atomically(path, text.encode())


def main() -> None:
    """Write the notebooks that are named, or all."""
    try:
        if data_root() is None:
            raise FlSimError(
                "Notebooks are kept with real images; set FL_SIM_DATA to a folder with "
                "dermamnist.npz."
            )
        for name in sys.argv[1:] or NOTEBOOKS:
            print(write(name).name, flush=True)
    except FlSimError as error:
        sys.exit(f"fl-sim: {error}")


if __name__ == "__main__":
    main()
