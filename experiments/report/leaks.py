"""Tables of what leaked in one scenario, beside its floors."""

from collections.abc import Iterable

from experiments.report.cells import Block, Cell, Row, Table, barred, is_share, plain_cell
from experiments.report.measured import Measurements, Words
from fl_sim.metrics.vocabulary import LOWER_LEAKS, column_label, known
from fl_sim.statistics import Interval
from fl_sim.words import STRONGEST, SUMMED_UP


def leakage_table(measured: Measurements, words: Words) -> Table | None:
    """Return leakage by stage, raw and at best, beside its floors."""
    blocks = []
    for stage in measured.stages:
        kept = [e for e in SUMMED_UP if measured.get(stage, "ssim", e)]
        rows = [_leak_row(measured, stage, e, words, strong=e == STRONGEST) for e in kept]
        if rows:
            blocks.append(Block(words.stage(stage).capitalize(), rows))
    if not blocks:
        return None
    columns = [column_label(metric) for metric in measured.leaks]
    blocks.append(Block("Floors: what an attacker has without the model", _floor_rows(measured)))
    return Table(
        "leakage",
        "Leakage by stage, raw and after the best restoration, with its floors",
        "Extraction",
        columns,
        blocks,
        note="Chosen: what an attacker would choose without a true image. Best: picked with the "
        "true images, metric by metric, an upper end that no attacker can pick himself. A line in "
        "a bar is the floor: the mean of public images for SSIM; for identification what the best "
        f"of as many guesses finds as there are extractions.{turned(measured.leaks)}",
    )


def extractions_table(measured: Measurements, words: Words) -> Table | None:
    """Return leakage by stage and every extraction."""
    blocks = []
    for stage in measured.stages:
        names = measured.extractions(stage)
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


def _leak_row(
    measured: Measurements, stage: str, extraction: str, words: Words, strong: bool = False
) -> Row:
    cells = [leak_cell(measured, stage, metric, extraction) for metric in measured.leaks]
    return Row(words.extraction(extraction).capitalize(), cells, strong)


def leak_cell(measured: Measurements, stage: str, metric: str, extraction: str = STRONGEST) -> Cell:
    """Return a metric of extractions; a share that has a floor with a bar, and its floor on it."""
    found = measured.get(stage, metric, extraction)
    if not (known(metric).floors and is_share(metric)):
        return plain_cell(found, metric)
    return barred(found, measured.floor_of(stage, metric), metric)


def turned(metrics: Iterable[str]) -> str:
    """Return a sentence on the metrics of which lower values leak more; empty for none."""
    names = [column_label(metric) for metric in metrics if known(metric).lower_leaks]
    return f" {', '.join(names)}: {LOWER_LEAKS}." if names else ""


def _floor_rows(measured: Measurements) -> list[Row]:
    """Return a row a kind of floor; metrics that have it stand side by side."""
    kinds: dict[str, dict[str, Interval]] = {}
    for metric in measured.leaks:
        for floor in known(metric).floors:
            found = next((i for s in measured.stages if (i := measured.get(s, floor))), None)
            if found:
                kinds.setdefault(known(floor).title, {})[metric] = found
    return [
        Row(title, [plain_cell(found[m], m) if m in found else Cell("") for m in measured.leaks])
        for title, found in kinds.items()
    ]
