"""The documentation site: everything stands in it, links lead somewhere, it can be built."""

import functools
import html
import importlib
import importlib.util
import inspect
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from experiments.catalogue.contents import FILES, KINDS, TABLE, TABLES, Catalogue, Item
from experiments.catalogue.keys import keys_of
from experiments.catalogue.sample import sample
from experiments.handbook.columns import MEANINGS
from experiments.handbook.commands import command_page, commands
from experiments.handbook.components import Page, path_of
from experiments.handbook.contents import made_pages
from experiments.handbook.markup import anchor, escaped, paragraphs
from experiments.handbook.moving import CREDIT, PICTURE, Lane, draw
from experiments.handbook.notebooks import notebook_pictures
from experiments.handbook.python_names import RETURNED, public_names, python_page
from experiments.handbook.studies import pictures
from experiments.handbook.texts import section_of, text_of, with_texts, without_marks
from experiments.notebooks import NOTEBOOKS
from experiments.run.shipped import shipped
from fl_sim.errors import FlSimError
from fl_sim.results import COLUMNS
from tests.experiments.browser_kit import Browser, find_chromium
from tests.experiments.cli_kit import ROOT

CATALOGUE = Catalogue()
ITEMS = [Item(kind.name, name) for kind in KINDS for name in CATALOGUE.names(kind.name)]
ITEMS += [Item(TABLE, name) for name in TABLES]


@pytest.fixture(scope="module")
def pages() -> dict[str, Page]:
    return made_pages()


def _entry(text: str, name: str) -> str:
    """Return what a page says under the heading of a name."""
    begin = text.index(f" {{ #{anchor(name)} }}\n")
    end = re.search(r"^## ", text[begin:], re.MULTILINE)
    return text[begin : begin + end.start()] if end else text[begin:]


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: f"{item.kind}-{item.name}")
def test_every_component_has_an_entry_with_its_keys(item: Item, pages: dict[str, Page]) -> None:
    text = pages[path_of(item.kind)][1]
    entry, details = _entry(text, item.name), CATALOGUE.details(item)
    assert text.count(f"(#{anchor(item.name)})") == 1
    if lines := sample(item, details):
        assert f"```toml\n{lines}\n```" in entry
    shown = re.findall(r"<dt><code>([\w.]+)", entry)
    assert shown == [key.name for key in keys_of(details.settings)] if details.settings else True


def test_every_file_that_comes_along_is_shown(pages: dict[str, Page]) -> None:
    for kind, (_, one) in FILES.items():
        for name, file in shipped(one).items():
            assert file.read_text().rstrip() in _entry(pages[path_of(kind)][1], name)


def test_every_command_and_every_option_is_shown() -> None:
    text = command_page()
    for name, command in commands():
        entry = _entry(text, name)
        for parameter in command.params:
            said = getattr(parameter, "help", None) or ""
            option = max(parameter.opts, key=len)
            assert option in entry or not option.startswith("-"), (name, option)
            assert html.escape(" ".join(said.split())) in entry, (name, option)


def test_every_column_has_a_meaning() -> None:
    assert tuple(MEANINGS) == COLUMNS and all(MEANINGS.values())


def test_every_public_name_is_on_the_page_and_says_what_it_does() -> None:
    import fl_sim

    text = python_page()
    assert set(public_names()) == set(fl_sim.__all__)
    for home in (*public_names().values(), *RETURNED):
        assert f"::: {home}\n" in text
        module, _, name = home.rpartition(".")
        thing = getattr(importlib.import_module(module), name)
        assert inspect.getdoc(thing), home
        for member, value in vars(thing).items() if isinstance(thing, type) else ():
            called = inspect.isfunction(value) or isinstance(value, property | classmethod)
            if called and not member.startswith("_"):
                assert inspect.getdoc(value), f"{home}.{member}"


def test_links_and_pictures_of_made_pages_lead_to_pages(pages: dict[str, Page]) -> None:
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    there = {*pages, *pictures(), *notebook_pictures(), *written}
    for path, (title, text) in pages.items():
        assert title and re.search(r"^# \S", text, re.MULTILINE), path
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            place = Path(path).parent / target
            resolved = place.resolve().relative_to(Path.cwd()).as_posix()
            assert "://" in target or resolved in there, (path, target)


def test_every_study_with_a_page_is_in_the_results(pages: dict[str, Page]) -> None:
    for file in (ROOT / "experiments/studies").glob("*/README.md"):
        assert f"results/{file.parent.name}.md" in pages
    assert "defenses/headline.png" in " ".join(pictures())


def test_the_picture_that_moves_stands_still_on_request_and_says_what_it_shows() -> None:
    assert PICTURE.stat().st_size < 300_000
    text = PICTURE.read_text(encoding="utf-8")
    assert "<script" not in text and 'aria-labelledby="title desc"' in text
    assert '<desc id="desc">Patient images go into a model' in text and CREDIT in text
    still, moving = text.partition("@media (prefers-reduced-motion: no-preference)")[::2]
    assert moving.count("animation:") == 4 and "animation" not in still
    assert not re.search(r'(?:href|src|url\()="?https?:', text)


