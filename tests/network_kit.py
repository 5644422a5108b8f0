"""A small network that has weights which images of 8 pixels never move, as ResNets do at 28."""

from torch import nn

DEEP = "tests.network_kit:deep"
"""Its name as a scenario's model."""


def deep(classes: int, channels: int) -> nn.Module:
    """Return a network whose last kernels see one pixel: all but their middle is dead."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    halved = [*block(channels, 16, 2), *block(16, 32, 2), *block(32, 64, 2)]
    alone = [*block(64, 64, 1), *block(64, 64, 1)]
    return nn.Sequential(
        *halved, *alone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)
    )
