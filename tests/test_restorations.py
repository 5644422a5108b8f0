"""Restorations: what they undo, and what they must survive."""

import inspect

import pytest
import torch

from fl_sim.errors import FlSimError
from fl_sim.metrics.leakage import identification, ssim
from fl_sim.randomness import Stream
from fl_sim.restorations.base import RESTORATIONS, Restoration, choose, extractions, typical
from fl_sim.restorations.learned import Learned, learn

ALL = sorted(choose())
RAMP = torch.linspace(0.05, 0.4, 784).reshape(28, 28)


def images(n: int, seed: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=28, mode="bilinear")


def affine(recovered: torch.Tensor, public: torch.Tensor) -> torch.Tensor:
    return RESTORATIONS.get("affine")(recovered, public)


def test_extractions_are_raw_and_every_restoration() -> None:
    recovered, public = images(4, 0), images(6, 1)
    found = dict(extractions(recovered, public))
    assert list(found) == ["raw", *RESTORATIONS.names()]
    assert {"affine", "affine_channel", "affine_global", "affine_robust"} <= set(found)
    assert found["raw"] is recovered


def test_restorations_can_be_chosen_and_applied_to_variants() -> None:
    recovered, public, aligned = images(4, 0), images(6, 1), images(4, 2)
    found = dict(extractions(recovered, public, choose(["affine"]), {"aligned": aligned}))
    assert list(found) == ["raw", "affine", "aligned", "aligned+affine"]
    assert found["aligned"] is aligned
    assert torch.equal(found["aligned+affine"], affine(aligned, public))
    with pytest.raises(FlSimError, match="affine_robust"):
        choose(["afine_robust"])


@pytest.mark.parametrize("name", ALL)
def test_a_restoration_is_given_the_batch_and_public_images_and_nothing_else(name: str) -> None:
    restore = RESTORATIONS.get(name)
    assert list(inspect.signature(restore).parameters) == ["recovered", "public"]
    recovered, public = 2 * images(9, 0) - 0.3, images(30, 1)
    copies = recovered.clone(), public.clone()
    once, again = restore(recovered, public), restore(recovered, public)
    assert torch.equal(once, again)
    assert torch.equal(recovered, copies[0]) and torch.equal(public, copies[1])
    assert once.dtype == torch.float32 and once.shape == recovered.shape
    assert float(once.min()) >= 0 and float(once.max()) <= 1


@pytest.mark.parametrize("name", ALL)
def test_broken_images_stay_broken_and_do_not_break_the_others(name: str) -> None:
    restore, public = RESTORATIONS.get(name), images(150, 1)
    recovered = images(40, 0)
    recovered[0, 1, 3, 3] = float("nan")
    recovered[1] = float("inf")
    recovered[2] = 1e30
    restored = restore(recovered, public)
    torch.testing.assert_close(restored[:2], recovered[:2], equal_nan=True)
    assert bool(restored[2:].isfinite().all())
    assert float(ssim(restored[3:], recovered[3:]).mean()) > 0.6
    nothing = torch.full((3, 3, 28, 28), float("nan"))
    assert bool(restore(nothing, public).isnan().all())
    for few in (images(1, 0), images(2, 0)):
        assert bool(restore(few, public).isfinite().all())
        assert bool(restore(few, public[:1]).isfinite().all())
    with pytest.raises(FlSimError, match="Public images"):
        restore(recovered, public[:0])


@pytest.mark.parametrize(
    ("name", "gain", "shift"),
    [
        ("affine_global", torch.tensor(0.1), torch.tensor(0.7)),
        (
            "affine_channel",
            torch.tensor([0.1, 0.3, 0.05]).reshape(3, 1, 1),
            torch.tensor([0.7, -0.4, 0.2]).reshape(3, 1, 1),
        ),
        ("affine", RAMP, 3 * RAMP - 1),
    ],
)
def test_each_undoes_its_own_kind_of_change(
    name: str, gain: torch.Tensor, shift: torch.Tensor
) -> None:
    originals, public = images(200, 0), images(400, 1)
    recovered = gain * originals + shift
    assert float(ssim(recovered.clamp(0, 1), originals).mean()) < 0.5
    restored = RESTORATIONS.get(name)(recovered, public)
    assert float(ssim(restored, originals).mean()) > 0.9


