"""A report as a page: which parts there are, in what order, and the template that draws them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from experiments.report.charts import Chart, Point, Series, line_chart, pareto_chart
from experiments.report.measured import Measurements, Words, number, range_text
from experiments.report.sheets import Sheet, sheets_of_group, sheets_of_groups
from experiments.report.sources import IDENTIFIED, Group, Run, Sources, flat, plain, sentence_case
from experiments.report.story import KeyFigure, Story, compare_headline, compare_sentences
from experiments.report.tabulate import (
    Block,
    Cell,
    Row,
    Table,
    cost_table,
    epochs_table,
    extractions_table,
    hospitals_table,
    layers_table,
    leakage_table,
    other_table,
    overview_table,
    payload_table,
    places_table,
    sent_table,
    utility_table,
)
from fl_sim.errors import FlSimError, printable
from fl_sim.metrics.vocabulary import column_label, known, split_column
from fl_sim.statistics import Interval
from fl_sim.words import STRONGEST

DETAILED = 6
"""Scenarios up to which each has its own chapter; beyond, a report compares."""


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
    charts: list[Chart] = field(default_factory=list)
    details: list[Detail] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return not (self.sheets or self.tables or self.charts or self.details)


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
    sections = _sections(group, measured, images, "")
    return Page(
        title=f"{story.headline} – fl-sim report",
        eyebrow=_eyebrow(group),
        headline=story.headline,
        sentences=story.sentences,
        key_figures=story.key_figures,
        facts=_facts([group]),
        sections=sections,
        chapters=[],
        settings=_settings([group]),
        provenance=_provenance(sources.runs),
        tables=[({}, table) for table in _tables(sections)],
    )


def _page_of_many(sources: Sources, measured: list[Measurements], images: int) -> Page:
    groups = sources.groups
    overview = Section(
        "overview", "Overview", tables=[overview_table(groups, measured), *_failed(sources)]
    )
    parts = [overview, _trade_off(groups, measured), _in_pairs(sources), _gallery(groups, images)]
    sections = [part for part in parts if not part.empty]
    found: list[tuple[dict[str, str], Table]] = [({}, table) for table in _tables(sections)]
    chapters = []
    for group, numbers in zip(groups, measured, strict=True):
        own = _sections(group, numbers, images, f"s{group.number}-")
        found += [(group.labels, table) for table in _tables(own)]
        story = Story(group, numbers)
        if len(groups) <= DETAILED:
            chapters.append(
                Chapter(
                    f"s{group.number}", f"{group.number}  {group.label}", story.headline,
                    story.sentences, story.key_figures, own,
                )
            )  # fmt: skip
    headline = compare_headline(groups)
    return Page(
        title=f"{headline} – fl-sim report",
        eyebrow=", ".join(dict.fromkeys(_place(group) for group in groups)),
        headline=headline,
        sentences=compare_sentences(groups, measured),
        key_figures=[],
        facts=_facts(groups),
        sections=sections,
        chapters=chapters,
        settings=_settings(groups),
        provenance=_provenance(sources.runs),
        tables=found,
    )


def _sections(group: Group, measured: Measurements, images: int, prefix: str) -> list[Section]:
    """Return what there is to show of one group."""
    words = Words(group)
    leakage = Section(
        f"{prefix}leakage", "Leakage",
        tables=_there(leakage_table(measured, words)),
        details=[
            *_detail("Every extraction", extractions_table(measured, words)),
            *_detail("By malicious hospital", hospitals_table(measured, words)),
        ],
    )  # fmt: skip
    payload = Section(
        f"{prefix}payload", "Payload",
        tables=_there(payload_table(measured, words), places_table(measured, words)),
        details=_detail("What was hidden", sent_table(measured)),
    )  # fmt: skip
    defense = Section(
        f"{prefix}defence", "The defence", intro=_component_line(group, "defense"),
        tables=_there(layers_table(group)),
        details=_detail("Loss and utility as it went", epochs_table(group)),
    )  # fmt: skip
    sections = [
        Section(
            f"{prefix}images", "Images",
            intro="The first of the stolen images, in their order, and what was read back from the "
            "model file with the attacker’s key. The number under an image is its SSIM.",
            sheets=sheets_of_group(group, images),
        ),
        leakage,
        payload,
        Section(f"{prefix}utility", "Utility", tables=_there(utility_table(measured, words))),
        Section(f"{prefix}rounds", "Round by round", charts=_round_charts(group, measured, words)),
        defense,
        Section(
            f"{prefix}cost", "Cost",
            tables=_there(cost_table(measured, words, group.federated)),
            details=_detail("Further measurements", other_table(measured, words)),
        ),
    ]  # fmt: skip
    return [section for section in sections if not section.empty]


def _round_charts(group: Group, measured: Measurements, words: Words) -> list[Chart]:
    rounds = [r for r in measured.rounds if r > 0]
    if len(rounds) < 2:
        return []

    def chart(
        title: str, metric: str, extraction: str, floors: Sequence[tuple[str, float]],
        limits: tuple[float, float] | None = None, bounds: tuple[float, float] = (0.0, 1.0),
    ) -> list[Chart]:  # fmt: skip
        series = [
            Series(words.stage(s), [measured.get(s, metric, extraction, r) for r in rounds])
            for s in measured.stages
        ]
        series = [s for s in series if any(s.values)]
        known = [(name, value) for name, value in floors if value == value]
        return [line_chart(title, rounds, series, known, limits, bounds)] if series else []

    floor = measured.floor
    scratch = [("from scratch", floor.mean)] if floor else []
    charts: list[Chart] = []
    for metric in measured.main_leaks:
        floor_there = [(_floor_mark(metric), measured.floor_of(measured.stages[-1], metric))]
        limits = (0.0, 1.0) if _is_share(metric) else None
        bounds = (0.0, 1.0) if _is_share(metric) else known(metric).range
        charts += chart(_leak_title(metric), metric, STRONGEST, floor_there, limits, bounds)
    if measured.utility:
        charts += chart(
            f"Utility ({column_label(measured.utility)})",
            measured.utility,
            "-",
            scratch,
            bounds=(0.0, 1.0),
        )
    charts += chart(
        "Images intact, bit for bit", "images_intact", "-", [], bounds=(0.0, float("inf"))
    )
    charts += chart("Wrong bits (share)", "bit_error_rate", "-", [("chance", 0.5)], (0.0, 0.6))
    return charts


def _leak_title(metric: str) -> str:
    """Return what stands above a chart of a metric of extractions."""
    if metric == IDENTIFIED:
        return "Images identified (share)"
    return column_label(f"{metric} {STRONGEST}").replace(",", "")


def _floor_mark(metric: str) -> str:
    """Return what the floor of a metric of extractions is called beside its line."""
    floor = known(next(iter(known(metric).floors), ""))
    return floor.mark or floor.title


def _is_share(metric: str) -> bool:
    """Whether a metric's values are drawn from 0 to 1."""
    return known(metric).range[1] == 1.0


