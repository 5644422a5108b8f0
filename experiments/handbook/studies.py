"""The results: the index of studies, a page a study, and their pictures."""

import io
from pathlib import Path

from experiments.handbook.components import Page
from experiments.handbook.texts import ROOT, STUDIES, place_of, text_of


def study_pages() -> dict[str, Page]:
    """Return the pages of results by their path; a study without a page of its own has none."""
    index = "results/index.md"
    pages = {index: ("Studies", text_of(f"{STUDIES}/README.md", index))}
    for file in sorted((ROOT / STUDIES).glob("*/README.md")):
        path = f"results/{file.parent.name}.md"
        text = text_of(f"{STUDIES}/{file.parent.name}/README.md", path)
        pages[path] = (text.partition("\n")[0].lstrip("# "), text)
    return pages


def pictures() -> dict[str, Path]:
    """Return the studies' pictures by their place on the site."""
    files = sorted((ROOT / STUDIES).glob("*/*.png"))
    placed = ((place_of(file.relative_to(ROOT).as_posix()), file) for file in files)
    return {place: file for place, file in placed if place is not None}


def first_picture() -> bytes:
    """Return the picture of the first page, a WebP of a quarter of the PNG's size."""
    from PIL import Image

    small = io.BytesIO()
    with Image.open(ROOT / STUDIES / "defenses/headline.png") as picture:
        picture.convert("RGB").save(small, "WEBP", quality=80)
    return small.getvalue()
