"""Files that come with fl-sim, found by name; any other by its path."""

from pathlib import Path

from fl_sim.errors import FlSimError, unknown_name

SCENARIOS = Path(__file__).parent / "scenarios"
GRIDS = Path(__file__).parent / "grids"


def find(name: str, folder: Path, kind: str, beside: Path = Path()) -> Path:
    """Return the path of a TOML file, or of a shipped one by its name.

    Args:
        name: a path, or a shipped file's name without ``.toml``.
        folder: of the shipped files.
        kind: what the file is, for messages, for example ``"scenario"``.
        beside: folder that a relative path starts from.

    Raises:
        FlSimError: if there is neither; with the nearest name.
    """
    path = beside / Path(name).expanduser()
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise FlSimError(f"The {kind} file {path} does not exist.")
        return path
    shipped = {file.stem: file for file in folder.glob("*.toml")}
    if name not in shipped:
        raise unknown_name(kind, name, shipped)
    return shipped[name]
