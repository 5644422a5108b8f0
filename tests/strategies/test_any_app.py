"""A defence in a Flower app that knows nothing of this project."""

import logging
import re

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    Krum,
    Result,
)
from torch import nn

from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport
from fl_sim.engine.inprocess import InProcessGrid
from fl_sim.errors import FlSimError
from fl_sim.models import build_model
from fl_sim.settings import Settings
from strategies import Defended

FIRST = "4.weight"
KEYS = {"arrayrecord_key": "weights", "configrecord_key": "orders", "weighted_by_key": "n"}


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
    )


class Zeroing(Defense[Settings]):
    """Sets the last layer's weights to the number of the round, and notes what it was given."""

    uses_labels = False

    def __init__(self) -> None:
        super().__init__(Settings())
        self.rounds: list[int] = []
        self.given: list[dict[str, torch.Tensor]] = []
        self.references: list[dict[str, torch.Tensor] | None] = []
        self.uploads: list[list[dict[str, torch.Tensor]]] = []

    def apply(self, release):
        self.rounds.append(release.stream.path[-1])
        self.given.append({k: v.clone() for k, v in release.model.state_dict().items()})
        self.references.append(release.reference)
        self.uploads.append(list(release.received()))
        with torch.no_grad():
            release.model.get_parameter(FIRST).fill_(float(release.stream.path[-1]))
        return DefenseReport(images=len(release.held_out), seconds=0.5)


class Hospitals:
    """The app's clients: they add 1 to weights, count batches, and note what they were sent."""

    def __init__(self, change=None):
        self.received, self.configs, self.evaluated, self.change = [], [], [], change
        self.app = ClientApp()
        self.app.train()(self.train)
        self.app.evaluate()(self.evaluate)

    def train(self, message: Message, context) -> Message:
        number = context.node_config["partition-id"]
        arrays = next(iter(message.content.array_records.values()))
        config = next(iter(message.content.config_records.values()))
        self.received.append({name: array.numpy() for name, array in arrays.items()})
        self.configs.append(dict(config))
        trained = {
            name: np.asarray(array.numpy() + np.asarray(1, array.numpy().dtype))
            for name, array in arrays.items()
        }
        if self.change:
            self.change(trained, number, config["server-round"])
        return Message(
            RecordDict(
                {
                    "weights": ArrayRecord({n: Array(v) for n, v in trained.items()}),
                    "told": MetricRecord({"n": 10 * (number + 1), "loss": 0.5, "curve": [1.0]}),
                    "notes": ConfigRecord({"device": "cpu"}),
                }
            ),
            reply_to=message,
        )

    def evaluate(self, message: Message, context) -> Message:
        arrays = next(iter(message.content.array_records.values()))
        self.evaluated.append({name: array.numpy() for name, array in arrays.items()})
        told = MetricRecord({"n": 5, "accuracy": 0.25})
        return Message(RecordDict({"told": told}), reply_to=message)


def state():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_model().state_dict()


def held_out(channels=1):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(12, channels, 8, 8, generator=generator), torch.arange(12) % 3


def defended(inner=None, defense=None, **changes):
    values = {"model": make_model, "held_out": held_out(), **changes}
    return Defended(inner or FedAvg(**KEYS), defense=defense or Zeroing(), **values)


def run(strategy, hospitals=None, nodes=3, **changes):
    hospitals = hospitals or Hospitals()
    grid = InProcessGrid(hospitals.app, nodes)
    values = {"num_rounds": 3, **changes}
    return strategy.start(grid=grid, initial_arrays=ArrayRecord(state()), **values), hospitals


# ------------------------------------------------------------------------- what is cleaned


