"""What recovered images tell about the true ones: SSIM, PSNR, MS-SSIM and identification.

Images are float tensors ``[n, channels, height, width]``; the i-th recovered image is compared
with the i-th original.
"""

import math
from dataclasses import dataclass

import torch

from fl_sim.errors import FlSimError
from fl_sim.metrics.vocabulary import HIGHER_LEAKS, METRICS, Metric
from fl_sim.restorations.base import finite, typical

SSIM_WINDOW = 7
PSNR_CAP = 100.0
MS_SSIM_WINDOW = 11
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

_C1 = 0.01**2
_C2 = 0.03**2
# Doubles a chunk of one of the five maps may hold, so that all of them stay in a core's cache.
_CHUNK = 1 << 14
# Up to this side products with a band matrix beat sums of shifted maps, in larger chunks.
_SMALL = 48
_CHUNK_SMALL = 3 << 14
# Distances and correlations nearer than this (relative) are ties: it is above what summing in
# float64 leaves, and far below what one grey level of one pixel makes.
_TIE = 1e-11
# Rows of the table of all scores that are held at once.
_ROWS = 512
# Multiplications from which float32 first is faster.
_SCREENED = 1 << 26


@dataclass(frozen=True)
class IdentificationResult:
    """Share of recovered images that point at their own original among all originals.

    Args:
        distance: with the nearest original by Euclidean distance, in [0, 1].
        correlation: with the original of highest correlation after both batches' mean images are
            removed, in [0, 1].
        chance: what guessing reaches, one over the number of distinct originals.
    """

    distance: float
    correlation: float
    chance: float


@torch.no_grad()
def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each pair of images.

    Wang et al. 2004, equation 13 with C1 = 0.01^2 and C2 = 0.03^2 (pixels in [0, 1]), in a
    uniform 7x7 window with sample covariance, averaged over the windows that lie inside the image
    and over channels: ``skimage.metrics.structural_similarity(channel_axis=..., data_range=1.0)``.
    Computed in float64, since variances are differences of nearly equal numbers in flat regions.

    Args:
        a: ``[n, channels, height, width]`` in [0, 1].
        b: of the same shape.

    Returns:
        float32 ``[n]`` in [-1, 1]; not a number where an image is not finite.

    Raises:
        FlSimError: if shapes differ or a side is under 7 pixels.
    """
    _check_pair(a, b)
    n, channels, height, width = a.shape
    if min(height, width) < SSIM_WINDOW:
        raise FlSimError(
            f"SSIM needs images of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, "
            f"but these are {height}x{width}."
        )
    chunk = _CHUNK_SMALL if _is_small(height, width) else _CHUNK
    step = max(1, chunk // (channels * height * width))
    values = torch.empty(n, dtype=torch.float32, device=a.device)
    for first in range(0, n, step):
        part = slice(first, first + step)
        values[part] = _ssim(a[part], b[part])
    return values


@torch.no_grad()
def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each pair of images in decibels, ``-10 log10(MSE)``.

    As ``skimage.metrics.peak_signal_noise_ratio(data_range=1.0)``, but at most 100 dB, so that
    the mean over a batch with an image recovered exactly stays finite.

    Args:
        a: ``[n, channels, height, width]`` in [0, 1].
        b: of the same shape.

    Returns:
        float32 ``[n]`` in [0, 100]; not a number where an image is not finite.

    Raises:
        FlSimError: if shapes differ.
    """
    _check_pair(a, b)
    error = (a.double() - b.double()).square().flatten(1).mean(dim=1)
    return (-10.0 * error.log10()).clamp(max=PSNR_CAP).float()


