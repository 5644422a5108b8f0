"""Flower's own command and its daemon, apart from any that the user has, and ended afterwards."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 120  # Flower itself gives its daemon 15, too few on a busy machine


@contextmanager
def flower(home: Path) -> Iterator[dict[str, str]]:
    """Run a SuperLink as ``flwr run`` would start it; yields the environment for ``flwr``."""
    http, control = _free_port(), _free_port()
    programs = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(":"),
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(http),
        "FLWR_LOCAL_CONTROL_API_PORT": str(control),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [
        *(str(programs / "flower-superlink"), "--insecure", "--simulation"),
        *("--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(http)),
        *("--control-api-address", f"127.0.0.1:{control}"),
        *("--database", str(home / "state.db"), "--log-file", str(home / "superlink.log")),
    ]
    home.mkdir()
    daemon = subprocess.Popen(
        command,
        env=environment,
        cwd=home,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(daemon, f"http://127.0.0.1:{http}/health")
        yield environment
    finally:
        os.killpg(daemon.pid, signal.SIGTERM)
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(daemon: subprocess.Popen[bytes], address: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        assert daemon.poll() is None, f"flower-superlink ended with {daemon.returncode}"
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError("flower-superlink does not answer")
