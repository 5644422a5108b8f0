"""Carriers of values: in place of trained weights, and in early ones before training."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from fl_sim.carriers.base import CARRIERS, Carrier, State
from fl_sim.carriers.frozen import Frozen, FrozenSettings
from fl_sim.carriers.weights import fresh_deviation, weight_tensors
from fl_sim.errors import FlSimError
from fl_sim.models import build_model
from fl_sim.settings import parse

BOTH = pytest.mark.parametrize("name", ["weights", "frozen"])


def carrier(name: str, seed: int = 5, **settings: object) -> Carrier[Any]:
    """A carrier with settings as a scenario gives them."""
    kind = CARRIERS.get(name)
    return kind(parse(kind.Settings, settings, "carrier"), seed)


@pytest.fixture(scope="module")
def cnn() -> State:
    """A small network's weights."""
    return build_model("cnn", 1, 16, 3).state_dict()


def values(count: int) -> np.ndarray:
    """Values of unit deviation."""
    return np.random.default_rng(1).standard_normal(count).astype(np.float32)


@BOTH
@pytest.mark.parametrize("order", ["keyed", "sequential"])
@pytest.mark.parametrize("scale", ["match", 0.25])
def test_values_come_back(cnn: State, name: str, order: str, scale: object) -> None:
    way = carrier(name, order=order, scale=scale)
    capacity = way.capacity(cnn)
    before = {n: t.clone() for n, t in cnn.items()}
    for count in (capacity, capacity - 1, 700, 1, 0):
        written = way.write(cnn, values(count))
        read = way.read(written, count)
        np.testing.assert_allclose(read, values(count), rtol=3e-7)
        np.testing.assert_allclose(way.read(written)[:count], values(count), rtol=3e-7)
        places = way.places(cnn, count)
        assert sum(int(mask.sum()) for mask in places.values()) == count
        for key, tensor in cnn.items():
            kept = ~places.get(key, torch.zeros(tensor.shape, dtype=torch.bool))
            assert torch.equal(written[key][kept], tensor[kept])
    assert all(torch.equal(cnn[n], before[n]) for n in cnn)
    assert len(way.read(cnn)) == capacity
    with pytest.raises(FlSimError, match=f"{capacity + 1} values do not fit in the {capacity}"):
        way.write(cnn, values(capacity + 1))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_take_on_the_precision_of_the_weights(
    cnn: State, name: str, dtype: torch.dtype
) -> None:
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in cnn.items()}
    written = carrier(name).write(state, values(500))
    assert {n: t.dtype for n, t in written.items()} == {n: t.dtype for n, t in state.items()}
    read = carrier(name).read(written, 500)
    np.testing.assert_allclose(read, values(500), rtol=2 * torch.finfo(dtype).eps + 1e-6, atol=1e-4)


@BOTH
def test_weights_get_the_deviation_of_fresh_ones(cnn: State, name: str) -> None:
    way = carrier(name)
    written = way.write(cnn, values(way.capacity(cnn)))
    for key in way.places(cnn, way.capacity(cnn)):
        fan_in = math.prod(cnn[key].shape[1:])
        assert written[key].std() == pytest.approx(math.sqrt(2 / fan_in), rel=0.1)
    assert fresh_deviation((64, 32, 3, 3)) == math.sqrt(2 / 288)
    fresh = torch.nn.init.kaiming_normal_(torch.empty(64, 512))
    assert fresh_deviation(fresh.shape) == pytest.approx(float(fresh.std()), rel=0.05)


@BOTH
def test_small_noise_makes_small_errors_and_another_seed_noise(cnn: State, name: str) -> None:
    way = carrier(name)
    written = way.write(cnn, values(600))
    noisy = {
        n: t + 1e-3 * torch.randn_like(t) if t.is_floating_point() else t
        for n, t in written.items()
    }
    assert np.abs(way.read(noisy, 600) - values(600)).mean() < 0.05
    foreign = carrier(name, seed=6).read(written, 600)
    assert np.abs(np.corrcoef(foreign, values(600))[0, 1]) < 0.2
    errors = way.errors(written, noisy, 600)
    assert set(errors) == set(way.places(cnn, 600))
    assert all(0 < error < 0.1 for error in errors.values())
    assert set(way.errors(written, {}, 600).values()) == {1.0}


@BOTH
def test_what_cannot_be_read_is_not_a_number(cnn: State, name: str) -> None:
    way = carrier(name)
    count = way.capacity(cnn)
    written = way.write(cnn, values(count))
    assert np.isnan(way.read({}, 4)).tolist() == [True] * 4
    assert np.isnan(way.read({}, 4, like=cnn)).all()
    assert np.isnan(way.read(written, count + 3)[count:]).all()
    used = list(way.places(cnn, count))
    written[used[0]][0] = torch.inf
    read = way.read(written, count, like=cnn)
    lost = written[used[0]][0].numel()
    assert np.isnan(read).sum() == lost
    written[used[0]] = written[used[0]].flatten()
    read = way.read(written, count, like=cnn)
    assert np.isnan(read).sum() == cnn[used[0]].numel()
    whole = ~np.isnan(read)
    np.testing.assert_allclose(read[whole], values(count)[whole], rtol=3e-7)