def test_the_picture_is_drawn_of_what_came_out(tmp_path: Path) -> None:
    true = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    lane = Lane(("a", "b"), true, true.flip(0), 7, 9, (0.25, 0.75), 1, 0.5)
    text = draw(tmp_path / "p.svg", true, [lane, lane]).read_text(encoding="utf-8")
    shown = re.findall(r"base64,([^\"]+)", text)
    assert len(shown) == 2 + 2 * 4 and shown[:2] == shown[2:4] == shown[4:6][::-1]
    assert "SSIM 0.75; 7 of 9 found" in text and "a guess finds 1 of 9" in text


def test_a_notebook_is_a_page_with_its_outputs_and_pictures(pages: dict[str, Page]) -> None:
    for name in NOTEBOOKS:
        title, text = pages[f"notebooks/{name}.md"]
        assert text.startswith(f"# {title}\n") and f"({name}.md)" in pages["notebooks/index.md"][1]
        assert "```python\n" in text and "<style" not in text and 'class="dataframe"' not in text
        drawn = re.findall(rf"\(({name}_files/[^)]+)\)", text)
        assert drawn or name == "your_own_checkpoint"
        for place in drawn:
            assert notebook_pictures()[f"notebooks/{place}"].startswith(b"\x89PNG")


def test_nothing_of_a_text_is_taken_for_markup() -> None:
    assert escaped("a_b <c> |d| [e](f) *g*\nh") == (
        "a&#95;b &#60;c&#62; &#124;d&#124; &#91;e&#93;(f) &#42;g&#42; h"
    )
    assert paragraphs("One <x>.\n\nTwo:\n  a\n  b") == (
        "<p>One &lt;x&gt;.</p>\n<p>Two:</p>\n<pre>  a\n  b</pre>"
    )
    assert 'href="https://arxiv.org/abs/2509.00027"' in paragraphs("From arXiv 2509.00027.")


def test_a_text_is_taken_in_with_its_links_led_to_pages() -> None:
    shown = with_texts("add.md", "# Add\n\n<!-- include: CONTRIBUTING.md#Adding a component -->\n")
    assert "is **one new file** in its folder" in shown and "include" not in shown
    whole = text_of("CHANGELOG.md", "changelog.md")
    assert whole.startswith("# Changelog")
    first = text_of("README.md", "paths/x.md")
    assert "(../limits.md)" in first and "(../results/measured.md)" in first
    index = text_of("experiments/studies/README.md", "results/index.md")
    assert "[page](held_out.md)" in index
    study = text_of("experiments/studies/defenses/README.md", "results/defenses.md")
    assert "(defenses/defenses.png)" in study and "(measured.md#defences)" in study
    assert "## a" not in section_of("## b\nx\n### c\ny\n## a\n", "b", "here")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("<!-- include: CONTRIBUTING.md#Stile -->", "no section 'Stile'. Did you mean 'Style'?"),
        ("<!-- include: NOTHING.md -->", "takes in NOTHING.md, which is not there."),
    ],
)
def test_a_text_that_is_not_there_is_one_sentence(line: str, said: str) -> None:
    with pytest.raises(FlSimError, match=re.escape(said)):
        with_texts("x.md", line)


def test_docstrings_are_read_without_roles_and_shared_entries() -> None:
    pytest.importorskip("griffe", reason="needs the packages of the extra 'docs'")
    from experiments.handbook.roles import readable

    said = readable(
        "See :func:`~a.b`, ``c``::\n\nArgs:\n    one, two:\n        both.\n    z: it.\n"
    )
    both = "    one:\n        both.\n    two:\n        both.\n"
    assert said == f"See `a.b`, `c`:\n\nArgs:\n{both}    z: it.\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="needs the packages of the extra 'docs'")
    pytest.importorskip("material", reason="needs the packages of the extra 'docs'")
    folder = tmp_path_factory.mktemp("site")
    from mkdocs.__main__ import cli

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.setattr(socket.socket, "connect", None)
        done = CliRunner().invoke(cli, ["build", "--strict", "--site-dir", str(folder)])
    assert done.exit_code == 0, (done.output, done.exception)
    return folder


@pytest.mark.slow
def test_the_site_is_built_without_a_network_and_loads_nothing_from_elsewhere(site: Path) -> None:
    loads = re.compile(r"<(?:link|script|img|iframe)[^>]+(?:href|src)=\"?(https?:[^\" >]+)")
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        assert loads.findall(page.read_text(encoding="utf-8")) == [], page
    assert "[fl-sim" not in (site / "reference/python.html").read_text()
    assert "<svg" in (site / "concepts/stages.html").read_text()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


_LOADED = """performance.getEntries().filter(e => !e.name.includes("/search/"))
    .reduce((sum, e) => sum + (e.encodedBodySize || 0), 0)"""
_LOOK_FOR = """document.querySelector("[data-md-toggle=search]").click();
    var field = document.querySelector(".md-search__input");
    field.focus(); field.value = "{}"; field.dispatchEvent(new Event("keyup", {{bubbles: true}}))"""


