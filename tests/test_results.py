"""The results table: exact, durable, resumable."""

import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from fl_sim.errors import FlSimError
from fl_sim.results import COLUMNS, FACTS, Results, Value, read_table, summary, without_timings

COMMON: dict[str, Value] = {
    "scenario": "a",
    "seed": 3,
    "mode": "federated",
    "dataset": "dermamnist",
    "model": "mlp",
    "attack": "transpose",
    "defense": "none",
    "aggregator": "fedavg",
    "clients": 4,
}
PLACE: dict[str, Value] = {"round": 1, "stage": "release"}


def row(metric: str, value: float, **more: Value) -> dict[str, Value]:
    return {"metric": metric, "value": value, **more}


def test_rows_come_back_with_their_types(tmp_path: Path) -> None:
    results = Results(tmp_path / "new" / "r.csv", COMMON)
    assert results.add([row("ssim", 0.5, extraction="raw"), row("auc", 1)], **PLACE) == 2
    assert results.add([]) == 0
    table = results.table()
    assert tuple(table.columns) == COLUMNS
    assert [str(table[name].dtype) for name in ("seed", "clients", "round", "value")] == [
        "int64",
        "int64",
        "int64",
        "float64",
    ]
    assert table["extraction"].tolist() == ["raw", "-"]
    assert table["defense"].tolist() == ["none", "none"]
    assert table["seed"].tolist() == [3, 3]


def test_values_come_back_exactly(tmp_path: Path) -> None:
    rng = random.Random(0)
    values = [rng.uniform(-1, 1) * 10 ** rng.randint(-300, 300) for _ in range(500)]
    values += [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, math.inf, -math.inf]
    results = Results(tmp_path / "r.csv", COMMON)
    results.add([row("m", value) for value in [*values, math.nan]], **PLACE)
    back = results.table()["value"].tolist()
    assert back[:-1] == values
    assert math.isnan(back[-1])
    assert not results.table().drop(columns="value").isna().any().any()


@pytest.mark.parametrize("name", ["none", "NA", "nan", "null", "", "a,b", 'say "x"', "ä 1"])
def test_names_come_back_exactly(tmp_path: Path, name: str) -> None:
    results = Results(tmp_path / "r.csv", COMMON)
    results.add([row("m", 1.0, attack=name)], **PLACE)
    assert results.table()["attack"].tolist() == [name]


def test_a_parquet_copy(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.csv", COMMON)
    results.add([row("m", 0.1), row("seconds", 2.5)], **PLACE)
    table = results.table()
    parquet = pd.read_parquet(results.write_parquet(tmp_path / "copy.parquet"))
    pd.testing.assert_frame_equal(parquet, table)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"metric": "m"}], "lacks the column 'value'"),
        ([{"metric": "m", "value": 1.0, "colour": "red"}], "no column 'colour'"),
        ([{"metric": "m", "value": "much"}], "cannot hold 'much'"),
        ([{"metric": "m", "value": 1.0, "round": 1.5}], "cannot hold 1.5"),
        ([{"metric": "m\n", "value": 1.0}], "line break"),
    ],
)
def test_wrong_rows_are_refused_and_none_is_written(
    tmp_path: Path, rows: list[dict[str, Value]], message: str
) -> None:
    results = Results(tmp_path / "r.csv", COMMON)
    with pytest.raises(FlSimError, match=message):
        results.add([row("fine", 1.0), *rows], **PLACE)
    assert len(results.table()) == 0


def test_unknown_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FlSimError, match="no column"):
        Results(tmp_path / "r.csv", {"attacks": "x"})


def test_another_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    for content in ("name,age\nx,1\n", "notes without an end"):
        path.write_text(content)
        with pytest.raises(FlSimError, match="not a results table"):
            Results(path, COMMON)
        assert path.read_text() == content
        with pytest.raises(FlSimError, match="not a results table"):
            read_table(path)
    with pytest.raises(FlSimError, match="does not exist"):
        read_table(tmp_path / "none.csv")


def test_a_torn_last_line_is_cut_off_wherever_it_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    results = Results(path, COMMON)
    results.add([row("a", 0.25)], **PLACE)
    whole = path.read_bytes()
    results.add([row("b", 0.123456789)], **PLACE)
    both = path.read_bytes()
    for end in range(len(both)):
        path.write_bytes(both[:end])
        again = Results(path, COMMON)
        assert len(again.table()) == (1 if end >= len(whole) else 0)
        again.add([row("c", 1.0)], **PLACE)
        assert again.table()["metric"].tolist()[-1] == "c"


