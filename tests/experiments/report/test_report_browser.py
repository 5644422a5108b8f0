"""Reports in a real browser: nothing is missing, complains or sticks out. Needs Chromium."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from experiments.report import write_report
from experiments.run.result import Result
from experiments.tables.pictures import draw_grid
from fl_sim.auditing.auditor import audit_file
from fl_sim.auditing.page import write_page
from fl_sim.results import COLUMNS
from tests.experiments.browser_kit import Browser, find_chromium

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: set CHROMIUM or install chromium"
)

STAGES = ("upload", "aggregate", "release")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Start one browser for all tests."""
    assert CHROMIUM is not None
    with Browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as started:
        yield started


def _rows(seed: int, defense: str, leak: float) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    facts = ("federated", seed, "federated", "phantoms", "cnn", "dec", defense, "fedavg", 4)
    lines = []
    for server_round in (1, 2, 3):
        for stage in STAGES:
            base = leak if stage == "release" else 0.9
            numbers = {("-", "auc"): 0.8, ("-", "identification_chance"): 0.05}
            numbers |= {("-", "ssim_floor_mean"): 0.4, ("-", "auc_floor_scratch"): 0.7}
            numbers |= {
                ("-", f"images_{k}"): v
                for k, v in zip(("intact", "damaged", "lost"), (6, 7, 7), strict=True)
            }
            numbers |= {
                ("-", f"carrier_error[layer{n}.0.convolution.weight]"): 0.3 for n in range(30)
            }
            for extraction in ("raw", "affine", "strongest"):
                for metric in (
                    "ssim",
                    "identification_distance",
                    "identification_correlation",
                    "psnr",
                ):
                    numbers[extraction, metric] = base * generator.uniform(0.8, 1.0)
            for (extraction, metric), value in numbers.items():
                measured = (server_round, stage, extraction, metric, value)
                lines.append((*facts, *measured))
    table = pd.DataFrame(lines, columns=list(COLUMNS))
    table["scenario"] = f"federated-{defense}"
    return table


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a report on a federation, and one that compares three defences."""
    folder = tmp_path_factory.mktemp("pages")
    runs = []
    for defense, leak in (("none", 0.9), ("lwlrd", 0.5), ("a_defence_with_a_long_name", 0.1)):
        for seed in (0, 1):
            run = folder / f"{defense}-{seed}"
            (run / "images").mkdir(parents=True)
            _rows(seed, defense, leak).to_csv(run / "results.csv", index=False)
            settings = '{"scenario": {"federation": {"malicious": [0], "hospitals": 4}}}'
            (run / "scenario.json").write_text(settings)
            (run / "finished").touch()
            layers = ", ".join(f'"layer{n}.weight": {10.0 ** -(n % 5)}' for n in range(12))
            log = f'{{"round": 3, "relative_change": {{{layers}}}, "epochs": [{{"loss": 1.0}}]}}'
            (run / "defense.jsonl").write_text(log)
            pictures = {"original": torch.rand(20, 3, 28, 28)}
            for stage in STAGES:
                pictures[f"{stage}/raw"] = torch.rand(20, 3, 28, 28)
                pictures[f"{stage}/raw/ssim"] = torch.rand(20)
            save_file(pictures, run / "images" / "recovered.safetensors")
            runs.append(run)
    return {
        "one": write_report(runs[2:4], folder / "one.html", images=20),
        "several": write_report(runs, folder / "several.html"),
    }


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("name", ["one", "several"])
def test_a_page_fits_and_is_whole(
    browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    browser.open(pages[name], width, dark)
    assert browser.complaints() == []
    assert browser.requests() == [pages[name].resolve().as_uri()]
    images = browser.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth, i.alt])")
    assert len(images) >= 60
    assert all(complete and pixels == 28 and alt for complete, pixels, alt in images)
    for opened in (False, True):
        if opened:
            browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        # What lies in a box that scrolls, or is hidden on purpose, may stick out of the page.
        outside = browser.evaluate(
            """[...document.querySelectorAll('body *')].filter(e =>
                !e.closest('.box') && !e.closest('.unseen') && !e.closest('.skip') &&
                !e.closest('svg') && e.getBoundingClientRect().width > 0 &&
                (e.getBoundingClientRect().right > innerWidth + 1 ||
                 e.getBoundingClientRect().left < -1)).map(e => e.outerHTML.slice(0, 80))"""
        )
        assert outside == []
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(20, 23, 27)") is dark


def test_text_in_charts_stays_legible_and_inside(browser: Browser, pages: dict[str, Path]) -> None:
    for name in pages:
        browser.open(pages[name], 360)
        charts = browser.evaluate("document.querySelectorAll('svg').length")
        assert charts > 0
        smallest = browser.evaluate(
            """Math.min(...[...document.querySelectorAll('svg text')].map(t =>
                parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a))"""
        )
        assert smallest >= 8.5
        outside = browser.evaluate(
            """[...document.querySelectorAll('svg text')].filter(t =>
                t.getBoundingClientRect().right > innerWidth ||
                t.getBoundingClientRect().left < 0).map(t => t.textContent)"""
        )
        assert outside == []


def test_charts_have_the_colours_and_the_font_of_the_page(
    browser: Browser, pages: dict[str, Path]
) -> None:
    seen = []
    for dark in (False, True):
        browser.open(pages["one"], 1200, dark)
        looks = browser.evaluate(
            """(() => {const look = (e, name) => getComputedStyle(e)[name];
                const all = s => [...document.querySelectorAll('.chart svg ' + s)];
                const probe = name => {document.body.style.color = `var(${name})`;
                    return look(document.body, 'color')};
                return {
                    marks: [...new Set(all('.s0 use').map(e => look(e, 'fill')))],
                    bands: [...new Set(all('.band.s0 path').map(e => look(e, 'fill')))],
                    names: [...new Set(all('.name.s0 text').map(e => look(e, 'fill')))],
                    ticks: [...new Set(all('g:not([class]) > text').map(e => look(e, 'fill')))],
                    fonts: [...new Set(all('text').map(e => look(e, 'fontFamily')))],
                    font: [look(document.body, 'fontFamily')],
                    leak: [probe('--leak')], soft: [probe('--soft')]}})()"""
        )
        assert looks["marks"] == looks["bands"] == looks["names"] == looks["leak"]
        assert looks["ticks"] == looks["soft"] and looks["fonts"] == looks["font"]
        seen.append(looks["leak"])
    assert seen[0] != seen[1]


def test_a_keyboard_reaches_every_box_that_scrolls(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["several"], 360)
    unreachable = browser.evaluate(
        """[...document.querySelectorAll('*')].filter(e => e.scrollWidth > e.clientWidth + 1 &&
            ['auto', 'scroll'].includes(getComputedStyle(e).overflowX) &&
            (e.tabIndex < 0 || !e.getAttribute('aria-label'))).map(e => e.className)"""
    )
    assert unreachable == []


def test_a_page_prints(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    browser.open(pages["one"], 1200)
    browser.print_pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes()[:5] == b"%PDF-"


def test_an_audit_shows_its_evidence_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    noise = torch.randint(0, 2**16, (256, 64), generator=torch.Generator().manual_seed(0))
    long = "features.denseblock4.denselayer16.convolution_of_a_long_name.weight"
    save_file({long: noise.to(torch.uint16)}, tmp_path / "m.safetensors")
    report = audit_file(tmp_path / "m.safetensors")
    evident = [finding for finding in report.findings if finding.evidence]
    assert evident
    browser.open(write_page(tmp_path / "page.html", report), 360)
    shown = browser.evaluate(
        """[...document.querySelectorAll('td[data-name=Evidence]')].filter(e =>
            e.textContent.trim()).map(e => [e.getBoundingClientRect().left,
            e.getBoundingClientRect().right])"""
    )
    assert len(shown) == len(evident)
    assert all(0 <= left < right <= 360 for left, right in shown)


def test_what_a_notebook_shows_fits_a_narrow_window(browser: Browser, tmp_path: Path) -> None:
    table = _rows(0, "lwlrd", 0.5)
    table.to_csv(tmp_path / "results.csv", index=False)
    (tmp_path / "images").mkdir()
    images = {"original": torch.rand(8, 1, 28, 28), "release/raw": torch.rand(8, 1, 28, 28)}
    draw_grid(tmp_path / "images" / "recovered.png", images, 8, "eight images")
    page = tmp_path / "page.html"
    meta = '<!doctype html><meta name="viewport" content="width=device-width">'
    page.write_text(meta + Result(None, tmp_path)._repr_html_())
    for width in (360, 1200):
        browser.open(page, width)
        assert browser.complaints() == []
        assert browser.evaluate("document.images[0].naturalWidth") > 1000
        assert browser.evaluate("document.images[0].getBoundingClientRect().right") <= width
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate("document.querySelectorAll('tbody tr').length") == 9
