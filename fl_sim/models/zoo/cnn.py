"""A small convolutional network for tests, demonstrations and slow machines."""

from torch import nn

from fl_sim.models.base import MODELS, ModelEntry, ModelSpec
from fl_sim.models.norms import NormSettings, norm_layer


def build(spec: ModelSpec) -> nn.Module:
    """Build three convolutions with normalisation, two of stride 2, and two linear layers."""
    side = -(-spec.size // 4)
    norm = norm_layer(spec)

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            norm(outputs),
            nn.ReLU(),
        ]

    return nn.Sequential(
        *block(spec.channels, 32, 1),
        *block(32, 64, 2),
        *block(64, 64, 2),
        nn.AdaptiveAvgPool2d((min(side, 7), min(side, 7))),
        nn.Flatten(),
        nn.Linear(64 * min(side, 7) ** 2, 128),
        nn.ReLU(),
        nn.Linear(128, spec.classes),
    )


MODELS.register("cnn", "a small CNN, 0.46 million parameters at 28 px")(
    ModelEntry(build, settings=NormSettings)
)
