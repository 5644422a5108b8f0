"""``fl-sim membership`` on files that anybody may have made."""

import json
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from experiments.cli.main import app
from fl_sim.artifact import write_artifact
from fl_sim.errors import FlSimError
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec

DATA = ["--dataset", "phantoms", "--references", "2", "--set", "epochs=0.2"]


def _asked(*words: object) -> str:
    result = CliRunner().invoke(app, ["membership", *map(str, words)])
    if result.exception is not None:
        raise result.exception
    assert result.exit_code == 0
    return result.output


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = ModelSpec(name="mlp", channels=3, size=28, classes=4)
    path = tmp_path_factory.mktemp("file") / "model.safetensors"
    return write_artifact(path, spec, state_of(build(spec)))


def test_it_says_how_well_members_are_told_and_writes_what_may_leave_and_what_may_not(
    untrained: Path, tmp_path: Path
) -> None:
    told, images, patients = (tmp_path / name for name in ("a.json", "b.csv", "c.csv"))
    said = _asked(
        untrained, *DATA, "--json", told, "--records", images, "--patients", patients
    ).replace("\n", " ")
    assert "guessing has 0.5" in said and "1200 members, 400 images never seen" in said
    report = json.loads(told.read_bytes())
    low, high = report["auc_95_percent"]
    assert low < 0.5 < high  # it was never trained
    assert "train-" not in told.read_text()
    for path in (images, patients):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(pd.read_csv(images)) == 1600 and "patient" in pd.read_csv(patients)


def test_members_are_a_split_or_the_images_of_a_file(untrained: Path, tmp_path: Path) -> None:
    assert "300 members" in _asked(untrained, *DATA, "--members", "validation")
    np.save(tmp_path / "some.npy", np.arange(7, 47))
    assert "40 members" in _asked(untrained, *DATA, "--members", tmp_path / "some.npy")
    (tmp_path / "some.csv").write_text("3\n9\n")
    assert "2 members" in _asked(untrained, *DATA, "--members", tmp_path / "some.csv")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("1\n1\n", "each one once"),
        ("", "each one once"),
        ("1200\n", "names image 1200"),
        ("-1\n", "names image -1"),
        ("one\n", "no list of whole numbers"),
        ("1e9999\n", "no list of whole numbers"),
        (f"{10**30}\n", "no list of whole numbers"),
    ],
)
def test_a_file_that_names_no_images_is_refused(
    content: str, said: str, untrained: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content)
    with pytest.raises(FlSimError, match=said):
        _asked(untrained, *DATA, "--members", path)


def test_what_is_wrong_is_said(untrained: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    for words, said in (
        (["--members", "trian"], "Did you mean 'train'"),
        (["--members", tmp_path / "gone.npy"], "no file"),
        (["--members", tmp_path / "pickled.npy"], "no list of whole numbers"),
        (["--references", "3"], "multiple of 2"),
        (["--method", "lira"], "needs 4"),
        (["--set", "epoch=3"], "epoch"),
    ):
        with pytest.raises(FlSimError, match=said):
            _asked(untrained, *DATA, *words)
