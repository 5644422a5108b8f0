"""What an engine is: it runs a server's main function against hospitals that are Flower ClientApps.

Both engines run the same two sides and give the same numbers, bit for bit, on the same machine:
messages are copied on the way, so neither side sees the other's arrays; hospitals compute with one
thread on either engine, because a float sum depends on how many threads share it; and the server's
side computes with as many threads as its caller has set, whichever thread it runs in.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from pydantic import Field

from fl_sim.errors import FlSimError
from fl_sim.registry import Registry
from fl_sim.settings import Settings

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid

T = TypeVar("T")


class EngineSettings(Settings):
    """Where hospitals run.

    Args:
        engine: ``"ray"`` runs hospitals in parallel processes, here or on a cluster, and costs
            about 15 seconds a run; ``"inprocess"`` runs them one after another in this process:
            for small models, tests and debuggers.
        cpus_per_hospital: cores that Ray reserves for a hospital at work; as many work at once as
            fit. A hospital computes with one thread, so more than 1 only saves memory.
        gpus_per_hospital: GPUs (or a fraction of one) that Ray reserves for a hospital at work;
            above zero, hospitals compute on ``cuda``, on either engine.
        ray_address: address of a running Ray cluster, for example ``"auto"`` or
            ``"ray://head:10001"``; none starts one for this run.
        round_timeout: seconds that a hospital may take in a round. Its own time counts, not what it
            waits for its turn; one that is late is left out of the round. Flower's messages live
            for 12 hours.
        verbose: show Flower's and Ray's own log messages.
    """

    engine: Literal["ray", "inprocess"] = "ray"
    cpus_per_hospital: float = Field(1.0, gt=0)
    gpus_per_hospital: float = Field(0.0, ge=0)
    ray_address: str | None = None
    round_timeout: float = Field(43200.0, gt=0)
    verbose: bool = False

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where a hospital computes; the server tells it in each message's ``"device"``."""
        return "cuda" if self.gpus_per_hospital > 0 else "cpu"


class Engine(Protocol):
    """A function that runs a federation; see :func:`run` for its arguments."""

    def __call__(
        self,
        settings: EngineSettings,
        main: "Callable[[Grid], T]",
        client_app: "ClientApp",
        hospitals: int,
    ) -> T:
        """Run ``main`` and return what it returns."""


ENGINES: Registry[Engine] = Registry("engine", "fl_sim.engine")


def run(
    settings: EngineSettings,
    main: "Callable[[Grid], T]",
    client_app: "ClientApp",
    hospitals: int,
) -> T:
    """Run a server's main function with a grid of hospitals.

    Args:
        settings: which engine, and its resources.
        main: the server's side; it gets a Flower ``Grid`` whose nodes are the hospitals and
            usually calls a strategy's ``start(grid, ...)``.
        client_app: the hospitals' side. Whatever it raises, even ``SystemExit``, becomes an error
            reply, and so does anything that is no reply. With Ray it is pickled into every
            message: it must be importable by name and must not close over data.
        hospitals: how many nodes the grid has; node configurations carry their numbers, from 0,
            as ``"partition-id"``.

    Returns:
        What ``main`` returns.

    Raises:
        FlSimError: if there is no hospital, or Ray lacks the resources for a single one.
        Exception: whatever ``main`` raises, as it is.
    """
    if hospitals < 1:
        raise FlSimError(f"A federation needs at least one hospital, not {hospitals}.")
    from fl_sim.engine.guard import guarded

    return ENGINES.get(settings.engine)(settings, main, guarded(client_app), hospitals)
