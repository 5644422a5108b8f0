"""Sweeps: every cell of a grid in parallel, resumable, with what cells share done once."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.run.claim import claimed
from experiments.run.standing import is_finished
from experiments.sweep.grid import Grid
from experiments.sweep.jobs import plan_jobs
from experiments.sweep.outcomes import all_noted
from experiments.sweep.schedule import Schedule
from experiments.sweep.workers import Here, Workers, ray_workers
from experiments.tables.summary import CELL, LABEL, compare, presented, summarise
from fl_sim.bars import chosen_progress
from fl_sim.data import data_root as find_data_root
from fl_sim.errors import FlSimError, printable
from fl_sim.files import briefly, sweep_temporaries, write_atomically
from fl_sim.metrics.vocabulary import columns_shown
from fl_sim.progress import Progress
from fl_sim.results import read_table

if TYPE_CHECKING:
    import pandas as pd


def sweep(
    grid: Grid | Mapping[str, Any] | str | Path,
    out: Path | str | None = None,
    workers: int | None = None,
    ray_address: str | None = None,
    data_root: Path | str | None = None,
    overrides: Iterable[str] = (),
    gpus_per_cell: float = 0.0,
    progress: Progress | bool | None = None,
) -> "SweepResult":
    """Run every cell of a grid.

    Cells run side by side, each in a process of its own on one thread. What has ended is not run
    again: a sweep that was killed continues with the same call, and a grid that has grown runs
    runs what is new; one that works in the same folder already is waited for. A cell that fails is
    noted and the others go on; the next call tries it again. The table is that of single runs, bit
    for bit except ``seconds``.

    Args:
        grid: a grid, its keys and values, the path of a grid file, or the name of a shipped one.
        out: folder of the sweep; by default ``runs/<grid>``.
        workers: cells at a time; by default one for each core. 0 runs them one after another in
            this process, for debuggers.
        ray_address: of a running Ray cluster whose machines share ``out`` and the data.
        data_root: folder of data files; by default ``FL_SIM_DATA``, then medmnist's own place.
        overrides: ``"key=value"`` for every cell, or ``"seeds=[0, 1]"``.
        gpus_per_cell: GPUs, or a fraction of one, for each cell; without, cells with ``device =
            "auto"`` compute on the CPU.
        progress: where to report, as in :func:`experiments.run.start.run`.

    Returns:
        The table over all cells, summaries, and what failed.

    Raises:
        FlSimError: if anything about the grid or its data is wrong; nothing has been run then.
    """
    # Its notes tell the time that is left, which is not that of equal steps.
    reports_to = chosen_progress(progress, remaining=False)
    if workers is not None and workers < 0:
        raise FlSimError(f"A sweep takes 0 workers or more, not {workers}.")
    if not isinstance(grid, Grid):
        device = "auto" if gpus_per_cell > 0 else "cpu"
        grid = Grid.of(grid, overrides=overrides, device=device)
    elif list(overrides):
        raise FlSimError("A grid that is built already takes no overrides; give them to Grid.of.")
    folder = (Path(out) if out is not None else Path("runs") / grid.name).absolute()
    root = find_data_root(Path(data_root) if data_root is not None else None)
    root = root.absolute() if root is not None else None
    result = SweepResult(grid, folder)
    jobs = plan_jobs(grid, folder, root)
    with claimed(folder, f"the sweep {grid.name}"):
        # In the cells' folders, a worker may be at work that has outlived its sweep by a moment.
        own = [*folder.glob(".*"), *(folder / "jobs").glob(".*")]
        sweep_temporaries(own, spare_living=True)
        write_atomically(folder / "grid.json", grid.as_json().encode())
        schedule = Schedule(jobs, folder)
        if schedule.open:
            began = time.time()
            pool: AbstractContextManager[Workers] = nullcontext(Here(folder, root))
            if workers != 0:
                pool = ray_workers(folder, root, workers, ray_address, gpus_per_cell)
            slots, ready = 1, began
            try:
                with pool as crew:
                    slots, ready = crew.slots, time.time()
                    schedule.work_off(crew, reports_to)
            finally:
                if schedule.done:
                    _note_session(result, schedule, slots, began, ready)
        result.write()
    return result


@dataclass(frozen=True, repr=False)
class SweepResult:
    """What a sweep gives back; of one that was interrupted, what there is of it.

    Args:
        grid: its cells.
        out: its folder.
    """

    grid: Grid
    out: Path

    @property
    def table(self) -> "pd.DataFrame":
        """The one long table over all finished cells.

        The columns of :data:`fl_sim.results.COLUMNS`, before them ``cell``, the folder's name, and
        the grid's labels as ``grid.<axis>``.
        """
        import pandas as pd

        parts = []
        for cell in self.grid.cells:
            folder = self.out / "cells" / cell.name
            if is_finished(folder):
                part = read_table(folder / "results.csv")
                labels = {LABEL + axis: label for axis, label in cell.labels.items()}
                for place, (column, text) in enumerate({CELL: cell.name, **labels}.items()):
                    part.insert(place, column, text)
                parts.append(part)
        if not parts:
            raise FlSimError(f"No cell of the sweep in {self.out} has ended yet.")
        return pd.concat(parts, ignore_index=True)

    @property
    def failed(self) -> "pd.DataFrame":
        """A row a failed cell: ``cell``, its labels, ``seed`` and ``error``."""
        import pandas as pd

        outcomes = {outcome.key: outcome.error for outcome in all_noted(self.out)}
        rows = [
            {CELL: c.name, **c.labels, "seed": c.scenario.seed, "error": outcomes[c.name]}
            for c in self.grid.cells
            if outcomes.get(c.name) is not None
        ]
        return pd.DataFrame(rows, columns=[CELL, *self.grid.axes, "seed", "error"])

    @property
    def seconds(self) -> "pd.DataFrame":
        """What each job took: ``job``, ``kind``, ``wall`` and process ``cpu`` seconds."""
        import pandas as pd

        rows = [asdict(outcome) for outcome in all_noted(self.out)]
        frame = pd.DataFrame(rows, columns=["key", "kind", "wall", "cpu", "error"])
        return frame.rename(columns={"key": "job"})

    def summary(
        self,
        rows: Sequence[str] | None = None,
        metrics: Sequence[str] | None = None,
        stages: Sequence[str] | None = None,
        **options: Any,
    ) -> "pd.DataFrame":
        """Means and intervals over seeds; see :func:`experiments.tables.summary.summarise`."""
        return summarise(self.table, rows, metrics, stages, **options)

    def compare(self, treatment: str, baseline: str, metric: str, **options: Any) -> "pd.DataFrame":
        """Paired comparison along an axis; see :func:`experiments.tables.summary.compare`."""
        return compare(self.table, treatment, baseline, metric, **options)

    def released(self) -> "pd.DataFrame":
        """A row a group: what is measured at release, as text for a screen, ``mean ±half``."""
        summary = self.summary(stages=["release"])
        summary = summary[summary["metric"].isin(columns_shown("sweep", summary["metric"]))]
        return presented(summary, short=True).drop(columns="stage")

    def report(self, path: Path | str | None = None) -> Path:
        """Write a report on all cells; see :meth:`experiments.run.result.Result.report`."""
        from experiments.report import write_report

        return write_report(self.out, self.out / "report.html" if path is None else path)

    def __repr__(self) -> str:
        cells, states = len(self.grid.cells), self._states()
        failed = f", {states.count('failed')} failed" if "failed" in states else ""
        return (
            f"SweepResult of {printable(self.grid.name)}: {states.count('ended')} of {cells} cells "
            f"ended{failed}, in {briefly(self.out)}"
        )

    def _repr_html_(self) -> str:
        from experiments.tables.console import headed
        from experiments.tables.notebook import note, page, table_html

        parts = []
        if "ended" in self._states():
            shown = headed(self.released())
            parts = [
                table_html(shown),
                note("At release: mean over n seeds, ± half of its 95 % confidence interval."),
            ]
        if len(failed := self.failed):
            parts += [note("Failed:"), table_html(failed)]
        return page(repr(self), *parts)

    def _states(self) -> list[str]:
        """Return ``"ended"`` or ``"failed"`` for each cell of which either is noted."""
        outcomes = {outcome.key: outcome.error for outcome in all_noted(self.out)}
        noted = [cell.name for cell in self.grid.cells if cell.name in outcomes]
        return ["ended" if outcomes[name] is None else "failed" for name in noted]

    def write(self) -> None:
        """Write table.csv and .parquet, summary.csv, .md and .tex, and failed.csv, where any did.

        Tables of an earlier state are removed where there is nothing to put in their place.
        """
        from experiments.tables.summary import to_csv, to_latex, to_markdown

        failed = self.failed
        texts: dict[str, str | None] = {"failed.csv": to_csv(failed) if len(failed) else None}
        names = ("table.csv", "table.parquet", "summary.csv", "summary.md", "summary.tex")
        if len(failed) == len(self.grid.cells):
            texts |= dict.fromkeys(names)
        else:
            table = self.table
            summary = summarise(table)
            shown = presented(summary)
            contents = (to_csv(table), None, to_csv(summary), to_markdown(shown), to_latex(shown))
            texts |= dict(zip(names, contents, strict=True))
            del texts["table.parquet"]
            write_parquet(self.out / "table.parquet", table)
        for name, text in texts.items():
            if text is None:
                (self.out / name).unlink(missing_ok=True)
            else:
                write_atomically(self.out / name, text.encode())


def _note_session(
    result: SweepResult, schedule: Schedule, slots: int, began: float, ready: float
) -> None:
    """Add to ``sweep.json`` how much of the time of how many cores was spent on jobs.

    ``efficiency`` is the jobs' wall time over that of all workers, with the start of Ray (which is
    ``start_seconds``) and its end; ``cpu_efficiency`` the same of the CPU time that jobs got, which
    is lower where other programs want the cores.
    """
    path = result.out / "sweep.json"
    try:
        sessions = list(json.loads(path.read_bytes())["sessions"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        sessions = []
    wall = time.time() - began
    busy = sum(outcome.wall for outcome in schedule.done)
    computing = sum(outcome.cpu for outcome in schedule.done)
    session = {
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "workers": slots,
        "jobs": len(schedule.done),
        "wall_seconds": wall,
        "start_seconds": ready - began,
        "job_seconds": busy,
        "job_cpu_seconds": computing,
        "efficiency": busy / (slots * wall),
        "cpu_efficiency": computing / (slots * wall),
    }
    content = {
        "grid": result.grid.name,
        "cells": len(result.grid.cells),
        "failed": len(result.failed),
        "sessions": [*sessions, session],
    }
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def write_parquet(path: Path, table: "pd.DataFrame") -> None:
    """Write a sweep's long table as Parquet, whole or not at all."""
    import io

    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_atomically(path, buffer.getvalue())
