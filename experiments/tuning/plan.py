"""Tuning files: which defences are tuned, over what, against which attacks, and by which rule.

A tuning file has a scenario, attacks, and defences with what is tried of each::

    seeds = [100, 101]                  # of tuning; others than those of the report
    budget = 12                         # settings tried of every defence, its defaults first
    search = "random"                   # Sobol points; or "grid": lists only
    rule = "constrained"                # or "knee"
    [leakage]
    metric = "identification_correlation strongest"
    margin = 0.05                       # above its floor; or limit = 0.1
    [final]
    seeds = [0, 1, 2]
    [scenario]
    mode = "centralized"
    dataset = "dermamnist"
    model = "cnn"
    [[attack]]
    label = "Transpose"
    name = "transpose"
    images = 64
    [[defense]]
    label = "LWLRD"
    name = "lwlrd"                      # further keys are fixed
    [defense.try]
    high = {low = 3e-3, high = 1e-1, log = true}
    weight_decay = [0.0, {low = 1e-4, high = 1e-2, log = true}]
    layers = ["tensor", "block"]
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from experiments.run.identity import digest_of
from experiments.run.shipped import find
from experiments.run.toml_file import read_toml
from experiments.sweep.grid import Cell, Grid, GridFile, base_scenario
from experiments.tuning.rule import Rule
from experiments.tuning.search import Search, settings_tried
from experiments.tuning.space import Space, Values
from fl_sim.component import Component
from fl_sim.errors import FlSimError, did_you_mean
from fl_sim.metrics.vocabulary import METRICS, Metric, describe, names_of, split_column
from fl_sim.overrides import apply_override
from fl_sim.settings import Seed, Settings, parse
from fl_sim.words import STRONGEST, SUMMED_UP

UNDEFENDED = "none"
MOST_SETTINGS = 10_000


class LeakageSettings(Settings):
    """What counts as leakage, and how much of it is accepted.

    Args:
        metric: a metric of recovered images, and of which extraction: ``"strongest"``, ``"chosen"``
            or ``"raw"``, as tables have it.
        limit: what is accepted, in the metric's own numbers; where not given, the floor (what an
            attacker reaches without the model, as measured in tuning) and the margin.
        margin: how far from the floor is accepted, towards more leakage.
    """

    metric: str = f"identification_correlation {STRONGEST}"
    limit: float | None = None
    margin: float = Field(0.05, ge=0)


class FinalSettings(Settings):
    """The sweep that the report is made of, on the test set, once.

    Args:
        seeds: every defence is run with each of them, at its chosen and at its default settings.
    """

    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1)


class TuningFile(Settings):
    """What a tuning file holds.

    Args:
        base: a shipped scenario or the path of one, relative to the file.
        scenario: keys of the base scenario, over those of ``base``.
        attack: the attacks that the owner rehearses: one table or several, as a scenario has them.
        defense: what is tuned: tables of a label, the defence's name, keys that are fixed, and
            ``try``.
        seeds: of tuning: every setting is run with each of them. Other images are stolen, by
            another draw, than with the seeds of the report.
        final: the seeds of the report.
        search: ``"random"`` or ``"grid"``; see :mod:`experiments.tuning.search`.
        search_seed: of what ``"random"`` draws.
        budget: settings tried of every defence; its defaults, with what is fixed, are the first.
        rule: ``"constrained"`` or ``"knee"``; see :mod:`experiments.tuning.rule`.
        leakage: what counts as leakage.
        utility: a metric of what the model is worth; by default AUC, of a segmentation Dice.
        validation_share: the share of the held-out images that utility is measured on; see
            ``[data] validation_share``.
    """

    base: str | None = None
    scenario: dict[str, Any] = Field(default_factory=dict)
    attack: tuple[dict[str, Any], ...] = Field(min_length=1)
    defense: tuple[dict[str, Any], ...] = Field(min_length=1)
    seeds: tuple[Seed, ...] = Field((100, 101), min_length=1)
    final: FinalSettings = FinalSettings()
    search: Search = "random"
    search_seed: Seed = 0
    budget: int = Field(12, ge=2, le=MOST_SETTINGS)
    rule: Rule = "constrained"
    leakage: LeakageSettings = LeakageSettings()
    utility: str | None = None
    validation_share: float = Field(0.25, gt=0, lt=1)

    @field_validator("attack", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _other_seeds(self) -> Self:
        shared = sorted(set(self.seeds) & set(self.final.seeds))
        if shared:
            raise ValueError(
                f"the seed {shared[0]} is one of tuning and of [final]; what is reported must not "
                f"have been tuned on"
            )
        return self


@dataclass(frozen=True)
class Trial:
    """One setting of one defence.

    Args:
        defense: the defence's label.
        setting: its number, 0 for the first.
        settings: every key of the defence.
        cells: its runs, over attacks and seeds; equal runs of two trials are the same cell.
    """

    defense: str
    setting: int
    settings: Values
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Plan:
    """What is tuned, checked in every part before anything runs.

    Args:
        name: of the file.
        file: what it holds.
        components: the defences' names by their labels.
        scenario: the keys of the scenario, as it is run in the end.
        trials: of every defence, in order; that of the undefended model comes first.
        device: what cells with ``device = "auto"`` are run on.
    """

    name: str
    file: TuningFile
    components: dict[str, str]
    scenario: Values
    trials: tuple[Trial, ...] = ()
    device: Literal["cpu", "auto"] = "cpu"

    @classmethod
    def of(
        cls,
        source: "Plan | Mapping[str, Any] | str | Path",
        *,
        overrides: Iterable[str] = (),
        device: Literal["cpu", "auto"] = "cpu",
    ) -> "Plan":
        """Return a plan as it is, from a mapping, or from a file by path or shipped name.

        Args:
            source: of the plan.
            overrides: ``"key=value"`` with dotted keys, of the file's top (``"budget=3"``,
                ``"final.seeds=[0]"``) or of every cell's scenario (``"training.epochs=2"``).
            device: what cells with ``device = "auto"`` are run on.

        Raises:
            FlSimError: if anything is wrong; nothing has been run then.
        """
        if isinstance(source, Plan):
            return source
        name, beside, values = "tuning", Path(), source
        if not isinstance(values, Mapping):
            path = find(str(source), "tuning")
            name, beside, values = path.stem, path.parent, read_toml(path, "tuning")
        return _planned(_changed(values, overrides), name, beside, device)

    @property
    def leakage(self) -> Metric:
        """What is known of the metric of leakage."""
        return describe(split_column(self.file.leakage.metric)[0]).metric

    @property
    def floor(self) -> str | None:
        """The metric that is the floor of leakage, where the limit is made of it."""
        if self.file.rule == "knee" or self.file.leakage.limit is not None:
            return None
        return self.leakage.floors[0]

    @property
    def digest(self) -> str:
        """A hash of what the choice and the final runs depend on."""
        trials = [
            [
                trial.defense,
                trial.setting,
                [[cell.labels["attack"], cell.name] for cell in trial.cells],
            ]
            for trial in self.trials
        ]
        first = self.final_grid({}).as_json()
        told = self.file.model_dump(mode="json", include={"rule", "leakage", "utility"})
        return digest_of({"trials": trials, "final": first, **told})

    @property
    def grid(self) -> Grid:
        """The cells of all trials, each once."""
        cells = {cell.name: cell for trial in self.trials for cell in trial.cells}
        return Grid(self.name, ("attack", "defense"), tuple(cells.values()))

    def tried(self, defense: str) -> list[Trial]:
        """Return the trials of a defence, by its label."""
        return [trial for trial in self.trials if trial.defense == defense]

    def final_grid(self, chosen: Mapping[str, Values]) -> Grid:
        """Return the grid of the report: each defence's defaults and what was chosen.

        Args:
            chosen: settings by the defence's label.
        """
        defenses: list[Any] = [UNDEFENDED]
        for label, name in self.components.items():
            default = self.tried(label)[0].settings
            defenses.append({"label": f"{label}, default", "name": name, **default})
            if chosen.get(label, default) != default:
                defenses.append({"label": f"{label}, tuned", "name": name, **chosen[label]})
        return self.grid_of(self.scenario, defenses, self.file.final.seeds)

    def chosen_file(self, chosen: Mapping[str, Values]) -> Values:
        """Return the chosen settings as a grid file, which a sweep takes."""
        defenses = [
            {"label": label, "name": self.components[label], **settings}
            for label, settings in chosen.items()
        ]
        return self._values(self.scenario, defenses, self.file.final.seeds)

    def grid_of(self, scenario: Values, defenses: list[Any], seeds: Sequence[int]) -> Grid:
        """Return the grid of all attacks and some defences.

        Args:
            scenario: keys of every cell.
            defenses: as a grid file has them.
            seeds: of every cell.

        Raises:
            FlSimError: if a cell is impossible.
        """
        values = self._values(scenario, defenses, seeds)
        return Grid.from_mapping(values, name=self.name, device=self.device)

    def _values(self, scenario: Values, defenses: list[Any], seeds: Sequence[int]) -> Values:
        axes = {"attack": list(self.file.attack), "defense": defenses}
        return {"seeds": list(seeds), "scenario": scenario, "grid": axes}


def in_tuning(scenario: Mapping[str, Any], validation_share: float) -> Values:
    """Return a scenario as it is run in tuning: measured on held-out images, the test set closed.

    The floor of utility is left out; no rule asks for it.
    """
    data = {key: value for key, value in scenario.get("data", {}).items() if key != "test_images"}
    return {
        **scenario,
        "data": {**data, "validation_share": validation_share},
        "measure": {**scenario.get("measure", {}), "scratch_epochs": 0},
    }


def in_words(settings: Mapping[str, Any], default: Mapping[str, Any]) -> str:
    """Return what of a defence's settings differs from its first one's."""
    other = [f"{key} = {value}" for key, value in settings.items() if value != default.get(key)]
    return ", ".join(other) or "default"


def _changed(values: Mapping[str, Any], overrides: Iterable[str]) -> Values:
    changed = {**values, "scenario": dict(values.get("scenario", {}))}
    own = [key for key in TuningFile.model_fields if key not in ("attack", "defense")]
    for override in overrides:
        key = override.partition("=")[0].strip().partition(".")[0]
        if key in own:
            if isinstance(changed.get(key), Mapping):
                changed[key] = dict(changed[key])
            apply_override(changed, override)
        elif key in ("attack", "defense"):
            raise FlSimError(f"--set {override}: a tuning file has its own attacks and defences.")
        else:
            apply_override(changed, f"scenario.{override}")
    return changed


def _planned(values: Values, name: str, beside: Path, device: Literal["cpu", "auto"]) -> Plan:
    file = parse(TuningFile, values, "The tuning file")
    _refuse_own_choices(file.scenario)
    _check_metrics(file)
    entries = [_entry(number, table) for number, table in enumerate(file.defense, 1)]
    components = {label: component.name for label, component, _ in entries}
    if UNDEFENDED in components or len(components) < len(entries):
        raise FlSimError(
            f"Every [[defense]] needs a label of its own, and '{UNDEFENDED}' is the undefended "
            f'model\'s; add label = "...".'
        )
    whole = base_scenario(GridFile(base=file.base, scenario=file.scenario), beside)
    scenario = {key: value for key, value in whole.items() if key not in ("attack", "defense")}
    _refuse_mixed_sets(scenario)
    plan = Plan(name, file, components, scenario, device=device)
    tuned = in_tuning(scenario, file.validation_share)
    trials = [Trial(UNDEFENDED, 0, {}, plan.grid_of(tuned, [UNDEFENDED], file.seeds).cells)]
    for label, component, tried in entries:
        space = Space(f"[[defense]] '{label}'", component.name, component.settings, tried)
        found = settings_tried(space, file.search, file.budget, file.search_seed)
        for number, settings in enumerate(found):
            value = {"label": f"{label} [{number}]", "name": component.name, **settings}
            cells = plan.grid_of(tuned, [value], file.seeds).cells
            trials.append(Trial(label, number, settings, cells))
    return replace(plan, trials=tuple(trials))


def _entry(number: int, table: Mapping[str, Any]) -> tuple[str, Component, Mapping[str, Any]]:
    """Read one [[defense]]: its label, name and fixed settings, and what is tried."""
    where = f"[[defense]] {number}"
    rest = {key: value for key, value in table.items() if key not in ("label", "try")}
    component = Component.of(rest, where)
    label = table.get("label", component.name)
    if not isinstance(label, str) or not label or "\n" in label:
        raise FlSimError(f"{where} has the label {label!r}; it should be a short text.")
    tried = table.get("try", {})
    if not isinstance(tried, Mapping):
        raise FlSimError(f"{where} try is {tried!r}, but it should be a table of lists and ranges.")
    return label, component, tried


def _refuse_own_choices(scenario: Mapping[str, Any]) -> None:
    for key in ("attack", "defense"):
        if key in scenario:
            raise FlSimError(f"[scenario] has the key '{key}'; say [[{key}]] in a tuning file.")
    if "validation_share" in scenario.get("data", {}):
        raise FlSimError(
            "[scenario] data has validation_share; say validation_share at the file's top, since "
            "the final runs are on the test set."
        )


def _refuse_mixed_sets(scenario: Mapping[str, Any]) -> None:
    """Refuse splits that are dealt out by seed: an image tuned on would be tested on."""
    if scenario.get("data", {}).get("split") == "patient":
        raise FlSimError(
            '[scenario] data has split = "patient", which deals images out anew for every seed, so '
            "that images of the report's test set would be tuned on; leave it out."
        )


def _check_metrics(file: TuningFile) -> None:
    worths, leaks = names_of("utility"), names_of("leakage")
    if file.utility is not None and file.utility not in worths:
        raise FlSimError(
            f"The tuning file's utility is '{file.utility}'.{did_you_mean(file.utility, worths)}"
        )
    column = file.leakage.metric
    name, extraction = split_column(column)
    if name not in leaks or extraction not in SUMMED_UP:
        valid = [f"{metric} {how}" for metric in leaks for how in SUMMED_UP]
        raise FlSimError(f"[leakage] metric is '{column}'.{did_you_mean(column, valid)}")
    if file.rule == "constrained" and file.leakage.limit is None and not METRICS.get(name).floors:
        raise FlSimError(f"[leakage] metric '{column}' has no floor; give its limit.")
