"""Several runs in one table: read from their folders, told apart by what differs."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.report.runs import IDENTIFIED, Sources
from experiments.report.sources import read_sources
from experiments.report.words import plain
from experiments.run.result import Result
from experiments.run.standing import FINISHED, TABLE, proven
from experiments.sweep.start import SweepResult
from experiments.tables.summary import CELL, LABEL, labels_of, summarise, wide
from fl_sim.errors import FlSimError, did_you_mean, printable, shown
from fl_sim.metrics.vocabulary import (
    column_label,
    column_order,
    describe,
    metric_of,
    names_of,
)
from fl_sim.results import FACTS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Source = Result | SweepResult | Path | str
_SWEPT = "table.csv"


def compare(runs: Source | Iterable[Source], *more: Source) -> "Runs":
    """Put runs side by side.

    Args:
        runs: results of :func:`experiments.run.run` or :func:`experiments.sweep.sweep`, folders,
            or patterns of folders; two runs at least.
        more: of them.

    Raises:
        FlSimError: see :func:`load_runs`; or if it is one run only.
    """
    found = load_runs([*_listed(runs), *more])
    if len(found) < 2:
        raise FlSimError("There is one run to compare, and nothing to compare it with; give two.")
    return found


def load_runs(source: Source | Iterable[Source]) -> "Runs":
    """Read finished runs from their folders; nothing that the files name is imported or run.

    Args:
        source: a folder of a run or of a sweep, or one that holds such folders; a pattern, such as
            ``"runs/*"``; a result; or a list of these. Of a pattern's folders, and of those that a
            folder holds, the ones without a finished run are left out, and named in
            :attr:`Runs.left_out`.

    Raises:
        FlSimError: if a pattern matches nothing, a folder has no finished run, or one is damaged.
    """
    folders: dict[Path, None] = {}
    left_out: list[Path] = []
    for one in _listed(source):
        found, without = _folders(one)
        folders |= dict.fromkeys(found)
        left_out += without
    if not folders:
        raise FlSimError("There is no run to load; give a folder, a pattern or a result.")
    return Runs(read_sources(folders), tuple(left_out))


@dataclass(frozen=True, repr=False)
class Runs:
    """Finished runs, side by side.

    ``len(runs)`` is their number; a loop goes through them as
    :class:`experiments.run.result.Result`, but for cells of a sweep of which only the sweep's table
    is there.

    Args:
        sources: what was read.
        left_out: folders that a pattern matched and that hold no finished run.
    """

    sources: Sources
    left_out: tuple[Path, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.sources.runs)

    def __iter__(self) -> Iterator[Result]:
        folders = (run.folder for run in self.sources.runs)
        return (Result(None, folder) for folder in folders if folder is not None)

    @property
    def table(self) -> "pd.DataFrame":
        """The long table over all runs, a row a number.

        The columns of :data:`fl_sim.results.COLUMNS`, before them ``cell``, the run's folder, and
        what tells the runs apart as ``grid.<name>``.
        """
        table = self.sources.table.copy()
        for name in self._axes:
            # Names as scenarios have them; a sweep's own labels stay.
            if name in FACTS:
                labelled = [run.name for run in self.sources.runs if name in run.labels]
                own = table[CELL].isin(labelled) | (table[LABEL + name] != table[name].map(plain))
                table[LABEL + name] = table[LABEL + name].where(own, table[name])
        return table

    def summary(self) -> "pd.DataFrame":
        """A row a run and stage: what tells it from the others, then a column a metric.

        Of a federation it is the last round that was measured; single attackers are left out.
        ``identified`` is the better of identification by distance and by correlation. The last
        columns are what all runs share, and ``run``, the folder.
        """
        table = self.table
        frame = wide(table)
        first = [*self._axes, "seed", "stage"]
        metrics = [str(column) for column in frame if column not in (CELL, *first)]
        metrics.sort(key=column_order)
        shared = [name for name in FACTS if name not in first]
        facts = table.drop_duplicates(CELL).set_index(CELL)
        frame = frame.assign(**{name: frame[CELL].map(facts[name]) for name in shared})
        return frame[[*first, *metrics, *shared, CELL]].rename(columns={CELL: "run"})

    def intervals(
        self,
        rows: Sequence[str] | None = None,
        metrics: Sequence[str] | None = None,
        stages: Sequence[str] | None = None,
        **options: Any,
    ) -> "pd.DataFrame":
        """Means and intervals over seeds; see :func:`experiments.tables.summary.summarise`."""
        return summarise(self.table, rows, metrics, stages, **options)

    def plot(
        self,
        metric: str = f"{IDENTIFIED} strongest",
        by: str | None = None,
        stage: str = "release",
        utility: str | None = None,
        axes: "Axes | None" = None,
    ) -> "Axes":
        """Draw a leak against what the model is worth, a point a run; down and right is better.

        Where lower values leak more, the axis of the leak is turned round. Dashed lines are floors:
        what an attacker reaches without the model, and what the same network is worth when it is
        trained on the held-out images alone.

        Args:
            metric: a column of :meth:`summary`, for example ``"ssim strongest"``.
            by: a column of :meth:`summary` that gives points their colour; by default all that
                tells runs apart.
            stage: where both are measured.
            utility: a column of :meth:`summary`; by default the main one that there is.
            axes: to draw in; by default those of a new figure.

        Raises:
            FlSimError: if a name is unknown, or no run has both numbers at that stage.
        """
        frame = self.summary()
        _known(stage, frame["stage"].unique(), "stage")
        frame = frame[frame["stage"] == stage]
        if utility is None:
            worths = names_of("utility")
            utility = next((name for name in worths if name in frame), worths[0])
        for name in (metric, utility):
            _known(name, [str(c) for c in frame if frame[c].dtype.kind == "f"], "metric")
        points = frame.dropna(subset=[metric, utility])
        if points.empty:
            raise FlSimError(f"No run has both '{metric}' and '{utility}' at {stage}.")
        if by is not None:
            _known(by, [str(column) for column in frame], "column")
        names = _names(points, self._axes if by is None else [by])
        return _drawn(points.assign(**{_NAME: names}), metric, utility, axes)

    def __repr__(self) -> str:
        told = f", told apart by {', '.join(self._axes)}" if self._axes else ""
        seeds = len({run.seed for run in self.sources.runs})
        runs, many = len(self), "" if seeds == 1 else "s"
        text = f"{runs} run{'' if runs == 1 else 's'}, {seeds} seed{many}{told}"
        if self.left_out:
            names = ", ".join(printable(str(folder)) for folder in self.left_out)
            text += f"; left out, without a finished run: {names}"
        return f"Runs: {text}"

    def _repr_html_(self) -> str:
        from experiments.tables.console import headed, shown_columns
        from experiments.tables.notebook import note, page, table_html

        frame = self.summary()
        if "release" in set(frame["stage"]):
            frame = frame[frame["stage"] == "release"]
        chosen = [*self._axes, "seed", "stage", *shown_columns("run", map(str, frame))]
        return page(
            repr(self),
            table_html(headed(frame[chosen])),
            note("summary() has every stage and metric."),
        )

    @property
    def _axes(self) -> list[str]:
        return labels_of(self.sources.table)


_NAME = "name"


def _names(points: "pd.DataFrame", columns: Sequence[str]) -> list[str]:
    """Return what each point is called."""
    if not columns:
        return [str(run) for run in points["run"]]
    return [", ".join(map(str, row)) for row in points[[*columns]].itertuples(index=False)]


def _drawn(points: "pd.DataFrame", metric: str, utility: str, axes: "Axes | None") -> "Axes":
    if axes is None:
        import matplotlib.pyplot as plt

        _, axes = plt.subplots(layout="constrained")
    for name, group in points.groupby(_NAME, sort=False):
        axes.scatter(group[utility], group[metric], label=printable(str(name)))
    leak, worth = metric_of(metric), metric_of(utility)
    for draw, floors, style in (
        (axes.axhline, leak.floors, "--"),
        (axes.axvline, worth.floors, ":"),
    ):
        column = next((floor for floor in floors if floor in points), None)
        if column is None:
            continue
        said = _floor_name(column)
        floor = points[column].dropna()
        # Runs of other images or seeds have other floors: the lowest and the highest.
        for value in sorted({float(f(floor)) for f in (min, max)} if len(floor) else ()):
            draw(value, color="0.5", linestyle=style, linewidth=1, label=said)
            said = ""
    axes.set_xlabel(f"{column_label(utility)} at {points['stage'].iloc[0]}")
    axes.set_ylabel(column_label(metric))
    if leak.lower_leaks:
        axes.set_ylabel(f"{column_label(metric)} ({leak.direction})")
        axes.invert_yaxis()
    axes.legend(fontsize="small")
    return axes


def _floor_name(floor: str) -> str:
    found = describe(floor)
    return "trained from scratch" if found.form == "_floor_scratch" else found.metric.title.lower()


def _listed(source: Source | Iterable[Source]) -> list[Source]:
    if isinstance(source, Iterable) and not isinstance(source, str):
        return list(source)
    return [source]


def _folders(source: Source) -> tuple[list[Path], list[Path]]:
    """Return the folders of runs and sweeps that a source means, and those left out."""
    if isinstance(source, Result | SweepResult):
        return [source.out], []
    if not isinstance(source, str | Path):
        raise FlSimError(f"A run is given by its result, folder or pattern, not {shown(source)}.")
    path = Path(os.path.expanduser(source))
    name = printable(str(source))
    if path.is_dir():
        if _holds_run(path):
            _check_finished(path)
            return [path], []
        within = sorted(path.iterdir())
    elif glob.has_magic(str(source)):
        within = sorted(map(Path, glob.glob(str(path))))
        if not within:
            raise FlSimError(f"The pattern {name} matches nothing.")
    else:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings)
        near = printable(hint) if "Did you mean" in hint else ""
        raise FlSimError(f"The folder {name} does not exist.{near}")
    folders = [folder for folder in within if folder.is_dir()]
    finished = [folder for folder in folders if _is_done(folder)]
    if not finished:
        raise FlSimError(
            f"There is no finished run in {name}; fl-sim run and fl-sim sweep make some."
        )
    return finished, [folder for folder in folders if folder not in finished]


def _holds_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (TABLE, _SWEPT, "scenario.json", "grid.json"))


def _is_done(folder: Path) -> bool:
    """Whether a folder is a sweep's or a finished run's; raises where it says so and is damaged."""
    return (folder / _SWEPT).is_file() or proven(folder, FINISHED, whole=True) is not None


def _check_finished(folder: Path) -> None:
    if not _is_done(folder):
        raise FlSimError(
            f"The run in {printable(str(folder))} has not come to its end; give the same command "
            f"or call again, and it continues."
        )


def _known(name: str, valid: Iterable[str], kind: str) -> None:
    names = [str(one) for one in valid]
    if name not in names:
        raise FlSimError(f"The runs have no {kind} '{printable(name)}'.{did_you_mean(name, names)}")
