"""The lowest bits: bit for bit, against a slow reference, and through damage."""

import struct

import numpy as np
import pytest
import torch

from fl_sim.carriers.base import CARRIERS, State
from fl_sim.carriers.lsb import MANTISSA, LeastSignificantBits, LsbSettings
from fl_sim.carriers.placement import BLOCK, Order
from fl_sim.errors import FlSimError
from fl_sim.models import build_model
from fl_sim.settings import parse

SIZES = {"b.weight": (3, 700), "a.weight": (1100,), "c": (), "d": (9, 1)}
FORMATS = {torch.float32: "<I", torch.float16: "<H", torch.bfloat16: "<H", torch.float64: "<Q"}


def made(dtype: torch.dtype = torch.float32) -> State:
    """A state of several tensors, with and without whole blocks, and buffers."""
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in SIZES.items()}
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    state["running_mean"] = torch.ones(600)
    state["num_batches_tracked"] = torch.tensor(12345)
    return state


def payload(count: int, seed: int = 0) -> np.ndarray:
    """Random bytes."""
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)


def carrier(seed: int = 11, **settings: object) -> LeastSignificantBits:
    """A carrier with settings as a scenario gives them."""
    return LeastSignificantBits(parse(LsbSettings, settings, "carrier"), seed)


def words(state: State, name: str) -> list[int]:
    """A tensor's elements as integers, by way of struct."""
    tensor = state[name].reshape(-1)
    if tensor.dtype == torch.bfloat16:
        # A bfloat16 is the upper half of a float32.
        return [struct.unpack("<I", struct.pack("<f", float(v)))[0] >> 16 for v in tensor]
    formats = {torch.float32: "<f", torch.float16: "<e", torch.float64: "<d"}
    pack = formats[tensor.dtype]
    return [struct.unpack(FORMATS[tensor.dtype], struct.pack(pack, float(v)))[0] for v in tensor]


