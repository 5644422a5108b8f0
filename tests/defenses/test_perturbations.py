"""Defences that change tensors without training, each against its definition or a reference."""

import numpy as np
import pytest
import torch
from torch.nn.utils import prune

from fl_sim.carriers.lsb import LeastSignificantBits, LsbSettings
from fl_sim.defenses.quantization import QuantizationSettings, quantized
from fl_sim.defenses.random_bits import with_random_bits
from fl_sim.models import build, state_of
from tests.defenses.defense_kit import SPEC, apply, release_of

NAMES = ["weight_dropout", "random_bits", "quantization", "magnitude_pruning"]


def _entries() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "codes": torch.randn(4000, generator=generator),
        "bytes": torch.arange(200, dtype=torch.uint8),
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_and_integers_stay(name: str) -> None:
    states = []
    for seed in (0, 0, 1):
        release = release_of(seed=seed, entries=_entries())
        report, before = apply(name, release)
        after = {**release.model.state_dict(), **release.entries}
        assert torch.equal(after["bytes"], _entries()["bytes"])
        assert all(torch.equal(after[n], before[n]) for n in before if n.endswith("tracked"))
        assert report.relative_change.keys() == dict(release.model.named_parameters()).keys()
        assert report.seconds > 0 and report.images == 0
        assert not torch.equal(after["0.weight"], before["0.weight"])
        states.append(after)
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    if name in ("weight_dropout", "random_bits"):
        assert any(not torch.equal(states[0][n], states[2][n]) for n in states[0])


def test_weight_dropout_drops_its_share_of_weights_and_entries() -> None:
    release = release_of(entries=_entries())
    _, before = apply("weight_dropout", release, share=0.3)
    after = {**release.model.state_dict(), "codes": release.entries["codes"]}
    before["codes"] = _entries()["codes"]
    for name in after:
        changed = after[name] != before[name]
        assert (after[name][changed] == 0).all()
        if name == "codes" or after[name].dim() > 1:
            deviation = (0.3 * 0.7 / after[name].numel()) ** 0.5
            assert abs(changed.double().mean().item() - 0.3) < 5 * deviation
        else:
            assert not changed.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [1, 7, 16])
def test_random_bits_are_random_and_the_others_stay(dtype: torch.dtype, bits: int) -> None:
    mantissa = {torch.float64: 52, torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}[dtype]
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
    tensor = torch.randn(5000, generator=torch.Generator().manual_seed(1)).to(dtype)
    changed = with_random_bits(tensor, bits, torch.Generator().manual_seed(2))
    flipped = tensor.view(integer) ^ changed.view(integer)
    for bit in range(mantissa):
        share = ((flipped >> bit) & 1).double().mean().item()
        assert share == pytest.approx(0.5, abs=0.05) if bit < bits else share == 0
    assert (flipped >> mantissa == 0).all()


def test_random_bits_leave_special_values_and_cover_zeros_and_buffers() -> None:
    special = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, -0.0])
    changed = with_random_bits(special, 16, torch.Generator().manual_seed(0))
    assert torch.equal(changed[:2], special[:2]) and changed[2].isnan()
    assert (changed[3:].abs() < 1e-38).all() and changed[3:].any()
    release = release_of(entries=_entries())
    _, before = apply("random_bits", release, bits=16)
    assert not torch.equal(release.model.state_dict()["1.running_var"], before["1.running_var"])
    assert not torch.equal(release.entries["codes"], _entries()["codes"])


def test_random_bits_stop_a_payload_in_low_bits_and_leave_the_answers() -> None:
    carrier = LeastSignificantBits(LsbSettings(bits=8), 7)
    payload = np.random.default_rng(0).integers(0, 256, 20_000, dtype=np.uint8)
    release = release_of()
    release.model.load_state_dict(carrier.write(state_of(release.model), payload))
    assert (carrier.read(release.model.state_dict(), len(payload)) == payload).all()
    pixels = torch.rand(4, 1, 16, 16)
    answers = release.model.eval()(pixels)
    apply("random_bits", release, bits=8)
    torch.testing.assert_close(release.model(pixels), answers, rtol=1e-3, atol=1e-4)
    read = carrier.read(release.model.state_dict(), len(payload))
    wrong = np.unpackbits(read ^ payload).mean()
    assert wrong == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_quantization_is_torchs(bits: int, symmetric: bool, per: str) -> None:
    tensor = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0)) + 0.5
    settings = QuantizationSettings(bits=bits, per=per, symmetric=symmetric)
    ours = quantized(tensor, settings)
    rows = tensor.flatten(1) if per == "channel" else tensor.reshape(1, -1)
    if symmetric:
        limit = 2 ** (bits - 1) - 1
        lowest, highest = -limit, limit
        scale = rows.abs().amax(1) / limit
        zero = torch.zeros(len(rows), dtype=torch.int32)
    else:
        lowest, highest = 0, 2**bits - 1
        smallest = rows.amin(1).clamp(max=0)
        scale = (rows.amax(1) - smallest) / highest
        zero = (-smallest / scale).round().int()
    theirs = torch.fake_quantize_per_channel_affine(rows, scale, zero, 0, lowest, highest)
    torch.testing.assert_close(ours, theirs.view(tensor.shape))
    channels = ours.flatten(1) if per == "channel" else ours.reshape(1, -1)
    assert all(len(row.unique()) <= 2**bits for row in channels)


def test_quantization_keeps_zeros_and_running_statistics() -> None:
    assert not quantized(torch.zeros(3, 4), QuantizationSettings()).any()
    release = release_of(entries=_entries())
    _, before = apply("quantization", release)
    after = release.model.state_dict()
    assert torch.equal(after["1.running_var"], before["1.running_var"])
    assert len(release.entries["codes"].unique()) <= 255


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_magnitude_pruning_is_torchs(share: float) -> None:
    release = release_of()
    apply("magnitude_pruning", release, share=share)
    reference = build(SPEC)
    chosen = [(m, "weight") for m in reference.modules() if getattr(m, "weight", None) is not None]
    chosen = [(m, n) for m, n in chosen if m.weight.dim() > 1]
    prune.global_unstructured(chosen, prune.L1Unstructured, amount=share)
    for module, name in chosen:
        prune.remove(module, name)
    for name, value in reference.state_dict().items():
        assert torch.equal(release.model.state_dict()[name], value)


def test_pruning_by_layer_takes_the_same_share_of_each() -> None:
    release = release_of()
    apply("magnitude_pruning", release, share=0.5, scope="layer")
    for parameter in release.model.parameters():
        if parameter.dim() > 1:
            assert (parameter == 0).double().mean().item() == pytest.approx(0.5, abs=1e-3)


def test_entry_removal_lets_nothing_but_the_network_out() -> None:
    release = release_of(entries=_entries())
    report, before = apply("entry_removal", release)
    assert release.entries == {}
    after = release.model.state_dict()
    assert all(torch.equal(after[n], before[n]) for n in before)
    assert set(report.relative_change.values()) == {0.0}
