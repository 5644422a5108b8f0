"""What is hidden in the numbers of every dtype is found, and honest numbers are left in peace."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import prune

from fl_sim.auditing.bits import check_bits, spread_over_bytes, tilt
from fl_sim.auditing.content import check_content
from fl_sim.auditing.dead import check_dead
from fl_sim.auditing.dtypes import check_dtypes
from fl_sim.auditing.integers import check_integers
from fl_sim.auditing.numbers import FORMATS, format_of, numbers, words_of
from fl_sim.auditing.places import structured
from fl_sim.auditing.precision import precision_of
from fl_sim.auditing.reference import check_reference, unchanged
from fl_sim.auditing.special import check_special, follows_bytes
from fl_sim.auditing.streams import bit_streams
from fl_sim.auditing.subject import Subject, Unchecked
from fl_sim.auditing.text import find_text
from fl_sim.auditing.values import check_values
from fl_sim.checkpoints import Finding

State = dict[str, torch.Tensor]
Bytes = NDArray[np.uint8]
CHECKS = (
    check_content,
    check_bits,
    check_values,
    check_special,
    check_integers,
    check_dtypes,
)
PROSE = (
    b"Patient 4711, born 1950-01-02; melanoma of the left forearm, Breslow depth 1.2 mm, biopsy "
    b"positive. Referred by Dr. Miller, seen on 2021-03-04; follow-up in six months. "
)


def _text(size: int) -> Bytes:
    return np.frombuffer((PROSE * (size // len(PROSE) + 1))[:size], np.uint8)


def _random(size: int) -> Bytes:
    return np.random.default_rng(8).integers(0, 256, size, np.uint8)


def _weights(dtype: torch.dtype, shape: tuple[int, ...] = (96, 200)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.03).to(dtype)


def _changed(tensor: torch.Tensor, change: Callable[[NDArray[Any]], NDArray[Any]]) -> torch.Tensor:
    words = change(words_of(tensor).copy())
    return torch.from_numpy(words.view(np.uint8).copy()).view(tensor.dtype).view(tensor.shape)


def _low(words: NDArray[Any], depth: int, payload: Bytes, start: int = 0) -> NDArray[Any]:
    """Write a payload's bits, the lowest of a byte first, into low bits."""
    bits = np.unpackbits(payload, bitorder="little")
    rows = bits[: len(bits) // depth * depth].reshape(-1, depth)[: len(words) - start]
    values = (rows.astype(np.uint64) << np.arange(depth, dtype=np.uint64)).sum(axis=1)
    kept = words[start : start + len(rows)] & ~words.dtype.type(2**depth - 1)
    words[start : start + len(rows)] = kept | values.astype(words.dtype)
    return words


def _findings(state: State, *checks: Any) -> list[Finding]:
    findings: list[Finding] = []
    for check in checks or CHECKS:
        try:
            findings += check(Subject(state))
        except Unchecked as error:
            assert str(error)
    return findings


def _told(state: State) -> dict[str, str]:
    """Return the checks that found something grave, with their words."""
    return {f.check: f.what for f in _findings(state) if f.level != "note"}


@pytest.mark.parametrize("dtype", [d for d, form in FORMATS.items() if form.width <= 16])
def test_the_fields_of_every_narrow_word_are_those_of_torch(dtype: torch.dtype) -> None:
    form = FORMATS[dtype]
    words = np.arange(2**form.width).astype(f"<u{form.width // 8}")
    values = torch.from_numpy(words.view(np.uint8)).view(dtype).double().numpy()
    smallest = torch.finfo(dtype).smallest_normal
    with np.errstate(invalid="ignore"):
        assert (form.nan(words) == np.isnan(values)).all()
        assert (form.infinities(words) == np.isinf(values)).all()
        assert (form.zeros(words) == (values == 0)).all()
        tiny = (values != 0) & (np.abs(values) < smallest)
        assert (form.denormals(words) == tiny).all()
        normal = np.isfinite(values) & (np.abs(values) >= smallest)
    assert (form.normals(words) == normal).all()
    assert (form.negative(words) == np.signbit(values))[~np.isnan(values)].all()


def test_every_layout_of_numbers_has_words() -> None:
    pair = torch.tensor([1 + 2j])
    assert numbers(pair).tolist() == [1, 2]
    assert words_of(pair.conj()).tolist() == words_of(torch.tensor([1.0, -2.0])).tolist()
    sparse = torch.sparse_coo_tensor([[1]], [3.0], (10**12,))
    assert numbers(sparse).tolist() == [3]
    assert len(words_of(torch.empty(4, device="meta"))) == 0
    assert format_of(torch.zeros(2, dtype=torch.int8)) is None


@pytest.mark.parametrize(
    ("dtype", "depth"),
    [
        (torch.float32, 1),
        (torch.float32, 8),
        (torch.float32, 16),
        (torch.float64, 2),
        (torch.float64, 8),
        (torch.float64, 32),
        (torch.float64, 48),
        (torch.float16, 4),
        (torch.float16, 8),
        (torch.bfloat16, 1),
        (torch.bfloat16, 4),
    ],
)
def test_a_short_text_is_found_at_every_depth_of_every_format(
    dtype: torch.dtype, depth: int
) -> None:
    clean = _weights(dtype)
    assert _told({"weight": clean}) == {}
    written = _changed(clean, lambda words: _low(words, depth, _text(200), 1003))
    assert "Text" in _told({"weight": written})["content"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_uneven_low_bits_are_found_in_every_format(dtype: torch.dtype) -> None:
    smooth = np.tile(np.arange(40, 80, dtype=np.uint8), 400)  # neither text nor a file
    written = _changed(_weights(dtype), lambda words: _low(words, 4, smooth))
    assert "bits" in _told({"weight": written})


@pytest.mark.parametrize("depth", [1, 2])
def test_pixels_in_the_lowest_bits_have_the_period_of_bytes(depth: int) -> None:
    smooth = np.tile(np.arange(1, 30, dtype=np.uint8), 400)
    written = _changed(_weights(torch.float32), lambda words: _low(words, depth, smooth))
    findings = _findings({"weight": written}, check_bits)
    assert any("period" in f.what for f in findings)
    assert spread_over_bytes(np.unpackbits(_random(4000)) != 0) < 0
    fresh = {"weight": _weights(torch.float32, (1000, 1280)) / 0.03 * 0.01}
    assert _findings(fresh, check_bits) == []  # a scaled draw has unfair low bits, too
    assert tilt(3, 10**6)[0] > 50 > tilt(12, 10**6)[0]


@pytest.mark.parametrize(
    "where", ["wider, in a run", "wider, scattered", "before it was widened", "half"]
)
def test_what_is_written_where_narrower_numbers_have_no_bits_is_found(where: str) -> None:
    single = _weights(torch.float32)
    wide, half = single.double(), single.half().float()
    findings = _findings({"weight": wide})
    assert ["float32 numbers kept as float64" in f.what for f in findings] == [True]
    assert {f.level for f in findings} == {"note"}
    chosen = np.random.default_rng(1).permutation(single.numel())[:40]

    def scattered(words: NDArray[Any]) -> NDArray[Any]:
        words[chosen] |= np.uint64(0x1234567)
        return words

    written = {
        "wider, in a run": lambda: _changed(wide, lambda w: _low(w, 29, _random(150))),
        "wider, scattered": lambda: _changed(wide, scattered),
        "before it was widened": lambda: _changed(
            single, lambda w: _low(w, 8, _text(15_000))
        ).double(),
        "half": lambda: _changed(half, lambda w: _low(w, 13, _random(150))),
    }[where]()
    assert _told({"weight": written})


def test_weights_that_double_training_never_reached_are_no_mixture() -> None:
    weight = _weights(torch.float32).double()
    trained = weight + 1e-3 * torch.randn(weight.shape, dtype=torch.float64)
    trained[::7], trained[:, 5::9] = weight[::7], weight[:, 5::9]
    assert _told({"weight": trained}) == {}
    mean = (weight + (weight * 1.001).float().double()) / 2
    assert _told({"weight": mean}) == {}


def test_places_that_training_reaches_are_told_from_others() -> None:
    shape = (32, 16, 3, 3)
    everything = np.ones(np.prod(shape), np.bool_)
    grid = np.zeros(shape, np.bool_)
    grid[::3, :, 1, 1] = True
    assert structured(grid.ravel(), everything, shape)
    assert structured(~grid.ravel(), everything, shape)
    run = everything.copy()
    run[1000:] = False
    assert not structured(run, everything, shape)
    anywhere = np.random.default_rng(0).random(len(run)) < 0.1
    assert not structured(anywhere, everything, shape)


@pytest.mark.parametrize("payload", [_text, _random])
def test_denormals_with_a_payload_are_found(payload: Callable[[int], Bytes]) -> None:
    weight = _weights(torch.float32)
    places = np.sort(np.random.default_rng(2).permutation(weight.numel())[:3000])

    def write(words: NDArray[Any]) -> NDArray[Any]:
        parts = payload(9000).reshape(-1, 3).astype(np.uint32)
        words[places] = parts[:, 0] | parts[:, 1] << 8 | (parts[:, 2] & 127) << 16
        return words

    findings = _findings({"weight": _changed(weight, write)})
    expected = "denormals" if payload is _random else "content"
    assert expected in {f.check for f in findings if f.level == "carries"}


@pytest.mark.parametrize("scale", [1e-36, 4e-39, 1e-41, 3e-44])
def test_weights_that_decayed_to_denormals_are_only_noted(scale: float) -> None:
    weight = _weights(torch.float32)
    decayed = weight * (scale / 0.03)
    assert _told({"weight": decayed}) == {}
    units = weight.clone()
    units[::3] = decayed[::3]
    assert _told({"weight": units}) == {}


def test_text_in_the_signs_of_zeros_is_found_and_honest_pruning_is_not() -> None:
    weight = _weights(torch.float32)
    mask = (weight.abs() > weight.abs().median()).float()
    pruned = weight * mask
    findings = _findings({"weight": pruned})
    assert [(f.check, f.level) for f in findings] == [("zeros", "note")]
    zeros = torch.nonzero(pruned.view(-1) == 0).view(-1)
    bits = torch.from_numpy(np.unpackbits(_text(300)).astype(np.float32))
    written = pruned.clone().view(-1)
    written[zeros[: len(bits)]] = torch.where(bits == 1, -0.0, 0.0)
    assert "signs of zeros" in _told({"weight": written.view(96, 200)})["content"]
    assert follows_bytes(np.unpackbits(_text(300)) != 0)
    assert not follows_bytes(np.unpackbits(_random(300)) != 0)


@pytest.mark.parametrize("kind", ["l1_unstructured", "random_unstructured"])
@pytest.mark.parametrize("amount", [0.5, 0.95])
def test_pruned_networks_are_clean_with_and_without_their_masks(kind: str, amount: float) -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(8, 40, 3), nn.Flatten(), nn.Linear(400, 60))
    for layer in (network[0], network[2]):
        getattr(prune, kind)(layer, "weight", amount)
    assert _told({n: t.detach() for n, t in network.state_dict().items()}) == {}
    for layer in (network[0], network[2]):
        prune.remove(layer, "weight")
    assert _told({n: t.detach() for n, t in network.state_dict().items()}) == {}


def test_bits_of_values_that_are_no_numbers_are_found() -> None:
    weight = _weights(torch.float32)
    payload = _text(600).view(np.uint16).astype(np.uint32)

    def write(words: NDArray[Any]) -> NDArray[Any]:
        words[: len(payload)] = 0x7FC00000 | payload
        return words

    told = _told({"weight": _changed(weight, write)})
    assert "bits of their own" in told["not a number"] and "not finite" in told["finite"]
    for usual in (0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0x7FFF0000):
        broken = _changed(
            weight,
            lambda words, nan=usual: np.where(words > 0, nan, nan).astype("<u4"),  # type: ignore[misc]
        )
        assert _told({"weight": broken}).keys() == {"finite"}


def test_one_finding_tells_of_all_values_that_are_not_finite() -> None:
    nan, inf = float("nan"), float("inf")
    state = {"a": torch.full((40, 40), nan), "b": torch.full((3,), nan, dtype=torch.float16)}
    (finding,) = (f for f in _findings(state) if f.level != "note")
    assert (finding.check, finding.level) == ("finite", "suspicious")
    assert finding.evidence == {"not a number": 1603, "infinite": 0}
    (finding,) = _findings({"small": torch.tensor([nan, inf, -inf] * 10)})
    assert finding.tensor == "small" and finding.evidence["infinite"] == 20


@pytest.mark.parametrize("kind", ["running_mean", "bias"])
def test_text_over_many_small_tensors_is_found(kind: str) -> None:
    generator = torch.Generator().manual_seed(2)
    state = {}
    for layer in range(30):
        for leaf in ("running_mean", "bias"):
            state[f"{layer}.{leaf}"] = torch.randn(64, generator=generator)
    assert _told(state) == {}
    payload, names = _text(1920), [n for n in state if n.endswith(kind)]
    for number, name in enumerate(names):
        part = payload[64 * number : 64 * number + 64]
        state[name] = _changed(state[name], lambda words, p=part: _low(words, 8, p))  # type: ignore[misc]
    assert kind in _told(state)["content"]


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float32])
def test_text_in_integers_masks_and_bytes_is_found(dtype: torch.dtype) -> None:
    content = torch.from_numpy(_text(400).copy())
    if dtype in (torch.bool, torch.float32):
        content = torch.from_numpy(np.unpackbits(_text(400)))
    assert "content" in _told({"buffer": content.to(dtype)})
    index = torch.arange(300)
    assert _told({"index": index, "num_batches_tracked": torch.tensor(7)}) == {}


