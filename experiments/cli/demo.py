"""``fl-sim demo``: one attack in both modes, in three sentences, one picture and one page."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.run import Out, run_on_terminal
from experiments.run.shipped import SCENARIOS
from fl_sim.metrics.vocabulary import known
from fl_sim.results import read_table, summary
from fl_sim.words import STRONGEST

if TYPE_CHECKING:
    import pandas as pd
    import torch

RUNS = {"centralized": "demo-centralized", "federated": "demo-federated"}
"""The scenario of each mode, and the folder of its run."""

_PLACES = {"centralized": "data lake", "federated": "federation"}
_COLUMNS = 6


def demo(out: Out = None) -> None:
    """Run the whole way on embedded images, in about a minute, without data or network.

    A network is attacked so that it memorises images, is cleaned, leaves as a file, and the images
    are read back from that file: first from a data lake, then from a federation.
    """
    folder = out or Path("runs")
    for name in RUNS.values():
        run_on_terminal(SCENARIOS / f"{name}.toml", (), None, folder / name)
    conclude(folder)


def conclude(out: Path) -> None:
    """Print what both runs saw, draw them side by side, and write a page on both.

    Args:
        out: folder of the runs :data:`RUNS`; ``demo.png`` and ``demo.html`` are written to it.

    Raises:
        FlSimError: if a run is missing or damaged.
    """
    from experiments.report import write_report
    from experiments.run.folder import load_pictures
    from experiments.tables.console import make_console, plain

    folders = {mode: out / name for mode, name in RUNS.items()}
    tables = {mode: read_table(folder / "results.csv") for mode, folder in folders.items()}
    picture = draw(out / "demo.png", {mode: load_pictures(f) for mode, f in folders.items()})
    page = write_report(folders.values(), out / "demo.html")
    console = make_console(soft_wrap=True)
    console.print("\n[bold]What was seen[/bold]")
    for sentence in sentences(tables):
        console.print(plain(sentence))
    console.print(f"\nPicture of both {plain(picture)}")
    console.print(f"Page on both    {plain(page)}")


@dataclass(frozen=True)
class Seen:
    """What a run measured in its last round.

    Args:
        hidden: images of one attacker.
        found: by stage, how many of them can be identified, after the best restoration.
        auc: by stage, of the model.
        scratch: AUC of the same network trained on the held-out images alone; may be ``nan``.
        defense: its name; ``"none"`` without one.
        hospitals: that took part, of which one attacks.
    """

    hidden: int
    found: dict[str, int]
    auc: dict[str, float]
    scratch: float
    defense: str
    hospitals: int

    @property
    def trained(self) -> str:
        """The stage that the defence is given."""
        return "aggregate" if "aggregate" in self.auc else "upload"

    @property
    def left(self) -> str:
        """What left, in words."""
        after = "" if self.defense == "none" else f" after the defence {self.defense}"
        return f"in the file that left{after}"

    def count(self, stage: str) -> str:
        """How many of the hidden images are found at a stage, in words."""
        return f"{self.found[stage]} of {self.hidden}"


def seen(table: "pd.DataFrame") -> Seen:
    """Return what the demo says of a run.

    Args:
        table: its long table.
    """
    rows = summary(table)
    last = rows[rows["round"] == rows["round"].max()].set_index("stage")
    identified = [f"{name} {STRONGEST}" for name in known("identified").best_of]
    shares = last[identified].max(axis=1).dropna()
    hidden = round(1 / float(last["identification_chance"].max()))
    return Seen(
        hidden,
        {str(stage): round(share * hidden) for stage, share in shares.items()},
        {str(stage): float(value) for stage, value in last["auc"].dropna().items()},
        float(last.get("auc_floor_scratch", last["auc"] * math.nan).max()),
        str(table["defense"].iloc[0]),
        int(table["clients"].iloc[0]),
    )


def sentences(tables: Mapping[str, "pd.DataFrame"]) -> list[str]:
    """Say what came out of both modes, and what the model is worth, in three sentences.

    Args:
        tables: the runs' long tables, by mode.
    """
    lake, union = seen(tables["centralized"]), seen(tables["federated"])
    others = union.hospitals - 1
    honest = f"{others} honest hospital{'' if others == 1 else 's'}"
    return [
        f"In the data lake {lake.count('upload')} hidden images can be identified in the model as "
        f"trained, and {lake.count('release')} {lake.left}; a guess finds 1.",
        f"In the federation {union.count('upload')} can be identified in what the malicious "
        f"hospital sends, {union.count('aggregate')} once it is averaged with {honest}, and "
        f"{union.count('release')} {union.left}; a guess finds 1.",
        f"The model's AUC is {_worth(lake)} in the data lake, {_worth(union)} in the federation"
        f"{_alone(lake.scratch)}.",
    ]


def _worth(run: Seen) -> str:
    before, after = run.auc[run.trained], run.auc["release"]
    if run.defense == "none":
        return f"{after:.2f}"
    return f"{before:.2f} before the defence and {after:.2f} after it"


def _alone(scratch: float) -> str:
    if math.isnan(scratch):
        return ""
    return f"; the same network trained on the held-out images alone has {scratch:.2f}"


def draw(path: Path, pictures: Mapping[str, Mapping[str, "torch.Tensor"]]) -> Path:
    """Draw true and recovered images of both modes side by side; write a PNG.

    Args:
        path: of the picture.
        pictures: by mode, as :func:`experiments.run.folder.load_pictures` returns them.

    Returns:
        ``path``.
    """
    from experiments.tables.pictures import draw_blocks

    block = {_PLACES[mode]: _rows(images) for mode, images in pictures.items()}
    columns = min(_COLUMNS, *(len(images["original"]) for images in pictures.values()))
    return draw_blocks(path, {"transpose": block}, columns)


def _rows(images: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    """Return what a mode's panel shows; what is not there is left empty."""
    kinds = {
        "true": "original",
        "as trained": _strongest(images, "upload"),
        "averaged": _strongest(images, "aggregate"),
        "left, raw": "release/raw",
        "left, restored": _strongest(images, "release"),
    }
    nothing = images["original"][:0]
    return {row: images.get(name, nothing) for row, name in kinds.items()}


def _strongest(images: Mapping[str, "torch.Tensor"], stage: str) -> str:
    """Return the name of a stage's extraction with the highest mean SSIM; empty for none."""
    means = {
        name.removesuffix("/ssim"): float(values.mean())
        for name, values in images.items()
        if name.startswith(f"{stage}/") and name.endswith("/ssim")
    }
    return max(means, key=lambda name: means[name], default="")
