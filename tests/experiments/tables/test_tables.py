"""Summary tables: which numbers they hold, against pandas and by hand, and how they are written."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.tables.summary import (
    compare,
    presented,
    summarise,
    to_csv,
    to_latex,
    to_markdown,
    wide,
)
from fl_sim.errors import FlSimError
from fl_sim.results import COLUMNS
from fl_sim.statistics import compare_paired, mean_interval


def _rows(attack: str, defense: str, seed: int) -> list[dict[str, Any]]:
    model = {"transpose": 0.9, "dec | low": 1.0}[attack] - 0.05 * seed
    worse = {"none": 0.0, "lwlrd": 0.4 + 0.01 * seed}[defense]
    common = {
        "cell": f"{attack}-{defense}-{seed}",
        "grid.attack": attack,
        "grid.defense": defense,
        **dict.fromkeys(COLUMNS, "x"),
        "seed": seed,
        "clients": 1,
        "round": 1,
        "extraction": "-",
    }
    return [
        # An earlier round, a single attacker and a restoration, which no summary shows.
        {**common, "round": 0, "stage": "release", "metric": "auc", "value": 0.1},
        {**common, "stage": "upload:0", "metric": "auc", "value": 0.1},
        {**common, "stage": "release", "extraction": "affine", "metric": "ssim", "value": 0.0},
        {**common, "stage": "upload", "extraction": "raw", "metric": "ssim", "value": model},
        {
            **common,
            "stage": "release",
            "extraction": "raw",
            "metric": "ssim",
            "value": model - worse,
        },
        {**common, "stage": "release", "metric": "auc", "value": 0.8 + 0.01 * seed},
    ]


@pytest.fixture
def table() -> pd.DataFrame:
    cells = [
        (a, d, s) for a in ("transpose", "dec | low") for d in ("none", "lwlrd") for s in (0, 1, 2)
    ]
    return pd.DataFrame([row for cell in cells for row in _rows(*cell)])


def test_the_last_round_of_each_cell_is_taken_in_the_tables_order(table: pd.DataFrame) -> None:
    frame = wide(table)
    assert list(frame.columns) == ["cell", "attack", "defense", "seed", "stage", "auc", "ssim raw"]
    assert list(frame["cell"].unique()) == list(table["cell"].unique())
    assert list(frame["stage"][:4]) == ["upload", "release"] * 2
    assert frame["auc"].dropna().min() == 0.8


def test_a_summary_has_means_and_intervals_over_seeds(table: pd.DataFrame) -> None:
    summary = summarise(table, stages=["release"])
    assert list(summary.columns) == [
        "attack",
        "defense",
        "stage",
        "metric",
        "n",
        "missing",
        "mean",
        "low",
        "high",
    ]
    row = summary[(summary["defense"] == "lwlrd") & (summary["metric"] == "ssim raw")].iloc[0]
    expected = mean_interval([0.9 - 0.4, 0.85 - 0.41, 0.8 - 0.42], limits=(-1, 1))
    assert (row["mean"], row["low"], row["high"]) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )
    assert len(summary) == 4 * 2 and set(summary["n"]) == {3}
    boot = summarise(table, metrics=["ssim raw"], stages=["release"], method="bootstrap")
    assert boot["low"].iloc[0] != pytest.approx(summary["low"].iloc[0])


def test_rows_may_be_any_labels(table: pd.DataFrame) -> None:
    summary = summarise(table, rows=["defense"], metrics=["ssim raw"], stages=["release"])
    assert list(summary["n"]) == [6, 6]
    frame = wide(table)
    release = frame[frame["stage"] == "release"]
    means = release.groupby("defense", sort=False)["ssim raw"].mean()
    assert list(summary["mean"]) == pytest.approx(list(means))
    by_seed = summarise(table, rows=["seed"], metrics=["auc"], stages=["release"])
    assert list(by_seed["mean"]) == pytest.approx([0.80, 0.81, 0.82])


def test_one_seed_has_no_interval(table: pd.DataFrame) -> None:
    summary = summarise(table[table["seed"] == 0], metrics=["ssim raw"], stages=["release"])
    assert summary["low"].isna().all() and set(summary["n"]) == {1}
    assert list(presented(summary)["ssim raw"]) == ["0.900", "0.500", "1.000", "0.600"]


def test_defences_are_compared_on_the_same_models(table: pd.DataFrame) -> None:
    found = compare(table, "defense", "none", "ssim raw")
    assert list(found["attack"]) == ["transpose", "dec | low"]
    expected = compare_paired([-0.40, -0.41, -0.42], [0, 0, 0])
    for column, value in vars(expected).items():
        assert found[column].iloc[0] == pytest.approx(value), column
    # Two attacks, so two tests: Holm doubles the smaller p-value.
    assert found["p_t_holm"].min() == pytest.approx(2 * found["p_t"].min())
    with pytest.raises(FlSimError, match="no value for seed 2"):
        compare(table[table["cell"] != "transpose-none-2"], "defense", "none", "ssim raw")
    with pytest.raises(FlSimError, match="Did you mean 'defense'"):
        compare(table, "defence", "none", "ssim raw")
    with pytest.raises(FlSimError, match="nothing to compare"):
        compare(table[table["grid.defense"] == "none"], "defense", "none", "ssim raw")


def test_a_misspelt_name_is_a_sentence(table: pd.DataFrame) -> None:
    with pytest.raises(FlSimError, match=r"no label 'atack'\. Did you mean 'attack'"):
        summarise(table, rows=["atack"])
    with pytest.raises(FlSimError, match=r"no metric 'ssim rw'\. Did you mean 'ssim raw'"):
        summarise(table, metrics=["ssim rw"])


def test_tables_for_people(table: pd.DataFrame) -> None:
    summary = summarise(table, stages=["release"])
    shown = presented(summary)
    interval = mean_interval([0.9, 0.85, 0.8], limits=(-1, 1))
    text = f"{interval.mean:.3f} ({interval.low:.3f}-{interval.high:.3f})"
    assert list(shown.columns) == ["attack", "defense", "stage", "n", "ssim raw", "auc"]
    assert shown["ssim raw"].iloc[0] == text
    brief = f"0.85 ({interval.low:.2f}-{interval.high:.2f})"
    assert presented(summary, short=True)["ssim raw"].iloc[0] == brief
    even = summary.assign(low=summary["mean"] - 0.05, high=summary["mean"] + 0.05)
    assert presented(even, short=True)["ssim raw"].iloc[0] == "0.85 ±0.05"

    markdown = to_markdown(shown).splitlines()
    assert markdown[0] == "| attack | defense | stage | n | ssim raw | auc |"
    assert text in markdown[2] and "dec \\| low" in markdown[4]
    assert all(line.replace("\\|", "").count("|") == 7 for line in markdown)

    latex = to_latex(shown.assign(attack="50 % & more_"), "Means.")
    assert "50 \\% \\& more\\_" in latex and "\\toprule" in latex and "\\caption{Means.}" in latex
    assert latex.count("\\\\") == 1 + len(shown)


def test_csv_reads_back_as_it_was(table: pd.DataFrame, tmp_path: Any) -> None:
    summary = summarise(table)
    (tmp_path / "s.csv").write_text(to_csv(summary))
    back = pd.read_csv(
        tmp_path / "s.csv",
        float_precision="round_trip",
        keep_default_na=False,
        na_values={c: [""] for c in ("mean", "low", "high")},
    )
    pd.testing.assert_frame_equal(back, summary)


def test_a_perfect_copy_has_an_infinite_mean_and_no_interval(table: pd.DataFrame) -> None:
    rows = table["metric"] == "auc"
    table.loc[rows, "value"] = math.inf
    summary = summarise(table, metrics=["auc"], stages=["release"])
    assert np.isinf(summary["mean"]).all() and summary["low"].isna().all()
    assert set(presented(summary)["auc"]) == {"inf"}
