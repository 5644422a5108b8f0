"""ResNet18 (He et al. 2016), torchvision's."""

from torch import nn

from fl_sim.models.base import MODELS, ModelEntry, ModelSpec
from fl_sim.models.norms import NormSettings, norm_layer


def build(spec: ModelSpec) -> nn.Module:
    """Build ResNet18 with torchvision's stem or the small-image one."""
    from torchvision.models import resnet18

    network = resnet18(num_classes=spec.classes, norm_layer=norm_layer(spec))
    if spec.stem == "small":
        network.conv1 = nn.Conv2d(spec.channels, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif spec.channels != 3:
        network.conv1 = nn.Conv2d(spec.channels, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network


MODELS.register("resnet18", "torchvision's ResNet18, 11.2 million parameters")(
    ModelEntry(build, min_sizes={"default": 8, "small": 8}, settings=NormSettings)
)
