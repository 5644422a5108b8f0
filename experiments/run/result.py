"""What a run gives back: the table, the recovered images, and the files it wrote."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from experiments.report.about import read_about
from experiments.run.folder import load_pictures
from experiments.run.scenario import Scenario
from experiments.tables.pictures import kept_extractions
from fl_sim.errors import FlSimError, printable, unknown_name
from fl_sim.files import briefly
from fl_sim.metrics.payload import COUNTED
from fl_sim.metrics.vocabulary import column_label, known, names_of
from fl_sim.results import STAGES, read_table, summary
from fl_sim.words import STRONGEST

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Result:
    """A finished run.

    Args:
        scenario: as run, with every default filled in; ``None`` for a run that was read back from
            its folder, since to build a scenario imports the modules that it names. What the file
            says is in :attr:`settings`.
        out: the run's folder.
    """

    scenario: Scenario | None
    out: Path

    @property
    def settings(self) -> dict[str, Any]:
        """The scenario as run, as plain values by key."""
        settings: dict[str, Any] = read_about(self.out / "scenario.json")["scenario"]
        return settings

    @property
    def table(self) -> "pd.DataFrame":
        """The long table, a row a number."""
        return read_table(self.out / "results.csv")

    def summary(self) -> "pd.DataFrame":
        """One row a round and stage: which run, leakage beside its floors, and utility."""
        return summary(self.table)

    @property
    def artifact(self) -> Path:
        """The model file that left last."""
        folder = self.out / "artifacts"
        kept = sorted(folder.glob("round-*-release.safetensors"))
        return kept[-1] if kept else folder / "release.safetensors"

    @property
    def key(self) -> Path:
        """The first attacker's key file, which reads :attr:`artifact`; absent in an honest run."""
        federation = self.settings.get("federation")
        malicious = federation.get("malicious") if isinstance(federation, dict) else None
        first = malicious[0] if isinstance(malicious, list) and malicious else 0
        return self.out / "keys" / f"hospital-{first if isinstance(first, int) else 0}.safetensors"

    @property
    def picture(self) -> Path:
        """The grid of original and recovered images, as PNG; absent in an honest run."""
        return self.out / "images" / "recovered.png"

    @property
    def originals(self) -> torch.Tensor:
        """The first attacker's true images, float32 ``[n, channels, height, width]``."""
        return load_pictures(self.out).get("original", torch.empty(0))

    @property
    def recovered(self) -> dict[str, torch.Tensor]:
        """What the first attacker recovered last, by ``"<stage>/<extraction>"``, in [0, 1].

        For example ``result.recovered["release/affine"]``; each float32 ``[n, channels, height,
        width]`` in the order of ``originals``. Kept are ``raw``, ``affine``, ``learned``, the
        strongest extraction of each stage and the one that an attacker would choose; see
        :meth:`best`.
        """
        return {
            name: images
            for name, images in load_pictures(self.out).items()
            if name != "original" and not name.endswith("/ssim")
        }

    def best(self, stage: str = "release") -> torch.Tensor:
        """Return the first attacker's images of a stage after the strongest extraction.

        The strongest is the one of the highest mean SSIM with the true images, which whoever
        measures has and the attacker has not: what he would pick himself is this or worse. By
        another metric another extraction may be stronger.

        Args:
            stage: ``"upload"``, ``"aggregate"`` or ``"release"``; of a federation in the last round
                that was measured.

        Returns:
            float32 ``[n, channels, height, width]`` in [0, 1], in the order of :attr:`originals`.

        Raises:
            FlSimError: if nothing was hidden, or nothing was measured at that stage.
        """
        pictures = load_pictures(self.out)
        if not pictures:
            raise FlSimError(f"Nothing was hidden in the run in {self._where}; it has no images.")
        if not (kept := kept_extractions(pictures, stage)):
            raise unknown_name("stage", stage, [s for s in STAGES if kept_extractions(pictures, s)])
        return pictures[f"{stage}/{kept[-1]}"]

    def show(self) -> None:
        """Show the summary and, in a notebook, the picture; on a terminal print the summary."""
        from experiments.tables.console import make_console, print_result
        from experiments.tables.notebook import display
        from fl_sim.bars import in_notebook

        if in_notebook():
            display(self)
        else:
            print_result(make_console(), self)

    def report(self, path: Path | str | None = None) -> Path:
        """Write a report on this run, one HTML page that needs nothing else.

        Args:
            path: of the page; by default ``report.html`` in the run's folder.

        Returns:
            ``path``.

        Raises:
            FlSimError: if the folder is damaged or ``path`` is a folder.
        """
        from experiments.report import write_report

        return write_report(self.out, self.out / "report.html" if path is None else path)

    def __repr__(self) -> str:
        try:
            view = self.summary()
            who = self.table[["scenario", "seed"]].iloc[0]
        except (FlSimError, IndexError) as error:
            return f"Result in {self._where}: {error or 'nothing was measured'}"
        name = printable(str(who["scenario"]))
        return f"Result of {name}, seed {who['seed']}, in {self._where}\n  {_in_short(view)}"

    def _repr_html_(self) -> str:
        from experiments.tables.console import compact, explained
        from experiments.tables.notebook import note, page, picture_html, table_html

        title = repr(self).partition("\n")[0]
        try:
            summary = self.summary()
        except FlSimError:
            return page(title)
        shown = compact(summary)
        alt = "True images, and what was recovered of them at each stage"
        return page(
            title, table_html(shown), note(explained(summary)), picture_html(self.picture, alt)
        )

    @property
    def _where(self) -> str:
        return briefly(self.out)


def _in_short(view: "pd.DataFrame") -> str:
    """Return a run's main numbers in one line: first where they were measured first, then last."""
    whole = view[view["stage"].isin(STAGES)]
    last = whole[whole["round"] == whole["round"].max()]
    ends = last.iloc[[0, -1]] if len(last) > 1 else last

    def value(column: str) -> list[float]:
        there = ends[column].dropna() if column in ends else []
        return [float(number) for number in there]

    identified = (f"{name} {STRONGEST}" for name in known("identified").best_of)
    found = [max(pair) for pair in zip(*map(value, identified), strict=False)]
    hidden = [sum(counts) for counts in zip(*map(value, COUNTED.values()), strict=False)]
    utility = next((name for name in names_of("utility") if value(name)), "")
    parts = [
        _said("images intact", value("images_intact"), "of", hidden),
        _said("SSIM at best", value("ssim strongest"), "floor", value("ssim_floor_mean")),
        _said("found", found, "guessing", value("identification_floor")),
        _said(
            column_label(utility),
            value(utility),
            "from scratch",
            value(f"{utility}_floor_scratch"),
        ),
    ]
    stages = " -> ".join(ends["stage"])
    return f"{stages}: {'; '.join(part for part in parts if part)}"


def _said(name: str, values: list[float], floor: str, floors: list[float]) -> str:
    """Return one number at both ends and its floor; empty where it was not measured."""
    from experiments.tables.console import cell_text

    if not values:
        return ""
    beside = [number for number in floors if not math.isnan(number)]
    told = f" ({floor} {cell_text(beside[-1])})" if beside else ""
    return f"{name} {' -> '.join(map(cell_text, values))}{told}"
