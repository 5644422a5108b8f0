"""Thousands of damaged payloads through the whole receiver: container, entropy coder, decoder."""

import numpy as np
import pytest
import torch

from fl_sim.attacks.dec.message import Codes
from fl_sim.codec import CODECS, Codec
from fl_sim.component import Component
from fl_sim.data import load_dataset
from fl_sim.payload.reading import Status
from fl_sim.randomness import Stream

SHAPE = (3, 28, 28)
IMAGES = 3


def _fitted(name: str, **settings: int) -> Codec:
    codec = Component(name=name, settings=settings).build(CODECS, "codec")
    images = load_dataset("phantoms").train.batch(slice(0, 64))[0]
    codec.fit(images, images[:16], Stream(0))
    return codec


def _mutated(payload: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Flip bits, overwrite, cut, insert, or replace by noise."""
    data = payload.copy()
    kind = random.integers(6)
    if kind == 0:
        places = random.integers(0, 8 * len(data), random.integers(1, 20))
        np.bitwise_xor.at(data, places // 8, (1 << (places % 8)).astype(np.uint8))
    elif kind == 1:
        first = random.integers(len(data))
        data[first : first + random.integers(1, 64)] = random.integers(256)
    elif kind == 2:
        data = data[: random.integers(len(data))]
    elif kind == 3:
        place = random.integers(len(data))
        noise = random.integers(0, 256, random.integers(1, 30), dtype=np.uint8)
        data = np.concatenate([data[:place], noise, data[place:]])
    elif kind == 4:
        # Beyond the header: the index, the codes and their checksums.
        data[44:] ^= (random.random(len(data) - 44) < 0.02).astype(np.uint8) << random.integers(8)
    else:
        data = random.integers(0, 256, random.integers(0, 400), dtype=np.uint8)
    return data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "settings", "mutants"),
    [
        ("factorized", {"N": 4, "M": 4, "max_steps": 10, "validate_every": 10}, 2000),
        ("scale_hyperprior", {"N": 4, "M": 4, "max_steps": 10, "validate_every": 10}, 500),
        ("gzip", {}, 1000),
        ("png", {}, 1000),
    ],
)
def test_damaged_payloads_never_break_the_receiver(
    codec: str, settings: dict[str, int], mutants: int
) -> None:
    fitted = _fitted(codec, **settings)
    images = load_dataset("phantoms").test.batch(slice(0, IMAGES))[0]
    message = Codes(fitted, SHAPE)
    payload = message.write([images], None).payload
    undisturbed = message.read(payload, IMAGES)
    assert undisturbed.images.isfinite().all()
    random = np.random.default_rng(0)
    seen = {status: 0 for status in Status}
    for _ in range(mutants):
        extraction = message.read(_mutated(payload, random), IMAGES)
        assert extraction.images.shape == (IMAGES, *SHAPE)
        assert extraction.reading is not None and extraction.reading.status is not None
        for image, expected, status in zip(
            extraction.images, undisturbed.images, extraction.reading.status, strict=True
        ):
            seen[Status(status)] += 1
            assert bool(image.isfinite().all()) == (status != Status.LOST)
            if status == Status.INTACT:
                assert torch.equal(image, expected)
    assert all(seen.values()), seen
