"""VGG11 with batch normalisation (Simonyan and Zisserman 2015), torchvision's."""

from torch import nn

from fl_sim.models.base import MODELS, ModelEntry, ModelSpec


def build(spec: ModelSpec) -> nn.Module:
    """Build VGG11.

    The default is torchvision's own, with its classifier of 120 million weights. The small-image
    variant drops the first pooling and has the classifier 512-512-K that is usual for CIFAR.
    """
    from torchvision.models import vgg11_bn

    network = vgg11_bn(num_classes=spec.classes)
    if spec.channels != 3:
        network.features[0] = nn.Conv2d(spec.channels, 64, 3, padding=1)
        nn.init.kaiming_normal_(network.features[0].weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(network.features[0].bias)
    if spec.stem == "small":
        network.features[3] = nn.Identity()
        network.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        network.classifier = nn.Sequential(
            nn.Linear(512, 512), nn.ReLU(), nn.Dropout(), nn.Linear(512, spec.classes)
        )
    return network


MODELS.register("vgg11", "torchvision's VGG11 with batch norm; small stem below 32 px")(
    ModelEntry(build, min_sizes={"default": 32, "small": 16})
)
