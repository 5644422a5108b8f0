import copy
import pickle

import pytest
import torch
from federation_kit import network, same

from fl_sim.engine.records import from_record, to_record

STATE = {
    "half": torch.tensor([1.5, float("inf")], dtype=torch.float16),
    "nan": torch.tensor([float("nan"), -0.0]),
    "steps": torch.tensor(2**62 + 1),
    "scalar": torch.tensor(0.1, dtype=torch.float64),
    "mask": torch.tensor([True, False]),
    "bytes": torch.tensor([0, 255], dtype=torch.uint8),
    "strided": torch.arange(6.0).reshape(2, 3).t(),
    "empty": torch.zeros(0, 3),
}


@pytest.mark.parametrize("state", [STATE, network().state_dict()], ids=["odd", "network"])
@pytest.mark.parametrize("way", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_a_state_survives_the_way_bit_for_bit(state, way):
    back = from_record(way(to_record(state)))
    assert list(back) == list(state)
    for name, value in state.items():
        assert back[name].dtype == value.dtype
        assert back[name].shape == value.shape
        assert back[name].numpy().tobytes() == value.contiguous().numpy().tobytes()


def test_a_record_shares_nothing():
    state = {"w": torch.zeros(2)}
    record = to_record(state)
    state["w"].add_(1)
    first = from_record(record)
    first["w"].add_(2)
    assert same(from_record(record), {"w": torch.zeros(2)})
