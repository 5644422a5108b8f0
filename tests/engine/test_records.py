import copy
import io
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from fl_sim.engine.records import from_record, to_record
from tests.engine.federation_kit import network, same

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


def _npy(array, **how):
    stream = io.BytesIO()
    np.save(stream, array, **how)
    return stream.getvalue()


def _claiming(header, data=b"\0" * 8):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def _zipped():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.npy", _npy(np.zeros(2, np.float32)))
    return stream.getvalue()


FLOATS = np.zeros(2, np.float32)
HOSTILE = {
    "nothing": b"",
    "no array": b"not an array",
    "cut": _npy(FLOATS)[:-3],
    "bytes after the end": _npy(FLOATS) + b"payload!",
    "objects": _npy(np.array([{}, {}]), allow_pickle=True),
    "a pickle": pickle.dumps([1.0, 2.0]),
    "a zip": _zipped(),
    "texts": _npy(np.array(["ab", "cd"])),
    "a structure": _npy(np.zeros(2, [("a", "f4")])),
    "the other byte order": _npy(FLOATS.astype(">f4")),
    "bytes without end": _claiming("{'descr':'<f4','fortran_order':False,'shape':(1<<40,)}"),
    "a terabyte": _claiming("{'descr':'<f4','fortran_order':False,'shape':(275000000000,)}"),
    "negative": _claiming("{'descr':'<f4','fortran_order':False,'shape':(-1,-2)}"),
    "no size": _claiming("{'descr':'V0','fortran_order':False,'shape':(9000000000,)}", b""),
    "a deep header": _claiming("(" * 100),
    "a header that runs": _claiming("__import__('os').getpid()"),
    "version 3": b"\x93NUMPY\x03\x00" + _npy(FLOATS)[8:],
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_bytes_that_are_no_array_are_a_value_error(data):
    record = ArrayRecord({"w": Array("float32", (2,), "numpy.ndarray", data)})
    tracemalloc.start()
    with pytest.raises(ValueError, match="'w' is no array"):
        from_record(record)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("dtype", "shape", "kind"),
    [
        ("float64", (2,), "numpy.ndarray"),
        ("float32", (3,), "numpy.ndarray"),
        ("float32", (2,), "pickle"),
    ],
)
def test_what_an_array_says_of_itself_is_held_against_it(dtype, shape, kind):
    with pytest.raises(ValueError, match="'w' is no array"):
        from_record(ArrayRecord({"w": Array(dtype, shape, kind, _npy(FLOATS))}))


def test_a_transposed_array_is_read_as_it_was():
    values = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    state = from_record(ArrayRecord({"w": Array(values)}))
    assert torch.equal(state["w"], torch.arange(6.0).reshape(2, 3))
