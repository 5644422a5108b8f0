"""Numbers that pages state in prose: each has its row in a study's CSV file, or is a setting.

Marks are comments, which no reader sees. Behind numbers::

    LWLRD leaves AUC 0.865 of 0.911 <!-- = defenses.csv [defense=LWLRD] auc, [defense=none] auc -->

says where they come from (:mod:`experiments.studies.stated_cells` has the grammar), one reference a
number since the mark before; and, at the end of a paragraph, list item or row of a table::

    <!-- given: 64, 1,003, 28 x 28, 95 % -->

lists the numbers in it that are settings, published figures or arithmetic, not results; wherever
such a number stands in the paragraph, it needs no row. A mark that begins a line ends its
paragraph, as comments do in Markdown.

Looked at are paragraphs, list items and tables written by hand; not code, headings, links' targets,
images, generated tables, years, versions (``1.2.3``), arXiv numbers and names (``ResNet18``).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.studies.base import RESULTS
from experiments.studies.published import README, pages
from experiments.studies.stated_cells import Reference, Source, parsed
from fl_sim.errors import FlSimError

if TYPE_CHECKING:
    from markdown_it.token import Token

OPEN: dict[str, int] = {}
"""Pages that are not marked throughout, and how many of their numbers may still lack a row: a count
may go down, never up. Every other page is marked throughout."""

_GENERATED = re.compile(r"<!-- table: .+? -->.*?<!-- end -->", re.DOTALL)
_COMMENT = re.compile(r"<!--\s*(?:=(?P<cells>.*?)|given:(?P<given>.*?))\s*-->", re.DOTALL)
_EXEMPT = re.compile(
    r"arXiv[:\s]\s*\d{4}\.\d{4,5}"
    r"|(?<![\w.,])(?:19|20)\d\d(?![\w%]|[.,]\d)"
    r"|(?<![\w.])\d+(?:\.\d+){2,}"
)
_NUMBER = re.compile(
    r"(?<![\w.])(?<![A-Za-z]-)(?P<sign>(?<![\w)%])[-+\N{MINUS SIGN}])?"
    r"(?P<digits>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?)(?!\w|\.\d|,\d{3})"
    r"(?P<unit>\s?%|\s(?:kB|MB|GB|million)\b)?"
)
_POWERS = {"": 0, "%": -2, "kB": 3, "MB": 6, "GB": 9, "million": 6}


@dataclass(frozen=True)
class Number:
    """A number in prose.

    Args:
        text: as it is written, without spaces.
        line: of the page, from 1.
        place: of its first character in its passage.
        value: what it says; 0.83 where 83 % is written.
        step: the unit of its last digit.
        power: of ten, by which what is written is multiplied; -2 where it is a percentage.
    """

    text: str
    line: int
    place: int
    value: Decimal
    step: Decimal
    power: int

    def says(self, value: float) -> bool:
        """Return whether a value is this number at the digits that are written."""
        slack = self.step / 2 * (1 + Decimal("1e-6"))  # both neighbours of a half are right
        return value == value and abs(Decimal(value) - self.value) <= slack

    def written(self, value: float) -> str:
        """Return a value with as many digits as this number has."""
        rounded = Decimal(value).quantize(self.step) if value == value else Decimal(value)
        return f"{rounded.scaleb(-self.power):,f}"


@dataclass
class _Passage:
    """A paragraph, list item or row.

    Args:
        text: without marks.
        lines: of the page, of each character.
        marks: place in the text, line, and the comment.
        cut: lines that begin with a mark and go on with text.
    """

    text: str = ""
    lines: list[int] = field(default_factory=list)
    marks: list[tuple[int, int, str]] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)

    def add(self, text: str, line: int) -> None:
        self.text += text
        self.lines += [line] * len(text)


@dataclass(frozen=True)
class Remark:
    """What is wrong with a page.

    Args:
        line: of the page, from 1.
        text: the number, or the mark.
        said: what is wrong, and what to do.
    """

    line: int
    text: str
    said: str


@dataclass
class Examined:
    """What was found on a page.

    Args:
        wrong: numbers that differ from their rows, and marks that cannot be followed.
        missing: numbers with neither row nor mark.
    """

    wrong: list[Remark] = field(default_factory=list)
    missing: list[Remark] = field(default_factory=list)


def examine(text: str, folder: Path, results: Path = RESULTS) -> Examined:
    """Compare the numbers that a page states with the rows that its marks name.

    Args:
        text: of the page, in Markdown.
        folder: of the page, which files in marks are looked for in.
        results: folder of the studies' folders.
    """
    found, source = Examined(), Source(folder, results)
    for passage in _passages(text):
        _examine(passage, source, found)
    return found


def examine_pages() -> dict[str, Examined]:
    """Return what was found on every page, by its path in the repository."""
    root = README.parent
    return {
        page.relative_to(root).as_posix(): examine(page.read_text(encoding="utf-8"), page.parent)
        for page in pages()
    }


def failures(examined: dict[str, Examined], allowed: dict[str, int] | None = None) -> list[str]:
    """Return what is wrong on pages, a sentence each.

    Args:
        examined: by page.
        allowed: numbers that may lack a row, by page; :data:`OPEN` where not given.
    """
    allowed = OPEN if allowed is None else allowed
    said = []
    for page, found in examined.items():
        said += [f"{page}:{remark.line}: {remark.said}" for remark in found.wrong]
        count = len(found.missing)
        if page not in allowed:
            said += [f"{page}:{remark.line}: {remark.said}" for remark in found.missing]
        elif count > allowed[page]:
            said.append(
                f"{page}: numbers without a row: {count}, where there were {allowed[page]}; list "
                f"them with 'fl-sim study tables --missing' and mark what is new."
            )
    return said


def _examine(passage: _Passage, source: Source, found: Examined) -> None:
    """Compare one passage's numbers with its marks."""
    given = {number for _, _, mark in passage.marks for number in _given(mark)}
    numbers = list(_numbers(passage))
    found.wrong += _misplaced(passage, given - {number.text for number in numbers})
    numbers = [number for number in numbers if number.text not in given]
    for place, line, mark in passage.marks:
        cells = _cells(mark)
        if cells is None:
            continue
        before = [number for number in numbers if number.place < place]
        numbers = numbers[len(before) :]
        found.wrong += _compared(before, cells, line, source)
    for number in numbers:
        said = (
            f"{number.text} has no row; put <!-- = FILE.csv [key=value] column --> behind it, or, "
            f"if it is a setting, <!-- given: {number.text} --> at the end of its paragraph."
        )
        found.missing.append(Remark(number.line, number.text, said))


