"""The ledger: how many bits can have passed, by kind of channel and by defence."""

import itertools
import math
from pathlib import Path

import pytest
import torch

from fl_sim.artifact import artifact_bytes
from fl_sim.defenses.base import DefenseReport
from fl_sim.defenses.ledger import (
    agreement_bits,
    cap_bits,
    coded_answers_bits,
    entry_bits,
    noised_answers_bits,
    tensor_bits,
    voted_answers_bits,
)
from fl_sim.defenses.quantization import QuantizationSettings, quantized
from fl_sim.models import build, state_of
from tests.defenses.defense_kit import SPEC, apply, held_out, release_of

SHORT = {"steps": 1, "batch_size": 8}


def test_tensors_count_every_bit_of_every_element() -> None:
    tensors = {
        "a": torch.zeros(3, 5),
        "b": torch.zeros(7, dtype=torch.float16),
        "c": torch.tensor(0, dtype=torch.int64),
        "d": torch.zeros(9, dtype=torch.bool),
    }
    assert tensor_bits(tensors) == 15 * 32 + 7 * 16 + 64 + 9 * 8


def test_entries_count_their_names_and_shapes_too() -> None:
    entries = {"é": torch.zeros(2, 3), "": torch.tensor(1, dtype=torch.uint8)}
    assert entry_bits(entries) == (6 * 32 + 24 + 16 + 2 * 64) + (8 + 8 + 16)
    assert entry_bits({}) == 0


def test_coded_answers_are_counted_as_there_are_combinations() -> None:
    for answers, codewords in ((1, 7), (3, 4), (4, 3)):
        combinations = len(list(itertools.product(range(codewords), repeat=answers)))
        assert coded_answers_bits(answers, codewords) == pytest.approx(math.log2(combinations))
    assert coded_answers_bits(1003, 7) / 8 == pytest.approx(352, abs=0.5)
    assert coded_answers_bits(0, 7) == coded_answers_bits(5, 1) == 0


def test_votes_are_counted_as_there_are_ways_to_share_them_out() -> None:
    for outputs, voters in ((2, 1), (3, 4), (7, 2)):
        counts = len(list(itertools.combinations_with_replacement(range(outputs), voters)))
        assert voted_answers_bits(1, outputs, voters) == pytest.approx(math.log2(counts))
        assert voted_answers_bits(9, outputs, voters) == pytest.approx(9 * math.log2(counts))
    assert voted_answers_bits(5, 7, 1) == pytest.approx(coded_answers_bits(5, 7))


def test_a_filter_is_counted_as_there_are_subsets() -> None:
    for images, most in ((5, None), (5, 2), (6, 0), (4, 9)):
        subsets = sum(
            len(list(itertools.combinations(range(images), size)))
            for size in range((images if most is None else min(most, images)) + 1)
        )
        assert agreement_bits(images, most) == pytest.approx(math.log2(subsets))
    assert agreement_bits(1003) == 1003  # beyond what a float can count


def test_noised_answers_carry_no_more_than_the_channel() -> None:
    # Two inputs at the ends of what is allowed, told apart as well as can be: a binary channel
    # within the Gaussian one.
    for noise in (0.5, 1.0, 2.0):
        error = 0.5 * math.erfc(1 / noise / math.sqrt(2))
        told = 1 + error * math.log2(error) + (1 - error) * math.log2(1 - error)
        bound = noised_answers_bits(1, 1, 1.0, noise)
        assert told <= bound < told + 1
        assert noised_answers_bits(10, 7, 1.0, noise) == pytest.approx(70 * bound)
        assert noised_answers_bits(1, 1, 3.0, 3 * noise) == pytest.approx(bound)
    assert noised_answers_bits(3, 7, 1.0, 0.0) == math.inf
    assert noised_answers_bits(3, 7, 0.0, 1.0) == 0
    assert noised_answers_bits(0, 7, 1.0, 0.0) == 0


def test_a_cap_is_the_claim_or_what_leaves() -> None:
    network, entries = {"a": torch.zeros(4)}, {"x": torch.zeros(2)}
    whole = tensor_bits(network) + entry_bits(entries)
    assert cap_bits(None, network, entries) == whole
    assert cap_bits(DefenseReport(), network, entries) == whole
    assert cap_bits(DefenseReport(cap_bits=12.0), network, entries) == 12
    assert cap_bits(DefenseReport(cap_bits=1e9), network, entries) == whole


