"""Reports: that the page says what the tables say, loads nothing, and refuses what is no run."""

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from experiments.cli.main import app
from experiments.report import write_report
from experiments.report.figures import key_figures
from experiments.report.measured import Measurements, number
from experiments.report.panels import trade_offs
from experiments.report.runs import Group, Run
from experiments.report.sources import read_sources
from experiments.report.story import Story
from experiments.report.words import flat, plain
from experiments.sweep.start import sweep
from fl_sim.errors import FlSimError
from fl_sim.metrics.vocabulary import column_label
from fl_sim.results import COLUMNS, read_table
from fl_sim.statistics import mean_interval

GRID: dict[str, Any] = {
    "seeds": [0, 1],
    "scenario": {
        "mode": "centralized",
        "dataset": {"name": "phantoms", "size": 16, "train": 64, "validation": 32, "test": 32},
        "model": "cnn",
        "attack": {"name": "transpose", "images": 4},
        "attacker": {"restorations": ["affine"]},
        "training": {"epochs": 1},
        "data": {"public_images": 16},
        "measure": {"scratch_epochs": 1},
        "threads": 1,
    },
    "grid": {"defense": ["none", {"label": "LWLRD", "name": "lwlrd", "epochs": 1}]},
}
HOSTILE = "<script>alert('x')</script>\"&"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run two defences and two seeds of a small attack, once."""
    out = tmp_path_factory.mktemp("report") / "sweep"
    result = sweep(GRID, out, workers=0)
    assert not len(result.failed)
    return out


@pytest.fixture(scope="module")
def defended(swept: Path) -> Path:
    """The run of seed 0 with a defence."""
    found = [p.parent for p in sorted(swept.glob("cells/*/defense.jsonl"))]
    return next(f for f in found if _scenario(f)["scenario"]["seed"] == 0)


def _scenario(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "scenario.json").read_text())
    return content


class Parsed(HTMLParser):
    """What a test wants to know of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.exact: dict[str, list[float]] = {}
        self.links: list[str] = []
        self.images: list[dict[str, str]] = []
        self.headings: list[int] = []
        self.tags: list[str] = []
        self.text = ""
        self._table = ""
        self._open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.tags.append(tag)
        self.links += [values[name] for name in ("src", "href", "srcset") if name in values]
        if tag == "img":
            self.images.append(values)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "table":
            self._table = values.get("class", "").split(" ")[0] or "chart"
            self.tables.setdefault(self._table, [])
            self.exact.setdefault(self._table, [])
        if tag == "tr":
            self.tables[self._table].append([])
        if tag in ("td", "th"):
            self._open = True
            self.tables[self._table][-1].append("")
        if tag == "data":
            self.exact[self._table].append(float(values["value"]))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._open = False
        if tag == "table":
            self._table = ""

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open:
            self.tables[self._table][-1][-1] += data


def _report(folders: Path | list[Path], tmp_path: Path, **options: Any) -> tuple[str, Parsed]:
    text = write_report(folders, tmp_path / "report.html", **options).read_text()
    return text, Parsed(text)


def _value(folder: Path, stage: str, metric: str, extraction: str = "-") -> float:
    table = read_table(folder / "results.csv")
    rows = table[
        (table["stage"] == stage)
        & (table["metric"] == metric)
        & (table["extraction"] == extraction)
    ]
    assert len(rows) == 1
    return float(rows["value"].iloc[0])


