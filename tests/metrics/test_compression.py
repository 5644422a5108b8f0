"""Rate and fidelity of a codec against gzip, scikit-image and torchmetrics."""

import gzip

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fl_sim.errors import FlSimError
from fl_sim.metrics.compression import gzip_baseline, measure_compression


def images(n: int, channels: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, channels, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")


def noisy(clean: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return (clean + 0.05 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)


def values(*arguments: object, **named: object) -> dict[str, float]:
    rows = measure_compression(*arguments, **named)
    assert {row.extraction for row in rows} == {"-"}
    assert len({row.metric for row in rows}) == len(rows)
    return {row.metric: row.value for row in rows}


@pytest.mark.parametrize("channels", [1, 3])
def test_rate_is_bits_a_pixel_and_bytes_an_image(channels: int) -> None:
    clean = images(4, channels, 32)
    measured = values(clean, list(clean), [bytes(n) for n in (10, 20, 30, 68)], baseline_bytes=640)
    assert measured["bpp"] == 8 * 128 / (4 * 32 * 32) == 0.25
    assert measured["bytes_per_image"] == 32.0
    assert measured["p_ratio"] == 0.2


@pytest.mark.parametrize("channels", [1, 3])
def test_the_default_baseline_is_gzip_of_8_bit_pixels(channels: int) -> None:
    clean = images(3, channels, 28)
    expected = sum(
        len(gzip.compress((image.permute(1, 2, 0).numpy() * 255).round().astype("u1").tobytes(), 6))
        for image in clean
    )
    assert gzip_baseline(clean) == expected
    measured = values(clean, list(clean), [bytes(100)] * 3)
    assert measured["p_ratio"] == 300 / expected


@pytest.mark.parametrize(("channels", "side"), [(1, 64), (3, 28)])
def test_fidelity_is_that_of_the_reference_libraries(channels: int, side: int) -> None:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    clean = images(5, channels, side)
    decoded = noisy(clean)
    measured = values(clean, list(decoded), [b"code"] * 5)
    pairs = [(x.double().numpy(), y.double().numpy()) for x, y in zip(clean, decoded, strict=True)]
    psnr = [peak_signal_noise_ratio(x, y, data_range=1.0) for x, y in pairs]
    ssim = [structural_similarity(x, y, channel_axis=0, data_range=1.0) for x, y in pairs]
    scales = {64: 3, 28: 2}[side]
    weights = np.array([0.0448, 0.2856, 0.3001])[:scales]
    multi_scale = multiscale_structural_similarity_index_measure(
        decoded.double(), clean.double(), data_range=1.0, betas=tuple(weights / weights.sum())
    )
    assert measured["psnr"] == pytest.approx(float(np.mean(psnr)), rel=1e-5)
    assert measured["ssim"] == pytest.approx(float(np.mean(ssim)), abs=1e-5)
    assert measured[f"ms_ssim_{scales}"] == pytest.approx(float(multi_scale), abs=1e-5)
    assert measured["undecoded"] == 0.0


def test_what_cannot_be_decoded_counts_nothing_and_is_counted() -> None:
    clean = images(4, 1, 28)
    whole = values(clean, list(clean), [b"1234"] * 4)
    assert (whole["psnr"], whole["ssim"]) == (100.0, pytest.approx(1.0))  # type: ignore[comparison-overlap]
    broken = [clean[0], "The code is damaged.", clean[2], torch.full_like(clean[3], torch.nan)]
    measured = values(clean, broken, [b"1234"] * 4)
    assert measured["undecoded"] == 2.0
    assert measured["psnr"] == 50.0
    assert measured["ssim"] == pytest.approx(0.5)
    assert measured["ms_ssim_2"] == pytest.approx(0.5)
    assert measured["bpp"] == whole["bpp"]
    nothing = values(clean, ["No."] * 4, [b""] * 4)
    assert nothing["undecoded"] == 4.0 and nothing["psnr"] == nothing["ssim"] == 0.0


def test_values_beyond_the_range_are_seen_clamped() -> None:
    black = torch.zeros(2, 1, 28, 28)
    assert values(black, list(black - 3.0), [b""] * 2)["psnr"] == 100.0


def test_sizes_decide_about_ms_ssim() -> None:
    for side, names in ((16, set()), (176, {"ms_ssim"})):
        clean = images(1, 1, side)
        measured = values(clean, [clean[0]], [b""])
        assert {name for name in measured if name.startswith("ms_ssim")} == names


def test_what_does_not_fit_is_refused() -> None:
    clean = images(2, 1, 28)
    with pytest.raises(FlSimError, match="no images"):
        measure_compression(clean[:0], [], [])
    with pytest.raises(FlSimError, match="1 decoded images and 2 codes"):
        measure_compression(clean, [clean[0]], [b"", b""])
    with pytest.raises(FlSimError, match="Image 1 was decoded to shape"):
        measure_compression(clean, [clean[0], clean[1, :, :20]], [b"", b""])
    with pytest.raises(FlSimError, match="baseline_bytes is 0"):
        measure_compression(clean, list(clean), [b"", b""], baseline_bytes=0)