@BOTH
def test_bytes_and_broken_values_are_refused(cnn: State, name: str) -> None:
    with pytest.raises(FlSimError, match=f"'{name}' carries float32 values"):
        carrier(name).write(cnn, np.zeros(3, np.uint8))
    with pytest.raises(FlSimError, match="not finite"):
        carrier(name).write(cnn, np.array([0, np.inf], np.float32))
    with pytest.raises(FlSimError, match="choose no"):
        carrier(name, tensors=["*bias"]).capacity(cnn)  # only two dimensions or more
    for scale in (0, -1.0, math.inf, "fit"):
        with pytest.raises(FlSimError, match="scale"):
            carrier(name, scale=scale)


@pytest.mark.parametrize(
    ("network", "largest"),
    [
        ("resnet18", "layer4.1.conv2.weight"),
        ("cnn", "6.weight"),
        ("densenet121", "features.transition3.conv.weight"),
    ],
)
def test_trained_weights_give_way_in_the_largest_convolution(network: str, largest: str) -> None:
    state = build_model(network, 3, 32, 5).state_dict()
    way = carrier("weights")
    assert list(way.places(state, 50)) == [largest]
    assert way.capacity(state) == state[largest].numel()
    assert list(way.places(dict(reversed(state.items())), 50)) == [largest]


def test_without_convolutions_the_largest_matrix_but_the_last_carries() -> None:
    state = {"a.weight": torch.zeros(4, 5), "b.weight": torch.zeros(30, 4)}
    assert list(carrier("weights").places(state, 1)) == ["a.weight"]


@pytest.mark.parametrize("network", ["resnet18", "cnn", "densenet121", "vgg11", "mlp", "vit"])
def test_frozen_weights_begin_in_front_and_never_reach_the_last_layer(network: str) -> None:
    with torch.device("meta"):  # only names and shapes count
        model = build_model(network, 3, 32, 5)
    state = model.state_dict()
    *_, last = [n for n, p in model.named_parameters() if p.dim() >= 2]
    assert state[last].shape[0] == 5
    way = Frozen(FrozenSettings(), 5)
    ordered = weight_tensors(state, ("*",), ())
    assert ordered[-1] == last and way.names(state) == ordered[:-1]
    assert way.capacity(state) == sum(state[n].numel() for n in ordered[:-1])
    assert list(way.places(state, 5)) == ordered[:1]


def test_a_longer_frozen_payload_begins_where_a_shorter_one_does() -> None:
    state = build_model("resnet18", 3, 28, 7).state_dict()
    way = carrier("frozen")
    first = state["conv1.weight"].numel()
    assert way.frozen and not carrier("weights").frozen
    places = way.places(state, first + 10)
    assert {n: int(m.sum()) for n, m in places.items()} == {
        "conv1.weight": first,
        "layer1.0.conv1.weight": 10,
    }
    written = way.write(state, values(first + 10))
    np.testing.assert_allclose(way.read(written, 50), values(first + 10)[:50], rtol=3e-7)


@BOTH
def test_the_mean_of_copies_is_nearer_than_one(cnn: State, name: str) -> None:
    noise = torch.Generator().manual_seed(3)
    errors = {}
    for copies in (1, 4):
        way = carrier(name, copies=copies)
        assert way.capacity(cnn) == carrier(name).capacity(cnn) // copies
        count = min(500, way.capacity(cnn))  # type: ignore[type-var]
        written = way.write(cnn, values(count))
        np.testing.assert_allclose(way.read(written, count), values(count), rtol=3e-7)
        assert sum(int(mask.sum()) for mask in way.places(cnn, count).values()) == copies * count  # type: ignore[misc]
        noisy = {
            n: t + 0.5 * fresh_deviation(t.shape) * torch.randn(t.shape, generator=noise)
            if t.dim() > 1
            else t
            for n, t in written.items()
        }
        errors[copies] = float(np.square(way.read(noisy, count) - values(count)).mean())
    assert errors[4] == pytest.approx(errors[1] / 4, rel=0.3)


@BOTH
def test_parts_of_the_places_are_disjoint(cnn: State, name: str) -> None:
    parts = [carrier(name, part=(number, 3), copies=2) for number in range(3)]
    count = parts[0].capacity(cnn)
    state = cnn
    for way in parts:
        state = way.write(state, values(count) * (1 + way.settings.part[0]))
    for way in parts:
        np.testing.assert_allclose(
            way.read(state, count), values(count) * (1 + way.settings.part[0]), rtol=3e-7
        )


def test_a_copy_that_is_lost_leaves_the_others(cnn: State) -> None:
    way = carrier("weights", tensors=["*"], copies=2)
    count = way.capacity(cnn)
    written = way.write(cnn, values(count))
    name = next(iter(way.places(cnn, count)))
    broken = {**written, name: torch.full_like(written[name], torch.nan)}
    read = way.read(broken, count)
    known = np.isfinite(read)
    assert 0.5 < known.mean() <= 1
    np.testing.assert_allclose(read[known], values(count)[known], rtol=3e-7)
