"""Measuring one extraction as a whole."""

import subprocess
import sys

import pytest
import torch

from fl_sim.errors import FlSimError
from fl_sim.metrics.leakage import ssim
from fl_sim.metrics.measure import measure_leakage
from fl_sim.restorations.base import RESTORATIONS, choose

PER_EXTRACTION = {
    "ssim",
    "psnr",
    "ms_ssim_2",
    "identification_distance",
    "identification_correlation",
}
ONCE = {
    "identification_chance",
    "identification_floor",
    "identification_floor_high",
    "non_finite",
    "stolen_images",
    "ssim_floor_mean",
    "ssim_floor_random",
    *(f"attacker_chooses[{name}]" for name in ("raw", *RESTORATIONS.names())),
}


def images(n: int, seed: int, side: int = 28) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 1, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")


def test_every_extraction_has_every_metric_once() -> None:
    originals = images(8, 0)
    measured = measure_leakage(0.2 * originals + 0.7, originals, images(30, 1), seed=0)
    by_extraction: dict[str, list[str]] = {}
    for extraction, metric, _ in measured.rows:
        by_extraction.setdefault(extraction, []).append(metric)
    extracted = {"raw", "chosen", "strongest", *RESTORATIONS.names()}
    assert set(by_extraction) == extracted | {"-"}
    for extraction in extracted:
        assert sorted(by_extraction[extraction]) == sorted(PER_EXTRACTION)
    assert sorted(by_extraction["-"]) == sorted(ONCE)
    assert all(isinstance(row.value, float) for row in measured.rows)


def test_strongest_is_the_highest_metric_by_metric() -> None:
    originals = images(30, 0)
    shifted = 0.2 * originals + 2 * images(1, 9)[0] - 0.5
    measured = measure_leakage(shifted, originals, images(100, 1), seed=0)
    assert measured.strongest == "affine"
    for metric in PER_EXTRACTION:
        values = [measured.value(metric, name) for name in ("raw", *RESTORATIONS.names())]
        assert measured.value(metric) == max(values)
    assert measured.value("ssim") > measured.value("ssim", "raw") + 0.3
    untouched = measure_leakage(originals, originals, images(100, 1), seed=0)
    assert untouched.strongest == "raw"
    assert untouched.value("ssim") == pytest.approx(1.0)
    assert untouched.value("psnr") == 100.0


def test_pictures_come_with_their_ssim() -> None:
    originals = images(5, 0)
    measured = measure_leakage(originals * 3 - 1, originals, images(9, 1), seed=0)
    for name in ("raw", "affine"):
        shown = measured.images[name]
        assert float(shown.min()) >= 0
        assert float(shown.max()) <= 1
        torch.testing.assert_close(measured.ssim[name], ssim(shown, originals))
        assert measured.value("ssim", name) == pytest.approx(float(measured.ssim[name].mean()))


def test_what_the_attacker_tries_can_be_chosen() -> None:
    originals, public = images(30, 0), images(100, 1)
    shifted = 0.2 * originals + 2 * images(1, 9)[0] - 0.5
    plain = measure_leakage(shifted, originals, public, 0, restorations={})
    assert {row.extraction for row in plain.rows} == {"raw", "chosen", "strongest", "-"}
    measured = measure_leakage(
        shifted,
        originals,
        public,
        0,
        restorations={**choose(["affine"]), "learned": lambda recovered, public: originals},
        variants={"aligned": 0.5 * originals + 0.2},
    )
    assert {row.extraction for row in measured.rows} == {
        "raw",
        "affine",
        "learned",
        "aligned",
        "aligned+affine",
        "aligned+learned",
        "chosen",
        "strongest",
        "-",
    }
    assert measured.strongest == "learned"
    assert measured.value("ssim") == pytest.approx(1.0)
    assert measured.value("ssim", "aligned") > measured.value("ssim", "raw")
    # Pictures are kept of the strongest and of those that are always shown.
    assert set(measured.images) == set(measured.ssim) == {"raw", "affine", "learned"}
    with pytest.raises(FlSimError, match="were hidden"):
        measure_leakage(shifted, originals, public, 0, variants={"aligned": originals[:3]})


