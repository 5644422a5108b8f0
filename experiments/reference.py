"""How lists, components and their keys look on a terminal."""

from rich.console import Console
from rich.table import Table

from experiments.catalogue import FILES, TABLE, Details, Item, title_of
from experiments.console import make_console, plain
from experiments.keys import keys_of, prose
from experiments.sample import sample


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
    path = FILES[item.kind][1] / f"{item.name}.toml"
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
        _print_keys(console, details)
    console.print("\n[bold]Example[/]\n")
    console.print(plain(sample(item, details)), soft_wrap=True)


def _print_keys(console: Console, details: Details) -> None:
    table = Table(title="Keys", title_justify="left", box=None, pad_edge=False)
    for title in ("key", "default", "values", "meaning"):
        table.add_column(title, overflow="fold", header_style="dim", no_wrap=title == "key")
    assert details.settings is not None
    for key in keys_of(details.settings):
        table.add_row(*map(plain, (key.name, key.default, key.values, key.meaning)))
    console.print()
    console.print(table if table.rows else "It has no keys.")
