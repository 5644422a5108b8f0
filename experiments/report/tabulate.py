"""Tables of a report: for the page, with bars beside numbers, and as frames for files."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from experiments.report.measured import (
    CHANCE,
    Measurements,
    Words,
    count_text,
    number,
    range_text,
)
from experiments.report.sources import Group
from fl_sim.metrics.payload import COUNTED
from fl_sim.metrics.vocabulary import LOWER_LEAKS, METRICS, column_label, describe, known, names_of
from fl_sim.statistics import Interval, mean_interval
from fl_sim.words import STRONGEST

if TYPE_CHECKING:
    import pandas as pd

BY_PLACE = "carrier_error["
_COUNTS = tuple(COUNTED.values())
_UTILITY_FORMS = (
    "_floor_scratch",
    "_before_embedding",
    "_trained_on_stolen",
    "_trained_on_originals",
)
"""Of a utility metric: what the table of utility shows beside the metric itself."""


@dataclass(frozen=True)
class Cell:
    """One number, or one text.

    Args:
        text: for people.
        interval: the number and the ends of its interval; ``None`` for a text.
        range: the ends for people; empty where there are none.
        bar: length of a bar in [0, 1], where it has one.
        mark: where on the bar its floor stands, in [0, 1].
        dot: place on a track in [0, 1], instead of a bar.
        stack: lengths in [0, 1] of intact, damaged and lost, instead of a bar.
    """

    text: str
    interval: Interval | None = None
    range: str = ""
    bar: float | None = None
    mark: float | None = None
    dot: float | None = None
    stack: tuple[float, ...] = ()

    @property
    def value(self) -> str:
        """The number, exactly; empty for a text."""
        return "" if self.interval is None else repr(self.interval.mean)


@dataclass(frozen=True)
class Row:
    """A row: its name and its cells. ``strong`` ones are what a reader looks for."""

    head: str
    cells: list[Cell]
    strong: bool = False


@dataclass(frozen=True)
class Block:
    """Rows that belong together, under a name where they have one."""

    name: str
    rows: list[Row]


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        name: of its files.
        caption: what it shows.
        corner: name of the first column.
        columns: names of the others.
        blocks: rows.
        note: below it.
        tall: whether it scrolls in a box of its own.
    """

    name: str
    caption: str
    corner: str
    columns: list[str]
    blocks: list[Block]
    note: str = ""
    tall: bool = False
    text: tuple[int, ...] = field(default=())
    """Places of columns of text, which stand to the left."""


def leakage_table(measured: Measurements, words: Words) -> Table | None:
    """Return leakage by stage, raw and at best, beside its floors."""
    blocks = []
    for stage in measured.stages:
        kept = [e for e in ("raw", STRONGEST) if measured.get(stage, "ssim", e)]
        rows = [_leak_row(measured, stage, e, words, strong=e == STRONGEST) for e in kept]
        if rows:
            blocks.append(Block(words.stage(stage).capitalize(), rows))
    if not blocks:
        return None
    columns = [column_label(metric) for metric in measured.leaks]
    blocks.append(Block("Floors: what an attacker has without the model", _floor_rows(measured)))
    return Table(
        "leakage", "Leakage by stage, raw and after the best restoration, with its floors",
        "Extraction", columns, blocks,
        note="Best: the strongest of all restorations, metric by metric. A line in a bar is the "
        "floor: the mean of public images for SSIM; for identification one blind guess, and for "
        f"the best extraction the best of as many guesses.{_turned(measured.leaks)}",
    )  # fmt: skip


def extractions_table(measured: Measurements, words: Words) -> Table | None:
    """Return leakage by stage and every extraction."""
    blocks = []
    for stage in measured.stages:
        names = [e for e in measured.extractions(stage) if e != STRONGEST]
        if names:
            rows = [_leak_row(measured, stage, e, words) for e in names]
            blocks.append(Block(words.stage(stage).capitalize(), rows))
    columns = [column_label(metric) for metric in measured.leaks]
    if not blocks:
        return None
    return Table("extractions", "Leakage by stage and extraction", "Extraction", columns, blocks)


def hospitals_table(measured: Measurements, words: Words) -> Table | None:
    """Return leakage at best of each malicious hospital, where there are several."""
    rows = []
    for stage in measured.hospitals:
        if measured.get(stage, "ssim", STRONGEST):
            name, _, hospital = stage.partition(":")
            row = _leak_row(measured, stage, STRONGEST, words)
            rows.append((words.stage(name), Row(f"hospital {hospital}", row.cells)))
    if not rows:
        return None
    blocks = [
        Block(f"{stage.capitalize()}, at best", [r for s, r in rows if s == stage])
        for stage in dict.fromkeys(s for s, _ in rows)
    ]
    columns = [column_label(metric) for metric in measured.leaks]
    return Table("hospitals", "Leakage by malicious hospital", "Hospital", columns, blocks)


