"""DEC in canonical places: a permutation of channels does not move the payload."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fl_sim.artifact import Artifact
from fl_sim.attacks.base import Inside
from fl_sim.attacks.dec import Dec
from fl_sim.attacks.dec.canonical import sorted_groups
from fl_sim.attacks.dec.route import Route
from fl_sim.attacks.dec.settings import DecSettings
from fl_sim.carriers.base import CARRIERS
from fl_sim.component import Component
from fl_sim.data.base import Split, Task
from fl_sim.defenses.base import DEFENSES, Release
from fl_sim.errors import FlSimError
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.randomness import Stream
from fl_sim.settings import parse

TASK = Task("multi-class", ("a", "b", "c"))
RESNET = ModelSpec(name="resnet18", channels=3, size=28, classes=3)
CNN = ModelSpec(name="cnn", channels=3, size=28, classes=3)
State = dict[str, torch.Tensor]


def _trained(spec: ModelSpec) -> nn.Module:
    """A network whose normalisations are as different as after training."""
    model, generator = build(spec), torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.bias.data.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model


def _route(spec: ModelSpec, canonical: bool, carrier: dict[str, Any] | str, **more: Any) -> Route:
    checked = Component.of(carrier, "carrier").checked(CARRIERS, "carrier")
    if checked.settings.get("kind") == "any":
        checked.settings["kind"] = "bytes"
    values = {"contents": "codes", "rounding": True, "precision": "float32", "images": 1}
    return Route(
        carrier=checked,
        seed=7,
        shape=spec.input_shape,
        spec=spec,
        coding=Component(name="none"),
        erasure=None,
        canonical=canonical,
        **(values | more),
    )


def _defended(name: str, spec: ModelSpec, state: State, seed: int = 0, **settings: Any) -> State:
    model = build(spec)
    model.load_state_dict(state)
    images = np.random.default_rng(0).integers(0, 256, (12, 28, 28, 3)).astype(np.uint8)
    held_out = Split(images, np.arange(12) % 3)
    kind = DEFENSES.get(name)
    defense = kind(parse(kind.Settings, settings, "[defense]"))
    defense.apply(Release(model, spec, held_out, TASK, Stream(seed)))
    return state_of(model)


def _wrong(route: Route, state: State, payload: np.ndarray) -> float:
    """The share of wrong bits in what the receiver reads."""
    like = route.places(route.spec)
    read = route.open_carrier().read(route.cast(state), len(payload), like)
    return float(np.unpackbits(read ^ payload).mean())


PAYLOAD = np.random.default_rng(1).integers(0, 256, 100_000, dtype=np.uint8)


@pytest.mark.parametrize("carrier", ["lsb", "qim"])
def test_on_resnet18_permutation_destroys_plain_places_and_not_canonical_ones(
    carrier: str,
) -> None:
    state = state_of(_trained(RESNET))
    for canonical, wrong in ((False, 0.4), (True, 0.0)):
        route = _route(RESNET, canonical, carrier)
        written = route.open_carrier().write(state, PAYLOAD)
        assert _wrong(route, written, PAYLOAD) == 0
        permuted = _defended("channel_permutation", RESNET, written)
        assert not torch.equal(permuted["conv1.weight"], written["conv1.weight"])
        assert (_wrong(route, permuted, PAYLOAD) > wrong) == (not canonical)
        assert (_wrong(route, permuted, PAYLOAD) == 0) == canonical


def test_with_random_bits_as_well_nothing_is_left_in_low_bits() -> None:
    route = _route(RESNET, True, "lsb")
    written = route.open_carrier().write(state_of(_trained(RESNET)), PAYLOAD)
    steps = ["channel_permutation", "random_bits"]
    assert _wrong(route, _defended("chain", RESNET, written, steps=steps), PAYLOAD) > 0.45


@pytest.mark.parametrize("name", ["cnn", "densenet121", "mlp", "vit"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_ties_are_broken_on_any_network_and_in_any_precision(name: str, precision: str) -> None:
    """In a fresh network all biases of normalisations are zero."""
    if precision != "float32" and name != "cnn":
        pytest.skip("one network in each precision will do")
    stem = "small" if name == "densenet121" else "default"
    spec = ModelSpec(name=name, channels=3, size=16, classes=3, stem=stem)
    bits = 6 if precision == "bfloat16" else 8
    route = _route(spec, True, {"name": "lsb", "bits": bits}, precision=precision)
    payload = PAYLOAD[:20_000]
    state = route.cast(state_of(build(spec)))
    written = route.open_carrier().write(state, payload)
    permuted = _defended("channel_permutation", spec, written)
    for one in sorted_groups(spec):
        assert len(written[one.key.tensor].unique()) > 1
    assert _wrong(route, permuted, payload) == 0


def test_the_network_stays_what_it_is() -> None:
    model, images = _trained(CNN).eval(), torch.rand(4, 3, 28, 28)
    state, route = state_of(model), _route(CNN, True, {"name": "lsb", "bits": 8})
    with torch.no_grad():
        answers = model(images)
        written = route.open_carrier().write(state, PAYLOAD[:20_000])
        model.load_state_dict(written)
        torch.testing.assert_close(model(images), answers, rtol=1e-3, atol=1e-4)
    for name, tensor in state.items():  # nothing has changed places
        torch.testing.assert_close(written[name], tensor, rtol=1e-4, atol=1e-6)


def test_places_and_errors_are_those_of_the_model_as_it_is() -> None:
    state, route = state_of(_trained(CNN)), _route(CNN, True, {"name": "lsb", "bits": 8})
    carrier, payload = route.open_carrier(), PAYLOAD[:5_000]
    written = carrier.write(state, payload)
    places = carrier.places(written, len(payload))
    keys = {one.key.tensor for one in sorted_groups(CNN)}
    assert not keys & places.keys()
    for name, tensor in written.items():
        changed = (tensor != state[name]) & ~places.get(name, torch.zeros_like(tensor).bool())
        assert not changed.any() or name in keys
    assert set(carrier.errors(written, written, len(payload)).values()) == {0.0}
    permuted = _defended("channel_permutation", CNN, written)
    assert set(carrier.errors(written, permuted, len(payload)).values()) == {0.0}


def test_whatever_arrives_is_read_without_an_error() -> None:
    state, route = state_of(_trained(CNN)), _route(CNN, True, "lsb")
    written = route.open_carrier().write(state, PAYLOAD[:5_000])
    keys = [one.key.tensor for one in sorted_groups(CNN)]
    damaged = written | {
        keys[0]: torch.full_like(written[keys[0]], float("nan")),
        keys[1]: torch.ones(2, 2),
        "3.weight": torch.ones(3),
    }
    del damaged[keys[2]]
    assert 0 < _wrong(route, damaged, PAYLOAD[:5_000]) <= 1


@pytest.mark.parametrize("canonical", [False, True])
def test_images_come_back_through_a_permutation_only_with_it(canonical: bool) -> None:
    from fl_sim.data import load_dataset

    train = load_dataset("phantoms").train
    data = Split(train.images[:20], (np.arange(20) % 3).astype(np.int64))
    attack = Dec(DecSettings(images=6, codec="png", canonical=canonical))
    plan = attack.plan(Inside(data, TASK, CNN, Stream(0)))
    embedding = attack.embed(state_of(_trained(CNN)), CNN, plan)
    state = _defended("channel_permutation", CNN, embedding.state)
    images = Dec.extract(Artifact(CNN, state), plan.key).images
    assert torch.equal(images, plan.targets) == canonical


@pytest.mark.parametrize(
    "settings", [{"carrier": "entries"}, {"carrier": "frozen"}, {"amplify": True}]
)
def test_what_canonical_does_not_go_with_is_refused(settings: dict[str, Any]) -> None:
    latents = {"contents": "latents", "codec": "factorized", "external": "phantoms"}
    more = latents if settings.get("carrier") == "frozen" else {"codec": "png"}
    with pytest.raises(FlSimError, match="canonical sorts the channels"):
        parse(DecSettings, {"canonical": True, **more, **settings}, "[attack]")
