"""The command line, ``fl-sim``: every command is a function here or in a module beside this."""

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import click
import typer

from experiments.audit_cli import audit, gate
from experiments.clean_cli import clean
from experiments.codec_cli import app as codec_app
from experiments.list_cli import list_components, show
from experiments.model_file import DataRoot
from experiments.program import complete_scenarios, program
from experiments.report_cli import report
from experiments.shipped import SCENARIOS, find
from experiments.sweep_cli import sweep
from fl_sim.errors import FlSimError
from fl_sim.files import reason

INTERRUPTED = 130

app = program(
    name="fl-sim",
    no_args_is_help=True,
    add_completion=True,
    help="""Can patient images leave a hospital hidden inside a trained model, and what stops them?

fl-sim attacks (hides images in a model), releases (cleans the model before it leaves), extracts
(reads the images back from the file that left) and measures: what leaked, what the model is still
worth, what it cost. In a federation of hospitals, or in a centralized data lake.

Start with 'fl-sim demo'; look at a scenario with 'fl-sim show demo-centralized', change it, and
'fl-sim run' it.""",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fl-sim {version('fl-sim')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Folder for everything the run writes; otherwise runs/<scenario>-seed<seed>. A run "
        "that was interrupted continues in its folder.",
        show_default=False,
    ),
]


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


def run(
    scenario: Annotated[
        str,
        typer.Argument(
            help="A TOML file, or the name of a scenario that comes with fl-sim (see fl-sim list).",
            autocompletion=complete_scenarios,
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
    from fl_sim.attacks.doubt import doubt
    from fl_sim.extraction import extract as read_back

    extraction, console = read_back(artifact, key), make_console(soft_wrap=True)
    write_images(out, extraction.images)
    console.print(f"{len(extraction.images)} images in {plain(out)}")
    doubted = doubt(extraction)
    if doubted:
        console.print(f"[yellow]Doubtful:[/] {plain(doubted)}")


for _name, _command, _line in (
    ("demo", demo, "Run the whole way on embedded images, in a minute."),
    ("run", run, "Run one scenario."),
    ("sweep", sweep, "Run a grid of scenarios, and summarise over seeds."),
    ("report", report, "Write runs or sweeps as one HTML page."),
    ("extract", extract, "Read images back from a model file with a key."),
    ("audit", audit, "Look for hidden content in a checkpoint."),
    ("clean", clean, "Let a defence clean any model file."),
    ("gate", gate, "Let a model leave only if all of it changes."),
    ("list", list_components, "List what there is to choose from."),
    ("show", show, "Show what one of these does, and its keys."),
):
    app.command(_name, short_help=_line)(_command)
app.add_typer(codec_app, name="codec", short_help="Train and measure image codecs.")


def find_scenario(name: str) -> Path:
    """Return the path of a scenario file, or of a shipped one by its name.

    Raises:
        FlSimError: if there is neither; with the nearest name.
    """
    return find(name, SCENARIOS, "scenario")


def _run(
    scenario: Path, overrides: tuple[str, ...] | list[str], root: Path | None, out: Path | None
) -> None:
    from fl_sim.glance import at_a_glance

    # What is wrong in the scenario is said before torch is imported.
    at_a_glance("experiments.scenario", "Scenario", lambda s: s.from_toml(scenario, overrides))
    from experiments.console import make_console, plain, print_result
    from experiments.preflight import remarks
    from experiments.run import run as run_scenario
    from experiments.scenario import Scenario
    from fl_sim.bars import make_progress
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


def main(commands: typer.Typer = app) -> None:
    """Entry point: one sentence and exit code 2 for what a user can mend.

    After Ctrl-C, SIGTERM or SIGHUP, one sentence and 128 plus the signal's number.
    """
    # CompressAI's import; nothing that a user of this program could mend.
    warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has not every letter
    with _ending_in_words() as received:
        try:
            # Not standalone, so that Ctrl-C can be answered in words; typer makes it a code.
            code = commands(standalone_mode=False)
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