def _misplaced(passage: _Passage, unused: set[str]) -> Iterator[Remark]:
    """Return what is wrong with a passage's marks themselves."""
    for text in sorted(unused):
        said = f"{text} is listed as given and does not occur in its paragraph; take it out."
        yield Remark(passage.marks[-1][1], text, said)
    for line in passage.cut:
        said = "a mark begins a line that text follows; move it to the end of the line before."
        yield Remark(line, "", said)


def _compared(numbers: list[Number], cells: str, line: int, source: Source) -> Iterator[Remark]:
    """Return what is wrong with the numbers that one mark is for."""
    try:
        references = parsed(cells)
    except FlSimError as error:
        yield Remark(line, cells, f"{str(error).rstrip('.')}.")
        return
    if len(references) != len(numbers):
        texts = ", ".join(number.text for number in numbers) or "none"
        yield Remark(
            line,
            cells,
            f"the mark '{cells.strip()}' has {len(references)} references for {len(numbers)} "
            f"numbers ({texts}); write one for each number since the mark before, in their order.",
        )
        return
    for number, reference in zip(numbers, references, strict=True):
        said = _differs(number, reference, source)
        if said:
            yield Remark(number.line, number.text, said)


def _differs(number: Number, reference: Reference, source: Source) -> str:
    """Return how a number differs from its row; an empty text if it does not."""
    try:
        value = source.value(reference)
    except FlSimError as error:
        return f"{number.text}: {error}"
    if number.says(value):
        return ""
    return (
        f"{number.text} is stated, and {reference} is {number.written(value)} ({value:.6g}); "
        f"mend the number or its mark."
    )


