"""Tables on one scenario: what arrived of a payload, what the model is worth, what it cost."""

import math
from collections.abc import Sequence

from experiments.report.cells import (
    COUNTS,
    TALL,
    Block,
    Cell,
    Row,
    Table,
    barred,
    plain_cell,
    single,
)
from experiments.report.measured import Measurements, Words, number, range_text
from experiments.report.runs import Group
from fl_sim.metrics.vocabulary import METRICS, column_label, describe, known, names_of
from fl_sim.statistics import mean_interval

BY_PLACE = "carrier_error["
_BEFORE, _SCRATCH = "_before_embedding", "_floor_scratch"
_STOLEN, _TRUE = "_trained_on_stolen", "_trained_on_originals"
_UTILITY_FORMS = (_BEFORE, _SCRATCH, _STOLEN, _TRUE)
"""Of a utility metric: what the table of utility shows beside the metric itself."""


def payload_table(measured: Measurements, words: Words) -> Table | None:
    """Return what arrived of a payload, by stage."""
    stages = [s for s in measured.stages if measured.get(s, COUNTS[0])]
    if not stages:
        return None
    others = [m for m in names_of("payload") if m not in COUNTS]
    errors = [m for m in others if any(measured.get(s, m) for s in stages)]
    rows = []
    for stage in stages:
        counts = [measured.mean(stage, metric) for metric in COUNTS]
        total = sum(counts) or 1.0
        shares = [count / total for count in counts]
        # A table from elsewhere may hold counts that are none: a page cannot draw those.
        drawn = all(0 <= share <= 1 for share in shares)
        survival = Cell("", stack=tuple(shares) if drawn else ())
        cells = [survival, *(plain_cell(measured.get(stage, metric), metric) for metric in COUNTS)]
        for metric in errors:
            found = measured.get(stage, metric)
            bits = known(metric).format == "percent"
            cells.append(barred(found, 0.5, metric) if bits else plain_cell(found, metric))
        rows.append(Row(words.stage(stage).capitalize(), cells))
    columns = ["Images", *(column_label(m) for m in (*COUNTS, *errors))]
    wrong = "bit_error_rate" in errors
    return Table(
        "payload",
        "What arrived of the hidden payload",
        "Stage",
        columns,
        [Block("", rows)],
        note="Bars of images: intact, damaged (pale), lost (grey)."
        + (" Half of the bits are wrong where nothing arrived at all." if wrong else ""),
        text=(0,),
    )


def sent_table(measured: Measurements) -> Table | None:
    """Return what the attackers sent: how much, in how little."""
    rows = [
        Row(column_label(metric), [plain_cell(found, metric)])
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
            [barred(measured.get(stage, metric), 0.5 if bits else None) for stage in stages],
        )
        for metric in metrics
    ]
    columns = [words.stage(stage).capitalize() for stage in stages]
    what = "Share of wrong bits" if bits else "Relative error of values"
    note = "The line marks 0.5: nothing but chance is left." if bits else ""
    return Table(
        "places",
        f"{what} of the payload by tensor",
        "Tensor",
        columns,
        [Block("", rows)],
        note,
        tall=len(rows) > TALL,
    )


def utility_table(measured: Measurements, words: Words) -> Table | None:
    """Return what the model is worth by stage, beside what it is worth without the training."""
    metrics = measured.utilities
    if not metrics:
        return None
    stages = [(words.stage(stage), stage) for stage in measured.stages]
    kinds = [
        ("Before embedding", "upload", _BEFORE),
        *((said.capitalize(), stage, "") for said, stage in stages),
        ("Floor: from scratch on held-out images", "release", _SCRATCH),
        *((f"Trained on what was stolen, {said}", stage, _STOLEN) for said, stage in stages),
        ("Trained on the true images", "upload", _TRUE),
    ]
    rows = [
        Row(
            name,
            _utility_cells(measured, metrics, stage, ending),
            stage == "release" and not ending,
        )
        for name, stage, ending in kinds
        if any(measured.get(stage, metric + ending) for metric in metrics)
    ]
    columns = [column_label(metric) for metric in metrics]
    caption = "What the model is worth on test images"
    return Table("utility", caption, "Model", columns, [Block("", rows)])


