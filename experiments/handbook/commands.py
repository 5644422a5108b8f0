"""The command line, a section a command, from its own help."""

import html
from collections.abc import Iterator

import click
import typer.main

from experiments.cli.main import app
from experiments.handbook.markup import definitions, fence, heading, paragraphs


def command_page() -> str:
    """Return the page on every command of ``fl-sim``, its arguments and options."""
    parts = ["# Command line"]
    for name, command in commands():
        context = click.Context(command, info_name=name)
        usage = " ".join((name, *command.collect_usage_pieces(context)))
        parts += [heading(2, name), *_about(command), fence("text", usage)]
        terms = [record for one in command.params for record in _record(one, context)]
        if terms:
            parts.append(definitions(terms))
    return "\n\n".join(parts) + "\n"


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command as it is typed, groups before what is in them."""
    yield from _inside("fl-sim", typer.main.get_command(app))


def _inside(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=name)
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            if found is not None:
                yield from _inside(f"{name} {inner}", found)


def _about(command: click.Command) -> Iterator[str]:
    for block in (command.help or "").split("\n\n"):
        if block.strip():
            yield paragraphs(" ".join(block.split()))


def _record(parameter: click.Parameter, context: click.Context) -> Iterator[tuple[str, str]]:
    if isinstance(parameter, click.Option):
        record = parameter.get_help_record(context)
        if record:
            yield f"<code>{html.escape(record[0])}</code>", record[1].replace("\\[", "[")
        return
    name = parameter.make_metavar(context)
    yield f"<code>{html.escape(name)}</code>", str(getattr(parameter, "help", None) or "")
