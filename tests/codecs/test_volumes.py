"""Volumes as slice triples, through a codec and back."""

import gzip
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from fl_sim.codecs.base import Codec, FitReport, ImageShape
from fl_sim.codecs.volumes import (
    CodedVolume,
    decode_volume,
    encode_volume,
    gzip_bytes,
    triples,
    volume_of,
)
from fl_sim.errors import FlSimError
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream
from fl_sim.settings import Settings


class Pixels(Codec[Settings]):
    """Keeps 16 bits a pixel and channel; a code of another length cannot be decoded."""

    name = "pixels"

    def fit(
        self,
        images: torch.Tensor,
        validation: torch.Tensor,
        stream: Stream,
        progress: Progress = SILENT,
    ) -> FitReport:
        return FitReport()

    def encode(self, images: torch.Tensor) -> list[bytes]:
        return [(x.double().numpy() * 65535).round().astype("<u2").tobytes() for x in images]

    def decode(self, codes: Sequence[bytes], shape: ImageShape) -> list[torch.Tensor | str]:
        images: list[torch.Tensor | str] = []
        for code in codes:
            if len(code) != 2 * int(np.prod(shape)):
                images.append("The code has another length.")
                continue
            pixels = np.frombuffer(code, "<u2").reshape(shape).astype(np.float32)
            images.append(torch.from_numpy(pixels / 65535))
        return images

    def tensors(self, decoder_only: bool = False) -> dict[str, torch.Tensor]:
        return {}

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        pass


class LosslessPixels(Pixels):
    lossless = True


def random_volume(dtype: str = "float32", shape: tuple[int, int, int] = (5, 9, 7)) -> np.ndarray:
    values = np.random.default_rng(0).normal(300, 500, shape)
    return values.clip(-1000, 3000).astype(dtype)


def test_each_slice_stands_between_its_neighbours() -> None:
    volume = random_volume()
    images, low, high = triples(volume)
    assert images.shape == (5, 3, 9, 7) and images.dtype == torch.float32
    assert (low, high) == (float(volume.min()), float(volume.max()))
    assert float(images.min()) == 0.0 and float(images.max()) == 1.0
    scaled = (volume - low) / (high - low)
    for i in range(5):
        for channel, neighbour in enumerate((max(i - 1, 0), i, min(i + 1, 4))):
            np.testing.assert_allclose(images[i, channel].numpy(), scaled[neighbour], atol=1e-6)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int16", "uint16", ">i2", "int32", "float32", "float64"]
)
def test_a_volume_comes_back_whatever_its_dtype(dtype: str) -> None:
    volume = random_volume()
    volume = (np.abs(volume) % 200 if dtype == "uint8" else np.abs(volume)).astype(dtype)
    for stored in (volume, np.asfortranarray(volume)):
        restored = volume_of(*triples(stored))
        assert restored.dtype == torch.float32
        np.testing.assert_allclose(restored.numpy(), volume.astype(np.float64), atol=2e-4)


def test_tensors_are_volumes_too_and_are_left_alone() -> None:
    volume = torch.from_numpy(random_volume()).requires_grad_()
    before = volume.detach().clone()
    images, low, high = triples(volume)
    assert not images.requires_grad
    images.zero_()
    assert torch.equal(volume.detach(), before)
    assert torch.equal(volume_of(images, low, high), torch.full_like(before, low))


def test_middle_channels_alone_make_the_volume() -> None:
    images, low, high = triples(random_volume())
    wrong = images.clone()
    wrong[:, [0, 2]] = 0.5
    assert torch.equal(volume_of(wrong, low, high), volume_of(images, low, high))
    assert torch.equal(volume_of(images[:, 1:2], low, high), volume_of(images, low, high))
    with pytest.raises(FlSimError, match="1 or 3"):
        volume_of(images[:, :2], low, high)


