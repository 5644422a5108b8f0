"""What a page on a great many scenarios leaves out, and says so."""

from pathlib import Path

import pytest

from experiments.benchmarks.tables import sweep_table
from experiments.report import limits, write_report
from experiments.report.cells import Block, Cell, Row, Table
from experiments.report.sections import Section
from experiments.report.sheets import Sheet, Strip, Thumb
from experiments.sweep.start import write_parquet


def test_a_page_on_many_scenarios_is_small_and_says_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ROWS", 50)
    monkeypatch.setattr(limits, "POINTS", 10)
    table = sweep_table(20_000, seeds=1)
    scenarios = table["scenario"].nunique()
    assert scenarios == 104
    write_parquet(tmp_path / "table.parquet", table)
    page = write_report(tmp_path, tmp_path / "report.html")
    assert page.stat().st_size < 5e5
    text = page.read_text()
    assert f"The first 50 of {scenarios} rows; fl-sim report --tables" in text
    assert "Left out for their number: " in text


def table_of(*counts: int) -> Table:
    rows = [[Row(str(n), [Cell("1")]) for n in range(count)] for count in counts]
    blocks = [Block(str(place), own) for place, own in enumerate(rows)]
    return Table("some", "Some", "Row", ["Value"], blocks, note="A note.")


@pytest.mark.parametrize("counts", [(limits.ROWS,), (1, limits.ROWS - 1), ()])
def test_a_table_that_has_room_stays_as_it_is(counts: tuple[int, ...]) -> None:
    table = table_of(*counts)
    assert limits.limited_tables([table]) == [table]


def test_a_table_ends_after_its_first_rows_with_a_note() -> None:
    (short,) = limits.limited_tables([table_of(3, limits.ROWS, 5)])
    assert [len(block.rows) for block in short.blocks] == [3, limits.ROWS - 3]
    assert short.note.startswith(f"A note. The first {limits.ROWS} of {limits.ROWS + 8} rows;")


def test_strips_of_images_end_where_they_would_be_too_large() -> None:
    thumb = Thumb("x" * (limits.PICTURES // 2), "an image", "")
    sheets = [Sheet("", [Strip("a", "", [thumb]), Strip("b", "", [thumb])], 28, True)]
    section = Section("images", "Images", intro="Images.", sheets=[*sheets, *sheets])
    short = limits.limited(section)
    assert short.sheets == sheets
    assert short.intro == "Images. Left out for their size: 2 strips of images."
