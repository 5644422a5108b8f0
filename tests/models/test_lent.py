"""Networks that somebody hands over."""

import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, vit_b_32

from fl_sim.errors import FlSimError
from fl_sim.models import MODELS, build, fresh
from fl_sim.models.lent import Pixels, lend, lend_for_scenario


def _network(width: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * 36, 2),
    )


PIXELS = Pixels(3, 8)


def test_a_fresh_copy_has_none_of_the_values() -> None:
    network = _network()
    with torch.no_grad():
        for value in network.state_dict().values():
            value.fill_(3)
    spec = lend(network, PIXELS)
    assert spec.classes == 2 and spec.task == "classification"
    new, again, other = fresh(spec, 1), fresh(spec, 1), fresh(spec, 2)
    assert all(not bool((v == 3).any()) for v in new.state_dict().values())
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in new.state_dict().items())
    assert not torch.equal(new[0].weight, other[0].weight)
    assert float(network[0].weight.mean()) == 3


def test_a_reset_that_leaves_something_out_does_not_pass() -> None:
    class Sly(nn.Linear):
        def reset_parameters(self) -> None:
            if hasattr(self, "kept"):
                nn.init.zeros_(self.bias)

        kept = True

    spec = lend(nn.Sequential(nn.Flatten(), Sly(192, 2)), PIXELS)
    with pytest.raises(FlSimError, match=r"initialises its '1\.weight' anew"):
        fresh(spec)
    build(spec)  # whatever does not start anew still works


def test_a_buffer_that_travels_counts_and_one_that_does_not_does_not() -> None:
    class Buffered(nn.Module):
        def __init__(self, persistent: bool) -> None:
            super().__init__()
            self.head = nn.Linear(192, 2)
            self.register_buffer("extra", torch.ones(5), persistent)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.head(images.flatten(1))
            return found

    assert MODELS.get(lend(Buffered(True), PIXELS).name).kept == ("extra",)
    assert MODELS.get(lend(Buffered(False), PIXELS).name).kept == ()


def test_names_tell_structures_apart_and_not_weights() -> None:
    torch.manual_seed(0)
    one, two, wide = (lend(_network(w), PIXELS).name for w in (4, 4, 5))
    assert one == two != wide and one.startswith("Sequential@")


def test_a_function_makes_fresh_ones_where_copies_cannot() -> None:
    made = vit_b_32(image_size=32, num_classes=3)
    pixels = Pixels(3, 32)
    with pytest.raises(FlSimError, match="VisionTransformer cannot be made"):
        fresh(lend(made, pixels))
    spec = lend(made, pixels, lambda num_classes: vit_b_32(image_size=32, num_classes=num_classes))
    assert fresh(spec).state_dict().keys() == made.state_dict().keys()


def test_a_network_travels_to_another_process_without_its_weights() -> None:
    name = lend_for_scenario(resnet18(num_classes=3))
    entry = MODELS.get(name)
    assert entry.initial is not None and len(entry.initial()) == len(resnet18().state_dict())
    data = pickle.dumps(entry.build)
    assert len(data) < 1_000_000  # its weights are 45 MB
    network: Any = pickle.loads(data)(None)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 3)


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(FlSimError, match="give a name"):
        lend_for_scenario(7)

    class Two(nn.Linear):
        def forward(self, input: torch.Tensor) -> Any:
            return super().forward(input), 1

    with pytest.raises(FlSimError, match="returns a tuple in evaluation"):
        lend(nn.Sequential(nn.Flatten(), Two(192, 2)), PIXELS)
