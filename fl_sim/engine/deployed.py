"""A federation on Flower's deployment runtime, on this machine: a SuperLink and its SuperNodes.

Each is a process of its own. They speak TLS, a node is let in by its registered key alone, and all
of it is gone when the block ends: processes, keys and Flower's own folders, even if this process is
killed. Logs stay.
"""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fl_sim.engine.credentials import Certificates, NodeKey, make_certificates, make_node_key
from fl_sim.engine.session import cleared, locked_folder, sweep
from fl_sim.errors import FlSimError

if TYPE_CHECKING:
    from flwr.proto.run_pb2 import RunStatus
    from flwr.supercore.control import ControlHttpClient

Scalar = bool | int | float | str

ADDRESS = "127.0.0.1"
PATIENCE_SECONDS = 180.0
"""How long a process may take to start and to connect; a busy machine imports slowly."""
NODE_PATIENCE_SECONDS = 600
"""How long a node goes on trying to reach the SuperLink."""
_PREFIX = "deployment-"
_POLL_SECONDS = 0.5
_STATUS_SECONDS = 2.0
_ENDING_SECONDS = 10.0
_RAISED = "ServerApp failed with exception: "
_CAUSES = {
    "CERTIFICATE_VERIFY_FAILED": "it does not trust the SuperLink's certificate",
    "Failed to activate SuperNode": "its key is not registered with the SuperLink",
    "address already in use": "its port is taken by another program",
}
"""What Flower's processes log, and what it means."""


class App(NamedTuple):
    """What runs on the federation, from the code that is installed where it runs.

    Args:
        name: of the Flower app.
        server: its ServerApp, ``"module:name"``.
        client: its ClientApp.
        config: its settings with their defaults; only these can be set.
    """

    name: str
    server: str
    client: str
    config: Mapping[str, Scalar]

    def pyproject(self) -> str:
        """Return the app's ``pyproject.toml``, which is all of it: no code travels."""
        import tomli_w

        components = {"serverapp": self.server, "clientapp": self.client}
        flower = {"publisher": "fl-sim", "components": components, "config": dict(self.config)}
        project = {"name": self.name, "version": "1.0.0", "description": "", "license": ""}
        return tomli_w.dumps({"project": project, "tool": {"flwr": {"app": flower}}})


class Node(NamedTuple):
    """A hospital's SuperNode.

    Args:
        hospital: its number.
        number: Flower's number of the node; ``None`` where it is not registered.
        process: of ``flower-supernode``.
        log: what it writes.
        start: starts it again.
    """

    hospital: int
    number: int | None
    process: "subprocess.Popen[bytes]"
    log: Path
    start: "Callable[[], subprocess.Popen[bytes]]"