def payload_table(measured: Measurements, words: Words) -> Table | None:
    """Return what arrived of a payload, by stage."""
    stages = [s for s in measured.stages if measured.get(s, _COUNTS[0])]
    if not stages:
        return None
    others = [m for m in names_of("payload") if m not in _COUNTS]
    errors = [m for m in others if any(measured.get(s, m) for s in stages)]
    rows = []
    for stage in stages:
        counts = [measured.mean(stage, metric) for metric in _COUNTS]
        total = sum(counts) or 1.0
        shares = [count / total for count in counts]
        # A table from elsewhere may hold counts that are none: a page cannot draw those.
        drawn = all(0 <= share <= 1 for share in shares)
        survival = Cell("", stack=tuple(shares) if drawn else ())
        cells = [survival, *(_plain(measured.get(stage, metric), metric) for metric in _COUNTS)]
        for metric in errors:
            found = measured.get(stage, metric)
            bits = known(metric).format == "percent"
            cells.append(_barred(found, 0.5, metric) if bits else _plain(found, metric))
        rows.append(Row(words.stage(stage).capitalize(), cells))
    columns = ["Images", *(column_label(m) for m in (*_COUNTS, *errors))]
    wrong = "bit_error_rate" in errors
    return Table(
        "payload", "What arrived of the hidden payload", "Stage", columns, [Block("", rows)],
        note="Bars of images: intact, damaged (pale), lost (grey)."
        + (" Half of the bits are wrong where nothing arrived at all." if wrong else ""),
        text=(0,),
    )  # fmt: skip


def sent_table(measured: Measurements) -> Table | None:
    """Return what the attackers sent: how much, in how little."""
    rows = [
        Row(column_label(metric), [_plain(found, metric)])
        for metric in names_of("sent")
        if (found := measured.get("upload", metric))
    ]
    if not rows:
        return None
    return Table("sent", "What was hidden", "Quantity", ["Value"], [Block("", rows)])


def places_table(measured: Measurements, words: Words) -> Table | None:
    """Return how wrong the carrier is in each tensor, by stage."""
    stages = [
        s for s in measured.stages if any(m.startswith(BY_PLACE) for m in measured.metrics(s))
    ]
    metrics = [m for s in stages for m in measured.metrics(s) if m.startswith(BY_PLACE)]
    metrics = list(dict.fromkeys(metrics))
    if not metrics:
        return None
    bits = any(measured.get(stage, "bit_error_rate") for stage in stages)
    rows = [
        Row(
            metric[len(BY_PLACE) : -1],
            [_barred(measured.get(stage, metric), 0.5 if bits else None) for stage in stages],
        )
        for metric in metrics
    ]
    columns = [words.stage(stage).capitalize() for stage in stages]
    what = "Share of wrong bits" if bits else "Relative error of values"
    note = "The line marks 0.5: nothing but chance is left." if bits else ""
    return Table(
        "places", f"{what} of the payload by tensor", "Tensor", columns, [Block("", rows)], note,
        tall=len(rows) > 24,
    )  # fmt: skip


def utility_table(measured: Measurements, words: Words) -> Table | None:
    """Return what the model is worth by stage, beside what it is worth without the training."""
    metrics = measured.utilities
    if not metrics:
        return None
    main = measured.utility
    rows = []

    def add(name: str, find: Callable[[str], Interval | None], strong: bool = False) -> None:
        found = [find(metric) for metric in metrics]
        if not any(found):
            return
        floors = [measured.get("release", f"{metric}_floor_scratch") for metric in metrics]
        cells = [
            _barred(one, floor.mean if floor else None, metric)
            if metric == main and known(metric).range == (0.0, 1.0)
            else _plain(one, metric)
            for metric, one, floor in zip(metrics, found, floors, strict=True)
        ]
        rows.append(Row(name, cells, strong))

    add("Before embedding", lambda m: measured.get("upload", f"{m}_before_embedding"))
    for stage in measured.stages:
        add(
            words.stage(stage).capitalize(), lambda m, s=stage: measured.get(s, m),  # type: ignore[misc]
            strong=stage == "release",
        )  # fmt: skip
    add("Floor: from scratch on held-out images",
        lambda m: measured.get("release", f"{m}_floor_scratch"))  # fmt: skip
    for stage in measured.stages:
        add(f"Trained on what was stolen, {words.stage(stage)}",
            lambda m, s=stage: measured.get(s, f"{m}_trained_on_stolen"))  # type: ignore[misc]  # fmt: skip
    add("Trained on the true images",
        lambda m: measured.get("upload", f"{m}_trained_on_originals"))  # fmt: skip
    columns = [column_label(metric) for metric in metrics]
    return Table(
        "utility", "What the model is worth on test images", "Model", columns, [Block("", rows)]
    )


