"""Carriers in single weights: written and read, through changes, copies, placements and damage."""

from typing import Any

import numpy as np
import pytest
import torch

from fl_sim.carriers.base import CARRIERS, Carrier, State, amplified
from fl_sim.carriers.weights import fresh_deviation
from fl_sim.errors import FlSimError
from fl_sim.models import build
from fl_sim.models.base import ModelSpec
from fl_sim.settings import parse

SPEC = ModelSpec(name="cnn", channels=3, size=28, classes=3)
CHOICES: list[tuple[str, dict[str, Any]]] = [
    ("sign", {}),
    ("sign", {"floor": 2.0}),
    ("bit_plane", {"first": 16, "bits": 3}),
    ("bit_plane", {"first": 0, "bits": 23}),
    ("bit_plane", {"first": 22, "bits": 1, "centred": False}),
    ("qim", {}),
    ("qim", {"step": 0.01, "dither": False}),
    ("spread_spectrum", {"chips": 4}),
    ("spread_spectrum", {"chips": 40, "amplitude": 1.5, "cancel_host": False}),
]
PLACEMENTS: list[dict[str, Any]] = [
    {},
    {"order": "sequential"},
    {"order": "late"},
    {"order": "expected_error", "expected_error": {"*1.weight": 0.5, "*": 0.1}},
    {"copies": 3},
]


def carrier(name: str, seed: int = 5, spec: ModelSpec | None = SPEC, **settings: Any) -> Carrier:
    kind = CARRIERS.get(name)
    return kind(parse(kind.Settings, settings, "carrier"), seed, spec)


def payload(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)


def wrong(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.unpackbits(one ^ other).mean())