def _given(mark: str) -> list[str]:
    """Return the numbers that a mark lists as given."""
    found = _COMMENT.fullmatch(mark)
    listed = found["given"] if found else None
    return [_text(number) for number in _NUMBER.finditer(listed or "")]


def _cells(mark: str) -> str | None:
    """Return the references of a mark; none if it is another one."""
    found = _COMMENT.fullmatch(mark)
    return found["cells"] if found else None


def _text(number: re.Match[str]) -> str:
    sign = (number["sign"] or "").replace("\N{MINUS SIGN}", "-")
    return sign + number["digits"] + (number["unit"] or "").strip()


def _numbers(passage: _Passage) -> Iterator[Number]:
    """Return the numbers of a passage that need a row."""
    exempt = {place for e in _EXEMPT.finditer(passage.text) for place in range(*e.span())}
    for found in _NUMBER.finditer(passage.text):
        if found.start("digits") not in exempt:
            sign = "-" if (found["sign"] or "+") != "+" else ""
            written = Decimal(sign + found["digits"].replace(",", ""))
            power = _POWERS[(found["unit"] or "").strip()]
            exponent = written.as_tuple().exponent
            assert isinstance(exponent, int)
            yield Number(
                _text(found),
                passage.lines[found.start()],
                found.start(),
                written.scaleb(power),
                Decimal(1).scaleb(exponent + power),
                power,
            )


def _passages(text: str) -> list[_Passage]:
    """Return the paragraphs, list items and hand-written rows of a page."""
    from markdown_it import MarkdownIt

    hidden = _GENERATED.sub(lambda table: "\n" * table[0].count("\n"), text)
    passages: list[_Passage] = []
    row, heading = None, False
    for token in MarkdownIt("commonmark").enable("table").parse(hidden):
        line = token.map[0] + 1 if token.map else 0
        if token.type in ("heading_open", "heading_close"):
            heading = token.type == "heading_open"
        elif token.type == "tr_open":
            row = _Passage()
            passages.append(row)
        elif token.type == "table_close":
            row = None
        elif token.type == "inline" and not heading:
            if row is None:
                passages.append(_Passage())
            _read(token, passages[-1], line)
        elif token.type == "html_block":
            _read_marks(token.content, passages, line)
    return passages


def _read(inline: "Token", passage: _Passage, line: int) -> None:
    """Add a paragraph's or a cell's text and marks to a passage."""
    position = 0
    for token in inline.children or []:
        place = inline.content.find(token.content, position)
        position = max(place + len(token.content), position)
        now = line + inline.content[: max(place, position - len(token.content))].count("\n")
        if token.type in ("text", "text_special"):
            passage.add(token.content, now)
        elif token.type == "html_inline":
            if _COMMENT.fullmatch(token.content):
                passage.marks.append((len(passage.text), now, token.content))
        elif token.type in ("softbreak", "hardbreak"):
            passage.add("\n", now)
            position = inline.content.find("\n", position) + 1
        elif token.type in ("code_inline", "image"):
            passage.add("`", now)
    passage.add("\n", line)


def _read_marks(block: str, passages: list[_Passage], line: int) -> None:
    """Add the marks of a block of comments to the passage before it."""
    if not passages:
        passages.append(_Passage())
    if _COMMENT.search(block) and re.sub(r"<!--.*?-->", "", block, flags=re.DOTALL).strip():
        passages[-1].cut.append(line)
    for mark in _COMMENT.finditer(block):
        at = line + block[: mark.start()].count("\n")
        passages[-1].marks.append((len(passages[-1].text), at, mark[0]))