def test_every_broadcast_evaluation_and_the_export_are_cleaned():
    seen = []

    def central(server_round, arrays):
        seen.append(float(arrays[FIRST].numpy().mean()))
        return MetricRecord({"auc": 0.5})

    result, hospitals = run(defended(), evaluate_fn=central)
    assert isinstance(result, Result)
    assert float(result.arrays[FIRST].numpy().mean()) == 3.0
    sent = [float(arrays[FIRST].mean()) for arrays in hospitals.received]
    assert sent[3:] == [1.0] * 3 + [2.0] * 3
    assert [float(a[FIRST].mean()) for a in hospitals.evaluated] == [1.0] * 3 + [2.0] * 3 + [3] * 3
    assert seen[1:] == [1.0, 2.0, 3.0] and len(seen) == 4
    assert list(result.train_metrics_clientapp) == [1, 2, 3]
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(0.5)
    assert result.evaluate_metrics_clientapp[3]["accuracy"] == pytest.approx(0.25)
    assert result.evaluate_metrics_serverapp[3]["auc"] == 0.5


@pytest.mark.parametrize(
    ("every", "cleaned"), [("every", [1, 2, 3]), ("last", [3]), (2, [2, 3]), (5, [3])]
)
def test_the_schedule(every, cleaned):
    defense = Zeroing()
    strategy = defended(defense=defense, every=every)
    result, _ = run(strategy)
    assert defense.rounds == cleaned == list(strategy.reports)
    assert float(result.arrays[FIRST].numpy().mean()) == 3.0


def test_the_reference_is_a_broadcast_that_was_cleaned():
    defense = Zeroing()
    run(defended(defense=defense, every=2), num_rounds=5)
    assert defense.rounds == [2, 4, 5]
    assert defense.references[:2] == [None, None]
    assert float(defense.references[2][FIRST].mean()) == 4.0
    first = Zeroing()
    run(defended(defense=first), num_rounds=1)
    assert torch.equal(first.references[0][FIRST], state()[FIRST])


def test_what_is_cleaned_is_the_mean_with_the_dtypes_that_were_sent():
    defense = Zeroing()
    result, _ = run(defended(defense=defense), num_rounds=1)
    assert torch.allclose(defense.given[0][FIRST], state()[FIRST] + 1, atol=1e-6)
    assert {n: a.dtype for n, a in result.arrays.items()} == {
        n: str(v.dtype).removeprefix("torch.") for n, v in state().items()
    }
    assert int(result.arrays["1.num_batches_tracked"].numpy()) == 1


