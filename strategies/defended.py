"""A defence wrapped around any Flower strategy: the server cleans the aggregate before it leaves.

A round has three stages. **Upload** is what each hospital sent, **aggregate** what the inner
strategy makes of the uploads, and **release** the aggregate after the defence (the same where a
round is not defended). The release is the next broadcast, and the last one is the export.

Beside that the wrapper mends what keeps plain Flower from giving the same result twice: cohorts are
drawn by hospital from a derived seed instead of by random node ids, replies are sorted before they
are summed, a failed or broken upload is reported instead of ending the run or passing in silence,
integer buffers stay integers, and a run can go on from any round.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from fl_sim.engine.records import from_record, to_record
from fl_sim.errors import FlSimError
from fl_sim.randomness import numpy_generator
from strategies.base import Aggregator, too_few
from strategies.cohort import CohortGrid, map_nodes
from strategies.merging import cast_like, for_strategy, weighted_mean
from strategies.server_state import load_server_state, server_state, strategy_chain
from strategies.uploads import (
    WEIGHT,
    Rejected,
    Upload,
    explain_failures,
    read_upload,
    tensor_problem,
)

State = dict[str, torch.Tensor]
Release = Callable[[State, int, State | None], tuple[State, Any]]
Defend = Literal["every", "last"] | int

_log = logging.getLogger(__name__)
_SAMPLING = {
    "fraction_train": 1.0,
    "fraction_evaluate": 1.0,
    "min_train_nodes": 1,
    "min_evaluate_nodes": 1,
    "min_available_nodes": 1,
}


class Observer(Protocol):
    """Who is told of each stage. Tensors are the observer's own; rounds count from 1."""

    def upload(
        self, server_round: int, hospital: int, state: State, metrics: Mapping[str, int | float]
    ) -> None:
        """A hospital's upload was accepted; called in the hospitals' order.

        ``state`` also has entries that nobody asked for; they are not aggregated.
        """

    def aggregate(self, server_round: int, state: State) -> None:
        """The uploads were aggregated."""

    def release(self, server_round: int, state: State, report: Any) -> None:
        """The release is ready; ``report`` is the defence's, ``None`` where there was none.

        The round is over: :meth:`DefendedStrategy.state_for_resume` belongs to this release.
        """

    def failed(self, server_round: int, hospital: int, reason: str) -> None:
        """A hospital failed, or its upload was rejected; ``reason`` is one sentence."""


class Unobserved:
    """An observer that looks away; a base for those that care for some stages only."""

    def upload(
        self, server_round: int, hospital: int, state: State, metrics: Mapping[str, int | float]
    ) -> None:
        """Ignore."""

    def aggregate(self, server_round: int, state: State) -> None:
        """Ignore."""

    def release(self, server_round: int, state: State, report: Any) -> None:
        """Ignore."""

    def failed(self, server_round: int, hospital: int, reason: str) -> None:
        """Ignore."""


def cohort_size(hospitals: int, cohort: int | float) -> int:
    """Return how many hospitals train in a round: a count, or a fraction of all, at least one.

    Raises:
        FlSimError: if it is a count that is not between 1 and ``hospitals``, or a fraction that
            is not above 0 and at most 1.
    """
    if isinstance(cohort, float):
        if not 0 < cohort <= 1:
            raise FlSimError(f"The cohort is {cohort:g}, but a fraction is above 0 and at most 1.")
        return max(1, round(cohort * hospitals))
    if not 1 <= cohort <= hospitals:
        raise FlSimError(f"The cohort is {cohort}, but there are {hospitals} hospitals.")
    return cohort


def sample_cohort(
    hospitals: int, cohort: int | float, seed: int, server_round: int
) -> tuple[int, ...]:
    """Draw the hospitals that train in a round, sorted; the same for the same arguments."""
    size = cohort_size(hospitals, cohort)
    generator = numpy_generator(seed, "cohort", server_round)
    drawn = generator.choice(hospitals, size=size, replace=False)
    return tuple(sorted(int(number) for number in drawn))


