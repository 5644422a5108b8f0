"""The command line in this process: what ``fl-sim`` prints, and its exit code.

A program of its own takes seconds to import torch; whether one starts, ends and answers signals is
shown by a few of the tests, and what it says by the others, which call its entry point.
"""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.cli.main import main

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    """How a command ended; the fields are those of ``subprocess.CompletedProcess``."""

    returncode: int
    stdout: str
    stderr: str


def fl_sim(*arguments: str, cwd: Path = ROOT, **environment: str) -> Done:
    """Give a command as a shell does, from the folder ``cwd``; what is no exit is raised."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["fl-sim", *arguments])
        # Else click calls it "python -m" and the package of the program that is running.
        patch.setattr(sys.modules["__main__"], "__package__", "")
        for name, value in {"COLUMNS": "100", **environment}.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code
    assert isinstance(code, int), code
    return Done(code, out.getvalue(), err.getvalue())
