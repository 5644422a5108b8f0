"""The codec of principal components: few bytes, and every code is one of an image."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fl_sim.codecs.files import codec_from, load_codec, save_codec
from fl_sim.codecs.principal import Principal, PrincipalSettings, allotted, levels_of
from fl_sim.data import load_dataset
from fl_sim.errors import FlSimError
from fl_sim.metrics.leakage import identification, ssim
from fl_sim.randomness import Stream

STREAM = Stream(0, ("codec",))


def _images() -> torch.Tensor:
    return load_dataset("phantoms", {"size": 28}).train.batch(np.arange(400))[0]


def _fitted(size: int = 8) -> Principal:
    codec = Principal(PrincipalSettings(bytes=size))
    codec.fit(_images()[:300], _images()[300:], STREAM)
    return codec


def test_codes_are_as_long_as_said_and_tell_new_images_apart() -> None:
    codec, images = _fitted(), _images()[300:]
    codes = codec.encode(images)
    assert {len(code) for code in codes} == {8}
    decoded = [image for image in codec.decode(codes, (3, 28, 28))]
    recovered = torch.stack([image for image in decoded if isinstance(image, torch.Tensor)])
    assert len(recovered) == 100 and 0 <= recovered.min() <= recovered.max() <= 1
    mean = images.mean(dim=0, keepdim=True).expand_as(images).contiguous()
    assert ssim(recovered, images).mean() > ssim(mean, images).mean() + 0.02
    assert identification(recovered, images).correlation > 0.5


def test_more_bytes_are_nearer() -> None:
    images = _images()[300:]

    def error(size: int) -> float:
        codec = _fitted(size)
        decoded = codec.decode(codec.encode(images), (3, 28, 28))
        kept = torch.stack([image for image in decoded if isinstance(image, torch.Tensor)])
        return float((kept - images).square().mean())

    assert error(2) > 1.1 * error(8) > 1.1 * 1.05 * error(32)


def test_every_code_of_the_length_is_an_image_and_others_are_not() -> None:
    codec = _fitted()
    garbage = np.random.default_rng(1).bytes(8)
    assert isinstance(codec.decode([garbage], (3, 28, 28))[0], torch.Tensor)
    assert codec.decode([garbage[:7]], (3, 28, 28)) == [
        "The code is damaged: it has 7 bytes, not 8."
    ]
    assert "fitted to images of 3 x 28 x 28" in str(codec.decode([garbage], (1, 28, 28))[0])
    with pytest.raises(FlSimError, match="these are of 1 x 28 x 28"):
        codec.encode(torch.zeros(2, 1, 28, 28))


def test_a_file_decodes_what_was_encoded(tmp_path: Path) -> None:
    codec, images = _fitted(), _images()[:5]
    again = load_codec(save_codec(tmp_path / "codec.safetensors", codec, decoder_only=True))
    codes = codec.encode(images)
    for one, other in zip(
        codec.decode(codes, (3, 28, 28)), again.decode(codes, (3, 28, 28)), strict=True
    ):
        assert isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["mean", "axes", "scales", "bits", "levels"])
def test_tensors_that_do_not_fit_are_refused(name: str) -> None:
    tensors = _fitted().tensors()
    missing = {other: value for other, value in tensors.items() if other != name}
    for wrong in (missing, {**tensors, name: tensors[name][:1]}):
        with pytest.raises(FlSimError, match="do not fit"):
            codec_from("principal", {"bytes": 8}, wrong)


def test_bits_go_where_the_variance_is() -> None:
    # Each bit quarters what is lost: 64 deserves two bits more than 4, and three more than 1.
    assert allotted(np.array([64.0, 4.0, 1.0]), 6).tolist() == [4, 2, 0]
    assert allotted(np.array([1.0, 0.0]), 20).tolist() == [8, 0]


def test_levels_are_those_of_max() -> None:
    # Max 1960, table I: a normal number in 2 and in 4 levels.
    assert levels_of(1) == pytest.approx([-0.7979, 0.7979], abs=1e-4)
    assert levels_of(2) == pytest.approx([-1.510, -0.4528, 0.4528, 1.510], abs=1e-3)


def test_too_few_images_and_no_fit_are_said() -> None:
    with pytest.raises(FlSimError, match="two images or more"):
        Principal(PrincipalSettings()).fit(torch.zeros(1, 1, 8, 8), torch.zeros(0), STREAM)
    with pytest.raises(FlSimError, match="images that differ"):
        Principal(PrincipalSettings()).fit(torch.zeros(5, 1, 8, 8), torch.zeros(0), STREAM)
    with pytest.raises(FlSimError, match="has not been fitted"):
        Principal(PrincipalSettings()).encode(torch.zeros(1, 1, 8, 8))
