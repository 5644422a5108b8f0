"""What a simulated hospital's reply says of its door, taken apart before anything is aggregated."""

from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fl_sim.engine.records import BEFORE_DOOR, DOOR
from fl_sim.faults import first_line
from strategies.uploads import Rejected


@dataclass(frozen=True)
class AtDoor:
    """A reply's parts that only whoever measures a simulation has.

    Args:
        before: the reply as it would be without a door, where it was sent along.
        values: what the door says of itself, by metric.
        withheld: why nothing left; empty where something did.
    """

    before: Message | None
    values: dict[str, float]
    withheld: str


def taken_apart(message: Message) -> AtDoor:
    """Take what is for measuring out of a reply, which is then one as without a door.

    Args:
        message: a reply that is no error; changed in place.

    Raises:
        Rejected: if it does not say what its door did.
    """
    content = message.content
    before, door = content.pop(BEFORE_DOOR, None), content.pop(DOOR, None)
    if not isinstance(door, ConfigRecord) or not isinstance(door.get("reason"), str):
        raise Rejected("the reply does not say what the hospital's door did")
    values = {
        name: float(value)
        for name, value in door.items()
        if isinstance(value, float | int) and not isinstance(value, bool)
    }
    whole = None
    if isinstance(before, ArrayRecord):
        metrics = {n: r for n, r in content.items() if isinstance(r, MetricRecord)}
        whole = Message(RecordDict({"arrays": before, **metrics}), reply_to=message)
    return AtDoor(whole, values, first_line(str(door["reason"])))
