"""When a defence is applied, what it is given, and that what it returns may leave."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

from fl_sim.errors import FlSimError, shown
from fl_sim.faults import blaming
from fl_sim.models.entries import entry_problem
from strategies.observers import State
from strategies.uploads import Received

Release = Callable[[State, int, State | None, Received], tuple[State, Any]]
"""A defence: ``release(state, server_round, reference, uploads) -> (cleaned state, report)``. It
gets copies; the reference is the broadcast that the round began with, where that was cleaned or is
the very first, and else ``None``; the uploads are those that were accepted in the round, state
dictionaries in the hospitals' order."""

Defend = Literal["every", "last"] | int


class Releasing:
    """A defence before some releases, and before the last one always.

    Args:
        release: the defence; ``None`` for none.
        defend: ``"every"`` release, the ``"last"`` only, or every n-th.
        defense: how the defence is called in messages.

    Raises:
        FlSimError: if ``defend`` is nothing of these.
    """

    def __init__(self, release: Release | None, defend: Defend, defense: str) -> None:
        self._release = release
        self._defend = checked_defend(defend)
        self._defense = defense

    def is_defended(self, server_round: int, num_rounds: int) -> bool:
        """Whether the defence is applied to this round's release."""
        if self._release is None:
            return False
        if server_round == num_rounds or self._defend == "every":
            return True
        return isinstance(self._defend, int) and server_round % self._defend == 0

    def apply(
        self,
        server_round: int,
        aggregate: State,
        reference: State | None,
        uploads: Received,
    ) -> tuple[State, Any]:
        """Return the cleaned state, with the aggregate's entries in its order, and the report.

        Args:
            server_round: from 1.
            aggregate: what is cleaned; left as it is.
            reference: a state that is known to be clean, if any.
            uploads: what it was made of.

        Raises:
            FlSimError: if the defence raises anything, or what it returns is not like the
                aggregate, finite and without negative variances; with the round and its name.
        """
        if self._release is None:
            return aggregate, None
        with blaming(f"Round {server_round}: {self._defense}"):
            known = None if reference is None else cloned(reference)
            answer = self._release(cloned(aggregate), server_round, known, uploads)
            return _released(answer, aggregate)


def checked_defend(defend: Any) -> Defend:
    """Return a schedule of releases, if it is one.

    Raises:
        FlSimError: if it is not ``"every"``, ``"last"`` or a number from 1.
    """
    if defend in ("every", "last"):
        return defend
    if isinstance(defend, int) and not isinstance(defend, bool) and defend >= 1:
        return defend
    raise FlSimError(
        f'The defence is applied before "every" release, the "last", or every n-th from 1, not '
        f"{shown(defend)}."
    )


def cloned(state: Mapping[str, torch.Tensor]) -> State:
    """Return a copy of a state dictionary."""
    return {name: value.clone() for name, value in state.items()}


def _released(answer: Any, aggregate: State) -> tuple[State, Any]:
    """Check what a defence returned: a state like the aggregate, and a report."""
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], Mapping)):
        raise FlSimError("It returned no state and report.")
    state, report = answer
    if state.keys() != aggregate.keys():
        names = ", ".join(sorted(map(str, state.keys() ^ aggregate.keys())))
        raise FlSimError(f"It added or removed {names}.")
    for name, reference in aggregate.items():
        if not isinstance(state[name], torch.Tensor):
            raise FlSimError(f"The release's '{name}' is a {type(state[name]).__name__}.")
        problem = entry_problem(name, state[name], reference)
        if problem:
            raise FlSimError(f"The release's {problem}.")
    return {name: state[name] for name in aggregate}, report
