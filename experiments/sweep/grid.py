"""Grids: many scenarios in one file, as the product of lists of values for any of their keys.

A grid file has a base scenario and the axes that vary it::

    base = "demo-centralized"          # a shipped scenario or a file; or its keys in [scenario]
    seeds = [0, 1, 2]
    [grid]
    attack = ["none", {label = "few", name = "transpose", images = 8}]
    defense = ["none", "lwlrd"]
    "training.epochs" = [4, 8]
    [[exclude]]
    attack = "none"
    defense = "lwlrd"
    [[cells]]
    label = "all images"
    attack = {name = "dec", images = "fit", codec = "png"}

Values of the axis ``variant`` are tables of any keys of a scenario, for what has to vary together;
a further cell may have one, too.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from experiments.run.scenario import Scenario
from experiments.run.shipped import find
from experiments.run.toml_file import read_toml
from experiments.tables.summary import VARIANT
from fl_sim.errors import FlSimError, did_you_mean
from fl_sim.overrides import apply_override
from fl_sim.settings import Seed, Settings, parse

UNLABELLED = "-"
_SECTIONS = ("training", "data", "attacker", "measure", "federation")
"""Tables of which a cell changes some keys; a component such as the attack is replaced whole."""


class GridFile(Settings):
    """What a grid file holds.

    Args:
        base: a shipped scenario or the path of one, relative to the grid file.
        scenario: keys of the base scenario, over those of ``base``.
        seeds: every cell is run with each of them.
        grid: lists of values by key of a scenario, dotted for keys of its tables.
        cells: further cells beside the product; tables of a scenario's keys and a label.
        exclude: cells that are left out: labels (or lists of them) by axis, which must all fit.
    """

    base: str | None = None
    scenario: dict[str, Any] = Field(default_factory=dict)
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    grid: dict[str, Any] = Field(default_factory=dict)
    cells: tuple[dict[str, Any], ...] = ()
    exclude: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Args:
        labels: what the table calls the values of the axes.
        scenario: what is run, on one thread.
    """

    labels: dict[str, str]
    scenario: Scenario

    @cached_property
    def name(self) -> str:
        """The scenario's identity and its seed; equal cells of any grid have equal names."""
        return f"{self.scenario.identity}-seed{self.scenario.seed}"

    def __str__(self) -> str:
        values = [f"{axis} = {label}" for axis, label in self.labels.items()]
        return ", ".join([*values, f"seed {self.scenario.seed}"])


@dataclass(frozen=True)
class Grid:
    """The cells of a sweep.

    Args:
        name: of the grid's file.
        axes: names of the columns of labels, in their order.
        cells: in the grid's order, no two of them equal.
        repeated: cells left out because they would be the same run as an earlier one.
    """

    name: str
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]
    repeated: int = 0

    @classmethod
    def of(cls, source: "Grid | Mapping[str, Any] | str | Path", **options: Any) -> "Grid":
        """Return a grid as it is, from a mapping, or from a file by path or shipped name."""
        if isinstance(source, Grid):
            return source
        if isinstance(source, Mapping):
            return cls.from_mapping(source, **options)
        return cls.from_toml(find(str(source), "grid"), **options)

    @classmethod
    def from_toml(cls, path: Path, **options: Any) -> "Grid":
        """Read a grid file; see :meth:`from_mapping`.

        Raises:
            FlSimError: if the file is missing or wrong in any part.
        """
        values = read_toml(path, "grid")
        return cls.from_mapping(values, name=path.stem, beside=path.parent, **options)

    @classmethod
    def from_mapping(
        cls,
        values: Mapping[str, Any],
        *,
        name: str = "sweep",
        beside: Path = Path(),
        overrides: Iterable[str] = (),
        device: Literal["cpu", "auto"] = "cpu",
    ) -> "Grid":
        """Expand a grid and check every cell.

        Args:
            values: as TOML gives them.
            name: of the grid.
            beside: folder that a relative ``base`` starts from.
            overrides: ``"key=value"`` with dotted keys, for every cell; or ``"seeds=[0, 1]"``.
            device: what cells with ``device = "auto"`` are run on.

        Raises:
            FlSimError: if anything is wrong; all impossible cells are named at once.
        """
        changed = {"seeds": values["seeds"]} if "seeds" in values else {}
        kept: list[str] = []
        for override in overrides:
            if override.partition("=")[0].strip() == "seeds":
                apply_override(changed, override)
            else:
                kept.append(override)
        file = parse(GridFile, {**values, **changed}, "The grid")
        axes = _axes(file.grid)
        _check_overrides(kept, axes)
        base = base_scenario(file, beside)
        drafts = list(_product(base, axes, _exclusions(file.exclude, axes))) if axes else []
        drafts += [_extra(base, extra, axes) for extra in file.cells]
        if not axes and not file.cells:
            drafts = [({}, base)]
        columns = tuple(dict.fromkeys(column for labels, _ in drafts for column in labels))
        cells, problems = [], []
        for labels, scenario in drafts:
            filled = {c: labels.get(c) or _present(base, c) for c in columns}
            for seed in file.seeds:
                try:
                    checked = _checked({**scenario, "seed": seed}, kept, device)
                    cells.append(Cell(filled, checked))
                except FlSimError as error:
                    problems.append((filled, str(error)))
                    break
        _refuse_impossible(problems, len(drafts))
        if not cells:
            raise FlSimError("The grid has no cells; [[exclude]] leaves none of them.")
        different = {cell.name: cell for cell in reversed(cells)}
        unique = tuple(cell for cell in cells if different[cell.name] is cell)
        return cls(name, columns, unique, len(cells) - len(unique))

    def as_json(self) -> str:
        """Return the grid with every default of every cell filled in."""
        cells = [
            {"name": c.name, "labels": c.labels, "scenario": c.scenario.model_dump(mode="json")}
            for c in self.cells
        ]
        return json.dumps({"name": self.name, "axes": self.axes, "cells": cells}, indent=1) + "\n"


