"""A federation on the deployment runtime: who is let in, what is said, and that nothing is left."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_sim.engine.credentials import make_certificates, make_node_key
from fl_sim.engine.deployed import ADDRESS, App, Deployment, deployment
from fl_sim.errors import FlSimError

ROOT = str(Path(__file__).parents[2])

# A program with a federation whose SuperLink is a sleeping process.
DRIVER = """
import sys, time
from pathlib import Path
from fl_sim.engine.deployed import deployment
with deployment(Path(sys.argv[1])) as made:
    asleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    made.superlink = made._start("superlink", "none", within=asleep)
    print(made.folder, made.superlink.pid, flush=True)
    time.sleep(600)
"""


def _lives(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_but_logs(tmp_path: Path, number: signal.Signals) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": ROOT},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert driver.stdout is not None
    folder, process = driver.stdout.readline().split()
    assert _lives(int(process)) and (Path(folder) / "superlink.key").exists()
    driver.send_signal(number)
    driver.wait(60)
    end = time.monotonic() + 60
    while (_lives(int(process)) or Path(folder).exists()) and time.monotonic() < end:
        time.sleep(0.1)
    assert not _lives(int(process))
    assert [entry.name for entry in tmp_path.iterdir()] == ["logs"]


def test_a_port_in_use_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind((ADDRESS, 0))
        other.listen()
        port = other.getsockname()[1]
        said = f"Port {port} cannot be had .* in use; give another"
        with pytest.raises(FlSimError, match=said), deployment(tmp_path, port):
            pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["logs"]


def test_a_superlink_that_ends_at_its_start_is_told_of(tmp_path: Path) -> None:
    with deployment(tmp_path) as made:
        made._start = lambda *a, **k: subprocess.Popen(["false"])  # type: ignore[method-assign]
        (made.logs / "superlink.log").write_text("no room\n")
        with pytest.raises(FlSimError, match=r"SuperLink could not be started: .*exit code 1"):
            made.start_superlink()


def test_nodes_that_end_are_told_of_once_and_the_last_ends_the_run(tmp_path: Path) -> None:
    with deployment(tmp_path) as made:
        made._start = lambda *a, **k: subprocess.Popen(["sleep", "60"])  # type: ignore[method-assign]
        made.register = lambda key, name: 7  # type: ignore[method-assign]
        nodes = [made.add_hospital(number, {"partition-id": number}) for number in range(2)]
        said: list[str] = []
        told: set[int] = set()
        nodes[1].process.kill()
        nodes[1].process.wait()
        for _ in range(2):
            made._report_gone(told, said.append)
        (line,) = said
        assert line.startswith(
            "Warning: Hospital 1's SuperNode has ended: it was killed by SIGKILL"
        )
        made.restart(nodes[1])
        nodes[0].process.kill()
        nodes[0].process.wait()
        made._report_gone(told, said.append)
        assert len(said) == 2 and "Hospital 0" in said[1]
        made.nodes[1].process.kill()
        made.nodes[1].process.wait()
        with pytest.raises(FlSimError, match="No hospital's SuperNode is left"):
            made._report_gone(told, said.append)


def test_no_code_travels() -> None:
    from flwr.cli.build import build_fab_from_files

    app = App("an-app", "one.module:server", "other.module:client", {"out": ""})
    content, _ = build_fab_from_files({"pyproject.toml": app.pyproject().encode()})
    assert len(content) < 2000
    assert b".py" not in content.replace(b"pyproject", b"")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("federation")) as made:
        made.start_superlink()
        yield made


@pytest.fixture
def alone(made: Deployment) -> Iterator[Deployment]:
    """The SuperLink without the nodes of the test before."""
    yield made
    for node in made.nodes:
        node.process.kill()
        node.process.wait()
    made.nodes.clear()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_key_that_is_not_registered_is_not_let_in(alone: Deployment, tmp_path: Path) -> None:
    alone.add_hospital(0, {"partition-id": 0}, key=make_node_key(tmp_path / "stranger.key"))
    with pytest.raises(FlSimError, match="Hospital 0's SuperNode could not join: its key is not"):
        alone.wait_for_hospitals()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_refuses_a_certificate_that_it_does_not_trust(
    alone: Deployment, tmp_path: Path
) -> None:
    other = make_certificates(tmp_path, ADDRESS)
    alone.add_hospital(1, {"partition-id": 1}, trusted=other.authority)
    with pytest.raises(FlSimError, match=r"Hospital 1's .* could not join: it does not trust"):
        alone.wait_for_hospitals()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_that_dies_at_its_start_is_told_of(alone: Deployment) -> None:
    node = alone.add_hospital(2, {"partition-id": 2})
    node.process.kill()
    with pytest.raises(FlSimError, match=r"Hospital 2's SuperNode could not join: .*SIGKILL"):
        alone.wait_for_hospitals()
