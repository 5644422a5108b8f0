"""What the README and the documentation tell a reader to do: their fences, as a test follows them.

A comment above a fence says what a test does with it: ``<!-- run -->`` gives its commands, or runs
its Python; ``<!-- run: exit 1 -->`` expects that exit status; ``<!-- write: NAME -->`` makes it a
file.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.experiments.cli_kit import ROOT

PAGES = ROOT / "docs"
README = ROOT / "README.md"
_FENCE = re.compile(r"(?:^<!-- ([^\n]+?) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Fence:
    """A block of code on a page.

    Args:
        page: its path in ``docs``, or ``README.md``.
        language: as the fence says.
        text: its lines.
        wish: what the comment above it says; empty where there is none.
    """

    page: str
    language: str
    text: str
    wish: str

    @property
    def exit_status(self) -> int:
        """What its commands end with."""
        return int(self.wish.removeprefix("run: exit ")) if "exit" in self.wish else 0

    def commands(self) -> Iterator[list[str]]:
        """Yield the words of each command of ``fl-sim`` in it, without what the shell takes."""
        whole = self.text.replace("\\\n", " ")
        for line in whole.splitlines() if self.language == "sh" else ():
            words = shlex.split(line.partition(" || ")[0], comments=True)
            if words and words[0] in ("fl-sim", ".venv/bin/fl-sim"):
                yield words[1:]


def fences() -> list[Fence]:
    """Return every fence of every page that was written by hand, and of the README."""
    files = {page.relative_to(PAGES).as_posix(): page for page in sorted(PAGES.rglob("*.md"))}
    return [
        Fence(name, language, text, wish)
        for name, page in {README.name: README, **files}.items()
        for wish, language, text in _FENCE.findall(page.read_text(encoding="utf-8"))
    ]


def followed() -> dict[str, list[Fence]]:
    """Return the fences that a test follows, in order, by page."""
    found: dict[str, list[Fence]] = {}
    for fence in fences():
        if fence.wish.startswith(("run", "write")):
            found.setdefault(fence.page, []).append(fence)
    return found


def write(fence: Fence, folder: Path) -> None:
    """Write the file that a fence is."""
    (folder / fence.wish.removeprefix("write: ")).write_text(fence.text, encoding="utf-8")