@dataclass(frozen=True)
class _Value:
    """A value of an axis and what the table calls it."""

    label: str
    value: Any


_Axes = dict[str, list[_Value]]
_Draft = tuple[dict[str, str], dict[str, Any]]


def _axes(grid: Mapping[str, Any], parent: str = "") -> _Axes:
    """Read [grid]; a table in it (from an unquoted dotted key) has axes of its own."""
    axes: _Axes = {}
    for key, values in grid.items():
        path = parent + key
        _check_key(path)
        if isinstance(values, Mapping):
            axes |= _axes(values, path + ".")
        elif isinstance(values, list | tuple) and len(values):
            axes[path] = _labelled(path, values)
        else:
            raise FlSimError(
                f"[grid] '{path}' is {values!r}, but it should be a list of one value or more."
            )
    return axes


def _check_key(path: str, where: str = "[grid]") -> None:
    first = path.partition(".")[0]
    if first == "seed":
        raise FlSimError(f"{where} has no key 'seed'; say seeds = [0, 1, 2] at the grid's top.")
    valid = [k for k in Scenario.model_fields if k not in ("seed", "threads")]
    valid += [VARIANT] if where == "[grid]" else []
    if first not in valid:
        raise FlSimError(f"{where} has no key '{first}'.{did_you_mean(first, valid)}")


def _labelled(path: str, values: Iterable[Any]) -> list[_Value]:
    labelled = [_value(path, value) for value in values]
    seen: set[str] = set()
    for entry in labelled:
        if entry.label in seen:
            raise FlSimError(
                f"[grid] '{path}' has two values called '{entry.label}'; give one of them a label "
                f'of its own: {{label = "...", ...}}.'
            )
        seen.add(entry.label)
    return labelled


def _value(path: str, value: Any) -> _Value:
    """Take the label off a value; a number or name is labelled as {label = ..., value = ...}."""
    if isinstance(value, Mapping) and "label" in value:
        rest = {key: inner for key, inner in value.items() if key != "label"}
        label = value["label"]
        if not isinstance(label, str) or not label or "\n" in label:
            raise FlSimError(f"[grid] '{path}' has the label {label!r}; it should be a short text.")
        plain = rest["value"] if set(rest) == {"value"} else rest
    else:
        label, plain = _described(value), value
    if path == VARIANT and not isinstance(plain, Mapping):
        raise FlSimError(
            f"[grid] 'variant' has the value {plain!r}, but it should be a table of a scenario's "
            f"keys with a label."
        )
    return _Value(label, plain)


