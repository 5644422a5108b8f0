"""The reconstructor of transposed convolutions, small."""

import pytest
import torch

from fl_sim.errors import FlSimError
from fl_sim.randomness import Stream
from fl_sim.reconstruction.convolutions import ConvolutionSettings, _loss
from fl_sim.reconstruction.few_shot import Attacker, FewShotSettings, attack_heads, learn
from tests.reconstruction.heads_kit import CLASSES, HEAD, images, victims


def _attacker(per_class: int = 1, shadows: int = 600) -> Attacker:
    settings = FewShotSettings(
        shadows=shadows,
        head=HEAD,
        images_per_class=per_class,
        reconstructor="convolutions",
        convolutions=ConvolutionSettings(epochs=8, width=16, learning_rate=2e-3),
    )
    return learn(*images(900, seed=0), CLASSES, settings, Stream(0))


def test_images_are_read_better_than_by_the_class_mean() -> None:
    attacker = _attacker()
    assert attacker.reconstructor.error < 0.8 * attacker.reconstructor.class_mean_error
    recovered, evidence = attack_heads(attacker, *victims(30), 50, Stream(1))
    assert recovered.shape == (30, CLASSES, 1, 8, 8)
    assert float(recovered.min()) >= 0 and float(recovered.max()) <= 1
    assert evidence.identified.mean > 4 * evidence.chance


def test_it_is_the_same_for_the_same_seed() -> None:
    heads = _attacker(shadows=40).shadows.weights(0, 2)
    first, second = (_attacker(shadows=40).reconstructor.reconstruct(heads) for _ in range(2))
    assert torch.equal(first, second)


def test_of_several_images_the_nearest_counts_most() -> None:
    image = torch.zeros(1, 1, 2, 2)
    two = torch.stack([torch.full((1, 2, 2), 0.1), torch.full((1, 2, 2), 1.0)])[None]
    near, mean = _loss(image, two, 1e-3), _loss(image, two, 1e6)
    assert float(near) == pytest.approx((0.01 + 0.1) / 2, rel=1e-3)
    assert float(mean) == pytest.approx(((0.01 + 0.1) / 2 + 1.0) / 2, rel=1e-3)
    one = _loss(image, two[:, 1:], 1e-3)
    assert float(one) == pytest.approx(1.0)


def test_a_head_of_another_shape_is_refused() -> None:
    with pytest.raises(
        FlSimError, match=r"The head is \[2, 65\], but the shadow heads are \[3, 65"
    ):
        _attacker(shadows=40).reconstructor.reconstruct(torch.zeros(1, 2, 65))
