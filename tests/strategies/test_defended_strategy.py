import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
)

from clients.app import client_app
from fl_sim.engine.inprocess import InProcessGrid
from fl_sim.engine.records import from_record, to_record
from fl_sim.errors import FlSimError
from strategies.base import STRATEGIES
from strategies.cohort import cohort_size, sample_cohort
from strategies.defended import DefendedStrategy
from tests.engine.federation_kit import (
    Recorder,
    changed_upload,
    federate,
    halve,
    initial,
    same,
    settings,
    strategy,
    tampered,
)

COUNTER = "1.num_batches_tracked"


# ------------------------------------------------------------------------------- aggregation


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_every_strategy_runs_defended(name):
    recorder, last = federate(settings(attack="fake-attack"), name, release=halve)
    assert not recorder.failures
    assert len(recorder.uploads) == 3 * 4
    for server_round in (1, 2, 3):
        aggregate, release = recorder.aggregates[server_round], recorder.releases[server_round]
        for entry, value in aggregate.items():
            assert value.dtype == initial()[entry].dtype
            assert value.shape == initial()[entry].shape
            expected = value / 2 if entry.startswith("4.") else value
            assert torch.equal(release[entry], expected)
        uploads = [recorder.uploads[server_round, h] for h in range(4)]
        counters = [int(upload[COUNTER]) for upload in uploads]
        assert aggregate[COUNTER].dtype == torch.int64
        assert min(counters) <= int(aggregate[COUNTER]) <= max(counters)
        assert (aggregate["1.running_var"] > 0).all()
    assert same(last, recorder.releases[3])


def test_the_mean_is_weighted_by_images():
    """64 images over 4 hospitals would be equal shares; the numbers sent decide."""

    def claim(reply):
        reply.content["metrics"]["num-examples"] = 34

    recorder, _ = federate(settings(rounds=1), app=changed_upload(claim))
    weights = np.array(
        [34.0 if h == 1 else recorder.metrics[1, h]["num-examples"] for h in range(4)]
    )
    for name, value in recorder.aggregates[1].items():
        stack = np.stack([recorder.uploads[1, h][name].numpy() for h in range(4)]).astype(float)
        mean = np.tensordot(weights / weights.sum(), stack, 1)
        if value.is_floating_point():
            np.testing.assert_allclose(value.numpy(), mean, rtol=2e-6, atol=1e-7)
        else:
            assert int(value) == round(float(mean))


def test_krum_releases_one_upload_bit_for_bit():
    recorder, _ = federate(settings(rounds=1), "krum")
    uploads = [recorder.uploads[1, hospital] for hospital in range(4)]
    assert sum(same(recorder.aggregates[1], upload) for upload in uploads) == 1


def test_krum_judges_by_weights_and_not_by_counters():
    """A counter that is off by 1,000 outweighs all weights if it is let into the distance."""

    def count(reply):
        state = from_record(reply.content["arrays"])
        state[COUNTER] += 1000
        reply.content["arrays"] = to_record(state)

    plain, _ = federate(settings(rounds=1), "krum")
    chosen = [h for h in range(4) if same(plain.aggregates[1], plain.uploads[1, h])]
    odd, _ = federate(settings(rounds=1), "krum", app=changed_upload(count, chosen))
    assert same(odd.aggregates[1], odd.uploads[1, chosen[0]])


def test_krum_computes_distances_in_double_precision():
    """Far from the origin, a float32 difference of squares says nothing of what lies near."""
    offsets = {0: 0.0, 1: 0.002, 2: 0.001, 3: 0.05}

    def far(reply):
        node = reply.metadata.src_node_id
        hospital = order.setdefault(node, len(order))
        state = {k: v.clone() for k, v in initial().items()}
        state["4.weight"] = torch.full_like(state["4.weight"], 30.0 + offsets[hospital])
        reply.content["arrays"] = to_record(state)

    order = {}
    recorder, _ = federate(settings(rounds=1), "krum", app=changed_upload(far, range(4)))
    assert same(recorder.aggregates[1], recorder.uploads[1, 2])


def test_one_hospital_is_its_own_aggregate():
    recorder, last = federate(settings(hospitals=1))
    assert same(last, recorder.uploads[3, 0])


