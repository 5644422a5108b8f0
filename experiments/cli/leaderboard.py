"""The command line of the leaderboard: ``fl-sim leaderboard``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.cli.program import program
from experiments.cli.sweep import LOG_WIDTH, DataRoot, Workers

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

FAULTY = 1

app = program(
    help="""Show the leaderboard: defences by attack, data and network; 'add' measures another.

Leakage is that of the extraction that an attacker would choose, and of the strongest, beside what
guessing finds; AUC stands beside its controls, with 95 % intervals.""",
    invoke_without_command=True,
)


@app.callback()
def show(
    context: typer.Context,
    defense: Annotated[
        str | None, typer.Option(help="Only defences with these words in their label.")
    ] = None,
    attack: Annotated[str | None, typer.Option(help="Only such attacks.")] = None,
    data: Annotated[str | None, typer.Option(help="Only such data.")] = None,
    network: Annotated[str | None, typer.Option(help="Only such networks.")] = None,
    rows_only: Annotated[
        bool, typer.Option("--rows", help="Leave out means whose rows by seed are not kept.")
    ] = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Write the lines with all columns as CSV, too.")
    ] = None,
) -> None:
    """Print the leaderboard."""
    if context.invoked_subcommand is not None:
        return
    from experiments.studies.leaderboard import MEANS_KEPT, board, chosen
    from experiments.tables.console import make_console, plain
    from experiments.tables.summary import to_csv
    from fl_sim.files import write_atomically

    wanted = {"defence": defense, "attack": attack, "data": data, "network": network}
    frame = board()
    if rows_only:
        frame = frame[frame["kept"] != MEANS_KEPT]
    frame = chosen(frame, {key: words for key, words in wanted.items() if words is not None})
    console = make_console()
    _print(console, frame)
    if csv is not None:
        console.print(f"Lines {plain(write_atomically(csv, to_csv(frame).encode()))}")


@app.command("add", short_help="Measure a defence on the benchmark, and write its row.")
def add(
    defense: Annotated[
        str, typer.Option(help="A Python file that registers a defence, or a defence's name.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the runs, and of rows.csv.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the defence; repeatable."),
    ] = None,
    data_root: DataRoot = None,
    workers: Workers = None,
) -> None:
    """Measure a defence on the benchmark: DermaMNIST, a small network, Transpose, three seeds.

    Where DermaMNIST is not there it is embedded phantoms, and the row says so. Killed at any
    moment, the same command continues. rows.csv in the folder is what is handed in.
    """
    from experiments.studies.benchmark import PHANTOMS, data_of, faults, grid_of, own_defense
    from experiments.studies.benchmark import measure as measured
    from experiments.studies.leaderboard import lines_of
    from experiments.studies.rows import ROWS
    from experiments.tables.console import make_console, plain
    from fl_sim.bars import make_progress

    console = make_console(soft_wrap=True)
    own = own_defense(defense, changes or ())
    data = data_of(data_root)
    if data == PHANTOMS:
        console.print("DermaMNIST is not here; embedded phantoms are taken, and the row says so.")
    progress = make_progress(console, remaining=False)
    rows = measured(grid_of(own, data), out, data_root, workers, progress)
    _print(make_console(), lines_of(rows))
    _say(console, out / ROWS, faults(out / ROWS))
    console.print(f"Rows {plain(out / ROWS)}")


@app.command("check", short_help="Verify a file of rows that is handed in.")
def check(
    file: Annotated[Path, typer.Argument(help="rows.csv of 'fl-sim leaderboard add'.")],
) -> None:
    """Verify a file of rows: columns, ranges, seeds, version, the attacker's key, floors.

    Exit code 1 if something is wrong with it.
    """
    from experiments.studies.benchmark import faults
    from experiments.tables.console import make_console

    found = faults(file)
    _say(make_console(soft_wrap=True), file, found)
    if found:
        raise typer.Exit(FAULTY)


def _say(console: "Console", file: Path, found: list[str]) -> None:
    from experiments.tables.console import plain

    for fault in found:
        console.print(f"{plain(file)}: {plain(fault)}")
    if not found:
        console.print(f"{plain(file)}: nothing is wrong with it.")


def _print(console: "Console", frame: "pd.DataFrame") -> None:
    from experiments.studies.leaderboard import BRIEFLY, HEADINGS, as_text
    from experiments.tables.console import make_console, print_table

    text = as_text(frame)
    # What is the same on all lines, or nowhere, needs no column.
    told = [title for title in map(HEADINGS.get, BRIEFLY) if (text[title] != "").any()]
    same = [
        HEADINGS[key]
        for key in ("data", "network", "place", "attack", "setting", "kept")
        if len(frame) > 1 and frame[key].nunique() == 1 and HEADINGS[key] in told
    ]
    about = ", ".join(text[name].iloc[0] for name in same)
    title = "At release, mean over seeds with its 95 % interval" + (f": {about}" if about else "")
    wide = console if console.is_terminal else make_console(width=2 * LOG_WIDTH)
    print_table(wide, text[[name for name in told if name not in same]], title)
