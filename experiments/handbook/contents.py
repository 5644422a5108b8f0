"""Every page that is made when the site is built, in the order of its contents."""

from experiments.catalogue.contents import Catalogue
from experiments.handbook.columns import column_page
from experiments.handbook.commands import command_page
from experiments.handbook.components import Page, component_pages
from experiments.handbook.notebooks import notebook_pages
from experiments.handbook.python_names import python_page
from experiments.handbook.studies import study_pages

PARTS = ("notebooks", "reference", "results")
"""Folders of the site whose pages are made; ``nav`` in ``mkdocs.yml`` names them as they are."""


def made_pages() -> dict[str, Page]:
    """Return title and text of every made page by its path.

    Raises:
        FlSimError: if a text that a page takes in is not there, or a link of it leads nowhere.
    """
    components = component_pages(Catalogue())
    first = {
        "reference/index.md": ("Overview", _index(components)),
        "reference/command-line.md": ("Command line", command_page()),
        "reference/python.md": ("Python", python_page()),
        "reference/columns.md": ("Columns of the long table", column_page()),
    }
    return first | components | notebook_pages() | study_pages()


def contents(part: str, pages: dict[str, Page]) -> list[dict[str, str]]:
    """Return the pages of a part as MkDocs's contents have them: title and path."""
    return [{title: path} for path, (title, _) in pages.items() if path.startswith(f"{part}/")]


def _index(components: dict[str, Page]) -> str:
    lines = [f"- [{title}]({path.rpartition('/')[2]})" for path, (title, _) in components.items()]
    return (
        "# Reference\n\nMade from the code when this site was built; `fl-sim list` and `fl-sim "
        "show NAME` say the same on a terminal, of the version that is installed.\n\n"
        "- [Command line](command-line.md)\n- [Python](python.md)\n"
        "- [Columns of the long table](columns.md)\n" + "\n".join(lines) + "\n"
    )