def cost_table(measured: Measurements, words: Words, federated: bool) -> Table | None:
    """Return what it cost: time, images, bytes."""
    rows = []
    for stage in measured.stages:
        for metric in (*names_of("cost"), *names_of("file")):
            found = measured.get(stage, metric)
            if found is None:
                continue
            cells = [_plain(found, metric)]
            if federated:
                total = measured.total(stage, metric) if metric == "seconds" else None
                cells.append(_plain(total, metric))
            rows.append((words.stage(stage).capitalize(), Row(column_label(metric), cells)))
    if not rows:
        return None
    blocks = [Block(s, [r for n, r in rows if n == s]) for s in dict.fromkeys(n for n, _ in rows)]
    columns = ["Last round", "All rounds"] if federated else ["Value"]
    note = "Seconds of the upload are a hospital's mean." if federated else ""
    return Table("cost", "What it cost", "Quantity", columns, blocks, note)


def layers_table(group: Group) -> Table | None:
    """Return how much the defence changed each layer in its last round, in forward order."""
    logs = [run.defense_log[-1] for run in group.runs if run.defense_log]
    changes = [_numbers(log.get("relative_change")) for log in logs]
    rates = [_numbers(log.get("learning_rates")) for log in logs]
    names = list(dict.fromkeys(name for change in changes for name in change))
    if not names:
        return None
    intervals = {n: mean_interval([c[n] for c in changes if n in c]) for n in names}
    known = [i.mean for i in intervals.values() if math.isfinite(i.mean) and i.mean > 0]
    low, high = _decades(known)
    rows = []
    for name in names:
        mean = intervals[name].mean
        place = _on_track(mean, low, high) if math.isfinite(mean) and mean > 0 else None
        cells = [Cell(number(mean, 4), intervals[name], range_text(intervals[name]), dot=place)]
        if any(rates):
            own = [rate[name] for rate in rates if name in rate]
            cells.append(_plain(mean_interval(own) if own else None, said="{:.2g}".format))
        rows.append(Row(name, cells))
    note = ""
    if known:
        note = f"Tracks are logarithmic, from {_power(low)} to {_power(high)}."
    columns = ["Relative change of the weights", *(["Learning rate"] if any(rates) else [])]
    return Table(
        "layers", "What the defence changed, layer by layer in forward order", "Layer", columns,
        [Block("", rows)], note, tall=len(rows) > 24,
    )  # fmt: skip


def epochs_table(group: Group) -> Table | None:
    """Return the defence's own log: loss and utility by epoch, of the first seed's last round."""
    log = group.first.defense_log
    epochs = log[-1].get("epochs") if log else None
    entries = [_numbers(e) for e in epochs] if isinstance(epochs, list) else []
    columns = list(dict.fromkeys(key for entry in entries for key in entry))
    if not columns:
        return None
    rows = [
        Row(str(n), [_plain(_single(entry.get(column))) for column in columns])
        for n, entry in enumerate(entries, start=1)
    ]
    return Table(
        "epochs", "The defence as it went", "Epoch", [column_label(c) for c in columns],
        [Block("", rows)], tall=len(rows) > 24,
    )  # fmt: skip


def other_table(measured: Measurements, words: Words) -> Table | None:
    """Return all that was measured and stands in no other table."""
    rows = []
    for stage in measured.stages:
        for metric in measured.metrics(stage):
            found = measured.get(stage, metric)
            if found and not _has_place(metric):
                head = f"{words.stage(stage).capitalize()}: {column_label(metric)}"
                rows.append(Row(head, [_plain(found, metric)]))
    if not rows:
        return None
    return Table(
        "other", "Further measurements", "Quantity", ["Value"], [Block("", rows)],
        tall=len(rows) > 24,
    )  # fmt: skip


