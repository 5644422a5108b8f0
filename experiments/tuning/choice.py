"""From the trials' numbers to the settings that are chosen, and what is written of the choice."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.run.origin import versions
from experiments.sweep.start import SweepResult
from experiments.tables.summary import CELL, wide
from experiments.tuning.plan import Plan, in_words
from experiments.tuning.rule import Point, choose
from experiments.tuning.space import Values
from fl_sim.errors import FlSimError
from fl_sim.files import write_atomically
from fl_sim.metrics.vocabulary import names_of

if TYPE_CHECKING:
    import pandas as pd

SECONDS = "seconds"
RECORD = "chosen.json"


@dataclass(frozen=True)
class Chosen:
    """What was chosen of a defence.

    Args:
        name: of the defence.
        setting: the number of the setting among those tried; 0 is the first.
        settings: every key.
        why: one sentence.
        satisfied: whether it keeps the limit; ``None`` where the rule has none.
        utility: on the held-out images that were set aside, mean over attacks and seeds.
        leakage: of the attack that got most, mean over seeds.
        seconds: that the defence took, mean over attacks and seeds; ``None`` where unknown.
    """

    name: str
    setting: int
    settings: Values
    why: str
    satisfied: bool | None
    utility: float
    leakage: float
    seconds: float | None


@dataclass(frozen=True)
class Choices:
    """What was chosen of every defence.

    Args:
        utility, leakage: the metrics' columns.
        limit: of leakage; ``None`` for a rule without one.
        floor: of leakage, that the limit is made of; ``None`` where it is not.
        chosen: by the defence's label.
    """

    utility: str
    leakage: str
    limit: float | None
    floor: float | None
    chosen: dict[str, Chosen]

    @property
    def settings(self) -> dict[str, Values]:
        """The chosen settings by the defence's label."""
        return {label: one.settings for label, one in self.chosen.items()}


def trials_table(plan: Plan, swept: SweepResult) -> "pd.DataFrame":
    """Return a row a setting, attack and seed.

    Returns:
        ``defense`` (its label), ``setting`` (0 is the first), ``settings`` (what differs from the
        first, in words), ``attack``, ``seed``, then the metrics of utility and leakage, the floor
        of leakage where the limit is made of it, ``seconds``, and ``error`` and ``cell``.

    Raises:
        FlSimError: if no trial has ended, or none has these metrics.
    """
    import pandas as pd

    frame = wide(swept.table)
    released = frame[frame["stage"] == "release"].set_index(CELL)
    utility = _utility(plan, released)
    metrics = [utility, plan.file.leakage.metric, *([plan.floor] if plan.floor else []), SECONDS]
    for metric in metrics[:-1]:
        if metric not in released:
            raise FlSimError(f"The trials of {plan.name} have no '{metric}' at release.")
    values = released.reindex(columns=metrics)
    errors = dict(swept.failed[[CELL, "error"]].itertuples(index=False, name=None))
    rows = []
    for trial in plan.trials:
        first = plan.tried(trial.defense)[0].settings
        for cell in trial.cells:
            known = values.loc[cell.name].to_dict() if cell.name in values.index else {}
            rows.append(
                {
                    "defense": trial.defense,
                    "setting": trial.setting,
                    "settings": in_words(trial.settings, first),
                    "attack": cell.labels["attack"],
                    "seed": cell.scenario.seed,
                    **{metric: known.get(metric, float("nan")) for metric in metrics},
                    "error": errors.get(cell.name, ""),
                    CELL: cell.name,
                }
            )
    return pd.DataFrame(rows)


def make_choices(plan: Plan, trials: "pd.DataFrame") -> Choices:
    """Choose a setting of every defence by the plan's rule.

    Args:
        plan: what was tuned.
        trials: as :func:`trials_table` returns it.

    Raises:
        FlSimError: if no setting of a defence could be measured.
    """
    utility, leakage = _utility(plan, trials), plan.file.leakage.metric
    limit, floor = _limit(plan, trials)
    sign = -1.0 if plan.leakage.lower_leaks else 1.0
    means = means_of_settings(plan, trials)
    chosen = {}
    for label, name in plan.components.items():
        tried, own = plan.tried(label), means[means["defense"] == label]
        points = [Point(*one) for one in own[[utility, leakage, SECONDS]].to_numpy()]
        signed = [Point(p.utility, sign * p.leakage, p.seconds) for p in points]
        choice = choose(signed, plan.file.rule, None if limit is None else sign * limit)
        if choice is None:
            raise _unmeasured(label, trials)
        point = points[choice.index]
        chosen[label] = Chosen(
            name,
            choice.index,
            tried[choice.index].settings,
            choice.why,
            choice.satisfied,
            float(point.utility),
            float(point.leakage),
            None if point.seconds != point.seconds else float(point.seconds),
        )
    return Choices(utility, leakage, limit, floor, chosen)


