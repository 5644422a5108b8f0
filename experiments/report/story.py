"""The result in plain sentences, computed from the numbers and nothing else."""

import math
from dataclasses import dataclass

from experiments.report.measured import Measurements, Words, count_text, number
from experiments.report.sources import IDENTIFIED, Group, plain, sentence_case
from fl_sim.metrics.vocabulary import column_label
from fl_sim.words import STRONGEST

SURE = 0.001
"""More images than guessing identifies: where the best of as many blind guesses does as well less
often than this. Strict, since a key that tells the images' classes guesses better than blindly."""


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


class Story:
    """What the numbers of one group say.

    Args:
        group: its runs.
        measured: its numbers.
    """

    def __init__(self, group: Group, measured: Measurements) -> None:
        self.group = group
        self._measured = measured
        self._words = Words(group)
        self._attack = plain(group.fact("attack"))
        self._defense = plain(group.fact("defense"))
        first = next((s for s in measured.stages if _leaks(measured, s)), "upload")
        last = [s for s in measured.stages if _leaks(measured, s)]
        self._first, self._last = first, last[-1] if last else "release"

    @property
    def stolen(self) -> int:
        """How many images one attacker hid; 0 where that is not known."""
        return self._measured.stolen

    @property
    def attackers(self) -> int:
        """How many hospitals attack; 1 for an attacked data lake."""
        federation = self.group.first.scenario.get("federation")
        malicious = federation.get("malicious") if isinstance(federation, dict) else None
        return max(1, len(malicious)) if isinstance(malicious, list) else 1

    def leaks(self, stage: str) -> bool | None:
        """Tell whether more images are identified at a stage than guessing would identify.

        Returns:
            ``None`` where that was not measured.
        """
        found = self._measured.get(stage, IDENTIFIED, STRONGEST)
        guessing = self._measured.guessing(stage)
        if found is None or guessing is None or not 0 <= found.mean <= 1:
            return None
        images = round(found.mean * guessing.images * found.n)
        return guessing.reaches(images, found.n) < SURE

    @property
    def headline(self) -> str:
        """The result in one line."""
        if not self.group.attacked:
            return "Nothing was hidden in this model"
        intact = self._measured.mean(self._last, "images_intact")
        where = "in the released model" if self._last == "release" else "in the model"
        if intact > 0:
            return f"{self._many(intact)} hidden images leave intact, bit for bit"
        found = self._measured.mean(self._last, IDENTIFIED, STRONGEST)
        leaks = self.leaks(self._last)
        if leaks is None:
            return f"{sentence_case(self._attack)} against {self._defense}"
        if leaks:
            return f"{self._share(found)} stolen images can be identified {where}"
        if self.leaks(self._first):
            return "After the defence, stolen images are identified no better than by guessing"
        return "Stolen images are identified no better than by guessing"

    @property
    def sentences(self) -> list[str]:
        """The result, a sentence a thought."""
        said = [self._setting()]
        if self.group.attacked:
            said += self._leak_sentences()
        said += self._utility_sentences()
        said += self._cost_sentences()
        if len(self.group.runs) > 1:
            seeds = ", ".join(map(str, self.group.seeds))
            said.append(
                f"Figures are means over {len(self.group.runs)} seeds ({seeds}), with 95 % "
                f"confidence intervals in the tables."
            )
        if not all(run.finished for run in self.group.runs):
            said.append("This run has not come to its end; these are the figures measured so far.")
        return said

    @property
    def key_figures(self) -> list[KeyFigure]:
        """What a reader should see first."""
        found: list[KeyFigure] = []
        if self.group.attacked:
            found += self._leak_figures()
        utility = self._utility_figure()
        return found + ([utility] if utility else [])

    def _setting(self) -> str:
        group = self.group
        model, dataset = plain(group.fact("model")), plain(group.fact("dataset"))
        if group.federated:
            hospitals, one = group.fact("clients"), "one" if self.attackers == 1 else self.attackers
            where = f"in a federation of {hospitals} hospitals ({plain(group.fact('aggregator'))})"
            who = f", {one} of them malicious" if group.attacked else ""
        else:
            where, who = "in a data lake", ""
        trained = f"A {model} was trained on {dataset} {where}{who}"
        if not group.attacked:
            return f"{trained}, honestly."
        hid = f"{self.stolen:,} patient images" if self.stolen else "patient images"
        each = " by each of them" if self.attackers > 1 else ""
        return f"{trained}; {hid} were hidden in it{each} ({self._attack})."

    def _leak_sentences(self) -> list[str]:
        said: list[str] = []
        for stage in dict.fromkeys((self._first, self._last)):
            found = self._measured.get(stage, IDENTIFIED, STRONGEST)
            similar = self._measured.get(stage, "ssim", STRONGEST)
            if found is None or similar is None or math.isnan(found.mean):
                continue
            floor = self._measured.mean(stage, "ssim_floor_mean")
            where, share = self._where(stage), self._share(found.mean)
            best = number(similar.mean, 2)
            if said:
                verdict = "" if self.leaks(stage) else ", no more than by guessing"
                said.append(f"{where}, {share} can be identified{verdict}; SSIM is {best}.")
            else:
                said.append(
                    f"{where}, {share} can be identified, where {self._guess(stage)}; "
                    f"SSIM with the true images is {best} at best, where public images alone give "
                    f"{number(floor, 2)}."
                )
            said += self._payload_sentence(stage)
            if not self.group.defended and not self.group.federated:
                break
        return said

    def _payload_sentence(self, stage: str) -> list[str]:
        counts = [
            self._measured.mean(stage, f"images_{kind}") for kind in ("intact", "damaged", "lost")
        ]
        if any(math.isnan(count) for count in counts):
            return []
        wrong = self._measured.mean(stage, "bit_error_rate")
        bits = "" if math.isnan(wrong) else f"; {_percent(wrong)} of the payload's bits are wrong"
        intact, damaged, lost = (count_text(count) for count in counts)
        return [
            f"Of the hidden images {intact} are intact, {damaged} damaged and {lost} lost{bits}."
        ]

    def _utility_sentences(self) -> list[str]:
        metric = self._measured.utility
        if metric is None:
            return []
        before, after = self._before(metric), self._measured.mean("release", metric)
        name, floor = column_label(metric), self._measured.floor
        if self.group.defended and not math.isnan(after) and not math.isnan(before):
            text = (
                f"The model's {name} is {number(before)} before the defence and {number(after)} "
                f"after"
            )
        else:
            after = before if math.isnan(after) else after
            text = f"The model's {name} is {number(after)}"
        if floor is None:
            return [f"{text}."]
        images = self._measured.mean("release", "held_out_images")
        alone = "" if math.isnan(images) else f" {images:,.0f}"
        text += (
            f"; the same network trained from scratch on the owner's{alone} held-out images alone "
            f"has {number(floor.mean)}."
        )
        if after <= floor.mean:
            text += " What leaves is worth no more than that."
        return [text]

    def _cost_sentences(self) -> list[str]:
        seconds = self._measured.mean("release", "seconds")
        if not self.group.defended or math.isnan(seconds):
            return []
        each = " in each round" if self.group.federated else ""
        return [f"The defence ({self._defense}) took {_duration(seconds)}{each}."]

    def _leak_figures(self) -> list[KeyFigure]:
        first, last = self._first, self._last
        found: list[KeyFigure] = []
        intact = self._pair("images_intact", "-")
        if intact and self.stolen:
            shares = tuple(value / self.stolen for value in intact)
            found.append(
                KeyFigure(
                    "Images intact, bit for bit",
                    *self._arrow([count_text(value) for value in intact]),
                    floor=f"of {self.stolen:,} hidden",
                    bars=shares,
                )
            )
        shown = self._pair(IDENTIFIED, STRONGEST)
        if shown:
            texts = [self._count(value) for value in shown]
            of = f"of {self.stolen:,}; " if self._counts else ""
            luck = self._measured.luck(last)
            found.append(
                KeyFigure(
                    "Images identified", *self._arrow(texts),
                    floor=f"{of}guessing: {'not known' if math.isnan(luck) else self._count(luck)}",
                    bars=tuple(shown), mark=None if math.isnan(luck) else luck,
                )
            )  # fmt: skip
        similar = self._pair("ssim", STRONGEST)
        if similar:
            floor = self._measured.mean(last, "ssim_floor_mean")
            floor = self._measured.mean(first, "ssim_floor_mean") if math.isnan(floor) else floor
            found.append(
                KeyFigure(
                    "SSIM at best", *self._arrow([number(value, 2) for value in similar]),
                    floor=f"floor: {number(floor, 2)}", bars=tuple(max(0.0, v) for v in similar),
                    mark=None if math.isnan(floor) else max(0.0, floor),
                )
            )  # fmt: skip
        return found

    def _utility_figure(self) -> KeyFigure | None:
        metric = self._measured.utility
        if metric is None:
            return None
        values = [self._before(metric), self._measured.mean("release", metric)]
        values = [value for value in values if not math.isnan(value)]
        if not values:  # measured, and not a number each time
            return None
        if not self.group.defended:
            values = values[-1:]
        floor = self._measured.floor
        return KeyFigure(
            column_label(metric), *self._arrow([number(value) for value in values]),
            floor="no floor measured" if floor is None else f"from scratch: {number(floor.mean)}",
            bars=tuple(values), mark=None if floor is None else floor.mean, good=True,
        )  # fmt: skip

    def _pair(self, metric: str, extraction: str) -> list[float]:
        stages = dict.fromkeys((self._first, self._last))
        if not self.group.defended and not self.group.federated:
            stages = dict.fromkeys((self._last,))
        values = [self._measured.mean(stage, metric, extraction) for stage in stages]
        return [value for value in values if not math.isnan(value)]

    @staticmethod
    def _arrow(texts: list[str]) -> tuple[str, str]:
        return (texts[0], texts[-1]) if len(texts) > 1 else ("", texts[0])

    def _before(self, metric: str) -> float:
        """Return the utility of what the defence was given."""
        averaged = self._measured.mean("aggregate", metric)
        return self._measured.mean("upload", metric) if math.isnan(averaged) else averaged

    def _where(self, stage: str) -> str:
        if stage == "upload":
            return "In a malicious upload" if self.group.federated else "In the model as trained"
        if stage == "aggregate":
            return "In the average"
        return f"After {self._defense}" if self.group.defended else "In the released model"

    @property
    def _counts(self) -> bool:
        """Whether shares can be said as counts of images."""
        return self.stolen > 0 and self.attackers == 1

    def _count(self, share: float) -> str:
        return count_text(share * self.stolen) if self._counts else _percent(share)

    def _share(self, share: float) -> str:
        if not self._counts:
            return f"{_percent(share)} of the"
        return self._many(share * self.stolen)

    def _many(self, images: float) -> str:
        return f"{count_text(images)} of {self.stolen:,}"

    def _guess(self, stage: str) -> str:
        """Return what guessing finds, in words."""
        guessing = self._measured.guessing(stage)
        if guessing is None:
            return "it is not known what guessing finds"
        of = f"the best of {guessing.tries} blind guesses, as many as there are ways to look,"
        return f"{of} finds {self._count(guessing.expected)}"


