"""The diagonal of the Fisher information: how much each weight matters to the task.

Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017, use it for
elastic weight consolidation; Kunstner, Balles and Hennig, "Limitations of the empirical Fisher
approximation", NeurIPS 2019, tell the two kinds of labels apart.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from fl_sim.data.base import Split, Task
from fl_sim.errors import FlSimError
from fl_sim.progress import SILENT, Progress, piece
from fl_sim.randomness import Stream
from fl_sim.training import normalized

FisherLabels = Literal["true", "model"]
FisherGradients = Literal["image", "batch"]


def diagonal_fisher(
    model: nn.Module,
    held_out: Split,
    task: Task,
    stream: Stream,
    *,
    batch_size: int = 32,
    labels: FisherLabels = "true",
    per: FisherGradients = "image",
    progress: Progress = SILENT,
) -> dict[str, torch.Tensor]:
    """Return the mean over images of the squared gradient of the task loss, weight by weight.

    The network is in evaluation mode throughout, so that batch normalisation uses its running
    statistics and one image's gradient does not depend on the others; its mode is restored.

    Args:
        model: the network; its weights and gradients are left as they are.
        held_out: images and labels, taken in order.
        task: gives the loss.
        stream: where the model's labels are drawn from.
        batch_size: images at once with ``per = "batch"``.
        labels: ``"true"`` for the empirical Fisher, ``"model"`` for labels drawn from the network's
            own answers, which give an unbiased estimate of the Fisher information itself.
        per: ``"image"`` squares each image's gradient; ``"batch"`` squares the gradient of a
            batch's mean loss and multiplies it by the batch's size. In expectation that is the same
            where the mean gradient is zero, as it is for the model's labels and near a minimum, and
            several times faster.
        progress: told after each gradient.

    Returns:
        By name, for every parameter that is trained: a tensor of its shape, on its device,
        non-negative; zero where the loss does not depend on it.

    Raises:
        FlSimError: if there are no images, or a gradient is not finite.
    """
    if len(held_out) == 0:
        raise FlSimError("The Fisher information needs held-out images; raise [data] images.")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    fisher = {name: torch.zeros_like(p) for name, p in trained.items()}
    generator = stream.torch_generator("fisher labels")
    size = 1 if per == "image" else batch_size
    batches = [slice(first, first + size) for first in range(0, len(held_out), size)]
    with evaluating(model), piece(progress, "Fisher information", len(batches)):
        for batch in batches:
            count = len(range(*batch.indices(len(held_out))))
            loss = _loss(model, held_out, batch, task, labels, generator)
            gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            for name, gradient in zip(trained, gradients, strict=True):
                if gradient is not None:
                    # A batch of n counts n times: once for each image, and n for its mean's square.
                    fisher[name].addcmul_(gradient, gradient, value=count**2 / len(held_out))
            progress.step()
    for name, values in fisher.items():
        if not bool(values.isfinite().all()):
            raise FlSimError(
                f"The Fisher information of '{name}' is not finite; the model's answers on the "
                f"held-out images are too far from their labels."
            )
    return fisher


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network and every module in it into evaluation mode within the block."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _loss(
    model: nn.Module,
    held_out: Split,
    batch: slice,
    task: Task,
    labels: FisherLabels,
    generator: torch.Generator,
) -> torch.Tensor:
    device = next(model.parameters()).device
    pixels, targets = held_out.batch(batch)
    logits = model(normalized(pixels.to(device)))
    if labels == "model":
        targets = _drawn(task.scores(logits.detach()).cpu(), task, generator)
    return task.loss(logits, targets.to(device))


def _drawn(scores: torch.Tensor, task: Task, generator: torch.Generator) -> torch.Tensor:
    """Draw labels with the probabilities that the network gives them."""
    if task.multi_label:
        return torch.bernoulli(scores, generator=generator).long()
    classes = scores.movedim(1, -1)
    drawn = torch.multinomial(classes.reshape(-1, classes.shape[-1]), 1, generator=generator)
    return drawn.reshape(classes.shape[:-1])