def ms_ssim_scales(height: int, width: int) -> int:
    """Return how many scales :func:`ms_ssim` uses for images of a size.

    The standard five from 176 pixels on. Smaller images get as many as torchmetrics accepts, each
    at least as large as the window: four from 99 pixels on, three from 44, two from 22.

    Returns:
        2 to 5, or 0 where not even two scales fit.
    """
    side = min(height, width)
    for scales in range(len(MS_SSIM_WEIGHTS), 1, -1):
        # The second limit is torchmetrics' own, which for four scales is the stricter one.
        if side >> (scales - 1) >= MS_SSIM_WINDOW and side >= MS_SSIM_WINDOW * (scales - 1) ** 2:
            return scales
    return 0


def ms_ssim_name(height: int, width: int) -> str:
    """Return what :func:`ms_ssim` is called in tables: ``"ms_ssim"``, or ``"ms_ssim_3"`` and so on.

    The plain name stands for the standard five scales only.
    """
    scales = ms_ssim_scales(height, width)
    return "ms_ssim" if scales == len(MS_SSIM_WEIGHTS) else f"ms_ssim_{scales}"


@torch.no_grad()
def ms_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor | None:
    """Multi-scale structural similarity of each pair of images, with torchmetrics' defaults.

    Wang et al. 2003, equation 7, Gaussian 11x11 window of deviation 1.5; negative terms count as
    0. Where five scales do not fit, the finest :func:`ms_ssim_scales` of them are used, their
    weights scaled to sum 1: values of different numbers of scales are not comparable.

    Args:
        a: ``[n, channels, height, width]`` in [0, 1].
        b: of the same shape.

    Returns:
        float32 ``[n]`` in [0, 1], not a number where an image is not finite; ``None`` where a
        side is under 22 pixels, since not even two scales fit.

    Raises:
        FlSimError: if shapes differ.
    """
    _check_pair(a, b)
    n, channels, height, width = a.shape
    scales = ms_ssim_scales(height, width)
    if scales == 0:
        return None
    step = max(1, _CHUNK // (channels * height * width))
    values = torch.empty(n, dtype=torch.float32, device=a.device)
    for first in range(0, n, step):
        part = slice(first, first + step)
        values[part] = _ms_ssim(a[part].double(), b[part].double(), scales)
    return values


@torch.no_grad()
def identification(recovered: torch.Tensor, originals: torch.Tensor) -> IdentificationResult:
    """Share of recovered images from which their own original can be told among all n.

    By distance: of the images as one would look at them, clamped to [0, 1]. By correlation: of the
    values as they came. Fine-tuning leaves ``a * x + s + noise`` of every image ``x``, with ``a``
    and ``s`` common to all; subtracting the recovered batch's mean image removes ``s`` and leaves
    ``a * (x - mean of x)``, so the candidates must lose the originals' mean as well, which the
    one who measures knows. Pearson's correlation then does not care about ``a``, nor about a
    brightness added to a single image.

    Ties count ``1 / ties``, so constant images score chance. Originals that are identical are one
    candidate: to recover one of them is to recover the other. Images that are not finite are
    never identified; wild ones (:func:`fl_sim.restorations.base.typical`) stay out of the means.

    Args:
        recovered: ``[n, channels, height, width]``, any values.
        originals: of the same shape, in [0, 1].

    Raises:
        FlSimError: if shapes differ or there is no image.
    """
    return IdentificationResult(
        distance=identified_by_distance(recovered, originals),
        correlation=identified_by_correlation(recovered, originals),
        chance=identification_chance(originals),
    )


@torch.no_grad()
def identified_by_distance(recovered: torch.Tensor, originals: torch.Tensor) -> float:
    """Return the share that is identified by distance; see :func:`identification`."""
    good, values, own, first = _batch(recovered, originals)
    truth = originals.flatten(1).double()[first]
    # Distances stay when both sides lose one image, and products of what is left round less.
    middle = truth.mean(dim=0)
    looks = values.clamp_(0.0, 1.0).sub_(middle)
    return _share_found(looks, truth.sub_(middle), own, good, by_distance=True)


@torch.no_grad()
def identified_by_correlation(recovered: torch.Tensor, originals: torch.Tensor) -> float:
    """Return the share that is identified by correlation; see :func:`identification`."""
    good, values, own, first = _batch(recovered, originals)
    usable = typical(recovered)
    if not bool(usable.any()):
        return 0.0
    truth = originals.flatten(1).double()
    # The same images on both sides, else the two means would not belong together.
    points = _directions(values, values[usable].mean(dim=0))
    candidates = _directions(truth[first], truth[usable].mean(dim=0))
    return _share_found(points, candidates, own, good, by_distance=False)


def identification_chance(originals: torch.Tensor) -> float:
    """Return the share that guessing identifies: one over the number of distinct originals."""
    return 1.0 / len(distinct_images(originals)[1])


def sanitize(
    recovered: torch.Tensor, shape: torch.Size | tuple[int, ...]
) -> tuple[torch.Tensor, int]:
    """Make images that can be looked at out of whatever an extraction returned.

    Args:
        recovered: as many values as ``shape`` holds, in any shape that begins with n.
        shape: ``(n, channels, height, width)`` that was asked for.

    Returns:
        float32 images of that shape clamped to [0, 1], where an image with a value that is not
        finite is black throughout, and the number of such images.

    Raises:
        FlSimError: if the number of values is another one.
    """
    images = shaped(recovered, shape)
    good = finite(images)
    looks = torch.where(good[:, None, None, None], images, 0.0).clamp(0.0, 1.0)
    return looks, int((~good).sum())


def shaped(recovered: torch.Tensor, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """Return what an extraction returned as float32 images of ``shape``, values untouched.

    Raises:
        FlSimError: if the number of images or of values is another one.
    """
    if recovered.numel() != torch.Size(shape).numel() or recovered.shape[:1] != shape[:1]:
        raise FlSimError(
            f"The extraction returned values of shape {list(recovered.shape)}, "
            f"but images of shape {list(shape)} were hidden."
        )
    return recovered.detach().reshape(shape).float()


def _check_pair(a: torch.Tensor, b: torch.Tensor) -> None:
    if a.ndim != 4 or a.shape != b.shape:
        raise FlSimError(
            "Images to compare must both be [n, channels, height, width], "
            f"but their shapes are {list(a.shape)} and {list(b.shape)}."
        )


def _ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """SSIM of each pair from four maps: the sum, the difference, and their squares.

    Of windows of 49 with sums ``s`` and ``d``, ``(s^2 - d^2) / 2`` is twice the product of the two
    images' sums and ``(s^2 + d^2) / 2`` the sum of their squares, and likewise for variances; all
    is left multiplied by ``49^2`` and by 2, which cancels.
    """
    count = SSIM_WINDOW**2
    maps = torch.empty(4, *a.shape, dtype=torch.float64, device=a.device)
    first, second = a.double(), b.double()
    torch.add(first, second, out=maps[0])
    torch.sub(first, second, out=maps[1])
    torch.mul(maps[:2], maps[:2], out=maps[2:])
    sums = _window_sums(maps)
    means = sums[:2].square_()
    # Of a sample, which makes all of them larger by 49 / 48; the constant is made smaller instead.
    moments = sums[2:].mul_(count).sub_(means)
    luminance = _contrast(means, 2 * _C1 * count**2)
    structure = _contrast(moments, 2 * _C2 * count * (count - 1))
    similarity: torch.Tensor = luminance[0].mul_(structure[0])
    similarity.div_(luminance[1].mul_(structure[1]))
    return similarity.flatten(1).mean(dim=1)


def _contrast(pair: torch.Tensor, constant: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the difference and the sum of two maps, each plus a constant; the pair is used up."""
    difference = pair[0] - pair[1]
    return difference.add_(constant), pair[0].add_(pair[1]).add_(constant)


def _window_sums(maps: torch.Tensor) -> torch.Tensor:
    """Sum of each 7x7 window that lies inside the map, over the last two dimensions."""
    height, width = maps.shape[-2:]
    if not _is_small(height, width):
        return _shifted_sums(_shifted_sums(maps, -2), -1)
    across = (maps.reshape(-1, width) @ _band(width, maps.device).T).view(*maps.shape[:-1], -1)
    return _band(height, maps.device) @ across


def _is_small(height: int, width: int) -> bool:
    return max(height, width) <= _SMALL


def _band(side: int, device: torch.device) -> torch.Tensor:
    """The windows along one side as a matrix of zeros and ones, ``[side - 6, side]``."""
    shape = side - SSIM_WINDOW + 1, side
    return torch.ones(shape, dtype=torch.float64, device=device).triu().tril(SSIM_WINDOW - 1)


def _shifted_sums(maps: torch.Tensor, dim: int) -> torch.Tensor:
    """Sum of each 7 neighbours as 2 + 2 and 2 and 1, four additions instead of six.

    Beats pooling, running sums and products with a band matrix where images are not small.
    """
    side = maps.shape[dim]
    two = maps.narrow(dim, 0, side - 1) + maps.narrow(dim, 1, side - 1)
    four = two.narrow(dim, 0, side - 3) + two.narrow(dim, 2, side - 3)
    seven = four.narrow(dim, 0, side - 6) + two.narrow(dim, 4, side - 6)
    return seven.add_(maps.narrow(dim, 6, side - 6))


def _ms_ssim(a: torch.Tensor, b: torch.Tensor, scales: int) -> torch.Tensor:
    weights = MS_SSIM_WEIGHTS[:scales]
    result = torch.ones(len(a), dtype=a.dtype, device=a.device)
    for scale, weight in enumerate(weights, start=1):
        similarity, contrast = _gaussian_ssim(a, b)
        term = similarity if scale == scales else contrast
        result *= term.relu() ** (weight / sum(weights))
        a, b = (torch.nn.functional.avg_pool2d(images, 2) for images in (a, b))
    return result


def _gaussian_ssim(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SSIM of each pair, and its contrast-structure term alone over windows inside the image."""
    down, across = _gaussian_band(a.shape[-2], a.device), _gaussian_band(a.shape[-1], a.device)
    mean_a, mean_b, squares, product = down @ torch.stack([a, b, a * a + b * b, a * b]) @ across.T
    means_product = mean_a * mean_b
    means_squares = mean_a.square() + mean_b.square()
    contrast = (2 * (product - means_product) + _C2) / (squares - means_squares + _C2)
    luminance = (2 * means_product + _C1) / (means_squares + _C1)
    edge = MS_SSIM_WINDOW // 2
    inside = contrast[..., edge:-edge, edge:-edge]
    return (luminance * contrast).flatten(1).mean(dim=1), inside.flatten(1).mean(dim=1)


def _gaussian_band(side: int, device: torch.device) -> torch.Tensor:
    """The window along one side, mirrored at the ends, as a matrix ``[side, side]``."""
    edge = MS_SSIM_WINDOW // 2
    offsets = torch.arange(-edge, edge + 1, dtype=torch.float64, device=device)
    window = torch.exp(-0.5 * (offsets / 1.5).square())
    units = torch.eye(side, dtype=torch.float64, device=device)
    mirrored = torch.nn.functional.pad(units[None], (edge, edge), mode="reflect")[0]
    return (mirrored.unfold(1, MS_SSIM_WINDOW, 1) @ (window / window.sum())).T


def _batch(
    recovered: torch.Tensor, originals: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return which images are finite, their values, and what :func:`distinct_images` says."""
    _check_pair(recovered, originals)
    if len(originals) == 0:
        raise FlSimError("There are no original images to identify.")
    good = finite(recovered)
    values = torch.where(good[:, None], recovered.flatten(1).double(), 0.0)
    return (good, values, *distinct_images(originals))


def distinct_images(originals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Number identical images alike: each image's number ``[n]`` and each number's first image."""
    numbers: dict[bytes, int] = {}
    own: list[int] = []
    first: list[int] = []
    for position, image in enumerate(originals.detach().cpu().flatten(1).numpy()):
        number = numbers.setdefault(image.tobytes(), len(numbers))
        if number == len(first):
            first.append(position)
        own.append(number)
    device = originals.device
    return torch.tensor(own, device=device), torch.tensor(first, device=device)


def _directions(values: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Remove the mean image, centre and normalise each row.

    A row that rounding alone tells from a constant one becomes 0.
    """
    rows = values - mean
    rows -= rows.mean(dim=1, keepdim=True)
    length = rows.norm(dim=1, keepdim=True)
    rounding = 1e-6 * values.norm(dim=1, keepdim=True)
    return rows.div_(length).masked_fill_(length <= rounding, 0.0)


def _share_found(
    points: torch.Tensor,
    candidates: torch.Tensor,
    own: torch.Tensor,
    good: torch.Tensor,
    by_distance: bool,
) -> float:
    """Return the share of points whose own candidate scores best, in float64 or as if in it.

    Args:
        points: float64 ``[n, values]``.
        candidates: float64 ``[m, values]``.
        own: each point's candidate, ``[n]``.
        good: which points can be found at all, booleans ``[n]``.
        by_distance: the best candidate is the nearest; else that of the largest product.
    """
    if not _worth_screening(points, candidates):
        shares = _shares(points, candidates, own, by_distance)
    else:
        found, unsure = _screened(points, candidates, own, by_distance)
        shares = found.double()
        shares[unsure] = _shares(points[unsure], candidates, own[unsure], by_distance)
    return float(torch.where(good, shares, 0.0).mean())


def _shares(
    points: torch.Tensor, candidates: torch.Tensor, own: torch.Tensor, by_distance: bool
) -> torch.Tensor:
    """Return for each point one over those tied for its best, if its own is among them, else 0."""
    shares = torch.empty(len(points), dtype=torch.float64, device=points.device)
    squares = candidates.square().sum(dim=1)
    for start in range(0, len(points), _ROWS):
        part = slice(start, start + _ROWS)
        scores = points[part] @ candidates.T
        if by_distance:
            scores.mul_(2.0).sub_(points[part].square().sum(dim=1)[:, None] + squares)
        best = scores.max(dim=1, keepdim=True).values
        scale = scores.abs().max(dim=1, keepdim=True).values.clamp(min=1.0)
        tied = scores >= best - _TIE * scale
        hit = tied.gather(1, own[part, None]).squeeze(1)
        shares[part] = hit.double() / tied.sum(dim=1)
    return shares


def _worth_screening(points: torch.Tensor, candidates: torch.Tensor) -> bool:
    """Whether products in float32 first save time, and are products in float32."""
    return (
        points.device.type == "cpu"
        and torch.get_float32_matmul_precision() == "highest"
        and len(points) * candidates.numel() >= _SCREENED
    )


def _screened(
    points: torch.Tensor, candidates: torch.Tensor, own: torch.Tensor, by_distance: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tell in float32 which points are found for sure, and of which it is unsure; booleans ``[n]``.

    A candidate's rank is its product with the point, by distance less half its own square. What
    float32 can do to a sum of so many products is bounded (Higham 2002, equation 3.5), so a
    candidate that ranks further below the best than twice that bound, and a tie, is not tied with
    it in float64. A point is found if its own candidate alone is not that far below; it is not if
    its own is; the others, a few, are unsure.
    """
    longest = candidates.norm(dim=1).max()
    single = candidates.float()
    half = 0.5 * candidates.square().sum(dim=1).float()
    # 8 for all roundings but those of the sum; 1.1 for what the first order leaves out.
    unit = 1.1 * 2.0**-24 * (candidates.shape[1] + 8)
    found, unsure = torch.empty(2, len(points), dtype=torch.bool)
    for start in range(0, len(points), _ROWS):
        part = slice(start, start + _ROWS)
        ranks = points[part].float() @ single.T
        length = points[part].norm(dim=1)
        reach = length + longest
        if by_distance:
            ranks -= half
        margin = 2.0 * unit * longest * (reach if by_distance else length)
        margin += _TIE * reach.square().clamp(min=1.0)
        near = ranks >= (ranks.max(dim=1).values - margin).float()[:, None]
        own_near, alone = near.gather(1, own[part, None]).squeeze(1), near.sum(dim=1) == 1
        found[part], unsure[part] = own_near & alone, own_near & ~alone
    return found, unsure


METRICS.register("ssim", "structural similarity of images (Wang et al. 2004), their mean")(
    Metric(
        "SSIM",
        "leakage",
        HIGHER_LEAKS,
        range=(-1.0, 1.0),
        floors=("ssim_floor_mean", "ssim_floor_class_mean", "ssim_floor_random"),
        order=10,
        pairwise=ssim,
    )
)
METRICS.register("identified", "the better of identification by distance and by correlation")(
    Metric(
        "Identified",
        "leakage",
        HIGHER_LEAKS,
        range=(0.0, 1.0),
        trials="stolen_images",
        floors=(
            "identification_floor",
            "identification_floor_high",
            "identification_chance",
        ),
        shown=(),
        order=20,
        best_of=("identification_distance", "identification_correlation"),
    )
)
METRICS.register("identification_distance", "share of images whose nearest original is their own")(
    Metric(
        "Identified by distance",
        "leakage",
        HIGHER_LEAKS,
        range=(0.0, 1.0),
        trials="stolen_images",
        floors=(
            "identification_floor",
            "identification_floor_high",
            "identification_chance",
        ),
        heading="found,\ndist.",
        shown=("run",),
        raw=False,
        word="found by distance",
        order=21,
        batchwise=lambda recovered, originals, public: identified_by_distance(recovered, originals),
    )
)
METRICS.register(
    "identification_correlation", "share of images whose most correlated original is their own"
)(
    Metric(
        "Identified by correlation",
        "leakage",
        HIGHER_LEAKS,
        range=(0.0, 1.0),
        trials="stolen_images",
        floors=(
            "identification_floor",
            "identification_floor_high",
            "identification_chance",
        ),
        heading="found,\ncorr.",
        raw=False,
        word="found by correlation",
        order=22,
        batchwise=lambda recovered, originals, public: identified_by_correlation(
            recovered, originals
        ),
    )
)
METRICS.register("identification_chance", "share of images that one blind guess identifies")(
    Metric(
        "One blind guess",
        "leakage",
        range=(0.0, 1.0),
        shown=(),
        word="guessing",
        order=25,
    )
)
METRICS.register("psnr", "peak signal-to-noise ratio of images, their mean")(
    Metric(
        "PSNR",
        "leakage",
        HIGHER_LEAKS,
        unit="dB",
        digits=1,
        brief=1,
        range=(0.0, PSNR_CAP),
        shown=(),
        order=30,
        pairwise=psnr,
    )
)
METRICS.register("ms_ssim", "multi-scale structural similarity of images (Wang et al. 2003)")(
    Metric(
        "MS-SSIM",
        "leakage",
        HIGHER_LEAKS,
        range=(0.0, 1.0),
        shown=(),
        order=31,
        pairwise=ms_ssim,
        numbered="scales",
        name_by_size=ms_ssim_name,
    )
)
METRICS.register("non_finite", "recovered images with a value that is no number")(
    Metric(
        "Images with values that are not finite",
        "leakage",
        format="count",
        range=(0.0, math.inf),
        shown=(),
        order=40,
    )
)
METRICS.register("stolen_images", "images that an attacker is measured on")(
    Metric(
        "Stolen images",
        "leakage",
        format="count",
        range=(0.0, math.inf),
        shown=(),
        order=42,
    )
)
