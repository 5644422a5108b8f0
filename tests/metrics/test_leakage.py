"""Leakage metrics against scikit-image, scipy and plain loops."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fl_sim.errors import FlSimError
from fl_sim.metrics import leakage
from fl_sim.metrics.leakage import (
    IdentificationResult,
    identification,
    ms_ssim,
    ms_ssim_name,
    ms_ssim_scales,
    psnr,
    sanitize,
    ssim,
)


def smooth(n: int, channels: int, side: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")


def noisy(images: torch.Tensor, deviation: float, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (images + deviation * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def real_images(count: int) -> torch.Tensor:
    root = os.environ.get("FL_SIM_DATA")
    file = Path(root or "") / "medmnist" / "dermamnist.npz"
    if not root or not file.is_file():
        pytest.skip("FL_SIM_DATA names no folder with medmnist/dermamnist.npz")
    with np.load(file) as arrays:
        images = arrays["train_images"][:count]
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def reference_ssim(a: torch.Tensor, b: torch.Tensor) -> list[float]:
    return [
        float(
            structural_similarity(
                x.double().numpy(), y.double().numpy(), channel_axis=0, data_range=1.0
            )
        )
        for x, y in zip(a, b, strict=True)
    ]


@pytest.mark.parametrize(
    ("n", "channels", "side"),
    [(1, 1, 7), (3, 3, 8), (40, 3, 28), (3, 1, 48), (3, 1, 49), (5, 1, 64), (2, 1, 224)],
)
@pytest.mark.parametrize("deviation", [0.0, 0.02, 0.5])
def test_ssim_is_that_of_skimage(n: int, channels: int, side: int, deviation: float) -> None:
    a = smooth(n, channels, side, seed=0)
    b = noisy(a, deviation)
    np.testing.assert_allclose(ssim(a, b).numpy(), reference_ssim(a, b), atol=1e-6)


def test_ssim_is_that_of_skimage_on_other_shapes() -> None:
    a, b = torch.rand(4, 3, 9, 31), torch.rand(4, 3, 9, 31)
    np.testing.assert_allclose(ssim(a, b).numpy(), reference_ssim(a, b), atol=1e-6)
    wide = torch.rand(2, 3, 9, 60), torch.rand(2, 3, 9, 60)
    np.testing.assert_allclose(ssim(*wide).numpy(), reference_ssim(*wide), atol=1e-6)
    flat = torch.full((2, 1, 20, 20), 0.3)
    almost = flat + 1e-4 * torch.rand(2, 1, 20, 20)
    np.testing.assert_allclose(ssim(flat, almost).numpy(), reference_ssim(flat, almost), atol=1e-6)
    opposite = 1.0 - a
    np.testing.assert_allclose(ssim(a, opposite).numpy(), reference_ssim(a, opposite), atol=1e-6)


def test_ssim_and_psnr_are_those_of_skimage_on_real_images() -> None:
    images = real_images(80)
    shuffled = images.roll(1, 0)
    np.testing.assert_allclose(
        ssim(images, shuffled).numpy(), reference_ssim(images, shuffled), atol=1e-6
    )
    expected = [
        peak_signal_noise_ratio(x.double().numpy(), y.double().numpy(), data_range=1.0)
        for x, y in zip(images, shuffled, strict=True)
    ]
    np.testing.assert_allclose(psnr(images, shuffled).numpy(), expected, rtol=1e-5)


def test_ssim_needs_seven_pixels() -> None:
    with pytest.raises(FlSimError, match="7x7"):
        ssim(torch.rand(2, 1, 6, 28), torch.rand(2, 1, 6, 28))


def test_shapes_must_agree() -> None:
    for metric in (ssim, psnr, ms_ssim, identification):
        with pytest.raises(FlSimError, match="shapes"):
            metric(torch.rand(2, 1, 28, 28), torch.rand(2, 3, 28, 28))


def test_no_image_has_no_ssim() -> None:
    assert ssim(torch.rand(0, 1, 28, 28), torch.rand(0, 1, 28, 28)).shape == (0,)


def test_one_bad_image_does_not_touch_the_others() -> None:
    a, b = smooth(3, 3, 28, 0), smooth(3, 3, 28, 1)
    clean = ssim(a, b)
    a[1, 0, 5, 5] = float("nan")
    values = ssim(a, b)
    assert values[1].isnan()
    assert torch.equal(values[[0, 2]], clean[[0, 2]])


def test_psnr_is_capped_where_images_are_identical() -> None:
    a = smooth(3, 1, 28, 0)
    b = a.clone()
    b[1] = noisy(a, 0.1)[1]
    values = psnr(a, b)
    assert values[0] == 100.0
    assert values[2] == 100.0
    expected = peak_signal_noise_ratio(a[1].double().numpy(), b[1].double().numpy(), data_range=1.0)
    assert float(values[1]) == pytest.approx(expected, rel=1e-5)
    assert float(psnr(torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8))) == 0.0


@pytest.mark.parametrize(
    ("side", "scales"),
    [(21, 0), (22, 2), (28, 2), (43, 2), (44, 3), (64, 3), (98, 3), (99, 4), (175, 4), (176, 5)],
)
def test_ms_ssim_uses_as_many_scales_as_fit(side: int, scales: int) -> None:
    assert ms_ssim_scales(side, side + 9) == ms_ssim_scales(side + 9, side) == scales
    images = torch.rand(1, 1, side, side)
    assert (ms_ssim(images, images) is None) == (scales == 0)


def test_only_five_scales_have_the_plain_name() -> None:
    names = [ms_ssim_name(side, side) for side in (28, 64, 128, 224)]
    assert names == ["ms_ssim_2", "ms_ssim_3", "ms_ssim_4", "ms_ssim"]


@pytest.mark.parametrize(
    ("channels", "height", "width"),
    [(1, 28, 28), (3, 22, 31), (1, 64, 50), (3, 99, 120), (1, 176, 180)],
)
@pytest.mark.parametrize("deviation", [0.02, 0.5])
def test_ms_ssim_is_that_of_torchmetrics(
    channels: int, height: int, width: int, deviation: float
) -> None:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    a = smooth(3, channels, height, seed=0)
    a = torch.nn.functional.interpolate(a, size=(height, width), mode="bilinear")
    b = noisy(a, deviation)
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)[: ms_ssim_scales(height, width)]
    expected = multiscale_structural_similarity_index_measure(
        b.double(),
        a.double(),
        data_range=1.0,
        reduction="none",
        betas=tuple(weight / sum(weights) for weight in weights),
        normalize="relu",
    )
    values = ms_ssim(b, a)
    assert values is not None and values.dtype == torch.float32
    np.testing.assert_allclose(values.numpy(), expected.numpy(), atol=1e-6)
    assert 0.0 <= float(values.min()) < float(values.max()) < 1.0


def test_ms_ssim_of_an_image_does_not_depend_on_the_others() -> None:
    a = smooth(9, 1, 64, 0)
    same, worse = ms_ssim(a, a), ms_ssim(noisy(a, 0.3), a)
    assert same is not None and worse is not None
    torch.testing.assert_close(same, torch.ones(9))
    one = ms_ssim(noisy(a, 0.3)[8:], a[8:])
    assert one is not None
    torch.testing.assert_close(one, worse[8:])
    bad = noisy(a, 0.3)
    bad[2, 0, 5, 5] = float("nan")
    values = ms_ssim(bad, a)
    assert values is not None and values.isnan().tolist() == [i == 2 for i in range(9)]
    # A negative's contrast term is negative, which counts as 0.
    negative = ms_ssim(1.0 - a, a)
    assert negative is not None and bool((negative == 0.0).any()) and not bool((negative < 0).any())


def plain_identification(recovered: torch.Tensor, originals: torch.Tensor) -> tuple[float, float]:
    n = len(originals)
    r, x = recovered.double().flatten(1).numpy(), originals.double().flatten(1).numpy()
    near = alike = 0
    for i in range(n):
        distances = [np.linalg.norm(np.clip(r[i], 0, 1) - x[j]) for j in range(n)]
        near += int(np.argmin(distances) == i)
        correlations = [pearsonr(r[i] - r.mean(0), x[j] - x.mean(0))[0] for j in range(n)]
        alike += int(np.argmax(correlations) == i)
    return near / n, alike / n


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("deviation", [0.1, 1.0, 3.0])
def test_identification_is_that_of_a_plain_loop(channels: int, deviation: float) -> None:
    originals = smooth(20, channels, 12, seed=3)
    generator = torch.Generator().manual_seed(4)
    recovered = originals + deviation * torch.randn(originals.shape, generator=generator)
    result = identification(recovered, originals)
    near, alike = plain_identification(recovered, originals)
    assert result.distance == pytest.approx(near)
    assert result.correlation == pytest.approx(alike)
    assert result.chance == 1 / 20


def test_both_means_are_removed() -> None:
    # Images that share a picture in unequal parts: with the recovered batch's mean removed alone,
    # about half of them are mistaken for one another.
    weights = torch.rand(20, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    originals = weights * smooth(1, 3, 28, seed=7) + 0.05 * smooth(20, 3, 28, seed=0)
    noise = torch.randn(originals.shape, generator=torch.Generator().manual_seed(2))
    recovered = originals + 0.02 * noise
    result = identification(recovered, originals)
    assert result.correlation == pytest.approx(plain_identification(recovered, originals)[1])
    assert result.correlation > 0.9


def test_a_common_shift_hides_nothing_from_correlation() -> None:
    originals = smooth(30, 3, 28, seed=0)
    shift = smooth(1, 3, 28, seed=9) * 3 - 1
    result = identification(0.05 * originals + shift, originals)
    assert result.distance < 0.2
    assert result.correlation == 1.0


@pytest.mark.parametrize("constant", [0.0, 0.5, 0.3, 1.0, -7.0])
def test_constant_images_score_chance(constant: float) -> None:
    originals = smooth(16, 3, 28, seed=0)
    result = identification(torch.full_like(originals, constant), originals)
    assert result.distance == pytest.approx(1 / 16)
    assert result.correlation == pytest.approx(1 / 16)


def test_the_same_picture_for_all_scores_chance() -> None:
    originals = smooth(16, 3, 28, seed=0)
    for picture in (originals[:1], originals.mean(0, keepdim=True)):
        result = identification(picture.expand_as(originals), originals)
        assert result.distance == pytest.approx(1 / 16)
        assert result.correlation == pytest.approx(1 / 16)


def test_ties_between_different_images_are_shared() -> None:
    originals = torch.zeros(2, 1, 8, 8)
    originals[0, 0, 0, 0] = 1.0
    originals[1, 0, 7, 7] = 1.0
    result = identification(torch.zeros_like(originals), originals)
    assert result.distance == 0.5
    assert result.correlation == 0.5


def test_identical_originals_are_one_candidate() -> None:
    originals = smooth(10, 3, 28, seed=0)
    originals[7] = originals[2]
    result = identification(originals.clone(), originals)
    assert (result.distance, result.correlation, result.chance) == (1.0, 1.0, 1 / 9)
    all_alike = originals[:1].expand(4, -1, -1, -1)
    assert identification(all_alike, all_alike).chance == 1.0
    constant = identification(torch.full_like(originals, 0.5), originals)
    assert constant.correlation == pytest.approx(1 / 9)


def test_one_image_is_its_own_chance() -> None:
    originals = smooth(1, 1, 28, seed=0)
    result = identification(torch.rand(1, 1, 28, 28), originals)
    assert (result.distance, result.correlation, result.chance) == (1.0, 1.0, 1.0)


def test_bad_images_are_not_identified_and_do_not_spoil_the_rest() -> None:
    originals = smooth(10, 3, 28, seed=0)
    recovered = originals + 0.01 * torch.randn(originals.shape)
    recovered[0, 0, 0, 0] = float("nan")
    recovered[1] = float("inf")
    recovered[2] = 1e30
    result = identification(recovered, originals)
    assert 0.7 <= result.distance <= 0.8
    assert 0.7 <= result.correlation <= 0.8
    nothing = identification(torch.full_like(originals, float("nan")), originals)
    assert (nothing.distance, nothing.correlation) == (0.0, 0.0)


def in_float64(recovered: torch.Tensor, originals: torch.Tensor) -> IdentificationResult:
    """Identify without products in float32, all at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leakage, "_SCREENED", float("inf"))
        patch.setattr(leakage, "_ROWS", 1 << 20)
        return identification(recovered, originals)