def test_the_robust_one_is_better_where_images_of_the_batch_are_lost() -> None:
    originals, public = images(100, 0), images(200, 1)
    recovered = 0.1 * originals + 3 * images(1, 2)[0] - 1
    lost = torch.arange(100) % 3 == 0
    noise = torch.randn(100, 3, 28, 28, generator=torch.Generator().manual_seed(3))
    recovered = torch.where(lost[:, None, None, None], 4 * noise, recovered)
    assert bool(typical(recovered)[lost].all()), "the plain one must not be told"

    def score(restore: Restoration) -> float:
        return float(ssim(restore(recovered, public), originals)[~lost].mean())

    assert score(RESTORATIONS.get("affine_robust")) > 0.7
    assert score(affine) < 0.5


def test_affine_undoes_a_common_shift_and_shrinkage() -> None:
    originals, public = images(200, 0), images(400, 1)
    recovered = 0.1 * originals + 3 * images(1, 2)[0] - 1
    before = float(ssim(recovered.clamp(0, 1), originals).mean())
    after = float(ssim(affine(recovered, public), originals).mean())
    assert before < 0.2
    assert after > 0.9


def test_affine_gives_the_batch_the_public_statistics() -> None:
    recovered = 5 * images(50, 0) - 2
    public = 0.4 + 0.1 * images(60, 1)
    restored = affine(recovered, public)
    torch.testing.assert_close(restored.mean(0), public.mean(0))
    torch.testing.assert_close(
        restored.std(0, correction=0), public.std(0, correction=0), atol=1e-5, rtol=1e-3
    )


def test_affine_stays_in_range() -> None:
    restored = affine(1e3 * torch.randn(9, 1, 28, 28), images(20, 1, channels=1))
    assert float(restored.min()) >= 0
    assert float(restored.max()) <= 1


def test_constant_images_become_the_public_mean() -> None:
    public = images(20, 1)
    for value in (0.0, 0.3, -40.0):
        restored = affine(torch.full((5, 3, 28, 28), value), public)
        torch.testing.assert_close(restored, public.mean(0).expand(5, -1, -1, -1))


def test_one_image_keeps_its_picture() -> None:
    original, public = images(1, 0), images(30, 1)
    restored = affine(0.1 * original + 0.8, public)
    assert bool(restored.isfinite().all())
    assert float(ssim(restored, original)) > float(ssim(0.1 * original + 0.8, original)) + 0.2


def test_one_public_image_is_enough() -> None:
    restored = affine(images(5, 0), images(1, 1))
    assert bool(restored.isfinite().all())
    assert float(restored.std(0).max()) > 0.05


def test_images_that_are_not_finite_stay_so_and_are_left_out() -> None:
    recovered, public = images(6, 0), images(30, 1)
    expected = affine(recovered[2:], public)
    recovered[0, 1, 3, 3] = float("nan")
    recovered[1] = float("inf")
    restored = affine(recovered, public)
    torch.testing.assert_close(restored[:2], recovered[:2], equal_nan=True)
    torch.testing.assert_close(restored[2:], expected)
    nothing = torch.full((3, 3, 28, 28), float("nan"))
    assert bool(affine(nothing, public).isnan().all())


def test_a_wild_image_does_not_hide_the_others() -> None:
    recovered, public = images(6, 0), images(30, 1)
    expected = affine(recovered[1:], public)
    recovered[0] = 1e30
    assert typical(recovered).tolist() == [False, True, True, True, True, True]
    torch.testing.assert_close(affine(recovered, public)[1:], expected)


