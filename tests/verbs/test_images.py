"""Images and labels as people have them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fl_sim.data.base import MULTI_LABEL, SEGMENTATION
from fl_sim.errors import FlSimError
from fl_sim.verbs.images import is_labelled, split_of, task_of
from tests.verbs.verb_kit import FEW, labels, pixels


def _forms() -> dict[str, tuple[Any, Any]]:
    images, own = pixels(), labels()
    whole = TensorDataset(images, own)
    medmnist = SimpleNamespace(imgs=FEW.images, labels=FEW.labels[:, None])
    return {
        "float tensor": (images, own),
        "uint8 array, channels last": (FEW.images, FEW.labels),
        "uint8 tensor, channels first": ((images * 255).round().to(torch.uint8), own[:, None]),
        "dataset": (whole, None),
        "loader": (DataLoader(whole, batch_size=7), None),
        "medmnist": (medmnist, None),
        "list of tensors": (list(images), own),
        "split": (FEW, None),
    }


@pytest.mark.parametrize("form", _forms())
def test_every_form_gives_the_same_images_and_labels(form: str) -> None:
    found = split_of(*_forms()[form])
    assert np.array_equal(found.images, FEW.images)
    assert np.array_equal(found.labels, FEW.labels) and found.labels.ndim == 1


def test_grey_images_without_a_channel_axis() -> None:
    assert split_of(torch.rand(3, 8, 8)).images.shape == (3, 8, 8, 1)


@pytest.mark.parametrize(
    ("images", "own", "said"),
    [
        (torch.randn(2, 3, 8, 8), None, "give pixels between 0 and 1"),
        (torch.full((2, 3, 8, 8), torch.nan), None, "give pixels between 0 and 1"),
        (torch.rand(2, 3, 8, 9), None, "8 x 9 pixels; give square ones"),
        (torch.rand(2, 4, 8, 8), None, r"\[2, 4, 8, 8\].*1 or 3 channels"),
        (torch.rand(0, 3, 8, 8), None, "one image or more"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), None, "type int64"),
        (torch.rand(2, 3, 8, 8), torch.zeros(3), "there are 2 images"),
        (torch.rand(2, 3, 8, 8), torch.tensor([0.5, 1]), "whole numbers"),
        (torch.rand(2, 3, 8, 8), torch.tensor([[0, 2], [1, 0]]), "zeros and ones"),
        (7, None, "give a tensor or array"),
        ([1, 2], None, "pairs of image and label"),
    ],
)
def test_what_is_no_image_is_told(images: Any, own: Any, said: str) -> None:
    with pytest.raises(FlSimError, match=said):
        split_of(images, own)


def test_tasks_are_read_off_the_labels() -> None:
    images = torch.rand(4, 1, 8, 8)
    assert task_of(split_of(images, [0, 1, 1, 0]), 2, False).kind == "binary-class"
    assert task_of(split_of(images, [0, 1, 2, 0]), 5, False).kind == "multi-class"
    columns = torch.eye(4, 3)
    assert task_of(split_of(images, columns), 3, False).kind == MULTI_LABEL
    masks = torch.zeros(4, 8, 8, dtype=torch.int64)
    assert task_of(split_of(images, masks), 3, True).kind == SEGMENTATION
    with pytest.raises(FlSimError, match="3 columns"):
        task_of(split_of(images, columns), 4, False)
    with pytest.raises(FlSimError, match="masks"):
        task_of(split_of(images, [0, 1, 2, 0]), 3, True)
    assert not is_labelled(split_of(images)) and is_labelled(split_of(images, [0, 0, 0, 0]))
