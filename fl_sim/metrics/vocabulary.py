"""What every metric means, said once: its name for people, unit, format, direction, range, floor.

A metric is one file in this package that registers it, and where it can be measured on pairs of
images, says how::

    METRICS.register("mean_error", "mean absolute difference of pixels")(
        Metric("Mean error", "leakage", LOWER_LEAKS, range=(0.0, 1.0), pairwise=mean_error)
    )

Whatever lists, orders, writes, averages or compares metrics asks here: tables, summaries, pages and
figures have no lists of their own. What a table calls a metric may have a part in brackets
(``images_intact[low]``) or an ending (``auc_before_embedding``, see :data:`FORMS`); such a name
means the metric that it begins with. A name that nothing declares has plain defaults.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from fl_sim.errors import FlSimError
from fl_sim.registry import Registry
from fl_sim.words import CHOSEN, NO_EXTRACTION, RAW, STRONGEST, SUMMED_UP

if TYPE_CHECKING:
    import torch

Pairwise = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor | None"]
"""``measure(recovered, originals) -> [n]``, of each pair of images ``[n, channels, height, width]``
in [0, 1]; ``None`` where images of that size cannot be measured."""
Batchwise = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor"], float]
"""``measure(recovered, originals, public)``, one number for the batch: recovered values as they
came, perhaps outside [0, 1] or not finite; public images as the attacker has them, perhaps none."""

Family = Literal["leakage", "payload", "sent", "utility", "privacy", "cost", "file", "other"]
FAMILIES: tuple[Family, ...] = (
    "leakage",
    "payload",
    "sent",
    "utility",
    "privacy",
    "cost",
    "file",
    "other",
)
"""What metrics are about, in the order that tables have them in."""

Direction = Literal[
    "higher leaks more", "lower leaks more", "higher is better", "lower is better", "neither"
]
HIGHER_LEAKS: Direction = "higher leaks more"
LOWER_LEAKS: Direction = "lower leaks more"
HIGHER_BETTER: Direction = "higher is better"
LOWER_BETTER: Direction = "lower is better"
NEUTRAL: Direction = "neither"

Format = Literal["number", "count", "bytes", "percent"]
Where = Literal["run", "summary", "sweep"]
"""Short lists: a run's table on a terminal, a sweep's summary files, a sweep's on a terminal."""
EVERYWHERE: tuple[Where, ...] = ("run", "summary", "sweep")

LAST = 100
OF_EXTRACTIONS = (
    "Chosen: of the extraction that an attacker would choose, who has no true image. Strongest: "
    "picked with the true images, metric by metric: an upper end that no attacker can pick himself."
)
"""What the two extractions that summaries show beside the raw one mean."""
_ENDLESS = (-math.inf, math.inf)


