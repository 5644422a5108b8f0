"""Study: the tables of Thellier et al. (arXiv 2509.00027), and our own defence in them.

Transpose and codes in the low bits, against no defence, the paper's baselines, LWLRD, and
consistent distillation. What is published stands beside what is measured here; it is LWLRD under
Transpose and nothing else. A dataset whose file is not the official one says so.

Run ``fl-sim study paper_tables --help``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.studies.base import (
    DISTILLATION,
    HIGH_RATE,
    LWLRD,
    NONE,
    SCRATCH,
    STEPS_OF_PAPER,
    STUDIES,
    SUPER,
    VANILLA,
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
    dec,
    transpose,
)
from experiments.studies.published_tables import (
    FROM_SCRATCH,
    OF_64,
    RELEASED,
    Column,
    PublishedTable,
)
from experiments.tables.figures import draw_bars
from experiments.tables.summary import summarise
from fl_sim.data import data_root as find_data_root
from fl_sim.data import load_dataset
from fl_sim.data.sources.npz import find
from fl_sim.errors import FlSimError

if TYPE_CHECKING:
    import pandas as pd

PUBLISHED = {
    "DermaMNIST": (0.115, 0.878),
    "ChestMNIST": (0.207, 0.743),
    "MIMIC-CXR": (0.133, 0.662),
}
"""SSIM and AUC of LWLRD under Transpose, arXiv 2509.00027."""
SOURCE = "arXiv 2509.00027"
CHEST_SUBSET = "chestmnist_nih1000.npz"
DEFENSES = (NONE, VANILLA, HIGH_RATE, SUPER, LWLRD, DISTILLATION)
METRICS = ("ssim raw", "ssim strongest", "psnr raw", "psnr strongest", "images_intact", "auc")
KEYS = ("dataset", "model", "attack", "defense")


@dataclass(frozen=True)
class PaperCase:
    """A dataset of the paper.

    Args:
        name: as the paper calls it, and in brackets what stands for it here.
        dataset: of the scenario.
        model: of the scenario.
        training: of the scenario.
        seeds: of everything.
        data_root: folder of its files, where it is not that of the others.
    """

    name: str
    dataset: Values
    model: Values
    training: Values
    seeds: tuple[int, ...]
    data_root: Path | None = None


def cases(data_root: Path | None, mimic: Path | None, full: bool = False) -> list[PaperCase]:
    """Return the datasets of the paper that there are.

    Args:
        data_root: folder of MedMNIST files; where it has the 1,000-image subset of ChestMNIST and
            not the whole, the subset is taken, and trained on for as many steps as DermaMNIST.
        mimic: folder of MIMIC-CXR-JPG; left out without.
        full: five seeds of each, and ResNet18 for all of MedMNIST; else chest X-rays are seen by
            the CNN, with three seeds.
    """
    root = find_data_root(data_root)
    known = {case.dataset["name"]: case for case in every_case(full)}
    derma = known["dermamnist"]
    found = [replace(derma, name=_called(derma.name, "dermamnist", root))]
    if _there(CHEST_SUBSET, root) and not _there("chestmnist.npz", root):
        found.append(known[CHEST_SUBSET])
    else:
        whole = known["chestmnist"]
        found.append(replace(whole, name=_called(whole.name, "chestmnist", root)))
    if mimic is not None:
        found.append(replace(known["mimic_cxr"], data_root=mimic))
    return found


def every_case(full: bool) -> list[PaperCase]:
    """Return the datasets of the paper and the subset, whether their files are here or not."""
    resnet = {"name": "resnet18"}
    chest = resnet if full else {"name": "cnn"}
    few = tuple(range(5 if full else 3))
    subset = f"ChestMNIST ({CHEST_SUBSET}, 1,000-image subset)"
    return [
        PaperCase("DermaMNIST", {"name": "dermamnist"}, resnet, STEPS_OF_PAPER, tuple(range(5))),
        PaperCase(subset, {"name": CHEST_SUBSET}, chest, {"epochs": 62.5}, few),
        PaperCase("ChestMNIST", {"name": "chestmnist"}, chest, STEPS_OF_PAPER, few),
        PaperCase("MIMIC-CXR", {"name": "mimic_cxr"}, {"name": "densenet121"}, STEPS_OF_PAPER, few),
    ]


def grids(full: bool) -> dict[str, Values]:
    """Return the grids of :func:`every_case`."""
    return {case.dataset["name"]: grid(case) for case in every_case(full)}


def grid(
    case: PaperCase,
    attacks: Sequence[Values] = (transpose(64), dec(64)),
    defenses: Sequence[Values] = DEFENSES,
    **base: Any,
) -> Values:
    """Return the cells of one dataset; ``base`` has further keys of every scenario."""
    return {
        "seeds": list(case.seeds),
        "scenario": {"mode": "centralized", "training": case.training, **base},
        "grid": {
            "dataset": [{"label": case.name, **case.dataset}],
            "model": [case.model],
            "attack": list(attacks),
            "defense": list(defenses),
        },
    }


def tabulate(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a row a dataset, attack and defence: means, t intervals, and what is published.

    ``"<metric>"``, ``"<metric> low"`` and ``"<metric> high"`` (95 %, over ``n`` seeds), at release.
    """
    import pandas as pd

    measured = [*METRICS, "auc_floor_scratch"]
    known = [m for m in measured if m.partition(" ")[0] in set(table["metric"])]
    summary = summarise(table, KEYS, known, ["release"])
    rows: dict[tuple[str, ...], Values] = {}
    for line in summary.to_dict("records"):
        keys = tuple(str(line[key]) for key in KEYS)
        row = rows.setdefault(keys, {**dict(zip(KEYS, keys, strict=True)), "n": line["n"]})
        name = str(line["metric"]).replace("auc_floor_scratch", SCRATCH)
        row |= {name: line["mean"], f"{name} low": line["low"], f"{name} high": line["high"]}
    frame = pd.DataFrame(rows.values())
    columns = [f"{m}{end}" for m in (*METRICS, SCRATCH) for end in ("", " low", " high")]
    frame = frame.reindex(columns=[*KEYS, "n", *columns])
    published = [_published(keys) for keys in rows]
    for place, column in enumerate(("ssim published", "auc published", "published in")):
        frame[column] = [values[place] for values in published]
    return frame


