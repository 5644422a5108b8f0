"""Numbers that pages state: each is what its row says, or is marked as given."""

import re
from pathlib import Path

import pytest

from experiments.studies import published, stated
from experiments.studies.base import RESULTS
from experiments.studies.published import README, pages
from experiments.studies.stated import OPEN, Examined, Remark, examine, examine_pages, failures
from experiments.studies.stated_cells import HOWS, parsed
from fl_sim.errors import FlSimError
from tests.experiments.cli_kit import fl_sim


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a made-up study, beside that of another."""
    study, other = tmp_path / "study", tmp_path / "other"
    study.mkdir()
    other.mkdir()
    (study / "t.csv").write_text(
        "defense,held-out images,seed,auc,ssim raw,found,bytes\n"
        "none,50,0,0.911,0.94,1,9900000\n"
        "LWLRD,50,0,0.84,0.22,0.9,\n"
        "LWLRD,50,1,0.88,0.18,0.8,\n"
        '"LWLRD, reversed",50,0,0.875,-0.012,0.0835,1234567\n'
    )
    (study / "rows.csv").write_text(
        "cell,grid.defense,seed,round,stage,auc\n"
        "a-seed0,none,0,1,release,0.9\na-seed0,none,0,2,release,0.8\n"
    )
    (other / "sums.csv").write_text(
        "variant,metric,n,missing,mean,low,high\n"
        "fast,auc,3,0,0.9,0.88,0.92\nfast,ssim raw,3,0,0.5,,\n"
    )
    return study


def found(folder: Path, text: str) -> Examined:
    return examine(text, folder, folder.parent)


def wrong(folder: Path, text: str) -> list[str]:
    examined = found(folder, text)
    assert not examined.missing
    return [remark.said for remark in examined.wrong]


def missing(folder: Path, text: str) -> list[str]:
    examined = found(folder, text)
    assert not examined.wrong
    return [remark.text for remark in examined.missing]


@pytest.mark.parametrize(
    "text",
    [
        "AUC 0.911 <!-- = t.csv [defense=none] auc -->.",
        "AUC 0.86 <!-- = t.csv [defense=LWLRD] auc --> in the mean.",
        "0.84 <!-- = t.csv [defense=LWLRD] auc min --> or 0.88 <!-- = t.csv [seed=1] auc max -->",
        "0.84 to 0.88, or 0.84-0.88 <!-- = t.csv [defense=LWLRD] auc range, range -->",
        '0.911, 0.94, 0.9 <!-- = t.csv [defense=none] auc, "ssim raw", [defense=LWLRD] auc -->',
        "It loses 0.051 <!-- = t.csv [defense=none] auc - [defense=LWLRD] auc -->",
        "It gains -0.05 <!-- = t.csv [defense=LWLRD] auc - [defense=none] -->",
        "91 % and 91.1% <!-- = t.csv [defense=none] auc, auc -->",
        '8.35 % (or 8.4 %, 8 %) <!-- = t.csv [defense="LWLRD, reversed"] found, found, found -->',
        "9.9 MB, 9,900 kB or 9.9 million <!-- = t.csv [defense=none] bytes, bytes, bytes -->",
        '1,234,567 <!-- = t.csv [defense="LWLRD, reversed"] bytes -->',
        '-0.01 <!-- = t.csv [defense="LWLRD, reversed"] "ssim raw" -->',
        '\N{MINUS SIGN}0.012 <!-- = t.csv [defense="LWLRD, reversed"] "ssim raw" -->',
        '8e-2 <!-- = t.csv [defense="LWLRD, reversed"] found -->',
        "4 rows, 3 kinds <!-- = t.csv defense count, distinct -->",
        "1.7 <!-- = t.csv [defense=LWLRD] found sum -->",
        '2 <!-- = t.csv [defense=LWLRD, bytes=""] seed count -->',
        '0.876 <!-- = t.csv [defense=none or "LWLRD, reversed" or LWLRD] auc -->',
        '0.865 <!-- = t.csv [defense="LWLRD*"] auc -->',
        "0.911, 0.876 <!-- = t.csv [defense=none] auc, [defense=*] -->",
        "0.85 <!-- = rows.csv [defense=none, round=*] auc -->",
        "0.90 \N{PLUS-MINUS SIGN}0.02 (0.88-0.92) "
        "<!-- = other/sums.csv [variant=fast] auc, half, low, high -->",
        "AUC\n0.911\nand <!-- = t.csv [defense=none]\nauc --> more",
        "- AUC 0.911\n  <!-- = t.csv [defense=none] auc -->",
        "|a|b|\n|---|---|\n|64|0.911 <!-- = t.csv [defense=none] auc --> <!-- given: 64 -->|",
    ],
)
def test_numbers_that_are_what_their_rows_say_pass(folder: Path, text: str) -> None:
    assert wrong(folder, text) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.912 <!-- = t.csv [defense=none] auc -->", r"0\.912 is stated, and t\.csv .*is 0\.911 "),
        ("0.92 <!-- = t.csv [defense=none] auc -->", "is 0.91 "),
        ("92 % <!-- = t.csv [defense=none] auc -->", "is 91 "),
        ("0.1 % <!-- = t.csv [defense=none] auc -->", r"is 91\.1 "),
        ("9.8 MB <!-- = t.csv [defense=none] bytes -->", r"is 9\.9 "),
        ("1,234,568 <!-- = t.csv [seed=0] bytes min -->", "is 1,234,567 "),
        ('0.012 <!-- = t.csv [defense="LWLRD, reversed"] "ssim raw" -->', r"is -0\.012 "),
        ("0.84 to 0.89 <!-- = t.csv [defense=LWLRD] auc range -->", r"max is 0\.88 "),
        ("0.05 <!-- = t.csv [defense=LWLRD] auc - [defense=none] -->", r"is -0\.05 "),
        ("1 <!-- = u.csv auc -->", r"no file of a study called 'u\.csv'.*t\.csv"),
        ("1 <!-- = others/sums.csv auc -->", r"Did you mean 'other/sums\.csv'"),
        ("1 <!-- = t.csv [defence=none] auc -->", "no column 'defence'.*Did you mean 'defense'"),
        ("1 <!-- = t.csv [defense=LWLR] auc -->", "no row with defense=LWLR .*LWLRD"),
        ("1 <!-- = t.csv [defense=none or x] auc -->", "no row with defense=x "),
        ("1 <!-- = t.csv [defense=none] acu -->", "no column 'acu'.*Did you mean 'auc'"),
        ("1 <!-- = t.csv [defense=LWLRD] bytes -->", "bytes mean has no number"),
        ("1 <!-- = t.csv [defense=none] auc low -->", "no column 'auc low'"),
        ("1 <!-- = t.csv [defense] auc -->", "not 'key=value"),
        ("1 <!-- = [defense=none] auc -->", "names no file"),
        ("1 <!-- = t.csv [defense=none] -->", "names no column"),
        ("1 <!-- = t.csv auc, -->", "names no column for one"),
        ("1 <!-- = t.csv auc range - auc -->", "a range is two numbers"),
        ("1 <!-- = t.csv auc - auc range -->", "a range is two numbers"),
        ("1 <!-- = t.csv auc; max -->", "cannot be read from '; max'"),
        ("1, 2 <!-- = t.csv auc -->", r"1 references for 2 numbers \(1, 2\)"),
        ("1 <!-- = t.csv auc, auc -->", "2 references for 1 numbers"),
        ("none <!-- = t.csv auc -->", r"1 references for 0 numbers \(none\)"),
        ("64 images <!-- given: 64, 65 -->", "65 is listed as given and does not occur"),
        ("a\n<!-- = t.csv auc --> 1 more", "begins a line"),
    ],
)
def test_what_is_wrong_is_one_sentence(folder: Path, text: str, said: str) -> None:
    first, *_ = found(folder, text).wrong
    assert re.search(said, first.said)


def test_a_number_without_a_row_is_missing_at_its_line(folder: Path) -> None:
    text = "# Title 7\n\n0.911\n<!-- = t.csv [defense=none] auc -->\n\n- one\n- `5`\n  0.5, 60 %\n"
    examined = found(folder, text)
    assert [(r.line, r.text) for r in examined.missing] == [(8, "0.5"), (8, "60%")]
    assert "0.5 has no row; put <!-- = FILE.csv" in examined.missing[0].said


def test_given_numbers_are_those_of_one_paragraph(folder: Path) -> None:
    text = "1,003 of 28 x 28, 1e-4 to 1e-2. <!-- given: 1,003, 28 x 28, 1e-4, 1e-2 -->\n\n28"
    assert missing(folder, text) == ["28"]


@pytest.mark.parametrize(
    "text",
    [
        "ResNet18, VGG11, layer3's, D1, 3x3, SHA-256, FedAvg2",
        "since 2025, arXiv 2509.00027, arXiv:2509.00027, version 1.41.2",
        "`0.5`, ``1``\n\n```\n0.5\n```\n\n    0.5\n",
        "[link](https://x.org/5) ![AUC 0.5](a5.png)",
        "## Part 2\n\n1. one\n2. two\n",
        "<!-- table: t -->\n| a | 0.5 |\n|---|---|\n| 1 | 2 |\n<!-- end -->\n",
        "<!-- 0.5 -->",
    ],
)
def test_names_code_links_and_generated_tables_need_no_row(folder: Path, text: str) -> None:
    assert missing(folder, text) == []


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("0.98 to 1.00, 0.06-0.11", ["0.98", "1.00", "0.06", "0.11"]),
        ("3,000 or 1e-4 (5 %), -0.01 and **28-pixel**", ["3,000", "1e-4", "5%", "-0.01", "28"]),
        ("[AUC 0.659](x.md), 2,025 and 20 25.", ["0.659", "2,025", "20", "25"]),
        ("83\n% of 6.9 million", ["83%", "6.9million"]),
        ("| a | 1 |\n|---|---|\n| 2 | `3` |", ["1", "2"]),
        ("> quoted 5", ["5"]),
    ],
)
def test_every_other_number_needs_one(folder: Path, text: str, texts: list[str]) -> None:
    assert missing(folder, text) == texts


def test_a_reference_leaves_out_what_is_as_before() -> None:
    first, second, third = parsed('a.csv [x=1, y="p, q"] auc max, [x=2], "ssim raw"')
    assert (second.cells.rows, second.cells.how) == ({"x": ("2",), "y": ("p, q",)}, "max")
    assert (third.cells.column, third.cells.how) == ("ssim raw", "mean")
    assert first.cells.file == third.cells.file == "a.csv"
    (fresh,) = parsed("a.csv [x=1] auc, b.csv auc")[1:]
    assert fresh.cells.rows == {}
    assert {parsed(f"a.csv auc {how}")[0].cells.how for how in HOWS if how != "range"} == {
        *HOWS
    } - {"range"}
    with pytest.raises(FlSimError, match="names no column"):
        parsed("a.csv auc,, auc")


def test_pages_state_what_their_rows_say() -> None:
    assert failures(examine_pages()) == []


def test_pages_that_are_not_marked_throughout_are_pages() -> None:
    names = {page.relative_to(README.parent).as_posix() for page in pages()}
    assert set(OPEN) <= names
    assert all(OPEN.values()), "a page without open numbers is marked throughout; take it out"


def test_an_open_page_may_not_get_more_numbers_without_a_row() -> None:
    remark = Remark(3, "0.5", "0.5 has no row.")
    examined = {"open.md": Examined(missing=[remark, remark]), "whole.md": Examined()}
    assert failures(examined, {"open.md": 2}) == []
    assert failures(examined, {"open.md": 1})[0].startswith("open.md: numbers without a row: 2, ")
    assert failures(examined, {}) == ["open.md:3: 0.5 has no row."] * 2
    assert failures({"open.md": Examined(wrong=[remark])}, {"open.md": 9}) == [
        "open.md:3: 0.5 has no row."
    ]


def test_the_command_lists_what_is_missing_and_refuses_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remark = Remark(3, "0.5", "0.5 is wrong.")
    page = "experiments/studies/capacity/README.md"
    opened = dict.fromkeys(OPEN, Examined())
    monkeypatch.setattr(published, "write_pages", lambda check: {})
    monkeypatch.setattr(stated, "examine_pages", lambda: {page: Examined(missing=[remark])})
    listed = fl_sim("study", "tables", "--missing")
    assert listed.returncode == 0
    assert listed.stdout.splitlines() == [f"{page}:3: 0.5", f"{page}: numbers without a row: 1"]
    monkeypatch.setattr(stated, "examine_pages", lambda: {page: Examined([remark]), **opened})
    for arguments in (["--check"], []):
        refused = fl_sim("study", "tables", *arguments)
        assert refused.returncode == 2
        assert f"{page}:3: 0.5 is wrong." in refused.stdout
        assert "Numbers in pages differ" in refused.stderr
    monkeypatch.setattr(stated, "examine_pages", lambda: opened)
    assert fl_sim("study", "tables", "--check").returncode == 0


def test_a_mark_of_a_page_that_is_changed_fails() -> None:
    page = RESULTS / "capacity" / "README.md"
    text = page.read_text(encoding="utf-8")
    assert "carrier's 628" in text
    changed = examine(text.replace("carrier's 628", "carrier's 629"), page.parent)
    assert ["629 is stated" in remark.said for remark in changed.wrong] == [True]
