"""DenseNet121 (Huang et al. 2017), torchvision's."""

from torch import nn

from fl_sim.models.base import MODELS, ModelEntry, ModelSpec


def build(spec: ModelSpec) -> nn.Module:
    """Build DenseNet121 with torchvision's stem or the small-image one."""
    from torchvision.models import densenet121

    network = densenet121(num_classes=spec.classes)
    if spec.stem == "small":
        network.features.conv0 = nn.Conv2d(spec.channels, 64, 3, padding=1, bias=False)
        network.features.pool0 = nn.Identity()
    elif spec.channels != 3:
        network.features.conv0 = nn.Conv2d(spec.channels, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.features.conv0.weight)
    return network


MODELS.register(
    "densenet121", "torchvision's DenseNet121, 7 million parameters; small stem < 32 px"
)(ModelEntry(build, min_sizes={"default": 32, "small": 8}))