class Deployment:
    """A SuperLink and SuperNodes of this machine; made by :func:`deployment`.

    Args:
        folder: for keys and Flower's own folders; not kept.
        logs: folder for logs; kept.
        port: of the SuperLink; any free one where not given.
        address: of this machine that the SuperLink answers at.
    """

    def __init__(
        self, folder: Path, logs: Path, port: int | None = None, address: str = ADDRESS
    ) -> None:
        self.folder = folder
        self.logs = logs
        self.address = address
        self.port = _port(port, address)
        self.certificates: Certificates = make_certificates(folder, address)
        self.superlink: subprocess.Popen[bytes] | None = None
        self.nodes: list[Node] = []
        self._earlier: dict[Path, int] = {}  # bytes of each log that are of earlier runs
        self._control: ControlHttpClient | None = None

    def start_superlink(self) -> None:
        """Start the SuperLink and wait until it answers.

        Raises:
            FlSimError: if it ends, or does not answer in time.
        """
        self.superlink = self._start(
            "superlink",
            *("flower-superlink", "--host", self.address, "--port", str(self.port)),
            *("--ssl-ca-certfile", str(self.certificates.authority)),
            *("--ssl-certfile", str(self.certificates.certificate)),
            *("--ssl-keyfile", str(self.certificates.key)),
            *("--database", str(self.folder / "superlink.db")),
            *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
            FLWR_LOG_LEVEL="WARNING",  # its ServerApp's, too, whose output people read
        )
        self._wait(self._answers, "The SuperLink did not answer")

    def add_hospital(
        self,
        hospital: int,
        config: Mapping[str, Scalar],
        key: NodeKey | None = None,
        trusted: Path | None = None,
        within: Sequence[str] = (),
    ) -> Node:
        """Register a hospital's key and start its SuperNode.

        Args:
            hospital: its number, from 0.
            config: of its node; numbers, and strings without quotation marks.
            key: a key of its own, which is not registered here; otherwise one is made.
            trusted: certificate of the authority that it trusts; the SuperLink's by default.
            within: a command that it is started by, for example ``ip netns exec NAME``.
        """
        name = f"hospital-{hospital}"
        number = None
        if key is None:
            key = make_node_key(self.folder / f"{name}.key")
            number = self.register(key, name)
        command = (
            *("flower-supernode", "--superlink", f"{self.address}:{self.port}"),
            *("--root-certificates", str(trusted or self.certificates.authority)),
            *("--auth-supernode-private-key", str(key.private)),
            *("--node-config", " ".join(f"{k}={_quoted(v)}" for k, v in config.items())),
            *("--host", ADDRESS, "--port", str(_port(None, ADDRESS))),
            *("--max-wait-time", str(NODE_PATIENCE_SECONDS)),
        )

        def start() -> "subprocess.Popen[bytes]":
            return self._start(name, *command, within=within)

        node = Node(hospital, number, start(), self._log(name), start)
        self.nodes.append(node)
        return node

    def restart(self, node: Node) -> None:
        """Start a node that has ended again, with its key."""
        self.nodes[self.nodes.index(node)] = node._replace(process=node.start())

    def register(self, key: NodeKey, name: str) -> int:
        """Let the SuperLink know a node's key; returns the node's number."""
        from flwr.proto.control_pb2 import RegisterNodeRequest

        request = RegisterNodeRequest(public_key=key.public, name=name)
        with self._answered():
            return int(self._client().RegisterNode(request).node_id)

    def wait_for_hospitals(self) -> None:
        """Wait until every hospital's node is online.

        Raises:
            FlSimError: if one of them ends, is not let in, or is not online in time.
        """
        self._wait(self._all_online, "A hospital's SuperNode did not connect")

    def run(self, app: App, config: Mapping[str, Scalar], say: Callable[[str], None]) -> None:
        """Run an app to its end.

        Args:
            app: what is run.
            config: settings of this run.
            say: is told each line that the ServerApp prints, and which hospitals have gone.

        Raises:
            FlSimError: what ended the ServerApp, or that the SuperLink or all nodes have ended.
        """
        run = self._submit(app, config)
        reader = threading.Thread(target=self._read_aloud, args=(run, say), daemon=True)
        reader.start()
        told: set[int] = set()
        while (status := self._status(run)) is None or status.status != "finished":
            self._report_gone(told, say)
            time.sleep(_STATUS_SECONDS)
        reader.join(_ENDING_SECONDS)
        if status.sub_status != "completed":
            reason = status.details.removeprefix(_RAISED) or f"The run was {status.sub_status}."
            raise FlSimError(reason)

    def stop(self) -> None:
        """End the nodes, then the SuperLink."""
        processes = [node.process for node in self.nodes]
        for group in (processes, [self.superlink] if self.superlink else []):
            for process in group:
                with suppress(OSError):
                    process.send_signal(signal.SIGCONT)
                    process.terminate()
            end = time.monotonic() + _ENDING_SECONDS
            for process in group:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, end - time.monotonic()))
        for process in [*processes, *([self.superlink] if self.superlink else [])]:
            if process.poll() is None:
                process.kill()
                process.wait()
        if self._control is not None:
            self._control.close()

    def _start(
        self,
        name: str,
        program: str,
        *arguments: str,
        within: Sequence[str] = (),
        **variables: str,
    ) -> "subprocess.Popen[bytes]":
        programs = Path(sys.executable).parent
        home = self.folder / name
        home.mkdir(mode=0o700, exist_ok=True)
        environment = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
            **variables,
        }
        with open(self._log(name), "ab") as log:
            self._earlier[self._log(name)] = log.tell()
            return subprocess.Popen(
                [*within, str(programs / program), *arguments],
                env=environment,
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process, which ends them in order
            )

    def _why(self, log: Path, status: int) -> str:
        """Say what a process's log says, or how it ended."""
        text = log.read_bytes()[self._earlier.get(log, 0) :].decode(errors="replace")
        for sign, cause in _CAUSES.items():
            if sign in text:
                return cause
        return _ended(status)

    def _log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def _client(self) -> "ControlHttpClient":
        if self._control is None:
            from flwr.supercore.control import ControlHttpClient
            from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

            self._control = ControlHttpClient.from_server_address(
                f"{self.address}:{self.port}",
                insecure=False,
                root_certificates=self.certificates.authority.read_bytes(),
                interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
            )
        return self._control

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Say in one sentence that the SuperLink has not answered a request, or refused it."""
        import httpx

        try:
            yield
        except httpx.HTTPError as error:
            raise FlSimError(
                f"The SuperLink did not do what it was asked: {str(error).splitlines()[0]}; see "
                f"the logs in {self.logs}."
            ) from error

    def _wait(self, done: Callable[[], bool], otherwise: str) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not done():
            if time.monotonic() > end:
                raise FlSimError(
                    f"{otherwise} within {PATIENCE_SECONDS:g} seconds; see the logs in {self.logs}."
                )
            time.sleep(_POLL_SECONDS)

    def _answers(self) -> bool:
        self._check_superlink("could not be started")
        with suppress(OSError), socket.create_connection((self.address, self.port), 1.0):
            return True
        return False

    def _check_superlink(self, what: str) -> None:
        assert self.superlink is not None
        status = self.superlink.poll()
        if status is not None:
            log = self._log("superlink")
            raise FlSimError(
                f"The SuperLink {what}: {self._why(log, status)}; its log is {log}, and the same "
                "command continues where it stopped."
            )

    def _all_online(self) -> bool:
        import httpx
        from flwr.proto.control_pb2 import ListNodesRequest

        self._check_superlink("has ended")
        for node in self.nodes:
            self._check_connecting(node)
        try:
            listed = self._client().ListNodes(ListNodesRequest()).nodes_info
        except httpx.TransportError:  # too busy to answer
            return False
        online = {int(node.node_id) for node in listed if node.status == "online"}
        return all(node.number in online for node in self.nodes)

    def _check_connecting(self, node: Node) -> None:
        """Refuse a node that has ended."""
        status = node.process.poll()
        if status is not None:
            raise FlSimError(
                f"Hospital {node.hospital}'s SuperNode could not join: "
                f"{self._why(node.log, status)}; its log is {node.log}."
            )

    def _submit(self, app: App, config: Mapping[str, Scalar]) -> int:
        from flwr.cli.build import build_fab_from_files
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        content, _ = build_fab_from_files({"pyproject.toml": app.pyproject().encode()})
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        request = StartRunRequest(
            fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(config))
        )
        with self._answered():
            reply = self._client().StartRun(request)
        if not reply.HasField("run_id"):
            raise FlSimError(f"The SuperLink did not start the run; see the logs in {self.logs}.")
        return int(reply.run_id)

    def _status(self, run: int) -> "RunStatus | None":
        import httpx
        from flwr.proto.control_pb2 import ListRunsRequest

        self._check_superlink("has ended")
        try:
            listed = self._client().ListRuns(ListRunsRequest(run_id=run)).run_dict
        except httpx.TransportError:  # too busy to answer, or ending
            return None
        return listed[run].status if run in listed else None

    def _read_aloud(self, run: int, say: Callable[[str], None]) -> None:
        from flwr.proto.control_pb2 import StreamLogsRequest

        with suppress(Exception):  # the log of a SuperLink that has ended says more
            for part in self._client().StreamLogs(
                StreamLogsRequest(run_id=run, after_timestamp=0.0)
            ):
                for line in part.log_output.splitlines():
                    say(line)

    def _report_gone(self, told: set[int], say: Callable[[str], None]) -> None:
        """Say which nodes have ended, each process once.

        Args:
            told: processes that it has said so of; it adds to them.
            say: is told.
        """
        gone = [(node, node.process.poll()) for node in self.nodes]
        for node, status in gone:
            if status is not None and node.process.pid not in told:
                told.add(node.process.pid)
                say(
                    f"Warning: Hospital {node.hospital}'s SuperNode has ended: "
                    f"{_ended(status)}; its log is {node.log}."
                )
        if gone and all(status is not None for _, status in gone):
            raise FlSimError(
                f"No hospital's SuperNode is left; see the logs in {self.logs}. The same command "
                "continues where it stopped."
            )


@contextmanager
def deployment(
    place: Path, port: int | None = None, address: str = ADDRESS
) -> Iterator[Deployment]:
    """Make a deployment on this machine for the enclosed block.

    Args:
        place: folder in which keys and Flower's folders lie meanwhile, and logs for good.
        port: of the SuperLink; any free one where not given.
        address: of this machine that the SuperLink answers at.

    Raises:
        FlSimError: if the port is taken.
    """
    logs = place / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    sweep(place, _PREFIX)
    folder, lock = locked_folder(place, _PREFIX)
    with cleared(folder, lock):
        made = Deployment(folder, logs, port, address)
        try:
            yield made
        finally:
            made.stop()


def _port(wanted: int | None, address: str) -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        # As the server itself will: what a closed connection has left does not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, wanted or 0))
        except OSError as error:
            raise FlSimError(
                f"Port {wanted} cannot be had on this machine: {error.strerror}; give another with "
                "--port, or none for any that is free."
            ) from None
        return int(probe.getsockname()[1])


def _quoted(value: Scalar) -> str:
    if isinstance(value, str):
        if '"' in value or "\\" in value or not value.isprintable():
            raise FlSimError(f"Flower takes no quotation mark or backslash in {value!r}.")
        return f'"{value}"'
    return str(value).lower() if isinstance(value, bool) else str(value)


def _ended(status: int) -> str:
    if status < 0:
        return f"it was killed by {signal.Signals(-status).name}"
    return f"it gave exit code {status}"
