"""The command line of studies: ``fl-sim study NAME``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from experiments.cli.program import CommandGroup, program
from fl_sim.errors import FlSimError, unknown_name

if TYPE_CHECKING:
    from rich.console import Console


def tables(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit code 2 where tables differ.")
    ] = False,
    take_from: Annotated[
        Path | None,
        typer.Option(
            "--take", help="Folder of a study or sweep, finished or not, that is taken in."
        ),
    ] = None,
    missing: Annotated[
        bool, typer.Option("--missing", help="List the numbers in prose that have no row, only.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Of the study that it is taken into.")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Of a sweep that is taken in: it was the whole study.")
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Of a sweep that is taken in: what was changed."
        ),
    ] = None,
) -> None:
    """Write the tables of the README and of the studies' pages anew from the studies' results.

    Then numbers in the pages' prose are compared with the rows that their marks name.
    """
    from experiments.studies.published import write_pages
    from experiments.studies.taking import take
    from experiments.tables.console import make_console, plain

    console = make_console()
    if missing:
        _list_missing(console)
        return
    if take_from is not None:
        taken = take(take_from, name, full=full, changes=changes or ())
        console.print(f"Taken: {plain(taken.path)}; {plain(taken.said)}", soft_wrap=True)
    for page, names in write_pages(check).items():
        console.print(f"{plain(page)}: {', '.join(names) or 'no tables'}")
    _check_numbers(console)


def _list_missing(console: "Console") -> None:
    """Print the numbers in prose that have neither row nor mark."""
    from experiments.studies.stated import examine_pages
    from experiments.tables.console import plain

    for page, found in examine_pages().items():
        for remark in found.missing:
            console.print(f"{plain(page)}:{remark.line}: {plain(remark.text)}", soft_wrap=True)
        if found.missing:
            console.print(f"{plain(page)}: numbers without a row: {len(found.missing)}")


def _check_numbers(console: "Console") -> None:
    """Compare the numbers in prose with their rows.

    Raises:
        FlSimError: if one differs, or has no row on a page that is marked throughout.
    """
    from experiments.studies.stated import OPEN, examine_pages, failures
    from experiments.tables.console import plain

    examined = examine_pages()
    for page in OPEN:
        console.print(f"{plain(page)}: numbers without a row: {len(examined[page].missing)}")
    said = failures(examined)
    for sentence in said:
        console.print(plain(sentence), soft_wrap=True)
    if said:
        raise FlSimError(
            f"Numbers in pages differ from the studies' rows, or have none: {len(said)}, listed "
            f"above; mend them or their marks."
        )


class _Studies(CommandGroup):
    """The studies that there are, and ``tables``; a study is imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_summaries(), *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        name, known = cmd_name.replace("-", "_"), _summaries()
        if name not in known:
            raise unknown_name("study", cmd_name, known)
        return _command(name, known[name])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        studies = {name: f"{line[0].upper()}{line[1:]}." for name, line in _summaries().items()}
        own = {name: command.get_short_help_str() for name, command in self.commands.items()}
        for title, lines in {"Studies": studies, "Pages": own}.items():
            with formatter.section(title):
                formatter.write_dl([*lines.items()])


def _summaries() -> dict[str, str]:
    from experiments.studies.base import STUDIES

    return STUDIES.summaries()


def _command(name: str, summary: str) -> click.Command:
    """Return a study's command: of one function, or a group of several."""
    from experiments.studies.base import STUDIES

    commands = STUDIES.get(name).commands
    several = commands if not callable(commands) else {name: commands}
    made: Any = program(help=summary, no_args_is_help=not callable(commands))
    for each, function in several.items():
        made.command(each)(function)
    return typer.main.get_command(made)


app = program(
    cls=_Studies,
    no_args_is_help=True,
    help="Run a study: its cells, its table, its figure. 'fl-sim study NAME -h' says more.",
)
app.command(
    "tables", short_help="Write the tables of all pages anew, and compare numbers with rows."
)(tables)