def test_a_64_bit_integer_of_one_hospital_loses_no_bit():
    app, start = ClientApp(), {**initial(), "table": torch.tensor([2**62 + 1, -3])}
    app.query()(lambda m, c: client_app(m, c))

    @app.train()
    def train(message, context):
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"a": message.content.array_records["arrays"], "m": metrics})
        return Message(content, reply_to=message)

    built = strategy(Recorder(), settings(hospitals=1, rounds=1))
    result = built.start(InProcessGrid(app, 1), to_record(start), 1)
    assert same(from_record(result.arrays), start)


def test_fedprox_tells_hospitals_its_mu():
    seen = []

    def listen(message, context):
        seen.append(message.content["config"]["proximal-mu"])
        return client_app(message, context)

    app = ClientApp()
    app.query()(lambda m, c: client_app(m, c))
    app.train()(listen)
    strong, _ = federate(settings(rounds=1), "fedprox", {"proximal_mu": 9.0}, app=app)
    plain, _ = federate(settings(rounds=1))
    assert seen == [9.0] * 4
    assert not same(strong.aggregates[1], plain.aggregates[1])


def test_momentum_starts_from_what_was_released():
    """w_2 = release_1 - lr * (m * g_1 + g_2) with g_r = release_(r-1) - mean_r."""
    keys = {"server_learning_rate": 0.5, "server_momentum": 0.5}
    recorder, _ = federate(settings(rounds=2), "fedavgm", keys, release=halve)
    name, weights = "4.weight", []
    for server_round in (1, 2):
        sizes = [recorder.metrics[server_round, h]["num-examples"] for h in range(4)]
        stack = torch.stack([recorder.uploads[server_round, h][name] for h in range(4)]).double()
        share = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
        weights.append((share[:, None, None] * stack).sum(0))
    start, release = initial()[name].double(), recorder.releases[1][name].double()
    momentum = 0.5 * (start - weights[0]) + (release - weights[1])
    expected = release - 0.5 * momentum
    assert torch.allclose(recorder.aggregates[2][name].double(), expected, atol=1e-6)


def test_a_wrapper_of_flowers_own_can_be_wrapped():
    inner = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, 100.0, 4)
    federation, recorder = settings(rounds=1), Recorder()
    built = DefendedStrategy(
        inner,
        hospitals=4,
        hospital_settings_json=federation.model_dump_json(),
        observer=recorder,
    )
    recorder.strategy = built
    built.start(InProcessGrid(client_app, 4), to_record(initial()), 1)
    assert len(recorder.uploads) == 4 and not recorder.failures


# ------------------------------------------------------------------------------------- stages


@pytest.mark.parametrize(
    ("defend", "defended"),
    [("every", {1, 2, 3, 4, 5}), ("last", {5}), (2, {2, 4, 5}), (3, {3, 5})],
)
def test_when_the_defence_is_applied(defend, defended):
    recorder, _ = federate(settings(rounds=5), release=halve, defend=defend)
    for server_round in range(1, 6):
        equal = same(recorder.aggregates[server_round], recorder.releases[server_round])
        assert equal == (server_round not in defended)
        report = server_round if server_round in defended else None
        assert recorder.reports[server_round] == report


@pytest.mark.parametrize(("defend", "known"), [("every", {1, 2, 3}), ("last", set()), (2, {3})])
def test_the_defence_knows_the_broadcast_where_that_was_cleaned(defend, known):
    references = {}

    def listen(state, server_round, reference, uploads):
        references[server_round] = reference
        return halve(state, server_round, reference, uploads)

    recorder, _ = federate(settings(), release=listen, defend=defend)
    for server_round, reference in references.items():
        clean = server_round == 1 or server_round in known
        assert (reference is not None) == clean
        if clean:
            before = initial() if server_round == 1 else recorder.releases[server_round - 1]
            assert same(reference, before)


