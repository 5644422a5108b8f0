"""Two treatments on the same test images."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fl_sim.data.base import Task
from fl_sim.errors import FlSimError
from fl_sim.metrics.answers import answers, write_answers
from fl_sim.metrics.paired import compare_answers
from fl_sim.metrics.utility import utility

TASK = Task("multi-class", ("a", "b", "c"))


def files(folder: Path, skill: list[float], n: int = 300, shared: float = 0.0) -> list[Path]:
    """Write the answers of one model a seed, the more right the more skill."""
    labels = torch.arange(n) % 3
    found = []
    for seed, how in enumerate(skill):
        common = torch.randn(n, 3, generator=torch.Generator().manual_seed(99))
        own = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
        logits = shared * common + (1 - shared) * own + how * torch.eye(3)[labels]
        scores = logits.softmax(dim=1)
        found.append(write_answers(folder / f"{seed}.npz", answers(scores, labels, TASK)))
    return found


def auc_of(path: Path) -> float:
    with np.load(path) as file:
        return utility(torch.tensor(file["scores"]), torch.tensor(file["labels"]), TASK)["auc"]


def test_a_better_treatment_is_told_and_equal_ones_are_not(tmp_path: Path) -> None:
    good, poor = files(tmp_path / "g", [1.5, 1.6, 1.55]), files(tmp_path / "p", [0.8, 0.9, 0.85])
    found = compare_answers(good, poor)
    expected = np.mean([auc_of(g) - auc_of(p) for g, p in zip(good, poor, strict=True)])
    assert found.mean == pytest.approx(expected, abs=1e-9) and found.n == 3
    assert 0 < found.low < found.mean < found.high
    same = compare_answers(good, good)
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)
    assert compare_answers(good, poor) == found


def test_seeds_and_images_both_widen_the_interval(tmp_path: Path) -> None:
    def width(skill: list[float], n: int) -> float:
        name = f"{len(skill)}-{skill[-1]}-{n}"
        base = files(tmp_path / f"b{name}", [1.0] * len(skill), n, shared=0.9)
        treated = files(tmp_path / f"t{name}", skill, n, shared=0.9)
        found = compare_answers(treated, base)
        return found.high - found.low

    assert width([1.4, 1.4, 1.4], 60) > 1.5 * width([1.4, 1.4, 1.4], 900)
    assert width([1.0, 1.4, 2.2], 900) > 1.5 * width([1.4, 1.4, 1.4], 900)
    assert width([1.4], 300) > 0  # one seed: images alone


def test_what_does_not_pair_is_refused(tmp_path: Path) -> None:
    one, two = files(tmp_path / "a", [1.0, 1.1]), files(tmp_path / "b", [1.0, 1.1], n=90)
    with pytest.raises(FlSimError, match="there are 2 and 1 files"):
        compare_answers(one, one[:1])
    with pytest.raises(FlSimError, match="other test images"):
        compare_answers(one, two)
    with pytest.raises(FlSimError, match="There is no file"):
        compare_answers(one, [*one[:1], tmp_path / "none.npz"])
