"""The transposed pass against dense matrices, and on every network."""

import pytest
import torch
from torch import nn

from fl_sim.errors import FlSimError
from fl_sim.models import build_model
from fl_sim.models.transposed import TransposedPass, normalize


def _matrix(function: nn.Module, shape: tuple[int, int, int]) -> torch.Tensor:
    """The dense matrix of a linear map from images to outputs, column by column."""
    size = shape[0] * shape[1] * shape[2]
    return function(torch.eye(size).reshape(size, *shape)).detach().flatten(1).T


LINEAR = {
    "two linear layers": nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 64, 20, bias=False), nn.Linear(20, 5, bias=False)
    ),
    "strided convolutions": nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(4, 6, 5, stride=2, padding=2, bias=False),
        nn.Flatten(),
        nn.Linear(6 * 4, 5, bias=False),
    ),
    "grouped and dilated convolutions": nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=2, dilation=2, groups=3, bias=False),
        nn.Conv2d(6, 4, 2, stride=3, bias=False),
        nn.Flatten(),
        nn.Linear(4 * 9, 5, bias=False),
    ),
}


@pytest.mark.parametrize("name", LINEAR)
def test_of_a_linear_network_it_is_the_transposed_matrix(name: str) -> None:
    torch.manual_seed(0)
    network, shape = LINEAR[name], (3, 8, 8)
    codes = torch.randn(7, 5)
    expected = codes @ _matrix(network, shape)
    found = TransposedPass(network, shape)(codes).flatten(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class _Branches(nn.Module):
    """Residual addition and concatenation, all linear."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.b = nn.Conv2d(2, 3, 1, bias=False)
        self.c = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.fc = nn.Linear(6 * 16, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        merged = self.a(x) + self.b(x)
        joined = torch.cat([merged, self.c(merged)], 1)
        return self.fc(joined.flatten(1))


def test_additions_and_concatenations_transpose_exactly() -> None:
    torch.manual_seed(0)
    network, codes = _Branches(), torch.randn(5, 4)
    expected = codes @ _matrix(network, (2, 4, 4))
    found = TransposedPass(network, (2, 4, 4))(codes).flatten(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_of_resnet18_it_equals_the_pass_written_out_by_hand() -> None:
    torch.manual_seed(0)
    network = build_model("resnet18", 3, 28, 7).double()
    codes = torch.rand(3, 7, dtype=torch.float64)
    torch.testing.assert_close(
        TransposedPass(network, (3, 28, 28))(codes), _resnet18_by_hand(network, codes)
    )


def _resnet18_by_hand(network: nn.Module, codes: torch.Tensor) -> torch.Tensor:
    f = nn.functional

    def back(conv: nn.Conv2d, x: torch.Tensor, side: int) -> torch.Tensor:
        out = torch.zeros(len(x), conv.in_channels, side, side, dtype=x.dtype)
        # The adjoint of a convolution, by differentiating it.
        out.requires_grad_()
        y = f.conv2d(out, conv.weight, None, conv.stride, conv.padding)
        return torch.autograd.grad(y, out, x, create_graph=True)[0]

    x = (codes @ network.fc.weight).reshape(-1, 512, 1, 1)
    sides = {4: (1, 2), 3: (2, 4), 2: (4, 7), 1: (7, 7)}
    for stage in (4, 3, 2, 1):
        here, before = sides[stage]
        for number in (1, 0):
            block = getattr(network, f"layer{stage}")[number]
            x = f.relu(x)
            inner = normalize(f.relu(back(block.conv2, normalize(x), here)))
            shortcut = x
            wide = before if number == 0 else here
            inner = back(block.conv1, inner, wide)
            if block.downsample is not None:
                shortcut = back(block.downsample[0], normalize(x), wide)
            x = inner + shortcut
    x = f.interpolate(x, size=(14, 14), mode="nearest")
    return back(network.conv1, normalize(f.relu(x)), 28)


@pytest.mark.parametrize(
    ("name", "stem"),
    [("resnet18", "default"), ("densenet121", "small"), ("vgg11", "small"), ("cnn", "default")],
)
def test_every_convolution_gets_gradient(name: str, stem: str) -> None:
    network = build_model(name, 1, 28, 3, stem)
    TransposedPass(network, (1, 28, 28))(torch.rand(4, 3)).square().mean().backward()
    for module_name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.weight.grad is not None and module.weight.grad.any(), module_name


def test_detached_convolutions_get_none() -> None:
    network = build_model("cnn", 1, 28, 3)
    backwards = TransposedPass(network, (1, 28, 28), detach_convolutions=True)
    backwards(torch.rand(4, 3)).square().mean().backward()
    assert network[0].weight.grad is None
    assert network[11].weight.grad is not None


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0", "resnet50"])
def test_other_torchvision_networks_need_no_code_of_their_own(name: str) -> None:
    import torchvision

    network = getattr(torchvision.models, name)(num_classes=4)
    assert TransposedPass(network, (3, 64, 64))(torch.rand(2, 4)).shape == (2, 3, 64, 64)


class _Cumulative(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, 3).flatten(1)


class _Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.flatten(1)) if x.sum() > 0 else self.fc(-x.flatten(1))


def test_what_cannot_be_run_backwards_is_named() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), _Cumulative())
    with pytest.raises(FlSimError, match="operation 'cumsum'"):
        TransposedPass(network, (1, 4, 4))
    with pytest.raises(FlSimError, match="cannot be traced"):
        TransposedPass(_Branching(), (1, 4, 4))