_AXE = """axe.run(document, {}).then(found => {{ window.found =
    found.violations.filter(one => ["serious", "critical"].includes(one.impact))
    .map(one => one.id + ": " + one.nodes.map(node => node.html.slice(0, 80)).join(", ")) }})"""
_OF_COLOURS = ["color-contrast", "link-in-text-block"]


def test_marks_of_numbers_leave_no_gap() -> None:
    text = "It is 0.9\n<!-- = a.csv [k=1]\nauc -->, or 2 <!-- = b.csv auc --> more."
    text += "\n<!-- given: 2 -->\n"
    assert without_marks(text) == "It is 0.9, or 2 more.\n"
    kept = "Write `<!-- = FILE.csv column -->` behind it.\n\n<!-- include: a.md -->\n"
    assert without_marks(kept) == kept


def find_axe() -> Path | None:
    """Return the script of axe-core that AXE names, or that of the package axe-core-python."""
    if named := os.environ.get("AXE"):
        return Path(named)
    package = importlib.util.find_spec("axe_core_python")
    return Path(str(package.origin)).parent / "axe.min.js" if package else None


@pytest.mark.slow
@pytest.mark.skipif(find_chromium() is None, reason="no Chromium here")
@pytest.mark.skipif(find_axe() is None, reason="needs axe-core-python")
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_serious(address: str, width: int, dark: bool, tmp_path: Path) -> None:
    """All rules in the light; in the dark those of colours, since nothing else differs there."""
    program, script = find_chromium(), find_axe()
    assert program is not None and script is not None
    pages: tuple[str, ...] = (
        "index",
        "leaderboard",
        "use/leaderboard",
        "use/command-line",
        "paths/clean",
    )
    pages += ("results/measured", "results/index", "concepts/leakage", "compare")
    options = {"resultTypes": ["violations"], **({"runOnly": _OF_COLOURS} if dark else {})}
    with Browser(program, tmp_path) as browser:
        for page in (*pages, "reference/error-correcting-codes"):
            browser.open(f"{address}/{page}.html", width, dark)
            assert browser.evaluate("document.documentElement.scrollWidth") == width, page
            assert browser.complaints() == [], page
            browser.evaluate(script.read_text(encoding="utf-8"))
            browser.evaluate(f"void {_AXE.format(json.dumps(options))}")
            for _ in range(240):
                if (found := browser.evaluate("window.found")) is not None:
                    break
                time.sleep(0.25)
            assert found == [], page


@pytest.mark.slow
@pytest.mark.skipif(find_chromium() is None, reason="no Chromium here")
def test_the_leaderboard_is_sorted_and_filtered(address: str, tmp_path: Path) -> None:
    program = find_chromium()
    assert program is not None
    with Browser(program, tmp_path) as browser:
        browser.open(f"{address}/leaderboard.html", 1280)
        head = "[...document.querySelectorAll('#board thead th')].find(h => h.innerText == 'AUC')"
        place = browser.evaluate(f"{head}.cellIndex")
        values = (
            "[...document.querySelectorAll('#board tbody tr:not([hidden])')]"
            f".map(line => Number(line.cells[{place}].dataset.value))"
        )
        browser.evaluate(f"{head}.firstChild.click()")
        assert browser.evaluate(f"{head}.getAttribute('aria-sort')") == "ascending"
        rising = browser.evaluate(values)
        assert rising == sorted(rising) and len(rising) > 50
        browser.evaluate(f"{head}.firstChild.click()")
        assert browser.evaluate(values) == rising[::-1]
        browser.evaluate(
            "f = document.querySelector('form.board input'); f.value = 'lwlrd';"
            "f.dispatchEvent(new Event('input')); 0"
        )
        assert 0 < len(browser.evaluate(values)) < len(rising)


@pytest.mark.slow
@pytest.mark.skipif(find_chromium() is None, reason="no Chromium here")
def test_the_site_in_a_browser(address: str, tmp_path: Path) -> None:
    program = find_chromium()
    assert program is not None
    with Browser(program, tmp_path) as browser:
        for page in (
            "index",
            "paths/clean",
            "concepts/leakage",
            "reference/defences",
            "compare",
            "notebooks/attack_and_look",
            "notebooks/lake_and_federation",
        ):
            for width, dark in ((1280, False), (390, True)):
                browser.open(f"{address}/{page}.html", width, dark)
                assert browser.evaluate("document.documentElement.scrollWidth") == width
                assert browser.complaints() == []
                assert [url for url in browser.requests() if not url.startswith(address)] == []
                scheme = browser.evaluate("document.body.dataset.mdColorScheme")
                assert scheme == ("slate" if dark else "default")
                assert page != "index" or browser.evaluate(_LOADED) < 500_000
        browser.open(f"{address}/index.html", 1280)
        browser.evaluate(_LOOK_FOR.format("lwlrd"))
        for _ in range(60):
            found = browser.evaluate("document.querySelector('.md-search-result').innerText")
            if "LWLRD" in found:
                break
            time.sleep(0.5)
        assert "LWLRD" in found
