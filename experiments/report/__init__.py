"""Reports: what runs and sweeps measured, as one page that needs nothing else."""

from collections.abc import Iterable
from pathlib import Path

from experiments.report.page import Page, build_page, render
from experiments.report.sources import read_sources
from fl_sim.errors import FlSimError
from fl_sim.files import write_atomically

__all__ = ["write_report", "write_tables"]

IMAGES = 16


def write_report(
    folders: Iterable[Path | str] | Path | str,
    out: Path | str = "report.html",
    images: int = IMAGES,
    tables: Path | str | None = None,
) -> Path:
    """Write a report on runs and sweeps, as one HTML page that loads nothing.

    Runs of the same scenario with several seeds are reported as means with intervals. Several
    scenarios are compared; up to six of them also have a chapter each.

    Args:
        folders: of runs or sweeps, as ``fl-sim run`` and ``fl-sim sweep`` write them.
        out: of the page.
        images: shown in each strip of recovered images, at most.
        tables: folder that the tables are written to as well, see :func:`write_tables`.

    Returns:
        ``out``.

    Raises:
        FlSimError: if a folder holds neither a run nor a sweep, or is damaged, or ``out`` is a
            folder; nothing is written then.
    """
    given = [folders] if isinstance(folders, Path | str) else list(folders)
    if images < 0:
        raise FlSimError(f"A report shows 0 images or more, not {images}.")
    path = Path(out)
    if path.is_dir():
        raise FlSimError(
            f"{path} is a folder; give the name of the page, such as {path}/report.html."
        )
    sources = read_sources([Path(folder) for folder in given])
    page = build_page(sources, images)
    content = render(page).encode()
    if tables is not None:
        write_tables(page, Path(tables))
    return write_atomically(path, content)


def write_tables(page: Page, folder: Path) -> list[Path]:
    """Write a report's tables: CSV with exact numbers, Markdown and LaTeX with rounded ones.

    Args:
        page: as :func:`experiments.report.page.build_page` returns it.
        folder: made where missing.

    Returns:
        The files: ``<table>.csv``, ``.md`` and ``.tex`` for each kind of table; several scenarios
        stand below each other, told apart by their labels.
    """
    from experiments.report.cells import frame
    from experiments.tables.summary import to_csv, to_latex, to_markdown

    kinds: dict[str, list[int]] = {}
    for place, (_, table) in enumerate(page.tables):
        kinds.setdefault(table.name, []).append(place)
    written = []
    for name, places in kinds.items():
        of_kind = [page.tables[place] for place in places]
        said = frame(of_kind, exact=False)
        texts = {
            "csv": to_csv(frame(of_kind, exact=True)),
            "md": to_markdown(said),
            "tex": to_latex(said, of_kind[0][1].caption),
        }
        for ending, text in texts.items():
            written.append(write_atomically(folder / f"{name}.{ending}", text.encode()))
    return written
