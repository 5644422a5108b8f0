"""Asking the network itself: does it answer what only a network that memorised would answer?

The Transpose attack's index codes and the memory backdoor's triggers are public; whoever audits can
use them. A secret code or trigger of another kind is not found this way.
"""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from fl_sim.artifact import Key
from fl_sim.attacks.memory_backdoor import patch_shape, triggers_of
from fl_sim.attacks.transpose import scaled, transposed_pass
from fl_sim.attacks.transpose.codes import index_codes
from fl_sim.auditing.subject import Subject, Unchecked
from fl_sim.checkpoints import Finding
from fl_sim.errors import FlSimError
from fl_sim.models.base import ModelSpec
from fl_sim.training import normalized

PIXELS = 0.7
"""Share of the transposed pass's values that must be pixels, in [-0.1, 1.1], to count as images. Of
clean networks it was at most 0.31, of attacked ones at least 0.97."""

SMOOTHER = 0.75
"""Roughness must be below this share of that of the same network with its weights shuffled (clean
networks 0.5 to 1.0, attacked ones 0.3 to 0.55): the two together tell images."""

ANSWERED_PIXELS = 0.9
ANSWERED_ROUGHNESS = 0.8
"""The same for answers to triggers. Clean networks whose answers could all be pixels had 1.0 to
1.4, and others pixel shares under 0.8; attacked ones had 1.0 and 0.26 to 0.67."""

ANSWERED_BY_QUERY = 0.5
"""Share of the answers' deviation within images that must come from which patch is asked for.
Networks that have hardly been trained answer about the same to every trigger, which looks smooth:
theirs was at most 0.28."""

_CODES_A_CLASS = 4
_MOST_CLASSES = 16
_QUERIES_AT_ONCE = 256
Probed = dict[str, float]


def check_transpose(subject: Subject) -> list[Finding]:
    """Feed index codes to the transposed pass; see :func:`transpose_probe`."""
    return _probed(
        subject,
        "transpose probe",
        transpose_probe,
        lambda found: (
            found["pixels"] >= PIXELS
            and found["roughness"] <= SMOOTHER * found["roughness, shuffled"]
        ),
        "Run backwards on the Transpose attack's index codes, it gives images.",
    )


def check_memory_backdoor(subject: Subject) -> list[Finding]:
    """Ask with the memory backdoor's triggers; see :func:`backdoor_probe`."""
    return _probed(
        subject,
        "memory backdoor probe",
        backdoor_probe,
        lambda found: (
            found["pixels"] >= ANSWERED_PIXELS
            and found["roughness"] <= ANSWERED_ROUGHNESS
            and found["by query"] >= ANSWERED_BY_QUERY
        ),
        "Asked with the memory backdoor's triggers, it answers with images.",
    )


@torch.no_grad()
def transpose_probe(model: nn.Module, spec: ModelSpec) -> Probed:
    """Return how image-like the transposed pass of index codes is.

    Four codes a class (Amit, Levy and Mirsky, NDSS 2024). A network that never trained backwards
    gives values of any size, and noise as rough as with its weights shuffled.

    Raises:
        FlSimError: if the network cannot be run backwards.
    """
    labels = np.repeat(np.arange(min(spec.classes, _MOST_CLASSES)), _CODES_A_CLASS)
    codes = scaled(index_codes(labels, spec.classes))
    images = transposed_pass(model, spec)(codes)
    shuffled = transposed_pass(_shuffled(model), spec)(codes)
    return {
        "pixels": pixel_share(images),
        "roughness": roughness(images),
        "roughness, shuffled": roughness(shuffled),
    }


@torch.no_grad()
def backdoor_probe(model: nn.Module, spec: ModelSpec) -> Probed:
    """Return how image-like the answers are to the triggers of each class's first image.

    Luzon et al., NDSS 2026; a class's first image is what an attacker memorises before any other.

    Raises:
        FlSimError: if triggers do not fit into the network's images.
    """
    classes = torch.eye(spec.classes, dtype=torch.uint8)[:_MOST_CLASSES]
    numbers = torch.zeros(len(classes), dtype=torch.int64)
    patch = patch_shape(spec.classes, spec.size, "fewest")
    key = Key("memory_backdoor", {"classes": classes, "numbers": numbers}, {"patch": list(patch)})
    triggers = triggers_of(key, spec)
    pixels = patch[0] * patch[1]
    answers = [
        model(normalized(triggers.batch(which)))[:, :pixels]
        for which in torch.arange(len(triggers)).split(_QUERIES_AT_ONCE)
    ]
    answered = torch.cat(answers)
    images = triggers.assemble(answered)
    within = images.double().std(dim=(1, 2, 3)).mean().clamp(min=1e-12)
    by_query = answered.double().view(len(classes), -1, pixels).std(dim=1).mean()
    return {
        "pixels": pixel_share(images),
        "roughness": roughness(images),
        "by query": float(by_query / within),
    }


def pixel_share(images: torch.Tensor) -> float:
    """Return the share of values that could be pixels: from -0.1 to 1.1."""
    return float(((images > -0.1) & (images < 1.1)).double().mean())


def roughness(images: torch.Tensor) -> float:
    """Return the mean step between neighbouring pixels over the deviation within images.

    White noise has 1.13 (``2 / sqrt(pi)``), whatever its size; photographs about 0.2 to 0.6.
    """
    values = images.double()
    across = (values[..., 1:] - values[..., :-1]).abs().mean()
    down = (values[..., 1:, :] - values[..., :-1, :]).abs().mean()
    return float((across + down) / 2 / values.std(dim=(1, 2, 3)).mean().clamp(min=1e-12))


def _probed(
    subject: Subject,
    name: str,
    probe: Callable[[nn.Module, ModelSpec], Probed],
    shows_images: Callable[[Probed], bool],
    what: str,
) -> list[Finding]:
    _, spec = subject.known_with_size()
    if not subject.fits:
        raise Unchecked("the file has not every entry of the network in its shape")
    if spec.task != "classification":
        raise Unchecked(f"it asks classifiers, and the network is for {spec.task}")
    try:
        found = probe(subject.model(), spec)
    except FlSimError as error:
        raise Unchecked(f"the network cannot be probed in this way ({error})") from None
    return [Finding(name, "carries", what, None, found)] if shows_images(found) else []


def _shuffled(model: nn.Module) -> nn.Module:
    """Return a copy with the weights of each tensor in another order."""
    generator = torch.Generator().manual_seed(0)
    result = copy.deepcopy(model)
    for parameter in result.parameters():
        if parameter.dim() >= 2:
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return result