def test_the_order_in_which_replies_come_does_not_matter():
    class Turning(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            return reversed(list(super().send_and_receive(messages, timeout=timeout)))

    def scatter(trained, number, server_round):
        trained[FIRST] *= np.float32(1 / (3 + number))

    given = []
    for kind in (InProcessGrid, Turning):
        defense, hospitals = Zeroing(), Hospitals(scatter)
        strategy = defended(defense=defense)
        strategy.start(kind(hospitals.app, 5), ArrayRecord(state()), num_rounds=1)
        given.append(defense.given[0][FIRST])
    assert torch.equal(*given)


@pytest.mark.parametrize(
    "inner",
    [FedAvg(**KEYS), DifferentialPrivacyServerSideFixedClipping(FedAvg(**KEYS), 0.1, 0.01, 3)],
)
def test_the_uploads_are_those_that_came_and_were_usable_in_every_order(inner):
    def broken(trained, number, server_round):
        trained[FIRST] += np.float32(number)
        if number == 1:
            trained[FIRST][0, 0] = np.nan

    class Turning(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            return reversed(list(super().send_and_receive(messages, timeout=timeout)))

    for kind in (InProcessGrid, Turning):
        defense = Zeroing()
        strategy = defended(inner, defense)
        strategy.start(kind(Hospitals(broken).app, 3), ArrayRecord(state()), num_rounds=1)
        (uploads,) = defense.uploads
        assert [dict(u).keys() for u in uploads] == [state().keys()] * 2
        for number, upload in zip((0, 2), uploads, strict=True):
            assert torch.equal(upload[FIRST], state()[FIRST] + 1 + number)
            assert upload["1.num_batches_tracked"].dtype == torch.int64


def test_numbered_uploads_have_the_networks_names():
    numbered = ArrayRecord([value.numpy() for value in state().values()])
    defense = Zeroing()
    strategy = defended(defense=defense)
    strategy.start(InProcessGrid(Hospitals().app, 2), numbered, num_rounds=1)
    assert [list(upload) for upload in defense.uploads[0]] == [list(state())] * 2


def test_the_export_of_a_run_that_ended_early_is_cleaned_of_its_own_uploads():
    def ends(trained, number, server_round):
        if server_round == 3:
            trained[FIRST][0, 0] = np.nan

    defense = Zeroing()
    run(defended(defense=defense, every="last"), Hospitals(ends))
    assert defense.rounds == [2] and len(defense.uploads[0]) == 3


@pytest.mark.parametrize(
    "name", ["lwlrd", "random_bits", "consistent_distillation", "ensemble_distillation"]
)
def test_a_registered_defence(name):
    short = {
        "consistent_distillation": {"steps": 3},
        "ensemble_distillation": {"steps": 3},
        "lwlrd": {"epochs": 1, "batch_size": 4},
    }
    settings = short.get(name, {})
    results = [
        run(defended(defense=name, seed=seed, **settings), num_rounds=1)[0] for seed in (4, 4, 5)
    ]
    arrays = [result.arrays[FIRST].numpy() for result in results]
    assert np.array_equal(arrays[0], arrays[1]) and not np.array_equal(arrays[0], arrays[2])
    assert not np.allclose(arrays[0], state()[FIRST].numpy() + 1, atol=1e-7)


def test_a_table_and_a_chain_as_in_toml():
    chain = {"name": "chain", "steps": ["channel_permutation", {"name": "random_bits", "bits": 4}]}
    for defense in ({"name": "lwlrd", "epochs": 1}, chain):
        strategy = defended(defense=defense)
        run(strategy, num_rounds=1)
        assert strategy.reports[1].seconds > 0


@pytest.mark.parametrize(
    "given",
    [
        held_out()[0],
        list(held_out()),
        (held_out()[0].numpy(), held_out()[1].numpy()),
        torch.utils.data.TensorDataset(*held_out()),
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*held_out()), batch_size=5),
    ],
)
def test_held_out_images_come_as_people_have_them(given):
    strategy = defended(held_out=given, defense="consistent_distillation", labels=0.0, steps=2)
    run(strategy, num_rounds=1)
    assert strategy.reports[1].images == 12


@pytest.mark.parametrize("model", [make_model(), "cnn"])
def test_a_network_or_its_name_will_do(model):
    arrays = model.state_dict() if isinstance(model, nn.Module) else build_model("cnn", 1, 8, 3)
    arrays = arrays if isinstance(arrays, dict) else arrays.state_dict()
    strategy = defended(model=model, defense="random_bits")
    hospitals = Hospitals()
    result = strategy.start(InProcessGrid(hospitals.app, 2), ArrayRecord(arrays), num_rounds=1)
    assert list(result.arrays) == list(arrays) and strategy.reports[1].seconds > 0


# ---------------------------------------------------------------- the app stays as it is


def test_the_inner_strategys_own_settings_and_configs_reach_the_clients():
    inner = FedProx(proximal_mu=0.3, fraction_train=0.5, min_train_nodes=1, **KEYS)
    result, hospitals = run(
        defended(inner), nodes=4, train_config=ConfigRecord({"lr": 0.1}), num_rounds=2
    )
    assert [set(config) for config in hospitals.configs] == [
        {"lr", "proximal-mu", "server-round"}
    ] * 4
    assert "configure_train" not in vars(inner)
    assert inner.fraction_train == 0.5 and list(result.train_metrics_clientapp) == [1, 2]


