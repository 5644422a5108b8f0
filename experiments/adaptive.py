"""Study: the attacker who knows the defence and the aggregation.

Naive payloads and those placed where nothing moves, in a data lake that is cleaned before its model
leaves and in federations that are cleaned before every broadcast; then the best of them against
robust aggregation, with accomplices, and in chosen rounds. The table has what arrived beside what
the model is worth; the figure shows the images.

Run ``python -m experiments.adaptive --help``.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from experiments.console import make_progress, print_table
from experiments.figures import write_table
from experiments.pictures import draw_blocks
from experiments.result import Result
from experiments.run import run
from experiments.survival import draw_survival
from fl_sim.errors import FlSimError
from fl_sim.progress import SILENT, Progress
from fl_sim.results import STAGES

LAKE = "data lake"
BEST = "fine lattices in dead weights"
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
    """One run of the study.

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
    def folder(self) -> str:
        """Name of the run's folder, without the seed."""
        text = f"{self.mode} {self.attacker} {self.variant}".strip().lower()
        return "-".join("".join(c if c.isalnum() else " " for c in text).split())

    def scenario(self, base: dict[str, Any], seed: int) -> dict[str, Any]:
        """Return the scenario, from one without mode, attack and federation."""
        carried = self.attack["name"] == "dec" and self.attack.get("contents") != "latents"
        attacker: dict[str, Any] = {"knows_defense": self.knows_defense}
        if carried:  # what arrives whole needs no restoration, and nothing else can be restored
            attacker["restorations"] = ()
        scenario = {**base, "attack": self.attack, "attacker": attacker, "seed": seed}
        if not self.federation:
            return {**scenario, "mode": "centralized"}
        federation = {"engine": "inprocess", **self.federation}
        return {**scenario, "mode": "federated", "federation": federation}


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
            **codes, "carrier": {"name": "sign", "elements": "dead"},
        },
        "lattices in dead weights": {
            **codes, "carrier": {"name": "qim", "elements": "dead"},
        },
        BEST: {**codes, "carrier": {"name": "qim", "elements": "dead", "step": 0.02}},
        "late signs, LDPC": {
            **codes, "coding": coding, "carrier": {"name": "sign", "order": "late"},
        },
        "lattices, LDPC": {**codes, "coding": coding, "carrier": {"name": "qim", "order": "late"}},
        "spread spectrum, LDPC": {
            **few, "carrier": {"name": "spread_spectrum", "order": "late"},
        },
        "correlated values": {"name": "correlated", "images": images},
        "Transpose": {"name": "transpose", "images": images, "memory_steps": memory_steps},
    }  # fmt: skip


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
    several = {
        "hospitals": hospitals, "rounds": rounds, "malicious": tuple(range(hospitals // 4))
    }  # fmt: skip
    return [
        Cell(
            name, attackers(images, hospitals)[name], {**several, "collusion": kind},
            f"{hospitals // 4} {kind}",
        )
        for name in (BEST, "late signs, LDPC", "spread spectrum, LDPC")
        for kind in ("none", "repeat", "split")
    ]  # fmt: skip


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


def study(
    base: dict[str, Any],
    cells: Iterable[Cell],
    out: Path,
    seeds: tuple[int, ...] = (0,),
    data_root: Path | None = None,
    progress: Progress = SILENT,
) -> Any:
    """Run every cell and seed; an interrupted study continues.

    Args:
        base: a scenario without mode, attack and federation.
        cells: what is run.
        out: folder of the runs, the table and the figures.
        seeds: of everything.
        data_root: folder of data files.
        progress: where to report.

    Returns:
        The table, a row a cell, seed and stage, of a federation's last round. Images and bytes are
        summed over the attackers, all else is their mean. ``bytes_a_round`` is the mean over
        rounds, ``bytes_of_run`` counts what came in several rounds once.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for cell in cells:
        for seed in seeds:
            folder = out / "runs" / f"{cell.folder}-seed{seed}"
            result = run(cell.scenario(base, seed), folder, data_root, progress)
            rows += [_row(cell, seed, result, stage) for stage in STAGES]
            picture = folder / "images" / "survival.png"
            if cell.attack["name"] == "dec" and not picture.exists():
                draw_survival(folder, picture)
            _tidy(folder)
            table = pd.DataFrame(rows).dropna(subset=["auc"]).dropna(axis=1, how="all")
            write_table(out / "adaptive.csv", table)
    return table.reset_index(drop=True)


def _tidy(folder: Path) -> None:
    """Remove what a finished run needs no more; the models of many runs would fill a disk."""
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    for upload in (folder / "artifacts").glob("upload*.safetensors"):
        upload.unlink()


def _row(cell: Cell, seed: int, result: Result, stage: str) -> dict[str, Any]:
    federation = result.scenario.federation
    row: dict[str, Any] = {
        "mode": cell.mode,
        "attacker": cell.attacker,
        "variant": cell.variant,
        "malicious": len(result.scenario.attackers),
        "rounds": federation.rounds if federation else 0,
        "seed": seed,
        "stage": stage,
    }
    summary = result.summary()
    of_stage = summary[summary["stage"] == stage]
    if of_stage.empty:  # a data lake has no aggregate
        return row
    last = of_stage[of_stage["round"] == of_stage["round"].max()].iloc[0]
    row |= {metric: float(last[metric]) for metric in METRICS if metric in last}
    each = summary[summary["stage"].str.startswith(f"{stage}:")]
    if "images_intact" not in of_stage:
        return row
    if "images_intact" not in each or each["images_intact"].isna().all():
        each = of_stage
    now = each[each["round"] == last["round"]]
    row |= {metric: float(now[metric].sum()) for metric in SUMMED if metric in now}
    if "bytes_delivered" in each:
        row["bytes_a_round"] = float(each.groupby("round")["bytes_delivered"].sum().mean())
        row["bytes_of_run"] = float(each.groupby("stage")["bytes_delivered"].max().sum())
    return row


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


def _pictured(out: Path) -> dict[tuple[str, str], Path]:
    """Return the finished runs for the figure: three attackers, in a data lake and in FedAvg."""
    runs = {}
    for name in PICTURED:
        for part, hospitals, mode in (("lake", 1, LAKE), ("federated", 4, "FedAvg, 4 hospitals")):
            federation = {} if hospitals == 1 else {"hospitals": hospitals}
            folder = out / part / "runs" / f"{Cell(name, {}, federation).folder}-seed0"
            if (folder / "finished").exists():
                runs[name, mode] = folder
    return runs


def _shown(folder: Path) -> dict[str, Any]:
    """Return a run's images by row name; the strongest restoration where there is one."""
    from experiments.study import load_pictures

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


def main(
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("runs/adaptive"),
    full: Annotated[bool, typer.Option(help="All images, five seeds: for many cores.")] = False,
    federated: Annotated[bool, typer.Option(help="Federations of 4 and 16, small.")] = True,
    lake: Annotated[bool, typer.Option(help="The data lake, whole.")] = True,
    data_root: Annotated[Path | None, typer.Option(help="Folder of data files.")] = None,
) -> None:
    """Steal skin images from a ResNet18 that LWLRD cleans before it leaves."""
    console = Console()
    base = {
        "dataset": "dermamnist",
        "model": "resnet18",
        "defense": "lwlrd",
        "measure": {"scratch_epochs": 0},
    }
    progress, seeds = make_progress(console), tuple(range(5)) if full else (0,)
    if lake:
        whole = {**base, "training": {"epochs": 8.0 if full else 3.0}}
        frame = study(whole, comparison(64), out / "lake", seeds, data_root, progress)
        print_table(console, frame, "Attackers who know the defence: data lake")
    if federated:
        small = {**base, "training": {"epochs": 1.0}, "threads": 1}
        if not full:
            small["data"] = {"train_images": 1024, "images": 128, "test_images": 300}
        few = 64 if full else 32
        cells = [
            *against_aggregation(few), *with_accomplices(few), *in_chosen_rounds(few),
            *comparison(few, 16), *comparison(few, 4),
        ]  # fmt: skip
        frame = study(small, cells, out / "federated", seeds, data_root, progress)
        print_table(console, frame, "Attackers who know the defence: federations")
    runs = _pictured(out)
    if runs:
        draw_overview(out / "adaptive.png", runs)
    console.print(f"Tables and figures: {out}")


if __name__ == "__main__":
    typer.run(main)