def test_float32_first_decides_as_float64_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leakage, "_SCREENED", 0)
    monkeypatch.setattr(leakage, "_ROWS", 7)
    unsure = count_rows_in_float64(monkeypatch)
    originals = smooth(60, 3, 12, seed=3)
    originals[30:40] = originals[20:30] + 1e-7 * torch.rand(10, 3, 12, 12)  # nearly the same
    originals[50] = originals[3]
    noise = torch.randn(originals.shape, generator=torch.Generator().manual_seed(4))
    for deviation in (0.0, 1e-7, 0.1, 1.0, 3.0):
        recovered = originals + deviation * noise
        expected = in_float64(recovered, originals)
        unsure.clear()
        assert identification(recovered, originals) == expected
        if deviation <= 0.1:
            # What float32 cannot tell apart, and little else, is looked at again, twice.
            assert 40 <= sum(unsure) <= 60
    recovered[5], recovered[6], recovered[7, 0, 0, 0] = 0.5, 1e30, float("nan")
    assert identification(recovered, originals) == in_float64(recovered, originals)


def count_rows_in_float64(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    plain, counts = leakage._shares, list[int]()

    def counted(points: torch.Tensor, *others: Any) -> torch.Tensor:
        counts.append(len(points))
        return plain(points, *others)

    monkeypatch.setattr(leakage, "_shares", counted)
    return counts


def test_float32_first_shares_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leakage, "_SCREENED", 0)
    test_ties_between_different_images_are_shared()
    test_identical_originals_are_one_candidate()
    for constant in (0.0, 0.3, -7.0):
        test_constant_images_score_chance(constant)
    test_the_same_picture_for_all_scores_chance()
    # Half-way between two originals, but for a part in 10^9 that float32 does not see.
    originals = smooth(12, 1, 28, seed=1).double()
    between = originals.clone()
    between[0] = 0.5 * (originals[0] + originals[1])
    between[2] = (0.5 + 1e-9) * originals[2] + (0.5 - 1e-9) * originals[3]
    between[4] = (0.5 - 1e-9) * originals[4] + (0.5 + 1e-9) * originals[5]
    assert identification(between, originals).distance == pytest.approx((9 + 0.5 + 1 + 0) / 12)


