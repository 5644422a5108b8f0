"""Where a study's numbers come from: what stands in ``<name>.json`` beside its table."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.tables.summary import CELL

if TYPE_CHECKING:
    import pandas as pd

Values = dict[str, Any]

_LISTS = ("scenarios", "data", "versions", "machines")
_SHARED = "shared_cpu_seconds"


def provenance(sweeps: Mapping[Path, Iterable[str]]) -> Values:
    """Return where the numbers of sweeps come from, of those cells that have ended.

    Args:
        sweeps: names of cells by folder of the sweep.

    Returns:
        ``cells`` and ``seeds``; ``scenarios``, the first cell of each sweep as run; ``data``, the
        files with their checksums and whether they are the official ones; ``versions`` and
        ``machines``; ``cpu_seconds``; and ``shared_cpu_seconds``, of work that cells share, by job.
    """
    runs: list[Values] = []
    scenarios: list[Values] = []
    jobs: dict[str, Values] = {}
    for folder, cells in sweeps.items():
        known = [
            json.loads((folder / "cells" / cell / "scenario.json").read_text(encoding="utf-8"))
            for cell in cells
            if (folder / "cells" / cell / "finished").exists()
        ]
        for path in (folder / "jobs").glob("*.json"):
            jobs[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        scenarios += [known[0]["scenario"]] if known else []
        runs += known
    shared = {key: round(job["cpu"], 1) for key, job in jobs.items() if job["kind"] != "cell"}
    return {
        "cells": len(runs),
        "seeds": sorted({run["scenario"]["seed"] for run in runs}),
        "scenarios": scenarios,
        "data": _different(file for run in runs for file in run["data"]),
        "versions": _different(run["versions"] for run in runs),
        "machines": _different(run["machine"] for run in runs),
        "cpu_seconds": round(sum(job["cpu"] for job in jobs.values())),
        _SHARED: dict(sorted(shared.items())),
    }


def joined(kept: Values, new: Values) -> Values:
    """Return the provenance of kept and of new numbers: what either has, once."""
    parts = {name: _different([*kept.get(name, []), *new.get(name, [])]) for name in _LISTS}
    shared = {**kept.get(_SHARED, {}), **new.get(_SHARED, {})}
    return {**new, **parts, _SHARED: dict(sorted(shared.items()))}


def counted(rows: "pd.DataFrame", origin: Values) -> Values:
    """Return what the rows themselves say of their provenance.

    Returns:
        ``rows``, their number; ``cells``, ``seeds``; and ``cpu_seconds``, with what cells shared.
    """
    import pandas as pd

    cells = rows.drop_duplicates(CELL)
    own = pd.to_numeric(cells["cpu_seconds"].replace("", 0)).sum()
    return {
        "rows": len(rows),
        "cells": len(cells),
        "seeds": sorted(int(seed) for seed in cells["seed"].unique()),
        "cpu_seconds": round(float(own) + sum(origin.get(_SHARED, {}).values())),
    }


def read_origin(path: Path) -> Values:
    """Return the provenance in a file; of a study that has none, nothing."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def settings_changed(overrides: Sequence[str]) -> list[str]:
    """Return the changes of settings among ``"key=value"``, without the choice of seeds."""
    return [text for text in overrides if text.partition("=")[0].strip() != "seeds"]


def _different(values: Iterable[Values]) -> list[Values]:
    """Return values without repetitions, in their order."""
    return list({json.dumps(value, sort_keys=True): value for value in values}.values())