def test_images_that_are_not_finite_count_as_no_leak() -> None:
    # Black originals: a black stand-in for a broken image would otherwise look like a perfect hit.
    originals = images(4, 0) * 0.5
    originals[0] = 0.0
    recovered = originals.clone()
    recovered[0, 0, 0, 0] = float("nan")
    measured = measure_leakage(recovered, originals, images(9, 1), seed=0)
    assert measured.value("non_finite") == 1.0
    assert measured.value("ssim", "raw") == pytest.approx(0.75)
    assert measured.ssim["raw"][0] == 0.0
    assert measured.value("psnr", "raw") == pytest.approx(75.0)
    assert measured.value("identification_distance", "raw") == 0.75
    assert measured.value("identification_correlation", "raw") == 0.75
    nothing = measure_leakage(torch.full_like(originals, torch.nan), originals, images(9, 1), 0)
    assert nothing.value("non_finite") == 4.0
    for metric in PER_EXTRACTION:
        assert nothing.value(metric) == 0.0


def test_class_floor_where_labels_are_known() -> None:
    originals, public = images(4, 0), images(9, 1)
    measured = measure_leakage(
        originals, originals, public, 0, torch.tensor([0, 1, 0, 1]), torch.arange(9) % 2
    )
    assert 0 < measured.value("ssim_floor_class_mean") < 1
    with pytest.raises(FlSimError, match="not measured"):
        measured.value("ms_ssim")


def test_large_images_have_ms_ssim() -> None:
    originals = images(2, 0, side=176)
    measured = measure_leakage(originals, originals, images(3, 1, side=176), seed=0)
    assert measured.value("ms_ssim", "raw") == pytest.approx(1.0)


def test_the_same_input_gives_the_same_rows() -> None:
    originals, public = images(6, 0), images(9, 1)
    recovered = originals + 0.3
    first, second = (measure_leakage(recovered, originals, public, 5).rows for _ in range(2))
    assert first == second


def test_wrong_input_is_refused() -> None:
    originals, public = images(4, 0), images(9, 1)
    with pytest.raises(FlSimError, match="were hidden"):
        measure_leakage(originals[:3], originals, public, 0)
    with pytest.raises(FlSimError, match="no original"):
        measure_leakage(originals[:0], originals[:0], public, 0)
    with pytest.raises(FlSimError, match="Public images"):
        measure_leakage(originals, originals, public[:, :, 1:], 0)


def test_without_public_images_raw_ones_are_measured_and_nothing_else() -> None:
    originals, public = images(4, 0), images(9, 1)
    alone = measure_leakage(originals, originals, public[:0], 0)
    assert {row.extraction for row in alone.rows} == {"raw", "chosen", "strongest", "-"}
    assert alone.value("ssim") == pytest.approx(1.0) and alone.strongest == "raw"
    assert not [row for row in alone.rows if "ssim_floor" in row.metric]
    assert alone.chosen == "raw"
    beside = measure_leakage(originals, originals, public, 0)
    assert [row for row in beside.rows if row.extraction == "raw"] == [
        row for row in alone.rows if row.extraction == "raw"
    ]


def test_importing_and_measuring_small_images_loads_no_heavy_library() -> None:
    code = (
        "import sys, torch\n"
        "from fl_sim.metrics import measure, utility\n"
        "import fl_sim.results\n"
        "x = torch.rand(3, 1, 28, 28)\n"
        "measure.measure_leakage(x, x, torch.rand(3, 1, 28, 28), 0)\n"
        "heavy = {'torchmetrics', 'sklearn', 'skimage', 'pandas', 'scipy', 'torchvision'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
