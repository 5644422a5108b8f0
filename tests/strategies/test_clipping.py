"""Norm clipping against a slow calculation by hand."""

import numpy as np
import pytest
import torch
from flwr.clientapp import ClientApp

from clients.hospital import boosted
from fl_sim.engine.records import from_record, to_record
from tests.engine.federation_kit import federate, initial, settings


def boosted_app(factor: float, hospital: int = 0) -> ClientApp:
    from clients.app import client_app

    app = ClientApp()
    app.query()(lambda m, c: client_app(m, c))

    @app.train()
    def train(message, context):
        reply = client_app(message, context)
        if context.node_config["partition-id"] == hospital:
            state = boosted(from_record(reply.content["arrays"]), initial(), factor)
            reply.content["arrays"] = to_record(state)
        return reply

    return app


def by_hand(recorder, max_norm=None, median_factor=1.0):
    start = initial()
    names = [n for n, v in start.items() if v.is_floating_point()]
    updates, weights = [], []
    for (_, hospital), state in sorted(recorder.uploads.items()):
        # Counters of batches, of which a difference outweighs all weights, are no part of the norm.
        moved = {n: state[n].double() - start[n].double() for n in names}
        updates.append(moved)
        weights.append(recorder.metrics[1, hospital]["num-examples"])
    norms = [float(sum(v.square().sum() for v in u.values())) ** 0.5 for u in updates]
    bound = median_factor * float(np.median(norms)) if max_norm is None else max_norm
    result = {}
    for name in names:
        mean = sum(
            w * min(1.0, bound / norm) * u[name]
            for w, u, norm in zip(weights, updates, norms, strict=True)
        )
        result[name] = start[name].double() + mean / sum(weights)
    return result, norms, bound


@pytest.mark.parametrize("keys", [{}, {"max_norm": 0.05}, {"median_factor": 1.5}])
def test_clipped_updates_are_averaged(keys):
    recorder, final = federate(settings(rounds=1), "normclipping", keys, app=boosted_app(50.0))
    expected, norms, bound = by_hand(recorder, **keys)
    assert max(norms) > bound  # something was clipped
    for name, value in expected.items():
        assert torch.allclose(final[name].double(), value, atol=1e-5), name


def test_a_large_bound_changes_nothing():
    plain, _ = federate(settings(rounds=2))
    clipped, _ = federate(settings(rounds=2), "normclipping", {"max_norm": 1e9})
    for name, value in plain.releases[2].items():
        assert torch.allclose(value.double(), clipped.releases[2][name].double(), atol=1e-6)