def test_no_model_file_has_more_bits_than_are_counted() -> None:
    # Of files that tell apart what is counted, the elements are all but the fixed header.
    state = state_of(build(SPEC))
    payload = {"payload": torch.zeros(1000, dtype=torch.uint8)}
    grown = len(artifact_bytes(SPEC, state | payload)) - len(artifact_bytes(SPEC, state))
    assert 8000 < entry_bits(payload) < 8 * grown


@pytest.mark.parametrize(
    ("name", "settings", "cap"),
    [
        ("scratch", {"epochs": 1}, 0.0),
        ("trusted_training", {"images": "held_out", "max_steps": 1}, 0.0),
        ("distillation", {"epochs": 1}, None),
        ("distillation", {"epochs": 1, "soft": 0.0}, 0.0),
        ("consistent_distillation", SHORT, None),
        ("consistent_distillation", {**SHORT, "labels": 1.0}, 0.0),
        ("fisher_noise", {"epochs": 1}, None),
        ("fisher_noise", {"distillation": {**SHORT, "labels": 1.0}}, None),
        ("lwlrd", {"epochs": 1}, None),
        ("gaussian_noise", {"sigma": 1.0}, None),
        ("random_bits", {"bits": 23}, None),
        ("entry_removal", {}, None),
    ],
)
def test_every_defence_says_what_it_bounds(name: str, settings: dict, cap: float | None) -> None:
    report, _ = apply(name, release_of(), **settings)
    assert report.cap_bits == cap


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("scratch", {"epochs": 1}),
        ("trusted_training", {"images": "held_out", "max_steps": 2}),
        ("distillation", {"epochs": 1, "soft": 0.0}),
        ("consistent_distillation", {**SHORT, "labels": 1.0}),
    ],
)
def test_zero_bits_means_that_any_model_gives_the_same_release(name: str, settings: dict) -> None:
    states = []
    for number, damage in enumerate((None, 3.0, math.nan)):
        release = release_of(entries={"payload": torch.full((4,), float(number))})
        if damage is not None:
            with torch.no_grad():
                for tensor in release.model.state_dict().values():
                    tensor.fill_(damage if tensor.is_floating_point() else 1)
        report, _ = apply(name, release, **settings)
        assert report.cap_bits == 0
        assert not release.entries
        states.append(state_of(release.model))
    for other in states[1:]:
        assert all(torch.equal(states[0][name], value) for name, value in other.items())


def test_a_chain_has_the_smallest_cap_of_its_steps() -> None:
    def cap(*steps: object) -> float | None:
        return apply("chain", release_of(), steps=list(steps))[0].cap_bits

    control = {"name": "scratch", "epochs": 1}
    rounded = {"name": "quantization", "bits": 2}
    assert cap("entry_removal", "random_bits") is None
    assert cap(control, "random_bits") == cap("random_bits", control) == 0
    assert cap(rounded, control) == 0
    assert 0 < cap(rounded, "random_bits") < tensor_bits(state_of(build(SPEC)))


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_quantised_tensors_take_no_more_values_than_are_counted(per: str, symmetric: bool) -> None:
    settings = QuantizationSettings(bits=2, per=per, symmetric=symmetric)
    tensor = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    rows = quantized(tensor, settings).reshape(6 if per == "channel" else 1, -1)
    assert all(len(row.unique()) <= 2**settings.bits for row in rows)
    report, _ = apply("quantization", release_of(), bits=2, per=per, symmetric=symmetric)
    parameters = sum(p.numel() for p in build(SPEC).parameters())
    assert 2 * parameters < report.cap_bits < 4 * parameters + 64 * 300


def test_quantisation_leaves_entries_of_other_kinds_as_they_are() -> None:
    caps = []
    for entries in ({}, {"x": torch.zeros(1000, dtype=torch.uint8)}, {"x": torch.zeros(1000)}):
        caps.append(apply("quantization", release_of(entries=entries), bits=4)[0].cap_bits)
    assert caps[1] - caps[0] == entry_bits({"x": torch.zeros(1000, dtype=torch.uint8)})
    assert 4000 < caps[2] - caps[0] < 4300


def test_the_verb_tells_the_cap_in_bytes(tmp_path: Path) -> None:
    from fl_sim import clean

    split = held_out(24)
    network = build(SPEC)
    whole = tensor_bits(network.state_dict()) / 8
    kept = clean(network, split, defense="random_bits", progress=False)
    assert kept.cap_bytes == whole
    fresh = clean("cnn", split, state=kept.state, defense="scratch", epochs=1, progress=False)
    assert fresh.cap_bytes == 0
