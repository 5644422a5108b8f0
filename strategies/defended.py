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
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from fl_sim.engine.records import from_record, to_record
from fl_sim.engine.spill import Spill, require_disk
from fl_sim.engine.through import each_reply
from fl_sim.errors import FlSimError
from fl_sim.faults import WORDED, blaming, first_line
from strategies.arrival import in_order
from strategies.base import Aggregator, as_aggregator, too_few
from strategies.cohort import CohortGrid, cohort_size, map_nodes, sample_cohort
from strategies.door import taken_apart
from strategies.gathering import INSURED_BYTES, MEMORY_BYTES, Gathering, Split, Summing
from strategies.inner import Inner
from strategies.merging import settled
from strategies.observers import Observer, State, Unobserved
from strategies.releasing import Defend, Release, Releasing, cloned
from strategies.uploads import (
    Received,
    Rejected,
    Terms,
    Upload,
    check_evaluation,
    explain_failures,
    read_upload,
)

_log = logging.getLogger(__name__)
_LARGE_BYTES = 10**9
"""Bytes on disk that a user is told of before they are written."""


class DefendedStrategy(Strategy):
    """Any Flower strategy with a defence at release.

    Args:
        inner: a Flower strategy, or one from :func:`strategies.base.build_aggregator`. Its own
            sampling is switched off.
        hospitals: how many there are, numbered from 0.
        hospital_settings_json: sent to hospitals as ``config["hospital-settings"]``.
        seed: of the cohorts.
        cohort: hospitals that train in a round: a count (``int``) or a fraction (``float``).
        release: the defence, see :data:`strategies.releasing.Release`; ``None`` for none.
        reads_uploads: whether the defence reads the round's uploads, which are then kept for it.
        defend: ``"every"`` release, the ``"last"`` only, or every n-th. The last one, the
            export, is always defended.
        defense: how the defence is called in messages.
        observer: told of every stage.
        buffers: names of float entries that are statistics and not weights. A strategy that takes
            server-side steps does not step these; they are averaged.
        dealt: how many training images each hospital has, where the server knows: an upload that
            claims another number is rejected.
        needed: metrics that every upload must have beside ``num-examples``.
        absent: numbers of hospitals that are never asked; cohorts are drawn from the others.
        doors: whether hospitals have a door, and their replies say what it did.

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
        reads_uploads: bool = True,
        defend: Defend = "every",
        defense: str = "the defence",
        observer: Observer | None = None,
        buffers: Collection[str] = (),
        dealt: Sequence[int] | None = None,
        needed: Collection[str] = (),
        absent: Collection[int] = (),
        doors: bool = False,
    ) -> None:
        if isinstance(inner, Strategy):
            inner = as_aggregator(inner)
        self._aggregator = inner
        self._inner = Inner(inner)
        self._hospitals = hospitals
        self._present = [number for number in range(hospitals) if number not in set(absent)]
        self._settings_json = hospital_settings_json
        self._seed = seed
        self._cohort = cohort
        self._releasing = Releasing(release, defend, defense)
        self._observer: Observer = observer or Unobserved()
        self._buffers = frozenset(buffers)
        self._nodes: dict[int, int] = {}
        self._asked: tuple[int, ...] = ()
        self._broadcast: State = {}
        self._received = Received()
        self._split = Split(frozenset(), frozenset(), inner.float64)
        self._spill = Spill()
        self._told_of_disk = False
        self._reads_uploads = release is not None and reads_uploads
        self._timeout = 3600.0
        self._dealt = dealt
        self._needed = tuple(needed)
        self._doors = doors
        size = cohort_size(len(self._present), cohort)
        if size < inner.min_replies:
            raise too_few(inner.name, inner.min_replies, size)

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
            FlSimError: if no usable upload came in a round, or too few for the strategy; if the
                strategy, the defence or the observer raises anything; or if the aggregate or the
                release is not as the broadcast is, finite and without negative variances.
        """
        self._timeout = timeout
        result = Result(arrays=initial_arrays)
        if evaluate_fn is not None and first_round == 1:
            _keep(result.evaluate_metrics_serverapp, 0, evaluate_fn(0, initial_arrays))
        arrays = initial_arrays
        for server_round in range(first_round, num_rounds + 1):
            config = ConfigRecord(dict(train_config or {}))
            messages = self.configure_train(server_round, arrays, config, grid)
            with closing(self._spill):
                with closing(each_reply(grid, messages, timeout)) as replies:
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

    def state_for_resume(self) -> dict[str, NDArray[np.generic]]:
        """Return what the inner strategy carries from round to round, as named arrays.

        FedAdam's moments or FedAvgM's momentum, for example; empty for FedAvg. With the last
        release, this is all that a later :meth:`start` needs to go on as if never interrupted.
        """
        return self._inner.state()

    def load_resume_state(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Put back what :meth:`state_for_resume` returned.

        Raises:
            FlSimError: if it belongs to another strategy.
        """
        self._inner.load_state(arrays)

    # ------------------------------------------- Flower's contract, round by round

    def summary(self) -> None:
        """Log the inner strategy's settings."""
        self._inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make the round's messages: the inner strategy's, for this round's cohort only."""
        self._broadcast = from_record(arrays)
        self._split = self._split_entries()
        cohort_grid = self._cohort_grid(server_round, grid)
        config["hospital-settings"] = self._settings_json
        config["server-round"] = server_round
        messages = self._inner.configure_train(
            server_round, self._split.view(arrays), config, cohort_grid
        )
        self._prepare_disk(server_round, len(messages))
        _send_whole(messages, arrays)
        return self._in_order(messages)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord | None]:
        """Check the replies, let the inner strategy aggregate them, and mend its result.

        Raises:
            FlSimError: see :meth:`start`.
        """
        gathering = self._accept(server_round, replies)
        expected = {k: v for k, v in self._broadcast.items() if k not in self._split.aside}
        combined, metrics = gathering.combine(server_round, self._inner, expected)
        state = self._merge(server_round, combined, gathering)
        with self._observing(server_round, "aggregate"):
            self._observer.aggregate(server_round, cloned(state))
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
        kept, failures = [], {}
        for hospital, message in self._by_hospital(replies).items():
            try:
                check_evaluation(message)
                kept.append(message)
            except Rejected as rejected:
                failures[hospital] = self._sentence(hospital, str(rejected))
        self._report(server_round, failures)
        return self._inner.aggregate_evaluate(server_round, kept) if kept else None

    # ------------------------------------------------------------------ stages

    def _accept(self, server_round: int, replies: Iterable[Message]) -> Gathering:
        """Check replies as they come, in the hospitals' order, and sum or keep the uploads."""
        gathering = self._gathering()
        failures: dict[int, str] = {}
        answered = set()
        for hospital, message in in_order(replies, self._hospital_of, self._asked, self._spill):
            answered.add(hospital)
            try:
                self._read(server_round, hospital, message, gathering)
            except Rejected as rejected:
                failures[hospital] = self._sentence(hospital, str(rejected))
            del message  # or it would be held while the next one is waited for
        for hospital in self._asked:
            if hospital not in answered:
                failures[hospital] = f"no reply within {self._timeout:g} seconds"
        self._report(server_round, failures)
        self._demand_enough(server_round, gathering.uploads, failures)
        self._received = Received(upload.arrays for upload in gathering.uploads)
        return gathering

    def _gathering(self) -> Gathering:
        """Return what is to become of the round's uploads."""
        if not self._aggregator.summed:
            return Gathering(self._aggregator, self._split, self._spill)
        expected = None if self._dealt is None else sum(self._dealt[h] for h in self._asked)
        kept = self._spill if self._keeps_uploads(len(self._asked)) else None
        return Summing(self._aggregator, self._split, kept, expected)

    def _keeps_uploads(self, asked: int) -> bool:
        """Whether uploads are kept until the round is over."""
        if not self._aggregator.summed or self._dealt is None or self._reads_uploads:
            return True
        return asked * self._upload_bytes() <= INSURED_BYTES

    def _upload_bytes(self) -> int:
        return sum(value.nbytes for value in self._broadcast.values())

    def _prepare_disk(self, server_round: int, asked: int) -> None:
        """Begin a new place for uploads, and refuse a round that would not fit there."""
        self._spill.close()
        self._spill = Spill(MEMORY_BYTES)
        if not self._keeps_uploads(asked):
            return
        factor = 1.0 if self._aggregator.summed else self._aggregator.disk
        needed = factor * asked * self._upload_bytes() - MEMORY_BYTES
        if needed <= 0:
            return
        require_disk(needed, f"Round {server_round}: the uploads of {asked} hospitals take")
        if needed > _LARGE_BYTES and not self._told_of_disk:
            self._told_of_disk = True
            _log.warning(
                "Round %d: the uploads of %d hospitals take up to %.1f GB on disk, in %s.",
                *(server_round, asked, needed / 1e9, tempfile.gettempdir()),
            )

    def _read(
        self, server_round: int, hospital: int, message: Message, gathering: Gathering
    ) -> None:
        door = taken_apart(message) if self._doors and not message.has_error() else None
        if door is not None and door.before is not None:
            state, further, metrics = self._checked(hospital, door.before)
            self._observed(server_round, hospital, state | further, metrics)
        if door is not None and door.withheld:
            with self._observing(server_round, "door"):
                self._observer.door(server_round, hospital, None, door.values)
            raise Rejected(f"its door withheld the upload: {door.withheld}")
        state, further, metrics = self._checked(hospital, message)
        received = next(iter(message.content.array_records.values()))
        arrays = ArrayRecord({name: received[name] for name in state})
        message.content = RecordDict()
        with blaming(f"Round {server_round}: the strategy '{self._aggregator.name}'"):
            gathering.take(Upload(hospital, message, metrics), arrays, state)
        if door is None or door.before is None:
            self._observed(server_round, hospital, state | further, metrics)
        if door is not None:
            with self._observing(server_round, "door"):
                self._observer.door(server_round, hospital, state | further, door.values)

    def _checked(
        self, hospital: int, message: Message
    ) -> tuple[State, State, dict[str, int | float]]:
        terms = Terms(self._broadcast, len(self._asked), self._needed)
        return read_upload(message, terms, None if self._dealt is None else self._dealt[hospital])

    def _observed(
        self, server_round: int, hospital: int, state: State, metrics: Mapping[str, int | float]
    ) -> None:
        with self._observing(server_round, "upload"):
            self._observer.upload(server_round, hospital, state, dict(metrics))

    def _report(self, server_round: int, failures: Mapping[int, str]) -> None:
        for hospital in sorted(failures):
            _log.warning("Round %d: hospital %d: %s", server_round, hospital, failures[hospital])
            with self._observing(server_round, "upload"):
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

    def _merge(self, server_round: int, combined: State, gathering: Gathering) -> State:
        """Put the inner strategy's result and the entries set aside together, dtypes as sent."""
        accepted = {upload.hospital for upload in gathering.uploads}
        chosen = {h: weight for h, weight in self._inner.chosen.items() if h in accepted}
        state: State = {}
        for name, reference in self._broadcast.items():
            if len(chosen) == 1 and not reference.is_floating_point():
                # One upload passes through: not even 64-bit integers may lose a bit.
                value = gathering.only(name, next(iter(chosen)))
            elif name in self._split.aside:
                value = gathering.mean(name, chosen)
            else:
                value = combined[name]
            state[name] = settled(name, value, reference, server_round, self._aggregator.name)
        return state

    def _make_release(self, server_round: int, num_rounds: int, aggregate: State) -> ArrayRecord:
        state, report = aggregate, None
        if self._releasing.is_defended(server_round, num_rounds):
            clean = server_round == 1 or self._releasing.is_defended(server_round - 1, num_rounds)
            reference = self._broadcast if clean else None
            state, report = self._releasing.apply(
                server_round, aggregate, reference, self._received
            )
        arrays = to_record(state)
        with self._observing(server_round, "release"):
            self._observer.release(server_round, from_record(arrays), report)
        return arrays

    def _observing(self, server_round: int, stage: str) -> AbstractContextManager[None]:
        return blaming(f"Round {server_round}: the observer of the stage '{stage}'", WORDED)

    def _sentence(self, hospital: int, reason: str) -> str:
        _, _, rest = reason.partition("\n")
        if rest:
            _log.debug("Hospital %d: %s", hospital, rest)
        return first_line(reason)

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

    def _split_entries(self) -> Split:
        """Say which entries the inner strategy gets.

        Steps of a server-side optimiser would make counters fractions and variances negative, and
        a difference of counters (of batches, hundreds) would outweigh all weights in a distance.
        """
        about = self._aggregator
        integers = frozenset(k for k, v in self._broadcast.items() if not v.is_floating_point())
        aside = integers if about.server_optimizer or about.float64 else frozenset[str]()
        if about.server_optimizer:
            aside |= self._buffers & self._broadcast.keys()
        return Split(integers, aside, about.float64)

    # -------------------------------------------------------------------- nodes

    def _cohort_grid(self, server_round: int, grid: Grid) -> CohortGrid:
        if not self._nodes:
            self._nodes = map_nodes(grid, self._hospitals, self._timeout)
        cohort = sample_cohort(self._present, self._cohort, self._seed, server_round)
        return CohortGrid(grid, [n for n, hospital in self._nodes.items() if hospital in cohort])

    def _in_order(self, messages: Iterable[Message]) -> list[Message]:
        ordered = sorted(messages, key=lambda m: self._nodes[m.metadata.dst_node_id])
        self._asked = tuple(self._nodes[m.metadata.dst_node_id] for m in ordered)
        return ordered

    def _hospital_of(self, message: Message) -> int | None:
        return self._nodes.get(message.metadata.src_node_id)

    def _by_hospital(self, replies: Iterable[Message]) -> dict[int, Message]:
        """Return the first reply of each hospital that was asked, in the hospitals' order."""
        found: dict[int, Message] = {}
        for message in replies:
            hospital = self._hospital_of(message)
            if hospital is not None and hospital in self._asked:
                found.setdefault(hospital, message)
        return {hospital: found[hospital] for hospital in sorted(found)}


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


def _keep(
    history: dict[int, MetricRecord], server_round: int, metrics: MetricRecord | None
) -> None:
    if metrics is not None:
        history[server_round] = metrics
