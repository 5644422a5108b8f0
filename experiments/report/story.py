"""The result in plain sentences, computed from the numbers and nothing else."""

import math

from experiments.report.measured import (
    Measurements,
    Words,
    count_text,
    number,
    percent,
)
from experiments.report.runs import IDENTIFIED, Group
from experiments.report.words import plain, sentence_case
from fl_sim.metrics.vocabulary import column_label
from fl_sim.words import STRONGEST


class Story:
    """What the numbers of one group say.

    Args:
        group: its runs.
        measured: its numbers.

    Attributes:
        first, last: stages at which the leak was measured; what happened in between is a defence.
    """

    def __init__(self, group: Group, measured: Measurements) -> None:
        self.group = group
        self.measured = measured
        self._words = Words(group)
        self._attack = plain(group.fact("attack"))
        self._defense = plain(group.fact("defense"))
        first = next((s for s in measured.stages if _leaks(measured, s)), "upload")
        last = [s for s in measured.stages if _leaks(measured, s)]
        self.first, self.last = first, last[-1] if last else "release"

    @property
    def stolen(self) -> int:
        """How many images one attacker hid; 0 where that is not known."""
        return self.measured.stolen

    @property
    def attackers(self) -> int:
        """How many hospitals attack; 1 for an attacked data lake."""
        federation = self.group.first.scenario.get("federation")
        malicious = federation.get("malicious") if isinstance(federation, dict) else None
        return max(1, len(malicious)) if isinstance(malicious, list) else 1

    def leaks(self, stage: str) -> bool | None:
        """Tell whether more images are identified at a stage than guessing would identify.

        That is, more than the best of as many guesses as there are extractions exceeds in one case
        of forty, by one who knows what the key tells.

        Returns:
            ``None`` where that was not measured.
        """
        found = self.measured.get(stage, IDENTIFIED, STRONGEST)
        guessed = self.measured.most_luck(stage)
        if found is None or math.isnan(guessed) or not 0 <= found.mean <= 1:
            return None
        return found.mean > guessed

    @property
    def headline(self) -> str:
        """The result in one line."""
        if not self.group.attacked:
            return "Nothing was hidden in this model"
        intact = self.measured.mean(self.last, "images_intact")
        where = "in the released model" if self.last == "release" else "in the model"
        if intact > 0:
            return f"{self._many(intact)} hidden images leave intact, bit for bit"
        found = self.measured.mean(self.last, IDENTIFIED, STRONGEST)
        leaks = self.leaks(self.last)
        if leaks is None:
            return f"{sentence_case(self._attack)} against {self._defense}"
        if leaks:
            return f"{self._share(found)} stolen images can be identified {where}"
        if self.leaks(self.first):
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
        for stage in dict.fromkeys((self.first, self.last)):
            found = self.measured.get(stage, IDENTIFIED, STRONGEST)
            similar = self.measured.get(stage, "ssim", STRONGEST)
            if found is None or similar is None or math.isnan(found.mean):
                continue
            floor = self.measured.mean(stage, "ssim_floor_mean")
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
            self.measured.mean(stage, f"images_{kind}") for kind in ("intact", "damaged", "lost")
        ]
        if any(math.isnan(count) for count in counts):
            return []
        wrong = self.measured.mean(stage, "bit_error_rate")
        bits = "" if math.isnan(wrong) else f"; {percent(wrong)} of the payload's bits are wrong"
        intact, damaged, lost = (count_text(count) for count in counts)
        return [
            f"Of the hidden images {intact} are intact, {damaged} damaged and {lost} lost{bits}."
        ]

    def _utility_sentences(self) -> list[str]:
        metric = self.measured.utility
        if metric is None:
            return []
        before, after = self.before(metric), self.measured.mean("release", metric)
        name, floor = column_label(metric), self.measured.floor
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
        images = self.measured.mean("release", "held_out_images")
        alone = "" if math.isnan(images) else f" {images:,.0f}"
        text += (
            f"; the same network trained from scratch on the owner's{alone} held-out images alone "
            f"has {number(floor.mean)}."
        )
        if after <= floor.mean:
            text += " What leaves is worth no more than that."
        return [text]

    def _cost_sentences(self) -> list[str]:
        seconds = self.measured.mean("release", "seconds")
        if not self.group.defended or math.isnan(seconds):
            return []
        each = " in each round" if self.group.federated else ""
        return [f"The defence ({self._defense}) took {_duration(seconds)}{each}."]

    def before(self, metric: str) -> float:
        """Return the utility of what the defence was given."""
        averaged = self.measured.mean("aggregate", metric)
        return self.measured.mean("upload", metric) if math.isnan(averaged) else averaged

    def _where(self, stage: str) -> str:
        if stage == "upload":
            return "In a malicious upload" if self.group.federated else "In the model as trained"
        if stage == "aggregate":
            return "In the average"
        return f"After {self._defense}" if self.group.defended else "In the released model"

    @property
    def counted(self) -> bool:
        """Whether shares can be said as counts of images."""
        return self.stolen > 0 and self.attackers == 1

    def count(self, share: float) -> str:
        """Return a share of one attacker's images: how many that is, where it can be said."""
        return count_text(share * self.stolen) if self.counted else percent(share)

    def _share(self, share: float) -> str:
        if not self.counted:
            return f"{percent(share)} of the"
        return self._many(share * self.stolen)

    def _many(self, images: float) -> str:
        return f"{count_text(images)} of {self.stolen:,}"

    def _guess(self, stage: str) -> str:
        """Return what guessing finds, in words."""
        luck, tries = self.measured.luck(stage), self.measured.tries(stage)
        if math.isnan(luck):
            return "it is not known what guessing finds"
        if tries == 1:
            return f"one guess finds {self.count(luck)}"
        of = f"the best of {tries} guesses, as many as there are ways to look,"
        return f"{of} finds {self.count(luck)}"


def _leaks(measured: Measurements, stage: str) -> bool:
    return measured.get(stage, IDENTIFIED, STRONGEST) is not None


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds" if seconds >= 1.5 else f"{seconds:.1f} seconds"
    return f"{seconds / 60:.0f} minutes"
