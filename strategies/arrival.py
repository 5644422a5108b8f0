"""Replies in the hospitals' order, whatever order they come in, without holding many."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from flwr.app import Message

from fl_sim.engine.spill import Spill, content_bytes

AHEAD_BYTES = 64 * 2**20
"""Bytes of replies that wait in memory for one of a hospital before them; the rest wait on disk."""


def in_order(
    replies: Iterable[Message],
    hospital_of: Callable[[Message], int | None],
    asked: Sequence[int],
    spill: Spill,
    ahead: int = AHEAD_BYTES,
) -> Iterator[tuple[int, Message]]:
    """Yield the first reply of each hospital that was asked, in the order of ``asked``.

    Each is given on as soon as those before it have come. What a hospital that never replies holds
    up comes when the replies end.

    Args:
        replies: as they come.
        hospital_of: tells whose a reply is.
        asked: the hospitals.
        spill: where replies wait that do not fit.
        ahead: bytes of them that wait in memory.
    """
    open_to, turns = set(asked), deque(asked)
    held: dict[int, tuple[Message, int]] = {}
    waiting = 0
    for message in replies:
        hospital = hospital_of(message)
        if hospital not in open_to:
            continue
        open_to.remove(hospital)
        size = 0
        if hospital != turns[0] and message.has_content():
            size = content_bytes(message.content)
            if waiting + size > ahead:
                spill.store_all(message.content)
                size = 0
        held[hospital] = message, size
        waiting += size
        del message
        while turns and turns[0] in held:
            first = turns.popleft()
            waiting -= held[first][1]
            yield first, held.pop(first)[0]
    for hospital in turns:
        if hospital in held:
            yield hospital, held.pop(hospital)[0]
