"""A report as a page: what stands where, and the template that draws it."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from experiments.report.cells import Table
from experiments.report.figures import KeyFigure, key_figures
from experiments.report.limits import limited, limited_tables
from experiments.report.measured import Measurements
from experiments.report.origins import eyebrow, facts, place, provenance, settings
from experiments.report.runs import Group, Sources
from experiments.report.sections import Section, sections_of_all, sections_of_group
from experiments.report.story import Story
from experiments.report.summary import compare_headline, compare_sentences
from fl_sim.errors import printable

DETAILED = 6
"""Scenarios up to which each has its own chapter; beyond, a report compares."""


@dataclass(frozen=True)
class Chapter:
    """One scenario of a report on several."""

    anchor: str
    title: str
    headline: str
    sentences: list[str]
    key_figures: list[KeyFigure]
    sections: list[Section]


@dataclass(frozen=True)
class Page:
    """All that the template needs.

    Args:
        title: of the document.
        eyebrow: what was run, above the headline.
        headline: the result, in one line.
        sentences: the result, the first one as lead.
        key_figures: before and after, beside floors.
        facts: what was run, by term.
        sections: of the whole.
        chapters: one a scenario, where there are several.
        settings: every setting, one table a scenario.
        provenance: data files, versions, machines.
        tables: all tables with their groups' labels, for files.
    """

    title: str
    eyebrow: str
    headline: str
    sentences: list[str]
    key_figures: list[KeyFigure]
    facts: list[tuple[str, str]]
    sections: list[Section]
    chapters: list[Chapter]
    settings: list[Table]
    provenance: list[Table]
    tables: list[tuple[dict[str, str], Table]]


def build_page(sources: Sources, images: int) -> Page:
    """Compute everything that a report shows.

    Args:
        sources: runs and sweeps.
        images: shown in each strip.
    """
    measured = [Measurements(group) for group in sources.groups]
    if len(sources.groups) == 1:
        return _page_of_one(sources, measured[0], images)
    return _page_of_many(sources, measured, images)


def render(page: Page) -> str:
    """Return the page as HTML; every text in it is escaped."""
    return str(_environment().get_template("report.html.j2").render(page=page)) + "\n"


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("experiments.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _printable(value: Any) -> Any:
    """Write out control characters of texts, which may come from anybody's file."""
    from markupsafe import Markup

    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _page_of_one(sources: Sources, measured: Measurements, images: int) -> Page:
    group = sources.groups[0]
    story = Story(group, measured)
    sections = sections_of_group(group, measured, images)
    return Page(
        title=f"{story.headline} – fl-sim report",
        eyebrow=eyebrow(group),
        headline=story.headline,
        sentences=story.sentences,
        key_figures=key_figures(story),
        facts=facts([group]),
        sections=sections,
        chapters=[],
        settings=settings([group]),
        provenance=provenance(sources.runs),
        tables=[({}, table) for section in sections for table in section.every_table],
    )


def _page_of_many(sources: Sources, measured: list[Measurements], images: int) -> Page:
    groups = sources.groups
    detailed = len(groups) <= DETAILED
    sections = sections_of_all(sources, measured, images)
    parts = [
        sections_of_group(group, numbers, images if detailed else 0, f"s{group.number}-")
        for group, numbers in zip(groups, measured, strict=True)
    ]
    found: list[tuple[dict[str, str], Table]] = [({}, t) for s in sections for t in s.every_table]
    for group, own in zip(groups, parts, strict=True):
        found += [(group.labels, t) for s in own for t in s.every_table]
    together = zip(groups, measured, parts, strict=True)
    headline = compare_headline(groups)
    return Page(
        title=f"{headline} – fl-sim report",
        eyebrow=", ".join(dict.fromkeys(place(group) for group in groups)),
        headline=headline,
        sentences=compare_sentences(groups, measured),
        key_figures=[],
        facts=facts(groups),
        sections=[limited(section) for section in sections],
        chapters=[_chapter(*one) for one in together] if detailed else [],
        settings=limited_tables(settings(groups)),
        provenance=limited_tables(provenance(sources.runs)),
        tables=found,
    )


def _chapter(group: Group, measured: Measurements, sections: list[Section]) -> Chapter:
    story = Story(group, measured)
    return Chapter(
        f"s{group.number}",
        f"{group.number}  {group.label}",
        story.headline,
        story.sentences,
        key_figures(story),
        sections,
    )
