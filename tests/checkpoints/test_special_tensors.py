"""Sparse, quantised, tied, expanded and unusual tensors: their values, layouts and bytes."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from fl_sim.checkpoints import read_checkpoint
from tests.checkpoints.checkpoint_kit import edited, found, loud, refusal, same, saved

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "bsc"])
def test_a_sparse_tensor_is_filled_in(tmp_path: Path, layout: str) -> None:
    torch.manual_seed(0)
    dense = torch.randn(8, 6).relu()
    block = ((2, 2),) if layout.startswith("bs") else ()
    make = dense.to_sparse if layout == "coo" else getattr(dense, f"to_sparse_{layout}")
    read = read_checkpoint(saved(tmp_path / "a.pth", {"w": make(*block), "b": torch.ones(3)}))
    assert torch.equal(read.state["w"], dense) and read.state["w"].layout == torch.strided
    assert layout in read.layouts["w"] and "b" not in read.layouts
    assert all(name.startswith("w.") for name in read.parts)
    assert loud(read) == []


def test_a_sparse_tensor_of_endless_shape_gives_its_values(tmp_path: Path) -> None:
    huge = torch.sparse_coo_tensor([[1, 7], [2, 9]], [1.0, 2.0], (10**6, 10**6)).coalesce()
    read = read_checkpoint(saved(tmp_path / "a.pth", {"w": huge}))
    assert read.state["w"].tolist() == [1, 2] and "values" in read.layouts["w"]


def test_sparse_positions_are_checked(tmp_path: Path) -> None:
    sparse = torch.sparse_coo_tensor([[0, 1, 2]], [1.0, 2.0, 3.0], (5,)).coalesce()
    path = saved(tmp_path / "a.pth", {"w": sparse})
    order = torch.tensor([2, 0, 1]).numpy().tobytes()
    edited(path, lambda content: order if len(content) == 24 else content, "data/0")
    assert any("order" in words for words in loud(read_checkpoint(path)))
    outside = torch.tensor([0, 1, 99]).numpy().tobytes()
    edited(path, lambda content: outside, "data/0")
    assert re.search("indices", refusal(path))


def test_quantised_tensors_give_their_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight = torch.randn(4, 5)
    whole = torch.quantize_per_tensor(weight, 0.1, 3, torch.qint8)
    channels = torch.quantize_per_channel(
        weight, torch.rand(4) + 0.1, torch.zeros(4, dtype=torch.long), 0, torch.quint8
    )
    read = read_checkpoint(saved(tmp_path / "a.pth", {"a": whole, "b": channels}))
    assert torch.equal(read.state["a"], whole.int_repr())
    assert torch.equal(read.state["b"], channels.int_repr())
    assert "0.1" in read.layouts["a"] and "per_channel" in read.layouts["b"]
    assert torch.equal(read.parts["b.scale"], channels.q_per_channel_scales())
    assert loud(read) == []


def test_a_dynamically_quantised_network_gives_its_weights(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(30, 40)))
    read = read_checkpoint(saved(tmp_path / "a.pth", network.state_dict()))
    (weight,) = [n for n in read.state if n.endswith(".weight")]
    assert torch.equal(read.state[weight], network[0].weight().int_repr())
    assert loud(read) == []


def test_a_tensor_without_values_is_named(tmp_path: Path) -> None:
    meta = torch.zeros(3, device="meta")
    read = read_checkpoint(saved(tmp_path / "a.pth", {"m": meta, "w": torch.ones(2)}))
    assert list(read.state) == ["w"]
    assert any("'m'" in f.what and f.level == "note" for f in read.findings)
    assert re.search("meta", refusal(saved(tmp_path / "b.pth", {"m": meta})))


def test_every_element_type_is_read(tmp_path: Path) -> None:
    names = (
        "half",
        "bfloat16",
        "float",
        "double",
        "int8",
        "uint8",
        "int16",
        "int32",
        "int64",
        "uint16",
        "uint32",
        "uint64",
        "complex64",
        "complex128",
        "float8_e4m3fn",
        "float8_e5m2",
        "bool",
    )
    state = {name: torch.tensor([0, 1, 1]).to(getattr(torch, name)) for name in names}
    for new in (True, False):
        path = saved(tmp_path / "a.pth", state, _use_new_zipfile_serialization=new)
        read = read_checkpoint(path)
        assert [t.dtype for t in read.state.values()] == [t.dtype for t in state.values()]
        for name in names:
            assert torch.equal(read.state[name].view(torch.uint8), state[name].view(torch.uint8))
        assert loud(read) == []


def test_odd_forms_of_ordinary_tensors(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    state: dict[Any, torch.Tensor] = {
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "turned": base.view(4, 6).t(),
        "parameter": nn.Parameter(torch.ones(2)),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        7: torch.ones(1),
        "all": base,
    }
    read = read_checkpoint(saved(tmp_path / "a.pth", state))
    assert list(read.state) == [str(key) for key in state]
    for key, tensor in state.items():
        assert torch.equal(read.state[str(key)], tensor) and read.state[str(key)].is_contiguous()
    assert not read.state["parameter"].requires_grad
    assert loud(read) == []


def test_tied_tensors_are_counted_once(tmp_path: Path) -> None:
    weight = torch.randn(30, 20)
    read = read_checkpoint(saved(tmp_path / "a.pth", {"a": weight, "b": weight, "c": weight[:10]}))
    assert read.state["a"].data_ptr() == read.state["b"].data_ptr()
    assert loud(read) == []


def test_a_nested_tensor_is_one_row(tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.zeros(4, 3)])
    read = read_checkpoint(saved(tmp_path / "a.pth", {"w": nested}))
    assert read.state["w"].numel() == 18 and "nested" in read.layouts["w"]


def test_pruned_networks_keep_their_masks(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(6, 5))
    prune.l1_unstructured(network[0], "weight", 0.5)
    read = read_checkpoint(saved(tmp_path / "a.pth", network.state_dict()))
    assert same(read.state, dict(network.state_dict()))
    assert [f.level for f in read.findings if f.check == "pruning"] == ["note"]


def test_an_expanded_tensor_stays_as_small_as_it_is(tmp_path: Path) -> None:
    small = torch.ones(1).expand(40)
    read = read_checkpoint(saved(tmp_path / "a.pth", {"w": small}))
    assert read.state["w"].tolist() == [1.0] * 40 and loud(read) == []
    huge = torch.ones(1).expand(500_000_000)
    path = saved(tmp_path / "b.pth", {"w": huge})
    found(path, 2_000_000_000, "suspicious")
    assert read_checkpoint(path).state["w"].numel() == 1


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        (b"K\x02K\x03\x86", b"K\x02K\x04\x86", "beyond"),
        (b"K\x02K\x03\x86", b"K\x02J\xff\xff\xff\xff\x86", "whole numbers"),
        (b"K\x02K\x03\x86", b"(" + b"K\x01" * 40 + b"t", "dimensions|whole numbers"),
        (b"K\x02K\x03\x86", b"K\x02\x8a\x08" + b"\xff" * 7 + b"\x7f\x86", "memory"),
        (b"K\x02K\x03\x86", b"K\x02N\x86", "whole numbers"),
        (b"K\x06t", b"K\x60t", "due"),
        (b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009", "no record"),
    ],
)
def test_a_tensor_that_cannot_be_is_refused(
    tmp_path: Path, old: bytes, new: bytes, word: str
) -> None:
    path = saved(tmp_path / "a.pth", {"w": torch.zeros(2, 3)})

    def change(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new, 1)

    edited(path, change)
    assert re.search(word, refusal(path))
