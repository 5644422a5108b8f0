"""HiFiC: sizes of the paper's networks, training with and without a discriminator, coding."""

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from fl_sim.codec import CODECS, LearnedCodec
from fl_sim.codecs.files import load_codec, save_codec
from fl_sim.codecs.hific import CHANNELS, Hific, HificSettings
from fl_sim.codecs.hific.discriminator import Discriminator
from fl_sim.codecs.hific.networks import (
    ChannelNorm,
    HyperSynthesis,
    encoder,
    generator,
    hyper_analysis,
)
from fl_sim.codecs.hific.perceptual import ALEXNET_FILE
from fl_sim.codecs.hific.trainer import HificTrainer
from fl_sim.data import load_dataset
from fl_sim.errors import FlSimError
from fl_sim.metrics.compression import gzip_baseline
from fl_sim.metrics.leakage import psnr
from fl_sim.randomness import Stream

SMALL: dict[str, Any] = {
    "latent": 8,
    "width": 0.125,
    "max_steps": 30,
    "batch_size": 8,
    "validate_every": 10,
    "lmbda": 0.05,
    "gan_weight": 0.0,
}


def settings(**changes: Any) -> HificSettings:
    return HificSettings(**{**SMALL, **changes})


def blobs(n: int, channels: int = 3, side: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    level = torch.rand(n, 1, 1, 1, generator=generator)
    coarse = 0.7 * level + 0.3 * torch.rand(n, 1, 2, 2, generator=generator)
    grey = functional.interpolate(coarse, size=side, mode="bilinear")
    return grey.expand(-1, channels, -1, -1).contiguous()


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def fitted() -> Hific:
    codec = Hific(settings(gan_weight=0.02, gan_after=20))
    codec.fit(blobs(32), blobs(8, seed=1), Stream(3))
    return codec


# The networks of the paper.


def test_the_papers_decoders_have_the_papers_sizes() -> None:
    with torch.device("meta"):
        whole, reduced = generator(220, 1.0, 9), generator(220, 1.0, 0)
        rest = [encoder(220, 1.0), hyper_analysis(220, 320), HyperSynthesis(220, 320)]
    # The DEC paper gives 627 MB for D: ours is that to the digit, in float32 and 10^6 bytes.
    assert parameters(whole) * 4 / 1e6 == pytest.approx(627, abs=0.5)
    # And 29 MB for D1, which has 29.69: the paper cuts the digits off.
    assert 29 <= parameters(reduced) * 4 / 1e6 < 30
    # The nine blocks are the difference: 18 convolutions of 960 to 960 channels, with norms.
    assert parameters(whole) - parameters(reduced) == 18 * (960 * 960 * 9 + 960 + 2 * 960)
    # HiFiC's authors count 181 million in all but the discriminator; entropy models add thousands.
    everything = parameters(whole) + sum(map(parameters, rest))
    assert everything == pytest.approx(181e6, rel=0.005)


def test_fewer_latents_make_the_decoder_little_smaller() -> None:
    with torch.device("meta"):
        sizes = [parameters(generator(latent, 1.0, 0)) * 4 / 1e6 for latent in CHANNELS]
    assert all(larger > smaller for larger, smaller in pairwise(sizes))
    # At 50 channels D1 lacks 170 * 960 * 9 weights of its first convolution.
    assert sizes[2] == pytest.approx(23.8, abs=0.05)


@pytest.mark.parametrize(("latent", "hyper"), list(CHANNELS.items()))
def test_the_papers_configurations_pair_hyperlatents_with_latents(latent: int, hyper: int) -> None:
    codec = Hific(settings(latent=latent))
    assert codec.latent_channels == latent
    assert codec.network.h_a(torch.zeros(1, latent, 8, 8)).shape == (1, hyper, 2, 2)
    assert settings(latent=latent, hyper=7).hyper_channels == 7
    assert settings(latent=100).hyper_channels == 160


def test_encoder_and_generator_have_a_stride_of_16() -> None:
    codec = Hific(settings(residual_blocks=2))
    images = torch.rand(2, 3, 48, 32)
    y = codec.network.g_a(images)
    assert y.shape == (2, 8, 3, 2)
    assert codec.network.g_s(y).shape == images.shape
    assert sum(isinstance(m, nn.Conv2d) for m in codec.network.g_s.modules()) == 2 + 2 * 2


def test_channel_norm_is_that_of_the_paper() -> None:
    norm = ChannelNorm(5)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(5))
        norm.bias.copy_(torch.rand(5))
    x = 3 * torch.randn(2, 5, 4, 3) + 1
    mean = x.mean(1, keepdim=True)
    deviation = (x.var(1, correction=0, keepdim=True) + 1e-3).sqrt()
    expected = (x - mean) / deviation * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected)


