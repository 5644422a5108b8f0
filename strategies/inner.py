"""The strategy inside a defended one: what it raises, or returns wrongly, is told by its name."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from numpy.typing import NDArray

from fl_sim.engine.records import from_record
from fl_sim.errors import FlSimError
from fl_sim.faults import blaming, first_line
from strategies.base import Aggregator
from strategies.server_state import (
    forget_broadcast,
    load_server_state,
    server_state,
    strategy_chain,
)
from strategies.uploads import WEIGHT

SAMPLING = {
    "fraction_train": 1.0,
    "fraction_evaluate": 1.0,
    "min_train_nodes": 1,
    "min_evaluate_nodes": 1,
    "min_available_nodes": 1,
}
"""What a defended strategy decides itself, and so sets in the one inside it."""


class Inner:
    """A Flower strategy, perhaps a stranger's, with its own sampling switched off.

    Args:
        aggregator: the strategy and what is known about it.

    Raises:
        FlSimError: from every method, if the strategy raises anything, even ``SystemExit``, or
            returns what it should not; with the round and the strategy's name.
    """

    def __init__(self, aggregator: Aggregator) -> None:
        self.aggregator = aggregator
        self.chosen: dict[int, float] = {}
        """Hospitals whose uploads were averaged last, and their weights."""
        self._strategy = aggregator.strategy
        self._neutralise_sampling()
        self._watch_choice()

    def summary(self) -> None:
        """Log the strategy's settings."""
        with blaming(f"The strategy '{self.aggregator.name}'"):
            self._strategy.summary()

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what the strategy carries from round to round."""
        with blaming(f"The state of the strategy '{self.aggregator.name}'"):
            return server_state(self._strategy)

    def load_state(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Put back what :meth:`state` returned."""
        load_server_state(self._strategy, arrays)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return the round's messages, which carry arrays and a config to nodes of the grid."""
        forget_broadcast(self._strategy)
        with blaming(self._name(server_round)):
            messages = _listed(
                self._strategy.configure_train(server_round, arrays, config, grid),
                grid.get_node_ids(),
            )
            for message in messages:
                if not (message.content.array_records and message.content.config_records):
                    raise FlSimError("It sends a message without an ArrayRecord or a ConfigRecord.")
        return messages

    def aggregate_train(
        self, server_round: int, replies: list[Message], expected: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], MetricRecord | None]:
        """Return the aggregate, with just the entries and shapes of ``expected``, and metrics."""
        given = len(replies)
        with blaming(self._name(server_round)):
            answer: Any = self._strategy.aggregate_train(server_round, replies)
            if not isinstance(answer, tuple) or len(answer) != 2:
                raise FlSimError(f"It returned {_kind(answer)}, not arrays and metrics.")
            arrays, metrics = answer
            if arrays is None:
                raise FlSimError(f"It made nothing of {given} uploads.")
            if not isinstance(arrays, ArrayRecord):
                raise FlSimError(f"It returned {_kind(arrays)}, not an ArrayRecord.")
            if not isinstance(metrics, MetricRecord | None):
                raise FlSimError(f"It returned {_kind(metrics)} as metrics, not a MetricRecord.")
            return read_aggregate(arrays, expected), metrics

    def aggregate_mean(
        self,
        server_round: int,
        mean: ArrayRecord,
        contents: list[RecordDict],
        reply: Message,
        expected: Mapping[str, torch.Tensor],
    ) -> tuple[dict[str, torch.Tensor], MetricRecord | None]:
        """Do as :meth:`aggregate_train` for uploads of which only the mean is left.

        Args:
            server_round: from 1.
            mean: of the uploads, weighted by their numbers of images.
            contents: the replies' metrics, without arrays.
            reply: one of the replies. Where the strategy has an optimiser, it is given the mean in
                this one, as if there were no other; the metrics are averaged over all.
            expected: entries and shapes of the aggregate.
        """
        with blaming(self._name(server_round)):
            average = getattr(self._strategy, "train_metrics_aggr_fn", aggregate_metricrecords)
            metrics = average(contents, WEIGHT)
        if not self.aggregator.server_optimizer:
            return read_aggregate(mean, expected), metrics
        # By the weight of a single one Flower multiplies with 1.
        alone = MetricRecord({WEIGHT: 1, "hospital": 0})
        reply.content = RecordDict({"arrays": mean, "metrics": alone})
        state, _ = self.aggregate_train(server_round, [reply], expected)
        return state, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return the round's evaluation messages, perhaps none."""
        with blaming(self._name(server_round)):
            messages = self._strategy.configure_evaluate(server_round, arrays, config, grid)
            return _listed(messages, grid.get_node_ids(), none=True)

    def aggregate_evaluate(self, server_round: int, replies: list[Message]) -> MetricRecord | None:
        """Return what the strategy makes of evaluation metrics."""
        with blaming(self._name(server_round)):
            metrics: Any = self._strategy.aggregate_evaluate(server_round, replies)
            if not isinstance(metrics, MetricRecord | None):
                raise FlSimError(f"It returned {_kind(metrics)} as metrics, not a MetricRecord.")
            return metrics

    def _name(self, server_round: int) -> str:
        return f"Round {server_round}: the strategy '{self.aggregator.name}'"

    def _neutralise_sampling(self) -> None:
        for strategy in strategy_chain(self._strategy):
            for attribute, value in SAMPLING.items():
                if hasattr(strategy, attribute):
                    setattr(strategy, attribute, value)

    def _watch_choice(self) -> None:
        """Learn which uploads the strategy chose: Flower averages the metrics of just them.

        Where a strategy has no such function, all uploads count by their numbers of images.
        """
        for strategy in strategy_chain(self._strategy):
            average = getattr(strategy, "train_metrics_aggr_fn", None)
            if average is not None:
                strategy.train_metrics_aggr_fn = _Watched(average, self._note_choice)

    def _note_choice(self, contents: list[RecordDict], weight_key: str) -> None:
        chosen: dict[int, float] = {}
        for content in contents:
            metrics = next(iter(content.metric_records.values()))
            chosen[int(cast(int, metrics["hospital"]))] = float(cast(float, metrics[weight_key]))
        self.chosen = chosen or self.chosen


