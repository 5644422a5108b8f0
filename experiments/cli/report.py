"""The command line of reports: ``fl-sim report``."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="OUT...",
            help="Folders that fl-sim run or fl-sim sweep wrote.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("report.html"),
    tables: Annotated[
        Path | None,
        typer.Option(
            "--tables",
            help="Folder for the page's tables as CSV, Markdown and LaTeX.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        int, typer.Option("--images", min=0, help="Images in each strip, at most.")
    ] = 16,
) -> None:
    """Write what runs or sweeps measured as one HTML page that needs nothing else.

    Of one run: the result in words, the images, leakage beside its floors, utility, cost. Several
    seeds give means with intervals, several scenarios and sweeps a comparison.
    """
    from experiments.report import write_report
    from experiments.tables.console import make_console, plain

    path = write_report(folders, out, images, tables)
    console = make_console(soft_wrap=True)
    console.print(f"Report {plain(path)}")
    if tables is not None:
        console.print(f"Tables {plain(tables)}")
