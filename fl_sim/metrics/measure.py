"""One call for all that is measured of one extraction: every restoration, metric and floor."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from fl_sim.errors import FlSimError
from fl_sim.metrics.floors import ssim_floor_class_mean, ssim_floor_mean, ssim_floor_random
from fl_sim.metrics.leakage import (
    identification,
    ms_ssim,
    ms_ssim_name,
    psnr,
    sanitize,
    shaped,
    ssim,
)
from fl_sim.restorations.base import RAW, Restoration, extractions, finite

STRONGEST = "strongest"
NO_EXTRACTION = "-"
SHOWN = (RAW, "affine", "learned")
"""Extractions whose images are kept beside the strongest one's."""


class Measured(NamedTuple):
    """One number: of which extraction (``"-"`` for none), which metric, what value."""

    extraction: str
    metric: str
    value: float


@dataclass(frozen=True)
class LeakageMeasurement:
    """What one extraction leaked.

    Args:
        rows: numbers for the table. Each metric of an extraction stands for ``"raw"``, for each
            restoration and variant (see :func:`fl_sim.restorations.base.extractions`), and for
            ``"strongest"``, the highest of them, metric by metric; floors, the chance level and
            ``non_finite`` (of the raw images) stand once, for ``"-"``.
        strongest: the extraction with the highest mean SSIM, the one to show.
        ssim: SSIM of each image by extraction, ``[n]``, of those in ``images``.
        images: what an attacker sees, float32 ``[n, channels, height, width]`` in [0, 1], of the
            strongest extraction and of those in ``SHOWN``; an image that is not finite is black.
    """

    rows: list[Measured]
    strongest: str
    ssim: dict[str, torch.Tensor] = field(repr=False)
    images: dict[str, torch.Tensor] = field(repr=False)

    def value(self, metric: str, extraction: str = STRONGEST) -> float:
        """Return one number.

        Raises:
            FlSimError: if it was not measured.
        """
        for row in self.rows:
            if row.metric == metric and row.extraction in (extraction, NO_EXTRACTION):
                return row.value
        raise FlSimError(f"The metric '{metric}' was not measured for extraction '{extraction}'.")


@torch.no_grad()
def measure_leakage(
    recovered: torch.Tensor,
    originals: torch.Tensor,
    public: torch.Tensor,
    seed: int,
    labels: torch.Tensor | None = None,
    public_labels: torch.Tensor | None = None,
    restorations: Mapping[str, Restoration] | None = None,
    variants: Mapping[str, torch.Tensor] | None = None,
) -> LeakageMeasurement:
    """Measure what recovered images tell about the originals.

    SSIM, PSNR and MS-SSIM are means over the images, an image with a value that is not finite
    counting 0; it is never identified, and never dropped.

    Args:
        recovered: what an extraction returned for the n originals, in their order; any values.
        originals: ``[n, channels, height, width]`` in [0, 1].
        public: ``[m, channels, height, width]`` in [0, 1], images the attacker may have. Without
            any there are no restorations and no floors.
        seed: the scenario's, for the random floor.
        labels: of the originals; with ``public_labels``, the class-mean floor is measured too.
        public_labels: of the public images.
        restorations: what the attacker tries, by name; all registered ones where not given.
        variants: what he extracted in other ways, by name, as ``recovered``.

    Raises:
        FlSimError: if there is no original image, or shapes do not fit.
    """
    if len(originals) == 0:
        raise FlSimError("There are no original images to measure leakage against.")
    values = shaped(recovered.to(originals.device), originals.shape)
    public = public.to(originals.device)
    others = {
        name: shaped(images.to(originals.device), originals.shape)
        for name, images in (variants or {}).items()
    }
    rows: list[Measured] = []
    similarity: dict[str, torch.Tensor] = {}
    shown: dict[str, torch.Tensor] = {}
    best = RAW
    for name, extracted in extractions(values, public, restorations, others):
        images, _ = sanitize(extracted, originals.shape)
        good = finite(extracted)
        similarity[name] = torch.where(good, ssim(images, originals), 0.0)
        numbers = _pairwise(images, originals, good, similarity[name])
        found = identification(extracted, originals)
        numbers["identification_distance"] = found.distance
        numbers["identification_correlation"] = found.correlation
        rows += [Measured(name, metric, value) for metric, value in numbers.items()]
        shown[name] = images
        if float(similarity[name].double().mean()) > float(similarity[best].double().mean()):
            best = name
        # Large images in ten versions would not fit in memory.
        shown = {n: i for n, i in shown.items() if n == best or n in SHOWN}
    rows += _strongest(rows)
    rows.append(Measured(NO_EXTRACTION, "identification_chance", found.chance))
    rows.append(Measured(NO_EXTRACTION, "non_finite", float((~finite(values)).sum())))
    if len(public):
        rows += _floors(originals, public, seed, labels, public_labels)
    return LeakageMeasurement(rows, best, {name: similarity[name] for name in shown}, shown)


def _pairwise(
    images: torch.Tensor, originals: torch.Tensor, good: torch.Tensor, similarity: torch.Tensor
) -> dict[str, float]:
    values = {"ssim": similarity, "psnr": psnr(images, originals)}
    multi_scale = ms_ssim(images, originals)
    if multi_scale is not None:
        values[ms_ssim_name(*images.shape[2:])] = multi_scale
    return {
        metric: float(torch.where(good, value, 0.0).double().mean())
        for metric, value in values.items()
    }


def _strongest(rows: list[Measured]) -> list[Measured]:
    best: dict[str, float] = {}
    for _, metric, value in rows:
        best[metric] = max(value, best.get(metric, value))
    return [Measured(STRONGEST, metric, value) for metric, value in best.items()]


def _floors(
    originals: torch.Tensor,
    public: torch.Tensor,
    seed: int,
    labels: torch.Tensor | None,
    public_labels: torch.Tensor | None,
) -> list[Measured]:
    floors = {
        "ssim_floor_mean": ssim_floor_mean(originals, public),
        "ssim_floor_random": ssim_floor_random(originals, public, seed),
    }
    if labels is not None and public_labels is not None:
        floors["ssim_floor_class_mean"] = ssim_floor_class_mean(
            originals, public, labels.to(originals.device), public_labels.to(originals.device)
        )
    return [Measured(NO_EXTRACTION, m, float(v.double().mean())) for m, v in floors.items()]