def test_black_images_do_not_make_the_others_wild() -> None:
    recovered = images(6, 0)
    recovered[:4] = 0
    assert bool(typical(recovered).all())


def test_the_input_is_left_alone() -> None:
    recovered, public = images(6, 0), images(30, 1)
    copies = recovered.clone(), public.clone()
    affine(recovered, public)
    assert torch.equal(recovered, copies[0])
    assert torch.equal(public, copies[1])


def test_the_spectral_one_removes_what_images_of_the_kind_do_not_have() -> None:
    originals, public = images(100, 0), images(200, 1)
    noise = torch.randn(100, 3, 28, 28, generator=torch.Generator().manual_seed(3))
    recovered = 0.1 * originals + 0.02 * noise + 3 * images(1, 2)[0] - 1
    restored = RESTORATIONS.get("spectrum")(recovered, public)
    plain = affine(recovered, public)
    assert float(ssim(plain, originals).mean()) < 0.7
    assert float(ssim(restored, originals).mean()) > 0.85
    found, before = (identification(x, originals) for x in (restored, plain))
    assert found.distance >= before.distance
    assert found.correlation >= before.correlation


def blurred_and_squared(originals: torch.Tensor) -> torch.Tensor:
    """A change that no affine map of pixels undoes, the same for every image."""
    soft = torch.nn.functional.avg_pool2d(
        torch.nn.functional.pad(originals, (2, 2, 2, 2), mode="replicate"), 5, stride=1
    )
    return 0.2 * soft**3 + images(1, 2, originals.shape[1])[0]


@pytest.fixture(scope="module")
def learned() -> Learned:
    own = images(48, 5, channels=1)
    public = torch.cat([images(80, 1, channels=1), own])
    return learn(blurred_and_squared(own)[None], own, public, Stream(0, ("test",)), steps=70)


def test_the_learned_one_undoes_what_is_not_affine(learned: Learned) -> None:
    originals, public = images(40, 0, channels=1), images(80, 1, channels=1)
    recovered = blurred_and_squared(originals)

    def error(restored: torch.Tensor) -> float:
        return float((restored - originals).abs().mean())

    fixed = min(error(restored) for _, restored in extractions(recovered, public))
    assert error(learned(recovered, public)) < 0.8 * fixed


def test_the_learned_one_is_deterministic_and_keeps_broken_images(learned: Learned) -> None:
    assert list(inspect.signature(learned).parameters) == ["recovered", "public"]
    own, public = images(9, 5, channels=1), images(80, 1, channels=1)
    short = [
        learn(blurred_and_squared(own)[None], own, public, Stream(0, ("test",)), steps=8)
        for _ in range(2)
    ]
    recovered = blurred_and_squared(images(6, 0, channels=1))
    recovered[0, 0, 0, 0] = float("nan")
    restored = learned(recovered, public)
    torch.testing.assert_close(restored[0], recovered[0], equal_nan=True)
    assert float(restored[1:].min()) >= 0 and float(restored[1:].max()) <= 1
    first, second = (one(recovered[1:], public) for one in short)
    assert torch.equal(first, second)
    assert not torch.equal(first, restored[1:])


def test_with_too_few_or_broken_pairs_nothing_is_learned() -> None:
    own, public = images(7, 5), images(30, 1)
    few = learn(blurred_and_squared(own)[None], own, public, Stream(0))
    spectrum = RESTORATIONS.get("spectrum")
    assert torch.equal(few(own, public), spectrum(own, public))
    own = images(12, 5)
    broken = learn(torch.full((1, 12, 3, 28, 28), float("nan")), own, public, Stream(0))
    assert torch.equal(broken(own, public), spectrum(own, public))
    with pytest.raises(FlSimError, match="Pairs for a learned restoration"):
        learn(own, own, public, Stream(0))
