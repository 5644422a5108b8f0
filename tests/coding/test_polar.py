"""Polar codes against their definition, and against the best decoder there is."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_sim.coding.polar import Polar, PolarSettings, transform


def _matrix(depth: int) -> NDArray[np.uint8]:
    """Return Arikan's matrix, a Kronecker power."""
    matrix = np.ones((1, 1), np.uint8)
    for _ in range(depth):
        matrix = np.kron(matrix, np.array([[1, 0], [1, 1]], np.uint8))
    return matrix


def test_the_transform_is_arikans_matrix_and_its_own_inverse() -> None:
    bits = np.random.default_rng(0).integers(0, 2, (5, 32), dtype=np.uint8)
    assert np.array_equal(transform(bits), bits.astype(int) @ _matrix(5) % 2)
    assert np.array_equal(transform(transform(bits)), bits)


@pytest.mark.parametrize("rate", [0.2, 0.34, 0.5, 0.8])
def test_with_all_paths_the_likeliest_word_is_found(rate: float) -> None:
    code = Polar(PolarSettings(rate=rate, check=0, paths=256))
    every = np.arange(256, dtype=np.uint8)[:, None]
    words = np.unpackbits(code.encode_blocks(every), axis=1, bitorder="little") * 2.0 - 1.0
    assert len(np.unique(words, axis=0)) == 256
    generator = np.random.default_rng(1)
    for number in (0, 17, 200, 255):
        soft = words[number] + 1.2 * generator.standard_normal(words.shape[1])
        found, _ = code.decode_blocks(soft[None].astype(np.float32), 1)
        assert found[0, 0] == np.argmax(words @ soft)


def test_nearly_what_the_channel_could_carry_is_decoded() -> None:
    # 24 bytes at rate 0.6: 8 % wrong bits with soft values, 0.74 bits a bit.
    code, length = Polar(PolarSettings(rate=0.6, check=1), seed=3), 24
    generator = np.random.default_rng(2)
    intact = 0
    for _ in range(12):
        content = generator.integers(0, 256, length, dtype=np.uint8)
        sent = np.unpackbits(code.encode(content), bitorder="little") * 2.0 - 1.0
        soft = sent + 0.7 * generator.standard_normal(len(sent))
        intact += np.array_equal(code.decode(soft.astype(np.float32), length).content, content)
    assert intact >= 11


def test_noise_fails_and_says_so() -> None:
    code = Polar(PolarSettings(rate=0.6, check=2))
    noise = np.random.default_rng(3).standard_normal((6, 8 * code.coded(24)))
    assert code.decode_blocks(noise.astype(np.float32), 24)[1].all()
    nothing = np.zeros((1, 8 * code.coded(24)), np.float32)
    assert code.decode_blocks(nothing, 24)[1].all()