def _trade_off(groups: Sequence[Group], measured: Sequence[Measurements]) -> Section:
    """Return privacy-utility plots, one for each set of scenarios that differ in the defence."""
    families: dict[tuple[str, ...], list[tuple[Group, Measurements]]] = {}
    for group, numbers in zip(groups, measured, strict=True):
        if group.attacked and numbers.utility:
            key = tuple(
                text for axis, text in group.labels.items()
                if axis not in ("defense", "settings") and not axis.startswith("defense.")
            )  # fmt: skip
            facts = (group.fact("attack"), group.fact("dataset"), group.fact("mode"))
            families.setdefault((*facts, *key, str(numbers.utility)), []).append((group, numbers))
    charts = []
    for members in families.values():
        for metric in dict.fromkeys(leak for _, numbers in members for leak in numbers.main_leaks):
            if _is_share(metric):
                charts += _pareto(members, metric)
    return Section(
        "trade-off", "Privacy against utility", charts=charts,
        intro="What each defence leaves of the leak and of the model’s worth; up and to the left "
        "is better. Dashed lines are floors. The line joins the defences that no other one beats. "
        "Numbers are those of the overview.",
    )  # fmt: skip


def _pareto(members: Sequence[tuple[Group, Measurements]], metric: str) -> list[Chart]:
    name = column_label(metric) if metric == IDENTIFIED else _leak_title(metric)
    points, leak_floors, utility_floors = [], {}, {}
    utility = str(members[0][1].utility)
    for group, numbers in members:
        leak: Interval | None = numbers.get("release", metric, STRONGEST)
        worth: Interval | None = numbers.get("release", utility)
        if leak is None or worth is None:
            continue
        label = _defense_label(group, [member for member, _ in members])
        points.append(Point(group.number, label, leak, worth))
        leak_floors[_floor_mark(metric)] = numbers.floor_of("release", metric)
        if numbers.floor:
            utility_floors["from scratch"] = numbers.floor.mean
    if len(points) < 2:
        return []
    group = members[0][0]
    same = [
        group.said(axis) for axis in group.labels
        if len({member.labels[axis] for member, _ in members}) == 1
    ]  # fmt: skip
    title = ", ".join(same) or plain(group.fact("attack"))
    floors = [(n, v) for n, v in leak_floors.items() if v == v]
    return [
        pareto_chart(
            f"{title}: {name.lower() if metric == IDENTIFIED else name}", name,
            column_label(utility), points, floors, list(utility_floors.items()),
            known(metric).lower_leaks,
        )
    ]  # fmt: skip