def test_products_of_lower_precision_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leakage, "_SCREENED", 0)
    images = torch.rand(2, 4)
    assert leakage._worth_screening(images, images)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert not leakage._worth_screening(images, images)
    finally:
        torch.set_float32_matmul_precision(before)


def test_identification_needs_an_image() -> None:
    with pytest.raises(FlSimError, match="no original"):
        identification(torch.rand(0, 1, 8, 8), torch.rand(0, 1, 8, 8))


def test_sanitize_clamps_counts_and_shapes() -> None:
    recovered = torch.rand(4, 3 * 8 * 8).double() * 4 - 2
    recovered[1, 5] = float("nan")
    recovered[3, 0] = float("-inf")
    images, bad = sanitize(recovered, (4, 3, 8, 8))
    assert bad == 2
    assert images.dtype == torch.float32
    assert images.shape == (4, 3, 8, 8)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert not bool(images[1].any())
    assert not bool(images[3].any())
    torch.testing.assert_close(images[0].flatten(), recovered[0].clamp(0, 1).float())
    with pytest.raises(FlSimError, match="were hidden"):
        sanitize(recovered, (4, 1, 8, 8))
    with pytest.raises(FlSimError, match="were hidden"):  # as many values, more images
        sanitize(recovered, (2, 3, 16, 8))
    with pytest.raises(FlSimError, match="were hidden"):
        sanitize(recovered[:2], (4, 3, 8, 8))
