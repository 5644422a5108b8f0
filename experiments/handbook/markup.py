"""Text from the code as parts of a page: nothing in it is taken for markup."""

import html
import re
from collections.abc import Iterable

_ARXIV = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")


def escaped(text: str) -> str:
    """Return text that Markdown and HTML show as it is, on one line."""
    one_line = " ".join(text.split())
    return re.sub(r"[^\w\s.,:;()/%=+'?-]|_", lambda sign: f"&#{ord(sign[0])};", one_line)


def code(text: str) -> str:
    """Return text as code."""
    return f"<code>{escaped(text)}</code>"


def paragraphs(text: str) -> str:
    """Return lines as paragraphs; lines that are indented keep their shape.

    Args:
        text: as :func:`experiments.catalogue.keys.prose` returns it.
    """
    blocks = []
    for block in re.split(r"\n(?:\s*\n)*(?=\S)", text.strip()):
        first, _, rest = block.partition("\n")
        blocks.append(f"<p>{_linked(html.escape(first))}</p>")
        if rest.strip():
            blocks.append(f"<pre>{html.escape(rest.strip(chr(10)))}</pre>")
    return "\n".join(blocks)


def definitions(terms: Iterable[tuple[str, str]]) -> str:
    """Return a list of terms, given as HTML, and what each means, given as text."""
    lines = [
        f"<dt>{term}</dt><dd>{html.escape(' '.join(said.split()))}</dd>" for term, said in terms
    ]
    return "\n".join(('<dl class="keys">', *lines, "</dl>"))


def fence(language: str, lines: str) -> str:
    """Return lines of code as a block."""
    return f"```{language}\n{lines.rstrip()}\n```"


def anchor(name: str) -> str:
    """Return what a link to a name on a page ends in."""
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")


def heading(level: int, name: str) -> str:
    """Return a heading with the anchor of its name."""
    return f"{'#' * level} {escaped(name)} {{ #{anchor(name)} }}"


def _linked(text: str) -> str:
    return _ARXIV.sub(r'<a href="https://arxiv.org/abs/\1">arXiv \1</a>', text)
