"""The leaderboard's page: one plain table, which a small script lets be sorted and filtered."""

import html
from functools import cache
from typing import TYPE_CHECKING

from experiments.studies.leaderboard import HEADINGS, KEYS, as_text, board
from experiments.tables.summary import to_csv

if TYPE_CHECKING:
    import pandas as pd

PATH = "leaderboard.md"
MARK = "<!-- leaderboard -->"
"""Page of the documentation, and where on it the table stands."""
CSV = "leaderboard.csv"
SCRIPT = "assets/leaderboard.js"
FILTERED = ("data", "network", "place", "attack", "kept")
"""Columns that lines are chosen by; the script makes a choice of each."""


@cache
def leaderboard() -> tuple[str, str]:
    """Return the table as HTML, and the same lines with all columns as CSV."""
    frame = board()
    return table(frame), to_csv(frame)


def table(frame: "pd.DataFrame") -> str:
    """Return the leaderboard as HTML that can be read without a script.

    Cells of numbers have what they are sorted by as ``data-value``; those that lines are chosen by
    have their heading's place in ``data-filtered`` of the table.

    Args:
        frame: as :func:`experiments.studies.leaderboard.board` returns it.
    """
    text = as_text(frame)
    shown = {name: title for name, title in HEADINGS.items() if (text[title] != "").any()}
    heads = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in shown.values())
    places = ",".join(str([*shown].index(name)) for name in FILTERED if name in shown)
    lines = [
        '<div class="board" role="region" aria-label="Leaderboard" tabindex="0">',
        f'<table class="board" id="board" data-filtered="{places}">',
        f"<caption>Defences at release: {len(frame)} lines, those with rows by seed first; by "
        "data, network, place and attack, those that leave least to find first.</caption>",
        f"<thead><tr>{heads}</tr></thead>",
        "<tbody>",
    ]
    for number, line in enumerate(text.to_dict("records")):
        cells = (
            _cell(name, line[title], frame.iloc[number][name]) for name, title in shown.items()
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    lines += ["</tbody>", "</table>", "</div>", f'<script src="{SCRIPT}"></script>']
    return "\n".join(lines)


def _cell(name: str, text: str, value: object) -> str:
    if name == "defence":
        return f'<th scope="row">{html.escape(text)}</th>'
    if name in KEYS or name == "kept":
        return f"<td>{html.escape(text)}</td>"
    sorted_by = f' data-value="{value}"' if text else ""
    return f'<td class="number"{sorted_by}>{html.escape(text)}</td>'