def _defense_label(group: Group, family: Sequence[Group]) -> str:
    """Return what tells a group from the others of its chart: the defence, and its settings."""
    axes = [a for a in group.labels if len({member.labels[a] for member in family}) > 1]
    said = [group.said(axis) for axis in axes]
    return ", ".join(part for part in said if part) or plain(group.fact("defense"))


def _in_pairs(sources: Sources) -> Section:
    """Return what each defence changes on the same attacked models, tested over seeds."""
    from experiments.tables.summary import compare

    tables = []
    defenses = {group.labels.get("defense") for group in sources.groups}
    several = all(len(group.runs) > 1 for group in sources.groups)
    if "none" in defenses and len(defenses) > 1 and several:
        attacked = sources.table[sources.table["attack"] != "none"]
        measured = [Measurements(group) for group in sources.groups]
        leaks = dict.fromkeys(metric for numbers in measured for metric in numbers.main_leaks)
        utilities = [numbers.utility for numbers in measured if numbers.utility]
        for metric in (*(f"{leak} {STRONGEST}" for leak in leaks), *utilities[:1]):
            try:
                frame = compare(attacked, "defense", "none", metric)
            except FlSimError:  # cells that do not pair have no such comparison
                continue
            tables.append(_paired_table(frame, metric))
    return Section(
        "pairs", "Against no defence, in pairs", tables=tables[:1],
        details=[Detail(table.caption, [table]) for table in tables[1:]],
        intro="Differences on the same attacked models, seed by seed, with 95 % confidence "
        "intervals; p-values are corrected for the number of tests (Holm). With n pairs, "
        "Wilcoxon’s p is never below 2 to the power of 1 - n.",
    )  # fmt: skip


