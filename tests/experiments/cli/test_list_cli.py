"""What the command line says of itself and of what there is: list, show, help, completion."""

import json
import os
import resource
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
from typer.testing import CliRunner

from experiments.catalogue.contents import FILES, KINDS, TABLE, TABLES, Catalogue, Item
from experiments.catalogue.keys import arguments, keys_of, prose, written
from experiments.catalogue.sample import sample
from experiments.cli.main import app
from experiments.cli.program import program
from experiments.run.scenario import Scenario
from experiments.run.shipped import shipped
from tests.experiments.cli_kit import ROOT, fl_sim

CATALOGUE = Catalogue()
ITEMS = [Item(kind.name, name) for kind in KINDS for name in CATALOGUE.names(kind.name)]
ITEMS += [Item(TABLE, name) for name in TABLES]


def _said(*arguments: str, code: int = 0, **environment: str) -> str:
    done = fl_sim(*arguments, **environment)
    assert done.returncode == code, done.stderr
    return done.stdout or done.stderr


_START = "import sys; sys.argv[0] = 'fl-sim'; from experiments.cli.main import main; "


def _program(program: str, *arguments: str, **environment: str) -> str:
    """Start Python for a program that has the command line's ``main``; return what it prints."""
    return subprocess.run(
        [sys.executable, "-c", _START + program, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout


def _commands(
    command: click.Command, name: str = "fl-sim"
) -> Iterator[tuple[str, click.Command, click.Context]]:
    context = click.Context(command, info_name=name)
    yield name, command, context
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            one = command.get_command(context, inner)
            assert one is not None
            yield from _commands(one, f"{name} {inner}")


ALL = [*_commands(typer.main.get_command(app))]


@pytest.mark.parametrize(("name", "command"), [(n, c) for n, c, _ in ALL])
def test_help_shows_every_word_of_every_parameter(name: str, command: click.Command) -> None:
    path = name.split()[1:]
    outputs = [
        CliRunner().invoke(app, [*path, option], terminal_width=200).output
        for option in ("-h", "--help")
    ]
    assert outputs[0] == outputs[1] and "Usage" in outputs[0] and "\\[" not in outputs[0]
    shown = " ".join(outputs[0].split())
    for parameter in command.params:
        said = getattr(parameter, "help", None)
        assert said, parameter.name
        assert " ".join((said or "").split()) in shown, parameter.name
    for paragraph in (command.help or "").split("\n\n"):
        assert " ".join(paragraph.split()) in shown


def test_placeholders_in_angle_brackets_are_shown() -> None:
    assert "runs/<scenario>-seed<seed>" in _said("run", "--help")
    assert "runs/<grid>" in _said("sweep", "-h")


def test_a_script_of_one_command_has_the_same_help() -> None:
    one = program()

    @one.command()
    def study(out: str = "runs/<name>") -> None:
        """Study <something>."""

    shown = CliRunner().invoke(one, ["-h"]).output
    assert "Study <something>." in shown and "[default: runs/<name>]" in shown


def test_version() -> None:
    assert _said("--version") == "fl-sim 0.1.0\n"


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: f"{item.kind}-{item.name}")
def test_every_example_can_be_used_and_every_key_has_a_meaning(item: Item) -> None:
    details = CATALOGUE.details(item)
    values: dict[str, Any] = tomllib.loads(sample(item, details))
    mode = "federated" if "federation" in values else "centralized"
    scenario = Scenario.create(**{"mode": mode, "dataset": "phantoms", "model": "cnn", **values})
    assert item.kind != "attack" or (scenario.attack and scenario.attack.name == item.name)
    for key in keys_of(details.settings) if details.settings else ():
        assert key.meaning and "any value" not in key.values, key


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: f"{item.kind}-{item.name}")
def test_everything_is_shown(item: Item) -> None:
    shown = CliRunner().invoke(app, ["show", item.kind, item.name])
    assert shown.exit_code == 0, shown.output
    words = " ".join(shown.output.split())
    details = CATALOGUE.details(item)
    assert f"{item.name} (" in words and " ".join(details.summary.split()) in words
    assert sample(item, details) in shown.output
    for key in keys_of(details.settings) if details.settings else ():
        assert f"{key.name} = " in words or f"{key.name}, " in words
    assert all(" ".join(prose(text).split())[:40] in words for text in details.about)


