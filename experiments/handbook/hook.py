"""Where MkDocs calls in: made pages join those that were written by hand."""

from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from experiments.handbook.components import Page as MadePage
from experiments.handbook.contents import PARTS, contents, made_pages
from experiments.handbook.leaderboard import CSV, MARK, PATH, leaderboard
from experiments.handbook.notebooks import notebook_pictures
from experiments.handbook.studies import first_picture, pictures
from experiments.handbook.texts import with_texts, without_marks

_made: dict[str, MadePage] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the pages, and put them into the contents where a part is named."""
    _made.clear()
    _made.update(made_pages())
    config.nav = _filled(config.nav or [])
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
    files.append(File.generated(config, CSV, content=leaderboard()[1]))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Take texts of the repository in, and the leaderboard."""
    if page.file.src_uri == PATH:
        markdown = markdown.replace(MARK, leaderboard()[0])
    return without_marks(with_texts(page.file.src_uri, markdown))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Name the theme's search dialog for screen readers."""
    dialog = 'data-md-component="search" role="dialog"'
    return output.replace(dialog, f'{dialog} aria-label="Search"')


def _filled(entry: Any) -> Any:
    """Return an entry of the contents, parts that are named in it replaced by their pages."""
    if isinstance(entry, list):
        return [_filled(one) for one in entry]
    if isinstance(entry, dict):
        return {title: _filled(one) for title, one in entry.items()}
    return contents(entry, _made) if entry in PARTS else entry
