"""The command line: what it prints, its exit codes, and that it teaches."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments.cli.main import app
from experiments.cli.run import find_scenario
from fl_sim.errors import FlSimError
from tests.experiments.cli_kit import ROOT, fl_sim

SCENARIO = """
mode = "centralized"
dataset = {name = "phantoms", size = 16, train = 80, validation = 40, test = 40}
model = "cnn"
threads = 1
[training]
epochs = 1
[attack]
name = "transpose"
images = 4
[defense]
name = "lwlrd"
epochs = 1
[measure]
scratch_epochs = 1
"""


def _program(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    environment = {**os.environ, "COLUMNS": "100", "FL_SIM_CACHE": str(cwd / "cache")}
    return subprocess.run(
        [sys.executable, "-m", "experiments.cli.main", *arguments],
        cwd=cwd,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_a_scenario_file_is_run_and_its_images_are_extracted(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SCENARIO)
    done = _program("run", "s.toml", "--set", "seed=3", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "AUC" in done.stdout and "release" in done.stdout and "attack: " in done.stdout
    assert (tmp_path / "out/images/recovered.png").read_bytes()[:4] == b"\x89PNG"
    files = ("out/artifacts/release.safetensors", "out/keys/hospital-0.safetensors")
    done = _program("extract", *files, "--out", "png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "png").glob("*.png"))) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere.toml"], "does not exist"),
        (["run", "demo-centralised"], "Did you mean 'demo-centralized'"),
        (["run", "demo-centralized", "--set", "attack.imges=3"], "Did you mean 'images'"),
        (["run", "demo-centralized", "--data-root", "/no/such/folder"], "not a folder"),
        (["run", "demo-centralized", "--set", "attack.images=100000"], "lower it"),
        (["run", "demo-centralized", "--set", "dataset=none.npz"], "none.npz"),
        (["extract", "a.safetensors", "k.safetensors"], "does not exist"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence_and_exit_code_2(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = fl_sim(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_file_that_is_missing_without_a_network_is_named(tmp_path: Path) -> None:
    words = ["--set", "dataset=bloodmnist", "--data-root", "."]
    done = fl_sim("run", "demo-centralized", *words, cwd=tmp_path, FL_SIM_OFFLINE="1")
    assert done.returncode == 2 and "bloodmnist.npz" in done.stderr


def test_help_teaches() -> None:
    runner = CliRunner()
    top = runner.invoke(app, ["--help"]).output
    assert all(command in top for command in ("demo", "run", "list", "extract"))
    assert "--set" in runner.invoke(app, ["run", "--help"], terminal_width=120).output


def test_the_list_has_every_kind_and_imports_nothing_large() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from experiments.cli.main import app;"
        "print(CliRunner().invoke(app, ['list']).output);"
        "print([m for m in ('torch', 'flwr', 'ray', 'pandas', 'numpy') if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    for word in ("dermamnist", "resnet18", "transpose", "lwlrd", "affine", "krum", "dirichlet"):
        assert word in output, word
    assert output.strip().endswith("[]")


def test_scenarios_are_found_by_name_or_path(tmp_path: Path) -> None:
    assert find_scenario("demo-federated").name == "demo-federated.toml"
    with pytest.raises(FlSimError, match="does not exist"):
        find_scenario(str(tmp_path / "x.toml"))


def test_an_interrupted_run_says_how_to_continue(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SCENARIO.replace("epochs = 1", "epochs = 9999", 1))
    run = subprocess.Popen(
        [sys.executable, "-m", "experiments.cli.main", "run", "s.toml", "--out", "out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs tests in the background makes its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (tmp_path / "out/keys").exists() and run.poll() is None:
        time.sleep(0.2)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "the same command continues" in errors and "Traceback" not in errors


def test_a_wrong_option_is_a_sentence_and_exit_code_2(tmp_path: Path) -> None:
    done = _program("run", "--sett", "a=1", cwd=tmp_path)
    assert done.returncode == 2 and "--set" in done.stderr and "Traceback" not in done.stderr
    nothing = fl_sim(cwd=tmp_path)
    assert "Usage" in nothing.stdout + nothing.stderr
