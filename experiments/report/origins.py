"""What was run, where the numbers come from, and with which settings."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from experiments.report.cells import TALL, Block, Cell, Row, Table
from experiments.report.runs import Group, Run
from experiments.report.words import flat, plain, sentence_case


def facts(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Return what was run, for people; several values of one kind side by side."""
    runs = [run for group in groups for run in group.runs]
    found = [
        ("Data", _joined(_dataset(run) for run in runs)),
        ("Model", _joined(plain(group.fact("model")) for group in groups)),
        ("Attack", _joined(_component(group, "attack") for group in groups)),
        ("Defence", _joined(_component(group, "defense") for group in groups)),
        ("Where", _joined(place(group) for group in groups)),
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


def place(group: Group) -> str:
    """Return where a model was trained, in words."""
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


def component_line(group: Group, column: str) -> str:
    """Return what a scenario's attack or defence is, as a sentence; empty where it has none."""
    text = _component(group, column)
    return "" if text == "none" else f"{sentence_case(text)}."


@cache
def _summary(column: str, name: str) -> str:
    """Return a registered component's own line; empty for one from elsewhere."""
    from fl_sim.attacks.base import ATTACKS
    from fl_sim.defenses.base import DEFENSES

    entries = (ATTACKS if column == "attack" else DEFENSES).entries()
    return next((entry.summary for entry in entries if entry.name == name), "")


def eyebrow(group: Group) -> str:
    """Return what was run, in one line above a headline."""
    against = f" against {plain(group.fact('defense'))}" if group.defended else ""
    parts = (
        plain(group.fact("attack")) + against if group.attacked else "honest training",
        plain(group.fact("dataset")),
        plain(group.fact("model")),
        "federation" if group.federated else "data lake",
    )
    return " · ".join(parts)


def settings(groups: Sequence[Group]) -> list[Table]:
    """Return every setting; of several scenarios those they share, and what each has of its own."""
    known = [(group, values) for group in groups if (values := flat(group.first.scenario))]
    if not known:
        return []
    first = known[0][1]
    shared = {k: v for k, v in first.items() if all(o.get(k) == v for _, o in known)}
    shared.pop("seed", None)
    caption = "Every setting" if len(known) == 1 else "Settings that all scenarios share"
    tables = [_text_table("settings", caption, "Setting", shared.items())]
    if len(known) > 1:
        own = []
        for group, values in known:
            differing = [f"{k} {v}" for k, v in values.items() if k not in shared and k != "seed"]
            own.append((f"{group.number}  {group.label}", ", ".join(differing)))
        tables.append(_text_table("own-settings", "Settings of each", "Scenario", own))
    return tables


def provenance(runs: Sequence[Run]) -> list[Table]:
    """Return where the numbers come from: data files, versions, machines."""
    files = {str(file.get("name")): _file(file) for run in runs for file in _dicts(run, "data")}
    began = []
    for run in runs:
        since = f", began {run.about['began']}" if "began" in run.about else ""
        began.append((run.name, f"seed {run.seed}{since}"))
    named = [
        ("data", "Data files", "File", files),
        ("versions", "Versions", "Package", _merged(runs, "versions")),
        ("machine", "Machine", "Part", _merged(runs, "machine")),
        ("runs", "Runs", "Folder", dict(began)),
    ]
    return [
        _text_table(name, caption, corner, lines.items())
        for name, caption, corner, lines in named
        if lines
    ]


def _file(about: Mapping[str, Any]) -> str:
    text = f"SHA-256 {about.get('sha256')}"
    if isinstance(about.get("official"), bool):
        text += "; the published file" if about["official"] else "; not the published file"
    return text


def _merged(runs: Sequence[Run], key: str) -> dict[str, str]:
    """Return what runs say of their versions, say; several values of one name side by side."""
    found: dict[str, list[str]] = {}
    for run in runs:
        values = run.about.get(key)
        for name, value in values.items() if isinstance(values, Mapping) else ():
            found.setdefault(str(name), []).append("none" if value is None else str(value))
    return {name: _joined(values) for name, values in found.items()}


def _text_table(name: str, caption: str, corner: str, lines: Any) -> Table:
    rows = [Row(str(head), [Cell(str(text))]) for head, text in lines]
    return Table(
        name,
        caption,
        corner,
        ["Value"],
        [Block("", rows)],
        tall=len(rows) > TALL,
        text=(0,),
    )


def _dicts(run: Run, key: str) -> list[dict[str, Any]]:
    found = run.about.get(key)
    return [part for part in found if isinstance(part, dict)] if isinstance(found, list) else []