def _has_place(name: str) -> bool:
    """Whether a number that belongs to no extraction stands in one of the tables above."""
    found = describe(name)
    if not found.declared:
        return False
    if found.metric.family == "leakage":
        return any(name in entry.component.floors for entry in METRICS.entries())
    if found.metric.family == "utility" and not found.part:
        return found.whole or found.form in _UTILITY_FORMS
    shown = found.metric.family in ("payload", "sent", "cost", "file")
    return shown and (found.whole or name.startswith(BY_PLACE))


def overview_table(groups: Sequence[Group], measured: Sequence[Measurements]) -> Table:
    """Return a row a scenario: what leaks before and after, and what the model is worth."""
    utility = next((m.utility for m in measured if m.utility), None)
    columns: list[tuple[str, Callable[[Measurements], Cell]]] = [
        ("Seeds", lambda m: Cell("")),
    ]
    leaks = dict.fromkeys(metric for m in measured for metric in m.main_leaks)
    for leak in leaks:
        columns += _leak_columns(leak)
    intact = _COUNTS[0]
    columns.append(
        (f"{column_label(intact)} at release", lambda m: _plain(m.get("release", intact), intact))
    )
    if utility:
        name = column_label(utility)
        columns += [
            (f"{name} before", lambda m: _plain(_before(m, utility), utility)),
            (f"{name} at release", lambda m: _plain(m.get("release", utility), utility)),
            (f"{name} from scratch", lambda m: _plain(m.floor, utility)),
        ]
    rows = []
    for group, numbers in zip(groups, measured, strict=True):
        cells = [make(numbers) for _, make in columns]
        cells[0] = Cell(str(len(group.runs)), Interval(len(group.runs), math.nan, math.nan, 1))
        rows.append((group, cells))
    used = [
        n for n in range(len(columns)) if any(cells[n].text not in ("", "–") for _, cells in rows)
    ]
    axes = list(groups[0].labels)
    families: dict[str, list[Row]] = {}
    for group, cells in rows:
        family = group.said(axes[0]) if len(axes) > 1 else ""
        own = [group.said(axis) for axis in (axes[1:] if len(axes) > 1 else axes)]
        head = f"{group.number}  {', '.join(text for text in own if text) or group.label}"
        families.setdefault(family, []).append(Row(head, [cells[n] for n in used]))
    blocks = [Block(name, members) for name, members in families.items()]
    return Table(
        "overview", "All scenarios: leakage at best, and utility", "Scenario",
        [columns[n][0] for n in used], blocks,
        note="Before: at upload, or for utility as the defence got it. Identified: the better of "
        "distance and correlation; the line in a bar is what the best of as many blind guesses "
        f"finds, or the SSIM floor.{_turned(leaks)}",
    )  # fmt: skip


def _leak_columns(metric: str) -> list[tuple[str, Callable[[Measurements], Cell]]]:
    """Return the columns of a metric of extractions: before, at release, and its floor."""
    name, floors = column_label(metric), [f for f in known(metric).floors if f != CHANCE]
    columns: list[tuple[str, Callable[[Measurements], Cell]]] = [
        (f"{name} before", lambda m: _leak_cell(m, m.stages[0], metric)),
        (f"{name} at release", lambda m: _leak_cell(m, "release", metric)),
    ]
    if floors:
        columns.append((f"{name} floor", lambda m: _plain(m.get("release", floors[0]), metric)))
    return columns


def _turned(metrics: Iterable[str]) -> str:
    """Return a sentence on the metrics of which lower values leak more; empty for none."""
    names = [column_label(metric) for metric in metrics if known(metric).lower_leaks]
    return f" {', '.join(names)}: {LOWER_LEAKS}." if names else ""


def frame(tables: Iterable[tuple[dict[str, str], Table]], exact: bool) -> "pd.DataFrame":
    """Return tables of the same kind as one frame, a row a row.

    Args:
        tables: each with the labels of its group.
        exact: numbers, with the ends of intervals as columns of their own, rather than texts.
    """
    import pandas as pd

    lines = []
    for labels, table in tables:
        for block in table.blocks:
            for row in block.rows:
                line: dict[str, object] = dict(labels)
                if any(b.name for b in table.blocks):
                    line["group"] = block.name
                line[table.corner] = row.head
                for column, cell in zip(table.columns, row.cells, strict=True):
                    if cell.stack:
                        continue
                    line |= _columns(column, cell) if exact else {column: _said(cell)}
                lines.append(line)
    result = pd.DataFrame(lines)
    if exact:
        empty = [c for c in result if str(c).endswith((" low", " high")) and result[c].isna().all()]
        return result.drop(columns=empty)
    return result.fillna("")


