"""What wraps a state dictionary: prefixes, further copies, optimizers, trainers' own entries."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from fl_sim.checkpoints import read_checkpoint
from tests.checkpoints.checkpoint_kit import loud, network, same, saved, weights

State = dict[str, torch.Tensor]


def _under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def _trained(optimizer: str, **settings: Any) -> tuple[State, dict[str, Any]]:
    model = network()
    made = getattr(torch.optim, optimizer)(model.parameters(), lr=0.01, **settings)
    model(torch.randn(5, 1, 8, 8)).sum().backward()
    made.step()
    return model.state_dict(), made.state_dict()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "net."])
def test_a_prefix_of_all_is_taken_off(tmp_path: Path, prefix: str) -> None:
    read = read_checkpoint(saved(tmp_path / "a.pth", _under(prefix, weights())))
    assert same(read.state, dict(weights())) and read.findings == ()


def test_a_prefix_of_most_is_taken_off_and_the_rest_is_told(tmp_path: Path) -> None:
    swa = AveragedModel(network()).state_dict()
    read = read_checkpoint(saved(tmp_path / "a.pth", swa))
    assert set(read.state) == {*weights(), "n_averaged"}
    assert "n_averaged" in read.findings[0].what and loud(read) == []
    lightning = {"state_dict": {**_under("model.", weights()), "criterion.weight": torch.ones(3)}}
    read = read_checkpoint(saved(tmp_path / "b.pth", lightning))
    assert set(read.state) == {*weights(), "criterion.weight"}


def test_what_is_no_wrappers_prefix_stays(tmp_path: Path) -> None:
    state = _under("features.", weights())
    assert same(read_checkpoint(saved(tmp_path / "a.pth", state)).state, state)
    half = {**_under("model.", weights()), **_under("other.", weights())}
    assert set(read_checkpoint(saved(tmp_path / "b.pth", half)).state) == set(half)
    clash = {"model.w": torch.ones(1), "model.v": torch.ones(2), "w": torch.ones(3)}
    assert set(read_checkpoint(saved(tmp_path / "c.pth", clash)).state) == set(clash)


@pytest.mark.parametrize(
    "path", [("state_dict",), ("model",), ("model", "state_dict"), ("weights",), ("anything",)]
)
def test_the_weights_are_found_inside(tmp_path: Path, path: tuple[str, ...]) -> None:
    content: Any = _under("module.", weights())
    for key in reversed(path):
        content = {"epoch": 3, key: content}
    read = read_checkpoint(saved(tmp_path / "a.pth", content))
    assert same(read.state, dict(weights())) and loud(read) == []


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "SGD", "RMSprop"])
def test_an_optimizers_state_is_explained(tmp_path: Path, optimizer: str) -> None:
    settings = {"momentum": 0.9} if optimizer == "SGD" else {}
    state, optimizer_state = _trained(optimizer, **settings)
    content = {"model": state, "optimizer": optimizer_state, "optimizers": [optimizer_state]}
    read = read_checkpoint(saved(tmp_path / "a.pth", content))
    assert same(read.state, state) and loud(read) == []
    assert any("'optimizer'" in f.what for f in read.findings)


def test_what_only_looks_like_an_optimizer_is_not_explained(tmp_path: Path) -> None:
    state, optimizer = _trained("Adam")
    more = {**optimizer, "state": {**optimizer["state"], 99: {"exp_avg": torch.randn(200, 40)}}}
    assert loud(read_checkpoint(saved(tmp_path / "a.pth", {"model": state, "optimizer": more})))
    text = {**optimizer, "param_groups": [{"note": "s" * 9000}]}
    assert loud(read_checkpoint(saved(tmp_path / "b.pth", {"model": state, "optimizer": text})))
    often = {str(i): {"exp_avg": torch.randn(144, 10).t()} for i in range(9)}
    fake = {"state": often, "param_groups": []}
    assert loud(read_checkpoint(saved(tmp_path / "c.pth", {"model": state, "optimizer": fake})))


def test_copies_are_compared_with_the_weights(tmp_path: Path) -> None:
    state = weights()
    near = {n: t + 1e-4 if t.is_floating_point() else t for n, t in state.items()}
    far = {n: torch.randn_like(t) if t.is_floating_point() else t for n, t in state.items()}
    for copy, level, word in (
        (dict(state), "note", "bit for bit"),
        (near, "note", "correlation"),
        (far, "suspicious", "no average"),
    ):
        copy = {n: t.clone() for n, t in copy.items()}
        content = {"state_dict": state, "state_dict_ema": _under("module.", copy)}
        read = read_checkpoint(saved(tmp_path / "a.pth", content))
        assert same(read.copies["state_dict_ema"], copy) and same(read.state, dict(state))
        (finding,) = [f for f in read.findings if f.check == "copies"]
        assert finding.level == level and word in finding.what


def test_a_payload_in_one_layer_of_a_copy_is_seen(tmp_path: Path) -> None:
    copy = {n: t.clone() for n, t in weights().items()}
    copy["4.weight"] = torch.randn(copy["4.weight"].shape)
    read = read_checkpoint(saved(tmp_path / "a.pth", {"model": weights(), "ema": copy}))
    assert any("no average" in words for words in loud(read))
    copy = {**weights(), "more": torch.zeros(5000)}
    read = read_checkpoint(saved(tmp_path / "b.pth", {"model": weights(), "ema": copy}))
    assert any("do not have" in words for words in loud(read))


def test_a_copy_in_the_same_dictionary_is_set_apart(tmp_path: Path) -> None:
    mixed = {**_under("model.", weights()), **_under("ema_model.", weights())}
    mixed = {name: tensor.clone() for name, tensor in mixed.items()}
    read = read_checkpoint(saved(tmp_path / "a.pth", {"state_dict": mixed}))
    assert same(read.state, dict(weights())) and list(read.copies) == ["ema_model"]
    assert loud(read) == []


def test_a_second_network_is_told(tmp_path: Path) -> None:
    other = {"a.weight": torch.randn(400, 20), "b.weight": torch.randn(20, 3)}
    read = read_checkpoint(saved(tmp_path / "a.pth", {"model": weights(), "decoder": other}))
    assert same(read.state, dict(weights()))
    assert any("'decoder'" in words for words in loud(read))


def test_a_lightning_checkpoint_is_ordinary(tmp_path: Path) -> None:
    state, optimizer = _trained("Adam")
    content = {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": _under("model.", state),
        "loops": {"fit_loop": {"total": {"ready": 3}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': 'loss'}": {
                "best": torch.tensor(0.3),
                "path": "/x/y/last.ckpt",
            }
        },
        "optimizer_states": [optimizer],
        "lr_schedulers": [{"last_epoch": 3, "_last_lr": [0.1]}],
        "hyper_parameters": {"lr": 1e-3},
    }
    read = read_checkpoint(saved(tmp_path / "a.ckpt", content))
    assert same(read.state, state) and loud(read) == []
