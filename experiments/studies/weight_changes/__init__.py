"""Study: what fine-tuning leaves behind. Three gaps through which images pass, in one table each.

An attacked model is fine-tuned in several ways, and both what can be extracted from it and every
single weight are compared with what they were:

1. Recovered images look destroyed and are not: a restoration by public statistics identifies them.
2. Most weights of the last stage do not change in a single bit: no gradient reaches them, and
   these fine-tunings have no weight decay.
3. Signs and high mantissa bits survive, and low bits can be randomised at no cost to the task.

Run ``fl-sim study weight_changes --help``.
"""

import io
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from experiments.run.result import Result
from experiments.run.standing import is_finished
from experiments.run.start import run
from experiments.studies.base import STUDIES, Study
from experiments.studies.published_tables import RELEASED, PublishedTable
from experiments.tables.console import print_table
from experiments.tables.figures import write_table
from fl_sim.artifact import read_artifact
from fl_sim.bars import make_progress
from fl_sim.errors import FlSimError
from fl_sim.files import write_atomically
from fl_sim.metrics.weights import MANTISSA_BITS, weight_change
from fl_sim.models import build, layers
from fl_sim.progress import SILENT, Progress

FINE_TUNINGS: dict[str, dict[str, Any]] = {
    "LWLRD 1e-2 to 1e-4, SGD": {"name": "lwlrd"},
    "uniform 1e-2, SGD": {"name": "high_rate_fine_tuning", "learning_rate": 1e-2},
    "uniform 1e-3, Adam": {
        "name": "high_rate_fine_tuning",
        "optimizer": "adam",
        "learning_rate": 1e-3,
    },
}
RANDOMISED: dict[str, dict[str, Any]] = {
    "18 random low bits": {"name": "random_bits", "bits": 18},
}
COMPARED = (
    "none",
    "fine-tuning, SGD 1e-4",
    "high-rate fine-tuning, SGD 1e-2",
    "LWLRD, SGD 1e-2 to 1e-4",
    "16 random low bits",
    "consistent distillation",
)
"""Defences of the study ``defenses`` whose cells can be compared in place of runs of its own."""
LEAKS = (
    ("ssim", "raw"),
    ("ssim", "strongest"),
    ("identification_distance", "raw"),
    ("identification_distance", "strongest"),
    ("identification_correlation", "strongest"),
    ("auc", "-"),
)


def study(
    base: dict[str, Any],
    defenses: dict[str, dict[str, Any]],
    out: Path,
    seeds: tuple[int, ...] = (0, 1, 2),
    data_root: Path | None = None,
    progress: Progress = SILENT,
) -> tuple[Any, Any]:
    """Attack once a seed, defend in every way, and compare; an interrupted study continues.

    Args:
        base: a centralized scenario with an attack, without seed and defence.
        defenses: settings by label.
        out: folder of the runs, the tables and the figure.
        seeds: of everything.
        data_root: folder of data files.
        progress: where to report.

    Returns:
        What leaked, a row a defence and seed; and what became of the weights, a row a defence,
        seed and stage of the network.
    """
    import pandas as pd

    leaks: list[dict[str, Any]] = []
    weights: list[dict[str, Any]] = []
    for seed in seeds:
        trained = out / "runs" / f"none-{seed}"
        undefended = run({**base, "seed": seed, "defense": "none"}, trained, data_root, progress)
        leaks.append({"defence": "none", "seed": seed} | _leak(undefended))
        for label, defense in defenses.items():
            folder = out / "runs" / f"{label}-{seed}".replace(" ", "-").replace(",", "")
            cell = {**base, "seed": seed, "defense": defense}
            result = run(cell, folder, data_root, progress, trained=trained)
            leaks.append({"defence": label, "seed": seed} | _leak(result))
            weights += [{"defence": label, "seed": seed} | row for row in _weights(folder)]
            write_table(out / "leaks_after_fine_tuning.csv", pd.DataFrame(leaks))
            write_table(out / "weights_after_fine_tuning.csv", pd.DataFrame(weights))
    frame = pd.DataFrame(weights)
    draw_bit_planes(out / "weights_after_fine_tuning.png", frame)
    return pd.DataFrame(leaks), frame


def of_sweep(folder: Path, out: Path) -> tuple[Any, Any]:
    """Compare the cells of a sweep instead: those of :data:`COMPARED` that ended.

    Args:
        folder: of the sweep: the part of ResNet18 of the study ``defenses``.
        out: of the tables and the figure.

    Returns:
        As :func:`study`.

    Raises:
        FlSimError: if the folder has no such cell.
    """
    import pandas as pd

    leaks: list[dict[str, Any]] = []
    weights: list[dict[str, Any]] = []
    for label, cell in _cells(folder):
        result = Result(None, cell)
        row = {"defence": label, "seed": int(result.settings["seed"])}
        leaks.append(row | _leak(result))
        if label != "none":
            weights += [row | change for change in _weights(cell)]
    if not leaks:
        raise FlSimError(
            f"The sweep in {folder} has no finished cell of {', '.join(COMPARED)}; give the folder "
            f"'resnet18' of the study defenses."
        )
    frame = pd.DataFrame(weights)
    write_table(out / "leaks_after_fine_tuning.csv", pd.DataFrame(leaks))
    write_table(out / "weights_after_fine_tuning.csv", frame)
    draw_bit_planes(out / "weights_after_fine_tuning.png", frame)
    return pd.DataFrame(leaks), frame