@dataclass(frozen=True)
class Metric:
    """A metric.

    Args:
        title: for people.
        family: what it is about.
        direction: what a higher value means.
        unit: of the numbers.
        format: ``"number"``, ``"count"``, ``"bytes"``, or ``"percent"``: a share, written in
            percent on pages and in sentences.
        digits: behind the decimal point, in tables.
        brief: the same on pages and in sentences, where there is less room.
        range: lowest and highest value that there can be.
        floors: metrics of the same scale that tell what an attacker reaches without the model, or
            a hospital without the others; the first is the one that is drawn.
        heading: on a terminal, of two lines at most; by default the title.
        shown: the short lists that it stands in.
        raw: whether its value for the raw extraction stands in them, too.
        minor: whether a terminal leaves it out where a payload's counts need the room.
        word: in tables of :func:`fl_sim.measure`; by default the metric's name.
        mark: what a line in a chart is called that stands for it; by default the title.
        order: place in its family; among equals by name.
        pairwise: how it is measured on pairs of images; the table has the mean over them.
        batchwise: how it is measured on a batch.
        broken: what a pair counts whose recovered image is not finite: no leak. By default 0, or
            where lower leaks more the highest value.
        numbered: what is counted by a number at the end of the name, for example ``"scales"``:
            ``ms_ssim_3``. Such values are not comparable to each other.
        name_by_size: its name for images of a height and width, where it is numbered.
        trials: of a share of images, or a count of them: the metric that tells how many there were.
        best_of: metrics whose stronger value it is; it is computed from them.
    """

    title: str
    family: Family = "other"
    direction: Direction = NEUTRAL
    unit: str = ""
    format: Format = "number"
    digits: int = 3
    brief: int = 2
    range: tuple[float, float] = _ENDLESS
    floors: tuple[str, ...] = ()
    heading: str = ""
    shown: tuple[Where, ...] = EVERYWHERE
    raw: bool = True
    minor: bool = False
    word: str = ""
    mark: str = ""
    order: int = LAST
    pairwise: "Pairwise | None" = None
    batchwise: "Batchwise | None" = None
    broken: float | None = None
    numbered: str = ""
    name_by_size: Callable[[int, int], str] | None = None
    trials: str = ""
    best_of: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        measured = self.pairwise is not None or self.batchwise is not None
        if measured and self.direction not in (HIGHER_LEAKS, LOWER_LEAKS):
            raise FlSimError(
                f"The metric '{self.title}' is measured on recovered images, so its direction must "
                f"be '{HIGHER_LEAKS}' or '{LOWER_LEAKS}', not '{self.direction}'."
            )
        if self.pairwise is not None and not math.isfinite(self.no_leak):
            raise FlSimError(
                f"Of the metric '{self.title}' lower values leak more, and its range has no end: "
                f"say with 'broken' what an image counts that is not finite."
            )

    @property
    def lower_leaks(self) -> bool:
        """Whether lower values leak more."""
        return self.direction == LOWER_LEAKS

    @property
    def no_leak(self) -> float:
        """What a pair counts whose recovered image is not finite."""
        if self.broken is not None:
            return self.broken
        return self.range[1] if self.lower_leaks else 0.0

    @property
    def label(self) -> str:
        """The title, with the unit where neither it nor the numbers say it."""
        said = not self.unit or self.format == "bytes" or self.unit in self.title.lower()
        return self.title if said else f"{self.title} ({self.unit})"

    def places(self, brief: bool = False) -> int:
        """Return how many digits stand behind the decimal point; of a mean of counts, one."""
        if self.format == "count":
            return 1
        return self.brief if brief else self.digits

    def strongest(self, values: Iterable[float]) -> float:
        """Return the value that leaks most."""
        return min(values) if self.lower_leaks else max(values)


@dataclass(frozen=True)
class Form:
    """An ending of metrics' names: the same metric of something else.

    Args:
        title: with ``{title}`` for that of the metric.
        about: one line.
        heading, word, mark: as of a metric.
        shown: short lists that it stands in, where the metric does.
        direction: what a higher value means, where that is not what it means of the metric.
    """

    title: str
    about: str
    heading: str = ""
    shown: tuple[Where, ...] = ()
    word: str = ""
    mark: str = ""
    direction: Direction | None = None


FORMS = {
    "_floor_mean": Form(
        "Mean of public images",
        "floor: the mean public image in place of the recovered ones",
        "{heading}\nfloor",
        ("run",),
        "mean public image",
        "mean image",
    ),
    "_floor_class_mean": Form(
        "Mean of the class's public images",
        "floor: the mean public image of the same class",
        word="mean public image of the class",
    ),
    "_floor_random": Form(
        "Another public image",
        "floor: public images drawn at random",
        word="random public image",
    ),
    "_floor_scratch": Form(
        "{title} from scratch",
        "floor: the same network trained on held-out images alone",
        "{heading}\nscratch",
        ("run", "summary"),
        mark="from scratch",
    ),
    "_error": Form(
        "{title}, standard error over test images",
        "deviation over resamples of the test images",
        direction=NEUTRAL,
    ),
    "_before_embedding": Form(
        "{title} before embedding", "of the model before a payload was written into it"
    ),
    "_trained_on_stolen_raw": Form(
        "{title} trained on what was stolen, raw", "of a network trained on images as extracted"
    ),
    "_trained_on_stolen": Form(
        "{title} trained on what was stolen", "of a network trained on the restored images"
    ),
    "_trained_on_originals": Form(
        "{title} trained on the true images", "ceiling of what stolen images are worth"
    ),
    "_trained_on_shuffled": Form(
        "{title} trained on shuffled labels", "floor of what stolen images are worth"
    ),
}
"""Endings of names, the longer ones before those that they end in."""

