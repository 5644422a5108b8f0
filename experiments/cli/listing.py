"""The command line's reference: ``fl-sim list`` and ``fl-sim show``."""

import json
from typing import Annotated

import typer

from experiments.cli.program import complete_kinds, complete_names


def list_components(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="Only one kind, for example attacks or defences.",
            show_default=False,
            autocompletion=complete_kinds,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="As JSON: kind, name and the line about it.")
    ] = False,
) -> None:
    """List what there is: datasets, models, attacks, defences, scenarios, grids and the rest."""
    from experiments.catalogue.contents import Catalogue, kind_called

    lists = Catalogue().lists((kind_called(kind),) if kind else ())
    if as_json:
        print(json.dumps(lists, indent=1))
        return
    from experiments.cli.reference import print_lists

    print_lists(lists)


def show(
    name: Annotated[
        str,
        typer.Argument(
            help="A component, scenario or grid, or a table: training, data, measure, attacker, "
            "federation. Or its kind, before its name.",
            autocompletion=complete_names,
        ),
    ],
    after_kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="The name, where a kind stands before it, as in: fl-sim show attack dec.",
            show_default=False,
            autocompletion=complete_names,
        ),
    ] = None,
) -> None:
    """Show what a component does, where it comes from, its keys, and an example.

    Of a scenario or a grid, its file.
    """
    from experiments.catalogue.contents import FILES, Catalogue, is_kind, kind_called
    from experiments.cli.reference import print_details, print_file, print_lists

    catalogue = Catalogue()
    if after_kind is None and is_kind(name):
        print_lists(catalogue.lists((kind_called(name),)))
        return
    kind = kind_called(name) if after_kind is not None else None
    item = catalogue.find(after_kind or name, kind)
    if item.kind in FILES:
        print_file(item)
    else:
        print_details(item, catalogue.details(item))