def test_a_component_names_its_source() -> None:
    assert "arXiv 2509.00027" in _said("show", "lwlrd")
    said = _said("show", "attack", "dec")
    assert "MELBA" in said and "codec_steps" in said and 'carrier = "lsb"' in said
    assert "above 0" in _said("show", "fedadam") and "resnet50 (model)" in _said("show", "resnet50")


def test_scenarios_and_grids_are_shown_as_they_are() -> None:
    for kind, (_, one) in FILES.items():
        for name, file in shipped(one).items():
            shown = CliRunner().invoke(app, ["show", kind, name]).output
            assert file.read_text().rstrip() in shown


MISTAKES = [
    (["show", "lwlrdd"], "Did you mean 'lwlrd'?"),
    (["show", "attack", "lwlrd"], "There is no attack called 'lwlrd'"),
    (["show", "atack", "dec"], "Did you mean 'attack'?"),
    (["show", "zzzzzz"], "'fl-sim list' names all"),
    (["list", "atacks"], "Did you mean 'attacks'?"),
    (["run", "my.toml"], "The scenario file my.toml does not exist."),
    (["run", "my.tml"], "The scenario file my.tml does not exist."),
    (["run", "./my"], "does not exist"),
    (["run", "my/scenario"], "The scenario file my/scenario does not exist."),
    (["sweep", "my.tml"], "The grid file my.tml does not exist."),
    (["sweep", "demoo"], "Did you mean 'demo'?"),
    (["run", "demo-centralized", "--set", "dataset=x.csv"], "the path of an .npz file"),
    (["run", "demo-centralized", "--set", "model=resnt18"], "Did you mean 'resnet18'?"),
    (["run", "demo-centralized", "--set", "attack.imges=3"], "Did you mean 'images'?"),
    (["run", "demo-centralized", "--set", "training.epochs=-1"], "greater than 0"),
    (["sweep", "demo", "--set", "training.epchs=2"], "Did you mean 'epochs'?"),
    (["codec", "train", "png", "--dataset", "phntoms", "--out", "x"], "'phantoms'"),
    (["codec", "train", "hfic", "--dataset", "phantoms", "--out", "x"], "'hific'"),
    (["codec", "evaluate", "gzp", "--dataset", "phantoms"], "'gzip'"),
]


@pytest.fixture(scope="module")
def ended() -> dict[str, tuple[int, str, bool]]:
    """How each mistake ends: exit code, what is said, whether torch has been imported by then."""
    program = """
import io, json
from contextlib import redirect_stderr
ends = {}
for words in json.loads(sys.argv.pop()):
    sys.argv[1:] = words
    with redirect_stderr(io.StringIO()) as said:
        try:
            main()
        except SystemExit as end:
            ends[json.dumps(words)] = end.code, said.getvalue(), "torch" in sys.modules
print(json.dumps(ends))
"""
    ends: dict[str, tuple[int, str, bool]]
    ends = json.loads(_program(program, json.dumps([words for words, _ in MISTAKES])))
    return ends


@pytest.mark.parametrize(("arguments", "words"), MISTAKES)
def test_a_mistake_is_one_sentence_and_torch_is_not_imported(
    arguments: list[str], words: str, ended: dict[str, tuple[int, str, bool]]
) -> None:
    code, said, torch_imported = ended[json.dumps(arguments)]
    assert code == 2 and words in " ".join(said.splitlines()) and said.count("Error") == 1
    assert not torch_imported


