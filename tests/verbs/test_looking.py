"""Recovered images are restored as they are measured, and a network is scored as runs score it."""

import numpy as np
import pytest
import torch

import fl_sim
from fl_sim.errors import FlSimError
from fl_sim.metrics.leakage import ssim
from fl_sim.metrics.utility import utility
from tests.verbs.verb_kit import DATA, HELD_OUT, Own, labels, pixels

TRUE = pixels()[:6]
STOLEN = 0.2 * TRUE - 3  # legible once the batch's mean and deviation are right
PUBLIC = DATA.test.subset(np.arange(64))


@pytest.mark.parametrize("name", [None, "raw", "affine_global"])
def test_restored_images_are_those_that_are_measured(name: str | None) -> None:
    leak = fl_sim.measure(STOLEN, TRUE, public=PUBLIC)
    seen = fl_sim.restore(STOLEN, public=PUBLIC, restoration=name)
    assert seen.shape == TRUE.shape and 0 <= float(seen.min()) <= float(seen.max()) <= 1
    said = float(leak.loc[name or "chosen", "ssim"])
    assert float(ssim(seen, TRUE).mean()) == pytest.approx(said, abs=1e-5)


def test_a_restoration_that_is_named_is_applied_whatever_looks_better() -> None:
    applied = [
        fl_sim.restore(TRUE, public=PUBLIC, restoration=name)
        for name in ("affine", "affine_robust")
    ]
    assert all(not torch.allclose(seen, TRUE, atol=1e-3) for seen in applied)


def test_restoring_makes_them_legible() -> None:
    raw, seen = (fl_sim.restore(STOLEN, public=PUBLIC, restoration=r) for r in ("raw", None))
    assert ssim(raw, TRUE).mean() < 0.3 < ssim(seen, TRUE).mean()


@pytest.mark.parametrize(
    ("stolen", "public", "restoration", "words"),
    [
        (STOLEN[0], PUBLIC, None, r"\[n, channels, height, width\]"),
        (STOLEN[:0], PUBLIC, None, "n >= 1"),
        (STOLEN, PUBLIC.tensors()[0][..., :14, :14], None, "Public images of shape"),
        (STOLEN, PUBLIC, "afine", "affine"),
    ],
)
def test_what_cannot_be_restored_is_one_sentence(
    stolen: torch.Tensor, public: object, restoration: str | None, words: str
) -> None:
    with pytest.raises(FlSimError, match=words):
        fl_sim.restore(stolen, public=public, restoration=restoration)


def test_a_network_is_worth_what_its_answers_are() -> None:
    torch.manual_seed(0)
    network = Own().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = fl_sim.evaluate(network, HELD_OUT)
    with torch.no_grad():
        scores = Own().eval()
        scores.load_state_dict(before)
        answers = scores(pixels(HELD_OUT) * 2 - 1).softmax(1)
    expected = utility(answers, labels(HELD_OUT), DATA.task)
    assert found.to_dict() == pytest.approx(expected, abs=1e-6)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_how_pixels_are_taken_counts_and_so_do_weights_that_are_given() -> None:
    torch.manual_seed(0)
    one, other = Own(), Own()
    images = pixels(HELD_OUT), labels(HELD_OUT)
    assert fl_sim.evaluate(one, *images, state=other.state_dict()).equals(
        fl_sim.evaluate(other, *images)
    )
    cleaned = fl_sim.clean(
        one, HELD_OUT, defense="gaussian_noise", sigma=0, normalize="none", progress=False
    )
    assert fl_sim.evaluate(cleaned, HELD_OUT).equals(
        fl_sim.evaluate(one, HELD_OUT, normalize="none")
    )
    assert not fl_sim.evaluate(cleaned, HELD_OUT).equals(fl_sim.evaluate(one, HELD_OUT))


def test_a_worth_needs_labels() -> None:
    with pytest.raises(FlSimError, match="labels"):
        fl_sim.evaluate(Own(), pixels(HELD_OUT))


def test_a_dataset_is_cut_for_a_quick_try() -> None:
    few = fl_sim.load_dataset("phantoms", images=40)
    assert [len(few.train), len(few.validation), len(few.test)] == [40, 40, 40]
    step = len(DATA.train) // 40
    assert np.array_equal(few.train.images[1], DATA.train.images[step])
    assert few.task == DATA.task and len(DATA.train) > 40
    whole = fl_sim.load_dataset("phantoms", images=10**6)
    assert np.array_equal(whole.train.images, DATA.train.images)
    with pytest.raises(FlSimError, match="not 0"):
        fl_sim.load_dataset("phantoms", images=0)