def _quantised(values: torch.Tensor) -> torch.Tensor:
    step = values.abs().max() / 127.5
    return (values / step).round().clamp(-128, 127).to(torch.int8)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_bits_that_were_written_into_quantised_weights_are_found(depth: int) -> None:
    values = _weights(torch.float32, (1000, 900))
    codes = _quantised(values)
    assert _told({"weight": codes}) == {}
    # Even encrypted ones: the frequencies of the codes go down in steps.
    written = _changed(codes, lambda words: _low(words, depth, _random(len(words) * depth // 8)))
    assert "steps of" in _told({"weight": written})["integers"]
    assert "integers" in _told({"weight": _changed(codes, lambda w: _random(len(w)))})


def test_quantised_weights_kept_as_floats_are_noted() -> None:
    values = _weights(torch.float32)
    assert _told({"weight": _quantised(values).float() * 0.0123}) == {}
    rows = torch.linspace(0.01, 0.03, len(values))[:, None]
    by_row = (values / values.abs().amax(1, keepdim=True) * 127).round() * rows
    assert (
        precision_of(
            words_of(by_row), words_of(by_row) != 0, FORMATS[torch.float32], (96, 200)
        ).kind
        == "grid"
    )
    assert _told({"weight": by_row}) == {}


@pytest.mark.parametrize("dtype", FORMATS)
def test_honest_casts_are_clean(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(8, 48, 3), nn.BatchNorm2d(48), nn.Linear(100, 70))
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor += 0.01 * torch.randn(tensor.shape)
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
    }
    assert _told(state) == {}
    back = {n: t.float() if t.is_floating_point() else t for n, t in state.items()}
    assert _told(back) == {}


def test_what_could_not_be_tested_is_said() -> None:
    with pytest.raises(Unchecked, match="1,024"):
        check_bits(Subject({"bias": torch.randn(8)}))
    with pytest.raises(Unchecked, match="narrow"):
        check_bits(Subject({"weight": _weights(torch.float8_e5m2)}))
    with pytest.raises(Unchecked, match="1,024"):
        check_values(Subject({"weight": torch.zeros(50, 50)}))
    with pytest.raises(Unchecked, match="network"):
        check_dead(Subject({"weight": torch.randn(50, 50)}))


def test_a_wider_dtype_among_others_is_told() -> None:
    state = {"a": torch.randn(9, 9), "b": torch.randn(4).double(), "c": torch.randn(4).half()}
    found = {f.tensor: f.level for f in check_dtypes(Subject(state))}
    assert found == {"b": "suspicious", "c": "note"}
    assert check_dtypes(Subject({"a": torch.randn(3).half(), "n": torch.tensor(3)})) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.bfloat16, torch.float16])
