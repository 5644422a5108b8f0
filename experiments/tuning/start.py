"""Tuning: trials away from the test set, a choice by a stated rule, one look at the test set."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from experiments.run.claim import claimed
from experiments.sweep.start import SweepResult, sweep
from experiments.tables.console import cell_text
from experiments.tables.figures import write_table
from experiments.tables.summary import summarise
from experiments.tuning.choice import (
    Choices,
    make_choices,
    read_choices,
    rule_in_words,
    trials_table,
    write_choices,
)
from experiments.tuning.figure import draw_trials
from experiments.tuning.plan import UNDEFENDED, Plan
from fl_sim.errors import FlSimError, printable
from fl_sim.files import briefly
from fl_sim.metrics.vocabulary import column_heading
from fl_sim.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

TRIALS, FINAL = "trials", "final"
DEFAULT, TUNED, BOTH = "default", "tuned", "default = tuned"


def tune(
    tuning: Plan | Mapping[str, Any] | str | Path,
    out: Path | str | None = None,
    workers: int | None = None,
    ray_address: str | None = None,
    data_root: Path | str | None = None,
    overrides: Iterable[str] = (),
    gpus_per_cell: float = 0.0,
    final: bool = True,
    progress: Progress | bool | None = None,
) -> "Tuning":
    """Choose the settings of defences away from the test set, then report on it once.

    Every defence gets the same number of settings, its defaults first. They are tried, as a sweep
    in ``trials``, against attacks that the owner rehearses: with seeds of their own, so on other
    stolen images, and with utility measured on a part of the held-out images, which no defence
    sees. A rule that is stated in the file chooses. The final sweep, in ``final``, runs each
    defence at its chosen and at its default settings, on all held-out images, with the report's
    seeds and on the test set. Killed at any moment, the same call continues.

    Args:
        tuning: keys and values, the path of a tuning file, or the name of a shipped one.
        out: folder; by default ``runs/<name>``.
        workers, ray_address, data_root, gpus_per_cell, progress: as in
            :func:`experiments.sweep.start.sweep`.
        overrides: ``"key=value"`` of the file's top (``"budget=3"``, ``"final.seeds=[0]"``) or of
            every cell (``"training.epochs=2"``).
        final: whether the final sweep is run; without, the test set stays closed.

    Returns:
        The trials, the choices, and the table of the report.

    Raises:
        FlSimError: if anything about the file or its data is wrong; if no setting of a defence
            could be measured; or if the folder's test set has been opened for another tuning.
    """
    device: Literal["cpu", "auto"] = "auto" if gpus_per_cell > 0 else "cpu"
    if isinstance(tuning, Plan) and list(overrides):
        raise FlSimError("A plan that is made already takes no overrides; give them to Plan.of.")
    plan = Plan.of(tuning, overrides=overrides, device=device)
    folder = (Path(out) if out is not None else Path("runs") / plan.name).absolute()
    result = Tuning(plan, folder)
    how: dict[str, Any] = {
        "workers": workers,
        "ray_address": ray_address,
        "data_root": data_root,
        "gpus_per_cell": gpus_per_cell,
        "progress": progress,
    }
    with claimed(folder, f"the tuning {plan.name}"):
        if not result.reported:
            sweep(plan.grid, folder / TRIALS, **how)
            trials = trials_table(plan, result.trial_sweep)
            write_table(folder / "trials.csv", trials)
            choices = make_choices(plan, trials)
            write_choices(plan, choices, folder)
            draw_trials(folder / "trials.png", plan, trials, choices)
        elif read_choices(folder)[0] != plan.digest:
            raise FlSimError(
                f"The test set has been opened for the choice in {printable(str(folder))}, and it "
                f"is opened once; tune into another folder with --out."
            )
        if final:
            sweep(plan.final_grid(result.choices.settings), folder / FINAL, **how)
        write_table(folder / "tuned.csv", result.table)
    return result


@dataclass(frozen=True, repr=False)
class Tuning:
    """What tuning gives back.

    Args:
        plan: what was tuned.
        out: its folder.
    """

    plan: Plan
    out: Path

    @property
    def reported(self) -> bool:
        """Whether the final sweep has begun: from then on the choice stands."""
        return (self.out / FINAL / "grid.json").exists()

    @property
    def trial_sweep(self) -> SweepResult:
        """The sweep of the trials."""
        return SweepResult(self.plan.grid, self.out / TRIALS)

    @property
    def final_sweep(self) -> SweepResult:
        """The sweep on the test set."""
        return SweepResult(self.plan.final_grid(self.choices.settings), self.out / FINAL)

    @property
    def trials(self) -> "pd.DataFrame":
        """A row a setting, attack and seed; see :func:`experiments.tuning.choice.trials_table`."""
        return trials_table(self.plan, self.trial_sweep)

    @property
    def choices(self) -> Choices:
        """What was chosen of every defence, as ``chosen.json`` has it."""
        return read_choices(self.out)[1]

    @property
    def rule(self) -> str:
        """The rule as one sentence."""
        return rule_in_words(self.plan, self.choices)

    @property
    def failed(self) -> "pd.DataFrame":
        """A row a failed cell, of the trials and of the final sweep."""
        import pandas as pd

        sweeps = [self.trial_sweep, *([self.final_sweep] if self.reported else [])]
        parts = [swept.failed for swept in sweeps]
        return pd.concat(parts, ignore_index=True)

    @property
    def table(self) -> "pd.DataFrame":
        """A row an attack and a defence, at its default settings and at the chosen ones.

        Returns:
            ``attack``, ``defense`` (its label), ``choice`` (``"default"``, ``"tuned"``, or
            ``"default = tuned"``), ``setting``, ``settings`` (what differs from the first), and
            the metrics of utility and leakage: ``validation <metric>``, means over the seeds of
            tuning; after the final sweep ``test <metric>``, its mean over the report's seeds, with
            ``... low`` and ``... high``, the ends of its 95 % interval, and their number, ``n``.
        """
        import pandas as pd

        choices, trials = self.choices, self.trials
        tested = self._tested(choices)
        rows = []
        for attack in dict.fromkeys(trials["attack"]):
            for label, choice, number in self._shown(choices):
                own = trials[
                    (trials["attack"] == attack)
                    & (trials["defense"] == label)
                    & (trials["setting"] == number)
                ]
                row = {
                    "attack": attack,
                    "defense": label,
                    "choice": choice,
                    "setting": number,
                    "settings": own["settings"].iloc[0],
                }
                for metric in (choices.utility, choices.leakage):
                    row[f"validation {metric}"] = own[metric].mean(skipna=False)
                rows.append(row | tested.get((attack, _final_label(label, choice)), {}))
        return pd.DataFrame(rows)

    def in_short(self) -> "pd.DataFrame":
        """Return :attr:`table` for a screen: short names, and ``mean ±half`` on the test set."""
        choices, frame = self.choices, self.table
        shown = frame[["attack", "defense", "choice", "settings"]].copy()
        if shown["attack"].nunique() == 1:
            shown = shown.drop(columns="attack")
        for kind in ("validation", "test"):
            for metric in (choices.utility, choices.leakage):
                if f"{kind} {metric}" in frame:
                    heading = " ".join(column_heading(metric).split())
                    shown[f"{heading}\n{kind}"] = _texts(frame, f"{kind} {metric}")
        return shown

    def __repr__(self) -> str:
        plan = self.plan
        state = "reported on the test set" if self.reported else "the test set is closed"
        return (
            f"Tuning of {printable(plan.name)}: {len(plan.components)} defences, "
            f"{plan.file.budget} settings of each, {state}, in {briefly(self.out)}"
        )

    def _repr_html_(self) -> str:
        from experiments.tables.notebook import note, page, table_html

        if not (self.out / "chosen.json").exists():
            return page(repr(self))
        return page(repr(self), table_html(self.in_short()), note(self.rule))

    def _shown(self, choices: Choices) -> list[tuple[str, str, int]]:
        """Return label, choice and number of the settings that the table shows."""
        shown = [(UNDEFENDED, "", 0)]
        for label, one in choices.chosen.items():
            if one.settings == self.plan.tried(label)[0].settings:
                shown.append((label, BOTH, 0))
            else:
                shown += [(label, DEFAULT, 0), (label, TUNED, one.setting)]
        return shown

    def _tested(self, choices: Choices) -> dict[tuple[str, str], dict[str, Any]]:
        """Return what the final sweep measured, by attack and the grid's label of the defence."""
        if not self.reported:
            return {}
        metrics = [choices.utility, choices.leakage]
        swept = self.final_sweep
        summary = summarise(swept.table, metrics=metrics, stages=["release"])
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for row in summary.to_dict("records"):
            values = found.setdefault((row["attack"], row["defense"]), {"n": row["n"]})
            name = f"test {row['metric']}"
            values |= {name: row["mean"], f"{name} low": row["low"], f"{name} high": row["high"]}
        return found


def _final_label(label: str, choice: str) -> str:
    """Return what the final grid calls a defence; see :meth:`Plan.final_grid`."""
    if label == UNDEFENDED:
        return label
    return f"{label}, {TUNED if choice == TUNED else DEFAULT}"


def _texts(frame: "pd.DataFrame", column: str) -> list[str]:
    """Return a column of numbers as text, with half of the interval where there is one."""
    texts = [cell_text(value) for value in frame[column]]
    if f"{column} low" not in frame:
        return texts
    halves = (frame[f"{column} high"] - frame[f"{column} low"]) / 2
    return [
        text if half != half else f"{text} ±{cell_text(half)}"
        for text, half in zip(texts, halves, strict=True)
    ]