def _described(value: Any) -> str:
    """Call a value by its own words: a component by its name and the settings that were given."""
    if isinstance(value, Mapping):
        parts = [str(value["name"])] if "name" in value else []
        parts += [f"{k}={_described(v)}" for k, v in value.items() if k != "name"]
        return " ".join(parts) or "{}"
    if isinstance(value, list | tuple):
        return "[" + " ".join(_described(v) for v in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _exclusions(exclude: Iterable[Mapping[str, Any]], axes: _Axes) -> list[dict[str, set[str]]]:
    rules = []
    for number, rule in enumerate(exclude, 1):
        fits: dict[str, set[str]] = {}
        for axis, wanted in rule.items():
            if axis not in axes:
                raise FlSimError(f"[[exclude]] {number} names '{axis}'.{did_you_mean(axis, axes)}")
            known = {entry.label for entry in axes[axis]}
            fits[axis] = {
                _described(w) for w in (wanted if isinstance(wanted, list | tuple) else [wanted])
            }
            for label in fits[axis] - known:
                raise FlSimError(
                    f"[[exclude]] {number}: '{axis}' has no value called '{label}'."
                    f"{did_you_mean(label, known)}"
                )
        if not fits:
            raise FlSimError(f"[[exclude]] {number} is empty; it would leave out every cell.")
        rules.append(fits)
    return rules


def _product(
    base: Mapping[str, Any], axes: _Axes, excluded: list[dict[str, set[str]]]
) -> Iterator[_Draft]:
    # Whole tables are put in before keys inside them.
    order = sorted(axes, key=lambda path: (path != VARIANT, path.count(".")))
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        labels = {axis: entry.label for axis, entry in chosen.items()}
        if any(all(labels[a] in wanted for a, wanted in rule.items()) for rule in excluded):
            continue
        scenario = dict(base)
        for axis in order:
            scenario = _with(scenario, axis, chosen[axis].value)
        yield labels, scenario


def _extra(base: Mapping[str, Any], extra: Mapping[str, Any], axes: _Axes) -> _Draft:
    labels: dict[str, str] = {}
    scenario = dict(base)
    for path, value in sorted(extra.items(), key=lambda item: item[0].count(".")):
        if path == "label":
            labels[VARIANT] = str(value)
            continue
        if path != VARIANT:
            _check_key(path, "[[cells]]")
        entry = _value(path, value)
        # A table of a section's keys, unless an axis is called so, speaks of each of them.
        if path in _SECTIONS and path not in axes and isinstance(entry.value, Mapping):
            labels |= {f"{path}.{k}": _described(v) for k, v in entry.value.items()}
        else:
            labels[path] = entry.label
        scenario = _with(scenario, path, entry.value)
    return labels, scenario


def _with(scenario: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a scenario with one key changed; nothing inside the old one is touched."""
    if path == VARIANT:
        changed = dict(scenario)
        for key, inner in sorted(value.items(), key=lambda item: item[0].count(".")):
            _check_key(key, "[grid] variant")
            changed = _with(changed, key, inner)
        return changed
    key, _, rest = path.partition(".")
    old = scenario.get(key)
    if not rest:
        merged = key in _SECTIONS and isinstance(old, Mapping) and isinstance(value, Mapping)
        return {**scenario, key: {**old, **value} if merged and old is not None else value}
    inside: Mapping[str, Any] = {"name": old} if isinstance(old, str) else old or {}
    if not isinstance(inside, Mapping):
        raise FlSimError(f"[grid] '{path}': '{key}' has no keys of its own.")
    return {**scenario, key: _with(inside, rest, value)}


def _present(base: Mapping[str, Any], path: str) -> str:
    """Return what the base scenario says at a path, for cells that an axis does not vary."""
    value: Any = base
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return UNLABELLED
        value = value[part]
    return _described(value)


def base_scenario(file: GridFile, beside: Path) -> dict[str, Any]:
    """Return the keys of a grid's base scenario: those of its file, and over them its own.

    Raises:
        FlSimError: if the file is missing or cannot be read, or a key is not one of a scenario.
    """
    values: dict[str, Any] = {}
    if file.base is not None:
        values = read_toml(find(file.base, "scenario", beside), "scenario")
    for key, value in file.scenario.items():
        if key == "seed":
            raise FlSimError("[scenario] has no seed in a grid; say seeds = [0, 1, 2] at its top.")
        values = _with(values, key, value)
    return values


def _check_overrides(overrides: Iterable[str], axes: _Axes) -> None:
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key == "seed":
            raise FlSimError(f"--set {override}: a sweep has seeds; say --set 'seeds=[0, 1]'.")
        if key in axes:
            raise FlSimError(f"--set {override} would undo the axis '{key}' of [grid].")


def _checked(values: dict[str, Any], overrides: Iterable[str], device: str) -> Scenario:
    copied = _copied(values)
    for override in overrides:
        apply_override(copied, override)
    if copied.setdefault("threads", 1) != 1:
        raise FlSimError(
            f"The scenario's 'threads' is {copied['threads']}, but the cells of a sweep run side "
            f"by side on one thread each; leave it out."
        )
    scenario = Scenario.from_mapping(copied)
    if scenario.device == "auto":
        scenario = scenario.model_copy(update={"device": device})
    if scenario.federation is not None:
        # Hospitals take turns inside the cell's own process; the numbers are the same.
        engine = scenario.federation.engine.model_copy(update={"engine": "inprocess"})
        federation = scenario.federation.model_copy(update={"engine": engine})
        scenario = scenario.model_copy(update={"federation": federation})
    return scenario


def _copied(value: Any) -> Any:
    """Copy nested tables, so that overriding one cell's keys leaves the next cell's alone."""
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return value


def _refuse_impossible(problems: list[tuple[dict[str, str], str]], cells: int) -> None:
    if not problems:
        return
    if len(problems) == 1 and cells == 1:
        raise FlSimError(problems[0][1])
    by_message: dict[str, list[str]] = {}
    for labels, message in problems:
        said = ", ".join(f"{axis} = {label}" for axis, label in labels.items())
        by_message.setdefault(message, []).append(said or "the base scenario")
    lines = []
    for message, where in by_message.items():
        more = f" and {len(where) - 3} more" if len(where) > 3 else ""
        lines.append(f"  {message} ({'; '.join(where[:3])}{more})")
    raise FlSimError(
        f"{len(problems)} of {cells} cells of the grid are impossible, and nothing was run:\n"
        + "\n".join(lines)
    )
