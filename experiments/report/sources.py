"""What a report is made of: runs and sweeps, read from their folders, grouped over seeds.

Everything read here was written by someone, perhaps elsewhere: names are text to show, nothing is
executed, and what is missing or damaged is said in one sentence.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.run.about import read_about
from experiments.sweep.grid import VARIANT
from experiments.tables.summary import CELL, LABEL, labels_of
from fl_sim.cells import read_texts
from fl_sim.errors import FlSimError, did_you_mean, printable
from fl_sim.metrics.vocabulary import known
from fl_sim.plain import parse_json
from fl_sim.results import COLUMNS, STAGES, read_table, typed_columns

if TYPE_CHECKING:
    import pandas as pd
    import torch

IDENTIFIED = "identified"
"""Metric added to the tables: the better of identification by distance and by correlation."""

# What a file may claim to hold, for its size: tables of long texts that repeat are small files.
_ROWS = 1_000_000
_BYTES = 64 << 20
_MOST_EXPANSION = 200

# What tells scenarios apart before their settings do, in the order of columns.
_FACTS = ("attack", "defense", "mode", "dataset", "model", "aggregator")


@dataclass(frozen=True)
class Run:
    """One run, or one cell of a sweep.

    Args:
        name: unique in a report; where it lies.
        folder: of the run; ``None`` where only its rows of a sweep's table are there.
        about: its ``scenario.json``; empty without a folder.
        table: its long table.
        labels: of its cell, by the sweep's axes.
    """

    name: str
    folder: Path | None
    about: Mapping[str, Any]
    table: "pd.DataFrame" = field(repr=False)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """The scenario's name, the same for all seeds."""
        return str(self.table["scenario"].iloc[0])

    @property
    def seed(self) -> int:
        """Everything random followed from it."""
        return int(self.table["seed"].iloc[0])

    @property
    def scenario(self) -> dict[str, Any]:
        """The scenario as run, by key; empty where it is not known."""
        found = self.about.get("scenario")
        return found if isinstance(found, dict) else {}

    @property
    def finished(self) -> bool:
        """Whether the run came to its end; of a sweep's table only finished cells are in it."""
        return self.folder is None or (self.folder / "finished").exists()

    @cached_property
    def pictures(self) -> dict[str, "torch.Tensor"]:
        """Recovered images, as :func:`experiments.run.folder.load_pictures` returns them.

        Raises:
            FlSimError: if the file is damaged.
        """
        from experiments.report.pictures import read_pictures

        return {} if self.folder is None else read_pictures(self.folder)

    @cached_property
    def defense_log(self) -> list[dict[str, Any]]:
        """What the defence did, a dictionary a round.

        Raises:
            FlSimError: if the file is damaged.
        """
        if self.folder is None or not (self.folder / "defense.jsonl").exists():
            return []
        path = self.folder / "defense.jsonl"
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise FlSimError(f"The file {path} cannot be read: {error.strerror}.") from None
        log = [parse_json(line, f"A line of the file {path}") for line in lines if line]
        if not all(isinstance(entry, dict) for entry in log):
            raise FlSimError(f"The file {path} is not the log of a defence.")
        return log


@dataclass
class Group:
    """Runs of one scenario that differ in their seed only.

    Args:
        runs: by seed.
        labels: what tells this group from the others of the report, by axis.
        number: from 1, in the order of the report.
    """

    runs: list[Run]
    labels: dict[str, str] = field(default_factory=dict)
    number: int = 1

    @property
    def first(self) -> Run:
        """The run whose images and files are shown."""
        return self.runs[0]

    @property
    def seeds(self) -> list[int]:
        """Of its runs."""
        return [run.seed for run in self.runs]

    @cached_property
    def table(self) -> "pd.DataFrame":
        """The long table over all seeds."""
        import pandas as pd

        return pd.concat([run.table for run in self.runs], ignore_index=True)

    def fact(self, column: str) -> str:
        """Return what the table says of the scenario, for example its ``attack``."""
        return str(self.first.table[column].iloc[0])

    @property
    def attacked(self) -> bool:
        """Whether anything was hidden in the model."""
        return self.fact("attack") != "none"

    @property
    def defended(self) -> bool:
        """Whether the model was cleaned before it left."""
        return self.fact("defense") != "none"

    @property
    def federated(self) -> bool:
        """Whether several hospitals trained."""
        return self.fact("mode") == "federated"

    def said(self, axis: str) -> str:
        """Return a label for people."""
        text = self.labels[axis]
        return (
            {"attack": "no attack", "defense": "no defence"}.get(axis, text)
            if text == "none"
            else text
        )

    @property
    def label(self) -> str:
        """What tells this group from the others, in one line."""
        texts = [self.said(axis) for axis in self.labels]
        return ", ".join(text for text in texts if text) or plain(self.fact("attack"))