def _paired_table(frame: Any, metric: str) -> Table:
    fields = ("baseline", "shift", "low", "high", "n", "missing", "p_t", "p_wilcoxon")
    axes = [c for c in frame.columns if c not in fields and not str(c).startswith("p_")]
    blocks: dict[str, list[Row]] = {}
    for line in frame.to_dict("records"):
        shift = Interval(line["shift"], line["low"], line["high"], line["n"], line["missing"])
        numbers = [shift, *(Interval(line[c], *_NO_ENDS) for c in ("p_t_holm", "p_wilcoxon_holm"))]
        cells = [
            Cell(_signed(shift.mean), shift, range_text(shift)),
            *(_number_cell(i) for i in numbers[1:]),
        ]
        name = ", ".join(str(line[axis]) for axis in axes if axis != "defense")
        pairs = Interval(float(line["n"]), *_NO_ENDS)
        blocks.setdefault(name, []).append(Row(str(line["defense"]), [*cells, _number_cell(pairs)]))
    base = split_column(metric)[0]
    return Table(
        f"pairs-{base}", f"{column_label(metric)}, at release: change against no defence",
        "Defence", ["Change", "p, paired t-test", "p, Wilcoxon", "Pairs"],
        [Block(name, rows) for name, rows in blocks.items()],
    )  # fmt: skip


_NO_ENDS = (float("nan"), float("nan"), 1)


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + number(value)


def _number_cell(interval: Interval) -> Cell:
    return Cell(number(interval.mean), interval)


def _gallery(groups: Sequence[Group], images: int) -> Section:
    return Section(
        "images", "Images",
        intro="What was read back from the model files with the attackers’ keys, next to the "
        "same stolen images. The number under an image is its SSIM.",
        sheets=sheets_of_groups(groups, images),
    )  # fmt: skip


def _failed(sources: Sources) -> list[Table]:
    if not sources.failed:
        return []
    columns = [name for name in sources.failed[0] if name != "cell"]
    rows = [
        Row(line.get("cell", ""), [Cell(line.get(name, "")) for name in columns])
        for line in sources.failed
    ]
    return [
        Table("failed", "Cells that failed", "Cell", columns, [Block("", rows)],
              text=tuple(range(len(columns))))
    ]  # fmt: skip


