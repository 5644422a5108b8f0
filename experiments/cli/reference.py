"""How lists, components and their keys look on a terminal."""

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from experiments.catalogue.contents import FILES, TABLE, Details, Item, title_of
from experiments.catalogue.keys import WITHOUT, keys_of, prose
from experiments.catalogue.sample import sample
from experiments.run.shipped import shipped
from experiments.tables.console import make_console, plain
from fl_sim.settings import Settings

_INDENT = 4


def print_lists(lists: dict[str, dict[str, str]]) -> None:
    """Print names and the line about each, by kind."""
    console = make_console()
    for kind, names in lists.items():
        table = Table(title=title_of(kind), title_justify="left", show_header=False, box=None)
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for name, summary in names.items():
            table.add_row(plain(name), plain(summary))
        console.print(table)
        console.print()


def print_file(item: Item) -> None:
    """Print a scenario's or a grid's file."""
    path = shipped(FILES[item.kind][1])[item.name]
    console = make_console(soft_wrap=True)
    console.print(f"[bold]{plain(item.name)}[/] ({item.kind}): {plain(path)}")
    console.print()
    console.print(plain(path.read_text(encoding="utf-8").rstrip()))


def print_details(item: Item, details: Details) -> None:
    """Print what a component or a table is, its keys, and an example."""
    console = make_console()
    kind = "table of a scenario" if item.kind == TABLE else item.kind
    console.print(f"[bold]{plain(item.name)}[/] ({kind}): {plain(details.summary)}")
    for docstring in details.about:
        if text := prose(docstring):
            console.print()
            console.print(plain(text))
    if details.settings is not None:
        _print_keys(console, details.settings)
    if lines := sample(item, details):
        console.print("\n[bold]Example[/]\n")
        console.print(plain(lines), soft_wrap=True)


def _print_keys(console: Console, settings: type[Settings]) -> None:
    console.print("\n[bold]Keys[/]\n")
    for key in keys_of(settings):
        value = f" = {key.default}" if key.default not in WITHOUT else f", {key.default}"
        console.print(f"[bold]{plain(key.name)}[/]{plain(value)}  [dim]{plain(key.values)}[/]")
        console.print(Padding(plain(key.meaning), (0, 0, 0, _INDENT)))
    if not settings.model_fields:
        console.print("None.")
