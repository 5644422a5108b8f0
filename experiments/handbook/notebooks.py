"""The notebooks as pages, with what came out of them; their pictures stand beside."""

import functools
import re
from typing import Any

from experiments.handbook.components import Page
from experiments.notebooks import NOTEBOOKS, path_of
from experiments.notebooks.execution import read
from fl_sim.errors import FlSimError

_WHERE = "notebooks"
_STYLE = re.compile(r"<style scoped>.*?</style>\s*", re.DOTALL)
_TABLE = re.compile(r'<table border="1" class="dataframe">')


def notebook_pages() -> dict[str, Page]:
    """Return title and text of the notebooks' pages by their path, an index first.

    Raises:
        FlSimError: if a notebook cannot be read, or nothing came out of it.
    """
    titles = {name: title_of(name) for name in NOTEBOOKS}
    pages = {f"{_WHERE}/index.md": ("Overview", _index(titles))}
    for name, title in titles.items():
        pages[f"{_WHERE}/{name}.md"] = (title, _written(name)[0])
    return pages


def notebook_pictures() -> dict[str, bytes]:
    """Return the pictures that came out of the notebooks, by their place on the site."""
    return {
        f"{_WHERE}/{place}": content
        for name in NOTEBOOKS
        for place, content in _written(name)[1].items()
    }


def title_of(name: str) -> str:
    """Return the first heading of a notebook.

    Raises:
        FlSimError: if its first cell has none.
    """
    first = str(read(path_of(name)).cells[0].source).partition("\n")[0]
    if not first.startswith("# "):
        raise FlSimError(f"{name}.ipynb does not begin with a heading; give its first cell one.")
    return first.removeprefix("# ")


@functools.cache
def _written(name: str) -> tuple[str, dict[str, bytes]]:
    """Return a notebook's page and its pictures by path, beside the page."""
    from nbconvert import MarkdownExporter

    notebook: Any = read(path_of(name))
    if not any(cell.get("outputs") for cell in notebook.cells):
        raise FlSimError(f"{name}.ipynb has no outputs; run make notebooks.")
    resources = {"output_files_dir": f"{name}_files", "unique_key": name}
    exported, found = MarkdownExporter().from_notebook_node(notebook, resources)
    # As the theme has it: tables without a class are its own, and scroll where they are too wide.
    text = _TABLE.sub("<table>", _STYLE.sub("", exported)).replace(
        "![png]", "![What the cell draws]"
    )
    said = f"\n\n*This page is `experiments/notebooks/{name}.ipynb` with what came out of it.*\n"
    title, _, rest = text.strip().partition("\n")
    return f"{title}{said}{rest}\n", dict(found["outputs"])


def _index(titles: dict[str, str]) -> str:
    lines = [f"- [{title}]({name}.md)" for name, title in titles.items()]
    return (
        "# Notebooks\n\nEach shows one thing from beginning to end in a minute or two, with small "
        "settings and real images. They lie in `experiments/notebooks` and were run as they stand; "
        "`make notebooks` runs them anew.\n\n" + "\n".join(lines) + "\n"
    )
