"""Study: how often the auditor and the gate are right on networks that none was tuned on.

The thresholds were set while looking at the networks of :mod:`experiments.audit_study`. Here is a
population of others (:mod:`experiments.untuned`). Three commands, so that a changed auditor is
judged on the same files: ``make`` trains and attacks, ``judge`` asks auditor and gate of each file,
``rates`` counts. Interrupted, each goes on where it was. Run ``python -m experiments.detector_rates
--help``.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from experiments.audit_study import CLEAN, draw
from experiments.console import make_progress, print_table
from experiments.figures import write_table
from experiments.untuned import population
from experiments.untuned.member import Member
from experiments.untuned.written import spec_of
from fl_sim.errors import FlSimError
from fl_sim.progress import SILENT, Progress, piece

if TYPE_CHECKING:
    import pandas as pd

    from fl_sim.data.base import Split, Task
    from fl_sim.models.base import ModelSpec

TUNED = Path(__file__).parent / "results" / "audit.csv"
"""Rates on the networks that thresholds were set on, from :mod:`experiments.audit_study`."""

DETECTORS = {
    "auditor": "auditor, file alone",
    "stated": "auditor, network stated",
    "gate": "gate",
}
_ALARMS = ("suspicious", "carries")
_HELD_OUT = 200


def flagged(verdict: str) -> bool:
    """Whether a verdict says that something is wrong with a file that was read."""
    return verdict.startswith(_ALARMS) or verdict == "refused"


def judge(
    members: list[Member],
    folder: Path,
    data: Path,
    gate: int = 2,
    part: tuple[int, int] = (0, 1),
    progress: Progress = SILENT,
) -> "pd.DataFrame":
    """Judge every file that has no row yet; a row is written as it comes.

    Args:
        members: of the population; those whose files are not there are left out.
        folder: of the files, and of the rows (``judged-<part>.csv``).
        data: folder of data files.
        gate: how many networks of each kind go through the gate.
        part: number, from 0, and count of parts that processes beside each other take.
        progress: where to report.

    Returns:
        The rows of this part, one a network.
    """
    import pandas as pd

    path = folder / f"judged-{part[0]}.csv"
    done = {row["name"] for row in _rows(folder)}
    rows = _read(path) if path.exists() else []
    through_gate = _sample(members, folder, gate)
    own = members[part[0] :: part[1]]
    left = [m for m in own if m.path(folder).exists() and m.name not in done]
    with piece(progress, "networks", len(left)):
        for member in left:
            rows.append(_row(member, folder, data, member.name in through_gate))
            write_table(path, pd.DataFrame(rows))
            progress.step(member.name)
    return pd.DataFrame(rows)


def _rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of all parts."""
    return [row for path in sorted(folder.glob("judged-*.csv")) for row in _read(path)]


def _read(path: Path) -> list[dict[str, Any]]:
    import pandas as pd

    rows = pd.read_csv(path, keep_default_na=False).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


def _sample(members: list[Member], folder: Path, count: int) -> set[str]:
    """Return the first few of each kind that the gate can take: networks that fl-sim knows."""
    kinds: dict[str, list[str]] = {}
    for member in members:
        known = spec_of(member.architecture, member.dataset) is not None
        if known and member.path(folder).exists():
            kinds.setdefault(member.kind, []).append(member.name)
    return {name for names in kinds.values() for name in names[:count]}


def _row(member: Member, folder: Path, data: Path, through_gate: bool) -> dict[str, Any]:
    path = member.path(folder)
    row: dict[str, Any] = {
        "name": member.name, "kind": member.kind, "attack": member.attack,
        "architecture": member.architecture, "dataset": member.dataset,
        "training": member.training, "bytes": path.stat().st_size,
    }  # fmt: skip
    spec = spec_of(member.architecture, member.dataset)
    row |= _audited("auditor", path, None)
    row |= _audited("stated", path, spec) if spec else _nothing("stated")
    row |= _gated(path, spec, member.dataset, data) if spec and through_gate else _nothing("gate")
    return row


def _nothing(detector: str) -> dict[str, Any]:
    return {detector: "", f"{detector}_checks": "", f"{detector}_seconds": ""}


def _audited(detector: str, path: Path, spec: "ModelSpec | None") -> dict[str, Any]:
    """Return the verdict, the checks behind it and the seconds; or why the file was not read."""
    from fl_sim.audit.auditor import audit_file

    began = time.perf_counter()
    try:
        report = audit_file(path, spec)
    except FlSimError as error:
        verdict, checks = "not read", str(error)
    else:
        fired = {f.check for f in report.findings if f.level in _ALARMS}
        verdict, checks = report.verdict, ", ".join(sorted(fired))
    seconds = round(time.perf_counter() - began, 1)
    return {detector: verdict, f"{detector}_checks": checks, f"{detector}_seconds": seconds}


