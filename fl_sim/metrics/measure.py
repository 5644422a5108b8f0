"""One call for all that is measured of one extraction: every restoration, metric and floor."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch

from fl_sim.errors import FlSimError
from fl_sim.metrics.floors import Score, floor_class_mean, floor_mean, floor_random
from fl_sim.metrics.guessing import FLOOR, FLOOR_HIGH, guessing
from fl_sim.metrics.leakage import identification_chance, sanitize, shaped
from fl_sim.metrics.plausibility import FEWEST, Plausibility
from fl_sim.metrics.vocabulary import METRICS, Metric, known, measured_on_images
from fl_sim.restorations.base import Restoration, extractions, finite
from fl_sim.words import CHOSEN, NO_EXTRACTION, RAW, STRONGEST

SHOWN = (RAW, "affine", "learned")
"""Extractions whose images are kept beside the strongest one's and the chosen one's."""
CHOICE = "attacker_chooses"
"""Metric that tells by extraction, in brackets, whether an attacker would choose it."""

_SIMILARITY = "ssim"
"""The metric by which pictures are chosen and numbered."""


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
            restoration and variant (see :func:`fl_sim.restorations.base.extractions`); for
            ``"chosen"``, the one of them that an attacker would choose, who has no true image
            (:class:`fl_sim.metrics.plausibility.Plausibility`); and for ``"strongest"``, picked
            with the true images, metric by metric, an upper end that no attacker can pick himself.
            Floors, the chance level, ``non_finite`` (of the raw images) and which extraction is
            chosen (``attacker_chooses[<extraction>]``, 0 or 1) stand once, for ``"-"``.
        strongest: the extraction with the highest mean SSIM, the one to show.
        chosen: the extraction that an attacker would choose.
        ssim: SSIM of each image by extraction, ``[n]``, of those in ``images``.
        images: what an attacker sees, float32 ``[n, channels, height, width]`` in [0, 1], of the
            strongest and the chosen extraction and of those in ``SHOWN``; an image that is not
            finite is black.
    """

    rows: list[Measured]
    strongest: str
    chosen: str
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
    key_labels: torch.Tensor | None = None,
) -> LeakageMeasurement:
    """Measure what recovered images tell about the originals: by every metric that is registered.

    Metrics of pairs, as SSIM, are means over the images, an image with a value that is not finite
    counting as no leak; it is never identified, and never dropped.

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
        key_labels: of the originals, where his key tells them: then a guesser knows them, too.

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
    metrics = measured_on_images()
    rows: list[Measured] = []
    similarity: dict[str, torch.Tensor] = {}
    shown: dict[str, torch.Tensor] = {}
    best = RAW
    choice = Choice(public, len(originals))
    for name, extracted in extractions(values, public, restorations, others):
        images, _ = sanitize(extracted, originals.shape)
        good = finite(extracted)
        scores = _scores(metrics, images, originals)
        similarity[name] = torch.where(good, scores[_SIMILARITY], 0.0)
        numbers = _means(scores, good)
        for metric, about in metrics:
            if about.batchwise is not None:
                numbers[metric] = float(about.batchwise(extracted, originals, public))
        rows += [Measured(name, _called(m, originals), value) for m, value in numbers.items()]
        shown[name] = images
        choice.see(name, extracted)
        if float(similarity[name].double().mean()) > float(similarity[best].double().mean()):
            best = name
        # Large images in ten versions would not fit in memory.
        shown = {n: i for n, i in shown.items() if n in (best, choice.chosen, *SHOWN)}
    rows += [*_chosen(rows, choice.chosen), *_strongest(rows)]
    rows += [
        Measured(NO_EXTRACTION, f"{CHOICE}[{n}]", float(n == choice.chosen)) for n in similarity
    ]
    luck = guessing(originals, key_labels, tries=len(similarity))
    rows.append(Measured(NO_EXTRACTION, FLOOR, luck.expected))
    rows.append(Measured(NO_EXTRACTION, FLOOR_HIGH, luck.high))
    rows.append(Measured(NO_EXTRACTION, "identification_chance", identification_chance(originals)))
    rows.append(Measured(NO_EXTRACTION, "stolen_images", float(len(originals))))
    rows.append(Measured(NO_EXTRACTION, "non_finite", float((~finite(values)).sum())))
    if len(public):
        for metric, about in metrics:
            rows += _floors(metric, about, originals, public, seed, labels, public_labels)
    kept = {name: similarity[name] for name in shown}
    return LeakageMeasurement(rows, best, choice.chosen, kept, shown)


class Choice:
    """What an attacker chooses of the extractions seen so far: of equals the first, which is raw.

    Args:
        public: images he has; with too few to compare with he takes what came out.
        images: how many he extracts.
    """

    def __init__(self, public: torch.Tensor, images: int) -> None:
        self._plausibility = Plausibility(public, images) if len(public) >= FEWEST else None
        self._least = math.inf
        self.chosen = RAW

    def see(self, name: str, extracted: torch.Tensor) -> None:
        """Take another extraction into account, ``[n, channels, height, width]``, any values."""
        if self._plausibility is None:
            return
        score = max(self._plausibility.tolerance, self._plausibility.score(extracted))
        if score < self._least:
            self._least, self.chosen = score, name


def _scores(
    metrics: Sequence[tuple[str, Metric]], images: torch.Tensor, originals: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the metrics of pairs, ``[n]`` by name, that can be measured on images of this size."""
    found = {
        name: metric.pairwise(images, originals)
        for name, metric in metrics
        if metric.pairwise is not None
    }
    return {name: values for name, values in found.items() if values is not None}


