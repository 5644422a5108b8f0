"""Answers to test images, kept in a file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fl_sim.data.base import Task
from fl_sim.errors import FlSimError
from fl_sim.metrics.answers import answers, read_answers, write_answers
from fl_sim.metrics.utility import utility

CLASSES = Task("multi-class", ("a", "b", "c"))


def test_answers_come_back_and_give_the_same_utility(tmp_path: Path) -> None:
    scores = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    scores[3, 1] = torch.nan
    labels = torch.arange(20) % 3
    kept = read_answers(write_answers(tmp_path / "a" / "x.npz", answers(scores, labels, CLASSES)))
    again = utility(torch.tensor(kept.scores), torch.tensor(kept.labels), CLASSES)
    assert again == utility(scores, labels, CLASSES) and not kept.is_dice


def test_of_a_segmentation_the_dice_of_each_volume_is_kept(tmp_path: Path) -> None:
    masks = torch.zeros(4, 8, 8, dtype=torch.int64)
    masks[:, :4] = 1
    said = masks.clone()
    said[0] = 0
    task = Task("segmentation", ("background", "organ"))
    patients = np.array(["p", "p", "q", "q"])
    kept = read_answers(write_answers(tmp_path / "x.npz", answers(said, masks, task, patients)))
    assert kept.is_dice and kept.scores.shape == (2, 1)
    assert float(kept.scores.mean()) == pytest.approx(utility(said, masks, task, patients)["dice"])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not an archive" * 9])
def test_what_is_no_file_of_answers_is_refused_in_a_sentence(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(FlSimError, match="There is no file"):
        read_answers(path)
    path.write_bytes(content)
    with pytest.raises(FlSimError, match="does not hold a model's answers"):
        read_answers(path)


def test_arrays_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for scores, labels in (
        (np.zeros((3, 2)), np.zeros(3, dtype=np.int64)),
        (np.zeros((3, 2), dtype=np.float32), np.zeros(2, dtype=np.int64)),
        (np.zeros((0, 2), dtype=np.float32), np.zeros(0, dtype=np.int64)),
        (np.array([{}], dtype=object), np.zeros(1, dtype=np.int64)),
    ):
        np.savez(path, scores=scores, labels=labels)
        with pytest.raises(FlSimError, match="does not hold a model's answers"):
            read_answers(path)
