"""Where MkDocs calls in: made pages join those that were written by hand."""

from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from experiments.handbook.components import Page as MadePage
from experiments.handbook.contents import PARTS, contents, made_pages
from experiments.handbook.notebooks import notebook_pictures
from experiments.handbook.studies import first_picture, pictures
from experiments.handbook.texts import with_texts

_made: dict[str, MadePage] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the pages, and put them into the contents where a part is named."""
    _made.clear()
    _made.update(made_pages())
    config.nav = [_filled(entry) for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the made pages and the pictures."""
    for path, (_, text) in _made.items():
        files.append(File.generated(config, path, content=text))
    for path, picture in pictures().items():
        files.append(File.generated(config, path, abs_src_path=str(picture)))
    for path, content in notebook_pictures().items():
        files.append(File.generated(config, path, content=content))
    files.append(File.generated(config, "assets/headline.webp", content=first_picture()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Take texts of the repository in."""
    return with_texts(page.file.src_uri, markdown)


def _filled(entry: Any) -> Any:
    if isinstance(entry, dict):
        return (
            {k: contents(v, _made) if v in PARTS else v for k, v in entry.items()}
            if all(isinstance(v, str) for v in entry.values())
            else entry
        )
    return entry