def _published(keys: tuple[str, ...]) -> tuple[float, float, str]:
    dataset, _, attack, defense = keys
    name = dataset.partition(" (")[0]
    if name in PUBLISHED and attack.startswith("Transpose") and defense == LWLRD["label"]:
        return (*PUBLISHED[name], SOURCE)
    return float("nan"), float("nan"), ""


def draw(path: Path, table: "pd.DataFrame", title: str) -> Path:
    """Draw a bar a defence, and a colour a dataset and attack."""
    frame = table.assign(series=table["dataset"].str.partition(" (")[0] + ", " + table["attack"])
    metrics = ("ssim strongest", "images_intact", "auc")
    return draw_bars(path, frame, "defense", metrics, "series", title)


def _called(published: str, name: str, root: Path | None) -> str:
    """Return the paper's name of a dataset, with the file's name where that is another one."""
    file = load_dataset(name, data_root=root).files[0]
    return published if file.official else f"{published} ({file.name}, not the official file)"


def _there(file: str, root: Path | None) -> bool:
    if (Path.home() / ".medmnist" / file).is_file():
        return True
    try:
        find(file, root)
    except FlSimError:
        return False
    return True


STUDY = GridStudy(
    "paper_tables",
    "What leaves, and what the model is worth, beside what is published",
    tabulate,
    draw,
)


def main(
    out: Out = Path("runs/paper-tables"),
    full: Full = False,
    mimic: Annotated[
        Path | None, typer.Option(help="Folder of MIMIC-CXR-JPG; without, it is left out.")
    ] = None,
    data_root: DataRoot = None,
    workers: Workers = None,
    gpus_per_cell: Gpus = 0.0,
    changes: Changes = None,
    only: Only = None,
    again: Again = False,
) -> None:
    """Reproduce the paper's tables, with our defence in them."""
    chosen = cases(data_root, mimic, full)
    roots = {_folder(case): case.data_root for case in chosen if case.data_root}
    found = {_folder(case): grid(case) for case in chosen}
    how = How(
        data_root,
        workers,
        gpus_per_cell,
        changes or (),
        roots,
        full=full,
        only=only or (),
        again=again,
    )
    STUDY.show(found, out, how)


def _folder(case: PaperCase) -> str:
    return case.name.partition(" (")[0].lower()


TABLES = {
    "paper_tables": PublishedTable(
        ("paper_tables.csv",),
        {"dataset": "dataset", "attack": "attack", "defense": "defence"},
        (
            *RELEASED[:2],
            Column("SSIM published", "ssim published"),
            Column("intact", "images_intact", bounds=OF_64),
            RELEASED[3],
            Column("AUC published", "auc published"),
            FROM_SCRATCH,
        ),
    ),
}

STUDIES.register("paper_tables", "the tables of arXiv 2509.00027, and other defences in them")(
    Study(main, TABLES, STUDY, grids)
)
