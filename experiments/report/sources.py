"""What a report is made of: runs and sweeps, read from their folders, grouped over seeds."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.report.folders import is_sweep, read_failed, read_run, read_sweep
from experiments.report.runs import Group, Run, Sources
from experiments.report.words import flat, plain
from experiments.tables.summary import CELL, LABEL, VARIANT
from fl_sim.errors import FlSimError
from fl_sim.results import STAGES

if TYPE_CHECKING:
    import pandas as pd

# What tells scenarios apart before their settings do, in the order of columns.
_FACTS = ("attack", "defense", "mode", "dataset", "model", "aggregator")


def read_sources(folders: Iterable[Path]) -> Sources:
    """Read folders of runs and sweeps.

    Raises:
        FlSimError: if one is neither, is damaged, holds no measurement, or is given twice.
    """
    runs: list[Run] = []
    failed: list[dict[str, str]] = []
    sweeps: list[Path] = []
    for folder in folders:
        if is_sweep(folder):
            runs += read_sweep(folder)
            failed += read_failed(folder)
            sweeps.append(folder)
        else:
            runs.append(read_run(folder))
    if not runs:
        raise FlSimError("A report needs at least one folder of a run or of a sweep.")
    groups = _grouped(runs)
    axes = _label(groups)
    for number, group in enumerate(groups, start=1):
        group.number = number
    return Sources(groups, axes, _long_table(groups, axes), failed, sweeps)


def _grouped(runs: Sequence[Run]) -> list[Group]:
    """Group runs over seeds.

    Raises:
        FlSimError: if two are the same.
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.identity, *sorted(run.labels.items())), []).append(run)
    found = [Group(sorted(members, key=lambda run: run.seed)) for members in groups.values()]
    for group in found:
        for one, other in pairwise(group.runs):
            if one.seed == other.seed:
                raise FlSimError(
                    f"{one.name} and {other.name} hold the same run, seed {one.seed}; give only "
                    f"one of them."
                )
    return found


def _label(groups: Sequence[Group]) -> list[str]:
    """Give each group the labels that tell it from the others; return their axes."""
    facts: list[dict[str, str]] = []
    for group in groups:
        facts.append({name: plain(group.fact(name)) for name in _FACTS} | dict(group.first.labels))
    axes = list(dict.fromkeys(axis for fact in facts for axis in fact))
    axes = [axis for axis in axes if len({fact.get(axis, "") for fact in facts}) > 1]
    _drop_implied(axes, facts)
    axes.sort(key=lambda axis: axis != VARIANT)  # what a grid varies together comes first
    if _ambiguous(axes, facts):
        _add_settings(groups, axes, facts)
        axes.append("settings")
    for group, fact in zip(groups, facts, strict=True):
        group.labels = {axis: fact.get(axis, "") for axis in axes}
    return axes


def _drop_implied(axes: list[str], facts: Sequence[Mapping[str, str]]) -> None:
    """Drop the aggregator where the mode already says it, and all that a grid's variants say."""
    said = [("mode", "aggregator"), *((VARIANT, name) for name in _FACTS)]
    for telling, implied in said:
        if {telling, implied} <= set(axes):
            pairs = {(fact.get(telling, ""), fact.get(implied, "")) for fact in facts}
            if len(pairs) == len({one for one, _ in pairs}):
                axes.remove(implied)


def _ambiguous(axes: Sequence[str], facts: Sequence[Mapping[str, str]]) -> bool:
    return len({tuple(fact.get(axis, "") for axis in axes) for fact in facts}) < len(facts)


def _add_settings(
    groups: Sequence[Group], axes: Sequence[str], facts: Sequence[dict[str, str]]
) -> None:
    """Add what differs in the settings of scenarios that are alike otherwise."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for place, fact in enumerate(facts):
        alike.setdefault(tuple(fact.get(axis, "") for axis in axes), []).append(place)
    for places in alike.values():
        settings = [flat(groups[p].first.scenario) for p in places]
        keys = list(dict.fromkeys(key for values in settings for key in values))
        differing = [k for k in keys if k != "seed" and len({v.get(k) for v in settings}) > 1]
        said = [
            ", ".join(f"{k} {values[k]}" for k in differing if k in values) for values in settings
        ]
        for place, text in zip(places, said, strict=True):
            unclear = said.count(text) > 1
            facts[place]["settings"] = groups[place].first.identity if unclear else text


def _long_table(groups: Sequence[Group], axes: Sequence[str]) -> "pd.DataFrame":
    import pandas as pd

    runs = [(group, run) for group in groups for run in group.runs]
    table = pd.concat([run.table for _, run in runs], ignore_index=True)
    lengths = [len(run.table) for _, run in runs]
    columns = {CELL: [run.name for _, run in runs]}
    columns |= {LABEL + axis: [group.labels[axis] for group, _ in runs] for axis in axes}
    for place, (column, texts) in enumerate(columns.items()):
        repeated = pd.Series(texts, dtype="str").repeat(lengths)
        table.insert(place, column, repeated.reset_index(drop=True))
    return table[table["stage"].str.partition(":")[0].isin(STAGES)].reset_index(drop=True)