def _utility_cells(
    measured: Measurements, metrics: Sequence[str], stage: str, ending: str
) -> list[Cell]:
    cells = []
    for metric in metrics:
        found = measured.get(stage, metric + ending)
        floor = measured.get("release", metric + _SCRATCH)
        mark = floor.mean if floor else None
        drawn = metric == measured.utility and known(metric).range == (0.0, 1.0)
        cells.append(barred(found, mark, metric) if drawn else plain_cell(found, metric))
    return cells


def bounds_table(measured: Measurements, words: Words) -> Table | None:
    """Return what is bounded, whoever attacks: the cap of a release, private training's epsilon."""
    rows = [
        Row(f"{column_label(metric)}, {words.stage(stage)}", [plain_cell(found, metric)])
        for stage in measured.stages
        for metric in names_of("privacy")
        if (found := measured.get(stage, metric))
    ]
    if not rows:
        return None
    return Table("bounds", "What is bounded", "Quantity", ["At most"], [Block("", rows)])


def cost_table(measured: Measurements, words: Words, federated: bool) -> Table | None:
    """Return what it cost: time, images, bytes."""
    rows = []
    for stage in measured.stages:
        for metric in (*names_of("cost"), *names_of("file")):
            found = measured.get(stage, metric)
            if found is None:
                continue
            cells = [plain_cell(found, metric)]
            if federated:
                total = measured.total(stage, metric) if metric == "seconds" else None
                cells.append(plain_cell(total, metric))
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
    finite = [i.mean for i in intervals.values() if math.isfinite(i.mean) and i.mean > 0]
    low, high = _decades(finite)
    rows = []
    for name in names:
        mean = intervals[name].mean
        place = _on_track(mean, low, high) if math.isfinite(mean) and mean > 0 else None
        cells = [Cell(number(mean, 4), intervals[name], range_text(intervals[name]), dot=place)]
        if any(rates):
            own = [rate[name] for rate in rates if name in rate]
            cells.append(plain_cell(mean_interval(own) if own else None, said="{:.2g}".format))
        rows.append(Row(name, cells))
    note = ""
    if finite:
        note = f"Tracks are logarithmic, from {_power(low)} to {_power(high)}."
    columns = ["Relative change of the weights", *(["Learning rate"] if any(rates) else [])]
    return Table(
        "layers",
        "What the defence changed, layer by layer in forward order",
        "Layer",
        columns,
        [Block("", rows)],
        note,
        tall=len(rows) > TALL,
    )


def epochs_table(group: Group) -> Table | None:
    """Return the defence's own log: loss and utility by epoch, of the first seed's last round."""
    log = group.first.defense_log
    epochs = log[-1].get("epochs") if log else None
    entries = [_numbers(e) for e in epochs] if isinstance(epochs, list) else []
    columns = list(dict.fromkeys(key for entry in entries for key in entry))
    if not columns:
        return None
    rows = [
        Row(str(n), [plain_cell(single(entry.get(column))) for column in columns])
        for n, entry in enumerate(entries, start=1)
    ]
    return Table(
        "epochs",
        "The defence as it went",
        "Epoch",
        [column_label(c) for c in columns],
        [Block("", rows)],
        tall=len(rows) > TALL,
    )


def other_table(measured: Measurements, words: Words) -> Table | None:
    """Return all that was measured and stands in no other table."""
    rows = []
    for stage in measured.stages:
        for metric in measured.metrics(stage):
            found = measured.get(stage, metric)
            if found and not _has_place(metric):
                head = f"{words.stage(stage).capitalize()}: {column_label(metric)}"
                rows.append(Row(head, [plain_cell(found, metric)]))
    if not rows:
        return None
    return Table(
        "other",
        "Further measurements",
        "Quantity",
        ["Value"],
        [Block("", rows)],
        tall=len(rows) > TALL,
    )


def _has_place(name: str) -> bool:
    """Whether a number that belongs to no extraction stands in one of the other tables."""
    found = describe(name)
    if not found.declared:
        return False
    if found.metric.family == "leakage":
        return any(name in entry.component.floors for entry in METRICS.entries())
    if found.metric.family == "utility" and not found.part:
        return found.whole or found.form in _UTILITY_FORMS
    shown = found.metric.family in ("payload", "sent", "privacy", "cost", "file")
    return shown and (found.whole or name.startswith(BY_PLACE))


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
