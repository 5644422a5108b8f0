"""What a notebook shows: tables and pictures as HTML, every text in it escaped."""

import base64
import html
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.tables.console import cell_text, is_numeric
from fl_sim.errors import printable

if TYPE_CHECKING:
    import pandas as pd


def display(thing: object) -> None:
    """Show something in the output of the notebook's cell that runs."""
    importlib.import_module("IPython.display").display(thing)


def page(title: str, *parts: str) -> str:
    """Return parts of HTML below a title; empty parts are left out."""
    return "\n".join([f"<div><p><b>{said(title)}</b></p>", *filter(None, parts), "</div>"])


def table_html(frame: "pd.DataFrame") -> str:
    """Return a data frame as an HTML table: numbers to three digits, absent values as a dash."""
    numeric = [is_numeric(column) for _, column in frame.items()]
    head = _row("th", [str(column) for column in frame.columns], numeric)
    rows = [
        _row("td", [cell_text(value) for value in row], numeric)
        for row in frame.itertuples(index=False)
    ]
    return (
        '<div style="overflow-x:auto"><table style="font-variant-numeric:tabular-nums">'
        f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def note(text: str) -> str:
    """Return a remark, in smaller letters."""
    return f'<p style="font-size:smaller;max-width:60em">{said(text)}</p>'


def picture_html(path: Path, what: str) -> str:
    """Return a PNG file as an image that is part of the page; empty where there is none."""
    if not path.is_file():
        return ""
    content = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<img src="data:image/png;base64,{content}" alt="{said(what)}" '
        'style="max-width:min(100%,60em);height:auto">'
    )


def said(text: str) -> str:
    """Return a text from outside for a page: escaped, control characters written out."""
    return "<br>".join(html.escape(printable(line)) for line in text.split("\n"))


def _row(tag: str, texts: Iterable[str], numeric: Iterable[bool]) -> str:
    cells = [
        f'<{tag} style="text-align:{"right" if number else "left"}">{said(text)}</{tag}>'
        for text, number in zip(texts, numeric, strict=True)
    ]
    return f"<tr>{''.join(cells)}</tr>"
