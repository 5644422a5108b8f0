"""Channel permutation as a defence."""

import pytest
import torch

from fl_sim.models import ModelSpec
from tests.defenses.defense_kit import SPEC, apply, cleaned, release_of


@pytest.mark.parametrize("rescale", [1.0, 2.0])
@pytest.mark.parametrize("name", ["cnn", "resnet18"])
def test_the_model_answers_as_before_from_other_weights(name: str, rescale: float) -> None:
    release = release_of(ModelSpec(name=name, channels=1, size=16, classes=3))
    apply("high_rate_fine_tuning", release, epochs=1)
    pixels = release.held_out.tensors()[0]
    with torch.no_grad():
        answers = release.model.eval()(pixels)
        report, before = apply("channel_permutation", release, rescale=rescale)
        torch.testing.assert_close(release.model(pixels), answers, rtol=1e-4, atol=1e-5)
    after = release.model.state_dict()
    assert report.figures == {"permuted_share": pytest.approx(1, abs=1e-4)}
    weights = [name for name in before if before[name].dim() > 1]
    for weight in weights:
        assert report.relative_change[weight] > 0.1
        if rescale == 1.0:
            assert torch.equal(
                before[weight].flatten().sort()[0], after[weight].flatten().sort()[0]
            )
    first = before[weights[0]].flatten().sort()[0], after[weights[0]].flatten().sort()[0]
    assert torch.equal(*first) == (rescale == 1.0)


def test_the_seed_decides() -> None:
    runs = [cleaned("channel_permutation", seed, SPEC, rescale=2.0) for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