def compare_headline(groups: list[Group]) -> str:
    """Return the title of a report on several scenarios."""
    attacks = {group.labels.get("attack") or group.fact("attack") for group in groups}
    defenses = {group.labels.get("defense") or group.fact("defense") for group in groups}
    parts = []
    for names, singular in ((attacks, "attack"), (defenses, "defence")):
        count = len({name for name in names if name != "none"})
        if count:
            parts.append(f"{_spelled(count)} {singular}{'' if count == 1 else 's'}")
    text = " against ".join(parts) or f"{_spelled(len(groups))} honest models"
    return f"{text}, compared".capitalize()


def compare_sentences(groups: list[Group], measured: list[Measurements]) -> list[str]:
    """Return what several scenarios say together."""
    runs = sum(len(group.runs) for group in groups)
    said = []
    leaks = [
        (numbers.mean("release", IDENTIFIED, STRONGEST), group)
        for group, numbers in zip(groups, measured, strict=True)
    ]
    leaks = [(value, group) for value, group in leaks if not math.isnan(value)]
    if len(leaks) > 1:
        worst = max(leaks, key=lambda pair: pair[0])
        least = min(leaks, key=lambda pair: pair[0])
        luck = [numbers.luck("release") for numbers in measured]
        luck = [value for value in luck if not math.isnan(value)]
        said.append(
            f"Of the stolen images {_percent(worst[0])} can be identified in what leaves at worst "
            f"({worst[1].label}), and {_percent(least[0])} at least ({least[1].label}); guessing "
            f"reaches {_percent(max(luck, default=math.nan))}."
        )
    stories = [Story(g, m) for g, m in zip(groups, measured, strict=True) if g.attacked]
    defended = [story for story in stories if story.group.defended]
    verdicts = [story.leaks("release") for story in defended]
    if verdicts:
        leaking = sum(verdict is True for verdict in verdicts)
        said.append(
            f"More images than guessing finds are identified in {leaking or 'none'} of "
            f"{len(verdicts)} attacked and defended scenario{'' if len(verdicts) == 1 else 's'}."
        )
    metrics = {m.utility for m in measured}
    if len(metrics) == 1 and None not in metrics:
        metric = str(next(iter(metrics)))
        values = [m.mean("release", metric) for m in measured]
        values = [value for value in values if not math.isnan(value)]
        floors = [m.floor.mean for m in measured if m.floor]
        scratch = f"; trained from scratch on held-out images {_span(floors)}" if floors else ""
        if values:
            said.append(f"{column_label(metric)} of what leaves is {_span(values)}{scratch}.")
    many = "" if runs == 1 else "s"
    return [*said, f"{len(groups)} scenarios, {runs} run{many}; means over seeds."]


def _span(values: list[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


def _leaks(measured: Measurements, stage: str) -> bool:
    return measured.get(stage, IDENTIFIED, STRONGEST) is not None


def _percent(share: float) -> str:
    if not math.isfinite(share):
        return "–"
    text = f"{100 * share:.2g}" if 0 < share < 0.1 else f"{100 * share:.0f}"
    return f"{text}\u00a0%"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds" if seconds >= 1.5 else f"{seconds:.1f} seconds"
    return f"{seconds / 60:.0f} minutes"


def _spelled(count: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[count] if count < len(words) else str(count)
