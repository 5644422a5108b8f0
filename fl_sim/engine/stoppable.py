"""Flower's grid in the Simulation Runtime, which ends with it and holds few messages at once."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

from fl_sim.engine.through import ThroughGrid

_POLL_SECONDS = 0.05
AHEAD = 4
"""Messages with the runtime for each hospital that works at once: Flower fetches those that wait
ten times a second, and whatever is answered stays in memory until it is pulled."""


class Stopped(Exception):
    """The runtime has ended while the server was waiting."""


class StoppableGrid(ThroughGrid):
    """A grid whose exchanges end when the runtime has; Flower's would wait for ever.

    Args:
        grid: Flower's.
        stop: set when the runtime has ended.
        at_once: tells how many hospitals work at once, when a round begins.
    """

    def __init__(self, grid: Grid, stop: threading.Event, at_once: Callable[[], int]) -> None:
        super().__init__(grid)
        self._stop = stop
        self._at_once = at_once

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and wait for the replies.

        Raises:
            Stopped: if the runtime ends.
        """
        return list(self.each_reply(messages, timeout=timeout))

    def each_reply(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Push messages, some at a time, and yield the replies as they come.

        What whoever takes the replies does with them is not time that the hospitals have had.

        Raises:
            Stopped: if the runtime ends.
        """
        left, waiting = deque(messages), set[str]()
        most = AHEAD * max(1, self._at_once()) + AHEAD
        waited, began = 0.0, time.monotonic()
        while left or waiting:
            while left and len(waiting) < most:
                waiting |= set(self._grid.push_messages([left.popleft()]))
            if timeout is not None and waited + time.monotonic() - began >= timeout:
                return
            if self._stop.wait(_POLL_SECONDS):
                raise Stopped("The Simulation Runtime has ended.")
            arrived = deque(self._grid.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            waited += time.monotonic() - began
            while arrived:
                yield arrived.popleft()
            began = time.monotonic()
