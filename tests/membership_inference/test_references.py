"""Reference models: which images they are trained on, and that each is trained once."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fl_sim.data.base import Split, Task
from fl_sim.errors import FlSimError
from fl_sim.membership_inference import references as module
from fl_sim.membership_inference.references import Pool, Recipe, half, pool_of, references
from fl_sim.models.base import ModelSpec
from fl_sim.training import LocalTraining, TrainingSettings, train

TASK = Task("multi-class", ("a", "b"))
SPEC = ModelSpec(name="mlp", channels=1, size=8, classes=2)
SETTINGS = TrainingSettings(epochs=1)


def _split(images: int, seed: int) -> Split:
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (images, 8, 8, 1), dtype=np.uint8)
    return Split(
        pixels, draw.integers(0, 2, images), np.array([f"p{seed}-{i}" for i in range(images)])
    )


def _recipe(**changes: object) -> Recipe:
    return Recipe(SPEC, TASK, SETTINGS.model_copy(update=changes))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[LocalTraining]:
    """What is trained, into an empty cache."""
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path))
    calls: list[LocalTraining] = []
    own = train

    def noted(run: LocalTraining) -> object:
        calls.append(run)
        return own(run)

    monkeypatch.setattr(module, "train", noted)
    return calls


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return sorted(map(bytes, one)) == sorted(map(bytes, other))


def test_a_pair_divides_the_pool_and_every_image_is_in_half_of_the_models() -> None:
    for images in (40, 41):
        included = np.stack([half(images, number) for number in range(6)])
        assert (included.sum(axis=0) == 3).all()
        assert set(included.sum(axis=1)) <= {20, 21}
        assert not np.array_equal(included[0], included[2])


def test_a_pool_is_the_same_in_any_order_and_knows_where_its_images_came_from() -> None:
    first, second = _split(12, 1), _split(7, 2)
    one, other = pool_of(first, second), pool_of(second, first)
    assert one.digest == other.digest
    np.testing.assert_array_equal(one.split.images, other.split.images)
    for split, places in zip((first, second), one.places, strict=True):
        np.testing.assert_array_equal(one.split.images[places], split.images)
        np.testing.assert_array_equal(one.split.labels[places], split.labels)
        assert one.split.patients is not None and split.patients is not None
        assert (one.split.patients[places] == split.patients).all()
    relabelled = Split(first.images, 1 - first.labels, first.patients)
    assert pool_of(relabelled, second).digest != one.digest


def test_models_are_trained_on_the_half_that_is_said(trained: list[LocalTraining]) -> None:
    pool = pool_of(_split(20, 1), _split(10, 2))
    known = references(pool, _recipe(), 4)
    assert known.odds.shape == known.included.shape == (4, 30)
    for run, included in zip(trained, known.included, strict=True):
        assert _same(run.data.images, pool.split.images[included])
        assert not _same(run.data.images, pool.split.images[~included])
    np.testing.assert_array_equal(known.of(pool.places[1]).odds, known.odds[:, pool.places[1]])


def test_each_is_trained_once_whoever_asks_and_four_are_the_first_of_six(
    trained: list[LocalTraining],
) -> None:
    first, second = _split(20, 1), _split(10, 2)
    four = references(pool_of(first, second), _recipe(), 4)
    again = references(pool_of(second, first), _recipe(), 4)
    assert len(trained) == 4
    np.testing.assert_array_equal(four.odds, again.odds)
    six = references(pool_of(first, second), _recipe(), 6)
    assert len(trained) == 6
    np.testing.assert_array_equal(six.odds[:4], four.odds)
    for other in (
        lambda: references(pool_of(first, second), _recipe(epochs=2), 2),
        lambda: references(pool_of(first, _split(10, 3)), _recipe(), 2),
        lambda: references(pool_of(first, second), Recipe(SPEC, TASK, SETTINGS, from_file="x"), 2),
    ):
        before = len(trained)
        other()
        assert len(trained) == before + 2


def test_an_interrupted_call_goes_on_behind_the_last_model(
    trained: list[LocalTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, own = pool_of(_split(20, 1)), module.__dict__["train"]

    def interrupted(run: LocalTraining) -> object:
        if len(trained) == 3:
            raise KeyboardInterrupt
        return own(run)

    monkeypatch.setattr(module, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        references(pool, _recipe(), 6)
    monkeypatch.setattr(module, "train", own)
    whole = references(pool, _recipe(), 6)
    assert len(trained) == 6 and whole.odds.shape == (6, 20)


@pytest.mark.parametrize("damage", ["cut", "other", "nan", "pickle"])
def test_damaged_answers_are_refused_by_name(
    damage: str, trained: list[LocalTraining], tmp_path: Path
) -> None:
    pool: Pool = pool_of(_split(20, 1))
    references(pool, _recipe(), 2)
    path = next(tmp_path.glob("reference-models/*/0.npy"))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    elif damage == "other":
        np.save(path, np.zeros(5))
    elif damage == "nan":
        np.save(path, np.full(20, np.nan))
    else:
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(FlSimError, match="damaged; delete that file"):
        references(pool, _recipe(), 2)


def test_models_of_a_users_own_network_are_kept_in_this_process_alone(
    trained: list[LocalTraining], tmp_path: Path
) -> None:
    from fl_sim.models.lent import Pixels, lend

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    spec = lend(network, Pixels(1, 8))
    pool = pool_of(_split(20, 7))
    first = references(pool, Recipe(spec, TASK, SETTINGS), 2)
    second = references(pool, Recipe(spec, TASK, SETTINGS), 2)
    assert len(trained) == 2 and not list(tmp_path.glob("reference-models/*/*.npy"))
    np.testing.assert_array_equal(first.odds, second.odds)


def test_odd_numbers_and_tiny_pools_are_refused() -> None:
    with pytest.raises(FlSimError, match="even number"):
        references(pool_of(_split(20, 1)), _recipe(), 3)
    with pytest.raises(FlSimError, match="cannot be halved"):
        references(pool_of(_split(3, 1)), _recipe(), 2)
