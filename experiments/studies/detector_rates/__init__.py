"""Study: how often the auditor and the gate are right on networks that none was tuned on.

The thresholds were set while looking at the networks of the study ``audit_rates``. Here is a
population of others (``untuned/``). Three commands, so that a changed auditor is judged on the same
files: ``make`` trains and attacks, ``judge`` asks auditor and gate of each file, ``rates`` counts.
Interrupted, each goes on where it was. Run ``fl-sim study detector_rates --help``.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer

from experiments.studies.audit_rates import CLEAN, draw
from experiments.studies.base import STUDIES, Study
from experiments.studies.detector_rates.untuned import population
from experiments.studies.detector_rates.untuned.member import Member
from experiments.studies.detector_rates.untuned.networks import NETWORKS
from experiments.studies.detector_rates.untuned.written import spec_of
from experiments.studies.published_tables import Column, PublishedTable
from experiments.tables.console import make_console, print_table
from experiments.tables.figures import write_table
from fl_sim.bars import make_progress
from fl_sim.errors import FlSimError, unknown_name
from fl_sim.progress import SILENT, Progress, piece

if TYPE_CHECKING:
    import pandas as pd

    from fl_sim.data.base import Split, Task
    from fl_sim.models.base import ModelSpec

TUNED = Path(__file__).parents[1] / "audit_rates" / "audit.csv"
"""Rates on the networks that thresholds were set on."""

DETECTORS = {
    "alone": "auditor, file alone",
    "stated": "auditor, network stated",
    "gate": "gate",
}
UNREAD = "not read"
_INCOMPLETE = "checks could not run"
_ALARMS = ("suspicious", "carries")
_HELD_OUT = 200


def flagged(verdict: str) -> bool:
    """Whether a verdict says that something is wrong with a file that was read."""
    return verdict.startswith((*_ALARMS, "refused"))


def judge(
    members: list[Member],
    folder: Path,
    data: Path,
    detector: str,
    gate: int = 2,
    progress: Progress = SILENT,
) -> "pd.DataFrame":
    """Ask one detector of every file that it has no row of yet; a row is written as it comes.

    Each detector has a process of its own: a network that was stated is known from then on, and
    the auditor of files alone must not profit from that.

    Args:
        members: of the population; those whose files are not there are left out.
        folder: of the files, and of the rows (``judged-<detector>.csv``).
        data: folder of data files.
        detector: key of ``DETECTORS``.
        gate: how many networks of each kind go through the gate, where that is the detector.
        progress: where to report.

    Returns:
        The rows, one a network.
    """
    import pandas as pd

    path = folder / f"judged-{detector}.csv"
    rows = _read(path) if path.exists() else []
    done = {row["name"] for row in rows}
    asked = [m for m in members if m.path(folder).exists()]
    if detector != "alone":
        asked = [m for m in asked if m.architecture in NETWORKS]
    if detector == "gate":
        asked = _first_of_each_kind(asked, gate)
    left = [member for member in asked if member.name not in done]
    left.sort(key=lambda member: member.path(folder).stat().st_size)  # most rows in little time
    with piece(progress, DETECTORS[detector], len(left)):
        for member in left:
            rows.append(_row(member, folder, data, detector))
            write_table(path, pd.DataFrame(rows))
            progress.step(member.name)
    return pd.DataFrame(rows)


def judged(folder: Path) -> "pd.DataFrame":
    """Return the rows of all detectors, with a column that names them.

    Raises:
        FlSimError: if there are none.
    """
    import pandas as pd

    rows = [
        {"detector": words, **row}
        for detector, words in DETECTORS.items()
        for row in _read(folder / f"judged-{detector}.csv")
    ]
    if not rows:
        raise FlSimError(f"{folder} has no judged-*.csv; run the command judge first.")
    return pd.DataFrame(rows)


def _read(path: Path) -> list[dict[str, Any]]:
    import pandas as pd

    if not path.exists():
        return []
    rows = pd.read_csv(path, keep_default_na=False).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


def _first_of_each_kind(members: list[Member], count: int) -> list[Member]:
    kinds: dict[str, list[Member]] = {}
    for member in members:
        kinds.setdefault(member.kind, []).append(member)
    return [member for own in kinds.values() for member in own[:count]]


def _row(member: Member, folder: Path, data: Path, detector: str) -> dict[str, Any]:
    path, began = member.path(folder), time.perf_counter()
    try:
        if detector == "gate":
            verdict, checks = _gated(path, member, data)
        else:
            spec = spec_of(member.architecture, member.dataset) if detector == "stated" else None
            verdict, checks = _audited(path, spec)
    except FlSimError as error:
        verdict, checks = UNREAD, str(error).replace(str(path), path.name)
    return {
        "name": member.name,
        "kind": member.kind,
        "attack": member.attack,
        "architecture": member.architecture,
        "dataset": member.dataset,
        "training": member.training,
        "bytes": path.stat().st_size,
        "verdict": verdict,
        "checks": checks,
        "seconds": round(time.perf_counter() - began, 1),
    }


def _audited(path: Path, spec: "ModelSpec | None") -> tuple[str, str]:
    """Return the auditor's verdict, and the checks behind it."""
    from fl_sim.auditing.auditor import audit_file

    report = audit_file(path, spec)
    fired = {finding.check for finding in report.findings if finding.level in _ALARMS}
    return report.verdict, ", ".join(sorted(fired))


