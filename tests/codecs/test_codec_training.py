"""The training loop of learned codecs, with a codec whose losses are known, and with real ones."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fl_sim.codec import CODECS, CodecTrainer, ImageShape, LearnedCodec
from fl_sim.codecs.factorized import ConvolutionalSettings, Factorized
from fl_sim.codecs.training import LearnedSettings, fit
from fl_sim.errors import FlSimError
from fl_sim.randomness import Stream
from tests.codecs.codec_kit import LEARNED, images


class Scripted(LearnedCodec[LearnedSettings], CodecTrainer):
    """Counts its steps in its only weight; its validation losses are given."""

    name = "scripted"

    def __init__(self, settings: LearnedSettings, losses: Sequence[float] = ()) -> None:
        super().__init__(settings)
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.network.weight)
        self.losses = list(losses)
        self.rates: list[float] = []
        self.batches: list[torch.Tensor] = []
        self.frozen_at = -1.0
        self.loss = 1.0

    latent_channels = 1

    def step(self, images: torch.Tensor) -> dict[str, float]:
        with torch.no_grad():
            self.network.weight.add_(1)
        self.batches.append(images)
        return {"codec": self.loss}

    def set_rate(self, factor: float) -> None:
        self.rates.append(factor)

    def evaluate(self, images: torch.Tensor) -> dict[str, float]:
        return {"loss": self.losses.pop(0), "bpp": 0.25, "psnr": 30.0}

    def trainer(self, stream: Stream) -> CodecTrainer:
        return self

    def freeze(self) -> None:
        self.frozen_at = float(self.network.weight.detach())

    def fit(self, *_: Any, **__: Any) -> Any: ...

    def encode(self, images: torch.Tensor) -> list[bytes]: ...  # type: ignore[empty-body]

    def decode(self, codes: Sequence[bytes], shape: ImageShape) -> Any: ...

    def tensors(self, decoder_only: bool = False) -> Any: ...

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None: ...

    def analysis(self, images: torch.Tensor) -> Any: ...

    def latents(self, images: torch.Tensor) -> Any: ...

    def synthesis(self, latents: torch.Tensor, shape: ImageShape) -> Any: ...

    def on_grid(self, latents: torch.Tensor) -> Any: ...


class Notes:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.pieces: list[tuple[str, int]] = []
        self.finished = 0

    def start(self, what: str, total: int) -> None:
        self.pieces.append((what, total))

    def step(self, note: str = "", advance: int = 1) -> None:
        self.notes.append(note)

    def finish(self) -> None:
        self.finished += 1


def run(settings: LearnedSettings, losses: Sequence[float], **arguments: Any) -> Any:
    """Train a scripted codec; return it and the report."""
    codec = Scripted(settings, losses)
    data = arguments.pop("images", images(10))
    return codec, fit(codec, settings, data, images(4), Stream(0), **arguments)


def test_training_stops_on_a_plateau_and_freezes_the_best_weights() -> None:
    settings = LearnedSettings(max_steps=1000, validate_every=10, patience=3)
    codec, report = run(settings, [5, 4, 4.5, 3, 3, 3.1, 3.2])
    assert (report.steps, report.stopped) == (70, "plateau")
    assert float(codec.network.weight.detach()) == codec.frozen_at == 40
    assert report.curves == {
        "step": [10, 20, 30, 40, 50, 60, 70],
        "loss": [5, 4, 4.5, 3, 3, 3.1, 3.2],
        "bpp": [0.25] * 7,
        "psnr": [30.0] * 7,
    }


def test_all_steps_are_taken_on_half_a_cosine_and_the_last_is_validated() -> None:
    notes = Notes()
    codec, report = run(LearnedSettings(max_steps=25, validate_every=10), [3, 2, 1], progress=notes)
    assert (report.steps, report.stopped, report.curves["step"]) == (25, "limit", [10, 20, 25])
    wanted = [0.5 + 0.5 * math.cos(math.pi * step / 25) for step in range(25)]
    assert codec.rates == pytest.approx(wanted) and codec.rates[0] == 1
    assert codec.frozen_at == 25 and report.seconds > 0
    assert notes.pieces == [("codec", 25)] and notes.finished == 1
    assert [i + 1 for i, note in enumerate(notes.notes) if note] == [10, 20, 25]
    assert notes.notes[9] == "0.250 bpp 30.0 dB"


def test_batches_are_crops_and_flips_of_the_images() -> None:
    height, width = 20, 24
    ramp = torch.arange(height * width).float().reshape(1, 1, height, width) / (height * width)
    data = ramp.expand(6, 3, -1, -1).clone()
    before = data.clone()
    settings = LearnedSettings(max_steps=40, batch_size=4, crop=16, flip=True)
    codec, _ = run(settings, [1.0], images=data)
    assert torch.equal(data, before)
    corners, flips = set(), 0
    for image in torch.cat(codec.batches):
        assert image.shape == (3, 16, 16)
        flipped = bool(image[0, 0, 0] > image[0, 0, 1])
        plain = image.flip(-1) if flipped else image
        corner = round(float(plain[0, 0, 0]) * height * width)
        top, left = divmod(corner, width)
        assert torch.equal(plain, before[0, :, top : top + 16, left : left + 16])
        corners.add((top, left))
        flips += flipped
    assert {t for t, _ in corners} == set(range(5)) and {c for _, c in corners} == set(range(9))
    assert 50 < flips < 110  # of 160, or a little fewer


def test_what_cannot_be_trained_on_is_refused_in_one_sentence() -> None:
    settings = LearnedSettings(max_steps=3)
    with pytest.raises(FlSimError, match="without images"):
        run(settings, [1], images=images(0))
    with pytest.raises(FlSimError, match="Crops of 32 pixels do not fit into images of 28 x 28"):
        run(LearnedSettings(max_steps=3, crop=32), [1])
    with pytest.raises(FlSimError, match="takes images of"):
        small(max_steps=1).fit(images(3, 3, 8, 8), images(3), Stream(0))


def test_divergence_is_said_in_one_sentence() -> None:
    codec = Scripted(LearnedSettings(max_steps=5), [1])
    codec.loss = math.nan
    with pytest.raises(FlSimError, match=r"codec loss became nan at step 1 of 5; lower its learn"):
        fit(codec, codec.settings, images(4), images(4), Stream(0))
    with pytest.raises(FlSimError, match=r"validation images became inf after step 5"):
        run(LearnedSettings(max_steps=5), [math.inf])
    wild = small(learning_rate=1e30, max_steps=50)
    with pytest.raises(FlSimError, match="lower its learning_rate"):
        wild.fit(images(40), images(10), Stream(0))


def small(**settings: Any) -> Factorized:
    """A small codec."""
    return Factorized(ConvolutionalSettings(N=4, M=4, batch_size=8, **settings))


@pytest.mark.parametrize("name", LEARNED)
def test_training_is_the_same_bit_for_bit(name: str) -> None:
    kind: Any = CODECS.get(name)
    data = images(40)

    def trained(seed: int, noise: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)  # the global generator has no say, and is left alone
        codec = kind(kind.Settings(N=4, M=4, max_steps=6, validate_every=3, flip=True))
        codec.fit(data[:30], data[30:], Stream(seed, ("here",)))
        assert torch.initial_seed() == noise
        after = torch.rand(3)
        assert torch.equal(after, torch.rand(3, generator=torch.Generator().manual_seed(noise)))
        return codec.tensors()

    first, second, other = trained(1, 5), trained(1, 6), trained(2, 5)
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert not torch.equal(first["network.g_s.0.weight"], other["network.g_s.0.weight"])


def test_fitting_again_starts_anew_and_a_loaded_codec_goes_on() -> None:
    data, codec = images(40), small(max_steps=5)
    codec.fit(data, data, Stream(0))
    first = codec.tensors()
    codec.fit(data, data, Stream(0))
    assert all(torch.equal(first[n], t) for n, t in codec.tensors().items())
    loaded = small(max_steps=1, learning_rate=1e-9)
    loaded.load_tensors(first)
    loaded.fit(data, data, Stream(9))
    after = loaded.tensors()["network.g_s.0.weight"]
    assert torch.allclose(after, first["network.g_s.0.weight"], atol=1e-6)


def test_a_step_follows_the_rate_and_lowers_the_loss() -> None:
    codec, data = small(max_steps=1, learning_rate=5e-3), images(32)
    trainer = codec.trainer(Stream(0))
    before = {n: t.clone() for n, t in codec.network.state_dict().items()}
    trainer.set_rate(0.0)
    trainer.step(data)
    assert all(torch.equal(before[n], t) for n, t in codec.network.state_dict().items())
    trainer.set_rate(1.0)
    losses = [trainer.step(data)["codec"] for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]
    values = trainer.evaluate(data)
    mse = codec.settings.lmbda * 255**2
    decoded = codec.forward(data, training=False).images.detach().clamp(0, 1)
    errors = ((decoded - data) ** 2).mean((1, 2, 3))
    assert values["psnr"] == pytest.approx(float((-10 * errors.log10()).mean()), abs=1e-4)
    assert values["loss"] == pytest.approx(mse * float(errors.mean()) + values["bpp"], rel=1e-5)


@pytest.mark.slow
def test_real_images_become_small_and_stay_recognisable() -> None:
    path = Path(os.environ.get("FL_SIM_DATA", "/nowhere")) / "medmnist/dermamnist.npz"
    if not path.is_file():
        pytest.skip("FL_SIM_DATA names no folder with medmnist/dermamnist.npz")
    pixels = np.load(path)["train_images"][:4400].transpose(0, 3, 1, 2)
    data = torch.from_numpy(pixels).float() / 255
    codec = Factorized(ConvolutionalSettings(max_steps=600))
    codec.fit(data[:4000], data[4000:4200], Stream(0))
    codes = codec.encode(data[4200:])
    decoded = torch.stack([i for i in codec.decode(codes, (3, 28, 28)) if not isinstance(i, str)])
    psnr = float((-10 * ((decoded - data[4200:]) ** 2).mean((1, 2, 3)).log10()).mean())
    size = np.mean([len(code) for code in codes])
    # A whole training reaches more; the mean image, for no bytes at all, 17.9 dB.
    assert psnr > 22.5 and size < 45
