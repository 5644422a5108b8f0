"""The few numbers that a reader should see first."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.report.measured import count_text, number
from experiments.report.runs import IDENTIFIED
from experiments.report.story import Story
from fl_sim.metrics.vocabulary import column_label
from fl_sim.words import STRONGEST


@dataclass(frozen=True)
class KeyFigure:
    """One number of the summary, before and after, beside its floor.

    Args:
        title: what it is.
        before, after: for people; ``before`` is empty where nothing happened in between.
        floor: in words.
        bars: shares in [0, 1] of before and after, where it is one.
        mark: the floor in [0, 1], where it is one.
        good: whether more is better: what the model is worth.
    """

    title: str
    before: str
    after: str
    floor: str
    bars: tuple[float, ...] = ()
    mark: float | None = None
    good: bool = False


def key_figures(story: Story) -> list[KeyFigure]:
    """Return what leaks and what the model is worth, as far as it was measured."""
    leaks = (_intact, _identified, _similar) if story.group.attacked else ()
    return [figure for make in (*leaks, _utility) if (figure := make(story))]


def _intact(story: Story) -> KeyFigure | None:
    counts = _pair(story, "images_intact")
    if not counts or not story.stolen:
        return None
    return KeyFigure(
        "Images intact, bit for bit",
        *_ends([count_text(value) for value in counts]),
        floor=f"of {story.stolen:,} hidden",
        bars=tuple(value / story.stolen for value in counts),
    )


def _identified(story: Story) -> KeyFigure | None:
    shares = _pair(story, IDENTIFIED, STRONGEST)
    if not shares:
        return None
    of = f"of {story.stolen:,}; " if story.counted else ""
    luck = _known(story.measured.luck(story.last))
    return KeyFigure(
        "Images identified",
        *_ends([story.count(share) for share in shares]),
        floor=f"{of}guessing: {'not known' if luck is None else story.count(luck)}",
        bars=tuple(shares),
        mark=luck,
    )


def _similar(story: Story) -> KeyFigure | None:
    values = _pair(story, "ssim", STRONGEST)
    if not values:
        return None
    floors = (story.measured.mean(s, "ssim_floor_mean") for s in (story.last, story.first))
    floor = next((floor for floor in floors if not math.isnan(floor)), math.nan)
    return KeyFigure(
        "SSIM at best",
        *_ends([number(value, 2) for value in values]),
        floor=f"floor: {number(floor, 2)}",
        bars=tuple(max(0.0, value) for value in values),
        mark=None if math.isnan(floor) else max(0.0, floor),
    )


def _utility(story: Story) -> KeyFigure | None:
    metric = story.measured.utility
    if metric is None:
        return None
    values = [story.before(metric), story.measured.mean("release", metric)]
    values = [value for value in values if not math.isnan(value)]
    if not values:  # measured, and not a number each time
        return None
    if not story.group.defended:
        values = values[-1:]
    floor = story.measured.floor
    return KeyFigure(
        column_label(metric),
        *_ends([number(value) for value in values]),
        floor="no floor measured" if floor is None else f"from scratch: {number(floor.mean)}",
        bars=tuple(values),
        mark=None if floor is None else floor.mean,
        good=True,
    )


def _pair(story: Story, metric: str, extraction: str = "-") -> list[float]:
    """Return a metric before and after, or after only where nothing happened in between."""
    stages = dict.fromkeys((story.first, story.last))
    if not story.group.defended and not story.group.federated:
        stages = dict.fromkeys((story.last,))
    values = [story.measured.mean(stage, metric, extraction) for stage in stages]
    return [value for value in values if not math.isnan(value)]


def _ends(texts: Sequence[str]) -> tuple[str, str]:
    return (texts[0], texts[-1]) if len(texts) > 1 else ("", texts[0])


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
