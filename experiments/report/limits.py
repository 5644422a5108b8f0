"""How much of many scenarios a page shows: enough to read, and under 5 MB whatever their number.

What is left out is said where it would stand. Tables written as files have all rows.
"""

import dataclasses
from collections.abc import Sequence

from experiments.report.cells import Block, Table
from experiments.report.charts import LineChart, ParetoChart
from experiments.report.sections import Detail, Section
from experiments.report.sheets import Sheet

ROWS = 500
"""Rows of a table."""
POINTS = 500
"""Points of all charts of several scenarios."""
PICTURES = 2_500_000
"""Bytes of the images of several scenarios."""


def limited(section: Section) -> Section:
    """Return a section on several scenarios with as much as a page has room for."""
    charts, without = _charts(section.charts)
    sheets, strips = _sheets(section.sheets)
    said = [section.intro]
    if without:
        said.append(f"Left out for their number: {_counted(without, 'chart')}.")
    if strips:
        said.append(f"Left out for their size: {_counted(strips, 'strip')} of images.")
    return dataclasses.replace(
        section,
        intro=" ".join(filter(None, said)),
        charts=charts,
        sheets=sheets,
        tables=limited_tables(section.tables),
        details=[Detail(d.summary, limited_tables(d.tables)) for d in section.details],
    )


def limited_tables(tables: Sequence[Table]) -> list[Table]:
    """Return tables with their first :data:`ROWS` rows, and a note where there are more."""
    return [_table(table) for table in tables]


def _table(table: Table) -> Table:
    count = sum(len(block.rows) for block in table.blocks)
    if count <= ROWS:
        return table
    left, blocks = ROWS, []
    for block in table.blocks:
        if left > 0:
            blocks.append(Block(block.name, block.rows[:left]))
            left -= len(block.rows)
    said = f"The first {ROWS} of {count} rows; fl-sim report --tables writes all of them."
    return dataclasses.replace(table, blocks=blocks, note=f"{table.note} {said}".strip())


def _charts(
    charts: Sequence[LineChart | ParetoChart],
) -> tuple[list[LineChart | ParetoChart], int]:
    """Return the charts that there is room for, and how many others there are."""
    kept: list[LineChart | ParetoChart] = []
    points = 0
    for chart in charts:
        points += len(chart.points) if isinstance(chart, ParetoChart) else 0
        if points > POINTS:
            break
        kept.append(chart)
    return kept, len(charts) - len(kept)


def _sheets(sheets: Sequence[Sheet]) -> tuple[list[Sheet], int]:
    """Return the sheets with the strips that there is room for, and how many others there are."""
    kept: list[Sheet] = []
    size = without = 0
    for sheet in sheets:
        strips = []
        for strip in sheet.strips:
            size += sum(len(thumb.source) for thumb in strip.thumbs)
            if size <= PICTURES:
                strips.append(strip)
        without += len(sheet.strips) - len(strips)
        if strips:
            kept.append(dataclasses.replace(sheet, strips=strips))
    return kept, without


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
