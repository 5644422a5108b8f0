"""Convolutions that leave out what meets only padding, beside the plain ones."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fl_sim.models import MODELS, ModelSpec, build
from fl_sim.models.reachable import Convolution, leave_out_padding, reached
from fl_sim.models.transposed import TransposedPass
from fl_sim.randomness import seeded
from fl_sim.verbs.network import given

RESNET = ModelSpec(name="resnet18", channels=3, size=28, classes=7)
NETWORKS = [
    ("resnet18", "default", 28),
    ("resnet18", "default", 64),
    ("resnet18", "small", 28),
    ("densenet121", "small", 28),
    ("densenet121", "default", 32),
    ("vgg11", "small", 28),
    ("cnn", "default", 28),
    ("vit", "default", 28),
    ("two_headed", "default", 28),
    ("unet", "default", 32),
    ("mobilenet_v3_small", "default", 32),
    ("efficientnet_b0", "default", 28),
    ("shufflenet_v2_x0_5", "default", 32),
    ("googlenet", "default", 28),
]


def spec_of(name: str, stem: str, size: int) -> ModelSpec:
    task = MODELS.get(name).tasks[0]
    return ModelSpec(name=name, channels=3, size=size, classes=4, stem=stem, task=task)


def plain(spec: ModelSpec, seed: int = 0) -> nn.Module:
    """The same network as :func:`build` makes, with convolutions as torch has them."""
    with seeded(seed, "initial weights", spec.name):
        return MODELS.get(spec.name).build(spec)


def flops(network: nn.Module, size: int) -> int:
    """Operations of a forward and a backward pass."""
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(2, 3, size, size)).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(("name", "stem", "size"), NETWORKS)
def test_outputs_and_gradients_are_those_of_the_plain_network(
    name: str, stem: str, size: int
) -> None:
    spec = spec_of(name, stem, size)
    networks = [build(spec).double(), plain(spec).double()]
    images = torch.rand(3, 3, size, size, dtype=torch.float64) * 2 - 1
    answers = []
    for network in networks:
        torch.manual_seed(0)  # of dropout
        answers.append(network(images))
        answers[-1].square().sum().backward()
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-10, atol=1e-10)
    ours, theirs = (dict(network.named_parameters()) for network in networks)
    gradients = {key: p.grad for key, p in theirs.items() if p.grad is not None}
    assert gradients.keys() == {key for key, p in ours.items() if p.grad is not None}
    # Biases that a normalisation takes away again have gradients of rounding alone.
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for key, gradient in gradients.items():
        difference = float((ours[key].grad - gradient).abs().max())
        assert difference <= 1e-9 * float(gradient.abs().max()) + 1e-11 * largest, key


def test_a_resnet18_of_small_images_computes_a_fifth_less_and_a_larger_one_no_less() -> None:
    assert flops(build(RESNET), 28) < 0.8 * flops(plain(RESNET), 28)
    large = RESNET.model_copy(update={"size": 96})
    assert flops(build(large), 96) == flops(plain(large), 96)


def test_so_does_its_transposed_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted() -> int:
        with FlopCounterMode(display=False) as counter:
            TransposedPass(build(RESNET), RESNET.input_shape)(torch.rand(2, 7)).sum().backward()
        return counter.get_total_flops()

    less = counted()
    monkeypatch.setattr("fl_sim.models.reachable.reached", lambda convolution, size: None)
    assert less < 0.8 * counted()


CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 3, "padding": 1, "groups": 2},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "bias": False},
    {"kernel_size": 5, "padding": 3, "dilation": 2, "stride": 2},
    {"kernel_size": 2, "padding": 1, "dilation": 2, "stride": 3},
    {"kernel_size": 7, "padding": 3, "stride": 2},
    {"kernel_size": (5, 1), "padding": (2, 0)},
    {"kernel_size": (1, 3), "padding": (1, 1)},
    {"kernel_size": (3, 5), "padding": (3, 4), "stride": (2, 1)},
    {"kernel_size": 5, "padding": 2, "groups": 4},
    {"kernel_size": 3, "padding": "same", "dilation": 3},
    {"kernel_size": (4, 3), "padding": "same"},
    {"kernel_size": 2, "padding": "valid"},
    {"kernel_size": 1, "padding": 1},
]
SIZES = [(1, 1), (2, 2), (3, 3), (1, 4), (2, 5)]


@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_every_kind_of_convolution_is_computed_exactly(
    settings: dict[str, Any], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    ours = nn.Conv2d(4, 4, **settings).double()
    theirs = copy.deepcopy(ours)
    leave_out_padding(ours)
    images = [torch.rand(3, 4, *size, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    images[1].data.copy_(images[0].data)
    try:
        expected = theirs(images[1])
    except RuntimeError:
        with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
            ours(images[0])
        return
    found = ours(images[0])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    back = torch.rand_like(expected)
    found.backward(back)
    expected.backward(back)
    torch.testing.assert_close(images[0].grad, images[1].grad, rtol=1e-12, atol=1e-12)
    gradient, plain_gradient = ours.weight.grad, theirs.weight.grad
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-12, atol=1e-12)
    assert gradient is not None and plain_gradient is not None
    assert torch.equal(gradient == 0, plain_gradient == 0)  # what is left out, and only that
    if not isinstance(ours.padding, str):
        transposed = Convolution.of(ours).transposed(back, ours.weight, size)
        torch.testing.assert_close(transposed, images[1].grad, rtol=1e-12, atol=1e-12)


def test_of_a_pixel_one_tap_is_left_and_of_a_large_map_the_whole_kernel() -> None:
    convolution = Convolution.of(nn.Conv2d(8, 8, 3, padding=1))
    one = reached(convolution, (1, 1))
    assert one is not None and (one.first, one.last) == ((1, 1), (2, 2)) and one.covers
    narrow = reached(convolution, (1, 9))
    assert narrow is not None and (narrow.first, narrow.last) == ((1, 0), (2, 3))
    assert narrow.padding == (0, 1) and not narrow.covers
    assert reached(convolution, (2, 2)) is None
    assert reached(convolution, (28, 28)) is None


def test_weights_names_classes_and_graph_stay() -> None:
    ours, theirs = build(RESNET, 3), plain(RESNET, 3)
    state, expected = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert repr(ours) == repr(theirs)
    assert [type(m) for m in ours.modules()] == [type(m) for m in theirs.modules()]
    graphs = [fx.symbolic_trace(network).graph for network in (ours, theirs)]
    assert str(graphs[0]) == str(graphs[1])


def test_what_has_a_way_of_its_own_is_left_alone() -> None:
    class Own(nn.Conv2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return input

    network = nn.Sequential(
        Own(2, 2, 3, padding=1),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="replicate"),
        nn.Conv2d(2, 2, 1),
        nn.Conv1d(2, 2, 3, padding=1),
    )
    before = [dict(vars(module)) for module in network]
    leave_out_padding(network)
    assert [dict(vars(module)) for module in network] == before


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda network: pickle.loads(pickle.dumps(network)),
    "script": torch.jit.script,
    "traced": lambda network: fx.symbolic_trace(network),
}


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_copies_answer_the_same_and_have_weights_of_their_own(kind: str) -> None:
    network = build(RESNET).eval()
    images = torch.rand(2, 3, 28, 28)
    expected = network(images)
    other = COPIES[kind](network)
    torch.testing.assert_close(other(images), expected)
    if kind in ("deepcopy", "pickle"):
        assert flops(other, 28) < 0.8 * flops(plain(RESNET), 28)
        other.load_state_dict(build(RESNET, 1).state_dict())
        torch.testing.assert_close(other(images), build(RESNET, 1).eval()(images))
        assert torch.equal(network(images), expected)


@pytest.mark.parametrize("kind", ["deepcopy", "pickle"])
def test_settings_that_are_changed_later_count(kind: str) -> None:
    network = COPIES[kind](build(RESNET)).eval()
    theirs = plain(RESNET).eval()
    for one in (network, theirs):
        one.layer4[1].conv1.padding = (2, 2)
        one.layer4[1].conv1.dilation = (2, 2)
        one.conv1.stride = (1, 1)  # type: ignore[assignment, method-assign]
        mirrored = nn.Conv2d(512, 512, 3, padding=1, padding_mode="replicate")
        one.layer4[1].conv2.padding_mode = "replicate"
        one.layer4[
            1
        ].conv2._reversed_padding_repeated_twice = mirrored._reversed_padding_repeated_twice
    images = torch.rand(2, 3, 28, 28)
    torch.testing.assert_close(network(images), theirs(images))


def test_a_network_is_freed_at_once_and_a_shallow_copy_of_a_layer_lives_on() -> None:
    network, images = _tiny(), torch.rand(2, 4, 1, 1)
    leave_out_padding(network)
    shallow = copy.copy(network[2])
    expected = shallow(images)
    gone = weakref.ref(network[2])
    gc.disable()
    try:
        del network
        assert gone() is None
    finally:
        gc.enable()
    assert torch.equal(shallow(images), expected)
    assert torch.equal(pickle.loads(pickle.dumps(shallow))(images), expected)


def _tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


def test_gradients_of_single_images_by_vmap() -> None:
    network, images = _tiny(), torch.rand(5, 3, 2, 2)
    leave_out_padding(network)
    weights = dict(network.named_parameters())

    def loss(weights: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        return functional_call(network, weights, (image[None],)).square().sum()

    gradients = vmap(grad(loss), in_dims=(None, 0))(weights, images)
    for number, image in enumerate(images):
        network.zero_grad()
        network(image[None]).square().sum().backward()
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(gradients[name][number], parameter.grad)


def test_low_precision_one_image_by_itself_and_no_image_at_all() -> None:
    network, theirs = _tiny()[:3], _tiny()[:3]
    leave_out_padding(network)
    images = torch.rand(2, 3, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        low, expected = network(images), theirs(images)
    assert low.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(low, expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(network(images[0]), theirs(images[0]))
    assert network(images[:0]).shape == theirs(images[:0]).shape == (0, 4, 1, 1)


def test_a_network_that_is_handed_over_computes_less_and_comes_back_as_it_was() -> None:
    theirs = plain(RESNET)
    taken = given(theirs, (3, 28))
    assert flops(taken.model, 28) < 0.8 * flops(theirs, 28)
    assert not any("_conv_forward" in vars(module) for module in taken.plain.modules())
    assert not any("_conv_forward" in vars(module) for module in theirs.modules())


def test_training_goes_the_same_way() -> None:
    networks = [build(RESNET, 1).train(), plain(RESNET, 1).train()]
    images, labels = torch.rand(8, 3, 28, 28), torch.arange(8) % 7
    losses = []
    for network in networks:
        optimizer = torch.optim.SGD(network.parameters(), 1e-3, 0.9)
        for _ in range(3):
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    state = networks[1].state_dict()
    for name, value in networks[0].state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-4, atol=1e-4)
