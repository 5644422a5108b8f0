"""Heads trained with differential privacy: an owner's, and shadow heads of who knows that.

Full-batch DP-SGD (Abadi et al. 2016): each image's gradient is clipped, and Gaussian noise is
added to their sum in every step. Noise leaves the span of a set's features, which shadow heads are
trained in. But only its part within the span ever meets a feature: there it is drawn step by step,
as coefficients. What lies outside is a sum of independent Gaussian numbers, which one draw stands
for. Shadow heads are thus distributed exactly as heads that are trained so.
"""

from dataclasses import dataclass

import torch

from fl_sim.data.base import Task
from fl_sim.errors import FlSimError
from fl_sim.privacy import DpSettings, PrivateGradients, noise_for, spent_epsilon
from fl_sim.randomness import Stream
from fl_sim.reconstruction.draws import normals
from fl_sim.sealing.heads import HeadSettings, Linear, head_logits, initial_head

EXPONENT = -1.1
"""A promise's delta is the number of images to this power, as in Allison et al. 2025."""


@dataclass(frozen=True)
class Private:
    """Clipping and noise.

    Args:
        noise_multiplier: deviation of the noise on the sum of gradients, in units of ``clip``.
        clip: L2 norm that an image's gradient is clipped to.
    """

    noise_multiplier: float
    clip: float


def private_of(dp: DpSettings, settings: HeadSettings) -> Private:
    """Return the noise that full-batch training of a head takes.

    Raises:
        FlSimError: if no noise reaches the epsilon that is asked for.
    """
    noise = dp.noise_multiplier or noise_for(
        float(dp.target_epsilon or 0), dp.delta, 1.0, settings.epochs
    )
    return Private(noise, dp.max_grad_norm)


def epsilon_of(dp: DpSettings, settings: HeadSettings) -> float:
    """Return what full-batch training of a head spends, at the settings' delta."""
    private = private_of(dp, settings)
    return spent_epsilon(private.noise_multiplier, 1.0, settings.epochs, dp.delta)


def train_private_head(
    features: torch.Tensor,
    labels: torch.Tensor,
    task: Task,
    settings: HeadSettings,
    dp: DpSettings,
    stream: Stream,
    bias: bool = True,
) -> Linear:
    """Train a linear head as its owner does with DP-SGD, on all images in each step.

    Args:
        features: ``[n, D]``.
        labels: of the task.
        task: whose loss is minimised.
        settings: how.
        dp: noise, or the epsilon that it is chosen for.
        stream: where initial weights and noise are drawn from.
        bias: whether it has biases.

    Raises:
        FlSimError: if its weights are no numbers any more.
    """
    head = initial_head([features.shape[1], task.outputs], settings.init_std, stream, bias)
    layer = head[0]
    parameters = [torch.nn.Parameter(layer.weight.detach())]
    if layer.bias is not None:
        parameters.append(torch.nn.Parameter(layer.bias.detach()))
    trained = Linear(parameters[0], parameters[1] if bias else None)
    gradients = PrivateGradients(
        parameters,
        dp,
        len(features),
        len(features),
        settings.epochs,
        stream.torch_generator("private noise"),
    )
    optimizer = torch.optim.SGD(
        parameters, settings.learning_rate, weight_decay=settings.weight_decay
    )

    def loss_of(image: int) -> torch.Tensor:
        own = slice(image, image + 1)
        return task.loss(head_logits((trained,), features[own]), labels[own])

    for _ in range(settings.epochs):
        gradients.fill(range(len(features)), loss_of)
        optimizer.step()
    if not all(bool(parameter.isfinite().all()) for parameter in parameters):
        raise FlSimError(
            f"The private head's weights are no numbers any more; lower learning_rate "
            f"({settings.learning_rate:g})."
        )
    return Linear(parameters[0].detach(), parameters[1].detach() if bias else None)


def noise_left(settings: HeadSettings, private: Private, images: int) -> float:
    """Return the deviation of all steps' noise at the end of training, in any one direction.

    Args:
        settings: how heads are trained.
        private: clipping and noise.
        images: in a set.
    """
    keep = 1 - settings.learning_rate * settings.weight_decay
    squares = sum(keep ** (2 * step) for step in range(settings.epochs))
    step_noise = settings.learning_rate * private.noise_multiplier * private.clip / images
    return float(step_noise * squares**0.5)


def descend_privately(
    own: torch.Tensor,
    initial: torch.Tensor,
    target: torch.Tensor,
    settings: HeadSettings,
    private: Private,
    outside: torch.Tensor,
    heads: range,
    seed: int,
) -> torch.Tensor:
    """Return coefficients ``[heads, N, classes]`` of heads that are trained privately.

    The noise of all steps is ``own^T coefficients`` within the span; ``outside``, times
    :func:`noise_left`, is added to the weights whole, so its part within the span is taken off
    here.

    Args:
        own: ``[heads, N, D + 1]``, features of each head's images.
        initial: ``[heads, classes, D + 1]``.
        target: ``[N, classes]``, one-hot.
        settings: how.
        private: clipping and noise.
        outside: ``[heads, classes, D + 1]``, standard normal.
        heads: their numbers.
        seed: what noise is drawn from.
    """
    own, initial, outside = own.double(), initial.double(), outside.double()
    images, classes = own.shape[1], target.shape[1]
    keep = 1 - settings.learning_rate * settings.weight_decay
    rate = settings.learning_rate / images
    products = torch.bmm(own, own.transpose(1, 2))
    root = _root(products)
    logits = torch.bmm(own, initial.transpose(1, 2))
    sizes = products.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()[:, :, None]
    within = torch.zeros(len(heads), images, classes, dtype=torch.float64)
    scale, remaining = private.noise_multiplier * private.clip, 1.0
    drawn = torch.from_numpy(normals(heads, (settings.epochs, images, classes), seed, 2))
    for step in range(settings.epochs):
        answers = torch.baddbmm(logits, products, within, beta=remaining)
        wrong = torch.softmax(answers, dim=2) - target
        norms = wrong.norm(dim=2, keepdim=True) * sizes
        wrong *= (private.clip / norms.clamp_min(1e-30)).clamp_max(1.0)
        # Coefficients of covariance (own own^T)^-1: their sum of features is white in the span.
        step_noise = drawn[:, step].double()
        noise = torch.linalg.solve_triangular(root.transpose(1, 2), step_noise, upper=True)
        within = keep * within - rate * (wrong + scale * noise)
        remaining *= keep
    aside = torch.cholesky_solve(torch.bmm(own, outside.transpose(1, 2)), root)
    return (within - noise_left(settings, private, images) * aside).float()


def _root(products: torch.Tensor) -> torch.Tensor:
    """Return Cholesky's root; images that are all but combinations of others get a little more."""
    sizes = products.diagonal(dim1=1, dim2=2).mean(dim=1)
    more = 1e-9 * torch.eye(products.shape[1], dtype=torch.float64)
    return torch.linalg.cholesky(products + sizes[:, None, None] * more)
