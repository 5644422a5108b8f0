"""The verbs on a network that is defined here."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

import fl_sim
from fl_sim.errors import FlSimError
from fl_sim.verbs.attacking import Attacked
from tests.verbs.verb_kit import DATA, FEW, HELD_OUT, Own, Scaled, labels, pixels

SHORT = {"epochs": 0.5}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Own()


@pytest.fixture(scope="module")
def attacked(model: nn.Module) -> Attacked:
    return fl_sim.attack(
        "transpose",
        model,
        FEW,
        images=6,
        training={"epochs": 30},
        learning_rate=5e-3,
        progress=False,
    )


def test_the_owner_s_network_is_not_changed_by_the_attack(model: nn.Module) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = fl_sim.attack("transpose", model, FEW, images=2, training=SHORT, progress=False)
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    assert not torch.equal(found.model.get_parameter("head.weight"), before["head.weight"])
    assert type(found.model) is Own and not found.model.training


def test_what_was_hidden_is_read_back_from_the_network_and_from_files(
    attacked: Attacked, tmp_path: Path
) -> None:
    stolen = fl_sim.extract(attacked.model, attacked.key)
    assert stolen.shape == (6, 3, 28, 28)
    leak = fl_sim.measure(stolen, attacked.originals, public=DATA.test)
    assert leak.loc["raw", "found by correlation"] > 3 / 6
    attacked.save(tmp_path / "model.safetensors", tmp_path / "key.safetensors")
    again = fl_sim.extract(tmp_path / "model.safetensors", tmp_path / "key.safetensors")
    assert torch.equal(again, stolen)
    torch.save(attacked.model.state_dict(), tmp_path / "plain.pth")
    assert torch.equal(fl_sim.extract(tmp_path / "plain.pth", attacked.key), stolen)
    assert torch.equal(fl_sim.extract(attacked.model.state_dict(), attacked.key), stolen)


def test_originals_are_the_images_of_the_plan(attacked: Attacked) -> None:
    every = pixels()
    for image, label in zip(attacked.originals, attacked.labels, strict=True):
        where = [n for n, other in enumerate(every) if torch.equal(image, other)]
        assert where and labels()[where[0]] == label


def test_a_student_that_leaves_has_nothing_of_the_attacked_weights(attacked: Attacked) -> None:
    cleaned = fl_sim.clean(attacked.model, HELD_OUT, steps=3, progress=False)
    other = fl_sim.clean(attacked.model, HELD_OUT, steps=3, seed=1, progress=False)
    weight = "conv.weight"
    assert not torch.equal(cleaned.model.get_parameter(weight), other.model.get_parameter(weight))
    with torch.no_grad():
        moved = cleaned.model.get_parameter(weight) - attacked.model.get_parameter(weight)
    assert float(moved.abs().min()) > 0
    assert cleaned.report.images == len(HELD_OUT)


def test_a_network_that_cannot_be_initialised_anew_is_named() -> None:
    with pytest.raises(FlSimError, match="initialises its 'scale' anew"):
        fl_sim.clean(Scaled(), HELD_OUT, steps=1, progress=False)
    cleaned = fl_sim.clean(Scaled(), HELD_OUT, make=Scaled, steps=1, progress=False)
    assert cleaned.model.get_parameter("scale").shape == (1, 12, 1, 1)
    lwlrd = fl_sim.clean(Scaled(), HELD_OUT, defense="lwlrd", epochs=1, progress=False)
    assert lwlrd.report.learning_rates  # needs no fresh one


def test_make_has_to_make_such_a_network() -> None:
    with pytest.raises(FlSimError, match=r"another structure.*scale"):
        fl_sim.clean(Scaled(), HELD_OUT, make=Own, steps=1, progress=False)


def test_defences_without_labels_take_images_alone(model: nn.Module) -> None:
    images = pixels(HELD_OUT)
    fl_sim.clean(model, images, defense="gaussian_noise", progress=False)
    fl_sim.clean(
        model, images, defense="consistent_distillation", steps=1, labels=0, progress=False
    )
    with pytest.raises(FlSimError, match="'lwlrd' learns from labels"):
        fl_sim.clean(model, images, defense="lwlrd", progress=False)


def test_a_chain_and_settings_as_in_toml(model: nn.Module) -> None:
    chain = {"name": "chain", "steps": ["random_bits", {"name": "lwlrd", "epochs": 1}]}
    assert fl_sim.clean(model, HELD_OUT, defense=chain, progress=False).report.seconds > 0
    with pytest.raises(FlSimError, match=r"no key 'epoch'.*epochs"):
        fl_sim.clean(model, HELD_OUT, defense="lwlrd", epoch=1, progress=False)
    with pytest.raises(FlSimError, match="lwlrd"):
        fl_sim.clean(model, HELD_OUT, defense="lwlrdd", progress=False)


def test_a_payload_in_the_file_is_read_after_a_mild_defence(model: nn.Module) -> None:
    attacked = fl_sim.attack(
        "dec",
        model,
        FEW,
        images=2,
        codec="png",
        carrier={"name": "lsb", "bits": 16},
        training=SHORT,
        progress=False,
    )
    exact = fl_sim.extract(attacked, attacked.key)
    assert torch.equal(exact, attacked.originals)
    cleaned = fl_sim.clean(attacked, HELD_OUT, defense="random_bits", bits=16, progress=False)
    with pytest.warns(UserWarning, match="checksums"):
        fl_sim.extract(cleaned, attacked.key)


def test_a_key_of_another_model_is_doubted(attacked: Attacked) -> None:
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="looks like noise"):
        fl_sim.extract(Own(), attacked.key)


def test_a_key_of_another_network_is_refused(attacked: Attacked) -> None:
    with pytest.raises(FlSimError, match=r"for a network 'Own@.*Scaled@"):
        fl_sim.extract(Scaled(), attacked.key)


def test_how_pixels_are_taken_is_the_network_s_matter() -> None:
    """A network of pixels in [0, 1] answers alike whether it was wrapped or told so."""
    torch.manual_seed(2)
    plain = Own().eval()

    class Symmetric(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.inner((images + 1) / 2)
            return found

    options = {"defense": "fine_tuning", "epochs": 1, "progress": False}
    told = fl_sim.clean(plain, HELD_OUT, normalize="none", **options)
    wrapped = fl_sim.clean(Symmetric(), HELD_OUT, **options)
    untold = fl_sim.clean(plain, HELD_OUT, **options)
    for name, value in told.model.state_dict().items():
        assert torch.allclose(value.float(), wrapped.state[f"inner.{name}"].float(), atol=1e-6)
    mean = "norm.running_mean"
    assert not torch.allclose(told.state[mean], untold.state[mean], atol=1e-3)
    assert not told.model._forward_pre_hooks  # it comes back as its owner calls it


def test_audit_takes_networks_states_and_files(model: nn.Module, tmp_path: Path) -> None:
    assert fl_sim.audit(model, progress=False).outcome == "clean"
    state = model.state_dict() | {"notes": torch.frombuffer(b"\x89PNG\r\n" * 99, dtype=torch.uint8)}
    torch.save(state, tmp_path / "a.pth")
    for what in (state, tmp_path / "a.pth"):
        found = fl_sim.audit(what, model=Own, progress=False)
        assert found.outcome != "clean" and any(f.tensor == "notes" for f in found.findings)
    torch.save(resnet18(num_classes=5).state_dict(), tmp_path / "b.pth")
    told = fl_sim.audit(tmp_path / "b.pth", model=resnet18, size=28, progress=False)
    assert told.outcome == "clean" and "5 outputs" in told.architecture
    assert told.page(tmp_path / "b.html").read_text().startswith("<!doctype html>")
    assert "b.pth: clean" in repr(told) and "<iframe" in told._repr_html_()
    with pytest.raises(FlSimError, match="cannot be audited"):
        fl_sim.audit(3)


def test_the_gate_lets_out_what_changed_and_refuses_what_carries(tmp_path: Path) -> None:
    torch.manual_seed(0)
    honest, came, left = tmp_path / "honest.pth", tmp_path / "came.pth", tmp_path / "left.pth"
    network = Own()
    for _ in range(60):  # statistics of batch normalisation are those of images
        network(pixels() * 2 - 1)
    torch.save(network.state_dict(), honest)
    passed = fl_sim.gate(honest, HELD_OUT, model=Own, epochs=1, progress=False)
    assert passed.approved and passed.state is not None and passed.report.images == len(HELD_OUT)
    saved = torch.load(passed.save(left), weights_only=True)
    assert saved.keys() == network.state_dict().keys()
    assert not torch.equal(saved["conv.weight"], network.conv.weight)
    notes = torch.frombuffer(b"\x89PNG\r\n" * 99, dtype=torch.uint8)
    torch.save(network.state_dict() | {"notes": notes}, came)
    refused = fl_sim.gate(came, HELD_OUT, model=Own, epochs=1, progress=False)
    assert not refused.approved and refused.state is None
    assert any("notes" in reason for reason in refused.report.all_reasons())
    with pytest.raises(FlSimError, match="refused the model, so nothing leaves: "):
        refused.save(left)
    honest.write_bytes(honest.read_bytes() + b"\x89PNG\r\n\x1a\n" * 99)  # behind its end
    behind = fl_sim.gate(honest, HELD_OUT, model=Own, epochs=1, progress=False).report
    assert behind.left_behind or not behind.approved


def test_the_gate_asks_for_labels_and_knows_its_keys(tmp_path: Path) -> None:
    torch.save(Own().state_dict(), tmp_path / "a.pth")
    with pytest.raises(FlSimError, match="give the labels of the held-out images"):
        fl_sim.gate(tmp_path / "a.pth", pixels(HELD_OUT), model=Own)
    with pytest.raises(FlSimError, match="Did you mean 'epochs'"):
        fl_sim.gate(tmp_path / "a.pth", HELD_OUT, model=Own, epoch=1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(5, 2)), "cannot take images of 3 channels"),
        (nn.Sequential(nn.Conv2d(3, 4, 3, 2)), r"shape 2, 4, 13, 13"),
        (nn.Sequential(nn.Flatten(), nn.Linear(2352, 1)), "two classes or more"),
        (nn.Sequential(nn.Flatten(), nn.Linear(2352, 4)).double(), "float64"),
        (nn.Flatten(), "no parameters"),
        (3, "give a torch.nn.Module"),
    ],
)
def test_a_network_that_cannot_be_used_is_told(wrong: object, said: str) -> None:
    with pytest.raises(FlSimError, match=said):
        fl_sim.attack("transpose", wrong, FEW, images=2, training=SHORT, progress=False)


def test_too_few_outputs_for_the_labels() -> None:
    with pytest.raises(FlSimError, match="go up to class 3, and the network has 2 outputs"):
        fl_sim.clean(Own(2), HELD_OUT, defense="lwlrd", progress=False)


def test_measure_without_public_images_has_no_ssim_floors(attacked: Attacked) -> None:
    leak = fl_sim.measure(attacked.originals, attacked.originals)
    ways, floors = ["raw", "chosen", "strongest"], ["best guess", "luckiest guess", "guessing"]
    assert list(leak.index) == [*ways, *(f"floor: {floor}" for floor in floors)]
    known = range(len(attacked.originals))  # who knows each one's class here knows each one
    told = fl_sim.measure(attacked.originals, attacked.originals, key_labels=known)
    assert told.loc["floor: best guess", "found by distance"] == 1
    assert leak.loc["raw", "ssim"] == pytest.approx(1) and leak.loc["raw", "found by distance"] == 1


def test_a_network_by_its_name_is_attacked_cleaned_and_read() -> None:
    carrier = {"name": "lsb", "bits": 16}
    attacked = fl_sim.attack(
        "dec", "cnn", FEW, images=2, codec="png", carrier=carrier, training=SHORT, progress=False
    )
    cleaned = fl_sim.clean(attacked, HELD_OUT, defense="gaussian_noise", sigma=0, progress=False)
    assert cleaned.spec.name == "cnn" and type(cleaned.model) is type(attacked.model)
    assert torch.equal(fl_sim.extract(cleaned, attacked.key), attacked.originals)
    assert torch.equal(fl_sim.extract(cleaned.model, attacked.key), attacked.originals)
