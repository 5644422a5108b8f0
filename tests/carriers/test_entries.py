"""Extra entries: plain, and such that look like the network's own."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fl_sim.artifact import read_artifact, write_artifact
from fl_sim.carriers.base import State
from fl_sim.carriers.entries import Entries, EntriesSettings
from fl_sim.errors import FlSimError
from fl_sim.models import build, build_model
from fl_sim.models.base import ModelSpec
from fl_sim.settings import parse

SPEC = ModelSpec(name="resnet18", channels=3, size=28, classes=7)


def carrier(seed: int = 5, **settings: object) -> Entries:
    """A carrier with settings as a scenario gives them."""
    return Entries(parse(EntriesSettings, settings, "carrier"), seed)


@pytest.fixture(scope="module")
def resnet() -> State:
    """A network with blocks."""
    return build(SPEC).state_dict()


def payload(kind: str, count: int) -> np.ndarray:
    """Random bytes, or values of unit deviation."""
    random = np.random.default_rng(count)
    if kind == "bytes":
        return random.integers(0, 256, count, dtype=np.uint8)
    return random.standard_normal(count).astype(np.float32)


@pytest.mark.parametrize("style", ["plain", "plausible"])
@pytest.mark.parametrize("kind", ["bytes", "values"])
@pytest.mark.parametrize("count", [0, 1, 4001])
def test_a_payload_comes_back_through_a_file(
    resnet: State, tmp_path: Path, style: str, kind: str, count: int
) -> None:
    way = carrier(style=style, kind=kind)
    content = payload(kind, count)
    written = way.write(resnet, content)
    assert all(torch.equal(written[n], resnet[n]) for n in resnet)
    assert "payload" not in resnet
    state = read_artifact(write_artifact(tmp_path / "m.safetensors", SPEC, written)).state
    for like in (None, resnet, dict(reversed(resnet.items()))):
        read = way.read(state, count, like)
        assert read.dtype == content.dtype
        np.testing.assert_allclose(read, content, rtol=3e-7)
        longer = way.read(state, like=like)
        np.testing.assert_allclose(longer[:count], content, rtol=3e-7)
    assert way.places(written, count) == {}


def test_plain_entries_tell_what_they_hold(resnet: State) -> None:
    for kind in ("bytes", "values"):
        content = payload(kind, 30)
        written = carrier().write(resnet, content)
        assert np.array_equal(carrier().read(written), content)
        assert written["payload"].numel() == 30
        other = "values" if kind == "bytes" else "bytes"
        unread = carrier(kind=other).read(written, 3)
        assert not np.nan_to_num(unread).any() and len(unread) == 3
    named = carrier(name="fc.scale")
    assert "fc.scale" in named.write(resnet, content)
    with pytest.raises(FlSimError, match=r"a tensor 'fc.weight' of its own"):
        carrier(name="fc.weight").write(resnet, content)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ("resnet18", ["layer4.2.conv1.weight", "layer4.2.conv2.weight", "layer4.3.conv1.weight"]),
        ("cnn", ["14.weight", "15.weight", "16.weight"]),
        ("densenet121", [f"features.denseblock4.denselayer17.conv{i}.weight" for i in (1, 2)]),
        ("mlp", None),
        ("vit", None),
    ],
)
def test_plausible_entries_continue_every_network(network: str, expected: list[str] | None) -> None:
    state = build_model(network, 3, 32, 5).state_dict()
    way = carrier(style="plausible")
    small = way.write(state, payload("bytes", 10))
    (first,) = set(small) - set(state)
    content = payload("bytes", 4 * small[first].numel() + 7)
    written = way.write(state, content)
    added = [name for name in written if name not in state]
    if expected:
        assert added[: len(expected)] == expected
    assert np.array_equal(way.read(written, len(content)), content)
    assert np.array_equal(way.read(written, len(content), like=state), content)
    own = {re.sub(r"[0-9]+", "#", name) for name in state}
    for name in added:
        assert re.sub(r"[0-9]+", "#", name) in own
        values = written[name]
        assert values.dtype == torch.float32 and values.isfinite().all()
        alike = [t for n, t in state.items() if t.shape == values.shape and n.endswith("weight")]
        assert min(abs(float(t.std() / values.std()) - 1) for t in alike) < 0.1
    # Twice the payload, rounded up to whole tensors.
    bytes_added = sum(4 * written[name].numel() for name in added)
    assert (
        2 * len(content)
        <= bytes_added
        < 2 * len(content) + 4 * max(written[name].numel() for name in added)
    )


def test_several_blocks_are_continued_and_found_again() -> None:
    state = build_model("cnn", 1, 16, 3).state_dict()
    way = carrier(style="plausible")
    content = payload("bytes", 3 * 2 * state["11.weight"].numel() - 5)
    written = way.write(state, content)
    assert [n for n in written if n not in state] == ["14.weight", "15.weight", "16.weight"]
    assert np.array_equal(way.read(written)[: len(content)], content)
    del written["15.weight"]
    read = way.read(written, len(content), like=state)
    size = 2 * state["11.weight"].numel()
    assert not read[size : 2 * size].any()
    assert np.array_equal(read[2 * size :], content[2 * size :])
    assert np.array_equal(read[:size], content[:size])


@pytest.mark.parametrize("style", ["plain", "plausible"])
def test_what_is_not_there_is_zeros_or_not_a_number(resnet: State, style: str) -> None:
    for state in (resnet, {}):
        assert carrier(style=style, kind="bytes").read(state, 5).tolist() == [0] * 5
        assert np.isnan(carrier(style=style, kind="values").read(state, 5)).tolist() == [True] * 5
        assert len(carrier(style=style, kind="bytes").read(state)) == 0
    assert carrier(style=style, kind="bytes").read({}, 5, like=resnet).tolist() == [0] * 5
    way = carrier(style=style, kind="bytes")
    written = way.write(resnet, payload("bytes", 9))
    (name,) = set(written) - set(resnet)
    reshaped = written | {name: written[name].reshape(-1)[: 4 if style == "plain" else 100]}
    expected = [*payload("bytes", 9)[:4], 0, 0, 0, 0, 0] if style == "plain" else [0] * 9
    assert way.read(reshaped, 9, like=resnet).tolist() == expected
    wrong_dtype = written | {name: torch.full(written[name].shape, 3, dtype=torch.int64)}
    assert way.read(wrong_dtype, 9, like=resnet).tolist() == [0] * 9


def test_the_limit_counts_bytes(resnet: State) -> None:
    assert carrier().capacity(resnet) is None
    assert carrier(max_bytes=41).capacity(resnet) == 41
    assert carrier(max_bytes=41, kind="values").capacity(resnet) == 10
    for kind, fits in (("bytes", 41), ("values", 10)):
        way = carrier(max_bytes=41, kind=kind)
        way.write(resnet, payload(kind, fits))
        with pytest.raises(FlSimError, match="max_bytes = 41"):
            way.write(resnet, payload(kind, fits + 1))


def test_what_cannot_be_hidden_is_refused(resnet: State) -> None:
    with pytest.raises(FlSimError, match='was given values; set kind = "values"'):
        carrier(kind="bytes").write(resnet, payload("values", 3))
    with pytest.raises(FlSimError, match='was given values; set kind = "values"'):
        carrier(style="plausible").write(resnet, payload("values", 3))
    with pytest.raises(FlSimError, match='was given bytes; set kind = "bytes"'):
        carrier(kind="values").write(resnet, payload("bytes", 3))
    flat = {"weight": torch.zeros(3, 3), "bias": torch.zeros(3)}
    with pytest.raises(FlSimError, match="no numbered blocks"):
        carrier(style="plausible").write(flat, payload("bytes", 3))
    bare = {"0.weight": torch.ones(9, 9), "0.bias": torch.ones(9), "1.weight": torch.ones(9, 9)}
    with pytest.raises(FlSimError, match="cannot be told from its own"):
        carrier(style="plausible").write(bare, payload("bytes", 3))


@pytest.mark.parametrize("style", ["plain", "plausible"])
def test_errors_are_told_by_entry(resnet: State, style: str) -> None:
    for kind in ("bytes", "values"):
        way = carrier(style=style, kind=kind)
        written = way.write(resnet, payload(kind, 1000))
        (name,) = set(written) - set(resnet)
        assert way.errors(written, written, 1000) == {name: 0.0}
        changed = written[name] ^ 1 if kind + style == "bytesplain" else written[name] * 1.01
        (error,) = way.errors(written, written | {name: changed}, 1000).values()
        if kind == "values":
            assert error == pytest.approx(0.01, rel=0.01)
        else:
            assert error == 1 / 8 if style == "plain" else 0.3 < error < 0.6
        (gone,) = way.errors(written, resnet, 1000).values()
        assert gone == 1.0 if kind == "values" else 0.45 < gone < 0.55