def _cells(folder: Path) -> list[tuple[str, Path]]:
    """Return finished cells with Transpose by their defence, in the order of :data:`COMPARED`."""
    try:
        written = json.loads((folder / "grid.json").read_bytes())["cells"]
        cells = [(c["labels"]["defense"], c["labels"]["attack"], c["name"]) for c in written]
    except (OSError, ValueError, LookupError, TypeError):
        raise FlSimError(f"{folder} is no folder of a sweep of defences and attacks.") from None
    found = [
        (label, folder / "cells" / name)
        for label, attack, name in cells
        if label in COMPARED and attack == "Transpose" and is_finished(folder / "cells" / name)
    ]
    return sorted(found, key=lambda cell: COMPARED.index(cell[0]))


def draw_bit_planes(path: Path, frame: Any) -> Path:
    """Draw a map a defence: bit errors by stage and bit plane, and the share left unchanged.

    Args:
        path: of the PNG.
        frame: the table of weights of :func:`study`; means over seeds are drawn.

    Returns:
        ``path``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    defenses = list(dict.fromkeys(frame["defence"]))
    figure = Figure(figsize=(4.4 * len(defenses), 4.2), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(defenses), squeeze=False, sharey=True)[0]
    columns = [*(f"bit {bit}" for bit in range(MANTISSA_BITS)), "sign"]
    for panel, defense in zip(panels, defenses, strict=True):
        rows = frame[frame["defence"] == defense]
        mean = rows.groupby("stage", sort=False)[[*columns, "unchanged"]].mean()
        image = panel.imshow(mean[columns], vmin=0, vmax=0.5, aspect="auto", cmap="viridis")
        panel.set_xticks([*range(0, MANTISSA_BITS, 4), len(columns) - 1])
        panel.set_xticklabels([*range(0, MANTISSA_BITS, 4), "sign"])
        panel.set_yticks(range(len(mean)))
        panel.set_yticklabels(mean.index)
        panel.set_xlabel("bit of the mantissa")
        panel.set_title(defense, fontsize=9)
        for row, unchanged in enumerate(mean["unchanged"]):
            colour = "white" if unchanged > 0.5 else "black"
            panel.text(0, row, f"{unchanged:.0%} same", color=colour, fontsize=6, va="center")
    figure.colorbar(image, ax=list(panels), label="share of weights in which the bit changed")
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_atomically(path, buffer.getvalue())


def _leak(result: Result) -> dict[str, float]:
    table = result.table[result.table["stage"] == "release"]
    keys = zip(table["metric"], table["extraction"], strict=True)
    values = dict(zip(keys, table["value"].astype(float), strict=True))
    return {f"{metric} {extraction}": values[metric, extraction] for metric, extraction in LEAKS}


def _weights(folder: Path) -> list[dict[str, Any]]:
    """Compare the two model files of a run, stage by stage; kernels and matrices only."""
    before = read_artifact(folder / "artifacts" / "upload.safetensors")
    after = read_artifact(folder / "artifacts" / "release.safetensors")
    stages: dict[str, list[str]] = {}
    for layer in layers(build(before.spec), before.spec.input_shape, "tensor"):
        name = layer.parameters[0]
        if before.state[name].ndim >= 2:
            stages.setdefault(name.split(".")[0], []).append(name)
    rows = []
    for stage, names in stages.items():
        change = weight_change([before.state[n] for n in names], [after.state[n] for n in names])
        bits = {f"bit {bit}": error for bit, error in enumerate(change.bit_errors)}
        rows.append(
            {"stage": stage, "elements": change.elements, "unchanged": change.unchanged}
            | bits
            | {"sign": change.sign_errors}
        )
    return rows


def main(
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/weight-changes"),
    seeds: Annotated[int, typer.Option(help="How many seeds, from 0.", min=1)] = 3,
    data_root: Annotated[Path | None, typer.Option(help="Folder of data files.")] = None,
    runs: Annotated[
        Path | None,
        typer.Option(help="Part resnet18 of the study defenses: compare its cells, run nothing."),
    ] = None,
) -> None:
    """Memorise skin images in a ResNet18, fine-tune it in three ways, and look at what is left."""
    console = Console()
    if runs is not None:
        _show(console, *of_sweep(runs, out), out)
        return
    base = {
        "mode": "centralized",
        "dataset": "dermamnist",
        "model": "resnet18",
        "training": {"epochs": 6.5},
        "attack": {"name": "transpose", "images": 64},
        "measure": {"scratch_epochs": 0},
    }
    leaks, weights = study(
        base, FINE_TUNINGS | RANDOMISED, out, tuple(range(seeds)), data_root, make_progress(console)
    )
    _show(console, leaks, weights, out)


def _show(console: Console, leaks: Any, weights: Any, out: Path) -> None:
    print_table(console, leaks, "What can be extracted")
    shown = ["defence", "seed", "stage", "unchanged", "bit 16", "bit 18", "sign"]
    print_table(console, weights[shown], "What became of the weights")
    console.print(f"Tables and figure in {out}")


TABLES = {
    "leaks_after_fine_tuning": PublishedTable(
        ("leaks_after_fine_tuning.csv",), {"defence": "defence"}, RELEASED
    ),
}

STUDIES.register("weight_changes", "what fine-tuning leaves behind: three gaps, a table each")(
    Study(main, TABLES)
)