def noisy(state: State, relative: float) -> State:
    """Every weight changed by noise, in deviations of a fresh weight."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: tensor
        + relative * fresh_deviation(tensor.shape) * torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1
        else tensor
        for name, tensor in state.items()
    }


@pytest.fixture(scope="module")
def state() -> State:
    return build(SPEC, seed=3).state_dict()


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(("name", "settings"), CHOICES)
def test_a_payload_comes_back(
    name: str, settings: dict[str, Any], placement: dict[str, Any], state: State
) -> None:
    one = carrier(name, **settings, **placement)
    before = {n: t.clone() for n, t in state.items()}
    capacity = one.capacity(state)
    assert capacity is not None and capacity > 50
    for count in (min(capacity, 20_000), 37, 1, 0):
        content = payload(count)
        written = one.write(state, content)
        got = one.read(written, count, like=state)
        if settings.get("cancel_host", True):
            assert np.array_equal(got, content)
        elif count > 30:
            assert wrong(got, content) < 0.01  # the weights themselves are noise here
        assert list(written) == list(state)
        assert all(torch.equal(state[n], before[n]) for n in state)
        # Nothing outside of the places changed, and a prefix reads as a prefix.
        places = one.places(state, count)
        for n in state:
            free = torch.ones(state[n].shape, dtype=torch.bool)
            free &= ~places.get(n, torch.zeros_like(free))
            assert torch.equal(written[n][free], state[n][free])
        part = one.read_soft(written, count // 2, like=state)
        assert np.array_equal(part, one.read_soft(written, count, like=state)[: len(part)])


@pytest.mark.parametrize(("name", "settings"), CHOICES)
def test_one_byte_too_many_is_refused(name: str, settings: dict[str, Any], state: State) -> None:
    one = carrier(name, **settings)
    capacity = one.capacity(state) or 0
    with pytest.raises(FlSimError, match=f"{capacity + 1} bytes does not fit.*{capacity} bytes"):
        one.write(state, payload(capacity + 1))
    with pytest.raises(FlSimError, match="carries bytes"):
        one.write(state, np.zeros(3, np.float32))


@pytest.mark.parametrize(("name", "settings"), CHOICES)
def test_another_seed_reads_noise(name: str, settings: dict[str, Any], state: State) -> None:
    one, count = carrier(name, **settings), 600
    written = one.write(state, payload(count))
    assert 0.4 < wrong(carrier(name, 6, **settings).read(written, count), payload(count)) < 0.6


@pytest.mark.parametrize(
    ("name", "settings", "noise"),
    [
        ("sign", {"floor": 0.5}, 0.1),
        ("bit_plane", {"first": 21, "bits": 2}, 0.0002),
        ("qim", {"step": 0.4}, 0.02),
        ("spread_spectrum", {"chips": 16, "amplitude": 0.1}, 0.1),
    ],
)
def test_what_a_carrier_is_made_for_it_stands(
    name: str, settings: dict[str, Any], noise: float, state: State
) -> None:
    one = carrier(name, **settings)
    content = payload(min(one.capacity(state) or 0, 2000))
    arrived = noisy(one.write(state, content), noise)
    assert wrong(one.read(arrived, len(content)), content) < 0.001
    # Thirty times the noise is too much for each, so the first figure says something.
    broken = noisy(one.write(state, content), 30 * noise)
    assert wrong(one.read(broken, len(content)), content) > 0.01
    errors = one.errors(one.write(state, content), broken, len(content))
    assert set(errors) == set(one.places(state, len(content)))
    assert max(errors.values()) > 0.01


@pytest.mark.parametrize(("name", "settings"), CHOICES)
def test_soft_values_are_larger_where_bits_are_right(
    name: str, settings: dict[str, Any], state: State
) -> None:
    one = carrier(name, **settings)
    content = payload(min(one.capacity(state) or 0, 600))
    written = one.write(state, content)
    bits = np.unpackbits(content, bitorder="little").astype(bool)
    for noise in np.geomspace(1e-6, 30, 60):
        soft = one.read_soft(noisy(written, noise), len(content))
        right = (soft > 0) == bits
        if 0.02 < (~right).mean() < 0.3:
            assert np.abs(soft[right]).mean() > 1.1 * np.abs(soft[~right]).mean()
            return
    raise AssertionError("no noise level gave a few errors")


def test_copies_together_are_surer_than_one(state: State) -> None:
    count, errors = 400, []
    for copies in (1, 5):
        one = carrier("qim", copies=copies)
        arrived = noisy(one.write(state, payload(count)), 0.03)
        errors.append(wrong(one.read(arrived, count), payload(count)))
    assert errors[1] < errors[0] / 3


def test_copies_of_low_bits_outvote_a_lost_part(state: State) -> None:
    lsb, count = carrier("lsb", copies=3, bits=8), 1000
    written = lsb.write(state, payload(count))
    assert np.array_equal(lsb.read(written, count), payload(count))
    places = lsb.places(state, count)
    assert sum(int(mask.sum()) for mask in places.values()) == 3 * count
    name = max(places, key=lambda n: int(places[n].sum()))
    flat = written[name].view(-1)
    hit = torch.rand(len(flat), generator=torch.Generator().manual_seed(0)) < 0.1
    flat[hit] *= 1.01
    alone = carrier("lsb", bits=8)
    single = alone.write(state, payload(count))
    single[name].view(-1)[hit] *= 1.01
    assert wrong(lsb.read(written, count), payload(count)) < 0.3 * wrong(
        alone.read(single, count), payload(count)
    )
    assert lsb.read_soft(written, count).max() == 3


@pytest.mark.parametrize(("name", "settings"), CHOICES)
def test_a_lost_tensor_costs_only_its_own_bits(
    name: str, settings: dict[str, Any], state: State
) -> None:
    one = carrier(name, **settings, order="sequential")
    first = state[sorted(n for n in state if state[n].dim() > 2)[0]].numel()
    content = payload(min(one.capacity(state) or 0, 8 * first))
    written = one.write(state, content)
    names = [n for n in one.places(state, len(content))]
    del written[names[0]]
    soft = one.read_soft(written, len(content), like=state)
    bits = np.unpackbits(content, bitorder="little").astype(bool)
    known = soft != 0
    assert 0 < known.mean() < 1
    assert ((soft > 0) == bits)[known].mean() > 0.98
    assert one.errors(one.write(state, content), written, len(content))[names[0]] > 0.2
    assert not one.read({}, 5, like=state).any() and not one.read({}, 5).any()


def test_small_and_odd_weights_are_legible(state: State) -> None:
    odd = {name: tensor.clone() for name, tensor in state.items()}
    for tensor in odd.values():
        if tensor.dim() > 1:
            flat = tensor.view(-1)
            flat[::5], flat[1::5], flat[2::5], flat[3::5] = 0, 1e-42, torch.nan, -torch.inf
    for name, settings in CHOICES:
        if settings.get("cancel_host", True):
            one = carrier(name, **settings)
            content = payload(min(one.capacity(odd) or 0, 500))
            written = one.write(odd, content)
            assert np.array_equal(one.read(written, len(content)), content), name
            places = one.places(odd, len(content))
            assert all(written[n][mask].isfinite().all() for n, mask in places.items())


def test_half_precision_carries_coarse_places(state: State) -> None:
    half = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    for name, settings in (("sign", {}), ("qim", {"step": 0.2}), ("bit_plane", {"first": 18})):
        one = carrier(name, **settings)
        written = one.write(half, payload(800))
        assert all(written[n].dtype == half[n].dtype for n in half)
        assert np.array_equal(one.read(written, 800), payload(800)), name


def test_late_places_come_first_and_expected_errors_rank(state: State) -> None:
    late = carrier("sign", order="late").places(state, 40)
    names = [n for n in state if state[n].dim() > 1]
    # The classifier is full, or all but what fills no block, before anything earlier is used.
    assert names[-1] in late or state[names[-1]].numel() < 512
    assert names[0] not in late
    table = {names[0]: 0.0, "*": 1.0}
    chosen = carrier("sign", order="expected_error", expected_error=table).places(state, 40)
    first = state[names[0]].numel() // 512
    assert (names[0] in chosen) == bool(first)
    with pytest.raises(FlSimError, match="go together"):
        carrier("sign", order="expected_error")
    with pytest.raises(FlSimError, match="has to know the network"):
        carrier("sign", spec=None, order="late").capacity(state)


@pytest.mark.parametrize(("name", "settings"), [("sign", {}), ("qim", {}), ("bit_plane", {})])
def test_an_amplified_difference_survives_averaging(
    name: str, settings: dict[str, Any], state: State
) -> None:
    one = carrier(name, **settings)
    written = one.write(state, payload(500))
    sent = amplified(state, written, state, 0.25, one.places(state, 500))
    average = {n: (sent[n] + 3 * state[n]) / 4 for n in state}
    assert np.array_equal(one.read(average, 500), payload(500))
    plain = {n: (written[n] + 3 * state[n]) / 4 for n in state}
    assert wrong(one.read(plain, 500), payload(500)) > 0.1


@pytest.mark.parametrize(("name", "settings"), CHOICES)
@pytest.mark.parametrize("copies", [1, 2])
def test_parts_of_the_places_are_disjoint(
    name: str, settings: dict[str, Any], copies: int, state: State
) -> None:
    parts = [carrier(name, part=(n, 4), copies=copies, **settings) for n in range(4)]
    count = min(300, parts[0].capacity(state) or 0)
    written = state
    for number, one in enumerate(parts):
        written = one.write(written, payload(count, number))
    for number, one in enumerate(parts):
        assert np.array_equal(one.read(written, count), payload(count, number))


def test_a_part_is_one_of_those_there_are() -> None:
    with pytest.raises(FlSimError, match="part 4 of 4 does not exist"):
        carrier("qim", part=(4, 4))


def test_an_average_with_honest_updates_holds_what_was_amplified(state: State) -> None:
    """What others train is noise to the payload, and the attacker's own training arrives, too."""
    one = carrier("spread_spectrum", chips=40, amplitude=0.3)
    count = one.capacity(state) or 0
    places = one.places(state, count)
    mine, theirs = noisy(state, 0.05), noisy(state, 0.04)
    sent = amplified(mine, one.write(state, payload(count)), state, 0.25, places)
    average = {n: (sent[n] + 3 * theirs[n]) / 4 for n in state}
    assert wrong(one.read(average, count), payload(count)) < 0.001
    update = {n: (mine[n] + 3 * theirs[n]) / 4 - state[n] for n in state}
    written = one.write(state, payload(count))
    for name in places:
        assert torch.allclose(average[name] - update[name], written[name], atol=1e-4)


def test_wrong_bits_are_counted_by_tensor_and_bit(state: State) -> None:
    one = carrier("bit_plane", first=16, bits=3, centred=False)
    written = one.write(state, payload(900))
    assert {
        e for errors in one.plane_errors(written, written, 900).values() for e in errors.values()
    } == {0.0}
    name = next(iter(one.places(written, 900)))
    turned = {**written, name: (written[name].view(torch.int32) ^ 1 << 17).view(torch.float32)}
    errors = one.plane_errors(written, turned, 900)
    assert errors.pop(name) == {16: 0.0, 17: 1.0, 18: 0.0}
    assert {e for others in errors.values() for e in others.values()} <= {0.0}
    assert carrier("sign").plane_errors(state, state, 10) == {}
    assert one.errors(written, turned, 900)[name] == pytest.approx(1 / 3)
