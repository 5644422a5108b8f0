"""``fl_sim.membership`` on networks that learned by heart, and on images never seen."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fl_sim
from fl_sim.data.base import Split
from fl_sim.membership_inference.outcome import Membership

IMAGES = 80
LONG = {"epochs": 40, "learning_rate": 2e-3, "batch_size": 16}


def _noise(seed: int, images: int = IMAGES) -> Split:
    """Images that nothing but learning by heart tells apart: labels are drawn."""
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (images, 8, 8, 1), dtype=np.uint8)
    patients = np.array([f"{seed}-{number // 2}" for number in range(images)])
    return Split(pixels, draw.integers(0, 2, images), patients)


def _network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def _trained_on(split: Split) -> nn.Module:
    network = _network()
    pixels, labels = split.tensors()
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(pixels * 2 - 1), labels).backward()
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def sets() -> tuple[Split, Split, Split]:
    return _noise(1), _noise(2), _noise(3)


@pytest.fixture(scope="module")
def by_heart(sets: tuple[Split, Split, Split]) -> nn.Module:
    torch.manual_seed(0)
    return _trained_on(sets[0])


def _asked(model: nn.Module, *sets: Split, **options: object) -> Membership:
    return fl_sim.membership(model, *sets, training=LONG, progress=False, **options)


@pytest.mark.parametrize("method", ["rmia", "lira"])
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_what_was_learned_by_heart_is_found(
    method: str, mode: str, by_heart: nn.Module, sets: tuple[Split, Split, Split]
) -> None:
    found = _asked(by_heart, *sets[:2], method=method, mode=mode)
    assert found.auc > 0.85 and found.tpr(0.05) > 0.3
    table = found.records
    assert table["member"][:20].mean() > 0.9
    assert len(found.by_patient) == IMAGES // 2


def test_of_images_never_seen_nothing_is_found(
    by_heart: nn.Module, sets: tuple[Split, Split, Split]
) -> None:
    found = _asked(by_heart, sets[2], sets[1])
    low, high = found.auc_interval
    assert low < 0.5 < high and found.tpr(0.05) < 0.2


def test_a_second_model_finds_the_reference_models_there(
    by_heart: nn.Module, sets: tuple[Split, Split, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _asked(by_heart, *sets[:2])
    monkeypatch.setattr("fl_sim.membership_inference.references.train", None)
    again = _asked(by_heart, *sets[:2])
    assert again.auc == first.auc
    # The other way round, members are those of before that are none: the same pool.
    assert _asked(by_heart, sets[1], sets[0]).auc == pytest.approx(1 - first.auc)


def test_arrays_with_labels_beside_them_do_as_well(
    by_heart: nn.Module, sets: tuple[Split, Split, Split]
) -> None:
    seen, fresh = sets[:2]
    plain = fl_sim.membership(
        by_heart,
        seen.images,
        fresh.images,
        member_labels=seen.labels,
        nonmember_labels=fresh.labels,
        training=LONG,
        progress=False,
    )
    assert plain.auc == _asked(by_heart, seen, fresh).auc
    assert "patient" not in plain.records


def test_a_model_file_is_asked_without_running_it(
    by_heart: nn.Module, sets: tuple[Split, Split, Split], tmp_path: Path
) -> None:
    path = tmp_path / "theirs.pth"
    torch.save(by_heart.state_dict(), path)
    found = _asked(path, *sets[:2], make=_network)
    assert found.auc > 0.85


def test_what_does_not_fit_is_refused(
    by_heart: nn.Module, sets: tuple[Split, Split, Split]
) -> None:
    seen, fresh = sets[:2]
    with pytest.raises(fl_sim.FlSimError, match="labels; give those of the members"):
        fl_sim.membership(by_heart, seen.images, fresh, progress=False)
    with pytest.raises(fl_sim.FlSimError, match="Did you mean 'lira'"):
        _asked(by_heart, seen, fresh, method="lire")
    with pytest.raises(fl_sim.FlSimError, match="references"):
        _asked(by_heart, seen, fresh, references=3)
    with pytest.raises(fl_sim.FlSimError, match="epoch"):
        fl_sim.membership(by_heart, seen, fresh, training={"epoch": 3}, progress=False)
    with pytest.raises(fl_sim.FlSimError, match="for a model file"):
        _asked(by_heart, seen, fresh, make="resnet18")