def test_the_numbers_on_the_page_are_those_of_the_table(defended: Path, tmp_path: Path) -> None:
    _, page = _report(defended, tmp_path)
    columns = page.tables["leakage"][0]
    metrics = ("ssim", "identification_distance", "identification_correlation")
    assert columns[:4] == ["Extraction", *(column_label(metric) for metric in metrics)]
    assert columns[2] == "Identified by distance"
    lines = iter(page.tables["leakage"][1:])
    for stage, said in (("upload", "As trained"), ("release", "As released")):
        assert next(lines) == [said]
        for extraction, name in (
            ("raw", "Raw"),
            ("chosen", "Chosen by the attacker"),
            ("strongest", "Best"),
        ):
            row = next(lines)
            assert row[0] == name
            for column, metric in enumerate(metrics, start=1):
                value = _value(defended, stage, metric, extraction)
                assert row[column] == number(value)
                assert value in page.exact["leakage"]
    assert _value(defended, "release", "ssim_floor_mean") in page.exact["leakage"]
    for floor in ("identification_floor", "identification_floor_high", "identification_chance"):
        assert _value(defended, "release", floor) in page.exact["leakage"]
    for metric in ("auc", "auc_floor_scratch", "accuracy"):
        assert _value(defended, "release", metric) in page.exact["utility"]
    change = json.loads((defended / "defense.jsonl").read_text())["relative_change"]
    assert [row[0] for row in page.tables["layers"][1:]] == list(change)
    assert set(change.values()) <= set(page.exact["layers"])
    heads = [row[0] for row in page.tables["extractions"][1:]]
    kinds = ["Raw", "Affine, by pixel"]
    assert heads == ["As trained", *kinds, "As released", *kinds]


def test_images_are_there_with_words_and_their_ssim(defended: Path, tmp_path: Path) -> None:
    _, page = _report(defended, tmp_path, images=3)
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.images)
    alts = [image["alt"] for image in page.images]
    assert alts[:3] == [f"Stolen image {n}, original" for n in (1, 2, 3)]
    from experiments.run.folder import load_pictures

    similarity = load_pictures(defended)["release/raw/ssim"]
    expected = f"Stolen image 2, as released, raw: SSIM {number(float(similarity[1]), 2)}"
    assert expected in alts
    assert len(_report(defended, tmp_path, images=0)[1].images) == 0


def test_a_page_loads_nothing_and_is_built_for_everyone(swept: Path, tmp_path: Path) -> None:
    for folder in (swept, next(swept.glob("cells/*"))):
        text, page = _report(folder, tmp_path)
        assert all(link.startswith(("data:", "#")) for link in page.links)
        assert "url(" not in text and "@import" not in text and "script" not in page.tags
        assert "default-src 'none'" in text
        assert page.headings[0] == 1 and page.headings.count(1) == 1
        steps = zip(page.headings, page.headings[1:], strict=False)
        assert all(after <= before + 1 for before, after in steps)
        assert {"header", "main", "nav", "footer"} <= set(page.tags)
        assert page.tags.count("table") == page.tags.count("caption")
        anchors = {link[1:] for link in page.links if link.startswith("#")}
        named = re.findall(r'\bid="([^"]+)"', text)
        assert anchors <= set(named) and len(named) == len(set(named))
        assert len(text) < 3_000_000


def test_seeds_are_means_with_intervals(swept: Path, tmp_path: Path) -> None:
    runs = [p.parent for p in sorted(swept.glob("cells/*/defense.jsonl"))]
    assert len(runs) == 2
    _, page = _report(runs, tmp_path)
    values = [_value(run, "release", "ssim", "strongest") for run in runs]
    expected = mean_interval(values, limits=(-1, 1))
    assert expected.mean in page.exact["leakage"]
    said = f"{number(expected.mean)}{number(expected.low)}"
    assert any(cell.startswith(said) for row in page.tables["leakage"] for cell in row)
    assert "means over 2 seeds (0, 1)" in page.text


