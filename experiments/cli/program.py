"""What every command-line program here has in common: ``-h``, plain help, and completion."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import typer
from typer.core import TyperCommand, TyperGroup

from experiments.run.shipped import Kind, shipped


class _Command(TyperCommand):
    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help(ctx, formatter)
        _unescape(formatter)


class CommandGroup(TyperGroup):
    """A group of commands whose help is plain text."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: D102
        super().format_help(ctx, formatter)
        _unescape(formatter)


def _unescape(formatter: click.HelpFormatter) -> None:
    """Take back what typer escapes for rich, although plain text was asked for."""
    formatter.buffer = [text.replace("\\[", "[") for text in formatter.buffer]


class _Program(typer.Typer):
    def command(self, name: str | None = None, **options: Any) -> Any:
        return super().command(name, **{"cls": _Command, **options})


def program(**options: Any) -> typer.Typer:
    """Return a program for typer whose help is plain text: nothing in it is taken for markup.

    Args:
        options: of typer's.
    """
    return _Program(
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        **{"cls": CommandGroup, "add_completion": False, **options},
    )


def _files(kind: Kind) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        names = shipped(kind)
        return [*(name for name in names if name.startswith(incomplete)), *_paths(incomplete)]

    return complete


def _paths(incomplete: str) -> Iterator[str]:
    """Yield TOML files and folders that a path may go on with."""
    for path in sorted(Path().glob(f"{incomplete}*") if incomplete[:1] not in "/~" else ()):
        if path.is_dir() or path.suffix == ".toml":
            yield f"{path}/" if path.is_dir() else str(path)


complete_scenarios = _files("scenario")
complete_grids = _files("grid")
complete_tunings = _files("tuning")


def complete_kinds(incomplete: str) -> list[str]:
    """Return the kinds that begin so."""
    from experiments.catalogue.contents import FILES, KINDS, TABLE

    words = [next(word for word in kind.words[1:] if " " not in word) for kind in KINDS]
    words += [title.lower() for title, _ in FILES.values()]
    return [word for word in (*words, f"{TABLE}s") if word.startswith(incomplete)]


def complete_names(context: typer.Context, incomplete: str) -> list[str]:
    """Return the components, tables, scenarios and grids that begin so; of one kind, after it."""
    from experiments.catalogue.contents import FILES, KINDS, TABLE, Catalogue, is_kind, kind_called

    before = str(context.params.get("name"))
    every = (*(kind.name for kind in KINDS), TABLE, *FILES)
    kinds = (kind_called(before),) if is_kind(before) else every
    names = {name for kind in kinds for name in Catalogue().names(kind)}
    return sorted(name for name in names if name.startswith(incomplete))


def complete_codecs(incomplete: str) -> list[str]:
    """Return the codecs that begin so."""
    from experiments.catalogue.contents import Catalogue

    return [name for name in Catalogue().names("codec") if name.startswith(incomplete)]