METRICS: Registry[Metric] = Registry("metric", "fl_sim.metrics")


@dataclass(frozen=True)
class Described:
    """What a name in a table means.

    Args:
        name: as the table has it.
        base: the registered metric that it belongs to; the name's own beginning where there is
            none.
        metric: what is known of it; title, heading and so on are those of this very name.
        form: its ending, one of :data:`FORMS`; empty for none.
        part: what stands in brackets; empty for the whole.
        declared: whether it is registered, or belongs to one that is.
    """

    name: str
    base: str
    metric: Metric
    form: str = ""
    part: str = ""
    declared: bool = True

    @property
    def whole(self) -> bool:
        """Whether it is the metric itself, of everything."""
        return not self.form and not self.part

    @property
    def word(self) -> str:
        """What it is called in tables of :func:`fl_sim.measure`."""
        return self.metric.word or self.name

    @property
    def place(self) -> tuple[object, ...]:
        """A key that sorts names: by family, order, metric, ending and part."""
        family = FAMILIES.index(self.metric.family) if self.declared else len(FAMILIES)
        forms = ["", *FORMS]
        rank = (family, self.metric.order, natural(self.base), forms.index(self.form))
        return (*rank, natural(self.part), natural(self.name))


def describe(name: str) -> Described:
    """Return what a metric's name in a table means; plain defaults where nothing declares it."""
    head, _, rest = name.partition("[")
    part, _, tail = rest.rpartition("]")
    base, form, metric = _resolve(head + tail)
    if metric is None:
        said = (head + tail).replace("_", " ")
        title = f"{said}, {part}" if part and said else said or name
        return Described(name, head + tail, Metric(title, shown=()), part=part, declared=False)
    if part:
        metric = replace(
            metric, title=f"{metric.title}, {part}", heading="", shown=(), floors=(), word=""
        )
    return Described(name, base, metric, form, part)


def known(name: str) -> Metric:
    """Return what is known of a name; see :func:`describe`."""
    return describe(name).metric


def in_words(metric: Metric) -> str:
    """Return what a metric's numbers mean, in sentences."""
    said = [f"{metric.label}, of the family {metric.family}."]
    if metric.direction != NEUTRAL:
        said.append(f"{metric.direction.capitalize()}.")
    low, high = metric.range
    if math.isfinite(low):
        said.append(f"From {low:g} to {high:g}." if math.isfinite(high) else f"From {low:g} on.")
    if metric.pairwise is not None or metric.batchwise is not None:
        said.append(OF_EXTRACTIONS)
    if metric.best_of:
        said.append(f"The stronger of {' and '.join(metric.best_of)}.")
    if metric.floors:
        said.append(f"Floors: {', '.join(metric.floors)}.")
    return " ".join(said)


def names_of(family: Family) -> list[str]:
    """Return the registered metrics of a family, in order."""
    found = (entry.name for entry in METRICS.entries() if entry.component.family == family)
    return sorted(found, key=lambda name: describe(name).place)


