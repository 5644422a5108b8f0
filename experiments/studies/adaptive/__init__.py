"""Study: the attacker who knows the defence and the aggregation.

Naive payloads and those placed where nothing moves, in a data lake that is cleaned before its model
leaves and in federations that are cleaned before every broadcast; then the best of them against
robust aggregation, with accomplices, and in chosen rounds. The table has what arrived beside what
the model is worth; the figure shows the images.

Run ``fl-sim study adaptive --help``.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.run.folder import load_pictures
from experiments.studies.base import (
    STUDIES,
    Again,
    Changes,
    DataRoot,
    Full,
    Gpus,
    GridStudy,
    How,
    Only,
    Out,
    Study,
    Values,
    Workers,
)
from experiments.studies.published_tables import FOUND, Column, PublishedTable
from experiments.tables.figures import draw_bars
from experiments.tables.pictures import draw_blocks
from experiments.tables.summary import CELL, wide
from fl_sim.errors import FlSimError

if TYPE_CHECKING:
    import pandas as pd

LAKE = "data lake"
BEST = "fine lattices in dead weights"
BETWEEN = " / "
"""In a cell's label, between where, who and how."""
METRICS = (
    "images_intact",
    "images_lost",
    "bytes_delivered",
    "bit_error_rate",
    "bit_error_rate_corrected",
    "ssim raw",
    "ssim strongest",
    "identification_correlation strongest",
    "auc",
)
SUMMED = ("images_intact", "images_lost", "bytes_delivered")
PICTURED = ("Transpose", "late signs, LDPC", "lattices in dead weights")


@dataclass(frozen=True)
class Cell:
    """One attacker in one place.

    Args:
        attacker: his name.
        attack: the table ``[attack]``.
        federation: the table ``[federation]``; empty for a data lake.
        variant: what is special about this run; empty for the comparison of attackers.
        knows_defense: whether he rehearses it.
    """

    attacker: str
    attack: dict[str, Any]
    federation: dict[str, Any] = field(default_factory=dict)
    variant: str = ""
    knows_defense: bool = False

    @property
    def mode(self) -> str:
        """Where: ``"data lake"``, or the aggregation and the number of hospitals."""
        if not self.federation:
            return LAKE
        strategy = self.federation.get("strategy", "fedavg")
        name = strategy if isinstance(strategy, str) else strategy["name"]
        return f"{name}, {self.federation['hospitals']} hospitals"

    @property
    def label(self) -> str:
        """What the sweep calls it; :func:`tabulate` makes three columns of it."""
        return BETWEEN.join((self.mode, self.attacker, self.variant))

    def as_variant(self) -> Values:
        """Return it as a value of the axis ``variant``."""
        carried = self.attack["name"] == "dec" and self.attack.get("contents") != "latents"
        attacker: Values = {"knows_defense": self.knows_defense}
        if carried:  # what arrives whole needs no restoration, and nothing else can be restored
            attacker["restorations"] = ()
        values: Values = {"label": self.label, "attack": self.attack, "attacker": attacker}
        if not self.federation:
            return {**values, "mode": "centralized"}
        return {**values, "mode": "federated", "federation": self.federation}


def attackers(images: int, hospitals: int = 1) -> dict[str, dict[str, Any]]:
    """Return the attackers by name, from the naive to the adaptive.

    Args:
        images: how many each steals.
        hospitals: of the federation; payloads are then written for its average.
    """
    codes = {"name": "dec", "images": images, "codec": "png", "amplify": hospitals > 1}
    coding = {"name": "ldpc", "rate": 0.5}
    few = {**codes, "images": min(images, 6), "coding": coding}
    memory_steps = 1 if hospitals == 1 else 32  # a hospital takes few steps on the task in a round
    return {
        "low bits": {**codes, "carrier": "lsb"},
        "low bits of dead weights": {**codes, "carrier": {"name": "lsb", "elements": "dead"}},
        "signs of dead weights": {
            **codes,
            "carrier": {"name": "sign", "elements": "dead"},
        },
        "lattices in dead weights": {
            **codes,
            "carrier": {"name": "qim", "elements": "dead"},
        },
        BEST: {**codes, "carrier": {"name": "qim", "elements": "dead", "step": 0.02}},
        "late signs, LDPC": {
            **codes,
            "coding": coding,
            "carrier": {"name": "sign", "order": "late"},
        },
        "lattices, LDPC": {**codes, "coding": coding, "carrier": {"name": "qim", "order": "late"}},
        "spread spectrum, LDPC": {
            **few,
            "carrier": {"name": "spread_spectrum", "order": "late"},
        },
        "correlated values": {"name": "correlated", "images": images},
        "Transpose": {"name": "transpose", "images": images, "memory_steps": memory_steps},
    }