def _columns(column: str, cell: Cell) -> dict[str, object]:
    interval = cell.interval
    if interval is None:
        text = cell.text if cell.text not in ("", "–") else None
        return {column: text, f"{column} low": None, f"{column} high": None}
    return {column: interval.mean, f"{column} low": interval.low, f"{column} high": interval.high}


def _said(cell: Cell) -> str:
    return f"{cell.text} ({cell.range})" if cell.range else cell.text


def _leak_row(
    measured: Measurements, stage: str, extraction: str, words: Words, strong: bool = False
) -> Row:
    cells = []
    for metric in measured.leaks:
        found = measured.get(stage, metric, extraction)
        floor = measured.floor_of(stage, metric, extraction)
        cells.append(_barred(found, floor, metric) if _has_bar(metric) else _plain(found, metric))
    return Row(words.extraction(extraction).capitalize(), cells, strong)


def _floor_rows(measured: Measurements) -> list[Row]:
    """Return a row a kind of floor; metrics that have it stand side by side."""
    kinds: dict[str, dict[str, Interval]] = {}
    for metric in measured.leaks:
        for floor in known(metric).floors:
            found = next((i for s in measured.stages if (i := measured.get(s, floor))), None)
            if found:
                kinds.setdefault(known(floor).title, {})[metric] = found
    rows = [
        Row(title, [_plain(found[m], m) if m in found else Cell("") for m in measured.leaks])
        for title, found in kinds.items()
    ]
    return rows + _best_guess_rows(measured)


def _best_guess_rows(measured: Measurements) -> list[Row]:
    """Return what the best of as many guesses finds as there are extractions, where several are."""
    stage = measured.stages[-1]
    guessing = measured.guessing(stage, "")
    if guessing is None or guessing.tries < 2:
        return []
    luck = _plain(_single(guessing.expected))
    cells = [luck if CHANCE in known(m).floors else Cell("") for m in measured.leaks]
    return [Row(f"Best of {guessing.tries} blind guesses", cells)]


def _leak_cell(measured: Measurements, stage: str, metric: str) -> Cell:
    found = measured.get(stage, metric, STRONGEST)
    if not _has_bar(metric):
        return _plain(found, metric)
    return _barred(found, measured.floor_of(stage, metric), metric)


def _has_bar(metric: str) -> bool:
    """Whether a metric of extractions is drawn as a bar from 0 to 1, with its floor."""
    return bool(known(metric).floors) and known(metric).range[1] == 1.0


def _before(measured: Measurements, metric: str) -> Interval | None:
    return measured.get("aggregate", metric) or measured.get("upload", metric)


def _plain(
    found: Interval | None, metric: str = "", said: Callable[[float], str] | None = None
) -> Cell:
    if found is None:
        return Cell("–")
    said = said or _format_of(metric)
    return Cell(said(found.mean), found, range_text(found, said))


def _format_of(metric: str) -> Callable[[float], str]:
    """Return how a metric's numbers are written."""
    about = known(metric)
    if about.format == "bytes":
        return _size
    if about.format == "count":
        return count_text
    return lambda value: number(value, about.digits)


def _size(count: float) -> str:
    """Return bytes for people, in powers of a thousand."""
    if not math.isfinite(count):
        return number(count)
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


def _barred(found: Interval | None, mark: float | None, metric: str = "") -> Cell:
    if found is None or math.isnan(found.mean):
        return _plain(found, metric)
    said = _format_of(metric)
    known_mark = None if mark is None or math.isnan(mark) else min(1.0, max(0.0, mark))
    bar = min(1.0, max(0.0, found.mean))
    return Cell(said(found.mean), found, range_text(found, said), bar=bar, mark=known_mark)


def _single(value: float | None) -> Interval | None:
    return None if value is None else mean_interval([value])


def _numbers(values: object) -> dict[str, float]:
    """Return the numbers of a dictionary that was read from a file."""
    if not isinstance(values, dict):
        return {}
    return {str(k): float(v) for k, v in values.items() if isinstance(v, int | float)}


def _decades(values: Sequence[float]) -> tuple[int, int]:
    if not values:
        return 0, 1
    low = math.floor(math.log10(min(values)) + 1e-9)
    high = math.ceil(math.log10(max(values)) - 1e-9)
    return low, max(high, low + 1)


def _on_track(value: float, low: int, high: int) -> float:
    return min(1.0, max(0.0, (math.log10(value) - low) / (high - low)))


def _power(exponent: int) -> str:
    return f"{10.0**exponent:g}"