def test_what_needs_no_data_takes_little_time() -> None:
    for words in (["--help"], ["list"], ["show", "dec"]):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        _program("main()", *words)
        # Less than a second where nothing else runs; importing torch alone takes more than two.
        assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 2


def test_the_list_as_json_and_of_one_kind() -> None:
    everything = json.loads(_said("list", "--json"))
    assert set(everything) == {*(kind.name for kind in KINDS), *FILES}
    assert everything["partition"]["dirichlet"] and everything["attack"]["dec"]
    assert "<file>.npz" in everything["dataset"]
    only = json.loads(_said("list", "defenses", "--json"))
    assert only == {"defence": everything["defence"]}
    text = _said("list", "attacks")
    assert "transpose" in text and "lwlrd" not in text and text == _said("show", "attack")


@pytest.mark.parametrize(
    ("words", "found", "others"),
    [
        ("run demo-", ["demo-centralized", "demo-federated"], ["demo"]),
        ("run ex", ["experiments/"], []),
        ("run experiments/scenarios/grids/d", ["experiments/scenarios/grids/demo.toml"], []),
        ("sweep de", ["demo", "defenses-dermamnist"], ["demo-federated"]),
        ("show lw", ["lwlrd", "lwlrd_uniform"], ["transpose"]),
        ("show attack d", ["dec"], ["distillation"]),
        ("list c", ["codecs", "carriers", "codes"], ["cnn"]),
        ("codec train f", ["factorized"], ["fedavg"]),
        ("run x --da", ["--data-root"], []),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(words: str, found: list[str], others: list[str], shell: str) -> None:
    line = f"fl-sim {words}"
    said = _said(
        _FL_SIM_COMPLETE=f"complete_{shell}",
        COMP_WORDS=line,
        COMP_CWORD=str(len(line.split()) - 1),
        _TYPER_COMPLETE_ARGS=line,
    )
    offered = said.replace('"', "\n").replace(":", "\n").split("\n")
    assert [name for name in found if name not in offered] == []
    assert [name for name in others if name in offered] == []


def test_completion_can_be_installed(tmp_path: Path) -> None:
    # Outside a shell, typer takes the shell's name, when told to.
    plain = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    said = _said("--show-completion", "bash", **plain)
    assert "complete -o default -F _fl_sim_completion fl-sim" in said
    _said("--install-completion", "bash", **plain)
    assert (tmp_path / ".bash_completions/fl-sim.sh").read_text().strip() == said.strip()


@pytest.mark.parametrize(
    "arguments", [["list"], ["show", "factorized"], ["run", "--help"], ["show", "demo"]]
)
def test_a_terminal_without_letters_and_warnings_that_are_errors_do_not_stop_it(
    arguments: list[str],
) -> None:
    ways = {"PYTHONIOENCODING": "ascii", "PYTHONWARNINGS": "error"}
    said = _program("main()", *arguments, **ways)
    assert said.isascii() and len(said) > 200


def test_docstrings_are_read_with_what_is_inherited() -> None:
    class Base:
        """Base.

        Args:
            one, two: both
                of them.
            three: overridden.

        Raises:
            ValueError: no key.
        """

    class Own(Base):
        """Own :class:`x.Y` and ``code``.

        More.

        Args:
            three: see :func:`f`.
        """

    assert arguments(Own) == {"one": "both of them.", "two": "both of them.", "three": "see f."}
    assert prose(Own.__doc__ or "") == "Own x.Y and code.\n\nMore."
    listed = "Steps:\n\n1. One\n   more.\n2. Two.\n\nAnd\nso on::\n\n    kept\n    as it is\n"
    assert prose(listed) == (
        "Steps:\n\n1. One more.\n2. Two.\n\nAnd so on:\n\n    kept\n    as it is"
    )


def test_values_are_written_as_toml_reads_them() -> None:
    for value in (1, 2.5, 1e-5, True, 'a"b\\é', [1, 2], {"name": "x", "list": ["y"]}, []):
        assert tomllib.loads(f"value = {written(value)}")["value"] == value
