"""Whether pictures came out, as a receiver can tell without the originals."""

import numpy as np
import pytest
import torch

from fl_sim.attacks.base import Extraction
from fl_sim.attacks.doubt import SMOOTH, doubt, smoothness
from fl_sim.data import load_dataset
from fl_sim.payload.reading import Reading, Status

PICTURES = load_dataset("phantoms").test.tensors()[0][:32]


def test_pictures_are_smooth_and_noise_is_not() -> None:
    noise = torch.rand(PICTURES.shape, generator=torch.Generator().manual_seed(0))
    assert smoothness(PICTURES) > 0.6 > SMOOTH > smoothness(noise)
    assert smoothness(0.3 * PICTURES - 2) == pytest.approx(smoothness(PICTURES), abs=1e-4)
    assert smoothness(torch.full((1, 1, 4, 4), torch.nan)) == 0
    assert not doubt(Extraction(PICTURES)) and "looks like noise" in doubt(Extraction(noise))


def test_checksums_count_where_there_are_any() -> None:
    def read(*status: Status) -> Extraction:
        told = np.array(status, np.int8)
        return Extraction(torch.rand(2, 3, 8, 8), Reading(b"", told))

    assert "None of the 2 images' checksums" in doubt(read(Status.LOST, Status.LOST))
    assert not doubt(read(Status.LOST, Status.INTACT))
