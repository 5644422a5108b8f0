"""Study: every defence at settings that were chosen away from the test set.

A tuning by ``tuning/tuned-dermamnist.toml``, beside this file; ``fl-sim study tuned_defenses`` runs
it, and so does ``fl-sim tune tuned-dermamnist``.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from experiments.studies.base import (
    STUDIES,
    Changes,
    DataRoot,
    Gpus,
    Out,
    Study,
    Workers,
)
from experiments.studies.origin import provenance
from experiments.studies.published_tables import FOUND, Column, PublishedTable
from experiments.tables.console import make_console, plain, print_table
from experiments.tables.figures import write_table
from experiments.tuning.start import tune
from fl_sim.files import write_atomically

NAME, FILE = "tuned_defenses", "tuned-dermamnist"

Final = Annotated[bool, typer.Option("--final/--no-final", help="Open the test set, once.")]


def main(
    out: Out = Path("runs") / FILE,
    data_root: DataRoot = None,
    workers: Workers = None,
    gpus_per_cell: Gpus = 0.0,
    changes: Changes = None,
    final: Final = True,
) -> None:
    """Tune every defence away from the test set, then report on all at once."""
    result = tune(
        FILE,
        out,
        workers,
        data_root=data_root,
        overrides=changes or (),
        gpus_per_cell=gpus_per_cell,
        final=final,
    )
    console = make_console()
    print_table(console, result.in_short(), FILE)
    console.print(plain(result.rule), soft_wrap=True)
    if not result.reported:
        return
    write_table(out / f"{NAME}.csv", result.table)
    sweeps = (result.trial_sweep, result.final_sweep)
    origin = provenance({one.out: [cell.name for cell in one.grid.cells] for one in sweeps})
    content = json.dumps({"study": NAME, "rule": result.rule, **origin}, indent=2) + "\n"
    write_atomically(out / f"{NAME}.json", content.encode())
    write_atomically(out / f"{NAME}.png", (out / "trials.png").read_bytes())
    console.print(f"Table, figure and provenance: {plain(out / NAME)}.csv, .png, .json")


TABLES = {
    "tuned_trials": PublishedTable(
        ("trials.csv",),
        {"defense": "defence", "settings": "settings tried"},
        (
            Column("AUC, validation", "auc"),
            Column("found, validation", FOUND),
            Column("seconds", "seconds"),
        ),
    ),
    NAME: PublishedTable(
        (f"{NAME}.csv",),
        {"defense": "defence", "choice": "settings"},
        (
            Column("AUC, validation", "validation auc", metric="auc"),
            Column("found, validation", f"validation {FOUND}", metric=FOUND.split()[0]),
            Column("AUC", "test auc", metric="auc"),
            Column("found by correlation", f"test {FOUND}", metric=FOUND.split()[0]),
        ),
    ),
}

STUDIES.register("tuned_defenses", "every defence at settings chosen away from the test set")(
    Study(main, TABLES)
)
