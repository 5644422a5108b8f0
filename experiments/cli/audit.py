"""The command line of the export gate and the auditor: ``fl-sim gate`` and ``fl-sim audit``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.cli.model_file import (
    Channels,
    Classes,
    DataRoot,
    DatasetName,
    Images,
    Json,
    Model,
    ModelFile,
    Normalize,
    Overrides,
    Seed,
    Size,
    StemChoice,
    settings_of,
    write_model,
)
from experiments.cli.pipelines import Junit, Sacro, Sarif
from experiments.tables.console import plain

if TYPE_CHECKING:
    from fl_sim.auditing.gate_report import GateReport
    from fl_sim.auditing.report import AuditReport, TensorSummary

REFUSED = 1
STATUS = {"clean": 0, "carries": 1, "suspicious": 3, "unchecked": 4}
"""Exit status by outcome of an audit; 2 is wrong use."""

_SHOWN = 12
_COLOURS = {"clean": "green", "unchecked": "cyan", "suspicious": "yellow", "carries": "red"}


def gate(
    model_file: ModelFile,
    dataset: DatasetName,
    data_root: DataRoot = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the cleaned model here, if it is approved: .safetensors, or .pth for a "
            "state dictionary of torch's.",
            show_default=False,
        ),
    ] = None,
    json_out: Json = None,
    defense: Annotated[
        str | None,
        typer.Option(
            help="A registered defence that fine-tunes; otherwise plain SGD.", show_default=False
        ),
    ] = None,
    declared: Annotated[
        str | None,
        typer.Option(
            help="The kind of task that the model's makers declare, for example multi-class; "
            "otherwise the dataset's.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    images: Images = None,
    seed: Seed = 0,
    model: Model = None,
    classes: Classes = None,
    channels: Channels = None,
    size: Size = None,
    stem: StemChoice = None,
    normalize: Normalize = None,
) -> None:
    """Let a model leave only if its loss is the task's and all of it changes in fine-tuning.

    Exit status 0: approved (and written to --out); 1: refused; 2: wrong use.
    """
    from experiments.tables.console import make_console
    from fl_sim.auditing.architecture import Statement
    from fl_sim.auditing.gate import Declaration, GateSettings, pass_gate
    from fl_sim.bars import make_progress
    from fl_sim.files import write_atomically
    from fl_sim.randomness import Stream
    from fl_sim.settings import parse
    from fl_sim.verbs.opening import open_model_file

    console = make_console()
    settings = parse(GateSettings, settings_of(overrides, defense=defense), "[gate]")
    network = Statement(model, classes, channels, size, stem, normalize)
    opened = open_model_file(model_file, network, dataset, data_root, images, seed)
    artifact, known, task = opened.artifact, opened.known, opened.dataset.task
    report, state = pass_gate(
        artifact,
        opened.held_out,
        task,
        settings,
        Stream(seed),
        declared=Declaration(declared or task.kind),
        progress=make_progress(console),
        found=(*opened.checkpoint.findings, *known.findings),
        training=opened.dataset.train,
    )
    if json_out is not None:
        write_atomically(json_out, (json.dumps(report.as_dict(), indent=1) + "\n").encode())
    console.print(f"Network: {plain(known.words)}")
    _print_gate(console, report)
    if state is None:
        raise typer.Exit(REFUSED)
    if out is not None:
        write_model(out, artifact.spec, known.in_file(state))
        console.print(f"Cleaned model {plain(str(out))}")


def audit(
    file: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint: safetensors, .pt or .pth of any age, TorchScript, .npz, a pickle, "
            "or a folder of shards. Or a target.yaml of SACRO-ML."
        ),
    ],
    model: Model = None,
    classes: Classes = None,
    channels: Channels = None,
    size: Size = None,
    stem: StemChoice = None,
    normalize: Normalize = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint of an earlier state that you trust, such as the weights that "
            "training began with.",
            show_default=False,
        ),
    ] = None,
    fail_on: Annotated[
        Literal["unchecked", "suspicious", "carries", "never"],
        typer.Option(help="The mildest verdict that the exit status tells; milder ones give 0."),
    ] = "unchecked",
    everything: Annotated[
        bool, typer.Option("--all", help="List every tensor, not only those with a finding.")
    ] = False,
    json_out: Json = None,
    html_out: Annotated[
        Path | None, typer.Option("--html", help="Also write a page here.", show_default=False)
    ] = None,
    sarif: Sarif = None,
    junit: Junit = None,
    sacro: Sacro = None,
) -> None:
    """Look for hidden content in a checkpoint that nobody here made; nothing in it is run.

    Exit status 0: clean, and every check ran; 4: nothing found, but some checks could not run; 3:
    suspicious; 1: it carries something; 2: wrong use. See --fail-on.
    """
    from experiments.tables.console import make_console
    from fl_sim import __version__
    from fl_sim.auditing.architecture import Statement
    from fl_sim.auditing.auditor import audit_file
    from fl_sim.auditing.page import write_page
    from fl_sim.auditing.report import OUTCOMES
    from fl_sim.bars import make_progress
    from fl_sim.egress.pipelines import checks_of_audit, write_junit, write_sarif
    from fl_sim.egress.sacro import add_entry, entry_of_audit, is_target, read_target
    from fl_sim.files import write_atomically

    console = make_console()
    stated = Statement(model, classes, channels, size, stem, normalize)
    if is_target(file):
        target = read_target(file)
        file, stated = target.model_path, target.statement(stated)
    report = audit_file(file, stated, reference, make_progress(console))
    if json_out is not None:
        write_atomically(json_out, (json.dumps(report.as_dict(), indent=1) + "\n").encode())
    if html_out is not None:
        write_page(html_out, report)
    if sarif is not None:
        write_sarif(sarif, file, checks_of_audit(report))
    if junit is not None:
        write_junit(junit, file, checks_of_audit(report))
    if sacro is not None:
        add_entry(sacro, entry_of_audit(report, __version__))
    _print_audit(console, report, everything)
    if fail_on != "never" and OUTCOMES.index(report.outcome) >= OUTCOMES.index(fail_on):
        raise typer.Exit(STATUS[report.outcome])


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print_gate(console: Console, report: "GateReport") -> None:
    """Print the verdict with its reasons, then what was done, then the tensors."""
    reasons = report.all_reasons()
    if report.approved:
        console.print("[bold green]Approved[/]")
    else:
        console.print(f"[bold red]Refused[/], {_count(len(reasons), 'reason')}:")
    for reason in reasons[:_SHOWN]:
        console.print(f"  {plain(reason)}")
    if len(reasons) > _SHOWN:
        console.print(f"  and {len(reasons) - _SHOWN} more, in the table")
    if report.rounds:
        rounds = _count(report.rounds, "round")
        console.print(
            f"{report.defense}, {rounds} on {report.images} held-out images: loss "
            f"{report.loss_before:.3f} before, {report.loss_after:.3f} after; {report.overwritten} "
            f"weights overwritten that nothing moved"
        )
    for what in report.left_behind[:_SHOWN]:
        console.print(f"  left behind: {plain(what)}")
    if report.tensors:
        _print_gated(console, report)


def _print_gated(console: Console, report: "GateReport") -> None:
    table = _table("Tensors", "tensor ", "elements ", "change ", "unmoved ", "dead ", "refused")
    for row in report.tensors:
        table.add_row(
            f"{plain(row.name)} ",
            f"{row.elements} ",
            f"{_number(row.relative_change, '.2g')} ",
            f"{_number(row.unmoved, '.1%')} ",
            f"{row.dead or ''} ",
            plain("; ".join(row.reasons)),
        )
    console.print(table)


def _print_audit(console: Console, report: "AuditReport", everything: bool) -> None:
    from fl_sim.auditing.blind import BLIND

    colour = _COLOURS[report.outcome]
    console.print(f"Verdict: [bold {colour}]{plain(report.verdict)}[/]")
    console.print(f"Network: {plain(report.architecture)}")
    console.print(f"File: {plain(report.format)}")
    for finding in report.findings[:_SHOWN]:
        where = plain(finding.tensor or "the file")
        console.print(f"  [bold]{finding.level}[/] {where}: {plain(finding.what)}")
    if len(report.findings) > _SHOWN:
        console.print(f"  and {len(report.findings) - _SHOWN} more; see --json or --html")
    rows = report.tensors if everything else report.noted()
    if rows:
        _print_tensors(console, rows, everything)
    console.print(BLIND)


def _print_tensors(console: Console, rows: "list[TensorSummary]", everything: bool) -> None:
    title = "Tensors" if everything else "Tensors with a finding (--all lists every one)"
    table = _table(
        title, "tensor ", "shape ", "type ", "deviation ", "dead ", "as before ", "level"
    )
    for row in rows:
        unchanged = "" if row.unchanged is None else f"{row.unchanged:.1%}"
        table.add_row(
            f"{plain(row.name)} ",
            f"{'x'.join(map(str, row.shape))} ",
            f"{row.dtype} ",
            f"{row.deviation:.3g} ",
            f"{row.dead or ''} ",
            f"{unchanged} ",
            row.level or "",
        )
    console.print(table)


def _number(value: float, form: str) -> str:
    return "" if value != value else format(value, form)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
