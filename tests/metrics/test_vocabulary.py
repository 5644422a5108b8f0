"""What names of metrics mean, and that what is said of them holds together."""

import math

import pytest
import torch

from fl_sim.errors import FlSimError
from fl_sim.metrics.measure import measure_leakage
from fl_sim.metrics.vocabulary import (
    HIGHER_LEAKS,
    LOWER_LEAKS,
    METRICS,
    Metric,
    column_label,
    column_order,
    describe,
    known,
    measured_on_images,
)


@pytest.mark.parametrize(
    ("name", "base", "form", "part", "title"),
    [
        ("images_intact[lattices]", "images_intact", "", "lattices", "Intact, lattices"),
        ("auc_before_embedding", "auc", "_before_embedding", "", "AUC before embedding"),
        (
            "auc_trained_on_stolen_raw",
            "auc",
            "_trained_on_stolen_raw",
            "",
            "AUC trained on what was stolen, raw",
        ),
        (
            "dice[left lung]_floor_scratch",
            "dice",
            "_floor_scratch",
            "left lung",
            "Dice from scratch, left lung",
        ),
        ("ssim_floor_mean", "ssim", "_floor_mean", "", "Mean of public images"),
        ("ms_ssim_3", "ms_ssim", "", "", "MS-SSIM, 3 scales"),
    ],
)
def test_a_form_of_a_metric_is_known_by_its_metric(
    name: str, base: str, form: str, part: str, title: str
) -> None:
    found = describe(name)
    assert (found.base, found.form, found.part, found.metric.title) == (base, form, part, title)
    assert found.declared and found.metric.direction == known(base).direction
    assert found.metric.format == known(base).format


@pytest.mark.parametrize("name", ["own_number", "auc_of_mine", "x[y]", "[", "", "ssim_3"])
def test_what_nobody_declared_has_plain_defaults_and_stands_last(name: str) -> None:
    found = describe(name)
    assert not found.declared and found.metric.digits == 3
    assert column_order(name) > column_order("permuted_share")
    assert column_label("own_number[left]") == "own number, left"


def test_floors_are_metrics_of_the_same_scale() -> None:
    for entry in METRICS.entries():
        for floor in entry.component.floors:
            found = describe(floor)
            assert found.declared and found.metric.range == entry.component.range, floor
        for part in entry.component.best_of:
            assert known(part).direction == entry.component.direction


def test_leaks_are_measured_in_the_order_of_the_table() -> None:
    assert [name for name, _ in measured_on_images()] == [
        "ssim",
        "psnr",
        "ms_ssim",
        "identification_distance",
        "identification_correlation",
    ]


def test_a_metric_of_images_says_its_direction_and_what_a_broken_image_counts() -> None:
    def measure(recovered: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
        return (recovered - originals).flatten(1).norm(dim=1)

    with pytest.raises(FlSimError, match="'Error' is measured on recovered images"):
        Metric("Error", "leakage", pairwise=measure)
    with pytest.raises(FlSimError, match="say with 'broken'"):
        Metric("Error", "leakage", LOWER_LEAKS, pairwise=measure)
    assert Metric("Error", "leakage", LOWER_LEAKS, broken=9.0, pairwise=measure).no_leak == 9.0
    assert Metric("Error", "leakage", HIGHER_LEAKS, pairwise=measure).no_leak == 0.0


def test_where_lower_leaks_more_the_strongest_is_the_lowest_and_a_broken_image_no_leak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(METRICS, "_entries", {e.name: e for e in METRICS.entries()})
    METRICS.register("gap", "mean difference of pixels")(
        Metric(
            "Gap",
            "leakage",
            LOWER_LEAKS,
            range=(0.0, 1.0),
            floors=("gap_floor_random",),
            pairwise=lambda a, b: (a - b).abs().flatten(1).mean(dim=1),
        )
    )
    METRICS.register("farthest", "largest difference of any two pixels")(
        Metric(
            "Farthest",
            "leakage",
            LOWER_LEAKS,
            batchwise=lambda recovered, originals, public: (
                (recovered - originals).abs().max().item()
            ),
        )
    )
    generator = torch.Generator().manual_seed(0)
    originals, public = (torch.rand(n, 1, 28, 28, generator=generator) for n in (6, 9))
    shifted = 0.3 * originals + 0.2
    measured = measure_leakage(shifted, originals, public, 0)
    for metric in ("gap", "farthest"):
        values = [r.value for r in measured.rows if r.metric == metric and r.extraction != "-"]
        assert len(values) > 2 and min(values) < max(values)
        assert measured.value(metric) == min(values)
    assert measured.value("ssim") == max(r.value for r in measured.rows if r.metric == "ssim")
    assert measured.value("gap", "raw") == pytest.approx(float((shifted - originals).abs().mean()))
    assert 0.2 < measured.value("gap_floor_random") < 0.5
    nothing = torch.full_like(originals, math.nan)
    broken = measure_leakage(nothing, originals, public[:0], 0)
    assert broken.value("gap") == 1.0