def comparison(images: int, hospitals: int = 1, rounds: int = 2) -> list[Cell]:
    """Return every attacker in a data lake, or in plain FedAvg with one malicious hospital."""
    federation = {} if hospitals == 1 else {"hospitals": hospitals, "rounds": rounds}
    chosen = attackers(images, hospitals)
    if hospitals > 1:  # these two say nothing here that the others do not
        del chosen["signs of dead weights"], chosen["lattices, LDPC"]
    cells = [Cell(name, attack, federation) for name, attack in chosen.items()]
    rehearsed = Cell(
        "Transpose", chosen["Transpose"], federation, "defence rehearsed", knows_defense=True
    )
    return [*cells, rehearsed]


def counted(
    strategy: str, hospitals: int, colluders: int, settings: dict[str, Any], last_round: int = 1
) -> bool | float:
    """Return what an aggregation makes of a small difference that colluders send alike.

    In dead weights, which the other hospitals leave as they were broadcast, the aggregate moves by
    this times the difference; so an attacker who knows the rule divides by it (``amplify``).
    Hospitals have equally many images.

    Args:
        strategy: registered name.
        hospitals: in a round.
        colluders: how many of them.
        settings: of the strategy.
        last_round: the round in which an attacker of FedAdam, whose steps have a memory, attacks.

    Returns:
        ``True`` for a weighted mean, or where nothing gets through whatever is sent.
    """
    if strategy == "fedmedian" and 2 * colluders >= hospitals:
        return 0.5 if 2 * colluders == hospitals else 1.0
    if strategy == "fedtrimmedavg":
        cut = int(settings.get("beta", 0.2) * hospitals)
        through = min(colluders - cut, hospitals - 2 * cut)
        return through / (hospitals - 2 * cut) if through > 0 else True
    if strategy == "krum":
        return 1.0
    if strategy == "multikrum":
        return min(1.0, colluders / settings["num_nodes_to_select"])
    if strategy == "fedadam":
        # Far below tau the second moment does not count; see Flower's FedAdam for the rate.
        rate = 0.01 * (1 - 0.99 ** (last_round + 1)) ** 0.5 / (1 - 0.9 ** (last_round + 1))
        return rate * (1 - 0.9) / 1e-3 * colluders / hospitals
    return True


