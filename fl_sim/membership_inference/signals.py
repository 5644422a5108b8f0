"""What a membership attack sees of a model's answer to an image: one number, its log-odds.

``log(p / (1 - p))`` of the probability ``p`` that the model gives to the image's true label: over
models it is nearly normally distributed (Carlini et al., "Membership Inference Attacks From First
Principles", S&P 2022). RMIA takes ``p`` itself, which the log-odds tell, too.

- One label: ``p`` is the softmax probability of the true class.
- Several labels: the joint probability of all of them as they are, the product over labels.
- A segmentation: the geometric mean, over the pixels, of the probability of each one's true class,
  ``exp(-cross entropy)``: the product of thousands of pixels would leave nothing else to see.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_sim.data.base import Split, Task
from fl_sim.errors import FlSimError
from fl_sim.training import PREDICTED_PIXELS, normalized

Floats = NDArray[np.float64]

MOST = 700.0
"""Log-odds beyond it are not told apart from certainty: ``exp`` of a double ends there."""
_LEAST = 1e-12
_AT_ONCE = 256


def log_odds(logits: torch.Tensor, labels: torch.Tensor, task: Task) -> Floats:
    """Return the log-odds of the true labels, in double precision.

    Args:
        logits: ``[n, outputs]``, or ``[n, classes, height, width]`` for a segmentation.
        labels: ``[n]``, ``[n, outputs]`` zeros and ones, or masks ``[n, height, width]``.
        task: what they mean.

    Returns:
        ``[n]``, from ``-MOST`` to ``MOST``; 0 where an answer is not finite, which tells nothing.

    Raises:
        FlSimError: if there are not as many answers as labels.
    """
    if len(logits) != len(labels):
        raise FlSimError(
            f"There are {len(logits)} answers and {len(labels)} labels; give one of each an image."
        )
    values, truth = logits.detach().cpu().double(), labels.detach().cpu().long()
    if task.multi_label:
        signs = truth.double() * 2 - 1
        found = _odds(torch.nn.functional.logsigmoid(signs * values).sum(dim=1))
    elif task.is_segmentation:
        likely = values.log_softmax(dim=1).gather(1, truth[:, None])
        found = _odds(likely.flatten(1).mean(dim=1))
    else:
        chosen = values.gather(1, truth[:, None])[:, 0]
        others = values.scatter(1, truth[:, None], -torch.inf)
        found = chosen - others.logsumexp(dim=1)
    finite = values.flatten(1).isfinite().all(dim=1)
    settled = torch.where(finite, found.clamp(-MOST, MOST), torch.zeros_like(found))
    result: Floats = settled.numpy()
    return result


def log_odds_of_probabilities(scores: torch.Tensor, labels: torch.Tensor, task: Task) -> Floats:
    """Return the log-odds where a model tells probabilities instead of logits.

    Args:
        scores: as the model tells them, in [0, 1]; see :meth:`fl_sim.data.base.Task.scores`. They
            are taken for at least 1e-12 away from 0 and 1.
        labels, task: as of :func:`log_odds`.

    Returns:
        ``[n]``; see :func:`log_odds`.

    Raises:
        FlSimError: if they are no probabilities, or not as many as labels.
    """
    values = scores.detach().cpu().double()
    finite = values[values.isfinite()]
    if len(finite) and (float(finite.min()) < 0 or float(finite.max()) > 1):
        raise FlSimError(
            f"Probabilities lie between 0 and 1, and these go from {float(finite.min()):.3g} to "
            f"{float(finite.max()):.3g}; give logits to log_odds."
        )
    inside = values.clamp(_LEAST, 1 - _LEAST)
    # NaN goes through a clamp, and stays no answer.
    return log_odds(inside.logit() if task.multi_label else inside.log(), labels, task)


def log_probability(odds: Floats) -> Floats:
    """Return the logarithm of the probability that log-odds stand for, at most 0."""
    return np.asarray(-np.logaddexp(0.0, -odds), dtype=np.float64)


def _odds(log_p: torch.Tensor) -> torch.Tensor:
    """Return ``log(p / (1 - p))`` from ``log(p)``."""
    below = log_p.clamp(max=-1e-300)
    return below - torch.log(-torch.expm1(below))


@torch.no_grad()
def ask(model: nn.Module, split: Split, task: Task) -> Floats:
    """Ask a network about images, in evaluation mode, and return the log-odds of their labels.

    Args:
        model: called with pixels in [-1, 1].
        split: images with labels.
        task: theirs.

    Returns:
        ``[n]``; see :func:`log_odds`.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    at_once = _AT_ONCE
    if task.is_segmentation:
        pixels_an_image = split.images.shape[1] * split.images.shape[2]
        at_once = min(at_once, max(1, PREDICTED_PIXELS // pixels_an_image))
    parts = [np.zeros(0)]
    for first in range(0, len(split), at_once):
        pixels, labels = split.batch(slice(first, first + at_once))
        parts.append(log_odds(model(normalized(pixels.to(device))), labels, task))
    model.train(was_training)
    return np.concatenate(parts)