@pytest.mark.parametrize(
    "inner",
    [
        lambda: FedMedian(**KEYS),
        lambda: Krum(**KEYS),
        lambda: FedAvgM(server_momentum=0.9, **KEYS),
        lambda: FedAdam(eta=5.0, **KEYS),
        lambda: DifferentialPrivacyServerSideFixedClipping(FedAvg(**KEYS), 10.0, 10.0, 3),
        lambda: DifferentialPrivacyServerSideFixedClipping(FedAdam(**KEYS), 0.0, 10.0, 3),
    ],
)
def test_other_strategies_of_flowers(inner):
    def shrink(trained, number, server_round):
        trained["1.running_var"] *= np.float32(0.1)

    result, _ = run(defended(inner()), Hospitals(shrink))
    assert float(result.arrays[FIRST].numpy().mean()) == 3.0
    assert result.arrays["1.num_batches_tracked"].dtype == "int64"
    assert (result.arrays["1.running_var"].numpy() >= 0).all()
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())


def test_a_servers_optimiser_steps_from_the_release_and_not_the_statistics():
    defense = Zeroing()
    run(defended(FedAvgM(server_learning_rate=0.5, **KEYS), defense=defense), num_rounds=2)
    weights, mean = defense.given[1][FIRST], defense.given[1]["1.running_mean"]
    assert torch.allclose(weights, torch.full_like(weights, 1.5), atol=1e-6)
    assert torch.allclose(mean, torch.full_like(mean, 2.0), atol=1e-6)


def test_a_strategy_with_a_loop_of_its_own():
    class Saving(FedAvg):
        def start(self, grid, initial_arrays, num_rounds=3, folder="", **given):  # type: ignore[override]
            self.saved = []
            arrays = initial_arrays
            for number in range(1, num_rounds):  # it leaves before its last round
                config = given.get("train_config") or ConfigRecord()
                messages = self.configure_train(number, arrays, config, grid)
                arrays, _ = self.aggregate_train(number, grid.send_and_receive(messages))
                self.saved.append((folder, float(arrays[FIRST].numpy().mean())))
            return Result(arrays=arrays)

    inner = Saving(**KEYS)
    result, _ = run(defended(inner), folder="here")
    assert inner.saved == [("here", 1.0), ("here", 2.0)]
    result, _ = run(defended(inner, every="last"), folder="there")
    assert inner.saved[-1][1] != 2.0 and float(result.arrays[FIRST].numpy().mean()) == 2.0


def test_arrays_without_names_are_numbered_in_the_networks_order():
    numbered = ArrayRecord([value.numpy() for value in state().values()])
    hospitals = Hospitals()
    result = defended().start(
        InProcessGrid(hospitals.app, 2), initial_arrays=numbered, num_rounds=1
    )
    place = str(list(state()).index(FIRST))
    assert list(result.arrays) == list(numbered)
    assert float(result.arrays[place].numpy().mean()) == 1.0


def test_rounds_driven_by_hand_are_all_cleaned():
    strategy, hospitals = defended(every="last"), Hospitals()
    grid = InProcessGrid(hospitals.app, 3)
    messages = strategy.configure_train(1, ArrayRecord(state()), ConfigRecord(), grid)
    arrays, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert float(arrays[FIRST].numpy().mean()) == 1.0


# ------------------------------------------------------------------------ what goes wrong


def in_rounds(change, rounds, numbers=(1,)):
    def when(trained, number, server_round):
        if server_round in rounds and number in numbers:
            change(trained)

    return when


def fail(trained):
    raise RuntimeError("the scanner is on fire")


def unfinite(trained):
    trained[FIRST][0, 0] = np.nan


def cut(trained):
    trained[FIRST] = trained[FIRST][:1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [(unfinite, "values that are NaN or infinite"), (cut, r"has shape \(1, 144\), not \(3, 144\)")],
)
def test_a_broken_upload_is_left_out_with_a_warning(change, sentence, caplog):
    hospitals = Hospitals(in_rounds(change, (2,)))
    with caplog.at_level(logging.WARNING, "flwr"):
        result, _ = run(defended(), hospitals)
    (record,) = [r for r in caplog.records if "was left out" in r.getMessage()]
    assert record.getMessage().startswith("Round 2: hospital 1 (node ")
    assert re.search(sentence, record.getMessage())
    assert list(result.train_metrics_clientapp) == [1, 2, 3]