def test_a_line_torn_by_another_process_is_cut_off_too(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.csv", COMMON)
    results.add([row("a", 1.0)], **PLACE)
    with open(results.path, "ab") as file:
        file.write(b"half a li")
    results.add([row("b", 2.0)], **PLACE)
    assert results.table()["metric"].tolist() == ["a", "b"]
    assert results.table()["scenario"].tolist() == ["a", "a"]


def test_a_table_is_rewound_to_where_it_stood(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.csv", COMMON)
    results.add([row("m", 0.1)], **PLACE)
    stand = results.stand()
    results.add([row("m", 0.2), row("m", 0.3)], **PLACE)
    results.rewind(stand)
    assert results.table()["value"].tolist() == [0.1]
    results.rewind(stand)  # nothing has been added since
    results.add([row("m", 0.4)], **PLACE)
    assert results.table()["value"].tolist() == [0.1, 0.4]
    results.rewind(None)
    assert len(results.table()) == 0


@pytest.mark.parametrize("damage", ["shorter", "edited", "missing"])
def test_a_table_that_is_not_what_it_was_is_not_rewound(tmp_path: Path, damage: str) -> None:
    results = Results(tmp_path / "r.csv", COMMON)
    results.add([row("m", 0.25), row("m", 0.5)], **PLACE)
    stand, whole = results.stand(), results.path.read_bytes()
    damaged = {"shorter": whole[:-1], "edited": whole.replace(b"0.25", b"0.75"), "missing": b""}
    results.path.write_bytes(damaged[damage])
    if damage == "missing":
        results.path.unlink()
    with pytest.raises(FlSimError, match=r"r\.csv"):
        results.rewind(stand)
    assert damage == "missing" or results.path.read_bytes() == damaged[damage]


def test_without_timings_two_equal_runs_are_equal(tmp_path: Path) -> None:
    tables = []
    for run in range(2):
        results = Results(tmp_path / f"{run}.csv", COMMON)
        results.add([row("seconds", run), row("m", 0.1), row("seconds[defense]", run)], **PLACE)
        tables.append(without_timings(results.table()))
    assert tables[0]["metric"].tolist() == ["m"]
    pd.testing.assert_frame_equal(tables[0], tables[1])


def test_summary_has_a_row_a_round_and_stage(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.csv", COMMON)
    for stage in ("release", "upload"):
        rows = [row("ssim", v, extraction=e) for e, v in (("raw", 0.2), ("affine", 0.6))]
        rows += [row("ssim", 0.6, extraction="strongest"), row("ssim_floor_mean", 0.4)]
        results.add([*rows, row("auc", 0.8), row("custom", 7.0)], round=1, stage=stage)
    view = summary(results.table())
    told = len(FACTS)
    assert view.columns[:told].tolist() == list(FACTS)
    assert view.columns[told:].tolist() == [
        "round",
        "stage",
        "ssim raw",
        "ssim strongest",
        "ssim_floor_mean",
        "auc",
        "custom",
    ]
    assert view["stage"].tolist() == ["upload", "release"]
    assert view.iloc[0, told + 2 :].tolist() == [0.2, 0.6, 0.4, 0.8, 7.0]
    assert view.iloc[0][list(FACTS)].tolist() == [COMMON[name] for name in FACTS]
    empty = Results(tmp_path / "empty.csv").table()
    assert len(summary(empty)) == 0


def test_summary_tells_runs_apart(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.csv", COMMON)
    results.add([row("auc", 0.8)], **PLACE)
    results.add([row("auc", 0.6, seed=10)], **PLACE)
    results.add([row("auc", 0.7, seed=9)], **PLACE)
    results.add([row("auc", 0.5, scenario="b", defense="other")], **PLACE)
    view = summary(results.table())
    assert view[["defense", "seed", "auc"]].to_numpy().tolist() == [
        [COMMON["defense"], 3, 0.8],
        [COMMON["defense"], 9, 0.7],
        [COMMON["defense"], 10, 0.6],
        ["other", 3, 0.5],
    ]
    # Only where nothing else tells two scenarios apart is the long name of help.
    assert "scenario" not in view
    results.add([row("auc", 0.4, scenario="c")], **PLACE)
    assert set(summary(results.table())["scenario"]) == {"a", "b", "c"}


def test_summary_sorts_as_people_do(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.csv", COMMON)
    for number in (10, 2, 1, 0):
        for stage in ("upload:10", "release", "upload:3", "aggregate", "upload"):
            results.add([row(f"error[bit {number}]", 0.5)], round=number, stage=stage)
    view = summary(results.table())
    assert view["round"].drop_duplicates().tolist() == [0, 1, 2, 10]
    stages = ["upload", "aggregate", "release", "upload:3", "upload:10"]
    assert view["stage"].tolist() == stages * 4
    assert view.columns[-4:].tolist() == [f"error[bit {n}]" for n in (0, 1, 2, 10)]


WRITER = """
import sys
from pathlib import Path
from fl_sim.results import Results
common = dict(scenario=sys.argv[2], seed=0, mode="m", dataset="d", model="m", attack="a",
              defense="d", aggregator="a", clients=1, stage="release")
results = Results(Path(sys.argv[1]), common)
start = int(sys.argv[3])
for call in range(start, start + int(sys.argv[4])):
    results.add([dict(metric=str(i), value=call + i / 7, round=call) for i in range(40)])
    print(call, flush=True)
"""


def writer(path: Path, scenario: str, start: int, calls: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), scenario, str(start), str(calls)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


def test_killed_writers_lose_at_most_what_was_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    confirmed: set[int] = set()
    for attempt in range(4):
        process = writer(path, "a", attempt * 10**6, 10**6)
        assert process.stdout is not None
        confirmed.add(int(process.stdout.readline()))
        time.sleep(0.05 + 0.07 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        confirmed.update(int(line) for line in process.stdout.read().split())
        process.wait()
    table = Results(path).table()
    counts = table.groupby("round").size()
    assert set(counts[list(confirmed)]) == {40}
    assert len(set(counts.index) - confirmed) <= 4
    expected = table["round"] + table["metric"].astype(int) / 7
    assert (table["value"] == expected).all()


def test_two_processes_may_write_to_one_table(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    writers = [writer(path, name, 0, 300) for name in ("a", "b")]
    for process in writers:
        assert process.stdout is not None
        process.stdout.readline()
    here = Results(path, {**COMMON, "scenario": "c"})
    for number in range(20):
        here.add([row("m", 1.0)], round=number, stage="upload")
    for process in writers:
        process.communicate(timeout=60)
        assert process.returncode == 0
    counts = here.table().groupby("scenario").size().to_dict()
    assert counts == {"a": 12000, "b": 12000, "c": 20}
