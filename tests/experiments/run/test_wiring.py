"""Who is given which images: the trainings of a run, told apart by their streams, and the rows.

The run has all that trains: an attack, a defence, the floor of utility, a rehearsal of attack and
defence, and networks trained on what was stolen.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.run.centralized import plan_attack
from experiments.run.folder import load_pictures
from experiments.run.result import Result
from experiments.run.running import Run
from experiments.run.scenario import Scenario
from experiments.run.start import run
from experiments.run.worth_of_stolen import Worth
from fl_sim.artifact import read_key
from fl_sim.data.base import Split
from fl_sim.defenses.base import Release
from fl_sim.progress import SILENT
from fl_sim.training import LocalTraining

VALUES: dict[str, Any] = {
    "mode": "centralized",
    "dataset": {"name": "phantoms", "size": 16, "train": 120, "validation": 30, "test": 40},
    "model": "cnn",
    "data": {"public_images": 12, "images": 20},
    "training": {"epochs": 4, "batch_size": 32},
    "attack": {"name": "transpose", "images": 8, "memory_steps": 4},
    "attacker": {"knows_defense": True, "rehearsal_defenses": 1, "restorations": ["affine"]},
    "defense": {"name": "lwlrd", "epochs": 8, "batch_size": 8},
    "measure": {"scratch_epochs": 2, "usability_epochs": 2},
    "threads": 1,
}
Given = list[tuple[tuple[Any, ...], Split]]


class Wired:
    """A run, and what its trainings and releases were given, in their order."""

    def __init__(self, result: Result, trained: Given, released: Given, again: Run) -> None:
        self.result, self.trained, self.released, self.again = result, trained, released, again
        self.case = again.case

    def splits(self, given: Given, *purpose: Any) -> list[Split]:
        return [split for path, split in given if path[: len(purpose)] == purpose]


@pytest.fixture(scope="module")
def wired(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    trained: Given = []
    released: Given = []
    folder = tmp_path_factory.mktemp("wiring")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FL_SIM_CACHE", str(folder / "cache"))
        _note(patch, LocalTraining, trained, "data")
        _note(patch, Release, released, "held_out")
        result = run(VALUES, folder / "run", progress=False)
    again = Run(Scenario.from_mapping(VALUES), folder / "again", None)
    yield Wired(result, trained, released, again)


def _note(patch: pytest.MonkeyPatch, kind: type, given: Given, split: str) -> None:
    original: Any = kind.__init__  # type: ignore[misc]

    def noting(self: Any, *values: Any, **named: Any) -> None:
        original(self, *values, **named)
        given.append((self.stream.path, getattr(self, split)))

    patch.setattr(kind, "__init__", noting)


def _bytes(split: Split) -> list[bytes]:
    """Return the pixels and the label of each image."""
    pixels, labels = split.tensors()
    return [
        image.numpy().tobytes() + label.numpy().tobytes()
        for image, label in zip(pixels, labels, strict=True)
    ]


def _pixels(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.tensors()[0]}


def test_the_lake_trains_on_its_training_images(wired: Wired) -> None:
    (lake,) = wired.splits(wired.trained, "hospital", 0)
    assert _bytes(lake) == _bytes(wired.case.train)


def test_the_floor_of_utility_is_trained_on_the_held_out_images(wired: Wired) -> None:
    (alone,) = wired.splits(wired.trained, "scratch floor")
    assert _bytes(alone) == _bytes(wired.case.held_out)


def test_the_defence_gets_the_held_out_images(wired: Wired) -> None:
    (given,) = wired.splits(wired.released, "release")
    assert _bytes(given) == _bytes(wired.case.held_out)


def test_a_rehearsal_gets_public_images_only(wired: Wired) -> None:
    public = set(_bytes(wired.case.public))
    played = [
        *wired.splits(wired.trained, "rehearsal"),
        *wired.splits(wired.released, "rehearsal"),
    ]
    assert len(played) >= 2
    for split in played:
        assert set(_bytes(split)) <= public
        assert not _pixels(split) & _pixels(wired.case.train)


def test_nothing_is_trained_or_cleaned_with_test_images(wired: Wired) -> None:
    test = _pixels(wired.case.test)
    assert len(wired.trained) >= 6
    for path, split in [*wired.trained, *wired.released]:
        assert not _pixels(split) & test, path


def test_each_training_is_known(wired: Wired) -> None:
    purposes = {path[0] for path, _ in wired.trained}
    assert purposes == {"hospital", "scratch floor", "rehearsal", "usability"}


def test_the_originals_are_the_images_that_were_stolen(wired: Wired) -> None:
    plan = plan_attack(wired.again, wired.again.scenario.make_attack())
    assert plan is not None
    pictures = load_pictures(wired.result.out)
    true, labels = wired.case.train.batch(plan.indices)
    assert torch.equal(pictures["original"], true) and torch.equal(plan.targets, true)
    key = read_key(wired.result.key)
    assert set(key.tensors) == set(plan.key.tensors)
    assert len(np.unique(labels)) > 1


def test_each_row_on_what_images_are_worth_is_of_those_images(wired: Wired) -> None:
    """Trained anew on the kept images, each gives its row, and no two rows are alike."""
    plan = plan_attack(wired.again, wired.again.scenario.make_attack())
    assert plan is not None
    again, pictures = wired.again, load_pictures(wired.result.out)
    labels = torch.tensor(wired.case.train.labels[plan.indices])
    worth = Worth(again.scenario, again.case, again.owner, SILENT)
    best = max(
        (n for n in pictures if n.startswith("release/") and not n.endswith("/ssim")),
        key=lambda name: float(pictures[f"{name}/ssim"].mean()),
    )
    assert best != "release/raw"
    images = {
        ("release", "stolen_raw"): pictures["release/raw"],
        ("release", "stolen"): pictures[best],
        ("upload", "originals"): pictures["original"],
    }
    table = wired.result.table
    found = []
    with again.owner.threads():
        for (stage, kind), of in images.items():
            rows = table[(table["stage"] == stage) & (table["metric"] == f"auc_trained_on_{kind}")]
            assert rows["value"].tolist() == [worth.of(of, labels)["auc"]], kind
            found.append(rows["value"].item())
    assert len(set(found)) == len(found)


def test_a_run_says_how_large_its_key_is(wired: Wired) -> None:
    table = wired.result.table
    size = table.loc[table["metric"] == "key_bytes", "value"].tolist()
    assert size == [wired.result.key.stat().st_size]


def test_the_key_read_back_is_the_one_that_was_planned(wired: Wired, tmp_path: Path) -> None:
    plan = plan_attack(wired.again, wired.again.scenario.make_attack())
    assert plan is not None
    key = read_key(wired.result.key)
    assert key.settings == plan.key.settings
    for name, tensor in plan.key.tensors.items():
        assert torch.equal(key.tensors[name], tensor)
