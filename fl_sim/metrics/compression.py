"""What a codec costs and what it keeps: rate against gzip, and fidelity of what is decoded.

Li, Ayache and Delingette, "Data Exfiltration by Compression Attack", MELBA 2025:032, section 3.2.
"""

import gzip
import math
from collections.abc import Sequence

import torch

from fl_sim.errors import FlSimError
from fl_sim.metrics.leakage import ms_ssim, ms_ssim_name, psnr, sanitize, ssim
from fl_sim.metrics.measure import Measured
from fl_sim.metrics.vocabulary import METRICS, Metric
from fl_sim.words import NO_EXTRACTION

GZIP_LEVEL = 6
"""What the ``gzip`` program uses unless told otherwise."""


@torch.no_grad()
def measure_compression(
    images: torch.Tensor,
    decoded: Sequence[torch.Tensor | str],
    codes: Sequence[bytes],
    baseline_bytes: int | None = None,
) -> list[Measured]:
    """Measure a codec on images.

    Rate: ``bpp``, bits a pixel of one channel plane; ``bytes_per_image``; ``p_ratio``, bytes of
    the codes over bytes of the lossless baseline (the paper's P_ratio). Fidelity: ``psnr`` in
    decibels, ``ssim`` and MS-SSIM (under :func:`fl_sim.metrics.leakage.ms_ssim_name`, where it
    exists) as means over the images. An image that was not decoded, or not to finite values,
    counts 0 in them and 1 in ``undecoded``.

    Args:
        images: what was encoded, ``[n, channels, height, width]`` in [0, 1].
        decoded: what :meth:`fl_sim.codec.Codec.decode` returned.
        codes: of the images.
        baseline_bytes: of the lossless baseline; by default gzip of each image's 8-bit pixels.

    Raises:
        FlSimError: if there is no image, or the numbers or shapes of images do not agree.
    """
    restored, good = _decoded(images, decoded, codes)
    size = sum(len(code) for code in codes)
    if baseline_bytes is None:
        baseline_bytes = gzip_baseline(images)
    if baseline_bytes < 1:
        raise FlSimError(
            f"The lossless baseline must have a size, but baseline_bytes is {baseline_bytes}."
        )
    n, _, height, width = images.shape
    numbers = {
        "bpp": 8 * size / (n * height * width),
        "bytes_per_image": size / n,
        "p_ratio": size / baseline_bytes,
    }
    fidelity = {"psnr": psnr(restored, images), "ssim": ssim(restored, images)}
    multi_scale = ms_ssim(restored, images)
    if multi_scale is not None:
        fidelity[ms_ssim_name(height, width)] = multi_scale
    for metric, values in fidelity.items():
        numbers[metric] = float(torch.where(good, values, 0.0).double().mean())
    numbers["undecoded"] = float((~good).sum())
    return [Measured(NO_EXTRACTION, metric, value) for metric, value in numbers.items()]


def gzip_baseline(images: torch.Tensor) -> int:
    """Return the bytes of gzip of each image's 8-bit pixels, summed.

    Args:
        images: ``[n, channels, height, width]`` in [0, 1].
    """
    pixels = (images.detach().cpu().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    # Channels last, as image files hold them.
    files = (image.permute(1, 2, 0).contiguous().numpy().tobytes() for image in pixels)
    return sum(len(gzip.compress(file, GZIP_LEVEL, mtime=0)) for file in files)


def _decoded(
    images: torch.Tensor, decoded: Sequence[torch.Tensor | str], codes: Sequence[bytes]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the decoded images, black where there is none, and which are good."""
    if images.ndim != 4 or len(images) == 0:
        raise FlSimError(
            "There are no images [n, channels, height, width] to measure a codec on: "
            f"their shape is {list(images.shape)}."
        )
    if not len(images) == len(decoded) == len(codes):
        raise FlSimError(
            f"A codec is measured on {len(images)} images, but {len(decoded)} decoded images and "
            f"{len(codes)} codes were given."
        )
    values = torch.full(images.shape, torch.nan)
    for number, image in enumerate(decoded):
        if isinstance(image, str):
            continue
        if image.shape != images.shape[1:]:
            raise FlSimError(
                f"Image {number} was decoded to shape {list(image.shape)}, "
                f"but encoded from shape {list(images.shape[1:])}."
            )
        values[number] = image
    values = values.to(images.device)
    good = values.isfinite().flatten(1).all(dim=1)
    return sanitize(values, images.shape)[0], good


METRICS.register("bpp", "bits a pixel of one channel plane")(
    Metric("Bits a pixel", "sent", range=(0.0, math.inf), shown=(), order=50)
)
METRICS.register("p_ratio", "bytes of the codes over bytes of gzip")(
    Metric("Size to gzip", "sent", range=(0.0, math.inf), shown=(), order=60)
)
METRICS.register("bytes_per_image", "bytes of the codes an image")(
    Metric(
        "Bytes an image",
        "sent",
        unit="bytes",
        format="bytes",
        range=(0.0, math.inf),
        shown=(),
        order=70,
    )
)
METRICS.register("undecoded", "images that a codec did not decode to finite values")(
    Metric("Images not decoded", "sent", format="count", range=(0.0, math.inf), shown=(), order=80)
)
