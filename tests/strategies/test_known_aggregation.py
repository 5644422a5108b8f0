"""What an attacker who knows the aggregation counts with, against what the strategies do."""

import pytest
import torch
from flwr.clientapp import ClientApp

from clients.app import client_app
from experiments.studies.adaptive import counted
from fl_sim.engine.records import to_record
from tests.engine.federation_kit import federate, initial, settings

HOSPITALS = 16
DIFFERENCE = 1e-5
WEIGHT = "4.weight"


def colluding_app(colluders: int) -> ClientApp:
    """Hospitals that send the broadcast back, some of them with a small difference."""
    app = ClientApp()
    app.query()(lambda m, c: client_app(m, c))

    @app.train()
    def train(message, context):
        reply = client_app(message, context)
        state = initial()
        if context.node_config["partition-id"] < colluders:
            state[WEIGHT] = state[WEIGHT] + DIFFERENCE
        reply.content["arrays"] = to_record(state)
        return reply

    return app


@pytest.mark.parametrize(
    ("strategy", "colluders", "keys"),
    [
        ("fedmedian", 8, {}),
        ("fedmedian", 9, {}),
        ("fedtrimmedavg", 4, {}),
        ("fedtrimmedavg", 7, {"beta": 0.3}),
        ("krum", 4, {"num_malicious_nodes": 4}),
        ("multikrum", 4, {"num_malicious_nodes": 4, "num_nodes_to_select": 8}),
        ("fedadam", 1, {}),
        ("fedadam", 4, {}),
    ],
)
def test_the_aggregate_moves_as_the_attacker_counts(strategy, colluders, keys):
    federation = settings(hospitals=HOSPITALS, rounds=1)
    _, final = federate(federation, strategy, keys, app=colluding_app(colluders))
    moved = float((final[WEIGHT].double() - initial()[WEIGHT].double()).mean()) / DIFFERENCE
    expected = counted(strategy, HOSPITALS, colluders, keys)
    if strategy in ("krum", "multikrum"):  # all are as central here: it is chosen, or it is not
        assert moved == pytest.approx(0, abs=0.02) or moved == pytest.approx(expected, abs=0.02)
    else:
        assert moved == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("strategy", "colluders"), [("fedmedian", 1), ("fedmedian", 7), ("fedtrimmedavg", 3)]
)
def test_too_few_colluders_move_nothing(strategy, colluders):
    federation = settings(hospitals=HOSPITALS, rounds=1)
    _, final = federate(federation, strategy, app=colluding_app(colluders))
    assert torch.allclose(final[WEIGHT], initial()[WEIGHT], rtol=1e-6, atol=0)
    assert counted(strategy, HOSPITALS, colluders, {}) is True