def test_the_encoder_can_be_traced() -> None:
    network = Hific(settings()).network
    traced = fx.symbolic_trace(network.g_a)
    for side in (32, 48):
        images = torch.rand(1, 3, side, side)
        assert torch.equal(traced(images), network.g_a(images))


def test_the_discriminator_looks_at_patches_and_latents() -> None:
    torch.manual_seed(0)
    judge = Discriminator(8, 0.125)
    images, latents = torch.rand(2, 3, 48, 32), torch.randn(2, 8, 3, 2)
    logits = judge(images, latents)
    assert logits.shape == (2, 1, 6, 4)
    judge.eval()
    with torch.no_grad():
        before = judge(images, latents)
        assert not torch.allclose(judge(images, latents + 1), before)
        images[:, :, 40:] = 0
        after = judge(images, latents)
    assert torch.equal(after[:, :, 0], before[:, :, 0])
    assert not torch.equal(after[:, :, 5], before[:, :, 5])


def test_the_discriminators_weights_have_spectral_norm_one() -> None:
    torch.manual_seed(0)
    judge = Discriminator(8, 0.125)
    for _ in range(30):
        judge(torch.rand(1, 3, 32, 32), torch.randn(1, 8, 2, 2))
    judge.eval()
    convolutions = [m for m in judge.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 6
    for convolution in convolutions:
        norm = torch.linalg.matrix_norm(convolution.weight.detach().flatten(1), 2)
        assert float(norm) == pytest.approx(1.0, abs=0.05)


# Training.


def test_it_is_found_by_its_name() -> None:
    assert CODECS.get("hific") is Hific and issubclass(Hific, LearnedCodec)
    assert not Hific.lossless and Hific.stride == 16


def test_training_lowers_the_loss_and_says_what_it_did() -> None:
    codec = Hific(settings())
    report = codec.fit(blobs(32), blobs(8, seed=1), Stream(3))
    assert report.steps == 30 and report.stopped == "limit"
    assert report.curves["step"] == [10.0, 20.0, 30.0]
    assert report.curves["loss"][-1] < report.curves["loss"][0]
    # Far from the start, where nothing of the image comes back: that costs 1100 here.
    untrained = Hific(settings()).trainer(Stream(0)).evaluate(blobs(8, seed=1))
    assert report.curves["loss"][-1] < 0.3 * untrained["loss"]


def test_the_discriminator_joins_after_the_warm_up() -> None:
    codec = Hific(settings(gan_weight=0.02, gan_after=3))
    trainer = codec.trainer(Stream(0))
    assert isinstance(trainer, HificTrainer)
    images = blobs(4)
    for step in range(6):
        assert trainer.adversarial == (step >= 3)
        losses = trainer.step(images)
        assert ("gan" in losses) == ("discriminator" in losses) == (step >= 3)
        parts = 0.05 * 255**2 * losses["mse"] + losses["bpp"] + 0.02 * losses.get("gan", 0.0)
        assert losses["codec"] == pytest.approx(parts, rel=1e-5)


def test_the_discriminator_learns_to_tell_real_from_decoded() -> None:
    trainer = Hific(settings(gan_weight=0.02, gan_after=0)).trainer(Stream(0))
    images = blobs(4)
    # At this rate the decoder, untrained, learns too little to hide what its images are.
    losses = [trainer.step(images)["discriminator"] for _ in range(40)]
    # Knowing nothing, the discriminator's two terms are log 2 each.
    assert losses[0] == pytest.approx(2 * np.log(2), abs=0.1)
    assert losses[-1] < losses[0] - 0.02


def test_the_adversarial_loss_moves_the_codec_and_grows_with_its_weight() -> None:
    images, moved = blobs(4), []
    for weight in (1e-9, 100.0):
        codec = Hific(settings(gan_weight=weight, gan_after=0, lmbda=1e-9))
        before = codec.tensors()["network.g_s.0.bias"]
        trainer = codec.trainer(Stream(0))
        first = trainer.step(images)["gan"]
        for _ in range(15):
            last = trainer.step(images)["gan"]
        moved.append(last - first)
        assert not torch.equal(before, codec.tensors()["network.g_s.0.bias"])
    assert moved[1] < moved[0]


def test_a_step_at_rate_zero_changes_no_weight() -> None:
    codec = Hific(settings(gan_weight=0.02, gan_after=0))
    trainer = codec.trainer(Stream(0))
    before = codec.tensors()
    trainer.set_rate(0.0)
    trainer.step(blobs(4))
    assert same(before, codec.tensors())
    trainer.set_rate(1.0)
    trainer.step(blobs(4))
    changed = [name for name, old in before.items() if not torch.equal(old, codec.tensors()[name])]
    parts = {name.split(".")[1] for name in changed}
    assert parts == {"g_a", "g_s", "h_a", "h_s", "entropy_bottleneck"}


@pytest.mark.parametrize("gan_weight", [0.0, 0.02])
def test_training_is_repeatable_and_leaves_global_randomness_alone(gan_weight: float) -> None:
    chosen = settings(gan_weight=gan_weight, max_steps=6, validate_every=3, gan_after=3)
    results = []
    torch.manual_seed(1)
    for seed in (5, 5, 6):
        codec = Hific(chosen)
        state = torch.random.get_rng_state()
        codec.fit(blobs(16), blobs(4, seed=1), Stream(seed))
        assert torch.equal(state, torch.random.get_rng_state())
        torch.rand(7)
        results.append(codec.tensors())
    assert same(results[0], results[1]) and not same(results[0], results[2])


def test_both_stages_are_reported_as_one_training(fitted: Hific) -> None:
    codec = Hific(settings(gan_weight=0.02, gan_after=20))
    report = codec.fit(blobs(32), blobs(8, seed=1), Stream(3))
    assert report.steps == 30 and report.curves["step"] == [10.0, 20.0, 30.0]
    assert codec.settings == settings(gan_weight=0.02, gan_after=20)
    assert same(codec.tensors(), fitted.tensors())
    # The second stage goes on where the first has ended.
    losses = report.curves["loss"]
    assert losses[2] < losses[1] + 0.1 * (losses[0] - losses[1])
    only = Hific(settings(gan_weight=0.02, gan_after=0, max_steps=4, validate_every=2))
    assert only.fit(blobs(8), blobs(4), Stream(3)).steps == 4


@pytest.mark.parametrize(("target", "weight"), [(1e-6, 4.0), (1e6, 0.25)])
def test_rate_control_pushes_the_rate_only_above_the_target(target: float, weight: float) -> None:
    chosen = settings(target_bpp=target, rate_above=4.0, rate_below=0.25, lmbda=1e-12)
    trainer = Hific(chosen).trainer(Stream(0))
    # With hardly a distortion, the loss is the weighted rate.
    losses = trainer.step(blobs(4))
    assert losses["codec"] == pytest.approx(weight * losses["bpp"], rel=1e-3)
    values = trainer.evaluate(blobs(4))
    assert values["loss"] == pytest.approx(weight * values["bpp"], rel=1e-3)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="rate_above is 1, which must not be under"):
        settings(rate_above=1.0, rate_below=2.0)


