"""Fine-pruning: which channels go, that they stay gone, and that the task is kept."""

import pytest
import torch
from torch import nn

from fl_sim.defenses.fine_pruning import (
    FinePruning,
    FinePruningSettings,
    accuracy,
    mean_activations,
    prunable_layer,
)
from fl_sim.errors import FlSimError
from fl_sim.models import ModelSpec
from fl_sim.training import normalized
from tests.defenses.defense_kit import TASK, apply, held_out, release_of


def test_activations_are_the_means_after_normalisation_and_relu() -> None:
    release = release_of()
    layer = prunable_layer(release)
    assert layer.weights is release.model[6] and layer.normalization is release.model[7]
    ours = mean_activations(release, layer, batch_size=16)
    outputs = release.model.eval()[:9](normalized(release.held_out.tensors()[0]))
    torch.testing.assert_close(ours, outputs.mean((0, 2, 3)).double(), rtol=1e-4, atol=1e-6)


def test_the_least_activated_share_is_pruned_and_stays_so() -> None:
    release = release_of()
    layer = prunable_layer(release)
    order = mean_activations(release, layer).argsort()
    report, _ = apply("fine_pruning", release, share=0.25, epochs=2, batch_size=10)
    gone = layer.normalization.weight == 0
    assert sorted(gone.nonzero().flatten().tolist()) == sorted(order[:16].tolist())
    assert (layer.weights.weight.flatten(1).abs().sum(1) == 0).tolist() == gone.tolist()
    outputs = release.model.eval()[:9](normalized(release.held_out.tensors()[0]))
    assert not outputs[:, gone].any() and outputs[:, ~gone].any()
    assert len(report.epochs) == 2 and all(c > 0 for c in report.relative_change.values())


def test_without_a_share_pruning_goes_as_far_as_the_tolerance() -> None:
    release = release_of()
    apply("high_rate_fine_tuning", release, epochs=6, batch_size=10)
    before = accuracy(release.model, release.held_out, TASK)
    assert before > 0.8
    settings = FinePruningSettings(tolerance=0.1, steps=8)
    layer = prunable_layer(release)
    pruned = FinePruning(settings)._prune(release, layer)
    assert 0 < len(pruned) < 64
    assert accuracy(release.model, release.held_out, TASK) >= before - 0.1
    further = mean_activations(release, layer).argsort()[: len(pruned) + 8]
    layer.clear(further)
    assert accuracy(release.model, release.held_out, TASK) < before - 0.1


@pytest.mark.parametrize(
    ("name", "layer"), [("resnet18", "layer4.1.conv2"), ("mlp", "5"), ("densenet121", None)]
)
def test_the_last_convolution_or_hidden_layer_is_chosen(name: str, layer: str | None) -> None:
    spec = ModelSpec(name=name, channels=1, size=16, classes=3, stem="default")
    if name == "densenet121":
        spec = spec.model_copy(update={"stem": "small"})
        layer = "features.denseblock4.denselayer16.conv2"
    release = release_of(spec)
    chosen = prunable_layer(release)
    assert chosen.weights is release.model.get_submodule(str(layer))
    assert (chosen.normalization is None) == (name != "resnet18")


def test_what_cannot_be_pruned_is_one_sentence() -> None:
    with pytest.raises(FlSimError, match="Did you mean '6'"):
        apply("fine_pruning", release_of(), layer="6.")
    with pytest.raises(FlSimError, match="no held-out images"):
        apply("fine_pruning", release_of(count=0))


def test_accuracy_is_the_share_of_right_answers() -> None:
    class Brightness(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            level = (images.mean((1, 2, 3)) * 0.5 + 0.5) * 255
            return -(level[:, None] - torch.tensor([30.0, 90.0, 150.0])).abs()

    assert accuracy(Brightness(), held_out(), TASK) == 1.0