def means_of_settings(plan: Plan, trials: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row a setting, in their order: what it reached, as the rules take it.

    Returns:
        ``defense``, ``setting``; the metric of utility and ``seconds``, means over attacks and
        seeds; and that of leakage, the strongest attack's mean over seeds. A setting of which a
        run has failed has no numbers.
    """
    utility, leakage = _utility(plan, trials), plan.file.leakage.metric
    metrics = [utility, leakage, SECONDS]
    keys = ["defense", "setting"]
    by_attack = trials.groupby([*keys, "attack"], sort=False)[metrics].agg(_mean)
    grouped = by_attack.groupby(keys, sort=False)
    means = grouped.agg(_mean)
    means[leakage] = grouped[leakage].agg(plan.leakage.strongest)
    missing = by_attack[[utility, leakage]].isna().any(axis=1).groupby(keys, sort=False).any()
    means.loc[missing] = float("nan")
    return means.reset_index()


def rule_in_words(plan: Plan, choices: Choices) -> str:
    """Return the rule as one sentence, with its limit."""
    measured = f"{choices.utility} on {plan.file.validation_share:.0%} of the held-out images"
    if choices.limit is None:
        return (
            f"The knee of the Pareto front of {choices.leakage} and {measured}; among equals the "
            f"cheaper."
        )
    bound, away = ("at least", "less") if plan.leakage.lower_leaks else ("at most", "more")
    told = ""
    if choices.floor is not None:
        told = f" (the floor, {choices.floor:.3f}, and {plan.file.leakage.margin:g} {away})"
    return (
        f"Of the settings with {choices.leakage} of {bound} {choices.limit:.3f}{told} the one with "
        f"the highest {measured}; where none keeps that limit, the one that leaks least; among "
        f"equals the cheaper."
    )


def write_choices(plan: Plan, choices: Choices, folder: Path) -> None:
    """Write what was chosen, and why: ``chosen.json``, and ``chosen.toml``, which a sweep takes."""
    import tomli_w

    file = plan.file
    record = {
        "tuning": plan.name,
        "plan": plan.digest,
        "rule": file.rule,
        "rule_in_words": rule_in_words(plan, choices),
        "budget": file.budget,
        "search": file.search,
        "search_seed": file.search_seed,
        "seeds": file.seeds,
        "final_seeds": file.final.seeds,
        "validation_share": file.validation_share,
        "versions": versions(),
        **asdict(choices),
    }
    write_atomically(folder / RECORD, (json.dumps(record, indent=2) + "\n").encode())
    said = [
        f"# Chosen by fl-sim tune {plan.name}: {file.budget} settings of every defence, seeds "
        f"{', '.join(map(str, file.seeds))}.",
        f"# {rule_in_words(plan, choices)}",
        *(f"# {label}: setting {one.setting}, {one.why}." for label, one in choices.chosen.items()),
    ]
    content = tomli_w.dumps(_without_none(plan.chosen_file(choices.settings)))
    text = "\n".join(line.replace("\n", " ") for line in said) + "\n" + content
    write_atomically(folder / "chosen.toml", text.encode())


def read_choices(folder: Path) -> tuple[str, Choices]:
    """Return the digest of the plan that a folder's choices are of, and the choices.

    Raises:
        FlSimError: if their file is missing or damaged.
    """
    path = folder / RECORD
    try:
        content = json.loads(path.read_bytes())
        chosen = {label: Chosen(**one) for label, one in content["chosen"].items()}
        parts = {key: content[key] for key in ("utility", "leakage", "limit", "floor")}
        return str(content["plan"]), Choices(**parts, chosen=chosen)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise FlSimError(
            f"The file {path} is missing or damaged; put it back, or tune into another folder."
        ) from None


def _unmeasured(label: str, trials: "pd.DataFrame") -> FlSimError:
    errors = trials.loc[(trials["defense"] == label) & (trials["error"] != ""), "error"]
    first = next(iter(errors), "it has no numbers.")
    return FlSimError(f"No setting of '{label}' could be measured; the first failed: {first}")


def _utility(plan: Plan, frame: "pd.DataFrame") -> str:
    """Return the metric of utility: the one that is stated, or the main one that was measured."""
    wanted = plan.file.utility
    if wanted is not None:
        return wanted
    worths = names_of("utility")
    return next((name for name in worths if name in frame), worths[0])


def _limit(plan: Plan, trials: "pd.DataFrame") -> tuple[float | None, float | None]:
    """Return the limit of leakage and the floor it is made of; of several attacks the strictest."""
    told = plan.file.leakage
    if plan.file.rule == "knee":
        return None, None
    if plan.floor is None:
        return told.limit, None
    floors = trials.groupby("attack")[plan.floor].mean()
    if plan.leakage.lower_leaks:
        return float(floors.max()) - told.margin, float(floors.max())
    return float(floors.min()) + told.margin, float(floors.min())


def _mean(values: "pd.Series[float]") -> float:
    return float(values.mean(skipna=False))


def _without_none(value: Any) -> Any:
    """Leave out keys without a value, which TOML does not have."""
    if isinstance(value, Mapping):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_without_none(inner) for inner in value]
    return value
