"""Tables that put several scenarios side by side."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from experiments.report.cells import COUNTS, Block, Cell, Row, Table, plain_cell
from experiments.report.leaks import leak_cell, turned
from experiments.report.measured import CHANCE, Measurements, number, range_text
from experiments.report.runs import Group, Sources
from fl_sim.errors import FlSimError
from fl_sim.metrics.guessing import FLOOR, FLOOR_HIGH
from fl_sim.metrics.vocabulary import column_label, known, split_column
from fl_sim.statistics import MARGIN, Interval, PairedComparison
from fl_sim.words import STRONGEST

_GUESSES = (CHANCE, FLOOR, FLOOR_HIGH)
"""Floors that are lines in bars and have no columns."""

Column = tuple[str, Callable[[Measurements], Cell]]


def overview_table(groups: Sequence[Group], measured: Sequence[Measurements]) -> Table:
    """Return a row a scenario: what leaks before and after, and what the model is worth."""
    leaks = _main_leaks(measured)
    columns = _overview_columns(measured, leaks)
    lines = [
        [_count(len(group.runs)), *(make(own) for _, make in columns)]
        for group, own in zip(groups, measured, strict=True)
    ]
    names = ["Seeds", *(name for name, _ in columns)]
    used = [n for n in range(len(names)) if any(cells[n].text not in ("", "–") for cells in lines)]
    axes = list(groups[0].labels)
    families: dict[str, list[Row]] = {}
    for group, cells in zip(groups, lines, strict=True):
        family = group.said(axes[0]) if len(axes) > 1 else ""
        own = [group.said(axis) for axis in (axes[1:] if len(axes) > 1 else axes)]
        head = f"{group.number}  {', '.join(text for text in own if text) or group.label}"
        families.setdefault(family, []).append(Row(head, [cells[n] for n in used]))
    return Table(
        "overview",
        "All scenarios: leakage at best, and utility",
        "Scenario",
        [names[n] for n in used],
        [Block(name, members) for name, members in families.items()],
        note="Before: at upload, or for utility as the defence got it. Identified: the better of "
        "distance and correlation; the line in a bar is what the best of as many guesses "
        f"finds, or the SSIM floor.{turned(leaks)}",
    )


def _main_leaks(measured: Sequence[Measurements]) -> list[str]:
    return list(dict.fromkeys(metric for own in measured for metric in own.main_leaks))


def _overview_columns(measured: Sequence[Measurements], leaks: Sequence[str]) -> list[Column]:
    columns = [column for leak in leaks for column in _leak_columns(leak)]
    intact = COUNTS[0]
    name = f"{column_label(intact)} at release"
    columns.append((name, lambda m: plain_cell(m.get("release", intact), intact)))
    utility = next((m.utility for m in measured if m.utility), None)
    if utility:
        name = column_label(utility)
        columns += [
            (f"{name} before", lambda m: plain_cell(_before(m, utility), utility)),
            (f"{name} at release", lambda m: plain_cell(m.get("release", utility), utility)),
            (f"{name} from scratch", lambda m: plain_cell(m.floor, utility)),
        ]
    return columns


def _leak_columns(metric: str) -> list[Column]:
    """Return the columns of a metric of extractions: before, at release, and its floor."""
    name, floors = column_label(metric), [f for f in known(metric).floors if f not in _GUESSES]
    columns: list[Column] = [
        (f"{name} before", lambda m: leak_cell(m, m.stages[0], metric)),
        (f"{name} at release", lambda m: leak_cell(m, "release", metric)),
    ]
    if floors:
        columns.append((f"{name} floor", lambda m: plain_cell(m.get("release", floors[0]), metric)))
    return columns


def _before(measured: Measurements, metric: str) -> Interval | None:
    return measured.get("aggregate", metric) or measured.get("upload", metric)


def _count(count: int) -> Cell:
    return Cell(str(count), Interval(count, math.nan, math.nan, 1))


def failed_table(failed: Sequence[dict[str, str]]) -> Table:
    """Return the cells of sweeps that failed, and why: one at least."""
    columns = [name for name in failed[0] if name != "cell"]
    rows = [Row(cell.get("cell", ""), [Cell(cell.get(c, "")) for c in columns]) for cell in failed]
    texts = tuple(range(len(columns)))
    return Table("failed", "Cells that failed", "Cell", columns, [Block("", rows)], text=texts)


def paired_tables(sources: Sources, measured: Sequence[Measurements]) -> list[Table]:
    """Return what each defence changes on the same attacked models, tested over seeds.

    Returns:
        A table a metric; none without a scenario that has no defence, or with single seeds.
    """
    from experiments.tables.summary import compare

    defenses = {group.labels.get("defense") for group in sources.groups}
    several = all(len(group.runs) > 1 for group in sources.groups)
    if "none" not in defenses or len(defenses) < 2 or not several:
        return []
    attacked = sources.table[sources.table["attack"] != "none"]
    utilities = [own.utility for own in measured if own.utility]
    leaks = [f"{leak} {STRONGEST}" for leak in _main_leaks(measured)]
    tables = []
    for metric in (*leaks, *utilities[:1]):
        try:
            compared = compare(attacked, "defense", "none", metric)
        except FlSimError:  # cells that do not pair have no such comparison
            continue
        tables.append(_paired_table(compared, metric))
    return tables


def _paired_table(compared: Any, metric: str) -> Table:
    fields = {
        "baseline",
        "verdict",
        *(field.name for field in dataclasses.fields(PairedComparison)),
    }
    axes = [c for c in compared.columns if c not in fields and not str(c).startswith("p_")]
    blocks: dict[str, list[Row]] = {}
    for line in compared.to_dict("records"):
        shift = Interval(line["shift"], line["low"], line["high"], line["n"], line["missing"])
        sign = "+" if shift.mean > 0 else ""
        cells = [Cell(f"{sign}{number(shift.mean)}", shift, range_text(shift))]
        for value in (line["p_t_holm"], line["p_permutation_holm"], float(line["n"])):
            cells.append(Cell(number(value), Interval(value, math.nan, math.nan, 1)))
        cells.append(Cell(line["verdict"]))
        name = ", ".join(str(line[axis]) for axis in axes if axis != "defense")
        blocks.setdefault(name, []).append(Row(str(line["defense"]), cells))
    return Table(
        f"pairs-{split_column(metric)[0]}",
        f"{column_label(metric)}, at release: change against no defence",
        "Defence",
        ["Change", "p, paired t-test", "p, sign flips", "Pairs", "Verdict"],
        [Block(name, rows) for name, rows in blocks.items()],
        text=(4,),
        note="P-values are corrected for many tests (Holm). Verdict: better or worse where the "
        "test by sign flips says so at 5 %; equivalent where the 90 % interval of the change lies "
        f"within {MARGIN:g}; not told apart makes nothing equal.",
    )
