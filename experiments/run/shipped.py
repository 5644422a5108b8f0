"""Files that come with fl-sim, found by name; any other by its path."""

import os
from pathlib import Path
from typing import Literal

from fl_sim.errors import FlSimError, did_you_mean, printable, unknown_name

Kind = Literal["scenario", "grid", "tuning"]

SCENARIOS = Path(__file__).parents[1] / "scenarios"
_PLACES: dict[Kind, tuple[str, ...]] = {
    "scenario": ("scenarios/*.toml",),
    "grid": ("scenarios/grids/*.toml", "studies/*/*.toml"),
    "tuning": ("studies/*/tuning/*.toml",),
}


def shipped(kind: Kind) -> dict[str, Path]:
    """Return the files of a kind that come along, by their names without ``.toml``, sorted."""
    top = SCENARIOS.parent
    found = {file.stem: file for place in _PLACES[kind] for file in top.glob(place)}
    return dict(sorted(found.items()))


def find(name: str, kind: Kind, beside: Path = Path()) -> Path:
    """Return the path of a TOML file, or of a shipped one by its name.

    Args:
        name: a path, or a shipped file's name without ``.toml``.
        kind: what the file is.
        beside: folder that a relative path starts from.

    Raises:
        FlSimError: if there is neither; with the nearest name.
    """
    path = beside / _expanded(name)
    if os.path.isfile(path):
        return path
    known = shipped(kind)
    if name in known:
        return known[name]
    if os.path.isdir(path):
        raise FlSimError(
            f"{printable(str(path))} is a folder; give the path of a {kind} file, which ends in "
            f".toml."
        )
    if path.suffix or os.sep in name or "\\" in name:  # a path, and no name
        raise FlSimError(f"The {kind} file {printable(str(path))} does not exist.{_near(path)}")
    raise unknown_name(kind, name, known)


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # "~somebody", who is not known here
        return Path(name)


def _near(path: Path) -> str:
    """Name the TOML file of the same folder whose name is nearest, if any is near."""
    try:
        names = [file.name for file in path.parent.iterdir() if file.suffix == ".toml"]
    except (OSError, ValueError):
        return ""
    hint = did_you_mean(path.name, names)
    return printable(hint) if "Did you mean" in hint else ""
