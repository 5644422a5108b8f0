"""Tables of what leaked in one scenario, beside its floors."""

from collections.abc import Sequence

from experiments.report.cells import Block, Cell, Row, Table, barred, plain_cell, single
from experiments.report.measured import Measurements, Words, metric_name
from experiments.report.runs import IDENTIFIED
from fl_sim.metrics.measure import STRONGEST

FLOORS = {
    "ssim_floor_mean": "mean of public images",
    "ssim_floor_class_mean": "mean of the class's public images",
    "ssim_floor_random": "another public image",
}


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
    columns = [metric_name(metric) for metric in _leak_metrics(measured)]
    blocks.append(Block("Floors: what an attacker has without the model", _floor_rows(measured)))
    return Table(
        "leakage",
        "Leakage by stage, raw and after the best restoration, with its floors",
        "Extraction",
        columns,
        blocks,
        note="Best: the strongest of all restorations, metric by metric. A line in a bar is the "
        "floor: the mean of public images for SSIM; for identification one blind guess, and for "
        "the best extraction the best of as many guesses.",
    )


def extractions_table(measured: Measurements, words: Words) -> Table | None:
    """Return leakage by stage and every extraction."""
    blocks = []
    for stage in measured.stages:
        names = [e for e in measured.extractions(stage) if e != STRONGEST]
        if names:
            rows = [_leak_row(measured, stage, e, words) for e in names]
            blocks.append(Block(words.stage(stage).capitalize(), rows))
    columns = [metric_name(metric) for metric in _leak_metrics(measured)]
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
    columns = [metric_name(metric) for metric in _leak_metrics(measured)]
    return Table("hospitals", "Leakage by malicious hospital", "Hospital", columns, blocks)


def _leak_metrics(measured: Measurements) -> list[str]:
    found = [
        m for s in measured.stages for e in measured.extractions(s) for m in measured.metrics(s, e)
    ]
    first = ("ssim", "identification_distance", "identification_correlation", "psnr")
    named = [metric for metric in first if metric in found]
    return named + [m for m in dict.fromkeys(found) if m not in (*first, IDENTIFIED)]


def _leak_row(
    measured: Measurements, stage: str, extraction: str, words: Words, strong: bool = False
) -> Row:
    cells = []
    for metric in _leak_metrics(measured):
        found = measured.get(stage, metric, extraction)
        if metric == "ssim":
            cells.append(barred(found, measured.mean(stage, "ssim_floor_mean")))
        elif metric.startswith("identification_"):
            best = extraction == STRONGEST
            cells.append(barred(found, measured.luck(stage, metric) if best else measured.chance))
        else:
            cells.append(plain_cell(found, metric))
    return Row(words.extraction(extraction).capitalize(), cells, strong)


def _floor_rows(measured: Measurements) -> list[Row]:
    metrics = _leak_metrics(measured)
    rows = []
    for floor, name in FLOORS.items():
        found = next((i for s in measured.stages if (i := measured.get(s, floor))), None)
        if found:
            cells = [plain_cell(found) if metric == "ssim" else Cell("") for metric in metrics]
            rows.append(Row(name.capitalize(), cells))
    chance = next(
        (i for s in measured.stages if (i := measured.get(s, "identification_chance"))), None
    )
    if chance:
        cells = [
            plain_cell(chance) if m.startswith("identification_") else Cell("") for m in metrics
        ]
        rows.append(Row("One blind guess", cells))
        rows += _best_guess_rows(measured, metrics)
    return rows


def _best_guess_rows(measured: Measurements, metrics: Sequence[str]) -> list[Row]:
    """Return what the best of as many guesses finds as there are extractions, where several are."""
    stage = measured.stages[-1]
    guessing = measured.guessing(stage, "")
    if guessing is None or guessing.tries < 2:
        return []
    luck = plain_cell(single(guessing.expected))
    cells = [luck if m.startswith("identification_") else Cell("") for m in metrics]
    return [Row(f"Best of {guessing.tries} blind guesses", cells)]
