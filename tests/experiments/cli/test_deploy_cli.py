"""``fl-sim deploy``: a federation of processes gives the table of the simulation, and is gone."""

import re
import tomllib
from pathlib import Path

import pytest

from experiments.run.deployed_app import APP
from experiments.run.start import run
from fl_sim.engine import reaper
from fl_sim.results import read_table, without_timings
from tests.experiments.cli_kit import ROOT, fl_sim

SCENARIO = """
mode = "federated"
dataset = {name = "phantoms", size = 16, train = 96, validation = 40, test = 40}
model = "mlp"
threads = 1
attack = {name = "transpose", images = 4}
data = {public_images = 16}
measure = {scratch_epochs = 1}
training = {batch_size = 32, epochs = 1}
federation = {hospitals = 3, rounds = 1, malicious = [0], engine = "inprocess"}
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.toml"
    path.write_text(SCENARIO)
    return path


def _processes_with(mark: str) -> list[str]:
    """Return the command lines of processes that a session has started and that live."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_table_is_the_simulations(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "deployed"
    done = fl_sim(
        *("deploy", str(scenario), "--hospitals", "2", "--set", "seed=3", "--out", str(out))
    )
    assert done.returncode == 0, done.stderr
    assert "2 hospitals are connected." in done.stdout
    scenario.write_text("seed = 3\n" + SCENARIO.replace("hospitals = 3", "hospitals = 2"))
    simulated = run(scenario, tmp_path / "simulated", progress=False)
    assert simulated.table["metric"].nunique() > 10
    tables = [
        without_timings(read_table(folder / "results.csv"))
        for folder in (out, tmp_path / "simulated")
    ]
    assert tables[0].equals(tables[1])
    logs = {file.name for file in (out / "logs").iterdir()}
    assert logs == {"superlink.log", "hospital-0.log", "hospital-1.log"}
    assert not list(out.glob("deployment-*"))
    assert not _processes_with(f"{reaper.MARK}={out}")


def test_a_centralized_scenario_is_refused(tmp_path: Path) -> None:
    done = fl_sim("deploy", "demo-centralized", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert 'fl-sim deploy needs a scenario with mode = "federated".' in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_page_has_the_app_that_runs_in_a_trial() -> None:
    page = (ROOT / "docs" / "use" / "deploy.md").read_text()
    (shown,) = re.findall(r"```ini\n(\[project\].*?)```", page, re.DOTALL)
    assert tomllib.loads(shown) == tomllib.loads(APP.pyproject())


def test_no_hospital_is_refused(scenario: Path) -> None:
    done = fl_sim("deploy", str(scenario), "--hospitals", "0")
    assert done.returncode == 2 and "--hospitals" in done.stderr