def _means(scores: Mapping[str, torch.Tensor], good: torch.Tensor) -> dict[str, float]:
    return {
        name: float(torch.where(good, values, known(name).no_leak).double().mean())
        for name, values in scores.items()
    }


def _called(name: str, images: torch.Tensor) -> str:
    """Return what a metric is called for images of their size."""
    named = known(name).name_by_size
    return name if named is None else named(*map(int, images.shape[2:]))


def _chosen(rows: list[Measured], name: str) -> list[Measured]:
    return [Measured(CHOSEN, metric, value) for own, metric, value in rows if own == name]


def _strongest(rows: list[Measured]) -> list[Measured]:
    values: dict[str, list[float]] = {}
    for _, metric, value in rows:
        values.setdefault(metric, []).append(value)
    return [Measured(STRONGEST, m, known(m).strongest(found)) for m, found in values.items()]


def _floors(
    name: str,
    metric: Metric,
    originals: torch.Tensor,
    public: torch.Tensor,
    seed: int,
    labels: torch.Tensor | None,
    public_labels: torch.Tensor | None,
) -> Iterator[Measured]:
    """Yield those floors of a metric that are public images in place of the recovered ones."""
    wanted = [floor for floor in metric.floors if floor.startswith(f"{name}_floor_")]
    measurable = metric.pairwise is not None and wanted
    if not measurable or not _scores([(name, metric)], originals[:1], originals[:1]):
        return
    score = cast(Score, metric.pairwise)
    values = {
        f"{name}_floor_mean": lambda: floor_mean(score, originals, public),
        f"{name}_floor_random": lambda: floor_random(score, originals, public, seed),
    }
    if labels is not None and public_labels is not None:
        known_labels = labels.to(originals.device), public_labels.to(originals.device)
        values[f"{name}_floor_class_mean"] = lambda: floor_class_mean(
            score, originals, public, *known_labels
        )
    for floor, measure in values.items():
        if floor in wanted:
            yield Measured(NO_EXTRACTION, floor, float(measure().double().mean()))


METRICS.register(CHOICE, "whether an attacker without a true image would choose an extraction")(
    Metric(
        "Chosen by the attacker",
        "leakage",
        range=(0.0, 1.0),
        shown=(),
        order=41,
    )
)
