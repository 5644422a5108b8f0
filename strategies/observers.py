"""Who is told what happens in each round of a federation."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch

State = dict[str, torch.Tensor]


class Observer(Protocol):
    """Who is told of each stage. Tensors are the observer's own; rounds count from 1."""

    def upload(
        self, server_round: int, hospital: int, state: State, metrics: Mapping[str, int | float]
    ) -> None:
        """A hospital's upload was accepted; called in the hospitals' order.

        ``state`` also has entries that nobody asked for; they are not aggregated.
        """

    def door(
        self, server_round: int, hospital: int, state: State | None, values: Mapping[str, float]
    ) -> None:
        """An upload was at its hospital's door, where hospitals have one.

        ``state`` is what left, ``None`` where nothing did; ``values`` what the door says, by
        metric. What was to leave was told before, as the upload, of malicious hospitals.
        """

    def aggregate(self, server_round: int, state: State) -> None:
        """The uploads were aggregated."""

    def release(self, server_round: int, state: State, report: Any) -> None:
        """The release is ready; ``report`` is the defence's, ``None`` where there was none.

        The round is over: ``state_for_resume`` of the strategy belongs to this release.
        """

    def failed(self, server_round: int, hospital: int, reason: str) -> None:
        """A hospital failed, or its upload was rejected; ``reason`` is one sentence."""


class Unobserved:
    """An observer that looks away; a base for those that care for some stages only."""

    def upload(
        self, server_round: int, hospital: int, state: State, metrics: Mapping[str, int | float]
    ) -> None:
        """Ignore."""

    def door(
        self, server_round: int, hospital: int, state: State | None, values: Mapping[str, float]
    ) -> None:
        """Ignore."""

    def aggregate(self, server_round: int, state: State) -> None:
        """Ignore."""

    def release(self, server_round: int, state: State, report: Any) -> None:
        """Ignore."""

    def failed(self, server_round: int, hospital: int, reason: str) -> None:
        """Ignore."""