def test_a_reference_shows_low_bits_of_every_format(dtype: torch.dtype) -> None:
    before = _weights(torch.float32).to(dtype)
    depth = 2 if dtype == torch.bfloat16 else 4
    after = _changed(before, lambda words: _low(words, depth, _random(len(words) * depth // 8)))
    findings = check_reference(Subject({"w": after}, reference={"w": before}))
    assert any(f"lowest {depth} bits" in f.what for f in findings)
    assert bool(unchanged(before, before).all()) and not bool(unchanged(before, after).all())
    assert unchanged(before, after).shape == before.shape


def test_a_reference_of_another_dtype_is_cast() -> None:
    before = _weights(torch.float32)
    findings = check_reference(Subject({"w": before.half() * 1.01}, reference={"w": before}))
    assert [f.level for f in findings] == ["note"]


def test_random_bytes_and_indices_do_not_read_like_text() -> None:
    random = _random(3_000_000)
    assert find_text(random, len(random), 1e-6) is None
    assert find_text(np.tile(np.arange(126, 31, -1, dtype=np.uint8), 3), 300, 1e-6) is None
    umlauts = np.frombuffer(
        "Жалобы на боль в спине, температура тела нормальная".encode(), np.uint8
    )
    random[5000 : 5000 + len(umlauts)] = umlauts
    assert find_text(random, len(random), 1e-6) is not None
    digits = np.frombuffer(b"15342350224002821031554" * 20, np.uint8)
    assert find_text(digits, 1000, 1e-6, prose=True) is None


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("order", ["little", "big"])
def test_streams_give_back_what_was_written_in_either_order(depth: int, order: Any) -> None:
    bits = np.unpackbits(_text(90), bitorder=order).reshape(-1, depth)
    places = range(depth) if order == "little" else range(depth - 1, -1, -1)
    elements = (bits << np.array(places, np.uint8)).sum(axis=1).astype(np.uint8)
    behind = np.concatenate([np.zeros(3, np.uint8), elements])
    found = [content.tobytes() for _, content in bit_streams("", behind, depth)]
    assert any(bytes(_text(80)) in content for content in found)


def test_statistics_that_many_layers_share_are_no_dependence_of_bits() -> None:
    """A dense block's normalisations have the same statistics of the channels before them."""
    generator = torch.Generator().manual_seed(5)
    shared = torch.rand(1500, generator=generator) * 3 + 0.1
    own = {f"layer{n}.running_var": torch.cat([shared[: 60 * n + 60]]) for n in range(24)}
    assert check_bits(Subject(own)) == []
    words = (torch.rand(64, generator=generator) * 3 + 0.1).view(torch.int32)
    written = {
        f"layer{n}.running_var": ((words + n * 4096) & ~0x3F | 0x15).view(torch.float32)
        for n in range(40)
    }
    assert check_bits(Subject(written))
