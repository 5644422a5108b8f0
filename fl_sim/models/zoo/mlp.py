"""A fully connected network, as in the Transpose paper's MNIST experiments."""

from torch import nn

from fl_sim.models.base import MODELS, ModelEntry, ModelSpec

WIDTH = 1024


def build(spec: ModelSpec) -> nn.Module:
    """Build three hidden layers of 1,024 units with ReLU."""
    pixels = spec.channels * spec.size**2
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(pixels, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, spec.classes),
    )


MODELS.register("mlp", "three hidden layers of 1,024 units")(ModelEntry(build))
