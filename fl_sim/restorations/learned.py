"""Learned restoration: a small network trained on pairs of a rehearsal, after the fixed ones.

It is no part of the registry, since it has to be trained first. What is trained is a restoration
like any other: it is given the recovered batch and public images, never an original.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fl_sim.errors import FlSimError
from fl_sim.image_losses import memory_loss
from fl_sim.progress import SILENT, Progress, piece
from fl_sim.randomness import Stream
from fl_sim.restorations.affine import affine
from fl_sim.restorations.base import check_public, finite
from fl_sim.restorations.spectrum import spectrum
from fl_sim.restorations.statistics import keep_broken

LEARNED = "learned"
STEPS = 400
LEARNING_RATE = 2e-3
FEWEST = 8
_WIDTH = 32
_CROP = 64
_STEP_PIXELS = 1 << 14
_APPLIED_PIXELS = 1 << 18
_CHECKS = 10


class Repair(nn.Module):
    """A residual network from views of a recovered image to the image.

    Four 3x3 convolutions with dilations 1, 2, 4 and 1, so that a pixel is repaired from the 17x17
    around it. Untrained it gives the first view.

    Args:
        channels: of an image.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.layers = nn.ModuleList(
            nn.Conv2d(inputs, _WIDTH, 3, padding=dilation, dilation=dilation)
            for inputs, dilation in ((3 * channels, 1), (_WIDTH, 2), (_WIDTH, 4))
        )
        self.last = nn.Conv2d(_WIDTH, channels, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        """Map :func:`views` ``[n, 3 * channels, height, width]`` to images, unclamped."""
        signal = views * 2 - 1
        for layer in self.layers:
            signal = functional.relu(layer(signal))
        repaired: torch.Tensor = views[:, : self.channels] + self.last(signal)
        return repaired


def views(recovered: torch.Tensor, public: torch.Tensor) -> torch.Tensor:
    """Return what a network is shown of each recovered image.

    Returns:
        float32 ``[n, 3 * channels, height, width]``: the image after the spectral restoration,
        after the affine one, and the public mean; not finite where the image is not.
    """
    mean = public.mean(dim=0, keepdim=True).expand(len(recovered), -1, -1, -1)
    return torch.cat([spectrum(recovered, public), affine(recovered, public), mean], dim=1)


@dataclass(frozen=True)
class Learned:
    """A trained restoration; call it as any other.

    Args:
        network: trained.
    """

    network: Repair

    @torch.no_grad()
    def __call__(self, recovered: torch.Tensor, public: torch.Tensor) -> torch.Tensor:
        """Restore images with the fixed restorations, then with the network; clamped to [0, 1].

        Images with a value that is not finite are returned as they are.

        Raises:
            FlSimError: if there is no public image, or its shape is another one.
        """
        shown = views(recovered, public)
        restored = torch.zeros(recovered.shape, device=recovered.device)
        step = max(1, _APPLIED_PIXELS // recovered[0, 0].numel())
        network = self.network.to(recovered.device)
        for rows in torch.nonzero(finite(shown)).flatten().split(step):
            restored[rows] = network(shown[rows]).clamp(0.0, 1.0)
        return keep_broken(restored, recovered)


def learn(
    recovered: torch.Tensor,
    originals: torch.Tensor,
    public: torch.Tensor,
    stream: Stream,
    progress: Progress = SILENT,
    steps: int = STEPS,
) -> Learned:
    """Train a restoration on pairs that an attacker made himself.

    Every eighth image is kept to choose among the networks that training passes, the untrained one
    included: on those, what is returned is never worse than the spectral restoration. With fewer
    than 8 images, nothing is learned.

    Args:
        recovered: batches ``[d, n, channels, height, width]``, each restored by itself; images
            that are not finite are left out.
        originals: what they should be, ``[n, channels, height, width]`` in [0, 1]: images of the
            attacker's own, never those of the run that is measured.
        public: ``[m, channels, height, width]`` in [0, 1]. The batch is matched to those that are
            not among the originals, as in earnest, if there are such.
        stream: where randomness is derived from.
        progress: where to report.
        steps: optimizer steps; the default takes half a minute of one core.

    Raises:
        FlSimError: if shapes do not fit.
    """
    if recovered.ndim != 5 or recovered.shape[1:] != originals.shape:
        raise FlSimError(
            f"Pairs for a learned restoration must be [d, n, channels, height, width] and "
            f"[n, ...], but their shapes are {list(recovered.shape)} and {list(originals.shape)}."
        )
    check_public(originals, public)
    others = _others(public, originals)
    shown = torch.stack([views(batch, others) for batch in recovered])
    order = torch.from_numpy(stream.numpy("kept images").permutation(len(originals)))
    is_kept = torch.arange(len(order)) % 8 == 0
    training, kept = (_pairs(shown, originals, order[part]) for part in (~is_kept, is_kept))
    with stream.seeded("restoration weights"):
        network = Repair(originals.shape[1])
    if len(originals) >= FEWEST and min(len(training[0]), len(kept[0])) > 0:
        _train(network, training, kept, stream.numpy("restoration batches"), steps, progress)
    return Learned(network)


Pairs = tuple[torch.Tensor, torch.Tensor]


def _others(public: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
    taken = {image.numpy().tobytes() for image in originals.cpu()}
    other = torch.tensor([image.numpy().tobytes() not in taken for image in public.cpu()])
    return public[other] if bool(other.any()) else public


def _pairs(shown: torch.Tensor, originals: torch.Tensor, rows: torch.Tensor) -> Pairs:
    images = shown[:, rows].flatten(0, 1)
    targets = originals[rows].repeat(len(shown), 1, 1, 1)
    good = finite(images)
    return images[good], targets[good]


def _train(
    network: Repair,
    pairs: Pairs,
    kept: Pairs,
    generator: np.random.Generator,
    steps: int,
    progress: Progress,
) -> None:
    """Train in place, and leave the weights that did best on the images kept for it."""
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
    best, weights = _loss_on(network, kept), copy.deepcopy(network.state_dict())
    with piece(progress, "learning to restore", steps):
        for step in range(1, steps + 1):
            images, targets = _batch(pairs, generator)
            optimizer.zero_grad(set_to_none=True)
            loss = _loss(network(images), targets)
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % max(1, steps // _CHECKS) == 0:
                value = _loss_on(network, kept)
                if value < best:
                    best, weights = value, copy.deepcopy(network.state_dict())
            progress.step()
    network.load_state_dict(weights)


def _batch(pairs: Pairs, generator: np.random.Generator) -> Pairs:
    """Draw pairs, cropped where they are large, half of them flipped left to right."""
    images, targets = pairs
    height, width = (min(side, _CROP) for side in images.shape[2:])
    size = min(len(images), max(1, _STEP_PIXELS // (height * width)))
    rows = torch.from_numpy(generator.choice(len(images), size=size, replace=False))
    top, left = (
        int(generator.integers(whole - part + 1))
        for whole, part in zip(images.shape[2:], (height, width), strict=True)
    )
    window = (..., slice(top, top + height), slice(left, left + width))
    flipped = torch.from_numpy(generator.random(size) < 0.5)[:, None, None, None]
    images, targets = (
        torch.where(flipped, part.flip(-1), part)
        for part in (images[rows][window], targets[rows][window])
    )
    return images, targets


def _loss(repaired: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return memory_loss("l1+ssim", repaired, targets)


@torch.no_grad()
def _loss_on(network: Repair, pairs: Pairs) -> float:
    step = max(1, _APPLIED_PIXELS // pairs[0][0, 0].numel())
    total = 0.0
    for images, targets in zip(*(part.split(step) for part in pairs), strict=True):
        total += float(_loss(network(images).clamp(0.0, 1.0), targets)) * len(images)
    return total / len(pairs[0])