def _gated(path: Path, spec: "ModelSpec", dataset: str, data: Path) -> dict[str, Any]:
    """Return the gate's verdict, its first reasons and the seconds."""
    from fl_sim.artifact import Artifact
    from fl_sim.audit.gate import pass_gate
    from fl_sim.checkpoints import read_checkpoint

    began = time.perf_counter()
    held_out, task = _held_out(dataset, data)
    try:
        artifact = Artifact(spec, read_checkpoint(path).state)
        report, _ = pass_gate(artifact, held_out, task)
    except FlSimError as error:
        verdict, checks = "not read", str(error)
    else:
        verdict = "clean" if report.approved else "refused"
        checks = "; ".join(report.all_reasons()[:2])
    seconds = round(time.perf_counter() - began, 1)
    return {"gate": verdict, "gate_checks": checks, "gate_seconds": seconds}


def _held_out(dataset: str, data: Path) -> "tuple[Split, Task]":
    from experiments.untuned.loop import FILES
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
    kinds = [("clean", "all", rows[clean])]
    kinds += [("clean", str(k), own) for k, own in rows[clean].groupby("kind", sort=False)]
    kinds += [("attacked", "all", rows[~clean])]
    kinds += [("attacked", str(k), own) for k, own in rows[~clean].groupby("kind", sort=False)]
    for state, kind, own in kinds:
        for detector, words in DETECTORS.items():
            verdicts = own.loc[own[detector] != "", detector]
            if len(verdicts) == 0:
                continue
            counts = {
                "not read": int((verdicts == "not read").sum()),
                "not all checks ran": int(verdicts.str.startswith("nothing found").sum()),
            }
            alarms = sum(map(flagged, verdicts))
            row = _rate("untuned", state, kind, words, len(verdicts), alarms)
            found.append(row | counts)
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
        "population": group, "networks are": state, "kind": kind, "detector": detector,
        "networks": networks, "flagged": alarms, "rate": alarms / networks,
        "low": interval.low, "high": interval.high,
    }  # fmt: skip


def errors(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return what went wrong by attack or kind: attacks not always flagged, and false alarms.

    Args:
        rows: of :func:`judge`.
    """
    import pandas as pd

    found = []
    for (kind, attack), own in rows.groupby(["kind", "attack"], sort=False):
        for detector, words in DETECTORS.items():
            judged = own[own[detector] != ""]
            alarms = judged[detector].map(flagged)
            wrong = judged[alarms if attack == CLEAN else ~alarms.astype(bool)]
            if len(wrong) == 0:
                continue
            said = sorted(set(wrong[f"{detector}_checks" if attack == CLEAN else detector]))
            found.append({
                "kind": kind, "attack": attack, "detector": words, "networks": len(judged),
                "wrong": len(wrong), "said": "; ".join(said)[:200],
                "which": ", ".join(wrong["name"]),
            })  # fmt: skip
    columns = ["kind", "attack", "detector", "networks", "wrong", "said", "which"]
    return pd.DataFrame(found, columns=columns)


Out = Annotated[Path, typer.Option(help="Folder of the networks and of the study's tables.")]
Root = Annotated[Path, typer.Option(help="Folder of data files.", envvar="FL_SIM_DATA")]
Shipped = Annotated[
    Path | None,
    typer.Option(help="Where packages with networks in them were installed.", show_default=False),
]
app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


@app.command()
def make(out: Out, data_root: Root, shipped: Shipped = None) -> None:
    """Train and attack the networks whose files are not there yet."""
    population.make(population.members(data_root, shipped), out)


@app.command(name="judge")
def judge_all(
    out: Out,
    data_root: Root,
    shipped: Shipped = None,
    gate: Annotated[int, typer.Option(help="Networks of each kind that pass the gate.")] = 2,
    part: Annotated[int, typer.Option(help="Of several processes: which one, from 0.")] = 0,
    parts: Annotated[int, typer.Option(help="How many processes share the files.")] = 1,
) -> None:
    """Ask auditor and gate of each file that has no row in a judged-*.csv yet."""
    console = Console()
    members = population.members(data_root, shipped)
    progress = make_progress(console)
    rows = judge(members, out, data_root, gate, (part, parts), progress)
    console.print(f"{len(rows)} networks judged: {out / f'judged-{part}.csv'}")


@app.command(name="rates")
def count(out: Out) -> None:
    """Count; write detector_rates.csv, detector_errors.csv and detector_rates.png."""
    import pandas as pd

    console = Console()
    rows = pd.DataFrame(_rows(out))
    if rows.empty:
        raise FlSimError(f"{out} has no judged-*.csv; run the command judge first.")
    table, wrong = rates(rows), errors(rows)
    write_table(out / "detector_rates.csv", table)
    write_table(out / "detector_errors.csv", wrong)
    print_table(console, table, "Share of networks flagged")
    print_table(console, wrong.drop(columns="which"), "Missed, and false alarms")
    shown = table[(table["population"] == "untuned") & (table["kind"] != "all")]
    names = {"kind": "attack", "networks are": "model", "networks": "models"}
    draw(out / "detector_rates.png", shown.rename(columns=names))
    for name in ("detector_rates.csv", "detector_errors.csv", "detector_rates.png"):
        console.print(out / name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    app()
