"""The README and the pages: short, their tables are what the results say, their links lead on."""

import re
from pathlib import Path

import pytest

from experiments.studies import published as readme
from experiments.studies.base import RESULTS, STUDIES
from experiments.studies.published import markdown, updated
from experiments.studies.published_tables import Column, PublishedTable
from experiments.studies.taking import take
from fl_sim.errors import FlSimError


def test_the_readme_says_what_the_results_say() -> None:
    shown = 0
    for page in readme.pages():
        text = page.read_text(encoding="utf-8")
        shown += text.count("<!-- table: ")
        assert updated(text) == text, "run: make tables"
    assert shown > len(readme.tables()) // 2


def test_every_study_lies_in_the_folder_of_its_name() -> None:
    folders = {path.parent.name for path in RESULTS.glob("*/__init__.py")}
    assert set(STUDIES.names()) == folders
    for entry in STUDIES.entries():
        assert all(name.isidentifier() for name in entry.component.tables)


def test_the_readme_is_a_page() -> None:
    assert len(readme.README.read_text(encoding="utf-8").splitlines()) <= 150


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in readme.pages():
        if page.is_relative_to(readme.DOCS):  # they are led on the site, which is built strictly
            continue
        links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
        for link in links:
            assert "://" in link or (page.parent / link).exists(), (page, link)


def test_every_table_whose_files_are_there_can_be_made() -> None:
    tables = readme.tables()
    made = [n for n, t in tables.items() if all((RESULTS / file).is_file() for file in t.files)]
    assert {"adaptive", "dec_federated"} <= set(made)
    for name in made:
        lines = markdown(name).removesuffix(readme.MEANS_ONLY).splitlines()
        assert len(lines) > 2
        assert len({line.count("|") for line in lines}) == 1


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    table = PublishedTable(
        ("t.csv",),
        {"defense": "defence"},
        (Column("SSIM", "ssim", stage="release"), Column("wrong", "errors", "percent", "release")),
        names={"lwlrd": "LWLRD"},
    )
    summary = PublishedTable(("s.csv",), {"defense": "defence"}, (Column("AUC", "auc"),))
    monkeypatch.setattr(readme, "tables", lambda: {"t": table, "s": summary})
    (tmp_path / "t.csv").write_text(
        "defense,seed,stage,ssim,errors\n"
        "none,0,upload,0.9,\nnone,0,release,0.9,0\n"
        "lwlrd,0,release,0.1,0.2\nlwlrd,1,release,0.3,0.2\n"
        '"lwlrd, 10 epochs",0,release,,5e-6\n'
    )
    (tmp_path / "s.csv").write_text(
        "defense,stage,metric,n,missing,mean,low,high\n"
        "none,release,auc,3,0,0.9,0.88,0.92\nlwlrd,release,auc,1,0,0.85,,\n"
        "lwlrd,release,ssim raw,1,0,0.2,,\n"
    )
    return tmp_path


def test_numbers_are_means_with_their_range_and_names_the_readmes(results: Path) -> None:
    assert markdown("t", results).splitlines() == [
        "| defence | SSIM | wrong |",
        "| --- | --- | --- |",
        "| none | 0.90 | 0 |",
        "| LWLRD | 0.20 (0.10-0.30) | 20 % |",
        "| LWLRD, 10 epochs |  | 0.0005 % |",
    ]


def test_a_sweeps_summary_is_shown_with_half_of_its_interval(results: Path) -> None:
    lines = markdown("s", results).splitlines()
    assert lines[2:] == ["| none | 0.900 ±0.020 |", "| lwlrd | 0.850 |"]


def test_an_interval_stays_where_values_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = Column("found", "found", bounds=(0, 1))
    monkeypatch.setattr(
        readme,
        "tables",
        lambda: {"b": PublishedTable(("b.csv",), {"defense": "defence"}, (column,))},
    )
    (tmp_path / "b.csv").write_text(
        "defense,found,found low,found high\n"
        "wide,0.48,-0.26,1.22\nfits,0.5,0.4,0.6\nclose,0.001,-0.001,0.003\n"
    )
    assert markdown("b", tmp_path).splitlines()[2:] == [
        "| wide | 0.48 (0.05-0.95) |",
        "| fits | 0.50 ±0.10 |",
        "| close | 0.00 (0.00-0.01) |",
    ]


def test_only_what_is_between_markers_changes(results: Path) -> None:
    text = (
        "before\n<!-- table: t -->\nold\n<!-- end -->\nbetween\n<!-- table: s -->\n<!-- end -->\n"
    )
    fresh = updated(text, results)
    assert fresh.startswith("before\n<!-- table: t -->\n| defence")
    assert "old" not in fresh
    assert "<!-- end -->\nbetween\n<!-- table: s -->\n| defence" in fresh
    assert updated(fresh, results) == fresh
    assert updated("no tables", results) == "no tables"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- table: u -->\n<!-- end -->", "no table of a study called 'u'"),
        ("<!-- table: t -->\n", "'t' has no end"),
        ("<!-- table: t -->\n<!-- table: s -->\n<!-- end -->", "'t' has no end"),
    ],
)
def test_a_wrong_marker_is_one_sentence(results: Path, text: str, said: str) -> None:
    with pytest.raises(FlSimError, match=said):
        updated(text, results)


def test_a_missing_file_or_column_is_one_sentence(results: Path) -> None:
    (results / "t.csv").write_text("defence,stage,ssim\nnone,release,0.5\n")
    with pytest.raises(FlSimError, match=r"no column 'defense'\. Did you mean 'defence'"):
        markdown("t", results)
    (results / "t.csv").unlink()
    with pytest.raises(FlSimError, match=r"t\.csv, which is not in"):
        markdown("t", results)


def test_a_study_without_rows_is_copied_with_its_origin_and_figure(tmp_path: Path) -> None:
    study, results = tmp_path / "study", tmp_path / "results"
    study.mkdir()
    for suffix in (".csv", ".json", ".png"):
        (study / f"weight_changes{suffix}").write_text(suffix)
    taken = take(study, results=results)
    assert taken.path == results / "weight_changes" / "weight_changes.csv"
    assert {path.name for path in taken.path.parent.iterdir()} == {
        "weight_changes.csv",
        "weight_changes.json",
        "weight_changes.png",
    }
    (study / "weight_changes.json").unlink()
    with pytest.raises(FlSimError, match="neither the folder of a study"):
        take(study, results=results)


def test_means_without_rows_say_so(results: Path) -> None:
    (results / "s.json").write_text('{"rows": false}')
    assert markdown("s", results).endswith("|\n\n*Means only; rows by seed are not kept.*\n")
    (results / "t.json").write_text('{"rows": false}')  # it has a row a seed all the same
    assert "Means only" not in markdown("t", results)
    (results / "s.json").write_text('{"rows": 12}')
    assert "Means only" not in markdown("s", results)
