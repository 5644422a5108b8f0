"""The diagonal Fisher information against gradients and a closed form."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fl_sim.data.base import MULTI_LABEL, SEGMENTATION, Split, Task
from fl_sim.defenses.loops.fisher import diagonal_fisher
from fl_sim.errors import FlSimError
from fl_sim.models import build_model
from fl_sim.randomness import Stream

TASK = Task("multi-class", ("a", "b", "c"))
STREAM = Stream(0)


def _held_out(count: int = 12, seed: int = 0) -> Split:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)
    return Split(images, generator.integers(0, 3, count))


def test_it_is_the_mean_square_of_every_images_gradient() -> None:
    model, held_out = build_model("cnn", 1, 8, 3).train(), _held_out()
    fisher = diagonal_fisher(model, held_out, TASK, STREAM)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    model.eval()

    def loss(parameters, image, label):
        logits = torch.func.functional_call(model, parameters, (image[None] * 2 - 1,))
        return functional.cross_entropy(logits, label[None])

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    pixels, labels = held_out.tensors()
    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(
        parameters, pixels, labels
    )
    assert fisher.keys() == gradients.keys()
    for name, values in gradients.items():
        torch.testing.assert_close(fisher[name], values.square().mean(0), rtol=1e-4, atol=1e-9)


class _Softmax(nn.Module):
    """Logistic regression on the image's mean, whose Fisher information has a closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.2, 0.1]))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3))[:, None] * self.weight


@pytest.mark.parametrize("per", ["image", "batch"])
def test_labels_drawn_from_the_model_give_the_fisher_information(per: str) -> None:
    model, held_out = _Softmax(), _held_out(4000)
    how = {"labels": "model", "per": per, "batch_size": 4}
    estimate = diagonal_fisher(model, held_out, TASK, STREAM, **how)
    x = (held_out.tensors()[0] * 2 - 1).mean((1, 2, 3))[:, None]
    p = (x * model.weight.detach()).softmax(1)
    exact = (x.square() * p * (1 - p)).mean(0)
    torch.testing.assert_close(estimate["weight"], exact, rtol=0.2, atol=0)
    assert not estimate["unused"].any()


@pytest.mark.parametrize("labels", ["true", "model"])
@pytest.mark.parametrize("kind", [MULTI_LABEL, SEGMENTATION])
def test_other_tasks_have_one_too(kind: str, labels: str) -> None:
    generator = np.random.default_rng(0)
    side, name = (16, "unet") if kind == SEGMENTATION else (8, "cnn")
    images = generator.integers(0, 256, (3, side, side, 1)).astype(np.uint8)
    shape = (3, side, side) if kind == SEGMENTATION else (3, 3)
    held_out = Split(images, generator.integers(0, 2, shape).astype(np.uint8))
    settings = {"channels": (4, 8), "residual_units": 1} if name == "unet" else None
    model = build_model(name, 1, side, 3, settings=settings)
    task = Task(kind, ("a", "b", "c"))
    fisher = diagonal_fisher(model, held_out, task, STREAM, labels=labels)
    assert fisher.keys() == dict(model.named_parameters()).keys()
    assert all((f >= 0).all() and f.isfinite().all() for f in fisher.values())
    assert sum(float(f.sum()) for f in fisher.values()) > 0


def test_no_images_is_one_sentence() -> None:
    with pytest.raises(FlSimError, match="needs held-out images"):
        diagonal_fisher(build_model("cnn", 1, 8, 3), _held_out(0), TASK, STREAM)