def test_lpips_without_its_weights_says_where_they_belong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FlSimError, match=f"put {ALEXNET_FILE} .* into {tmp_path}/checkpoints"):
        Hific(settings(perceptual_weight=1.0)).trainer(Stream(0))


@pytest.mark.parametrize("channels", [1, 3])
def test_lpips_has_a_part_where_its_weights_are_at_hand(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import alexnet

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in alexnet().state_dict().items()}
    torch.manual_seed(0)
    made_up = {
        # The classifier has no part in LPIPS; one number stands for all of its weights.
        name: torch.zeros(1).expand(shape) if "classifier" in name else 0.05 * torch.randn(shape)
        for name, shape in shapes.items()
    }
    (tmp_path / "checkpoints").mkdir()
    torch.save(made_up, tmp_path / "checkpoints" / ALEXNET_FILE)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    trainer = Hific(settings(perceptual_weight=2.0)).trainer(Stream(0))
    losses = trainer.step(blobs(2, channels, side=64))
    parts = 0.05 * 255**2 * losses["mse"] + losses["bpp"] + 2.0 * losses["lpips"]
    assert losses["lpips"] > 0 and losses["codec"] == pytest.approx(parts, rel=1e-5)


# Coding.


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 40, 17), (1, 100, 64)], ids=str)
def test_what_is_encoded_comes_back(fitted: Hific, shape: tuple[int, int, int]) -> None:
    images = functional.interpolate(blobs(3, shape[0]), size=shape[1:], mode="bilinear")
    codes = fitted.encode(images)
    decoded = fitted.decode(codes, shape)
    expected = fitted.synthesis(fitted.latents(images), shape)
    for image, same_image in zip(decoded, expected, strict=True):
        assert isinstance(image, torch.Tensor) and image.shape == shape
        torch.testing.assert_close(image, same_image, atol=1e-5, rtol=0)
        assert 0 <= float(image.min()) <= float(image.max()) <= 1