@dataclass(frozen=True)
class Sources:
    """All that is reported on.

    Args:
        groups: scenarios, each with its seeds.
        axes: what tells them apart; the keys of each group's labels.
        table: one long table over all runs, as of a sweep (see :mod:`experiments.tables.summary`).
        failed: cells of sweeps that failed, a dictionary each.
        sweeps: folders among the sources that are sweeps.
    """

    groups: list[Group]
    axes: list[str]
    table: "pd.DataFrame" = field(repr=False)
    failed: list[dict[str, str]]
    sweeps: list[Path]

    @property
    def runs(self) -> list[Run]:
        """All runs, group by group."""
        return [run for group in self.groups for run in group.runs]


def read_sources(folders: Iterable[Path]) -> Sources:
    """Read folders of runs and sweeps.

    Raises:
        FlSimError: if one is neither, is damaged, holds no measurement, or is given twice.
    """
    runs: list[Run] = []
    failed: list[dict[str, str]] = []
    sweeps: list[Path] = []
    for folder in folders:
        if _is_sweep(folder):
            runs += _read_sweep(folder)
            failed += _read_failed(folder)
            sweeps.append(folder)
        else:
            runs.append(_read_run(folder))
    if not runs:
        raise FlSimError("A report needs at least one folder of a run or of a sweep.")
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.identity, *sorted(run.labels.items())), []).append(run)
    found = [Group(sorted(members, key=lambda run: run.seed)) for members in groups.values()]
    for group in found:
        for one, other in zip(group.runs, group.runs[1:], strict=False):
            if one.seed == other.seed:
                raise FlSimError(
                    f"{one.name} and {other.name} hold the same run, seed {one.seed}; give only "
                    f"one of them."
                )
    axes = _label(found)
    for number, group in enumerate(found, start=1):
        group.number = number
    return Sources(found, axes, _long_table(found, axes), failed, sweeps)


def plain(name: str) -> str:
    """Return a component's name for a sentence: words, and acronyms as they are written."""
    words = Path(name).stem.split("_")
    return " ".join(_SPELLED.get(word, word) for word in words)


_SPELLED = {
    word.lower(): word
    for word in (
        "CNN", "MLP", "VGG11", "ViT", "ResNet18", "DenseNet121", "U-Net", "LWLRD", "REFIT", "DEC",
        "FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedMedian", "FedProx", "FedTrimmedAvg",
        "FedYogi", "IID", "MIMIC", "CXR", "BraTS", "LiTS", "NIfTI", "BloodMNIST", "BreastMNIST",
        "ChestMNIST", "DermaMNIST", "OCTMNIST", "OrganAMNIST", "OrganCMNIST", "OrganSMNIST",
        "PathMNIST", "PneumoniaMNIST", "RetinaMNIST", "TissueMNIST",
    )
} | {"unet": "U-Net", "transpose": "Transpose", "krum": "Krum", "bulyan": "Bulyan"}  # fmt: skip
"""How names are written that are no plain words; others stay as they are."""


def sentence_case(text: str) -> str:
    """Return a text with a capital first letter; the rest stays, for the sake of acronyms."""
    return text[:1].upper() + text[1:]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as text by dotted key; what a component is called stands by itself.

    ``{"attack": {"name": "dec", "settings": {"images": 8}}}`` gives ``{"attack": "dec",
    "attack.images": "8"}``.
    """
    found: dict[str, str] = {}
    for key, value in values.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            if set(value) == {"name", "settings"} and isinstance(value["settings"], Mapping):
                found[dotted] = str(value["name"])
                value = value["settings"]
            found |= flat(value, dotted)
        elif isinstance(value, list) and not any(isinstance(part, dict | list) for part in value):
            found[dotted] = ", ".join(map(str, value)) or "none"
        else:
            found[dotted] = _said(value)
    return found


def _said(value: object) -> str:
    """Return a plain value as a person would write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _is_sweep(folder: Path) -> bool:
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        hint = did_you_mean(folder.name, siblings) if len(siblings) else ""
        # All siblings would be no help.
        raise FlSimError(
            f"The folder {folder} does not exist.{hint if 'Did you mean' in hint else ''}"
        )
    if (folder / "results.csv").is_file():
        return False
    if any((folder / name).is_file() for name in ("table.csv", "table.parquet")):
        return True
    if (folder / "grid.json").is_file():
        raise FlSimError(
            f"The sweep in {folder} has no table yet; run it to its end with fl-sim sweep."
        )
    raise FlSimError(
        f"The folder {folder} is neither a run's (it has no results.csv) nor a sweep's (no "
        f"table.csv); give the folder that fl-sim run or fl-sim sweep wrote."
    )