def test_a_sweep_is_compared(swept: Path, tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    text, page = _report(swept, tmp_path, tables=tables)
    heads = [row[0] for row in page.tables["overview"][1:]]
    assert heads == ["1  no defence", "2  LWLRD"]
    overview = pd.read_csv(tables / "overview.csv")
    table = pd.read_parquet(swept / "table.parquet")
    rows = table[
        (table["grid.defense"] == "LWLRD")
        & (table["stage"] == "release")
        & (table["metric"] == "ssim")
        & (table["extraction"] == "strongest")
    ]
    assert overview["SSIM at release"][1] == pytest.approx(rows["value"].mean(), abs=1e-15)
    interval = mean_interval(rows["value"], limits=(-1, 1))
    assert overview["SSIM at release low"][1] == pytest.approx(interval.low, abs=1e-12)
    identified = [
        max(
            _value(with_, "release", f"identification_{how}", "strongest")
            for how in ("distance", "correlation")
        )
        for with_, _ in _pairs(swept)
    ]
    assert overview["Identified at release"][1] == pytest.approx(sum(identified) / 2, abs=1e-12)
    assert "Pareto front" in text and "point best" in text
    assert "pairs-ssim" in page.tables and len(page.tables["pairs-ssim"]) == 2
    differences = [
        _value(with_, "release", "ssim", "strongest")
        - _value(without, "release", "ssim", "strongest")
        for with_, without in _pairs(swept)
    ]
    assert page.exact["pairs-ssim"][0] == pytest.approx(sum(differences) / 2, abs=1e-12)
    assert (tables / "leakage.md").read_text().count("\n") > 8
    assert r"\toprule" in (tables / "leakage.tex").read_text()
    leakage = pd.read_csv(tables / "leakage.csv")
    assert set(leakage["defense"]) == {"none", "LWLRD"}


def _pairs(swept: Path) -> list[tuple[Path, Path]]:
    cells = {}
    for folder in swept.glob("cells/*"):
        content = _scenario(folder)["scenario"]
        cells[content["seed"], content["defense"] is not None] = folder
    return [(cells[seed, True], cells[seed, False]) for seed in (0, 1)]


def test_a_sweep_of_which_only_the_table_is_there(swept: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(swept / "table.csv", alone)
    _, page = _report(alone, tmp_path)
    _, whole = _report(swept, tmp_path)
    assert page.tables["overview"] == whole.tables["overview"]
    assert not page.images and whole.images


def test_names_from_files_are_text(defended: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(defended, folder)
    about = _scenario(folder)
    about["scenario"]["attack"]["settings"]["images"] = HOSTILE
    about["data"] = [{"name": HOSTILE, "sha256": HOSTILE, "official": [HOSTILE]}, HOSTILE]
    about["versions"] = {HOSTILE: HOSTILE}
    about["machine"] = HOSTILE
    (folder / "scenario.json").write_text(json.dumps(about))
    log = json.loads((folder / "defense.jsonl").read_text())
    log["relative_change"] = {HOSTILE: 0.5, "bad": "text"}
    log["epochs"] = [{HOSTILE: 1.0}, HOSTILE]
    (folder / "defense.jsonl").write_text(json.dumps(log))
    table = read_table(folder / "results.csv")
    table["dataset"], table["attack"] = HOSTILE, HOSTILE
    table.loc[len(table)] = {**table.iloc[0].to_dict(), "metric": f"auc[{HOSTILE}]", "value": 0.5}
    table.to_csv(folder / "results.csv", index=False)
    text, page = _report(folder, tmp_path)
    assert "<script" not in text and "script" not in page.tags
    assert text.count("&lt;script&gt;") > 5
    assert HOSTILE in page.text
    assert all(tag.isalnum() for tag in page.tags)


def test_a_cell_name_does_not_lead_out_of_its_sweep(swept: Path, tmp_path: Path) -> None:
    folder = tmp_path / "inner" / "sweep"
    (folder / "cells").mkdir(parents=True)
    shutil.copytree(next(swept.glob("cells/*")), tmp_path / "secret")
    table = pd.read_csv(swept / "table.csv", keep_default_na=False)
    table = table[table["cell"] == table["cell"].iloc[0]].assign(cell="../../../secret")
    table.to_csv(folder / "table.csv", index=False)
    assert read_sources([folder]).runs[0].folder is None


def test_what_is_no_run_is_refused_in_a_sentence(
    defended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    damaged, empty = tmp_path / "damaged", tmp_path / "empty"
    shutil.copytree(defended, damaged)
    (damaged / "scenario.json").write_text("{")
    empty.mkdir()
    (empty / "results.csv").write_text(",".join(COLUMNS) + "\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "table.csv").write_text("a,b\n1,2\n")
    cases: list[tuple[list[Path], str]] = [
        ([tmp_path / "rnus"], "does not exist. Did you mean 'runs'?"),
        ([tmp_path / "runs"], "neither a run's .* nor a sweep's"),
        ([damaged], "scenario.json cannot be read"),
        ([empty], "measured nothing yet"),
        ([tmp_path / "broken"], "has no column 'cell'"),
        ([defended, defended], "hold the same run"),
        ([], "at least one folder"),
    ]
    for folders, words in cases:
        with pytest.raises(FlSimError, match=words):
            write_report(folders, tmp_path / "report.html", tables=tmp_path / "t")
    with pytest.raises(FlSimError, match="is a folder"):
        write_report(defended, tmp_path)
    with pytest.raises(FlSimError, match="0 images or more"):
        write_report(defended, images=-1)
    (damaged / "scenario.json").write_text((defended / "scenario.json").read_text())
    (damaged / "images" / "recovered.safetensors").write_bytes(b"no")
    with pytest.raises(FlSimError, match=r"recovered images .* cannot be read"):
        write_report(damaged, tmp_path / "report.html")
    assert not list(tmp_path.glob("*.html")) and not (tmp_path / "t").exists()


def test_the_command(defended: Path, tmp_path: Path) -> None:
    page, tables = tmp_path / "r.html", tmp_path / "t"
    arguments = ["report", str(defended), "--out", str(page), "--tables", str(tables)]
    done = CliRunner().invoke(app, [*arguments, "--images", "2"])
    assert done.exit_code == 0, done.output
    assert "r.html" in done.output and page.read_text().startswith("<!DOCTYPE html>")
    assert (tables / "utility.csv").is_file()
    refused = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert isinstance(refused.exception, FlSimError)


def test_an_interrupted_run_is_reported_as_such(defended: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(defended, folder)
    (folder / "finished").unlink()
    assert "has not come to its end" in _report(folder, tmp_path)[1].text
    assert "has not come to its end" not in _report(defended, tmp_path)[1].text


def _row(metric: str, value: float, stage: str, extraction: str = "-", **other: Any) -> Any:
    facts = ("federated-x", 0, "federated", "phantoms", "cnn", "dec", "lwlrd", "fedavg", 4, 1)
    own = (stage, extraction, metric, value)
    return dict(zip(COLUMNS, (*facts, *own), strict=True)) | other


def _federated(identified: float, intact: float = 0.0) -> list[dict[str, Any]]:
    rows = []
    for server_round in (1, 2, 3):
        for stage, share in (("upload", 1.0), ("aggregate", identified), ("release", identified)):
            numbers = [
                _row("ssim", share * server_round / 3, stage, "strongest"),
                _row("ssim", share / 4, stage, "raw"),
                _row("identification_distance", 0.0, stage, "strongest"),
                _row("identification_correlation", share, stage, "strongest"),
                _row("identification_chance", 1 / 16, stage),
                _row("ssim_floor_mean", 0.4, stage),
                _row("images_intact", 16.0 if stage == "upload" else intact, stage),
                _row("images_damaged", 0.0, stage),
                _row("images_lost", 0.0 if stage == "upload" else 16.0 - intact, stage),
                _row("bit_error_rate", 0.0 if stage == "upload" else 0.25, stage),
                _row("carrier_error[fc.weight]", 0.25, stage),
                _row("auc", 0.9 if stage == "upload" else 0.8, stage),
            ]
            rows += [{**row, "round": server_round} for row in numbers]
    return [*rows, _row("auc_floor_scratch", 0.85, "release", round=3)]


def _write(folder: Path, rows: list[dict[str, Any]], federation: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    pd.DataFrame(rows)[list(COLUMNS)].to_csv(folder / "results.csv", index=False, na_rep="nan")
    about = {"scenario": {"mode": "federated", "federation": federation}}
    (folder / "scenario.json").write_text(json.dumps(about))
    (folder / "finished").touch()
    (folder / "images").mkdir()
    pictures = {"original": torch.rand(16, 1, 80, 80)}
    for stage in ("upload", "release"):
        pictures[f"{stage}/raw"] = torch.zeros(16, 1, 80, 80)
        pictures[f"{stage}/raw/ssim"] = torch.zeros(16)
    save_file(pictures, folder / "images" / "recovered.safetensors")
    return folder


FEDERATION = {"hospitals": 4, "malicious": [0], "rounds": 3}


def test_a_federation_round_by_round(tmp_path: Path) -> None:
    folder = _write(tmp_path / "run", _federated(0.5), FEDERATION)
    text, page = _report(folder, tmp_path)
    assert "8 of 16 stolen images can be identified in the released model" in page.text
    # One extraction, one guess; tables without the floor have that of a blind guess.
    assert "16 of 16 can be identified, where one guess finds 1" in page.text
    assert "of 16; guessing: 1" in page.text
    assert "25\u00a0% of the payload's bits are wrong" in page.text
    assert "AUC is 0.800 before the defence and 0.800 after" in page.text
    assert "What leaves is worth no more than that" in page.text
    charts = [row for row in page.tables["chart"] if row and row[0] == "3"]
    assert charts[0] == ["3", "1.000", "0.500", "0.500"]
    assert charts[1] == ["3", "1.000", "0.500", "0.500"]
    assert "guessing" in text and "from scratch" in text
    assert page.tables["places"][1][0] == "fc.weight"
    assert ["Best", "0.500", "0.000", "0.500"] in page.tables["leakage"]  # of the last round
    assert all(image["src"].startswith("data:image/webp") for image in page.images)
    assert "nothing could be read" in page.text


@pytest.mark.parametrize(
    ("identified", "intact", "malicious", "headline"),
    [
        (0.5, 0.0, [0], "8 of 16 stolen images can be identified in the released model"),
        (0.5, 0.0, [0, 1], "50\u00a0% of the stolen images can be identified in the released"),
        (0.0625, 0.0, [0], "stolen images are identified no better than by guessing"),
        (1.0, 12.0, [0], "12 of 16 hidden images leave intact, bit for bit"),
    ],
)
def test_the_headline_follows_from_the_numbers(
    identified: float, intact: float, malicious: list[int], headline: str, tmp_path: Path
) -> None:
    federation = {**FEDERATION, "malicious": malicious}
    folder = _write(tmp_path / "run", _federated(identified, intact), federation)
    group = read_sources([folder]).groups[0]
    story = Story(group, Measurements(group))
    assert headline in story.headline
    assert story.leaks("upload") and story.leaks("release") is (identified > 0.1)


@pytest.mark.parametrize(("extractions", "leaks"), [(0, True), (20, False)])
def test_what_the_best_of_many_guesses_finds_is_no_leak(
    extractions: int, leaks: bool, tmp_path: Path
) -> None:
    rows = _federated(5 / 16)
    tries = [f"try {n}" for n in range(extractions)]
    rows += [_row("ssim", 0.1, "release", extraction, round=3) for extraction in tries]
    group = read_sources([_write(tmp_path / "run", rows, FEDERATION)]).groups[0]
    story = Story(group, Measurements(group))
    assert story.leaks("release") is leaks
    assert ("no better than by guessing" in story.headline) is not leaks


def test_points_and_floors_that_are_no_numbers_are_not_drawn(tmp_path: Path) -> None:
    folders = []
    for place in range(3):
        names = {"scenario": f"s{place}", "defense": f"d{place}"}
        rows = [row | names for row in _federated(0.5)]
        for row in rows:
            if row["metric"] in ("ssim_floor_mean", *(["auc"] if place == 2 else [])):
                row["value"] = math.nan
        folders.append(_write(tmp_path / f"run{place}", rows, FEDERATION))
    groups = read_sources(folders).groups
    charts = trade_offs(groups, [Measurements(group) for group in groups])
    assert [chart.legend for chart in charts] == [[("1", "d0"), ("2", "d1")]] * 2
    assert [len(chart.leak_floors) for chart in charts] == [1, 0]


def test_several_scenarios_are_summed_up_without_a_double_negative(tmp_path: Path) -> None:
    folders = []
    for place, share in enumerate((0.5, 0.0625, 0.5)):
        names = {"scenario": f"s{place}", "defense": f"d{place}"}
        rows = [row | names for row in _federated(share)]
        folders.append(_write(tmp_path / f"run{place}", rows, FEDERATION))
    said = "More images than guessing finds are identified in {} attacked and defended scenarios."
    assert said.format("2 of 3") in _report(folders, tmp_path)[1].text
    text = _report([folders[1], _honest(tmp_path)], tmp_path)[1].text
    assert said.format("none of 1").replace("scenarios", "scenario") in text


def _honest(tmp_path: Path) -> Path:
    rows = [_row("auc", 0.9, "release", attack="none", scenario="honest")]
    return _write(tmp_path / "honest", rows, {**FEDERATION, "malicious": []})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lwlrd_uniform", "LWLRD uniform"),
        ("consistent_distillation", "consistent distillation"),
        ("dec", "DEC"),
        ("fedavgm", "FedAvgM"),
        ("dermamnist", "DermaMNIST"),
        ("data/My_file.npz", "My file"),
    ],
)
def test_names_are_written_as_people_write_them(name: str, said: str) -> None:
    assert plain(name) == said


def test_runs_that_differ_in_a_setting_are_told_apart(tmp_path: Path) -> None:
    folders = []
    for boost in (1, 4):
        rows = [{**row, "scenario": f"federated-{boost}"} for row in _federated(0.5)]
        federation = {**FEDERATION, "boost": boost}
        folders.append(_write(tmp_path / f"run{boost}", rows, federation))
    sources = read_sources(folders)
    assert sources.axes == ["settings"]
    labels = [group.labels["settings"] for group in sources.groups]
    assert labels == ["federation.boost 1", "federation.boost 4"]
    heads = [row[0] for row in _report(folders, tmp_path)[1].tables["overview"][1:]]
    assert heads == [f"{number}  {label}" for number, label in enumerate(labels, start=1)]


def test_settings_become_flat() -> None:
    values = {"attack": {"name": "dec", "settings": {"images": 8, "key": None}}, "on": True}
    attack = {"attack": "dec", "attack.images": "8", "attack.key": "none"}
    assert flat(values) == attack | {"on": "yes"}


def test_an_honest_run_has_no_leak(tmp_path: Path) -> None:
    rows = [_row("auc", 0.9, "release", attack="none", defense="none")]
    group = Group([Run("x", None, {}, pd.DataFrame(rows)[list(COLUMNS)])])
    story = Story(group, Measurements(group))
    assert story.headline == "Nothing was hidden in this model"
    assert story.sentences[1:] == ["The model's AUC is 0.900."]
    assert [figure.title for figure in key_figures(story)] == ["AUC"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.123"),
        (-0.5, "−0.500"),
        (1.0, "1.000"),
        (64.0, "64"),
        (1003.0, "1,003"),
        (0.0001, "1.0e−04"),
        (math.nan, "–"),
        (math.inf, "∞"),
        (12.345, "12.3"),
    ],
)
def test_numbers_are_written_for_people(value: float, text: str) -> None:
    assert number(value) == text


def _luminance(colour: str) -> float:
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_stands_out_in_both_colour_schemes() -> None:
    style = Path(__file__).parents[3] / "experiments" / "report" / "templates" / "report.css"
    schemes = re.findall(r":root \{(.*?)\}", style.read_text(), flags=re.DOTALL)[:2]
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", scheme))
        for text in ("ink", "soft", "link", "leak", "blue", "amber", "good"):
            for ground in ("paper", "card"):
                light, dark = sorted(
                    (_luminance(colours[text]), _luminance(colours[ground])), reverse=True
                )
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
