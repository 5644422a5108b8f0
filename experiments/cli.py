"""The command line, ``fl-sim``: every command is a function here or in a module beside this."""

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import click
import typer

from experiments.audit_cli import audit, gate
from experiments.clean_cli import clean
from experiments.codec_cli import app as codec_app
from experiments.report_cli import report
from experiments.shipped import GRIDS, SCENARIOS, find
from experiments.sweep_cli import sweep
from fl_sim.errors import FlSimError
from fl_sim.files import reason

INTERRUPTED = 130

app = typer.Typer(
    name="fl-sim",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Can patient images leave a hospital hidden inside a trained model, and what stops them?

fl-sim attacks (hides images in a model), releases (cleans the model before it leaves), extracts
(reads the images back from the file that left) and measures: what leaked, what the model is still
worth, what it cost. In a federation of hospitals, or in a centralized data lake.

Start with **fl-sim demo**, then look at a scenario file and **fl-sim run** it.""",
)

app.command()(sweep)
app.command()(report)
app.add_typer(codec_app, name="codec")
app.command()(clean)
app.command()(gate)
app.command()(audit)

DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        help="Folder of data files; otherwise the environment variable FL_SIM_DATA, then "
        "medmnist's own folder.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Folder for everything the run writes; otherwise runs/<scenario>-seed<seed>. A run "
        "that was interrupted continues in its folder.",
        show_default=False,
    ),
]


@app.command()
def demo(out: Out = None) -> None:
    """Run the whole way on embedded images, in about a minute, without data or network.

    A network is attacked so that it memorises images, is cleaned, leaves as a file, and the images
    are read back from that file: first from a data lake, then from a federation.
    """
    from experiments.demo import RUNS, conclude

    folder = out or Path("runs")
    for name in RUNS.values():
        _run(SCENARIOS / f"{name}.toml", (), None, folder / name)
    conclude(folder)


@app.command()
def run(
    scenario: Annotated[
        str,
        typer.Argument(
            help="A TOML file, or the name of a scenario that comes with fl-sim (see fl-sim list)."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change one key, for example --set attack.images=32 --set seed=1; repeatable.",
            show_default=False,
        ),
    ] = None,
    data_root: DataRoot = None,
    out: Out = None,
) -> None:
    """Run one scenario: train, attack, release, extract, measure.

    Writes results.csv and results.parquet (the long table), scenario.json (the scenario as run,
    versions, checksums), artifacts/ (the model files), keys/ (the attackers' keys) and images/
    (original and recovered images).
    """
    _run(find_scenario(scenario), overrides or (), data_root, out)


@app.command(name="list")
def list_components() -> None:
    """List datasets, models, attacks, defences, restorations, strategies, scenarios and grids."""
    from experiments.console import make_console, print_components

    print_components(make_console(), SCENARIOS, GRIDS)


@app.command()
def extract(
    artifact: Annotated[Path, typer.Argument(help="The model file that left (safetensors).")],
    key: Annotated[Path, typer.Argument(help="The attacker's key file (safetensors).")],
    out: Annotated[
        Path, typer.Option(help="Folder for the recovered images, as PNG files.")
    ] = Path("recovered"),
) -> None:
    """Play the receiver: read images back from a model file with the attacker's key."""
    from experiments.console import make_console, plain
    from experiments.pictures import write_images
    from fl_sim.extraction import extract as read_back

    images = read_back(artifact, key).images
    write_images(out, images)
    make_console(soft_wrap=True).print(f"{len(images)} images in {plain(out)}")


def find_scenario(name: str) -> Path:
    """Return the path of a scenario file, or of a shipped one by its name.

    Raises:
        FlSimError: if there is neither; with the nearest name.
    """
    return find(name, SCENARIOS, "scenario")


def _run(
    scenario: Path, overrides: tuple[str, ...] | list[str], root: Path | None, out: Path | None
) -> None:
    from experiments.console import make_console, make_progress, plain, print_result
    from experiments.preflight import remarks
    from experiments.run import run as run_scenario
    from experiments.scenario import Scenario
    from fl_sim.case import open_case
    from fl_sim.data import data_root

    console = make_console()
    parsed = Scenario.from_toml(scenario, overrides)
    console.print(f"[bold]{plain(parsed.identity)}[/bold], seed {parsed.seed}", soft_wrap=True)
    progress = make_progress(console)
    # The run opens the same case; a process loads it once.
    for remark in remarks(parsed, open_case(parsed.case, data_root(root), progress)):
        console.print(plain(remark), soft_wrap=True)
    result = run_scenario(parsed, out, root, progress)
    print_result(console, result)


def main(program: typer.Typer = app) -> None:
    """Entry point: one sentence and exit code 2 for what a user can mend.

    After Ctrl-C, SIGTERM or SIGHUP, one sentence and 128 plus the signal's number.
    """
    # CompressAI's import; nothing that a user of this program could mend.
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
    with _ending_in_words() as received:
        try:
            # Not standalone, so that Ctrl-C can be answered in words; typer makes it a code.
            code = program(standalone_mode=False)
            if code == INTERRUPTED:
                raise KeyboardInterrupt
            sys.exit(code if isinstance(code, int) else 0)
        except FlSimError as error:
            _fail(str(error))
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            _interrupted(received)
        except OSError as error:
            if received:  # the terminal may be gone
                _interrupted(received)
            if (why := reason(error)) is None:
                raise
            _fail(f"{error.filename or 'A file'}: {why}; mend that and give the command again.")


@contextmanager
def _ending_in_words() -> Iterator[list[int]]:
    """Let SIGTERM and SIGHUP end the program as Ctrl-C does; yields which of them has come."""
    received: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGHUP)

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for other in numbers:
            signal.signal(other, signal.SIG_DFL)  # a second one ends it at once
        raise KeyboardInterrupt

    # One that is ignored, as under nohup, stays so.
    handled = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in handled:
        signal.signal(number, on_signal)
    try:
        yield received
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def _fail(sentence: str) -> NoReturn:
    from experiments.console import make_console, plain

    make_console(stderr=True, soft_wrap=True).print(f"[bold red]Error:[/] {plain(sentence)}")
    sys.exit(2)


def _interrupted(received: list[int]) -> NoReturn:
    with suppress(OSError):
        print("Interrupted; the same command continues where it stopped.", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    # Threads of an engine that is shutting down must not hold up the terminal.
    os._exit(128 + received[0] if received else INTERRUPTED)


if __name__ == "__main__":
    main()