def _read_run(folder: Path) -> Run:
    table = read_table(folder / "results.csv")
    if table.empty:
        raise FlSimError(f"The run in {folder} has measured nothing yet; let it run further.")
    return Run(str(folder), folder, read_about(folder / "scenario.json"), _with_identified(table))


def _read_sweep(folder: Path) -> list[Run]:
    table = _sweep_table(folder)
    axes = labels_of(table)
    runs = []
    for cell, rows in table.groupby(CELL, sort=False):
        name = str(cell)
        # The name comes from a file: it must not lead out of the sweep's folder.
        inside = folder / "cells" / name if name == Path(name).name else None
        there = inside is not None and (inside / "scenario.json").is_file()
        labels = {axis: str(rows[LABEL + axis].iloc[0]) for axis in axes}
        runs.append(
            Run(
                f"{folder}/cells/{printable(name)}",
                inside if there else None,
                read_about(inside / "scenario.json") if there and inside is not None else {},
                _with_identified(rows[list(COLUMNS)].reset_index(drop=True)),
                labels,
            )
        )
    return runs


def _sweep_table(folder: Path) -> "pd.DataFrame":
    path = folder / "table.parquet"
    path = path if path.is_file() else folder / "table.csv"
    name = printable(str(path))
    try:
        if path.suffix == ".parquet":
            table = _read_parquet(path)
        else:  # written with nothing for what is not a number
            table = read_texts(path).replace({"value": {"": "nan"}})
    except FlSimError:
        raise
    except Exception as error:  # pandas and pyarrow have their own for each way to be no table
        said = printable(str(error).partition("\n")[0])[:200]
        raise FlSimError(f"The file {name} is not the table of a sweep: {said}.") from None
    if len(set(table.columns)) < len(table.columns):
        raise FlSimError(f"The file {name} is not the table of a sweep: a column is there twice.")
    missing = [column for column in (CELL, *COLUMNS) if column not in table.columns]
    if missing:
        raise FlSimError(
            f"The file {name} is not the table of a sweep: it has no column '{missing[0]}'."
        )
    if table.empty:
        raise FlSimError(f"The sweep in {folder} has measured nothing yet.")
    labels = [column for column in table.columns if column.startswith(LABEL)]
    return typed_columns(table, [CELL, *labels, *COLUMNS], f"The table {name}")


def _read_parquet(path: Path) -> "pd.DataFrame":
    """Read a Parquet table for what it holds, without what it says of itself to pandas.

    Raises:
        FlSimError: if it claims more rows than its size can hold.
    """
    import pyarrow.parquet as pq

    size = path.stat().st_size
    with pq.ParquetFile(path) as file:
        told = file.metadata
        groups = [told.row_group(number) for number in range(told.num_row_groups)]
        rows = max([told.num_rows, *(group.num_rows for group in groups)])
        weight = sum(group.total_byte_size for group in groups)
        if not 0 <= rows <= _ROWS + size or weight > _BYTES + _MOST_EXPANSION * size:
            raise FlSimError(
                f"The table {printable(str(path))} claims {rows} rows in {weight} bytes, which a "
                f"file of {size} bytes does not hold."
            )
        columns = [str(name) for name in file.schema_arrow.names]
        table = file.read(use_threads=False).replace_schema_metadata(None)
        table.validate(full=True)  # texts that are no UTF-8 are noticed here, and not before
        frame = table.to_pandas(ignore_metadata=True)
    frame.columns = columns
    return frame


def _read_failed(folder: Path) -> list[dict[str, str]]:
    path = folder / "failed.csv"
    if not path.is_file():
        return []
    try:
        frame = read_texts(path)
    except Exception as error:  # pandas has its own for each way to be no table
        said = printable(str(error).partition("\n")[0])[:200]
        raise FlSimError(f"The file {printable(str(path))} cannot be read: {said}.") from None
    return [{str(k): str(v) for k, v in row.items()} for row in frame.to_dict("records")]


def _with_identified(table: "pd.DataFrame") -> "pd.DataFrame":
    """Add :data:`IDENTIFIED` by extraction, as rows of their own."""
    import pandas as pd

    about = known(IDENTIFIED)
    either = table["metric"].isin(about.best_of)
    keys = [name for name in COLUMNS if name not in ("metric", "value")]
    values = table[either].groupby(keys, sort=False, as_index=False)["value"]
    best = values.min() if about.lower_leaks else values.max()
    return pd.concat([table, best.assign(metric=IDENTIFIED)[list(COLUMNS)]], ignore_index=True)


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

    parts = []
    for group in groups:
        for run in group.runs:
            part = run.table.copy()
            labels = {LABEL + axis: group.labels[axis] for axis in axes}
            for place, (column, text) in enumerate({CELL: run.name, **labels}.items()):
                part.insert(place, column, text)
            parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    return table[table["stage"].str.partition(":")[0].isin(STAGES)].reset_index(drop=True)
