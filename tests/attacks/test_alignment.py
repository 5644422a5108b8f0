"""Code alignment: codes whose images fit public ones best, found without an original."""

import inspect

import torch

from fl_sim.artifact import Artifact, Key
from fl_sim.attacks.base import Attack
from fl_sim.attacks.transpose import Transpose, scaled
from fl_sim.attacks.transpose.alignment import align, misfit
from fl_sim.attacks.transpose.codes import base_for, index_codes
from fl_sim.metrics.leakage import ssim
from fl_sim.models import build_model, state_of
from fl_sim.models.base import ModelSpec
from fl_sim.restorations.affine import affine
from fl_sim.restorations.spectrum import principal_components

LABELS = torch.arange(60) % 5
CODES = index_codes(LABELS.numpy(), 5)
BASE = base_for(LABELS.numpy(), 5)


def images(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 1, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=16, mode="bilinear")


class Memory:
    """Stands for a network: gives an image for its code, the noisier the further the code is off.

    Args:
        originals: one for each of ``CODES``.
        weight: of the class part, in the codes that it has memorised.
    """

    def __init__(self, originals: torch.Tensor, weight: float) -> None:
        classes = torch.where(CODES >= BASE, float(BASE), 0.0)
        self._codes = (CODES - classes + weight * classes) / CODES.max()
        self._originals = originals
        generator = torch.Generator().manual_seed(4)
        self._noise = torch.randn(originals.shape, generator=generator)

    def __call__(self, codes: torch.Tensor) -> torch.Tensor:
        off = (codes - self._codes).norm(dim=1)[:, None, None, None]
        return 0.1 * (self._originals + off * self._noise) + 0.7


def score(memory: Memory, codes: torch.Tensor, originals: torch.Tensor) -> float:
    return float(ssim(affine(memory(codes), images(200, 1)), originals).mean())


def test_codes_that_a_model_reads_in_other_proportions_are_found() -> None:
    originals, public = images(60, 0), images(200, 1)
    memory = Memory(originals, weight=1.5)
    found = align(memory, CODES, BASE, public)
    assert found.shape == CODES.shape
    before = score(memory, scaled(CODES), originals)
    assert score(memory, found, originals) > before + 0.1
    assert torch.equal(found, align(memory, CODES, BASE, public))


def test_codes_that_are_right_stay_as_they_are() -> None:
    originals, public = images(60, 0), images(200, 1)
    found = align(Memory(originals, weight=1.0), CODES, BASE, public)
    torch.testing.assert_close(found, scaled(CODES))


def test_the_misfit_sees_noise_but_not_what_is_common_to_all_images() -> None:
    public = images(200, 1)
    basis = principal_components(public)
    clean = images(60, 0)
    noise = torch.randn(60, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    value = misfit(clean, public, basis)
    assert abs(misfit(0.1 * clean + 5 * images(1, 3)[0], public, basis) - value) < 0.01 * value
    assert misfit(clean.mean(0) + noise, public, basis) > 2 * value
    assert misfit(torch.full_like(clean, torch.nan), public, basis) == float("inf")


def test_transpose_offers_the_aligned_extraction_and_other_attacks_none() -> None:
    model = build_model("mlp", 1, 16, 5)
    artifact = Artifact(ModelSpec(name="mlp", channels=1, size=16, classes=5), state_of(model))
    public = images(30, 1)
    key = Key("transpose", {"codes": CODES}, {"variant": "full", "base": BASE})
    offered = Transpose.variants(artifact, key, public)
    assert list(offered) == ["aligned"]
    found, plain = offered["aligned"]().images, Transpose.extract(artifact, key).images
    assert found.shape == plain.shape == (60, 1, 16, 16)
    assert Attack.variants(artifact, key, public) == {}
    assert Transpose.variants(artifact, Key("transpose", key.tensors), public) == {}
    assert list(inspect.signature(Transpose.variants).parameters) == ["artifact", "key", "public"]