class DefendedStrategy(Strategy):
    """Any Flower strategy with a defence at release.

    Args:
        inner: a Flower strategy, or one from :func:`strategies.base.build_aggregator`. Its own
            sampling is switched off.
        hospitals: how many there are, numbered from 0.
        hospital_settings_json: sent to hospitals as ``config["hospital-settings"]``.
        seed: of the cohorts.
        cohort: hospitals that train in a round: a count (``int``) or a fraction (``float``).
        release: the defence: ``release(state, server_round, reference) -> (cleaned state,
            report)``. It gets copies; the reference is the broadcast that the round began with,
            where that was cleaned or is the very first, and else ``None``. ``None`` for no
            defence.
        defend: ``"every"`` release, the ``"last"`` only, or every n-th. The last one, the
            export, is always defended.
        observer: told of every stage.
        buffers: names of float entries that are statistics and not weights. A strategy that takes
            server-side steps does not step these; they are averaged.

    Raises:
        FlSimError: if the cohort is impossible, or too small for the strategy.
    """

    def __init__(
        self,
        inner: Strategy | Aggregator,
        *,
        hospitals: int,
        hospital_settings_json: str,
        seed: int = 0,
        cohort: int | float = 1.0,
        release: Release | None = None,
        defend: Defend = "every",
        observer: Observer | None = None,
        buffers: Collection[str] = (),
    ) -> None:
        if isinstance(inner, Strategy):
            inner = Aggregator(inner, name=type(inner).__name__)
        if isinstance(defend, int) and defend < 1:
            raise FlSimError(f"Every {defend}th release cannot be defended; give 1 or more.")
        self._aggregator = inner
        self._inner = inner.strategy
        self._hospitals = hospitals
        self._settings_json = hospital_settings_json
        self._seed = seed
        self._cohort = cohort
        self._release = release
        self._defend = defend
        self._observer: Observer = observer or Unobserved()
        self._buffers = frozenset(buffers)
        self._nodes: dict[int, int] = {}
        self._asked: tuple[int, ...] = ()
        self._broadcast: State = {}
        self._timeout = 3600.0
        self._chosen: dict[int, float] = {}
        size = cohort_size(hospitals, cohort)
        if size < inner.min_replies:
            raise too_few(inner.name, inner.min_replies, size)
        self._neutralise_sampling()
        self._watch_choice()

    # ---------------------------------------------------------------- the loop

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600.0,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        first_round: int = 1,
    ) -> Result:
        """Run rounds ``first_round`` to ``num_rounds``.

        Args:
            grid: whose nodes are the hospitals.
            initial_arrays: the first broadcast; when resuming, the last finished release.
            num_rounds: number of the last round.
            timeout: seconds to wait for the replies of a round.
            train_config: more keys for hospitals, for example ``"device"``.
            evaluate_config: keys for federated evaluation; without it there is none.
            evaluate_fn: called with the round and the release; with round 0 and the initial
                arrays before round 1.
            first_round: above 1 to resume, after :meth:`load_resume_state`.

        Returns:
            The last release and the metrics by round.

        Raises:
            FlSimError: if no usable upload came in a round, or too few for the strategy, or the
                aggregate or the release is not finite.
        """
        self._timeout = timeout
        result = Result(arrays=initial_arrays)
        if evaluate_fn is not None and first_round == 1:
            _keep(result.evaluate_metrics_serverapp, 0, evaluate_fn(0, initial_arrays))
        arrays = initial_arrays
        for server_round in range(first_round, num_rounds + 1):
            config = ConfigRecord(dict(train_config or {}))
            messages = self.configure_train(server_round, arrays, config, grid)
            replies = grid.send_and_receive(messages, timeout=timeout)
            aggregate, metrics = self.aggregate_train(server_round, replies)
            _keep(result.train_metrics_clientapp, server_round, metrics)
            arrays = self._make_release(server_round, num_rounds, from_record(aggregate))
            result.arrays = arrays
            if evaluate_config is not None:
                outcome = self._evaluate(server_round, arrays, evaluate_config, grid, timeout)
                _keep(result.evaluate_metrics_clientapp, server_round, outcome)
            if evaluate_fn is not None:
                outcome = evaluate_fn(server_round, arrays)
                _keep(result.evaluate_metrics_serverapp, server_round, outcome)
        return result

    def is_defended(self, server_round: int, num_rounds: int) -> bool:
        """Whether the defence is applied to this round's release."""
        if self._release is None:
            return False
        if server_round == num_rounds or self._defend == "every":
            return True
        return isinstance(self._defend, int) and server_round % self._defend == 0

    def state_for_resume(self) -> dict[str, NDArray[np.generic]]:
        """Return what the inner strategy carries from round to round, as named arrays.

        FedAdam's moments or FedAvgM's momentum, for example; empty for FedAvg. With the last
        release, this is all that a later :meth:`start` needs to go on as if never interrupted.
        """
        return server_state(self._inner)

    def load_resume_state(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Put back what :meth:`state_for_resume` returned.

        Raises:
            FlSimError: if it belongs to another strategy.
        """
        load_server_state(self._inner, arrays)

    # ------------------------------------------- Flower's contract, round by round

    def summary(self) -> None:
        """Log the inner strategy's settings."""
        self._inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make the round's messages: the inner strategy's, for this round's cohort only."""
        self._broadcast = from_record(arrays)
        cohort_grid = self._cohort_grid(server_round, grid)
        config["hospital-settings"] = self._settings_json
        config["server-round"] = server_round
        for strategy in strategy_chain(self._inner):
            if hasattr(strategy, "current_arrays"):
                # FedAvgM would go on from its own aggregate, which the defence has since changed.
                strategy.current_arrays = None
        messages = list(
            self._inner.configure_train(server_round, self._inner_view(arrays), config, cohort_grid)
        )
        _send_whole(messages, arrays)
        return self._in_order(messages)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord | None]:
        """Check the replies, let the inner strategy aggregate them, and mend its result.

        Raises:
            FlSimError: see :meth:`start`.
        """
        uploads = self._accept(server_round, replies)
        self._chosen = {upload.hospital: float(upload.metrics[WEIGHT]) for upload in uploads}
        messages = [self._for_inner(upload, uploads) for upload in uploads]
        arrays, metrics = self._inner.aggregate_train(server_round, messages)
        if arrays is None:
            raise FlSimError(
                f"Round {server_round}: the strategy '{self._aggregator.name}' made nothing of "
                f"{len(uploads)} uploads."
            )
        state = self._merge(server_round, arrays, uploads)
        self._observer.aggregate(server_round, _clone(state))
        if metrics is not None:
            metrics.pop("hospital", None)
        return to_record(state), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make evaluation messages for the round's cohort."""
        config["hospital-settings"] = self._settings_json
        cohort_grid = self._cohort_grid(server_round, grid)
        return self._in_order(
            self._inner.configure_evaluate(server_round, arrays, config, cohort_grid)
        )

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the inner strategy aggregate evaluation metrics, in the hospitals' order."""
        return self._inner.aggregate_evaluate(server_round, self._sorted(replies))

    # ------------------------------------------------------------------ stages

    def _accept(self, server_round: int, replies: Iterable[Message]) -> list[Upload]:
        uploads: list[Upload] = []
        failures: dict[int, str] = {}
        answered = set()
        for message in self._sorted(replies):
            hospital = self._nodes[message.metadata.src_node_id]
            answered.add(hospital)
            try:
                uploads.append(self._read(server_round, hospital, message))
            except Rejected as rejected:
                failures[hospital] = _sentence(hospital, str(rejected))
        for hospital in self._asked:
            if hospital not in answered:
                failures[hospital] = f"no reply within {self._timeout:g} seconds"
        self._report(server_round, failures)
        self._demand_enough(server_round, uploads, failures)
        return uploads

    def _read(self, server_round: int, hospital: int, message: Message) -> Upload:
        state, further, metrics = read_upload(message, self._broadcast)
        received = next(iter(message.content.array_records.values()))
        upload = Upload(
            hospital=hospital,
            message=message,
            arrays=ArrayRecord({name: received[name] for name in state}),
            metrics=metrics,
            integers={k: v.clone() for k, v in state.items() if not v.is_floating_point()},
            averaged={k: state[k].clone() for k in state if k in self._set_aside()},
        )
        self._observer.upload(server_round, hospital, state | further, dict(metrics))
        return upload

    def _report(self, server_round: int, failures: Mapping[int, str]) -> None:
        for hospital in sorted(failures):
            _log.warning("Round %d: hospital %d: %s", server_round, hospital, failures[hospital])
            self._observer.failed(server_round, hospital, failures[hospital])

    def _demand_enough(
        self, server_round: int, uploads: list[Upload], failures: Mapping[int, str]
    ) -> None:
        if not uploads:
            raise FlSimError(
                f"Round {server_round}: no hospital delivered a usable upload: "
                f"{explain_failures(failures)}."
            )
        needed = self._aggregator.min_replies
        if len(uploads) < needed:
            raise FlSimError(
                f"Round {server_round}: the strategy '{self._aggregator.name}' needs {needed} "
                f"uploads and got {len(uploads)}: {explain_failures(failures)}."
            )

    def _for_inner(self, upload: Upload, uploads: list[Upload]) -> Message:
        # Flower ends the run if hospitals send different metrics, so only common ones go in.
        common = set.intersection(*(set(other.metrics) for other in uploads))
        metrics = {key: value for key, value in upload.metrics.items() if key in common}
        arrays = for_strategy(
            upload.arrays,
            upload.integers,
            float64=self._aggregator.float64,
            skip=self._set_aside(),
        )
        upload.message.content = RecordDict(
            {"arrays": arrays, "metrics": MetricRecord({**metrics, "hospital": upload.hospital})}
        )
        return upload.message

    def _merge(self, server_round: int, arrays: ArrayRecord, uploads: list[Upload]) -> State:
        """Put the inner strategy's result and the entries set aside together, dtypes as sent."""
        combined = from_record(arrays)
        by_hospital = {upload.hospital: upload for upload in uploads}
        chosen = {h: weight for h, weight in self._chosen.items() if h in by_hospital}
        state: State = {}
        for name, reference in self._broadcast.items():
            if name in self._set_aside():
                values = {h: by_hospital[h].averaged[name] for h in chosen}
                value = weighted_mean(values, chosen)
            else:
                value = combined[name]
            if len(chosen) == 1 and not reference.is_floating_point():
                # One upload passes through: not even 64-bit integers may lose a bit.
                value = by_hospital[next(iter(chosen))].integers[name]
                state[name] = value.clone()
            else:
                state[name] = cast_like(value, reference)
            problem = tensor_problem(name, state[name], reference)
            if problem:
                raise FlSimError(
                    f"Round {server_round}: the aggregate's {problem}; lower the learning rates "
                    f"of the hospitals or of the strategy '{self._aggregator.name}'."
                )
        return state

    def _make_release(self, server_round: int, num_rounds: int, aggregate: State) -> ArrayRecord:
        report = None
        state = aggregate
        if self._release is not None and self.is_defended(server_round, num_rounds):
            clean = server_round == 1 or self.is_defended(server_round - 1, num_rounds)
            reference = _clone(self._broadcast) if clean else None
            state, report = self._release(_clone(aggregate), server_round, reference)
            self._check_release(server_round, aggregate, state)
        arrays = to_record({name: state[name] for name in aggregate})
        self._observer.release(server_round, from_record(arrays), report)
        return arrays

    def _check_release(self, server_round: int, aggregate: State, state: State) -> None:
        if state.keys() != aggregate.keys():
            names = ", ".join(sorted(state.keys() ^ aggregate.keys()))
            raise FlSimError(f"Round {server_round}: the defence added or removed {names}.")
        for name, reference in aggregate.items():
            problem = tensor_problem(name, state[name], reference)
            if problem:
                raise FlSimError(f"Round {server_round}: the release's {problem}.")

    def _evaluate(
        self,
        server_round: int,
        arrays: ArrayRecord,
        evaluate_config: ConfigRecord,
        grid: Grid,
        timeout: float,
    ) -> MetricRecord | None:
        config = ConfigRecord(dict(evaluate_config))
        messages = self.configure_evaluate(server_round, arrays, config, grid)
        return self.aggregate_evaluate(
            server_round, grid.send_and_receive(messages, timeout=timeout)
        )

    # ----------------------------------------------------------- inner strategy

    def _set_aside(self) -> set[str]:
        """Entries that the inner strategy does not get.

        Steps of a server-side optimiser would make counters fractions and variances negative, and
        a difference of counters (of batches, hundreds) would outweigh all weights in a distance.
        """
        if not (self._aggregator.server_optimizer or self._aggregator.float64):
            return set()
        aside = {k for k, v in self._broadcast.items() if not v.is_floating_point()}
        return aside | self._buffers if self._aggregator.server_optimizer else aside

    def _inner_view(self, arrays: ArrayRecord) -> ArrayRecord:
        integers = {k: v for k, v in self._broadcast.items() if not v.is_floating_point()}
        return for_strategy(
            arrays, integers, float64=self._aggregator.float64, skip=self._set_aside()
        )

    def _neutralise_sampling(self) -> None:
        for strategy in strategy_chain(self._inner):
            for attribute, value in _SAMPLING.items():
                if hasattr(strategy, attribute):
                    setattr(strategy, attribute, value)

    def _watch_choice(self) -> None:
        """Learn which uploads the inner strategy chose: Flower averages the metrics of just them.

        Where a strategy has no such function, all uploads count by their numbers of images.
        """
        for strategy in strategy_chain(self._inner):
            average = getattr(strategy, "train_metrics_aggr_fn", None)
            if average is not None:
                strategy.train_metrics_aggr_fn = _Watched(average, self._note_choice)

    def _note_choice(self, contents: list[RecordDict], weight_key: str) -> None:
        chosen = {}
        for content in contents:
            metrics = next(iter(content.metric_records.values()))
            chosen[int(cast(int, metrics["hospital"]))] = float(cast(float, metrics[weight_key]))
        self._chosen = chosen

    # -------------------------------------------------------------------- nodes

    def _cohort_grid(self, server_round: int, grid: Grid) -> CohortGrid:
        if not self._nodes:
            self._nodes = map_nodes(grid, self._hospitals, self._timeout)
        cohort = sample_cohort(self._hospitals, self._cohort, self._seed, server_round)
        return CohortGrid(grid, [n for n, hospital in self._nodes.items() if hospital in cohort])

    def _in_order(self, messages: Iterable[Message]) -> list[Message]:
        ordered = sorted(messages, key=lambda m: self._nodes[m.metadata.dst_node_id])
        self._asked = tuple(self._nodes[m.metadata.dst_node_id] for m in ordered)
        return ordered

    def _sorted(self, replies: Iterable[Message]) -> list[Message]:
        known = [m for m in replies if m.metadata.src_node_id in self._nodes]
        return sorted(known, key=lambda m: self._nodes[m.metadata.src_node_id])


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


def _send_whole(messages: list[Message], arrays: ArrayRecord) -> None:
    """Put the whole broadcast in messages that the inner strategy made of its view of it."""
    # Built once for each content, so that a thousand messages share one copy.
    contents = {id(message.content): message.content for message in messages}
    whole = {
        key: RecordDict(
            {
                name: arrays if isinstance(record, ArrayRecord) else record
                for name, record in content.items()
            }
        )
        for key, content in contents.items()
    }
    for message in messages:
        message.content = whole[id(message.content)]


def _sentence(hospital: int, reason: str) -> str:
    first, _, rest = reason.partition("\n")
    if rest:
        _log.debug("Hospital %d: %s", hospital, rest)
    return first.removeprefix(f"Hospital {hospital}: ")


def _clone(state: Mapping[str, torch.Tensor]) -> State:
    return {name: value.clone() for name, value in state.items()}


def _keep(
    history: dict[int, MetricRecord], server_round: int, metrics: MetricRecord | None
) -> None:
    if metrics is not None:
        history[server_round] = metrics
