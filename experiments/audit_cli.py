"""The command line of the export gate and the auditor: ``fl-sim gate`` and ``fl-sim audit``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from fl_sim.audit.auditor import AuditReport
    from fl_sim.audit.gate_report import GateReport
    from fl_sim.models.base import ModelSpec

REFUSED = 1
_SHOWN = 12

Json = Annotated[
    Path | None, typer.Option("--json", help="Also write the report here.", show_default=False)
]


def gate(
    model: Annotated[Path, typer.Argument(help="A model file of fl-sim (safetensors).")],
    dataset: Annotated[
        str, typer.Option(help="A registered dataset or .npz file; its validation split is used.")
    ],
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of data files.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the cleaned model here, if it is approved.", show_default=False),
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
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of the gate, for example --set min_change=0.01; repeatable.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Only so many held-out images.", show_default=False)
    ] = None,
    seed: int = 0,
) -> None:
    """Let a model leave only if its loss is the task's and all of it changes in fine-tuning.

    Exit code 0: approved (and written to --out); 1: refused; 2: wrong use.
    """
    from experiments.console import make_progress
    from experiments.scenario import apply_override
    from fl_sim.artifact import read_artifact, write_artifact
    from fl_sim.audit.gate import Declaration, GateSettings, pass_gate
    from fl_sim.data import load_dataset
    from fl_sim.data.splits import HeldOutSettings, divide
    from fl_sim.files import write_atomically
    from fl_sim.randomness import Stream
    from fl_sim.settings import parse

    console = Console()
    artifact = read_artifact(model)
    values: dict[str, Any] = {} if defense is None else {"defense": defense}
    for override in overrides or ():
        apply_override(values, override)
    settings = parse(GateSettings, values, "[gate]")
    loaded = load_dataset(dataset, {"size": artifact.spec.size}, data_root)
    held_out = divide(loaded, HeldOutSettings(images=images, public_images=0), seed).held_out
    report, state = pass_gate(
        artifact, held_out, loaded.task, settings, Stream(seed),
        declared=Declaration(declared or loaded.task.kind), progress=make_progress(console),
    )  # fmt: skip
    if json_out is not None:
        write_atomically(json_out, (json.dumps(report.as_dict(), indent=1) + "\n").encode())
    _print_gate(console, report)
    if state is None:
        raise typer.Exit(REFUSED)
    if out is not None:
        write_artifact(out, artifact.spec, state)
        console.print(f"Cleaned model {escape(str(out))}")


def audit(
    file: Annotated[Path, typer.Argument(help="A checkpoint: .safetensors, .pt or .pth.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="The registered network it is of; otherwise the file's word, or a guess.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(help="Outputs of the network.", show_default=False)
    ] = None,
    channels: Annotated[int, typer.Option(help="Of its images.")] = 3,
    size: Annotated[int, typer.Option(help="Side of its images in pixels.")] = 28,
    stem: Annotated[str, typer.Option(help="default or small.")] = "default",
    reference: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint of an earlier state that you trust, such as the weights that "
            "training began with.",
            show_default=False,
        ),
    ] = None,
    json_out: Json = None,
    html_out: Annotated[
        Path | None, typer.Option("--html", help="Also write a page here.", show_default=False)
    ] = None,
) -> None:
    """Look for hidden content in a checkpoint that nobody here made; nothing in it is run.

    Ends with a verdict: clean, suspicious, or carries something. Exit code 0 whatever it is.
    """
    from experiments.console import make_progress
    from fl_sim.audit.auditor import audit_file
    from fl_sim.audit.page import write_page
    from fl_sim.files import write_atomically

    console = Console()
    spec = _spec(model, classes, channels, size, stem)
    report = audit_file(file, spec, reference, make_progress(console))
    if json_out is not None:
        write_atomically(json_out, (json.dumps(report.as_dict(), indent=1) + "\n").encode())
    if html_out is not None:
        write_page(html_out, report)
    _print_audit(console, report)


def _spec(
    model: str | None, classes: int | None, channels: int, size: int, stem: str
) -> "ModelSpec | None":
    from fl_sim.audit.auditor import spec_from
    from fl_sim.errors import FlSimError

    if model is None:
        return None
    if classes is None:
        raise FlSimError("--model needs --classes, the number of the network's outputs.")
    return spec_from(model, classes, channels, size, stem)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print_gate(console: Console, report: "GateReport") -> None:
    table = _table("Tensors", "tensor ", "elements ", "change ", "unmoved ", "dead ", "refused")
    for row in report.tensors:
        table.add_row(
            f"{escape(row.name)} ", f"{row.elements} ", f"{_number(row.relative_change, '.2g')} ",
            f"{_number(row.unmoved, '.1%')} ", f"{row.dead or ''} ",
            escape("; ".join(row.reasons)),
        )  # fmt: skip
    console.print(table)
    rounds = _count(report.rounds, "round")
    console.print(
        f"{report.defense}, {rounds} on {report.images} held-out images: loss "
        f"{report.loss_before:.3f} before, {report.loss_after:.3f} after; {report.overwritten} "
        f"weights overwritten that nothing moved"
    )
    if report.approved:
        console.print("[bold green]Approved[/]")
        return
    reasons = report.all_reasons()
    console.print(f"[bold red]Refused[/], {_count(len(reasons), 'reason')}:")
    for reason in reasons[:_SHOWN]:
        console.print(f"  {escape(reason)}")
    if len(reasons) > _SHOWN:
        console.print(f"  and {len(reasons) - _SHOWN} more, in the table")


def _print_audit(console: Console, report: "AuditReport") -> None:
    from fl_sim.audit.auditor import BLIND

    table = _table(
        "Tensors", "tensor ", "shape ", "deviation ", "dead ", "as in the reference ", "finding"
    )
    for row in report.tensors:
        unchanged = "" if row.unchanged is None else f"{row.unchanged:.1%}"
        table.add_row(
            f"{escape(row.name)} ", f"{'x'.join(map(str, row.shape))} ", f"{row.deviation:.3g} ",
            f"{row.dead or ''} ", f"{unchanged} ", row.level or "",
        )  # fmt: skip
    console.print(table)
    console.print(f"Architecture: {escape(report.architecture)}")
    for finding in report.findings[:_SHOWN]:
        where = escape(finding.tensor or "the file")
        console.print(f"  [bold]{finding.level}[/] {where}: {escape(finding.what)}")
    if len(report.findings) > _SHOWN:
        console.print(f"  and {len(report.findings) - _SHOWN} more; see --json or --html")
    console.print(f"Verdict: [bold]{report.verdict}[/]")
    console.print(BLIND)


def _number(value: float, form: str) -> str:
    return "" if value != value else format(value, form)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
