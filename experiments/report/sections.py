"""The parts of a report: on one scenario, and on several."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from experiments.report.cells import Table
from experiments.report.charts import LineChart, ParetoChart
from experiments.report.comparison import failed_table, overview_table, paired_tables
from experiments.report.leaks import extractions_table, hospitals_table, leakage_table
from experiments.report.measured import Measurements, Words
from experiments.report.origins import component_line
from experiments.report.panels import round_charts, trade_offs
from experiments.report.runs import Group, Sources
from experiments.report.sheets import Sheet, sheets_of_group, sheets_of_groups
from experiments.report.tabulate import (
    bounds_table,
    cost_table,
    epochs_table,
    layers_table,
    other_table,
    payload_table,
    places_table,
    sent_table,
    utility_table,
)


@dataclass(frozen=True)
class Detail:
    """Something to open: tables that not every reader wants."""

    summary: str
    tables: list[Table]


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    anchor: str
    title: str
    intro: str = ""
    sheets: list[Sheet] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: Sequence[LineChart | ParetoChart] = field(default_factory=list)
    details: list[Detail] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return not (self.sheets or self.tables or self.charts or self.details)

    @property
    def every_table(self) -> list[Table]:
        """Its tables, those to open among them."""
        return [*self.tables, *(table for detail in self.details for table in detail.tables)]


def sections_of_group(
    group: Group, measured: Measurements, images: int, prefix: str = ""
) -> list[Section]:
    """Return what there is to show of one scenario.

    Args:
        group: its runs.
        measured: its numbers.
        images: shown in each strip.
        prefix: of the anchors, which are unique on a page.
    """
    words = Words(group)
    sections = [
        Section(
            f"{prefix}images",
            "Images",
            intro="The first of the stolen images, in their order, and what was read back from the "
            "model file with the attacker’s key. The number under an image is its SSIM.",
            sheets=sheets_of_group(group, images),
        ),
        _leakage(measured, words, prefix),
        _payload(measured, words, prefix),
        Section(f"{prefix}utility", "Utility", tables=_there(utility_table(measured, words))),
        Section(f"{prefix}rounds", "Round by round", charts=round_charts(group, measured, words)),
        _defense(group, prefix),
        _cost(group, measured, words, prefix),
    ]
    return [section for section in sections if not section.empty]


def _leakage(measured: Measurements, words: Words, prefix: str) -> Section:
    details = [
        *_detail("Every extraction", extractions_table(measured, words)),
        *_detail("By malicious hospital", hospitals_table(measured, words)),
    ]
    tables = _there(leakage_table(measured, words))
    return Section(f"{prefix}leakage", "Leakage", tables=tables, details=details)


def _payload(measured: Measurements, words: Words, prefix: str) -> Section:
    tables = _there(payload_table(measured, words), places_table(measured, words))
    details = _detail("What was hidden", sent_table(measured))
    return Section(f"{prefix}payload", "Payload", tables=tables, details=details)


def _defense(group: Group, prefix: str) -> Section:
    return Section(
        f"{prefix}defence",
        "The defence",
        intro=component_line(group, "defense"),
        tables=_there(layers_table(group)),
        details=_detail("Loss and utility as it went", epochs_table(group)),
    )


def _cost(group: Group, measured: Measurements, words: Words, prefix: str) -> Section:
    bounds = bounds_table(measured, words)
    tables = _there(bounds, cost_table(measured, words, group.federated))
    details = _detail("Further measurements", other_table(measured, words))
    return Section(f"{prefix}cost", "Cost", tables=tables, details=details)


def sections_of_all(
    sources: Sources, measured: Sequence[Measurements], images: int
) -> list[Section]:
    """Return what several scenarios show side by side.

    Args:
        sources: the scenarios.
        measured: the numbers of each.
        images: shown in each strip.
    """
    groups = sources.groups
    failed = [failed_table(sources.failed)] if sources.failed else []
    sections = [
        Section("overview", "Overview", tables=[overview_table(groups, measured), *failed]),
        Section(
            "trade-off",
            "Privacy against utility",
            charts=trade_offs(groups, measured),
            intro="What each defence leaves of the leak and of the model’s worth; up and to the "
            "left is better. Dashed lines are floors. The line joins the defences that no other "
            "one beats. Numbers are those of the overview.",
        ),
        _pairs(paired_tables(sources, measured)),
        Section(
            "images",
            "Images",
            intro="What was read back from the model files with the attackers’ keys, next to the "
            "same stolen images. The number under an image is its SSIM.",
            sheets=sheets_of_groups(groups, images),
        ),
    ]
    return [section for section in sections if not section.empty]


def _pairs(tables: Sequence[Table]) -> Section:
    return Section(
        "pairs",
        "Against no defence, in pairs",
        tables=list(tables[:1]),
        details=[Detail(table.caption, [table]) for table in tables[1:]],
        intro="Differences on the same attacked models, seed by seed, with 95 % confidence "
        "intervals; p-values are corrected for the number of tests (Holm). With n pairs, "
        "Wilcoxon’s p is never below 2 to the power of 1 - n.",
    )


def _there(*tables: Table | None) -> list[Table]:
    return [table for table in tables if table is not None]


def _detail(summary: str, table: Table | None) -> list[Detail]:
    return [Detail(summary, [table])] if table is not None else []
