"""Gzip and PNG: every pixel back, and neither bombs nor garbage do harm."""

import gzip
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fl_sim.codec import CODECS
from fl_sim.codecs.gzip import Gzip, GzipSettings
from fl_sim.codecs.png import Png
from fl_sim.errors import FlSimError
from fl_sim.randomness import Stream
from fl_sim.settings import Settings
from tests.codecs.codec_kit import images

GZIP, PNG = Gzip(GzipSettings()), Png(Settings())


def noise(shape: tuple[int, ...], levels: int = 256) -> torch.Tensor:
    """Random pixels of so many levels, as data sets give them."""
    made = np.random.default_rng(0).integers(0, levels, shape)
    return torch.from_numpy(made.astype(np.float32)) / (levels - 1)


@pytest.mark.parametrize("codec", [GZIP, PNG])
@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 28, 28), (1, 1, 1), (3, 7, 300)])
def test_every_pixel_comes_back(codec: Any, shape: tuple[int, int, int]) -> None:
    assert codec.lossless and codec.fit(images(0), images(0), Stream(0)).steps == 0
    batch = noise((5, *shape))
    decoded = codec.decode(codec.encode(batch), shape)
    assert torch.equal(torch.stack(decoded), batch) and decoded[0].dtype == torch.float32
    assert codec.tensors() == codec.tensors(decoder_only=True) == {}
    assert codec.encode(batch) == codec.encode(batch.clone())


def test_sixteen_bits_a_pixel_come_back() -> None:
    codec, batch = Gzip(GzipSettings(bits=16)), noise((4, 1, 20, 20), 65536)
    assert torch.equal(torch.stack(codec.decode(codec.encode(batch), (1, 20, 20))), batch)
    assert not isinstance(codec.decode(codec.encode(batch), (1, 20, 20))[0], str)
    assert isinstance(GZIP.decode(codec.encode(batch), (1, 20, 20))[0], str)


def test_codes_are_ordinary_files() -> None:
    batch = noise((1, 3, 9, 5))
    levels = (batch[0] * 255).round().to(torch.uint8).numpy()
    (code,) = GZIP.encode(batch)
    assert code == gzip.compress(levels.tobytes(), 9, mtime=0)
    (code,) = PNG.encode(batch)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(code))), levels.transpose(1, 2, 0))


@pytest.mark.parametrize("codec", [GZIP, PNG])
def test_smooth_images_are_compressed(codec: Any) -> None:
    assert (
        np.mean([len(c) for c in codec.encode(images(20, height=64, width=64))]) < 0.6 * 3 * 64**2
    )


@pytest.mark.parametrize("codec", [GZIP, PNG])
def test_thousands_of_damaged_codes_are_values(codec: Any) -> None:
    random, batch = np.random.default_rng(0), images(8)
    good, garbage = codec.encode(batch), [b"", b"\0", bytes(5000)]
    for _ in range(3000):
        code = bytearray(good[int(random.integers(8))])
        for _ in range(int(random.integers(1, 6))):
            code[int(random.integers(len(code)))] = int(random.integers(256))
        kinds = [bytes(code), bytes(code)[: int(random.integers(len(code)))], random.bytes(60)]
        garbage.append(bytes(kinds[int(random.integers(3))]))
    results = codec.decode([*garbage, *good], (3, 28, 28))
    for result in results[:-8]:
        if isinstance(result, str):
            assert result.endswith(".") and "\n" not in result
        else:
            assert result.shape == (3, 28, 28) and result.min() >= 0 and result.max() <= 1
    assert sum(isinstance(r, str) for r in results[:-8]) > 2500
    levels = (batch * 255).round() / 255
    assert torch.allclose(torch.stack(results[-8:]), levels, atol=1e-6)


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG that says to be of a size, with chunks of any content."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IEND", b"")


BOMBS = f"""
import resource, sys, zlib
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import tests.codecs.test_lossless as t
zeros = zlib.compress(bytes(2**27), 9)
bombs = [t.png(20000, 20000, t._chunk(b"IDAT", zeros)), t.png(28, 28, t._chunk(b"IDAT", zeros)),
         t.png(28, 28, t._chunk(b"zTXt", b"a\\0\\0" + zeros), t._chunk(b"IDAT", zeros)),
         t.png(28, 28, t._chunk(b"iCCP", b"a\\0\\0" + zeros), t._chunk(b"IDAT", zeros))]
compressor = zlib.compressobj(9, wbits=31)
packed = compressor.compress(bytes(2**27)) + compressor.flush()
t.torch.set_num_threads(1)
base = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (base + 2**25, base + 2**25))
for result in [*t.PNG.decode(bombs, (3, 28, 28)), *t.GZIP.decode([packed], (3, 28, 28))]:
    print(result if isinstance(result, str) else tuple(result.shape))
"""


def test_bombs_are_not_unpacked() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BOMBS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5 and lines[0].startswith("The code is damaged")
    assert lines[4].startswith("The code is damaged")


@pytest.mark.parametrize("codec", [GZIP, PNG])
def test_impossible_images_are_refused_in_one_sentence(codec: Any) -> None:
    for shape in [(2, 28, 28), (28, 28), (3, 0, 4)]:
        with pytest.raises(FlSimError, match="takes images of 1 or 3 channels"):
            codec.decode([], shape)
        with pytest.raises(FlSimError, match="takes images of 1 or 3 channels"):
            codec.encode(torch.zeros(1, *shape))
    with pytest.raises(FlSimError, match="too large"):
        codec.decode([], (3, 10**6, 10**6))
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(FlSimError, match=r"in \[0, 1\]"):
            codec.encode(torch.full((1, 1, 4, 4), value))


def test_the_lossless_codecs_are_registered() -> None:
    assert CODECS.get("gzip") is Gzip and CODECS.get("png") is Png
