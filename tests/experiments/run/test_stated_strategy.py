"""A federation whose strategy was built in Python."""

import json

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedAvgM,
)
from torch import nn

from experiments.run.federated import run_federated
from experiments.run.measurer import Measurer
from experiments.run.result import Result
from experiments.run.running import Run
from experiments.run.scenario import Scenario
from experiments.run.stated_strategy import with_strategy
from fl_sim.errors import FlSimError
from strategies import Defended
from tests.experiments.run_kit import FEDERATED, PowerCut, same

HONEST = {**FEDERATED, "attack": "none", "defense": "none"}


class Halved(FedAvg):
    """Averages, and halves the mean of every weight."""

    def __init__(self, factor=0.5):
        super().__init__()
        self.factor = factor
        self.rounds = 0

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.rounds += 1
        for array in arrays.values():
            value = array.numpy()
            array.__dict__.update(vars(type(array)(np.asarray(value * self.factor))))
        return arrays, metrics


def scenario(strategy, **changes):
    return with_strategy(Scenario.from_mapping({**HONEST, **changes}), strategy)


def run(strategy, out, **changes):
    stated = scenario(strategy, **changes)
    study = Run(stated, out, None)
    run_federated(study, strategy=strategy)
    study.folder.finish()
    return Result(stated, out)


def test_it_aggregates_and_rows_call_it_by_its_class(tmp_path):
    strategy = Halved(0.0)
    result = run(strategy, tmp_path)
    assert set(result.table["aggregator"]) == {"Halved"}
    assert "-Halved-" in result.scenario.identity
    kept = json.loads((tmp_path / "scenario.json").read_text())
    assert kept["scenario"]["federation"]["strategy"]["settings"]["0/factor"] == 0.0
    from safetensors.torch import load_file

    assert all(not v.any() for v in load_file(result.artifact).values() if v.is_floating_point())
    assert strategy.rounds == 0 and strategy.min_train_nodes == 2, "the caller's own is copied"


def test_scenarios_of_other_strategies_are_others():
    names = {
        scenario(strategy).identity
        for strategy in (
            Halved(0.5),
            Halved(0.25),
            FedAvg(),
            FedAvgM(server_momentum=0.5),
            FedAvgM(server_momentum=0.25),
            DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, 2),
            DifferentialPrivacyServerSideFixedClipping(Halved(), 1.0, 1.0, 2),
        )
    }
    assert len(names) == 7
    assert Scenario.from_mapping(HONEST).identity not in names
    assert scenario(Halved(0.5)).identity == scenario(Halved(0.5)).identity
    used = FedAvgM(server_momentum=0.5)
    used.momentum_vector = [np.ones(2)]
    assert scenario(used).identity != scenario(FedAvgM(server_momentum=0.5)).identity


def test_a_run_goes_on_with_the_same_strategys_state_and_not_with_another(tmp_path, monkeypatch):
    whole = run(FedAvgM(server_momentum=0.5), tmp_path / "whole")
    original = Measurer.record

    def interrupted(self, server_round, stage, *arguments, **more):
        if (server_round, stage) == (3, "aggregate"):
            raise PowerCut
        return original(self, server_round, stage, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Measurer, "record", interrupted)
        with pytest.raises(PowerCut):
            run(FedAvgM(server_momentum=0.5), tmp_path / "cut")
    with pytest.raises(FlSimError, match="holds the run of another scenario"):
        run(FedAvgM(server_momentum=0.25), tmp_path / "cut")
    same(whole.table, run(FedAvgM(server_momentum=0.5), tmp_path / "cut").table)


def test_one_that_cannot_be_copied_does_for_a_run(tmp_path):
    strategy = Halved()
    with (tmp_path / "log").open("w") as strategy.file:  # type: ignore[attr-defined]
        run(strategy, tmp_path / "run")
    assert strategy.rounds == 3


@pytest.mark.parametrize(
    ("strategy", "sentence"),
    [
        (FedAvg, r"give an object of a Flower strategy, for example FedAvg\(\)"),
        ("fedavg", "The strategy is 'fedavg'; give an object"),
    ],
)
def test_what_is_no_strategy_is_refused(strategy, sentence):
    with pytest.raises(FlSimError, match=sentence):
        scenario(strategy)


def test_a_centralized_scenario_and_a_second_defence_are_refused():
    lake = Scenario.from_mapping({"mode": "centralized", "dataset": "phantoms", "model": "cnn"})
    with pytest.raises(FlSimError, match="for a federation"):
        with_strategy(lake, FedAvg())
    images = torch.rand(4, 1, 8, 8), torch.arange(4) % 2

    def make():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

    cleaned = Defended(FedAvg(), defense="lwlrd", model=make, held_out=images)
    with pytest.raises(FlSimError, match="without Defended around it"):
        scenario(DifferentialPrivacyServerSideFixedClipping(cleaned, 1.0, 1.0, 2))
