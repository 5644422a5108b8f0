"""``fl-sim release`` and ``fl-sim verify``: from a stranger's file to a folder that may leave."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from experiments.cli.model_file import (
    Channels,
    Classes,
    DataRoot,
    Images,
    Model,
    Normalize,
    Size,
    StemChoice,
)
from experiments.cli.pipelines import Junit, Sacro, Sarif
from experiments.tables.console import plain

if TYPE_CHECKING:
    from fl_sim.egress.releasing import Released

REFUSED = 1
"""Exit status of a refusal, as the gate's; 2 is wrong use."""

_COLOURS = {"met": "green", "missed": "red", "not run": "red", "excepted": "yellow"}


def release(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A model file; whatever fl-sim audit reads. Or a target.yaml of SACRO-ML.",
        ),
    ],
    dataset: Annotated[
        str,
        typer.Option(
            help="The owner's images: a registered dataset or .npz file; of its splits training, "
            "validation (held-out) and test."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder that leaves; made only if the model may.")],
    policy: Annotated[
        str, typer.Option(help="cautious, moderate, or a policy file (.toml).")
    ] = "cautious",
    owner: Annotated[
        Path | None,
        typer.Option(
            help="Folder that stays with the owner; made. Otherwise --out with -owner behind.",
            show_default=False,
        ),
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(
            help="Sign the folder with this private key (PEM); needs fl-sim[sign].",
            show_default=False,
        ),
    ] = None,
    stop_early: Annotated[
        bool,
        typer.Option("--stop-early", help="Measure no further once a criterion is missed."),
    ] = False,
    data_root: DataRoot = None,
    images: Images = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Everything random follows from it; otherwise drawn, and kept by the owner.",
            show_default=False,
            min=0,
        ),
    ] = None,
    model: Model = None,
    classes: Classes = None,
    channels: Channels = None,
    size: Size = None,
    stem: StemChoice = None,
    normalize: Normalize = None,
    sarif: Sarif = None,
    junit: Junit = None,
    sacro: Sacro = None,
) -> None:
    """Decide by a policy whether a model file may leave, and write the folder that leaves.

    Nothing in the file is run. It is audited, cleaned or sealed, audited again; attacks are
    rehearsed; membership and worth are measured. A check that could not run refuses.

    Exit status 0: it may leave, and --out is there; 1: refused, and --out is not; 2: wrong use.
    """
    from experiments.tables.console import make_console
    from fl_sim.auditing.architecture import Statement
    from fl_sim.bars import make_progress
    from fl_sim.egress.pipelines import checks_of_record, write_junit, write_sarif
    from fl_sim.egress.releasing import release as released
    from fl_sim.egress.sacro import add_entry, entry_of_record

    console = make_console(soft_wrap=True)
    found = released(
        file,
        dataset,
        out=out,
        policy=policy,
        owner=owner,
        statement=Statement(model, classes, channels, size, stem, normalize),
        images=images,
        seed=seed,
        sign=sign,
        stop_early=stop_early,
        data_root=data_root,
        progress=make_progress(console),
    )
    checks = checks_of_record(found.record)
    if sarif is not None:
        write_sarif(sarif, file, checks)
    if junit is not None:
        write_junit(junit, file, checks)
    if sacro is not None:
        add_entry(sacro, entry_of_record(found.record))
    _print(console, found)
    if not found.approved:
        raise typer.Exit(REFUSED)


def _print(console: Console, found: "Released") -> None:
    if found.approved:
        console.print("[bold green]May leave[/]")
    else:
        console.print("[bold red]Refused[/]")
    for criterion in found.record.criteria:
        colour = _COLOURS[criterion.status]
        console.print(
            f"  [{colour}]{criterion.status}[/] {criterion.name}: {plain(criterion.reason)}"
        )
    if found.out is not None:
        console.print(f"Folder that may leave {plain(found.out)}")
    console.print(f"Folder that stays {plain(found.owner)}")
    console.print(f"SHA-256 of the record {found.sha256}")


def verify(
    folder: Annotated[Path, typer.Argument(help="A folder that fl-sim release wrote.")],
    key: Annotated[
        Path | None,
        typer.Option(
            help="The owner's public key (PEM), to check the signature.", show_default=False
        ),
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option(
            help="SHA-256 of the record, as its owner told it by other means.", show_default=False
        ),
    ] = None,
) -> None:
    """Check that a released folder is as it was written; nothing in it is run, no network asked.

    Exit status 0: it is; 2: it is not, and why.
    """
    from experiments.tables.console import make_console
    from fl_sim.egress.folder import verify as verified

    console = make_console(soft_wrap=True)
    found = verified(folder, key=key, expect=expect)
    signed = "signed by the owner of the key" if found.signed else "no signature was checked"
    console.print(f"As it was written: {found.files} files; {signed}")
    if found.unchecked_signature:
        console.print("[yellow]It is signed[/]; give the owner's public key with --key")
    console.print(f"Decided {found.record.made} by the policy {plain(found.record.policy.name)}")
    console.print(f"SHA-256 of the record {found.sha256}")