class _Watched:
    """A metrics average that first tells someone what is averaged."""

    def __init__(
        self,
        average: Callable[[list[RecordDict], str], MetricRecord],
        note: Callable[[list[RecordDict], str], None],
    ) -> None:
        self._average = average
        self._note = note

    def __call__(self, contents: list[RecordDict], weight_key: str) -> MetricRecord:
        self._note(contents, weight_key)
        return self._average(contents, weight_key)


def _listed(messages: Any, nodes: Iterable[int], none: bool = False) -> list[Message]:
    """Check that messages go to nodes of the grid, one to each at most, and are not none."""
    if not isinstance(messages, Iterable):
        raise FlSimError(f"It returned {_kind(messages)}, not messages.")
    listed, open_to = list(messages), set(nodes)
    for message in listed:
        if not isinstance(message, Message) or not message.has_content():
            raise FlSimError(f"It returned {_kind(message)} among the messages.")
        if message.metadata.dst_node_id not in open_to:
            raise FlSimError("It asks a hospital twice, or one that is not in the cohort.")
        open_to.remove(message.metadata.dst_node_id)
    if not (listed or none):
        raise FlSimError("It asks no hospital.")
    return listed


def read_aggregate(
    arrays: ArrayRecord, expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Deserialise an aggregate, which has just the entries and shapes of ``expected``.

    Raises:
        FlSimError: if it has not, or cannot be read.
    """
    try:
        state = from_record(arrays)
    except ValueError as error:
        raise FlSimError(f"Its aggregate cannot be read: {error}.") from None
    if state.keys() != expected.keys():
        raise FlSimError(
            f"Its aggregate {_difference(state.keys() - expected.keys(), 'has')}"
            f"{_difference(expected.keys() - state.keys(), 'lacks')}"
            f"compared with the {len(expected)} entries that it was given."
        )
    for name, reference in expected.items():
        if state[name].shape != reference.shape or state[name].is_complex():
            raise FlSimError(
                f"Its aggregate's '{name}' is {state[name].dtype} of shape "
                f"{tuple(state[name].shape)}, not of {tuple(reference.shape)}."
            )
    return state


def _difference(names: Collection[str], verb: str) -> str:
    if not names:
        return ""
    return f"{verb} {first_line(', '.join(repr(name) for name in sorted(names)[:4]))}, "


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
