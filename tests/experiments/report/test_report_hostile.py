"""Reports on tables and files that something, or somebody, has damaged: a page, or one sentence."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from experiments.report import write_report
from experiments.report.about import whose_run
from experiments.report.sources import read_sources
from fl_sim.errors import FlSimError
from fl_sim.results import COLUMNS, read_table, summary

ESCAPE = "a\x1b[31m\u202eb"
OF_EXTRACTIONS = "ssim identification_distance identification_correlation"
OF_STAGES = """
    identification_chance auc auc_floor_scratch images_intact images_damaged images_lost
    images_written ssim_floor_mean seconds held_out_images file_bytes bit_error_rate
"""
METRICS = (
    ("ssim", "raw"),
    *((metric, "strongest") for metric in OF_EXTRACTIONS.split()),
    *((metric, "-") for metric in OF_STAGES.split()),
)


def _table(value: float = 0.5, **cells: Any) -> pd.DataFrame:
    facts = ("s", 0, "centralized", "d", "cnn", "dec", "lwlrd", "none", 1, 0)
    rows = [
        dict(zip(COLUMNS, (*facts, stage, e, m, value), strict=True)) | cells
        for stage in ("upload", "release")
        for m, e in METRICS
    ]
    return pd.DataFrame(rows)[list(COLUMNS)]


def _run(folder: Path, table: pd.DataFrame | bytes, about: str | bytes | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    content = (
        table if isinstance(table, bytes) else table.to_csv(index=False, na_rep="nan").encode()
    )
    (folder / "results.csv").write_bytes(content)
    told = json.dumps({"identity": "s", "scenario": {"seed": 0}}) if about is None else about
    (folder / "scenario.json").write_bytes(told.encode() if isinstance(told, str) else told)
    return folder


def _page(folder: Path, **options: Any) -> str:
    return write_report(folder, folder / "r.html", tables=folder / "t", **options).read_text()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308, -1.0, 0.0, 1e-320, 2.0])
def test_a_table_of_one_odd_number_is_a_page(tmp_path: Path, value: float) -> None:
    text = _page(_run(tmp_path / "run", _table(value)))
    assert "</html>" in text
    assert "nan" not in text.lower().replace('value="nan"', "")


def test_a_summary_of_nothing_but_nan_stands(tmp_path: Path) -> None:
    path = _run(tmp_path / "run", _table(math.nan)) / "results.csv"
    assert len(summary(read_table(path))) <= 2


def _replaced(old: str, new: str) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(old.encode(), new.encode(), 1)


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "an integer beyond 64 bits": _replaced(",0,centralized", ",99999999999999999999,centralized"),
    "a fraction for a seed": _replaced(",0,centralized", ",0.5,centralized"),
    "text for a number": _replaced(",0.5\n", ",half\n"),
    "nothing for a number": _replaced(",0.5\n", ",\n"),
    "a short row": _replaced(",raw,ssim,0.5\n", "\n"),
    "a row without its last cell": _replaced(",ssim,0.5\n", ",ssim\n"),
    "a long row": _replaced(",0.5\n", ",0.5,7\n"),
    "no header": lambda content: content.partition(b"\n")[2],
    "a column less": _replaced("scenario,", ""),
    "columns in another order": _replaced("scenario,seed", "seed,scenario"),
    "zero bytes": _replaced("centralized", "\0\0\0"),
    "no UTF-8": lambda content: content.replace(b"centralized", b"\xff\xfe\xc3", 1),
    "an open quote": _replaced("centralized", '"centralized'),
    "nothing": lambda content: b"",
    "something else": lambda content: b"PK\x03\x04" + bytes(500),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_table_is_one_sentence(tmp_path: Path, name: str) -> None:
    content = DAMAGED[name](_table().to_csv(index=False).encode())
    folder = _run(tmp_path / "run", content)
    if name == "zero bytes":  # a name like any other
        assert "\0" not in _page(folder)
        return
    with pytest.raises(FlSimError, match=r"results\.csv") as refusal:
        _page(folder)
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 400
    assert not (folder / "r.html").exists()


ABOUT = {
    "deep": '{"scenario": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "a little deep": '{"scenario": {"a": ' + "[" * 60 + "]" * 60 + "}}",
    "no table": "[1]",
    "no scenario": '{"identity": "s"}',
    "half": '{"scenario": {',
    "an endless integer": '{"scenario": {"seed": ' + "9" * 6000 + "}}",
    "beyond 64 bits": '{"scenario": {"seed": 18446744073709551616}}',
    "no UTF-8": b'{"scenario": {"a": "\xff"}}',
    "nothing": "",
}


@pytest.mark.parametrize("name", ABOUT)
def test_a_damaged_description_is_one_sentence(tmp_path: Path, name: str) -> None:
    folder = _run(tmp_path / "run", _table(), ABOUT[name])
    for read in (lambda: _page(folder), lambda: whose_run(folder / "scenario.json")):
        with pytest.raises(FlSimError, match=r"scenario\.json") as refusal:
            read()
        assert str(refusal.value).isprintable() and len(str(refusal.value)) < 400


NAMELESS = (
    '{"scenario": {"seed": 0}}',
    '{"identity": 3, "scenario": {"seed": 0}}',
    '{"identity": "s", "scenario": {}}',
    '{"identity": "s", "scenario": {"seed": true}}',
)


@pytest.mark.parametrize("about", NAMELESS)
def test_a_description_without_its_run_is_refused_on_resuming(tmp_path: Path, about: str) -> None:
    folder = _run(tmp_path / "run", _table(), about)
    assert "</html>" in _page(folder)
    with pytest.raises(FlSimError, match="does not say which scenario"):
        whose_run(folder / "scenario.json")


def test_odd_values_of_a_description_are_shown_and_nothing_else(tmp_path: Path) -> None:
    odd: Any
    for odd in (None, [], {}, 3, ESCAPE, "\ud800", [ESCAPE, {"a": None}], -1e308, True):
        content: dict[str, Any] = dict.fromkeys(
            ("data", "versions", "machine", "began", "task"), odd
        )
        parts = dict.fromkeys(("training", "federation", "attack"), odd)
        content |= {"identity": "s", "scenario": {"seed": 0, **parts}}
        text = _page(_run(tmp_path / "run", _table(), json.dumps(content)))
        assert not [c for c in text if not c.isprintable() and c not in "\n\u00a0\u202f"]


FOUR = torch.rand(4, 1, 8, 8)
IMAGES: dict[str, dict[str, torch.Tensor]] = {
    "flat": {"original": torch.rand(4, 16)},
    "five channels": {"original": torch.rand(4, 5, 8, 8)},
    "no pixels": {"original": torch.rand(4, 1, 0, 8)},
    "other size": {"original": FOUR, "release/raw": torch.rand(4, 1, 9, 8)},
    "other count": {"original": FOUR, "release/raw": FOUR[:3] / 2},
    "short ssim": {"original": FOUR, "release/raw": FOUR / 2, "release/raw/ssim": torch.rand(2)},
    "integers": {"original": FOUR.int()},
}


def _with_images(folder: Path, images: dict[str, torch.Tensor]) -> Path:
    (_run(folder, _table()) / "images").mkdir()
    save_file(images, folder / "images" / "recovered.safetensors")
    return folder


@pytest.mark.parametrize("name", IMAGES)
def test_odd_images_are_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(FlSimError, match=r"recovered\.safetensors"):
        _page(_with_images(tmp_path / "run", IMAGES[name]))


def test_images_without_values_or_ssim_are_a_page(tmp_path: Path) -> None:
    shape = (4, 1, 8, 8)
    odd = {"original": torch.full(shape, math.nan), "release/raw": torch.full(shape, math.inf)}
    assert "</html>" in _page(_with_images(tmp_path / "a", odd))
    none = {"original": torch.zeros(0, 1, 8, 8), "release/raw": torch.zeros(0, 1, 8, 8)}
    assert "</html>" in _page(_with_images(tmp_path / "b", none))
    assert "</html>" in _page(_with_images(tmp_path / "c", {"release/raw": torch.zeros(shape)}))
    with pytest.raises(FlSimError, match="cannot be read"):
        folder = _run(tmp_path / "d", _table())
        (folder / "images").mkdir()
        (folder / "images" / "recovered.safetensors").write_bytes(b"\xff" * 90)
        _page(folder)


def _parquet(folder: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    folder.mkdir(exist_ok=True)
    table = _table()
    table.insert(0, "grid.attack", "dec")
    table.insert(0, "cell", "s-seed0")
    pq.write_table(change(pa.Table.from_pandas(table)), folder / "table.parquet")
    return folder


def _column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        place = table.column_names.index(name)
        return table.set_column(place, name, pa.array(values(len(table))))

    return change


REFUSED: dict[str, Callable[[pa.Table], pa.Table]] = {
    "no rows": lambda table: table.slice(0, 0),
    "a column less": lambda table: table.drop_columns(["metric"]),
    "texts for numbers": _column("value", lambda n: ["x"] * n),
    "fractions for seeds": _column("seed", lambda n: [0.5] * n),
    "integers beyond 64 bits": _column("seed", lambda n: pa.array([2**64 - 1] * n, pa.uint64())),
    "seeds missing": _column("seed", lambda n: [None] * n),
    "names missing": _column("stage", lambda n: [None] * n),
    "texts that are no UTF-8": _column(
        "metric", lambda n: pa.array([b"\xff\xc3"] * n, pa.binary()).view(pa.string())
    ),
    "lists for numbers": _column("value", lambda n: [[1.0]] * n),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_odd_parquet_table_is_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(FlSimError, match=r"table|sweep") as refusal:
        _page(_parquet(tmp_path / "sweep", REFUSED[name]))
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    "junk", [b"{", b"[]", b'{"columns": 3}', b"\xff", b'{"index_columns": ["x"]}']
)
def test_what_a_parquet_table_says_to_pandas_does_not_matter(tmp_path: Path, junk: bytes) -> None:
    folder = _parquet(
        tmp_path / "sweep", lambda table: table.replace_schema_metadata({b"pandas": junk})
    )
    assert len(read_sources([folder]).runs[0].table) > 30


def test_small_types_and_further_columns_are_read(tmp_path: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        table = _column("value", lambda n: pa.array([0.5] * n, pa.float32()))(table)
        table = _column("seed", lambda n: pa.array([0] * n, pa.int8()))(table)
        return table.append_column("more", pa.array([{"a": 1}] * len(table)))

    table = read_sources([_parquet(tmp_path / "sweep", change)]).runs[0].table
    assert str(table["seed"].dtype) == "int64" and str(table["value"].dtype) == "float64"


def test_a_table_of_more_rows_than_its_file_holds_is_not_read(tmp_path: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        return pa.concat_tables([table] * 40_000)  # a million rows that are all alike

    folder = _parquet(tmp_path / "sweep", change)
    assert (folder / "table.parquet").stat().st_size < 500_000
    with pytest.raises(FlSimError, match="claims 1280000 rows"):
        _page(folder)


def test_enormous_labels_and_formulas_stay_text(tmp_path: Path) -> None:
    label = "=1+1" + "x" * 20_000
    folder = _run(tmp_path / "run", _table(attack=label, dataset="[bold]" + ESCAPE))
    text = _page(folder)
    assert "\x1b" not in text and "[bold]" in text
    lines = [x for file in (folder / "t").glob("*.csv") for x in file.read_text().splitlines()]
    assert lines and not [line for line in lines if line.startswith("=")]
