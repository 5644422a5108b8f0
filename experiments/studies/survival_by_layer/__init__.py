"""Study: where in a model, and when in a run, does a payload survive?

Of any finished run of an attack with a carrier: how wrong its bits or values are by layer, and by
bit of a weight where the carrier uses chosen bits; and what arrived at each stage of each round.

Run ``fl-sim study survival_by_layer --help``.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from experiments.studies.base import STUDIES, Study
from fl_sim.artifact import read_artifact, read_key
from fl_sim.attacks.dec.route import ATTACK, Route
from fl_sim.carriers.dead import forward_order
from fl_sim.errors import FlSimError
from fl_sim.extraction import extract
from fl_sim.files import write_atomically
from fl_sim.results import STAGES, read_table

if TYPE_CHECKING:
    import pandas as pd

BY_PLACE = "carrier_error["
LINES = {
    "bit_error_rate": "wrong bits, raw",
    "bit_error_rate_corrected": "wrong bits, corrected",
    "value_error": "relative error of values",
    "images_intact": "images intact",
    "bytes_delivered": "bytes delivered",
}


def survival_by_stage(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row a round and stage of a run's long table, with what :data:`LINES` names.

    Images and bytes are summed over the attackers where each one's are known; the rest is a mean.
    """
    stage = table["stage"].str.partition(":")
    rows = table.assign(stage=stage[0], hospital=stage[2])
    rows = rows[rows["metric"].isin(LINES) & rows["extraction"].isin(["-", "raw"])]
    several = rows[rows["hospital"] != ""]
    rows = several if len(several) else rows
    keys = ["round", "stage"]
    mean = rows.pivot_table(index=keys, columns="metric", values="value", aggfunc="mean")
    total = rows.pivot_table(index=keys, columns="metric", values="value", aggfunc="sum")
    for metric in {"images_intact", "bytes_delivered"} & set(mean.columns):
        mean[metric] = total[metric]
    wide = mean.reset_index()
    order = wide["stage"].map({name: place for place, name in enumerate(STAGES)})
    wide = wide.assign(order=order).sort_values(["round", "order"]).reset_index(drop=True)
    return wide[[*keys, *(metric for metric in LINES if metric in wide)]]


def survival_by_layer(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return the carrier's error of a run's last measured round, a row a tensor, a column a stage.

    Also a row ``"bit <number>"`` for each bit, for carriers in chosen bits. The upload is left out:
    what is wrong there was never written.
    """
    rows = table[table["metric"].str.startswith(BY_PLACE) & table["stage"].isin(STAGES)]
    rows = rows[rows["round"] == rows["round"].max()]
    rows = rows.assign(place=rows["metric"].str[len(BY_PLACE) : -1])
    places = list(dict.fromkeys(rows["place"]))
    wide = rows.pivot_table(index="place", columns="stage", values="value").reindex(places)
    return wide[[stage for stage in STAGES[1:] if stage in wide]]


def survival_by_plane(run: Path) -> "pd.DataFrame | None":
    """Return the share of wrong bits of the first attacker's payload at release, tensors by bits.

    Computed from the files that were sent and released last.

    Returns:
        ``None`` where the carrier uses no chosen bits, or what was sent cannot be read by itself
        since it was written for an average.
    """
    import pandas as pd

    artifacts, keys = run / "artifacts", sorted((run / "keys").glob("hospital-*.safetensors"))
    if not keys:
        return None
    sent = artifacts / f"sent-{keys[0].name}"
    kept = sorted(artifacts.glob("*release.safetensors"))
    key = read_key(keys[0])
    if key.attack != ATTACK or not kept or not sent.exists():
        return None
    route, extraction = Route.of(key), extract(sent, keys[0])
    if extraction.reading is None or not bool(extraction.images.isfinite().any()):
        return None
    carried = extraction.reading.content
    if route.length is not None:  # else all that the carrier holds is read
        carried = route.seal(np.zeros(route.length, np.uint8))
    before, after = read_artifact(sent), read_artifact(kept[-1])
    planes = route.open_carrier().plane_errors(before.state, after.state, len(carried))
    if not planes:
        return None
    frame = pd.DataFrame.from_dict(planes, orient="index")
    known = [name for name in forward_order(before.spec) if name in frame.index]
    return frame.reindex(known + [name for name in frame.index if name not in known])


def draw_survival(run: Path, path: Path) -> Path:
    """Draw where and when a run's payload survived; write a PNG.

    Left a heat map, layers by bits of a weight, or by stages for other carriers; right, lines over
    rounds and stages.

    Args:
        run: folder of a finished run of an attack with a carrier.
        path: of the picture.

    Returns:
        ``path``.

    Raises:
        FlSimError: if the folder holds no such run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not (run / "results.csv").is_file():
        raise FlSimError(f"{run} is not the folder of a run: it has no results.csv.")
    table = read_table(run / "results.csv")
    lines = survival_by_stage(table)
    metrics = [metric for metric in LINES if metric in lines]
    if not metrics:
        raise FlSimError(f"The attack of the run in {run} sends no payload that could be followed.")
    planes, layers = survival_by_plane(run), survival_by_layer(table)
    figure = Figure(figsize=(11, max(4.0, 0.16 * len(layers) + 1.2)), dpi=110)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.25, 1))[0]
    if planes is not None:
        names = [f"{bit}" for bit in planes.columns]
        _heat(left, planes.to_numpy(), list(planes.index), names, "bit of a weight, at release")
    elif len(layers):
        _heat(left, layers.to_numpy(), list(layers.index), list(layers.columns), "stage")
    points = [f"{n} {s[:3]}" for n, s in zip(lines["round"], lines["stage"], strict=True)]
    panels = right.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0]
    for panel, metric in zip(panels, metrics, strict=True):
        panel.plot(points, lines[metric], marker="o", markersize=3, linewidth=1)
        panel.set_ylabel(LINES[metric], fontsize=7)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=7)
    panels[-1].tick_params(axis="x", rotation=90)
    panels[-1].set_xlabel("round and stage", fontsize=8)
    left.subplots_adjust(left=0.42, right=0.98, top=0.92, bottom=0.12)
    right.subplots_adjust(left=0.17, right=0.97, top=0.92, bottom=0.2)
    figure.suptitle(f"What survived of the payload: {table['scenario'].iloc[0]}", fontsize=9)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return write_atomically(path, buffer.getvalue())


def _heat(
    figure: Any, values: NDArray[np.float64], rows: list[str], columns: list[str], what: str
) -> None:
    panel = figure.subplots()
    most = max(0.5, float(np.nanmax(values)) if values.size else 0.5)
    image = panel.imshow(values, aspect="auto", vmin=0, vmax=most, cmap="magma_r")
    panel.set_yticks(range(len(rows)), rows, fontsize=6)
    panel.set_xticks(range(len(columns)), columns, fontsize=7)
    panel.set_xlabel(what, fontsize=8)
    bar = figure.colorbar(image, ax=panel)
    bar.set_label("carrier's error: 0.5 is chance", fontsize=7)
    bar.ax.tick_params(labelsize=7)


def main(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path | None, typer.Option(help="The picture.")] = None,
) -> None:
    """Draw what survived of a run's payload, by layer, bit, stage and round."""
    print(draw_survival(run, out or run / "images" / "survival.png"))


STUDIES.register("survival_by_layer", "where in a model, and when in a run, a payload survives")(
    Study(main)
)
