"""A new metric is one file: whatever shows metrics shows it, with its direction and digits."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import fl_sim
from experiments.report import write_report
from experiments.report.charts import ParetoChart, Point
from experiments.run import run
from experiments.sweep.compare import compare, load_runs
from experiments.tables.console import compact, explained
from experiments.tables.summary import presented
from fl_sim.metrics.vocabulary import METRICS, describe, known
from fl_sim.results import read_table, summary
from fl_sim.statistics import Interval
from tests.experiments.run_kit import CENTRALIZED, FEDERATED

FILE = """
from fl_sim.metrics.vocabulary import LOWER_LEAKS, METRICS, Metric

def gap(recovered, originals):
    return (recovered - originals).abs().flatten(1).mean(dim=1)

METRICS.register("gap", "mean difference of pixels")(
    Metric(
        "Gap", "leakage", LOWER_LEAKS, digits=4, brief=1, range=(0.0, 1.0),
        floors=("gap_floor_mean",), pairwise=gap,
    )
)
"""
DEC = {
    **CENTRALIZED,
    "attack": {
        "name": "dec",
        "images": 4,
        "codec": "png",
        "carrier": "lsb",
        "coding": "repetition",
    },
    "measure": {"scratch_epochs": 1, "usability_epochs": 1},
}
MASKS = {
    **DEC,
    "dataset": {**CENTRALIZED["dataset"], "task": "segmentation", "size": 16, "channels": 1},
    "model": {"name": "unet", "channels": [8, 16, 32], "residual_units": 1},
}
PRIVATE = {
    "model": {"name": "cnn", "norm": "group"},
    "training": {"batch_size": 32, "epochs": 1, "dp": {"target_epsilon": 4.0}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, module_cache: None) -> Iterator[list[Path]]:
    """Two runs that measure a metric from a file of its own, which is forgotten afterwards."""
    folder = tmp_path_factory.mktemp("gap")
    (folder / "made_up_metric.py").write_text(FILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(METRICS, "_entries", {e.name: e for e in METRICS.entries()})
        found = []
        for name, defense in (("lwlrd", CENTRALIZED["defense"]), ("none", None)):
            scenario = {**CENTRALIZED, "plugins": ["made_up_metric"], "defense": defense}
            scenario = {key: value for key, value in scenario.items() if value is not None}
            found.append(run(scenario, folder / name, progress=False).out)
        yield found
        sys.modules.pop("made_up_metric")


def test_its_strongest_extraction_is_the_lowest(runs: list[Path]) -> None:
    table = read_table(runs[0] / "results.csv")
    for stage in ("upload", "release"):
        rows = table[(table["metric"] == "gap") & (table["stage"] == stage)]
        values = dict(zip(rows["extraction"], rows["value"], strict=True))
        strongest = values.pop("strongest")
        assert len(values) >= 3 and strongest == min(values.values()) < max(values.values())


def test_it_stands_in_a_runs_summary_and_on_the_terminal(runs: list[Path]) -> None:
    view = summary(read_table(runs[0] / "results.csv"))
    columns = [str(c) for c in view]
    assert columns.index("psnr raw") < columns.index("gap raw") < columns.index("gap strongest")
    assert columns.index("gap strongest") < columns.index("gap_floor_mean") < columns.index("auc")
    shown = compact(view)
    for column, name in (
        ("gap raw", "Gap\nraw"),
        ("gap strongest", "Gap\nbest"),
        ("gap_floor_mean", "Gap\nfloor"),
    ):
        assert list(shown[name]) == [f"{value:.4f}" for value in view[column]]
    assert explained(view).endswith(" Gap: lower leaks more.")
    assert "lower leaks more" not in explained(view.drop(columns="gap strongest"))


def test_it_stands_in_summaries_over_seeds_with_its_digits(runs: list[Path]) -> None:
    means = load_runs(runs).intervals(stages=["release"])
    value = means[means["metric"] == "gap strongest"]["mean"].iloc[0]
    assert presented(means)["gap strongest"].iloc[0] == f"{value:.4f}"
    assert presented(means, short=True)["gap strongest"].iloc[0] == f"{value:.1f}"


def test_it_stands_on_the_page(runs: list[Path], tmp_path: Path) -> None:
    one = write_report(runs[0], tmp_path / "one.html").read_text()
    table = read_table(runs[0] / "results.csv")
    rows = table[(table["metric"] == "gap") & (table["extraction"] == "strongest")]
    assert all(f'"{value!r}"' in one and f"{value:.4f}" in one for value in rows["value"])
    floor = table[table["metric"] == "gap_floor_mean"]["value"].iloc[0]
    assert f'"{floor!r}"' in one and "Gap: lower leaks more." in one
    both = write_report(runs, tmp_path / "both.html").read_text()
    assert "Gap before" in both and "Gap at release" in both and "Gap floor" in both
    assert "Gap at best (higher protects more)" in both
    assert "SSIM at best (lower protects more)" in both


def test_down_is_better_for_it_too_where_runs_are_compared(runs: list[Path]) -> None:
    found = compare(runs)
    assert {"gap raw", "gap strongest", "gap_floor_mean"} <= set(found.summary())
    axes = found.plot("gap strongest")
    assert axes.yaxis_inverted() and axes.get_ylabel() == "Gap, at best (lower leaks more)"
    assert "mean of public images" in axes.get_legend_handles_labels()[1]
    other = found.plot("ssim strongest")
    assert not other.yaxis_inverted() and other.get_ylabel() == "SSIM, at best"
    assert "Gap<br>best" in found._repr_html_()


def test_it_can_be_measured_of_any_images(runs: list[Path]) -> None:
    generator = torch.Generator().manual_seed(0)
    images, public = (torch.rand(n, 1, 16, 16, generator=generator) for n in (4, 9))
    leak = fl_sim.measure(0.5 * images, images, public=public)
    ways = [name for name in leak.index if name != "strongest" and not name.startswith("floor")]
    assert leak.loc["strongest", "gap"] == leak.loc[ways, "gap"].min() < leak.loc["raw", "gap"]
    assert leak.loc["floor: mean public image", "gap"] > 0.1
    assert leak.loc["strongest", "ssim"] == leak.loc[ways, "ssim"].max()


def test_a_pareto_plot_of_it_runs_the_other_way() -> None:
    points = [
        Point(n, f"d{n}", Interval(x, math.nan, math.nan, 1), Interval(0.9, math.nan, math.nan, 1))
        for n, x in enumerate((0.2, 0.8))
    ]
    chart = ParetoChart("t", "Gap", "AUC", points, lower_leaks=True)
    assert list(chart.front) == [False, True]
    svg = ElementTree.fromstring(chart.svg("c"))
    groups = {group.get("class"): group for group in svg.iter("g")}
    beaten, best = (next(groups[name].iter("use")) for name in ("point", "point best"))
    assert float(best.attrib["x"]) < float(beaten.attrib["x"])


@pytest.mark.parametrize(
    "scenario",
    [
        DEC,
        MASKS,
        {**FEDERATED, **PRIVATE},
        {**CENTRALIZED, "defense": "channel_permutation", **PRIVATE},
    ],
    ids=["dec", "masks", "federation", "private"],
)
def test_every_metric_that_a_run_writes_is_declared(
    scenario: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path / "cache"))
    table = run(scenario, tmp_path / "run", progress=False).table
    names = sorted(set(table["metric"]))
    assert len(names) > 10
    assert [name for name in names if not describe(name).declared] == []
    for name, rows in table.groupby("metric"):
        low, high = known(str(name)).range
        assert rows["value"].between(low, high).all(), name
    extracted = table[table["extraction"] != "-"]["metric"].unique()
    assert all("leaks more" in known(str(name)).direction for name in extracted)