def test_a_second_codec_decodes_with_the_decoders_part_alone(fitted: Hific, tmp_path: Path) -> None:
    part = fitted.tensors(decoder_only=True)
    assert {name.split(".")[1] for name in part if name.startswith("network.")} == {"g_s", "h_s"}
    assert not any("discriminator" in name for name in fitted.tensors())
    receiver = load_codec(save_codec(tmp_path / "decoder", fitted, decoder_only=True))
    assert isinstance(receiver, Hific) and receiver.settings == fitted.settings
    images = blobs(2)
    codes = fitted.encode(images)
    ours, theirs = fitted.decode(codes, (3, 32, 32)), receiver.decode(codes, (3, 32, 32))
    for a, b in zip(ours, theirs, strict=True):
        assert isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a, b)


def test_the_code_has_the_size_that_training_estimated(fitted: Hific) -> None:
    images = blobs(16, side=128)
    real = 8 * sum(map(len, fitted.encode(images))) / (16 * 128 * 128)
    with torch.no_grad():
        estimated = float(fitted.forward(images, training=False).bpp())
    # Rare symbols, of which a short training has many, cost the coder 16 bits and some digits, but
    # 30 bits in the estimate; the coder's state, some bytes an image, comes on top.
    assert 0.6 * estimated < real < 1.1 * estimated + 8 * 8 / 128**2


def test_rounding_is_what_the_generator_sees_in_training(fitted: Hific) -> None:
    images = blobs(2).requires_grad_()
    torch.manual_seed(0)
    out = fitted.forward(images)
    whole = fitted.network.g_s(out.latents)
    torch.testing.assert_close(out.images, whole)
    out.images.sum().backward()
    assert images.grad is not None and bool((images.grad != 0).any())


@pytest.mark.slow
def test_real_slices_are_compressed_far_below_gzip() -> None:
    root = Path(os.environ.get("FL_SIM_DATA") or "/nowhere")
    if not (root / "hippocampus").is_dir():
        pytest.skip("needs real data: set FL_SIM_DATA to a data root")
    dataset = load_dataset("hippocampus", {"neighbours": True, "size": 32, "volumes": 9}, root)
    train, validation, test = (
        split.tensors()[0] for split in (dataset.train, dataset.validation, dataset.test)
    )
    codec = Hific(settings(latent=16, max_steps=240, validate_every=80))
    codec.fit(train, validation, Stream(0))
    codes = codec.encode(test)
    restored = torch.stack([torch.as_tensor(x) for x in codec.decode(codes, (3, 32, 32))])
    assert sum(map(len, codes)) < 0.25 * gzip_baseline(test[:, 1:2])
    mean = test.mean().expand_as(test)
    assert float(psnr(restored, test).mean()) > float(psnr(mean, test).mean()) + 0.5