def against_aggregation(images: int, hospitals: int = 16, rounds: int = 2) -> list[Cell]:
    """Return the finest payload in dead weights against each aggregation, alone and in collusion.

    A quarter of the hospitals collude, or half against the median. Where an aggregation chooses the
    most central updates, variants damp the attacker's own (``boost`` below 1), or keep it to the
    norm of an honest one.
    """
    quarter, half = hospitals // 4, hospitals // 2
    one = {"num_malicious_nodes": 1}
    few = {"num_malicious_nodes": quarter}
    half_chosen = {"num_nodes_to_select": half}
    tries: list[tuple[str, int, dict[str, Any], dict[str, Any], str]] = [
        ("fedprox", 1, {}, {}, ""),
        ("fedadam", 1, {}, {}, ""),
        ("fedadam", 1, {}, {"malicious_rounds": "last"}, "last round"),
        ("fedmedian", 1, {}, {}, ""),
        ("fedmedian", quarter, {}, {}, ""),
        ("fedmedian", half, {}, {}, ""),
        ("fedtrimmedavg", 1, {}, {}, ""),
        ("fedtrimmedavg", quarter, {}, {}, ""),
        ("krum", 1, one, {}, ""),
        ("krum", 1, one, {"boost": 0.2}, "damped"),
        ("krum", 1, one, {"update_norm": "honest"}, "honest norm"),
        ("krum", quarter, few, {}, ""),
        ("multikrum", 1, one | half_chosen, {}, ""),
        ("multikrum", 1, one | half_chosen, {"boost": 0.2}, "damped"),
        ("normclipping", 1, {}, {}, ""),
        ("normclipping", 1, {}, {"update_norm": "honest"}, "honest norm"),
    ]
    cells = []
    for strategy, colluders, settings, further, note in tries:
        attack = dict(attackers(images, hospitals)[BEST])
        attack["amplify"] = counted(strategy, hospitals, colluders, settings, rounds)
        federation = {
            "hospitals": hospitals,
            "rounds": rounds,
            "strategy": {"name": strategy, **settings},
            "malicious": tuple(range(colluders)),
            "collusion": "repeat" if colluders > 1 else "none",
            **further,
        }
        together = f"{colluders} repeat" if colluders > 1 else ""
        variant = ", ".join(part for part in (together, note) if part)
        cells.append(Cell(BEST, attack, federation, variant or "alone"))
    coarse = "lattices in dead weights"
    plain = {"hospitals": hospitals, "rounds": rounds, "strategy": "normclipping"}
    cells.append(Cell(coarse, attackers(images, hospitals)[coarse], plain, "alone"))
    return cells


