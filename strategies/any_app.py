"""A defence around the strategy of any Flower app, whose ClientApp stays as it is.

Where :class:`strategies.defended.DefendedStrategy` runs a study (it draws cohorts, tells hospitals
what to do, measures every stage), this one takes an app as it comes: Flower's own loop, sampling,
records, configs, metrics and evaluation go on, and only what leaves is cleaned.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fl_sim.defenses.base import DefenseReport
from fl_sim.engine.records import from_record, to_record
from fl_sim.errors import FlSimError, shown
from fl_sim.faults import blaming, first_line
from fl_sim.models.entries import is_counter, is_variance
from fl_sim.models.pixels import Normalization
from fl_sim.verbs.arrays import Cleaning
from strategies.base import as_aggregator
from strategies.inner import read_aggregate
from strategies.merging import settled, weighted_mean
from strategies.observers import State
from strategies.releasing import Defend, Releasing
from strategies.server_state import forget_broadcast
from strategies.uploads import Received, Rejected, check_arrays, error_reason, explain_failures

_log = logging.getLogger("flwr")  # where the app's own lines go
_REPLACED = ("configure_train", "aggregate_train")


class Defended(Strategy):
    """A Flower strategy whose aggregates are cleaned on held-out images before they leave.

    For example::

        strategy = Defended(
            FedAvg(fraction_train=0.5), defense="lwlrd", model=make_model, held_out=(images, labels)
        )
        result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=3)

    What is cleaned is what the next round broadcasts, what ``evaluate_fn`` and the clients'
    evaluation see, and what ``result.arrays`` holds. Beside that, replies are summed in the order
    of node ids, an upload that is broken or not finite is left out with a warning, entries have
    the dtypes that they were sent with, and a server-side optimiser does not step statistics of
    batch normalisation.

    Args:
        inner: the app's strategy, with its own sampling and settings; also one of Flower's
            privacy wrappers, or one with a ``start`` of its own.
        defense: a registered defence's name, a table of its name and settings, or a defence.
        model: a function that makes the network, the network, or a registered model's name. Its
            state dictionary has the arrays' names, or the arrays are numbered in its order.
        held_out: the data owner's clean images: ``(images, labels)``, a dataset or a data loader,
            as :func:`fl_sim.verbs.cleaning.clean` takes them. No client's training images.
        every: ``"every"`` release is cleaned, the ``"last"`` only, or every n-th and the last.
        seed: of the defence.
        normalize: what the network was trained to take; see ``clean``.
        classes: outputs of a network that a function or a name makes, where the labels do not tell.
        device: where the defence computes, ``"cpu"`` or ``"cuda"``; by default where the model is.
        settings: further keys of the defence, for example ``epochs=3``.

    Raises:
        FlSimError: one sentence, if the strategy is none, there is no such defence, schedule or
            model, or the held-out images do not fit the network.
    """

    def __init__(
        self,
        inner: Strategy,
        *,
        model: Any,
        held_out: Any,
        defense: Any = "consistent_distillation",
        every: Defend = "every",
        seed: int = 0,
        normalize: Normalization = "symmetric",
        classes: int | None = None,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        if not isinstance(inner, Strategy):
            raise FlSimError(
                f"Defended takes a Flower strategy, for example FedAvg(), not {shown(inner)}."
            )
        self.strategy = inner  # by the name that Flower's wrappers give it
        self.reports: dict[int, DefenseReport] = {}
        """What the defence did, by round."""
        self._about = as_aggregator(inner)
        self._cleaning = Cleaning(
            model,
            held_out,
            defense,
            seed=seed,
            normalize=normalize,
            classes=classes,
            device=device,
            settings=settings,
        )
        self._releasing = Releasing(self._clean_state, every, "cleaning")
        self._configure, self._aggregate = inner.configure_train, inner.aggregate_train
        self._numbers: dict[int, int] = {}
        self._begin(None)

    def _begin(self, num_rounds: int | None) -> None:
        self._num_rounds = num_rounds
        self._broadcast: State = {}
        self._latest: State | None = None
        self._received = Received()
        self._clean = True  # whether the latest state is one that may leave
        self._round = 0
        self._failures: dict[int, str] = {}
        self.reports.clear()

    # ------------------------------------------------------------------ the loop

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        **further: Any,
    ) -> Result:
        """Run the inner strategy's own ``start`` with the defence in its rounds.

        Args:
            grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn:
                Flower's, see ``Strategy.start``.
            further: what a ``start`` of the inner strategy's own takes beside these.

        Returns:
            Flower's result; its arrays are the last release, cleaned.

        Raises:
            FlSimError: if the arrays are not the network's, no upload of any round was usable, or
                the defence fails.
        """
        self._cleaning.require(from_record(initial_arrays))
        self._begin(num_rounds)
        given: dict[str, Any] = {
            "train_config": train_config,
            "evaluate_config": evaluate_config,
            "evaluate_fn": evaluate_fn,
        }
        given = {key: value for key, value in given.items() if value is not None}
        with self._standing_in():
            result = self.strategy.start(
                grid, initial_arrays, num_rounds, timeout=timeout, **given, **further
            )
        return self._exported(result)

    def summary(self) -> None:
        """Log the inner strategy's settings."""
        self.strategy.summary()

    # ------------------------------------------- Flower's contract, round by round

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's messages."""
        self._broadcast = from_record(arrays)
        for node in sorted(grid.get_node_ids()):
            self._numbers.setdefault(node, len(self._numbers))
        forget_broadcast(self.strategy)
        return self._configure(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the inner strategy aggregate what is usable, and clean the aggregate.

        Outside of :meth:`start`, where nobody knows which round is the last, every one is cleaned.

        Raises:
            FlSimError: if the aggregate is not like the broadcast, or the defence fails.
        """
        usable = self._usable(server_round, replies)
        received = self._uploads(usable)  # before the inner strategy changes messages
        arrays, metrics = self._aggregate(server_round, usable)
        if arrays is None:
            return None, metrics
        self._received = received
        aggregate = self._settled(server_round, arrays, usable)
        return to_record(self._released(server_round, aggregate)), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's messages."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return what the inner strategy makes of the clients' evaluation."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def _clean_state(
        self, state: State, server_round: int, reference: State | None, uploads: Received
    ) -> tuple[State, DefenseReport]:
        renamed = uploads.renamed(self._cleaning.renamed)
        return self._cleaning(state, server_round, reference, renamed)

    # ------------------------------------------------------------------- a round

    def _usable(self, server_round: int, replies: Iterable[Message]) -> list[Message]:
        """Return the replies in the order of node ids, without uploads that are broken.

        Error replies stay: the inner strategy counts them.
        """
        kept = []
        for message in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
            node = message.metadata.src_node_id
            number = self._numbers.setdefault(node, len(self._numbers))
            if message.has_error():
                self._failures[number] = first_line(error_reason(message))
                kept.append(message)
                continue
            try:
                for record in message.content.array_records.values():
                    check_arrays(record, self._broadcast)
                kept.append(message)
            except Rejected as rejected:
                self._failures[number] = str(rejected)
                _log.warning(
                    "Round %d: hospital %d (node %d) was left out: %s.",
                    *(server_round, number, node, rejected),
                )
        return kept

    def _uploads(self, usable: list[Message]) -> Received:
        """Return the uploads, of entries that were broadcast."""
        sent = [m.content.array_records for m in usable if not m.has_error()]
        uploads = [next(iter(records.values())) for records in sent if records]
        return Received(
            ArrayRecord({name: array for name, array in upload.items() if name in self._broadcast})
            for upload in uploads
        )

    def _settled(self, server_round: int, arrays: ArrayRecord, usable: list[Message]) -> State:
        """Return the inner strategy's aggregate with the broadcast's entries and dtypes."""
        with blaming(f"Round {server_round}: the strategy '{self._about.name}'"):
            made = read_aggregate(arrays, self._broadcast)
        if self._about.server_optimizer:
            made |= self._mean_statistics(usable)
        state = {}
        for name, reference in self._broadcast.items():
            known = self._cleaning.name_of(name)
            # A privacy wrapper's noise can make these negative.
            never_negative = is_variance(known) or is_counter(known)
            value = made[name].clamp(min=0) if never_negative else made[name]
            state[name] = settled(known, value, reference, server_round, self._about.name)
        return state

    def _mean_statistics(self, usable: list[Message]) -> State:
        """Average the network's statistics: steps of an optimiser would make variances negative."""
        key = getattr(self.strategy, "weighted_by_key", None)
        uploads: dict[int, State] = {}
        weights: dict[int, float] = {}
        for number, message in enumerate(m for m in usable if not m.has_error()):
            record = next(iter(message.content.array_records.values()))
            metrics = next(iter(message.content.metric_records.values()))
            uploads[number] = from_record(record)
            weights[number] = float(metrics[key])  # type: ignore[arg-type,index]
        return {
            name: weighted_mean({n: s[name] for n, s in uploads.items()}.__getitem__, weights)
            for name in self._broadcast
            if self._cleaning.is_statistic(name)
        }

    def _released(self, server_round: int, aggregate: State) -> State:
        """Return what leaves after a round, cleaned where it is this one's turn."""
        reference = self._broadcast if self._clean else None
        last = server_round if self._num_rounds is None else self._num_rounds
        self._latest, self._round, self._clean = aggregate, server_round, False
        if self._releasing.is_defended(server_round, last):
            self._latest = self._cleaned(server_round, aggregate, reference)
        return self._latest

    def _cleaned(self, server_round: int, aggregate: State, reference: State | None) -> State:
        state, report = self._releasing.apply(server_round, aggregate, reference, self._received)
        self.reports[server_round] = report
        self._clean = True
        _log.info(
            "Defended: %s on %d held-out images in %.1f s",
            *(self._cleaning.defense_name, report.images, report.seconds),
        )
        return state

    # ------------------------------------------------------------------ the end

    def _exported(self, result: Result) -> Result:
        """Return the result with the last release, which is cleaned if no round had its turn."""
        if self._latest is None:
            if self._failures:
                raise FlSimError(
                    f"No round had a usable upload: {explain_failures(self._failures)}."
                )
            return result
        if not self._clean:  # the last rounds failed, or ended early
            if not isinstance(result, Result):
                raise FlSimError(
                    f"The strategy '{self._about.name}' ended before its last round and returned "
                    f'{shown(result)}, which cannot be cleaned; set every="every".'
                )
            self._latest = self._cleaned(self._round, self._latest, None)
        if isinstance(result, Result):
            result.arrays = to_record(self._latest)
        return result

    @contextmanager
    def _standing_in(self) -> Iterator[None]:
        """Let the inner strategy's own loop call this one's rounds."""
        own = vars(self.strategy)
        before: Mapping[str, Any] = {name: own[name] for name in _REPLACED if name in own}
        own.update({name: getattr(self, name) for name in _REPLACED})
        try:
            yield
        finally:
            for name in _REPLACED:
                del own[name]
            own.update(before)
