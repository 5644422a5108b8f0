"""Texts of the repository on pages of the site, with their links led to pages.

A page written by hand takes a text in by a line of its own, of a section or a whole file::

    <!-- include: CONTRIBUTING.md#Style -->
"""

import posixpath
import re
from pathlib import Path

from fl_sim.errors import FlSimError, did_you_mean

ROOT = Path(__file__).resolve().parents[2]
STUDIES = "experiments/studies"
_INCLUDE = re.compile(r"^<!-- include: ([^\s#]+)(?:#(.+?))? -->$", re.MULTILINE)
_MARK = re.compile(r"\s*(?<!`)<!-- (?:=|given:).*?-->", re.DOTALL)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_HOMES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    f"{STUDIES}/README.md": "results/index.md",
}


def with_texts(page: str, markdown: str) -> str:
    """Return a page with the texts that it takes in.

    Args:
        page: its path on the site, for example ``"limits.md"``.
        markdown: as it was written.

    Raises:
        FlSimError: if there is no such file or section, or a link of it leads nowhere.
    """
    return _INCLUDE.sub(lambda found: text_of(found[1], page, found[2]), markdown)


def without_marks(markdown: str) -> str:
    """Return a page without the marks that say where its numbers come from, and without gaps.

    Marks that are code, on the page that explains them, stay.
    """
    return _MARK.sub("", markdown)


def text_of(source: str, page: str, section: str | None = None) -> str:
    """Return a file of the repository, or one of its sections, for a page of the site.

    Args:
        source: the file's path in the repository.
        page: the page's path on the site.
        section: the words of a heading; what follows it is taken.

    Raises:
        FlSimError: as :func:`with_texts`.
    """
    path = ROOT / source
    if not path.is_file():
        raise FlSimError(f"The page {page} takes in {source}, which is not there.")
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".md":
        return text
    if section is not None:
        text = section_of(text, section, source)
    return _LINK.sub(lambda link: _led(link, source, page), text)


def section_of(text: str, title: str, source: str) -> str:
    """Return what stands under a heading of the second to fourth level, sections inside included.

    Raises:
        FlSimError: if no heading says so.
    """
    headings = list(re.finditer(r"^(##+) (.+)$", text, re.MULTILINE))
    for number, found in enumerate(headings):
        if found[2] == title:
            after = (h.start() for h in headings[number + 1 :] if len(h[1]) <= len(found[1]))
            return text[found.end() : next(after, len(text))].strip() + "\n"
    hint = did_you_mean(title, [found[2] for found in headings])
    raise FlSimError(f"{source} has no section '{title}'.{hint}")


def place_of(path: str) -> str | None:
    """Return where on the site a file of the repository stands, if it does."""
    if path in _HOMES:
        return _HOMES[path]
    if path.startswith("docs/") and (ROOT / path).is_file():
        return path.removeprefix("docs/")
    study = re.fullmatch(rf"{STUDIES}/(\w+)/(.+)", path)
    if study is None or not (ROOT / path).is_file():
        return None
    if study[2] == "README.md":
        return f"results/{study[1]}.md"
    return f"results/{study[1]}/{study[2]}" if study[2].endswith(".png") else None


def _led(link: re.Match[str], source: str, page: str) -> str:
    """Return a link of a text as it is on a page; to a file that is on no page, its words."""
    sign, words, target = link.groups()
    if "://" in target:
        return link[0]
    file, _, anchor = target.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), file)) if file else source
    if not (ROOT / path).exists():
        raise FlSimError(f"{source} links to {target}, which is not there.")
    place = place_of(path)
    if place is None:
        return words if sign else f"{words} (`{path}`)" if words != path else f"`{path}`"
    relative = posixpath.relpath(place, posixpath.dirname(page) or ".")
    return f"{sign}[{words}]({relative}{'#' + anchor if anchor else ''})"