def with_accomplices(images: int, hospitals: int = 16, rounds: int = 2) -> list[Cell]:
    """Return plain FedAvg with a quarter of the hospitals malicious, in each kind of collusion."""
    several = {"hospitals": hospitals, "rounds": rounds, "malicious": tuple(range(hospitals // 4))}
    return [
        Cell(
            name,
            attackers(images, hospitals)[name],
            {**several, "collusion": kind},
            f"{hospitals // 4} {kind}",
        )
        for name in (BEST, "late signs, LDPC", "spread spectrum, LDPC")
        for kind in ("none", "repeat", "split")
    ]


def in_chosen_rounds(images: int, hospitals: int = 16, rounds: int = 3) -> list[Cell]:
    """Return attacks in the last round, every second round, and the first of five only."""
    schedules: dict[str, dict[str, Any]] = {
        "last round": {"rounds": rounds, "malicious_rounds": "last"},
        "alternate rounds": {"rounds": rounds, "malicious_rounds": "alternate"},
        "round 1, then 4 honest": {"rounds": 5, "malicious_rounds": (1,)},
    }
    return [
        Cell(name, attackers(images, hospitals)[name], {"hospitals": hospitals, **table}, what)
        for name in (BEST, "late signs, LDPC")
        for what, table in schedules.items()
    ]


def grid(cells: Sequence[Cell], seeds: Sequence[int] = (0,), **base: Any) -> Values:
    """Return the cells as a grid; ``base`` has the keys that they share."""
    variants = {cell.label: cell.as_variant() for cell in cells}
    scenario = {
        "dataset": "dermamnist",
        "model": "resnet18",
        "defense": "lwlrd",
        "measure": {"scratch_epochs": 0, "keep": "release"},
        **base,
    }
    return {
        "seeds": list(seeds),
        "scenario": scenario,
        "grid": {"variant": [*variants.values()]},
    }


def tabulate(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row a place, attacker, variant, seed and stage; of a federation its last round.

    Images and bytes are summed over the attackers, all else is their mean. ``bytes_a_round`` is the
    mean over rounds, ``bytes_of_run`` counts what came in several rounds once.
    """
    import pandas as pd

    own = {str(name): rows for name, rows in table.groupby(CELL, sort=False)}
    lines = []
    for row in wide(table).to_dict("records"):
        names = str(row["variant"]).split(BETWEEN)
        line = dict(zip(("mode", "attacker", "variant"), names, strict=True))
        rows = own[row[CELL]]
        counts: dict[str, Any] = {
            "rounds": rows["round"].max(),
            "seed": row["seed"],
            "stage": row["stage"],
        }
        known = {metric: row[metric] for metric in METRICS if metric in row}
        lines.append(line | counts | known | _summed(rows, str(row["stage"])))
    return pd.DataFrame(lines).dropna(axis=1, how="all")


def _summed(rows: "pd.DataFrame", stage: str) -> dict[str, float]:
    """Return what counts each attacker's images and bytes, of one cell at one stage."""
    counted = rows[rows["metric"].isin(SUMMED)]
    each = counted[counted["stage"].str.startswith(f"{stage}:")]
    each = each if len(each) else counted[counted["stage"] == stage]
    last = each[each["round"] == each["round"].max()]
    found = {str(name): float(own["value"].sum()) for name, own in last.groupby("metric")}
    arrived = each[each["metric"] == "bytes_delivered"]
    if len(arrived):
        found["bytes_a_round"] = float(arrived.groupby("round")["value"].sum().mean())
        found["bytes_of_run"] = float(arrived.groupby("stage")["value"].max().sum())
    return found


def draw(path: Path, table: "pd.DataFrame", title: str) -> Path:
    """Draw the share of stolen images that arrived at release: a bar an attacker and variant."""
    released = table[table["stage"] == "release"]
    names = (released["attacker"] + ", " + released["variant"]).str.removesuffix(", ")
    frame = released.assign(attack=names)
    shown = [m for m in ("images_intact", "ssim strongest", "auc") if m in frame]
    return draw_bars(path, frame, "attack", shown, "mode", title)


def draw_overview(path: Path, runs: dict[tuple[str, str], Path], columns: int = 5) -> Path:
    """Draw true images and those recovered before the defence, after it, and then restored.

    A block of rows an attacker, the modes side by side.

    Args:
        path: of the PNG.
        runs: folders of finished runs by attacker and mode.
        columns: images in a row of a mode, at most.

    Raises:
        FlSimError: if a run recovered nothing to show.
    """
    blocks: dict[str, dict[str, dict[str, Any]]] = {}
    for (attacker, mode), folder in runs.items():
        scenario = folder / "scenario.json"
        if not scenario.is_file():
            raise FlSimError(f"{folder} is not the folder of a run; give one that has finished.")
        blocks.setdefault(attacker, {})[mode] = _shown(folder)
    return draw_blocks(path, blocks, columns)


def pictured(out: Path) -> dict[tuple[str, str], Path]:
    """Return the finished runs for the picture: three attackers, in a data lake and in FedAvg."""
    runs = {}
    for part, hospitals in (("lake", 1), ("federated", 4)):
        file = out / part / "grid.json"
        known = json.loads(file.read_text(encoding="utf-8"))["cells"] if file.exists() else []
        folders = {cell["labels"]["variant"]: cell["name"] for cell in reversed(known)}
        for name in PICTURED:
            cell = Cell(name, {}, {} if hospitals == 1 else {"hospitals": hospitals})
            folder = out / part / "cells" / folders.get(cell.label, "")
            if (folder / "finished").exists():
                runs[name, cell.mode] = folder
    return runs


def _shown(folder: Path) -> dict[str, Any]:
    """Return a run's images by row name; the strongest restoration where there is one."""
    pictures = load_pictures(folder)
    if "original" not in pictures:
        raise FlSimError(f"The run in {folder} recovered no images; give an attacked one.")
    restored = {
        name: float(pictures[f"{name}/ssim"].mean())
        for name in pictures
        if name.startswith("release/") and not name.endswith(("/ssim", "/raw", "/strongest"))
    }
    rows = {
        "true": pictures["original"],
        # What is written for an average cannot be read in the upload itself.
        "before defence": pictures.get("aggregate/raw", pictures["upload/raw"]),
        "released, raw": pictures["release/raw"],
    }
    if restored:
        rows["restored"] = pictures[max(restored, key=lambda name: restored[name])]
    return rows


STUDY = GridStudy("adaptive", "Attackers who know the defence and the aggregation", tabulate, draw)


def grids(full: bool = False, lake: bool = True, federated: bool = True) -> dict[str, Values]:
    """Return the grids by the names of their folders: the data lake's, and the federations'."""
    seeds = range(5) if full else (0,)
    found = {}
    if lake:
        training = {"epochs": 8.0 if full else 3.0}
        found["lake"] = grid(comparison(64), seeds, training=training)
    if federated:
        few = 64 if full else 32
        cells = [
            *against_aggregation(few),
            *with_accomplices(few),
            *in_chosen_rounds(few),
            *comparison(few, 16),
            *comparison(few, 4),
        ]
        small: Values = {"data": {"train_images": 1024, "images": 128, "test_images": 300}}
        base = {"training": {"epochs": 1.0}, **({} if full else small)}
        found["federated"] = grid(cells, seeds, **base)
    return found


def main(
    out: Out = Path("runs/adaptive"),
    full: Full = False,
    federated: Annotated[bool, typer.Option(help="Federations of 4 and 16, small.")] = True,
    lake: Annotated[bool, typer.Option(help="The data lake, whole.")] = True,
    data_root: DataRoot = None,
    workers: Workers = None,
    gpus_per_cell: Gpus = 0.0,
    changes: Changes = None,
    only: Only = None,
    again: Again = False,
) -> None:
    """Steal skin images from a ResNet18 that LWLRD cleans before it leaves."""
    how = How(
        data_root, workers, gpus_per_cell, changes or (), full=full, only=only or (), again=again
    )
    STUDY.show(grids(full, lake, federated), out, how)
    runs = pictured(out)
    if runs:
        draw_overview(out / "images.png", runs)


_AGGREGATIONS = {
    "": "one",
    "alone": "one",
    "last round": "one, in the last round",
    "alternate rounds": "one, in every second round of three",
    "round 1, then 4 honest": "one, in the first round of five only",
    "honest norm": "one, at an honest norm",
    "damped": "one, damped",
    "4 none": "four, each for himself",
    "4 repeat": "four, repeating",
    "4 split": "four, sharing out the places",
    "8 repeat": "eight, repeating",
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "fedadam": "FedAdam",
    "fedmedian": "median",
    "fedtrimmedavg": "trimmed mean",
    "krum": "Krum",
    "multikrum": "Multi-Krum",
    "normclipping": "norm clipping",
}

_DELIVERED = (
    Column("intact at release", "images_intact"),
    Column("bytes a round", "bytes_a_round", "count"),
    Column("bytes in the run", "bytes_of_run", "count"),
    Column("bits wrong", "bit_error_rate"),
    Column("AUC", "auc"),
)

TABLES = {
    "adaptive": PublishedTable(
        ("adaptive_data_lake.csv", "adaptive_federated.csv"),
        {"attacker": "attacker", "mode": "where"},
        (
            Column("intact at upload", "images_intact", stage="upload"),
            Column("intact at release", "images_intact", stage="release"),
            Column("bits wrong at release", "bit_error_rate", stage="release"),
            Column("AUC at upload", "auc", stage="upload"),
            Column("AUC at release", "auc", stage="release"),
        ),
        names={"late signs, LDPC": "signs of late weights, LDPC"},
    ),
    "aggregations": PublishedTable(
        ("aggregations.csv",),
        {"mode": "aggregation", "variant": "attackers"},
        _DELIVERED,
        {"stage": "release", "attacker": "fine lattices in dead weights"},
        _AGGREGATIONS,
    ),
    "other_attackers": PublishedTable(
        ("aggregations.csv",),
        {"attacker": "payload", "mode": "aggregation", "variant": "attackers"},
        (*_DELIVERED[:3], Column("found by correlation", FOUND), *_DELIVERED[3:]),
        {"stage": "release"},
        {"late signs, LDPC": "signs of late weights, LDPC", **_AGGREGATIONS},
        {"attacker": ("fine lattices in dead weights",)},
    ),
}

STUDIES.register("adaptive", "the attacker who knows the defence and the aggregation")(
    Study(main, TABLES, STUDY, grids)
)