@pytest.mark.parametrize("every", ["every", "last"])
def test_a_round_without_any_upload_changes_nothing_and_the_export_is_cleaned(every):
    defense = Zeroing()
    hospitals = Hospitals(in_rounds(fail, (3,), (0, 1, 2)))
    result, _ = run(defended(defense=defense, every=every), hospitals)
    assert defense.rounds == ([1, 2] if every == "every" else [2])
    assert float(result.arrays[FIRST].numpy().mean()) == 2.0


def test_a_run_in_which_nothing_came_is_an_error():
    hospitals = Hospitals(in_rounds(fail, (1, 2, 3), (0, 1, 2)))
    with pytest.raises(
        FlSimError, match=r"No round had a usable upload: hospitals 0, 1, 2: .*fire"
    ):
        run(defended(), hospitals)


def test_a_strategy_that_makes_other_arrays_is_named():
    class Losing(FedAvg):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            del arrays[FIRST]
            return arrays, metrics

    with pytest.raises(FlSimError, match=r"Round 1: the strategy 'Losing'.* lacks '4\.weight'"):
        run(defended(Losing(**KEYS)))


def test_a_failing_defence_is_named():
    class Broken(Zeroing):
        def apply(self, release):
            raise ZeroDivisionError("by zero")

    with pytest.raises(FlSimError, match="Round 1: cleaning: The defence 'Broken' failed: Z"):
        run(defended(defense=Broken()))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"defense": "lwlrdd"}, "no defense called 'lwlrdd'. Did you mean 'lwlrd'"),
        ({"defense": "lwlrd", "epoch": 2}, "no key 'epoch'. Did you mean 'epochs'"),
        ({"defense": {"name": "lwlrd", "epoch": 2}}, "no key 'epoch'"),
        ({"defense": "lwlrd", "held_out": held_out()[0]}, "'lwlrd' learns from labels"),
        ({"every": "evry"}, "not 'evry'"),
        ({"every": 0}, "not 0"),
        ({"model": "resnet19"}, "no model called 'resnet19'. Did you mean 'resnet18'"),
        ({"model": 3}, "model is 3"),
        ({"held_out": held_out(3)}, "cannot take images of 3 channels"),
        ({"held_out": (held_out()[0], torch.arange(12))}, "go up to class 11"),
        ({"held_out": (held_out()[0], torch.arange(5))}, "12 held-out images"),
        ({"held_out": (held_out()[0][..., :4], torch.arange(12) % 3)}, "square"),
        ({"inner": FedAvg}, r"takes a Flower strategy, for example FedAvg\(\)"),
    ],
)
def test_what_is_wrong_is_said_at_once(changes, sentence):
    with pytest.raises(FlSimError, match=sentence):
        defended(**changes)


def linear(entry, value):
    changed = state()
    if value is None:
        del changed[entry]
    else:
        changed[entry] = value
    return ArrayRecord(changed)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        (linear(FIRST, None), "lacks the entry '4.weight'"),
        (linear(FIRST, torch.zeros(3, 5)), r"'4.weight' in the shape \[3, 5\]"),
        (linear("head.weight", torch.zeros(1)), "'head.weight', which the network Sequential has"),
    ],
)
def test_arrays_of_another_network_are_refused_before_anybody_is_asked(arrays, sentence):
    hospitals = Hospitals()
    with pytest.raises(FlSimError, match=sentence):
        defended().start(InProcessGrid(hospitals.app, 2), arrays)
    assert not hospitals.received


def test_every_registered_defence_can_be_named():
    for name in DEFENSES.names():
        if name == "rhe":
            with pytest.raises(FlSimError, match="seals the model's head"):
                defended(defense=name)
        elif name != "chain":
            defended(defense=name)