@pytest.mark.parametrize("name", ["fedavg", "krum", "fedadam", "normclipping"])
def test_the_defence_is_given_the_uploads_as_they_came(name):
    given = {}

    def listen(state, server_round, reference, uploads):
        given[server_round] = list(uploads)
        assert same(uploads[0], given[server_round][0]) and len(uploads[1:]) == len(uploads) - 1
        return halve(state, server_round, reference, uploads)

    recorder, _ = federate(settings(attack="nan-attack", rounds=2), name, release=listen)
    for server_round in (1, 2):
        known = [recorder.uploads[server_round, hospital] for hospital in (1, 2, 3)]
        assert len(given[server_round]) == 3
        assert all(same(a, b) for a, b in zip(given[server_round], known, strict=True))


def test_the_release_is_the_next_broadcast():
    broadcasts = []

    def listen(message, context):
        if context.node_config["partition-id"] == 0:
            broadcasts.append(from_record(message.content["arrays"]))
        return client_app(message, context)

    app = ClientApp()
    app.query()(lambda m, c: client_app(m, c))
    app.train()(listen)
    recorder, _ = federate(settings(), app=app, release=halve)
    assert same(broadcasts[0], initial())
    assert same(broadcasts[1], recorder.releases[1])
    assert same(broadcasts[2], recorder.releases[2])


def test_evaluation_by_hospitals_is_averaged_by_their_images():
    app = ClientApp()
    app.query()(lambda m, c: client_app(m, c))
    app.train()(lambda m, c: client_app(m, c))

    @app.evaluate()
    def evaluate(message, context):
        hospital = context.node_config["partition-id"]
        metrics = MetricRecord({"eval_loss": float(hospital), "num-examples": hospital + 1})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    told = settings(rounds=1)
    built = strategy(Recorder(), told)
    grid = InProcessGrid(app, told.hospitals)
    result = built.start(grid, to_record(initial()), 1, evaluate_config=ConfigRecord())
    assert result.evaluate_metrics_clientapp[1]["eval_loss"] == pytest.approx(20 / 10)


def test_evaluate_fn_sees_the_release():
    seen = {}
    recorder, federation = Recorder(), settings(rounds=2)
    built = strategy(recorder, federation, release=halve)

    def evaluate(server_round, arrays):
        seen[server_round] = from_record(arrays)
        return MetricRecord({"auc": 0.5})

    grid = InProcessGrid(client_app, 4)
    result = built.start(grid, to_record(initial()), 2, evaluate_fn=evaluate)
    assert same(seen[0], initial())
    assert same(seen[2], recorder.releases[2])
    assert sorted(result.evaluate_metrics_serverapp) == [0, 1, 2]
    assert "hospital" not in result.train_metrics_clientapp[1]
    assert "loss-task" in result.train_metrics_clientapp[1]


# ------------------------------------------------------------------------------------ cohorts


def test_cohorts_are_drawn_from_the_seed_and_the_round():
    drawn = [sample_cohort(range(10), 3, 5, server_round) for server_round in range(1, 20)]
    assert drawn == [
        sample_cohort(range(10), 0.3, 5, server_round) for server_round in range(1, 20)
    ]
    assert len(set(drawn)) > 10
    assert set().union(*drawn) == set(range(10))
    assert all(list(cohort) == sorted(set(cohort)) for cohort in drawn)


def test_only_the_cohort_trains():
    recorder, _ = federate(settings(), cohort=2)
    for server_round in (1, 2, 3):
        trained = tuple(h for r, h in recorder.uploads if r == server_round)
        assert trained == sample_cohort(range(4), 2, 5, server_round)


def test_an_impossible_cohort_is_refused():
    assert cohort_size(10, 0.01) == 1
    for cohort in (0, 5, 0.0, 1.5):
        with pytest.raises(FlSimError, match="The cohort is"):
            cohort_size(4, cohort)


def test_a_strategy_that_needs_more_says_so_up_front():
    with pytest.raises(FlSimError, match="'krum' needs at least 5 hospitals"):
        strategy(Recorder(), settings(), "krum", {"num_malicious_nodes": 1})
    with pytest.raises(FlSimError, match="'krum' needs at least 3 hospitals"):
        strategy(Recorder(), settings(), "krum", cohort=0.5)


# ----------------------------------------------------------------------------------- failures


def test_a_failing_hospital_is_reported_and_the_rest_goes_on():
    recorder, _ = federate(settings(attack="broken-attack", malicious=(2,)))
    assert set(recorder.failures) == {(r, 2) for r in (1, 2, 3)}
    assert recorder.failures[1, 2] == "RuntimeError: the scanner is on fire"
    three = [h for r, h in recorder.uploads if r == 1]
    assert three == [0, 1, 3]