def _facts(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Return what was run, for people; several values of one kind side by side."""
    runs = [run for group in groups for run in group.runs]
    found = [
        ("Data", _joined(_dataset(run) for run in runs)),
        ("Model", _joined(plain(group.fact("model")) for group in groups)),
        ("Attack", _joined(_component(group, "attack") for group in groups)),
        ("Defence", _joined(_component(group, "defense") for group in groups)),
        ("Where", _joined(_place(group) for group in groups)),
        ("Training", _joined(_training(run) for run in runs)),
        ("Seeds", _joined(str(seed) for seed in sorted({run.seed for run in runs}))),
    ]
    return [(term, text) for term, text in found if text]


def _joined(texts: Any) -> str:
    return "; ".join(text for text in dict.fromkeys(texts) if text)


def _dataset(run: Run) -> str:
    name = plain(str(run.table["dataset"].iloc[0]))
    files = [f"{f.get('name')} ({str(f.get('sha256'))[:12]}…)" for f in _dicts(run, "data")]
    return f"{name}, {', '.join(files)}" if files else name


def _place(group: Group) -> str:
    if not group.federated:
        return "data lake"
    federation = group.first.scenario.get("federation")
    text = f"federation of {group.fact('clients')} hospitals, {plain(group.fact('aggregator'))}"
    if isinstance(federation, dict):
        text += f", {federation.get('rounds')} rounds"
        partition = federation.get("partition")
        if isinstance(partition, dict):
            alpha = f" {partition.get('alpha')}" if partition.get("scheme") == "dirichlet" else ""
            text += f", {plain(str(partition.get('scheme')))}{alpha} partition"
    return text


def _training(run: Run) -> str:
    training = run.scenario.get("training")
    if not isinstance(training, dict):
        return ""
    each = " a round" if run.scenario.get("federation") else ""
    parts = (
        f"{training.get('epochs')} epochs{each}",
        str(training.get("optimizer")),
        f"learning rate {training.get('learning_rate')}",
        f"batches of {training.get('batch_size')}",
    )
    return ", ".join(parts)


def _component(group: Group, column: str) -> str:
    """Return a component's name with the settings that its scenario gives images and the like."""
    name = group.fact(column)
    if name == "none":
        return "none"
    line = _summary(column, name)
    return f"{plain(name)}: {line}" if line else plain(name)


def _component_line(group: Group, column: str) -> str:
    text = _component(group, column)
    return "" if text == "none" else f"{sentence_case(text)}."


@cache
def _summary(column: str, name: str) -> str:
    """Return a registered component's own line; empty for one from elsewhere."""
    from fl_sim.attacks.base import ATTACKS
    from fl_sim.defenses.base import DEFENSES

    entries = (ATTACKS if column == "attack" else DEFENSES).entries()
    return next((entry.summary for entry in entries if entry.name == name), "")


def _eyebrow(group: Group) -> str:
    against = f" against {plain(group.fact('defense'))}" if group.defended else ""
    parts = (
        plain(group.fact("attack")) + against if group.attacked else "honest training",
        plain(group.fact("dataset")), plain(group.fact("model")),
        "federation" if group.federated else "data lake",
    )  # fmt: skip
    return " · ".join(parts)


def _settings(groups: Sequence[Group]) -> list[Table]:
    """Return every setting; of several scenarios those they share, and what each has of its own."""
    known = [(group, flat(group.first.scenario)) for group in groups]
    known = [(group, values) for group, values in known if values]
    if not known:
        return []
    first = known[0][1]
    shared = {k: v for k, v in first.items() if all(o.get(k) == v for _, o in known)}
    shared.pop("seed", None)
    caption = "Every setting" if len(known) == 1 else "Settings that all scenarios share"
    tables = [_text_table("settings", caption, "Setting", shared.items())]
    if len(known) > 1:
        own = [
            (f"{group.number}  {group.label}",
             ", ".join(f"{k} {v}" for k, v in values.items() if k not in shared and k != "seed"))
            for group, values in known
        ]  # fmt: skip
        tables.append(_text_table("own-settings", "Settings of each", "Scenario", own))
    return tables


def _provenance(runs: Sequence[Run]) -> list[Table]:
    """Return where the numbers come from: data files, versions, machines."""
    files = {}
    for run in runs:
        for file in _dicts(run, "data"):
            text = f"SHA-256 {file.get('sha256')}"
            if isinstance(file.get("official"), bool):
                text += "; the published file" if file["official"] else "; not the published file"
            files[str(file.get("name"))] = text
    tables = [_text_table("data", "Data files", "File", files.items())] if files else []
    for key, caption in (("versions", "Versions"), ("machine", "Machine")):
        merged: dict[str, list[str]] = {}
        for run in runs:
            values = run.about.get(key)
            for name, value in values.items() if isinstance(values, Mapping) else ():
                merged.setdefault(str(name), []).append("none" if value is None else str(value))
        if merged:
            lines = [(name, _joined(values)) for name, values in merged.items()]
            tables.append(_text_table(key, caption, "Package" if key == "versions" else "", lines))
    began = []
    for run in runs:
        since = f", began {run.about['began']}" if "began" in run.about else ""
        began.append((run.name, f"seed {run.seed}{since}"))
    return [*tables, _text_table("runs", "Runs", "Folder", began)]


def _text_table(name: str, caption: str, corner: str, lines: Any) -> Table:
    rows = [Row(str(head), [Cell(str(text))]) for head, text in lines]
    return Table(
        name,
        caption,
        corner or "Part",
        ["Value"],
        [Block("", rows)],
        tall=len(rows) > 24,
        text=(0,),
    )


def _dicts(run: Run, key: str) -> list[dict[str, Any]]:
    found = run.about.get(key)
    return [part for part in found if isinstance(part, dict)] if isinstance(found, list) else []


def _there(*tables: Table | None) -> list[Table]:
    return [table for table in tables if table is not None]


def _detail(summary: str, table: Table | None) -> list[Detail]:
    return [Detail(summary, [table])] if table is not None else []


def _tables(sections: Sequence[Section]) -> list[Table]:
    return [
        table
        for section in sections
        for table in [*section.tables, *(t for d in section.details for t in d.tables)]
    ]
