"""Robust strategies in blocks are Flower's, bit for bit."""

import itertools
import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy.multikrum import compute_distances

from fl_sim.engine.inprocess import InProcessGrid
from fl_sim.engine.spill import Spill, part_of, widened
from strategies.blocks import (
    BulyanInBlocks,
    MedianInBlocks,
    TrimmedMeanInBlocks,
    pieces,
)
from strategies.selecting import SelectingKrum, SelectingMultiKrum, squared_distances

SHAPES = {
    **{"scalar": (), "one": (1,), "column": (9, 1), "row": (1, 9), "bias": (17,)},
    **{"kernel": (8, 3, 3, 3), "matrix": (61, 23), "empty": (0, 4)},
}


def uploads(number, dtype, seed=0):
    """Replies of some hospitals; some of their values are equal."""
    from clients.app import client_app

    InProcessGrid(client_app, 1)  # a message asks who writes it
    random = np.random.default_rng(seed)
    replies = []
    for hospital in range(number):
        values = {n: np.asarray(random.normal(size=shape)) for n, shape in SHAPES.items()}
        values["bias"] = np.round(values["bias"])
        arrays = ArrayRecord({n: Array(np.asarray(v.astype(dtype))) for n, v in values.items()})
        metrics = MetricRecord({"num-examples": hospital + 1, "hospital": hospital})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        replies.append(Message(content, dst_node_id=1, message_type="train"))
    return replies


def made(strategy, replies):
    arrays, metrics = strategy.aggregate_train(1, replies)
    return {name: array.numpy() for name, array in arrays.items()}, dict(metrics)


def assert_same(one, other):
    assert one[1] == other[1]
    assert list(one[0]) == list(other[0])
    for name, value in one[0].items():
        assert value.dtype == other[0][name].dtype and value.shape == other[0][name].shape, name
        assert value.tobytes() == other[0][name].tobytes(), name


PAIRS = [
    (flower.FedMedian, MedianInBlocks, {}),
    (flower.FedTrimmedAvg, TrimmedMeanInBlocks, {"beta": 0.2}),
    (flower.FedTrimmedAvg, TrimmedMeanInBlocks, {"beta": 0.4}),
    (flower.Bulyan, BulyanInBlocks, {"num_malicious_nodes": 1}),
    (flower.Krum, SelectingKrum, {"num_malicious_nodes": 1}),
    (flower.MultiKrum, SelectingMultiKrum, {"num_malicious_nodes": 1, "num_nodes_to_select": 4}),
]


@pytest.mark.parametrize(("plain", "ours", "keys"), PAIRS)
@pytest.mark.parametrize("number", [7, 12, 33])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("block", [1, 3000, 1 << 30])
def test_in_blocks_as_at_once(plain, ours, keys, number, dtype, block, monkeypatch):
    monkeypatch.setattr("strategies.selecting.MATRIX_BYTES", block)
    monkeypatch.setattr("strategies.blocks.BLOCK_BYTES", block)
    strategy = ours(**keys)
    expected = made(plain(**keys), uploads(number, dtype))
    assert_same(made(strategy, uploads(number, dtype)), expected)


@pytest.mark.parametrize(("plain", "ours", "keys"), PAIRS)
def test_from_disk_as_from_memory(plain, ours, keys, monkeypatch):
    monkeypatch.setattr("strategies.blocks.BLOCK_BYTES", 2000)
    strategy, spill = ours(**keys), Spill()
    replies = uploads(11, "float32")
    for reply in replies:
        stored = spill.store(reply.content["arrays"])
        reply.content["arrays"] = ArrayRecord({n: widened(a) for n, a in stored.items()})
    plain_replies = uploads(11, "float32")
    for reply in plain_replies:
        record = reply.content["arrays"]
        for name in list(record):
            record[name] = Array(record[name].numpy().astype("float64"))
    assert_same(made(strategy, replies), made(plain(**keys), plain_replies))
    spill.close()


@pytest.mark.parametrize("number", [3, 10, 41])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_distances_over_a_mapped_matrix_have_the_same_bits(number, dtype):
    records = [reply.content["arrays"] for reply in uploads(number, dtype)]
    mapped = squared_distances(records, matrix_bytes=0)
    assert mapped.tobytes() == compute_distances(records).tobytes()


@pytest.mark.parametrize("coordinates", [2, 3, 10, 1000, 10**6])
def test_pieces_cover_every_element_once_and_cut_off_no_single_one(coordinates):
    record = uploads(1, "float32")[0].content["arrays"]
    found = list(pieces(record, coordinates))
    for name, shape in SHAPES.items():
        cuts = [(start, stop) for piece, start, stop in found if piece == name]
        ends = [0, *(stop for _, stop in cuts)]
        assert cuts == list(itertools.pairwise(ends))
        assert ends[-1] == math.prod(shape)
        assert len(cuts) == 1 or min(stop - start for start, stop in cuts) >= 2
    assert max(stop - start for _, start, stop in found) <= max(3, coordinates)


@pytest.mark.parametrize("value", [np.arange(24.0).reshape(4, 6), np.arange(24.0).reshape(4, 6).T])
def test_a_part_is_the_elements_in_c_order(value):
    spill = Spill()
    array = Array(value)  # NumPy keeps the order of a transposed array
    stored = spill.store(ArrayRecord({"a": array}))["a"]
    for kind in (array, stored, widened(stored)):
        assert np.array_equal(part_of(kind, 5, 11), value.reshape(-1)[5:11])
    spill.close()