def test_if_all_fail_each_reason_is_named():
    with pytest.raises(FlSimError) as caught:
        federate(settings(attack="broken-attack", malicious=(0, 1, 2, 3)))
    assert "Round 1: no hospital delivered a usable upload" in str(caught.value)
    assert "hospitals 0, 1, 2, 3: RuntimeError: the scanner is on fire" in str(caught.value)


def test_too_few_uploads_for_the_strategy_are_an_error():
    with pytest.raises(FlSimError, match="'krum' needs 3 uploads and got 2: hospitals 1, 2: "):
        federate(settings(attack="broken-attack", malicious=(1, 2)), "krum")


def test_a_hospital_that_does_not_answer_is_reported():
    recorder, federation = Recorder(), settings(rounds=1)
    built = strategy(recorder, federation)

    class Deaf(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = list(super().send_and_receive(messages, timeout=timeout))
            training = [r for r in replies if r.metadata.message_type == "train"]
            return [r for r in replies if r not in training[1:2]]

    built.start(Deaf(client_app, 4), to_record(initial()), 1, timeout=99.0)
    assert recorder.failures == {(1, 1): "no reply within 99 seconds"}


def test_an_entry_that_nobody_asked_for_is_seen_and_not_aggregated():
    changed = tampered("hidden", lambda t: torch.ones(9))
    recorder, _ = federate(settings(rounds=1), app=changed_upload(changed))
    assert not recorder.failures
    assert torch.equal(recorder.uploads[1, 1]["hidden"], torch.ones(9))
    assert "hidden" not in recorder.aggregates[1]


def test_a_nan_from_an_attack_is_rejected():
    recorder, _ = federate(settings(attack="nan-attack"))
    assert {hospital for _, hospital in recorder.failures} == {0}


def test_an_aggregate_that_is_not_finite_is_an_error():
    large = changed_upload(tampered("4.bias", lambda t: torch.full_like(t, 1e14)), range(4))
    keys = {"server_learning_rate": 1e30}
    with pytest.raises(FlSimError, match=r"Round 1: the aggregate.s tensor .4\.bias. has"):
        federate(settings(rounds=1), "fedavgm", keys, app=large)


def test_hospitals_may_send_different_metrics():
    def more(reply):
        reply.content["metrics"]["memory"] = 1.5

    recorder, _ = federate(settings(rounds=1), app=changed_upload(more))
    assert len(recorder.uploads) == 4
    assert recorder.metrics[1, 1]["memory"] == 1.5


# ------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    ("name", "carried"),
    [("fedavg", 0), ("fedadam", 2), ("fedyogi", 2), ("fedavgm", 1)],
)
def test_a_resumed_run_equals_an_uninterrupted_one(name, carried):
    federation = settings(attack="fake-attack", rounds=4)
    whole, last = federate(federation, name, cohort=3, release=halve, defend=2)
    assert len({key.split("/")[1] for key in whole.server[2]}) == carried
    recorder = Recorder()
    built = strategy(recorder, federation, name, cohort=3, release=halve, defend=2)
    built.load_resume_state(whole.server[2])
    grid = InProcessGrid(client_app, 4)
    result = built.start(grid, to_record(whole.releases[2]), 4, first_round=3)
    assert same(from_record(result.arrays), last)
    assert sorted(recorder.releases) == [3, 4]
    assert same(
        recorder.uploads[3, sample_cohort(range(4), 3, 5, 3)[0]],
        whole.uploads[3, sample_cohort(range(4), 3, 5, 3)[0]],
    )


def test_state_of_another_strategy_is_refused():
    whole, _ = federate(settings(rounds=1), "fedadam")
    with pytest.raises(FlSimError, match="has 'm_t', which the strategy FedAvg does not"):
        strategy(Recorder(), settings()).load_resume_state(whole.server[1])


def test_nothing_to_do_returns_what_was_given():
    built = strategy(Recorder(), settings())
    result = built.start(InProcessGrid(client_app, 4), to_record(initial()), 2, first_round=3)
    assert same(from_record(result.arrays), initial())
