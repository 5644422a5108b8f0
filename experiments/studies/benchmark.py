"""The benchmark of the leaderboard: one small case that a defence of anybody's is measured on.

Transpose memorises 64 images of DermaMNIST in a small network, as in the study ``defenses``; the
defence cleans it on the 1,003 held-out images; three seeds. Where the data are not there it is
embedded phantoms, and the rows say so.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.run.identity import VERSION
from experiments.studies.rows import ORIGIN, ROWS, read_rows, rows_of, write_rows
from experiments.sweep.grid import Grid
from experiments.sweep.start import sweep
from experiments.tables.summary import CELL, LABEL
from fl_sim.errors import FlSimError
from fl_sim.metrics.vocabulary import metric_of
from fl_sim.overrides import apply_override
from fl_sim.progress import SILENT, Progress

if TYPE_CHECKING:
    import pandas as pd

SEEDS = (0, 1, 2)
ATTACK, NETWORK = "Transpose", "CNN"
SKIN, PHANTOMS = "DermaMNIST", "phantoms, not the benchmark's data"
"""What rows call the data."""
CASES: Mapping[str, Mapping[str, Any]] = {
    SKIN: {
        "dataset": {"name": "dermamnist"},
        "attack": {"name": "transpose", "images": 64},
        "training": {"epochs": 6.5},
    },
    PHANTOMS: {
        "dataset": {"name": "phantoms", "difficulty": 0.2},
        "attack": {"name": "transpose", "images": 16, "memory_steps": 4},
        "training": {"epochs": 6, "learning_rate": 1e-3},
    },
}
FLOORS = (
    "ssim_floor_mean",
    "identification_floor",
    "identification_floor_high",
    "auc_floor_scratch",
)
LEAKS = ("ssim", "identification_correlation")
NEEDED = (*(f"{leak} {how}" for leak in LEAKS for how in ("raw", "chosen", "strongest")), "auc")
"""What a row at release has, beside :data:`FLOORS`."""
KEY = "key_bytes"
_SLACK = 1e-5


@dataclass(frozen=True)
class Own:
    """A defence that is measured.

    Args:
        name: as it is registered.
        plugins: modules that register it.
        settings: its keys.
    """

    name: str
    plugins: tuple[str, ...] = ()
    settings: Mapping[str, Any] | None = None

    @property
    def label(self) -> str:
        """What its line is called: its name, and settings that are not the defaults."""
        return ", ".join([self.name, *(f"{k} {v}" for k, v in (self.settings or {}).items())])


def own_defense(name: str, changes: Sequence[str] = ()) -> Own:
    """Return a registered defence by its name, or the one that a Python file registers.

    Args:
        name: the name, or the path of a file that ends in ``.py``; it is imported.
        changes: ``"key=value"`` of its settings.

    Raises:
        FlSimError: if there is no such file or defence, or the file does not register just one.
    """
    settings: dict[str, Any] = {}
    for change in changes:
        apply_override(settings, change)
    if not name.endswith(".py"):
        from fl_sim.defenses.base import DEFENSES

        DEFENSES.get(name)
        return Own(name, (), settings)
    module = _imported(Path(name))
    return Own(_registered(module, name), (module,), settings)


def _imported(path: Path) -> str:
    """Import a file as a plugin; its folder is looked in first, here and in workers."""
    from fl_sim.registry import import_plugins

    if not path.is_file():
        raise FlSimError(f"The file of a defence {path} does not exist.")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    import_plugins([path.stem])
    if Path(str(sys.modules[path.stem].__file__)).resolve() != path.resolve():
        raise FlSimError(f"{path} has the name of another module, '{path.stem}'; rename the file.")
    return path.stem


def _registered(module: str, file: str) -> str:
    """Return the name of the one defence that a module registers."""
    from fl_sim.defenses.base import DEFENSES

    own = [entry.name for entry in DEFENSES.entries() if entry.component.__module__ == module]
    if len(own) != 1:
        raise FlSimError(
            f"{file} registers {', '.join(own) or 'no defence'}, but the leaderboard measures one "
            f"defence a file; see experiments/examples/own_defense.py."
        )
    return own[0]


def data_of(data_root: Path | None) -> str:
    """Return which data the benchmark has here: :data:`SKIN`, or else :data:`PHANTOMS`."""
    from fl_sim.data import load_dataset

    try:
        load_dataset("dermamnist", data_root=data_root)
    except FlSimError:
        return PHANTOMS
    return SKIN


def grid_of(own: Own, data: str, seeds: Sequence[int] = SEEDS) -> Grid:
    """Return the benchmark's cells for a defence, a seed each.

    Raises:
        FlSimError: if a setting of the defence is wrong.
    """
    case = CASES[data]
    values = {
        "scenario": {
            "mode": "centralized",
            "training": case["training"],
            "plugins": list(own.plugins),
        },
        "seeds": list(seeds),
        "grid": {
            "dataset": [{"label": data, **case["dataset"]}],
            "model": [{"label": NETWORK, "name": "cnn"}],
            "attack": [{"label": ATTACK, **case["attack"]}],
            "defense": [{"label": own.label, "name": own.name, **(own.settings or {})}],
        },
    }
    return Grid.of(values, device="cpu", name="leaderboard")


def measure(
    grid: Grid,
    out: Path,
    data_root: Path | None = None,
    workers: int | None = None,
    progress: Progress = SILENT,
) -> "pd.DataFrame":
    """Run the benchmark's cells, and write their rows into ``rows.csv``.

    Killed at any moment, the same call continues.

    Args:
        grid: as :func:`grid_of` returns it.
        out: folder of the sweep.
        data_root: folder of data files.
        workers: cells at a time; 0 runs them in this process.
        progress: told what is going on.

    Returns:
        A row a seed and stage.

    Raises:
        FlSimError: if a cell failed.
    """
    result = sweep(grid, out, workers, data_root=data_root, progress=progress)
    if len(result.failed):
        raise FlSimError(f"The defence failed: {result.failed['error'].iloc[0]}")
    write_rows(out / ROWS, rows_of(out, {cell.name: cell.labels for cell in grid.cells}))
    return read_rows(out / ROWS)


def faults(path: Path) -> list[str]:
    """Return what is wrong with a file of rows that is to stand on the leaderboard, if anything.

    Looked at are columns, labels, seeds, version, the attacker's key, floors, and that numbers are
    where they can be. That they were measured as they say, a file cannot show.

    Raises:
        FlSimError: if it is no file of rows.
    """
    if not path.is_file():
        raise FlSimError(f"{path} does not exist; 'fl-sim leaderboard add' writes such a file.")
    rows = read_rows(path)
    missing = [name for name in (*NEEDED, *FLOORS, KEY) if name not in rows]
    missing += [LABEL + axis for axis in _LABELS if LABEL + axis not in rows]
    if missing or rows.empty:
        return [f"it has no column '{name}'." for name in missing] or ["it has no rows."]
    return [*_of_origin(rows), *_of_labels(rows), *_of_seeds(rows), *_of_values(rows)]


_LABELS = {"dataset": tuple(CASES), "model": (NETWORK,), "attack": (ATTACK,), "defense": ()}


def _of_origin(rows: "pd.DataFrame") -> Iterator[str]:
    for version in sorted(set(rows["identity_version"]) - {VERSION}):
        yield (
            f"it has rows of version {version} of identities, which is now {VERSION}; measure anew."
        )
    for name in ORIGIN:
        if name != "cpu_seconds" and (rows[name].astype(str) == "").any():
            yield f"a row does not say its {name}."
    if rows["data"].nunique() > 1:
        yield f"its rows are of different data files ({', '.join(sorted(set(rows['data'])))})."
    for cell, seed in rows[[CELL, "seed"]].drop_duplicates().itertuples(index=False):
        if not cell.endswith(f"-seed{seed}"):
            yield f"the cell {cell} stands beside the seed {seed}."


def _of_labels(rows: "pd.DataFrame") -> Iterator[str]:
    for axis, allowed in _LABELS.items():
        labels = sorted(set(rows[LABEL + axis]))
        if len(labels) != 1:
            yield f"it has {len(labels)} labels of {axis} ({', '.join(labels)}), but one is right."
        elif allowed and labels[0] not in allowed:
            yield f"its {axis} is '{labels[0]}', but the benchmark's is '{allowed[0]}'."
    embedded = rows[LABEL + "dataset"] == PHANTOMS
    if (embedded != (rows["data"] == "-")).any():
        yield "its data file and what it calls the data do not fit each other."


def _of_seeds(rows: "pd.DataFrame") -> Iterator[str]:
    for stage in ("upload", "release"):
        seeds = sorted(rows.loc[rows["stage"] == stage, "seed"])
        if seeds != list(SEEDS):
            yield f"its seeds at {stage} are {seeds}, but the benchmark's are {list(SEEDS)}."


def _of_values(rows: "pd.DataFrame") -> Iterator[str]:
    release = rows[rows["stage"] == "release"]
    for name in (*NEEDED, *FLOORS):
        if release[name].isna().any():
            yield f"{name} is missing at release."
    if not (rows.loc[rows["stage"] == "upload", KEY] > 0).all():
        yield "the attacker's key is missing: key_bytes at upload is not above 0."
    for name in map(str, rows):
        if rows[name].dtype.kind == "f":
            low, high = metric_of(name).range
            outside = rows[name].dropna()[lambda v, a=low, b=high: (v < a) | (v > b)]
            if len(outside):
                yield f"{name} is {outside.iloc[0]:g}, but lies between {low:g} and {high:g}."
    for leak in LEAKS:
        if (release[f"{leak} chosen"] > release[f"{leak} strongest"] + _SLACK).any():
            yield f"{leak} chosen is above {leak} strongest, which is the best of all."