def slow_write(state: State, bits: int, content: np.ndarray, seed: int | None) -> list[list[int]]:
    """Element by element and bit by bit: the words of a, b, c, d as they should become."""
    names = sorted(SIZES)
    order = Order([state[name].numel() for name in names], seed)
    before = [words(state, name) for name in names]
    place = {}
    for i in range(len(names)):
        for j, rank in enumerate(order.ranks(i).tolist()):
            place[rank] = (i, j)
    for position in range(8 * len(content)):
        bit = int(content[position // 8]) >> (position % 8) & 1
        i, j = place[position // bits]
        low = 1 << (position % bits)
        before[i][j] = before[i][j] & ~low | (low if bit else 0)
    return before


@pytest.mark.parametrize("order", ["keyed", "sequential"])
@pytest.mark.parametrize(
    ("dtype", "bits"),
    [(d, b) for d, most in MANTISSA.items() for b in range(1, min(most, 23) + 1)],
)
def test_a_payload_comes_back_from_every_bit_depth_and_dtype(
    dtype: torch.dtype, bits: int, order: str
) -> None:
    state, lsb = made(dtype), carrier(bits=bits, order=order)
    capacity = lsb.capacity(state)
    assert capacity == sum(state[name].numel() for name in SIZES) * bits // 8
    for count in (capacity, capacity - 1, BLOCK * bits // 8 + 1, 3, 1, 0):
        content = payload(count)
        written = lsb.write(state, content)
        assert np.array_equal(lsb.read(written, count), content)
        assert np.array_equal(lsb.read(written)[:count], content)
        assert len(lsb.read(written)) == capacity


@pytest.mark.parametrize("order", ["keyed", "sequential"])
@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        *((torch.float32, bits) for bits in (1, 3, 8, 11, 16, 23)),
        *((torch.float16, 10), (torch.bfloat16, 7), (torch.float64, 16)),
    ],
)
def test_writing_agrees_with_a_slow_reference(dtype: torch.dtype, bits: int, order: str) -> None:
    state, lsb = made(dtype), carrier(bits=bits, order=order)
    capacity = lsb.capacity(state)
    for count in (capacity, capacity // 3, 70):
        content = payload(count)
        written = lsb.write(state, content)
        expected = slow_write(state, bits, content, 11 if order == "keyed" else None)
        # Exact to the bit: whatever is beyond the payload is as it was.
        assert [words(written, name) for name in sorted(SIZES)] == expected


def test_dtypes_together_form_one_order() -> None:
    state = made() | {"half": torch.randn(900).half(), "brain": torch.randn(800).bfloat16()}
    lsb = carrier(bits=7)
    content = payload(lsb.capacity(state))
    written = lsb.write(state, content)
    assert np.array_equal(lsb.read(written), content)
    assert {n: t.dtype for n, t in written.items()} == {n: t.dtype for n, t in state.items()}
    with pytest.raises(FlSimError, match=r"bits = 8, but 'brain' is bfloat16.*at most 7"):
        carrier(bits=8).capacity(state)
    with pytest.raises(FlSimError, match=r"'half' is float16.*at most 10"):
        carrier(bits=11, exclude=["brain"]).write(state, content[:3])
    assert carrier(bits=11, exclude=["brain", "half"]).capacity(state) > 0


def test_what_is_not_used_stays_and_the_original_too() -> None:
    state = made()
    before = {name: tensor.clone() for name, tensor in state.items()}
    lsb = carrier(bits=16, tensors=["*weight"])
    written = lsb.write(state, payload(lsb.capacity(state)))
    assert all(torch.equal(state[name], before[name]) for name in state)
    for name in ("c", "d", "running_mean", "num_batches_tracked"):
        assert torch.equal(written[name], state[name])
    assert not torch.equal(written["a.weight"], state["a.weight"])
    assert list(written) == list(state)
    for name, tensor in written.items():  # no memory is shared
        tensor.zero_()
        assert torch.equal(state[name], before[name])


def test_one_byte_too_many_is_refused() -> None:
    state, lsb = made(), carrier(bits=5)
    capacity = lsb.capacity(state)
    assert capacity == (2100 + 1100 + 1 + 9) * 5 // 8
    lsb.write(state, payload(capacity))
    with pytest.raises(FlSimError, match=f"{capacity + 1} bytes does not fit.*{capacity} bytes"):
        lsb.write(state, payload(capacity + 1))
    with pytest.raises(FlSimError, match="carries bytes"):
        lsb.write(state, np.zeros(3, np.float32))


def test_running_statistics_carry_only_where_it_is_said() -> None:
    state = made()
    more = carrier(bits=8, running_statistics=True)
    assert more.capacity(state) == carrier(bits=8).capacity(state) + 600


@pytest.mark.parametrize("bits", range(1, 24))
def test_a_weight_changes_by_less_than_the_bits_are_worth(bits: int) -> None:
    state, lsb = made(), carrier(bits=bits)
    for content in (payload(lsb.capacity(state)), np.full(lsb.capacity(state), 255, np.uint8)):
        written = lsb.write(state, content)
        for name in SIZES:
            change = ((written[name] - state[name]).double() / state[name].double()).abs()
            assert change.max() < 2.0 ** (bits - 23)
            assert torch.equal(written[name].sign(), state[name].sign())


def test_weights_that_are_not_finite_do_not_displace_the_payload() -> None:
    state = made()
    state["a.weight"][::3] = torch.inf
    state["b.weight"][:] = torch.nan
    lsb = carrier(bits=16)
    content = payload(lsb.capacity(state))
    written = lsb.write(state, content)
    assert np.array_equal(lsb.read(written), content)
    assert torch.equal(written["a.weight"].isfinite(), state["a.weight"].isfinite())


def test_another_seed_reads_noise() -> None:
    state = made() | {"big": torch.randn(100, BLOCK)}
    content = payload(carrier().capacity(state))
    written = carrier().write(state, content)
    wrong = np.unpackbits(content ^ carrier(seed=12).read(written)).mean()
    assert 0.45 < wrong < 0.55
    assert np.array_equal(carrier().read(dict(reversed(written.items()))), content)


def test_layouts_that_are_not_contiguous_make_no_difference() -> None:
    state = {"w": torch.randn(8, 16, 5, 5), "v": torch.randn(40, 30)}
    odd = {"w": state["w"].to(memory_format=torch.channels_last), "v": state["v"].t().clone().t()}
    content = payload(carrier().capacity(state))
    written = carrier().write(odd, content)
    assert torch.equal(written["w"], carrier().write(state, content)["w"])
    odd_again = {"w": written["w"].to(memory_format=torch.channels_last), "v": written["v"]}
    assert np.array_equal(carrier().read(odd_again), content)


@pytest.mark.parametrize("what", ["missing", "reshaped", "complex"])
def test_a_lost_tensor_costs_only_its_own_bytes(what: str) -> None:
    state, lsb = made(), carrier(bits=16)
    content = payload(lsb.capacity(state))
    written = lsb.write(state, content)
    if what == "missing":
        del written["a.weight"]
    else:
        a = written["a.weight"]
        written["a.weight"] = a[None] if what == "reshaped" else torch.complex(a, a)
    read = lsb.read(written, like=state)
    lost = np.zeros(len(content) * 8 // 16, bool)
    names = sorted(SIZES)
    lost[Order([state[name].numel() for name in names], 11).ranks(0)] = True
    assert np.array_equal(read.reshape(-1, 2)[~lost], content.reshape(-1, 2)[~lost])
    assert not read.reshape(-1, 2)[lost].any()
    assert len(lsb.read(written, len(content))) == len(content)  # without the layout: noise


def test_what_cannot_be_read_is_zeros_of_the_right_length() -> None:
    state, lsb = made(), carrier(bits=16)
    assert lsb.read({}, 10).tolist() == [0] * 10
    assert lsb.read({}, 10, like=state).tolist() == [0] * 10
    assert len(lsb.read({}, like=state)) == lsb.capacity(state)
    halves = {n: t.bfloat16() if t.is_floating_point() else t for n, t in state.items()}
    assert lsb.read(halves, 5).tolist() == [0] * 5
    assert not lsb.read(halves, like=state).any()  # the bits were rounded away
    beyond = lsb.read(lsb.write(state, payload(6420)), 7000)
    assert (
        len(beyond) == 7000
        and not beyond[6420:].any()
        and np.array_equal(beyond[:6420], payload(6420))
    )
    meta = {name: tensor.to("meta") for name, tensor in state.items()}
    assert np.array_equal(lsb.read(lsb.write(state, payload(9)), 9, like=meta), payload(9))


@pytest.mark.parametrize("bits", [3, 16])
def test_places_are_the_elements_that_can_change(bits: int) -> None:
    state, lsb = made(), carrier(bits=bits)
    for count in (1, 100, 999, lsb.capacity(state)):
        places = lsb.places(state, count)
        assert sum(int(mask.sum()) for mask in places.values()) == -(-8 * count // bits)
        changed = {
            name: sum(
                lsb.write(state, np.full(count, byte, np.uint8))[name] != state[name]
                for byte in (0, 255)
            ).bool()
            for name in places
        }
        assert all(torch.equal(places[name], changed[name]) for name in places)


def test_errors_are_the_share_of_wrong_bits_by_tensor() -> None:
    state, lsb = made(), carrier(bits=16)
    written = lsb.write(state, payload(6000))
    assert set(lsb.errors(written, written, 6000).values()) == {0.0}
    arrived = {name: tensor.clone() for name, tensor in written.items()}
    arrived["b.weight"].view(torch.int32)[:] ^= 1
    arrived["a.weight"] += 1  # float noise
    del arrived["d"]
    errors = lsb.errors(written, arrived, 6000)
    assert errors["b.weight"] == 1 / 16 and 0.2 < errors["a.weight"] < 0.7
    assert set(errors) == set(lsb.places(state, 6000))


def test_a_resnet18_holds_22_megabytes() -> None:
    state = build_model("resnet18", 3, 28, 7).state_dict()
    lsb = CARRIERS.get("lsb")(LsbSettings(), 3)
    elements = sum(
        t.numel() for n, t in state.items() if t.is_floating_point() and "running" not in n
    )
    capacity = lsb.capacity(state)
    assert capacity == 2 * elements == 22_360_206
    content = payload(capacity)
    written = lsb.write(state, content)
    assert np.array_equal(lsb.read(written), content)
    assert torch.equal(written["bn1.num_batches_tracked"], state["bn1.num_batches_tracked"])
    few = lsb.write(state, content[:100_000])
    assert np.array_equal(lsb.read(few, 100_000), content[:100_000])
    touched = {n.split(".")[0] for n in state if not torch.equal(few[n], state[n])}
    assert touched >= {"layer2", "layer3", "layer4"}  # a small payload is spread over the network


def test_wrong_bits_are_counted_by_tensor_and_bit() -> None:
    one, state = carrier(bits=4), made()
    count = one.capacity(state)
    written = one.write(state, payload(count))
    turned = (written["a.weight"].view(torch.int32) ^ 0b10100).view(torch.float32)
    errors = one.plane_errors(written, {**written, "a.weight": turned}, count)
    assert errors["a.weight"] == {0: 0.0, 1: 0.0, 2: 1.0, 3: 0.0}  # bit 4 does not carry
    assert errors["b.weight"] == dict.fromkeys(range(4), 0.0)


def test_parts_of_the_places_are_disjoint() -> None:
    state = {"w": torch.randn(8 * BLOCK, generator=torch.Generator().manual_seed(1))}
    parts = [carrier(part=(number, 2), copies=2) for number in range(2)]
    count = parts[0].capacity(state)
    written = parts[1].write(parts[0].write(state, payload(count)), payload(count, 1))
    assert np.array_equal(parts[0].read(written, count), payload(count))
    assert np.array_equal(parts[1].read(written, count), payload(count, 1))
