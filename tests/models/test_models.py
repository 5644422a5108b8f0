"""Networks: sizes, stems, determinism, and parameters in forward order."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fl_sim.artifact import read_artifact
from fl_sim.errors import FlSimError
from fl_sim.models import MODELS, ModelSpec, build_model, layers

CASES = [
    ("resnet18", "default"),
    ("resnet18", "small"),
    ("densenet121", "small"),
    ("vgg11", "small"),
    ("vit", "default"),
    ("cnn", "default"),
    ("mlp", "default"),
    ("square_head", "default"),
]


@pytest.mark.parametrize(("name", "stem"), CASES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_model_classifies_small_images(name: str, stem: str, channels: int) -> None:
    model = build_model(name, channels, 28, 5, stem).eval()
    assert model(torch.rand(2, channels, 28, 28)).shape == (2, 5)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = build_model("cnn", 1, 28, 2, seed=3).state_dict()
    second = build_model("cnn", 1, 28, 2, seed=3).state_dict()
    other = build_model("cnn", 1, 28, 2, seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_default_stem_is_torchvisions_own() -> None:
    from torchvision.models import densenet121, resnet18

    for name, original in (("resnet18", resnet18), ("densenet121", densenet121)):
        ours = build_model(name, 3, 64, 7).state_dict()
        theirs = original(num_classes=7).state_dict()
        assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("resnet", 3, 28, 7), "Did you mean 'resnet18'"),
        (("densenet121", 3, 28, 7), 'set its stem to "small"'),
        (("cnn", 3, 28, 7, "small"), "has no stem 'small'"),
        (("vit", 3, 37, 7), "37 pixels"),
        (("cnn", 2, 28, 7), "1 or 3 channels"),
        (("unet", 2, 32, 7), "1 or 3 channels"),
    ],
)
def test_impossible_models_are_refused_in_one_sentence(
    arguments: tuple[str, int, int, int], words: str
) -> None:
    with pytest.raises(FlSimError, match=words):
        build_model(*arguments)


def test_every_registered_model_has_a_line_about_it() -> None:
    shipped = [e for e in MODELS.entries() if e.component.build.__module__.startswith("fl_sim.")]
    # Those that can also segment have tests of their own.
    classifiers = {e.name for e in shipped if e.component.tasks == ("classification",)}
    assert {name for name, _ in CASES} == classifiers
    assert all(entry.summary for entry in shipped)


def test_a_specification_from_before_models_had_tasks_and_settings_is_read(
    tmp_path: Path,
) -> None:
    header = {"name": "cnn", "channels": 1, "size": 16, "classes": 3, "stem": "default"}
    path = tmp_path / "old.safetensors"
    save_file(build_model("cnn", 1, 16, 3).state_dict(), path, {"fl_sim.model": json.dumps(header)})
    artifact = read_artifact(path)
    assert artifact.spec == ModelSpec(name="cnn", channels=1, size=16, classes=3)
    assert artifact.model()(torch.rand(2, 1, 16, 16)).shape == (2, 3)


def test_a_model_refuses_keys_that_it_does_not_have() -> None:
    with pytest.raises(FlSimError, match="The model 'cnn' has no key 'channels'"):
        build_model("cnn", 1, 28, 2, settings={"channels": [8, 16]})


class _OutOfOrder(nn.Module):
    """Registers its last layer first, and a head that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.unused = nn.Linear(3, 3)
        self.first = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x.flatten(1))))


def test_layers_come_in_forward_order_and_unused_ones_last() -> None:
    names = [layer.name for layer in layers(_OutOfOrder(), (3, 2, 2), "module")]
    assert names == ["first", "last", "unused"]


@pytest.mark.parametrize(("name", "stem"), CASES)
@pytest.mark.parametrize("by", ["tensor", "module", "block", "depth"])
def test_every_parameter_is_in_exactly_one_layer(name: str, stem: str, by: str) -> None:
    model = build_model(name, 3, 28, 7, stem)
    listed = [p for layer in layers(model, (3, 28, 28), by) for p in layer.parameters]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())


def test_blocks_of_resnet18_are_its_stem_its_residual_blocks_and_its_head() -> None:
    blocks = layers(build_model("resnet18", 3, 28, 7), (3, 28, 28), "block")
    inner = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert [block.name for block in blocks] == ["conv1", *inner, "fc"]
    assert blocks[0].parameters == ("conv1.weight", "bn1.weight", "bn1.bias")


def test_blocks_of_densenet121_are_its_dense_layers() -> None:
    blocks = layers(build_model("densenet121", 3, 28, 7, "small"), (3, 28, 28), "block")
    dense = [b for b in blocks if ".denselayer" in b.name]
    assert len(dense) == 6 + 12 + 24 + 16


def test_levels_of_resnet18_count_the_longest_path() -> None:
    levels = layers(build_model("resnet18", 3, 28, 7), (3, 28, 28), "depth")
    # The stem, two convolutions in each of eight blocks, and the head.
    assert [level.name for level in levels] == [f"depth {n}" for n in range(1, 19)]
    beside = next(level for level in levels if "layer2.0.downsample.0.weight" in level.parameters)
    assert "layer2.0.conv1.weight" in beside.parameters
    assert "layer2.0.bn1.bias" in beside.parameters
    assert levels[-1].parameters == ("fc.weight", "fc.bias")


def test_levels_of_densenet121_take_a_dense_block_for_one() -> None:
    levels = layers(build_model("densenet121", 3, 28, 7, "small"), (3, 28, 28), "depth")
    # The stem, four dense blocks, three transitions between them, and the head.
    assert len(levels) == 9
    for level, block in ((1, 1), (3, 2), (5, 3), (7, 4)):
        names = {name.split(".")[1] for name in levels[level].parameters}
        assert f"denseblock{block}" in names and not names & {
            f"denseblock{other}" for other in (1, 2, 3, 4) if other != block
        }


def test_levels_of_a_unet_go_down_and_up_again() -> None:
    settings = {"channels": (4, 8, 16), "residual_units": 0}
    model = build_model("unet", 1, 16, 2, settings=settings)
    levels = layers(model, (1, 16, 16), "depth")
    assert [len(level.parameters) > 0 for level in levels] == [True] * 5
    assert levels[0].parameters[0].startswith("model.0")
    assert levels[-1].parameters[0].startswith("model.2")


def test_levels_put_what_nothing_uses_last() -> None:
    levels = layers(_OutOfOrder(), (3, 2, 2), "depth")
    assert [level.name for level in levels] == ["depth 1", "depth 2", "unused"]
    assert [level.used for level in levels] == [True, True, False]
