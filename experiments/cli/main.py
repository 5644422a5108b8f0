"""The command line, ``fl-sim``: every command is a module beside this."""

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from io import TextIOWrapper
from types import FrameType
from typing import Annotated, NoReturn

import click
import typer

from experiments.cli.audit import audit, gate
from experiments.cli.clean import clean
from experiments.cli.codec import app as codec_app
from experiments.cli.demo import demo
from experiments.cli.deploy import deploy
from experiments.cli.extract import extract
from experiments.cli.invert import invert
from experiments.cli.leaderboard import app as leaderboard_app
from experiments.cli.listing import list_components, show
from experiments.cli.membership import membership
from experiments.cli.policy import app as policy_app
from experiments.cli.program import program
from experiments.cli.release import release, verify
from experiments.cli.report import report
from experiments.cli.rhe import app as rhe_app
from experiments.cli.run import run
from experiments.cli.study import app as study_app
from experiments.cli.sweep import sweep
from experiments.cli.tune import tune
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


for _name, _command, _line in (
    ("demo", demo, "Run the whole way on embedded images, in a minute."),
    ("run", run, "Run one scenario."),
    ("deploy", deploy, "Run one on a real federation, for a trial on this machine."),
    ("sweep", sweep, "Run a grid of scenarios, and summarise over seeds."),
    ("tune", tune, "Choose defences' settings away from the test set."),
    ("report", report, "Write runs or sweeps as one HTML page."),
    ("extract", extract, "Read images back from a model file with a key."),
    ("audit", audit, "Look for hidden content in a checkpoint."),
    ("clean", clean, "Let a defence clean any model file."),
    ("gate", gate, "Let a model leave only if all of it changes."),
    ("membership", membership, "Tell which images any model file was trained on."),
    ("invert", invert, "Look for images of any model file's classes."),
    ("release", release, "Decide by a policy whether a model may leave."),
    ("verify", verify, "Check a folder that was released."),
    ("list", list_components, "List what there is to choose from."),
    ("show", show, "Show what one of these does, and its keys."),
):
    app.command(_name, short_help=_line)(_command)
app.add_typer(codec_app, name="codec", short_help="Train and measure image codecs.")
app.add_typer(
    leaderboard_app,
    name="leaderboard",
    short_help="Show defences side by side, and measure another.",
)
app.add_typer(policy_app, name="policy", short_help="Explain policies for releases.")
app.add_typer(rhe_app, name="rhe", short_help="Seal a model's head, and use it sealed.")
app.add_typer(study_app, name="study", short_help="Run a study: its cells, its table, its figure.")


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
    from experiments.tables.console import make_console, plain

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