def _gated(path: Path, member: Member, data: Path) -> tuple[str, str]:
    """Return the gate's verdict, and its first reasons."""
    from fl_sim.auditing.gate import pass_gate
    from fl_sim.auditing.identified import identified_artifact
    from fl_sim.checkpoints import read_checkpoint

    held_out, task = _held_out(member.dataset, data)
    checkpoint = read_checkpoint(path)
    spec = spec_of(member.architecture, member.dataset)
    artifact, known = identified_artifact(checkpoint, spec, path.name)
    found = (*checkpoint.findings, *known.findings)
    report, _ = pass_gate(artifact, held_out, task, found=found)
    return "clean" if report.approved else "refused", "; ".join(report.all_reasons()[:2])


def _held_out(dataset: str, data: Path) -> "tuple[Split, Task]":
    from experiments.studies.detector_rates.untuned.loop import FILES
    from fl_sim.data import load_dataset
    from fl_sim.data.splits import HeldOutSettings, divide

    loaded = load_dataset(str(data / "medmnist" / FILES[dataset]), {}, data)
    held_out = divide(loaded, HeldOutSettings(public_images=0), 0).held_out
    return held_out.subset(np.arange(min(_HELD_OUT, len(held_out)))), loaded.task


def rates(rows: "pd.DataFrame", tuned: Path | None = TUNED) -> "pd.DataFrame":
    """Return how often each detector flags each kind, with 95 % Wilson intervals.

    Of clean kinds it is the rate of false alarms. A file that a detector could not read counts as
    not flagged, and stands in a column of its own; so does one of which it says that checks could
    not run.

    Args:
        rows: of :func:`judge`.
        tuned: table of rates on the networks that thresholds were set on, put first; ``None`` for
            none.
    """
    import pandas as pd

    found = [] if tuned is None else _tuned(pd.read_csv(tuned))
    clean = rows["attack"] == CLEAN
    for state, part in (("clean", rows[clean]), ("attacked", rows[~clean])):
        by_kind = part.groupby("kind", sort=False)
        for kind, own in [("all", part), *((str(kind), own) for kind, own in by_kind)]:
            for detector, lines in own.groupby("detector", sort=False):
                verdicts = list(lines["verdict"])
                alarms = sum(map(flagged, verdicts))
                row = _rate("untuned", state, kind, str(detector), len(verdicts), alarms)
                row["not read"] = verdicts.count(UNREAD)
                row["not all checks ran"] = sum(_INCOMPLETE in v for v in verdicts)
                found.append(row)
    return pd.DataFrame(found)


def _tuned(table: "pd.DataFrame") -> list[dict[str, Any]]:
    names = {"auditor": DETECTORS["stated"], "gate": DETECTORS["gate"]}
    table = table[table["detector"].isin(names)]
    clean = table["attack"] == CLEAN
    groups = [("clean", "all", table[clean]), ("attacked", "all", table[~clean])]
    by_attack = table[~clean].groupby("attack", sort=False)
    groups += [("attacked", str(attack), own) for attack, own in by_attack]
    found = []
    for state, kind, own in groups:
        for detector, lines in own.groupby("detector", sort=False):
            sums = lines[["models", "flagged"]].sum()
            found.append(_rate("tuned", state, kind, names[str(detector)], *map(int, sums)))
    return found


def _rate(
    group: str, state: str, kind: str, detector: str, networks: int, alarms: int
) -> dict[str, Any]:
    from scipy.stats import binomtest

    interval = binomtest(alarms, networks).proportion_ci(method="wilson")
    return {
        "population": group,
        "networks are": state,
        "kind": kind,
        "detector": detector,
        "networks": networks,
        "flagged": alarms,
        "rate": alarms / networks,
        "low": interval.low,
        "high": interval.high,
    }


