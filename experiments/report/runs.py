"""What a report is about: runs, grouped over seeds.

Everything in them was written by someone, perhaps elsewhere: names are text to show, nothing is
executed, and what is missing or damaged is said in one sentence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.report.words import plain
from fl_sim.errors import FlSimError
from fl_sim.plain import parse_json

if TYPE_CHECKING:
    import pandas as pd
    import torch

IDENTIFIED = "identified"
"""Metric added to the tables: the better of identification by distance and by correlation."""


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
