"""What an attacker would choose, who has public images and no true one."""

import pytest
import torch

from fl_sim.data import load_dataset
from fl_sim.errors import FlSimError
from fl_sim.metrics.leakage import ssim
from fl_sim.metrics.measure import measure_leakage
from fl_sim.metrics.plausibility import FEWEST, WORST, Plausibility


def phantoms(channels: int = 3, size: int = 28) -> tuple[torch.Tensor, torch.Tensor]:
    """Return stolen and public images of one kind."""
    settings = {"size": size, "channels": channels, "train": 24, "validation": 4, "test": 80}
    dataset = load_dataset("phantoms", settings)
    return dataset.train.tensors()[0], dataset.test.tensors()[0]


def noise(images: torch.Tensor, amount: float) -> torch.Tensor:
    return images + amount * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 28), (1, 224)])
def test_the_more_is_wrong_with_a_batch_the_worse_it_scores(channels: int, size: int) -> None:
    stolen, public = phantoms(channels, size)
    judge = Plausibility(public, len(stolen))
    true = judge.score(stolen)
    assert true < judge.score(noise(stolen, 0.1)) < judge.score(noise(stolen, 0.3)) < WORST
    blurred = torch.nn.functional.avg_pool2d(stolen, 9, 1, 4)
    assert true < judge.score(blurred)
    assert true < judge.score(0.05 * stolen + 0.5)
    # An attacker sees that the same image n times is no batch of patients.
    alike = stolen[:1].repeat(len(stolen), 1, 1, 1)
    assert judge.score(noise(alike, 0.001)) > true + 1


def test_broken_images_add_their_share_of_the_worst() -> None:
    stolen, public = phantoms()
    judge = Plausibility(public, len(stolen))
    half, none = stolen.clone(), stolen * torch.nan
    half[::2, 0, 0, 0] = torch.inf
    assert judge.score(none) == WORST
    assert judge.score(half) == pytest.approx(
        0.5 * WORST + 0.5 * judge.score(stolen[1::2]), rel=1e-6
    )
    assert 0 <= judge.score(1e30 * stolen) <= WORST


@pytest.mark.parametrize("n", [1, 2, 24])
def test_public_like_images_are_taken_as_they_came_out(n: int) -> None:
    stolen, public = phantoms()
    measured = measure_leakage(stolen[:n], stolen[:n], public, 0)
    assert measured.chosen == "raw"
    assert measured.value("ssim", "chosen") == pytest.approx(1.0)


def test_what_is_chosen_has_all_metrics_of_that_extraction_and_no_others() -> None:
    stolen, public = phantoms()
    faded = noise(0.1 * stolen + torch.rand(stolen[0].shape), 0.01)
    measured = measure_leakage(faded, stolen, public, 0)
    assert measured.chosen != "raw"
    rows = {(e, m): v for e, m, v in measured.rows}
    of_chosen = {m: v for (e, m), v in rows.items() if e == "chosen"}
    assert of_chosen == {m: v for (e, m), v in rows.items() if e == measured.chosen}
    assert measured.chosen in measured.images and measured.chosen in measured.ssim
    told = {m: v for (_, m), v in rows.items() if m.startswith("attacker_chooses[")}
    assert told.pop(f"attacker_chooses[{measured.chosen}]") == 1.0 and set(told.values()) == {0.0}
    # It comes near the best, which takes the true images to find.
    best, raw = measured.value("ssim"), measured.value("ssim", "raw")
    assert best - of_chosen["ssim"] < 0.25 * (best - raw)


def test_the_true_images_do_not_steer_the_choice() -> None:
    stolen, public = phantoms()
    faded = noise(0.1 * stolen + 0.4, 0.02)
    chosen = {measure_leakage(faded, true, public, 0).chosen for true in (stolen, stolen.flip(0))}
    assert len(chosen) == 1 and float(ssim(stolen, stolen.flip(0)).mean()) < 0.9


def test_an_attacker_with_too_few_public_images_takes_what_came_out() -> None:
    stolen, public = phantoms()
    for few in (public[:0], public[:1], public[: FEWEST - 1]):
        assert measure_leakage(noise(stolen, 0.5), stolen, few, 0).chosen == "raw"
    assert measure_leakage(noise(stolen, 0.5), stolen, public[:FEWEST], 0).chosen != "raw"
    with pytest.raises(FlSimError, match="takes 8 of them, not 7"):
        Plausibility(public[:7], 3)