def errors(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return what went wrong by attack or kind: what was missed, false alarms, files not read.

    Args:
        rows: of :func:`judge`.
    """
    import pandas as pd

    alarm, unread = rows["verdict"].map(flagged), rows["verdict"] == UNREAD
    wrong = rows[(alarm == (rows["attack"] == CLEAN)) | unread]
    keys = ["kind", "attack", "detector"]
    sizes: dict[Any, int] = rows.groupby(keys, sort=False).size().to_dict()
    found = []
    for (kind, attack, detector), own in wrong.groupby(keys, sort=False):
        said = {verdict.partition(";")[0] for verdict in own["verdict"]}
        if attack == CLEAN:  # which checks raised the alarm
            fired = own.loc[own["verdict"] != UNREAD, "checks"]
            said = said & {UNREAD} | {check for checks in fired for check in checks.split(", ")}
        found.append(
            {
                "kind": kind,
                "attack": attack,
                "detector": detector,
                "networks": sizes[kind, attack, detector],
                "wrong": len(own),
                "said": ", ".join(sorted(said)),
                "which": ", ".join(own["name"]),
            }
        )
    return pd.DataFrame(found, columns=[*keys, "networks", "wrong", "said", "which"])


Out = Annotated[Path, typer.Option(help="Folder of the networks and of the study's tables.")]
Root = Annotated[Path, typer.Option(help="Folder of data files.", envvar="FL_SIM_DATA")]
Shipped = Annotated[
    Path | None,
    typer.Option(help="Where packages with networks in them were installed.", show_default=False),
]


def make(out: Out, data_root: Root, shipped: Shipped = None) -> None:
    """Train and attack the networks whose files are not there yet."""
    torch.set_num_threads(1)
    population.make(population.members(data_root, shipped), out)


def judge_all(
    detector: Annotated[str, typer.Argument(help="alone, stated (the network) or gate.")],
    out: Out,
    data_root: Root,
    shipped: Shipped = None,
    gate: Annotated[int, typer.Option(help="Networks of each kind that pass the gate.")] = 2,
) -> None:
    """Ask a detector of each file that it has no row of; several can run beside each other."""
    torch.set_num_threads(1)
    console = make_console()
    if detector not in DETECTORS:
        raise unknown_name("detector", detector, DETECTORS)
    members = population.members(data_root, shipped)
    judge(members, out, data_root, detector, gate, make_progress(console))
    console.print(out / f"judged-{detector}.csv")


def count(out: Out) -> None:
    """Count; write detector_networks.csv, -_rates.csv, -_errors.csv and detector_rates.png."""
    console, rows = make_console(), judged(out)
    table, wrong = rates(rows), errors(rows)
    write_table(out / "detector_networks.csv", rows)
    write_table(out / "detector_rates.csv", table)
    write_table(out / "detector_errors.csv", wrong)
    print_table(console, table, "Share of networks flagged")
    print_table(console, wrong.drop(columns="which"), "Missed, and false alarms")
    shown = table[(table["population"] == "untuned") & (table["kind"] != "all")]
    names = {"kind": "attack", "networks are": "model", "networks": "models"}
    draw(out / "detector_rates.png", shown.rename(columns=names))
    for path in sorted(out.glob("detector_*")):
        console.print(path)


_FLAGGED = (
    Column("networks", "networks", "count"),
    Column("flagged", "flagged", "count"),
    Column("share", "rate"),
    Column("from", "low"),
    Column("to", "high"),
    Column("not read", "not read", "count"),
    Column("not all checks ran", "not all checks ran", "count"),
)


TABLES = {
    "detectors": PublishedTable(
        ("detector_rates.csv",),
        {"population": "thresholds", "networks are": "networks are", "detector": "detector"},
        _FLAGGED,
        {"kind": "all"},
        {"tuned": "set on these networks", "untuned": "not set on these"},
    ),
    "detector_rates": PublishedTable(
        ("detector_rates.csv",),
        {"networks are": "networks are", "kind": "kind", "detector": "detector"},
        _FLAGGED,
        {"population": "untuned"},
        without={"kind": ("all",)},
    ),
    "detector_errors": PublishedTable(
        ("detector_errors.csv",),
        {"kind": "kind", "attack": "attack", "detector": "detector", "said": "what was said"},
        (Column("networks", "networks", "count"), Column("wrong", "wrong", "count")),
    ),
}

STUDIES.register("detector_rates", "the auditor and the gate on networks that none was tuned on")(
    Study({"make": make, "judge": judge_all, "rates": count}, TABLES)
)
