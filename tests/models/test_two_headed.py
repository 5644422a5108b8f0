"""DEC's two-headed network: the codec's encoder, a branch on it, and the decoder beside."""

from typing import Literal

import pytest
import torch

from fl_sim.data import load_dataset
from fl_sim.defenses.base import Release
from fl_sim.defenses.lwlrd import Lwlrd, LwlrdSettings
from fl_sim.errors import FlSimError
from fl_sim.models import ModelSpec, build, layers, state_of
from fl_sim.randomness import Stream

CODEC = {"name": "factorized", "N": 8, "M": 8}


def _spec(
    channels: int = 3,
    size: int = 28,
    task: Literal["classification", "segmentation"] = "classification",
) -> ModelSpec:
    return ModelSpec(
        name="two_headed",
        channels=channels,
        size=size,
        classes=4,
        task=task,
        settings={"codec": CODEC},
    )


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 64), (3, 40)])
def test_the_branch_sees_what_the_codec_would_encode(channels: int, size: int) -> None:
    model = build(_spec(channels, size)).eval()
    images = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    expected = model.branch(model.inner.analysis((images * 2 - 1 + 1) / 2))
    assert torch.equal(model(images * 2 - 1), expected)


def test_it_segments_too() -> None:
    model = build(_spec(1, 40, "segmentation"))
    assert model(torch.zeros(2, 1, 40, 40)).shape == (2, 4, 40, 40)


def test_the_decoder_is_in_the_state_and_unused_by_the_task() -> None:
    spec = _spec()
    ordered = layers(build(spec), spec.input_shape, "block")
    unused = {name for layer in ordered if not layer.used for name in layer.parameters}
    assert any(name.startswith("codec.g_s.") for name in unused)
    assert all(name.startswith(("codec.g_s.", "codec.entropy_bottleneck.")) for name in unused)
    assert len({layer.name for layer in ordered}) == len(ordered)
    assert [layer.used for layer in ordered] == sorted((x.used for x in ordered), reverse=True)


def test_fine_tuning_on_the_task_leaves_the_decoder_and_decays_over_the_rest() -> None:
    dataset, spec = load_dataset("phantoms"), _spec()
    spec = spec.model_copy(update={"classes": dataset.task.outputs})
    model = build(spec)
    before = state_of(model)
    small = dataset.validation.subset(torch.arange(32).numpy())
    settings = LwlrdSettings(epochs=1)
    report = Lwlrd(settings).apply(Release(model, spec, small, dataset.task, Stream(0)))
    after = state_of(model)
    for name in before:
        if name.startswith("codec.g_s."):
            assert torch.equal(before[name], after[name])
    assert not torch.equal(before["codec.g_a.0.weight"], after["codec.g_a.0.weight"])
    rates = list(report.learning_rates.values())
    assert rates[0] == settings.high
    used = sum(layer.used for layer in layers(model, spec.input_shape, settings.layers))
    assert rates[used - 1] == pytest.approx(settings.low)


@pytest.mark.parametrize(
    ("codec", "sentence"),
    [
        ({"name": "png"}, "lossless"),
        ({"name": "factorised"}, "factorized"),
        ({"name": "factorized", "K": 1}, "no key 'K'"),
        ({"N": 8}, "lacks the key 'name'"),
    ],
)
def test_a_codec_that_cannot_be_shared_is_refused(codec: dict[str, object], sentence: str) -> None:
    with pytest.raises(FlSimError, match=sentence):
        build(_spec().model_copy(update={"settings": {"codec": codec}}))