def measured_on_images() -> list[tuple[str, Metric]]:
    """Return the metrics of recovered images and their names, in the order of a table's rows.

    Those of pairs come first, then those of batches.
    """
    entries = {entry.name: entry.component for entry in METRICS.entries()}
    chosen = sorted(entries, key=lambda name: describe(name).place)
    pairs = [(name, entries[name]) for name in chosen if entries[name].pairwise is not None]
    batches = [(name, entries[name]) for name in chosen if entries[name].batchwise is not None]
    return pairs + batches


def split_column(column: str) -> tuple[str, str]:
    """Return metric and extraction of a column such as ``"ssim raw"``; ``"-"`` for none."""
    metric, _, extraction = column.rpartition(" ")
    return (metric, extraction) if extraction in SUMMED_UP else (column, NO_EXTRACTION)


def metric_of(column: str) -> Metric:
    """Return what is known of the metric of such a column."""
    return known(split_column(column)[0])


def column_order(column: str) -> tuple[object, ...]:
    """Return a key that sorts such columns: leakage, floors, payload, utility, then the rest."""
    metric, extraction = split_column(column)
    return (*describe(metric).place, [NO_EXTRACTION, *SUMMED_UP].index(extraction))


def column_label(column: str) -> str:
    """Return what such a column is called for people."""
    metric, extraction = split_column(column)
    how = {NO_EXTRACTION: "", STRONGEST: ", at best"}.get(extraction, f", {extraction}")
    return known(metric).label + how


def column_heading(column: str) -> str:
    """Return such a column's name on a terminal, where two lines have to do."""
    metric, extraction = split_column(column)
    found = known(metric)
    said = found.heading or found.title
    if extraction != NO_EXTRACTION and found.raw:
        said += "\nbest" if extraction == STRONGEST else f"\n{extraction}"
    return said if "\n" in said else f"\n{said}"


def columns_shown(where: Where, columns: Iterable[object]) -> list[str]:
    """Return those of such columns that stand in a short list, in order."""
    return sorted((c for c in map(str, columns) if _is_shown(where, c)), key=column_order)


def _is_shown(where: Where, column: str) -> bool:
    metric, extraction = split_column(column)
    found = known(metric)
    wanted = {
        RAW: found.raw and where != "sweep",
        CHOSEN: found.raw or where == "summary",
    }
    return where in found.shown and wanted.get(extraction, True)


def natural(text: str) -> tuple[tuple[int, str], ...]:
    """Return a key that sorts texts as people do: numbers in them by their value, 2 before 10."""
    parts = re.split(r"(\d{1,9})", text)  # a stranger's text may have more than Python reads
    return tuple((int(p), "") if n % 2 else (-1, p) for n, p in enumerate(parts))


def _resolve(name: str) -> tuple[str, str, Metric | None]:
    """Return the registered metric that a name without brackets belongs to, and its ending."""
    metric = _registered(name)
    if metric is not None:
        form = next((f for f in FORMS if name.endswith(f) and _registered(name[: -len(f)])), "")
        return name.removesuffix(form), form, metric
    for ending in FORMS:
        base = name.removesuffix(ending)
        metric = _registered(base) if base != name else None
        if metric is not None:
            return base, ending, _formed(metric, FORMS[ending])
    base, _, number = name.rpartition("_")
    metric = _registered(base) if number.isdigit() else None
    if metric is not None and metric.numbered:
        return base, "", replace(metric, title=f"{metric.title}, {number} {metric.numbered}")
    return name, "", None


def _registered(name: str) -> Metric | None:
    return METRICS.get(name) if name in METRICS else None


def _formed(metric: Metric, form: Form) -> Metric:
    heading = form.heading.format(heading=metric.heading or metric.title)
    return replace(
        metric,
        title=form.title.format(title=metric.title),
        heading=heading if "\n" not in (metric.heading or "") else "",
        shown=tuple(where for where in form.shown if where in metric.shown),
        word=form.word,
        mark=form.mark,
        direction=metric.direction if form.direction is None else form.direction,
        floors=(),
        pairwise=None,
        batchwise=None,
    )
