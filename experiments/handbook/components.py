"""A page a kind of component, an entry a component: what ``fl-sim show`` says of it."""

import html
from collections.abc import Iterator

from experiments.catalogue.contents import (
    FILES,
    KINDS,
    TABLE,
    TABLES,
    Catalogue,
    Item,
    Kind,
    title_of,
)
from experiments.catalogue.keys import WITHOUT, keys_of, prose
from experiments.catalogue.sample import sample
from experiments.handbook.markup import (
    anchor,
    code,
    definitions,
    escaped,
    fence,
    heading,
    paragraphs,
)
from experiments.run.shipped import shipped
from fl_sim.settings import Settings

Page = tuple[str, str]
"""A page's title and its text in Markdown."""


_UNSEARCHED = "---\nsearch:\n  exclude: true\n---"
"""Before pages of files: their keys are found where they are explained."""


def component_pages(catalogue: Catalogue) -> dict[str, Page]:
    """Return a page a kind by its path, the scenario's tables and the files that come along."""
    pages = {path_of(kind.name): (kind.title, _of_kind(catalogue, kind)) for kind in KINDS}
    pages[path_of(TABLE)] = (title_of(TABLE), _of_tables(catalogue))
    for kind, (title, _) in FILES.items():
        pages[path_of(kind)] = (title, _of_files(kind))
    return pages


def path_of(kind: str) -> str:
    """Return the path of a kind's page."""
    return f"reference/{anchor(title_of(kind))}.md"


def _of_kind(catalogue: Catalogue, kind: Kind) -> str:
    names = catalogue.names(kind.name)
    parts = [f"# {kind.title}", *_contents(names | dict(kind.further), names)]
    for name in names:
        parts += _entry(catalogue, Item(kind.name, name))
    return "\n\n".join(parts) + "\n"


def _of_tables(catalogue: Catalogue) -> str:
    about = (
        "A scenario is a TOML file; its tables for components are on the pages of these. Every key "
        "has a default."
    )
    parts = [f"# {title_of(TABLE)}", about, *_contents(catalogue.names(TABLE), TABLES)]
    for name in TABLES:
        parts += _entry(catalogue, Item(TABLE, name))
    return "\n\n".join(parts) + "\n"


def _of_files(kind: str) -> str:
    title, kind_of_file = FILES[kind]
    parts = [
        _UNSEARCHED,
        f"# {title}",
        f"As they come along; `fl-sim show {kind} NAME` prints one.",
    ]
    for name, file in shipped(kind_of_file).items():
        parts += [heading(2, name), fence("toml", file.read_text(encoding="utf-8"))]
    return "\n\n".join(parts) + "\n"


def _contents(lines: dict[str, str], entries: object) -> Iterator[str]:
    """Yield a table of names and the line about each, linked where there is an entry."""
    rows = ["| name | |", "|---|---|"]
    for name, about in lines.items():
        linked = name in entries  # type: ignore[operator]
        shown = f"[{code(name)}](#{anchor(name)})" if linked else code(name)
        rows.append(f"| {shown} | {escaped(about)} |")
    yield "\n".join(rows)


def _entry(catalogue: Catalogue, item: Item) -> Iterator[str]:
    details = catalogue.details(item)
    yield heading(2, item.name)
    yield f"<p><strong>{html.escape(details.summary)}</strong></p>"
    for docstring in details.about:
        if text := prose(docstring):
            yield paragraphs(text)
    if details.settings is not None and details.settings.model_fields:
        yield _keys(details.settings)
    if lines := sample(item, details):
        yield fence("toml", lines)


def _keys(settings: type[Settings]) -> str:
    terms = []
    for key in keys_of(settings):
        value = f" = {key.default}" if key.default not in WITHOUT else ""
        term = f"<code>{html.escape(key.name + value)}</code>"
        said = key.values if key.default not in WITHOUT else f"{key.values}; {key.default}"
        terms.append((f"{term} <small>{html.escape(said)}</small>", key.meaning))
    return definitions(terms)
