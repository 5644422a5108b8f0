"""Shadow heads on disk: the same, known by what made them, and refused where they are others."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fl_sim.errors import FlSimError
from fl_sim.randomness import Stream
from fl_sim.reconstruction import kept as module
from fl_sim.reconstruction.draws import initial_heads
from fl_sim.reconstruction.sets import balanced_sets, labels_of_sets
from fl_sim.reconstruction.shadows import Shadows, train_shadows, with_ones
from fl_sim.sealing.heads import HeadSettings
from tests.reconstruction.heads_kit import CLASSES, images

SETTINGS = HeadSettings(epochs=5, learning_rate=0.1)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 4 * 2 * CLASSES * (CLASSES + 1))  # four heads


def _shadows(kept=None, heads: int = 11, epochs: int = 5, seed: int = 4) -> Shadows:
    features, _, labels = images(60, seed=0)
    rows = balanced_sets(labels, CLASSES, heads, 2, Stream(seed))
    settings = SETTINGS.model_copy(update={"epochs": epochs})
    own = labels_of_sets(CLASSES, 2)
    return train_shadows(
        with_ones(features), own, rows, CLASSES, settings, Stream(seed), kept=kept, size=3
    )


def test_heads_from_disk_are_those_in_memory(tmp_path) -> None:
    expected, made, read = _shadows(), _shadows(tmp_path), _shadows(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    for shadows in (made, read):
        assert isinstance(shadows.coefficients, module.Blocks)
        for first, last in ((0, 11), (3, 5), (4, 8), (10, 11)):
            own, other = shadows.weights(first, last), expected.weights(first, last)
            torch.testing.assert_close(own, other, atol=1e-7, rtol=1e-6)


def test_what_is_there_is_not_trained_again(tmp_path, monkeypatch) -> None:
    _shadows(tmp_path)
    last = sorted(tmp_path.glob("*"))[-1]
    last.unlink()
    trained: list[int] = []

    def noted(heads, *rest):
        trained.extend(heads)
        return initial_heads(heads, *rest)

    monkeypatch.setattr("fl_sim.reconstruction.shadows.initial_heads", noted)
    _shadows(tmp_path)
    assert trained == [8, 9, 10] and last.exists()


def test_other_settings_and_seeds_have_files_of_their_own(tmp_path) -> None:
    _shadows(tmp_path)
    _shadows(tmp_path, epochs=6)
    _shadows(tmp_path, seed=5)
    assert len(list(tmp_path.glob("*.safetensors"))) == 9


@pytest.mark.parametrize("what", ["header", "rows", "shape", "numbers", "type"])
def test_blocks_of_other_heads_are_refused_and_trained_again(tmp_path, what: str) -> None:
    shadows = _shadows(tmp_path)
    expected = shadows.weights(0, 11)
    assert isinstance(shadows.coefficients, module.Blocks)
    path = sorted(tmp_path.glob("*"))[0]
    tensors, header = load_file(path), {"fl_sim.shadows": shadows.coefficients.identity}
    if what == "header":
        header = {"fl_sim.shadows": "0" * 64}
    elif what == "rows":
        tensors["rows"] = tensors["rows"].flip(0)
    elif what == "shape":
        tensors["coefficients"] = tensors["coefficients"].repeat(50, 1, 1)
    elif what == "numbers":
        tensors["coefficients"][0, 0, 0] = np.nan
    else:
        tensors["coefficients"] = tensors["coefficients"].double()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, header)
    with pytest.raises(FlSimError, match="are not those that are asked for; remove the file"):
        shadows.weights(0, 11)
    torch.testing.assert_close(_shadows(tmp_path).weights(0, 11), expected)


def test_a_damaged_block_is_refused_in_words(tmp_path) -> None:
    shadows = _shadows(tmp_path)
    sorted(tmp_path.glob("*"))[1].write_bytes(b"nothing")
    with pytest.raises(FlSimError, match=r"cannot be read: .*; remove the file"):
        shadows.weights(4, 5)