@pytest.mark.parametrize("value", [0, -7.25, 4095])
def test_a_constant_volume_comes_back(value: float) -> None:
    volume = np.full((3, 8, 8), value, dtype=np.float64)
    images, low, high = triples(volume)
    assert torch.equal(images, torch.zeros(3, 3, 8, 8))
    assert torch.equal(volume_of(images + 0.3, low, high), torch.full((3, 8, 8), value))


def test_one_slice_is_its_own_neighbour() -> None:
    images, _, _ = triples(random_volume(shape=(1, 6, 6)))
    assert torch.equal(images[0, 0], images[0, 1]) and torch.equal(images[0, 2], images[0, 1])


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (np.zeros((4, 4)), "shape is \\[4, 4\\]"),
        (np.zeros((0, 4, 4)), "at least one slice"),
        (np.array([[[0.0, np.nan]]]), "not finite"),
        (torch.tensor([[[0.0, torch.inf]]]), "not finite"),
    ],
)
def test_what_is_no_volume_is_refused(volume: np.ndarray | torch.Tensor, message: str) -> None:
    with pytest.raises(FlSimError, match=message):
        triples(volume)


@pytest.mark.parametrize("codec", [Pixels(Settings()), LosslessPixels(Settings())])
def test_a_volume_goes_through_a_codec(codec: Pixels) -> None:
    volume = random_volume()
    coded = encode_volume(codec, volume)
    assert coded.shape == (5, 9, 7) and coded.channels == (1 if codec.lossless else 3)
    assert [len(code) for code in coded.codes] == [2 * coded.channels * 9 * 7] * 5
    decoded = decode_volume(codec, coded)
    assert decoded.reasons == {} and decoded.volume.shape == (5, 9, 7)
    step = (coded.high - coded.low) / 65535
    np.testing.assert_allclose(decoded.volume.numpy(), volume, atol=0.51 * step)


def test_neighbours_can_be_had_or_left_out() -> None:
    volume = random_volume()
    for neighbours, channels in ((True, 3), (False, 1)):
        for codec in (Pixels(Settings()), LosslessPixels(Settings())):
            assert encode_volume(codec, volume, neighbours).channels == channels


def test_a_damaged_slice_is_missing_and_no_other() -> None:
    codec, volume = Pixels(Settings()), random_volume()
    coded = encode_volume(codec, volume)
    codes = [*coded.codes[:3], coded.codes[3][:-1], b""]
    damaged = CodedVolume(codes, coded.shape, coded.low, coded.high, coded.channels)
    decoded = decode_volume(codec, damaged)
    assert decoded.reasons == dict.fromkeys((3, 4), "The code has another length.")
    assert bool(decoded.volume[3:].isnan().all())
    assert torch.equal(decoded.volume[:3], decode_volume(codec, coded).volume[:3])


def test_a_code_is_needed_for_every_slice() -> None:
    with pytest.raises(FlSimError, match="3 slices needs as many codes, but has 2"):
        CodedVolume([b"", b""], (3, 8, 8), 0.0, 1.0)


def test_the_baseline_is_gzip_of_the_stored_voxels() -> None:
    volume = random_volume("int16")
    size = gzip_bytes(volume)
    assert size == len(gzip.compress(volume.tobytes(), 6))
    assert gzip_bytes(np.asfortranarray(volume)) == size
    assert gzip_bytes(volume.astype("float64")) > size
    assert gzip_bytes(np.zeros((50, 64, 64))) < 0.01 * 50 * 64 * 64


def test_real_volumes_come_back() -> None:
    root = os.environ.get("FL_SIM_DATA")
    files = sorted(Path(root or "/nowhere").glob("hippocampus/images/*.nii.gz"))[:3]
    if not files:
        pytest.skip("needs real data: set FL_SIM_DATA to a data root")
    import nibabel

    for file in files:
        volume = np.asanyarray(nibabel.load(file).dataobj)
        coded = encode_volume(Pixels(Settings()), volume)
        decoded = decode_volume(Pixels(Settings()), coded)
        step = (coded.high - coded.low) / 65535
        np.testing.assert_allclose(decoded.volume.numpy(), volume, atol=0.51 * step)
        assert 0 < gzip_bytes(volume) < volume.nbytes
