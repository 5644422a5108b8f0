"""A sealed release in whole runs, in both modes, and from the command line."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fl_sim as door
from experiments.run import sealed_release
from experiments.run.result import Result
from experiments.run.running import Run
from experiments.run.scenario import Scenario
from experiments.run.start import run
from fl_sim.artifact import read_artifact
from fl_sim.data.base import Split
from fl_sim.defenses import rhe
from fl_sim.errors import FlSimError
from fl_sim.extraction import extract
from fl_sim.models import build_model
from fl_sim.sealing.answers import decide, encrypted_answers
from fl_sim.sealing.files import read_sealed, read_view
from fl_sim.sealing.heads import features_of
from fl_sim.sealing.view import unread
from tests.experiments.cli_kit import fl_sim
from tests.experiments.run_kit import CENTRALIZED, FEDERATED

pytest.importorskip("tenseal")

DEFENSE = {
    "name": "rhe",
    "epochs": 30,
    "degree": 4096,
    "moduli": [40, 29, 40],
    "scale_bits": 29,
    "limit": 40,
}
LAST = {**FEDERATED["federation"], "rounds": 2, "defend": "last"}
BOTH: dict[str, dict[str, Any]] = {
    "centralized": {**CENTRALIZED, "defense": DEFENSE},
    "federated": {**FEDERATED, "defense": DEFENSE, "federation": LAST},
}


class Sealed:
    """A run, its scenario, and the images that its head was trained on."""

    def __init__(self, result: Result, values: dict[str, Any], seen: list[Split]) -> None:
        self.result, self.out, self.seen = result, result.out, seen
        self.case = Run(Scenario.from_mapping(values), result.out.parent / "again", None).case

    def rows(self, metric: str, stage: str = "release") -> list[float]:
        table = self.result.table
        return list(table[(table["metric"] == metric) & (table["stage"] == stage)]["value"])


@pytest.fixture(scope="module", params=list(BOTH))
def sealed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    folder = tmp_path_factory.mktemp(request.param)
    seen: list[Split] = []

    def watched(model: Any, head: Any, images: Split) -> torch.Tensor:
        seen.append(images)
        return features_of(model, head, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FL_SIM_CACHE", str(folder / "cache"))
        patch.setattr(rhe, "features_of", watched)
        result = run(BOTH[request.param], folder / "out", progress=False)
    return Sealed(result, BOTH[request.param], seen)


def test_the_table_is_as_of_any_defence(sealed: Sealed) -> None:
    files = sum(path.stat().st_size for path in (sealed.out / "sealed").iterdir())
    assert sealed.rows("sealed_bytes") == [files]
    assert sealed.rows("held_out_images") == [30]
    assert len(sealed.rows("auc")) == len(sealed.rows("cap_bytes")) >= 1
    assert {"raw"} <= set(sealed.result.table["extraction"])


def test_the_head_is_trained_on_the_held_out_images(sealed: Sealed) -> None:
    (images,) = sealed.seen
    assert np.array_equal(images.images, sealed.case.held_out.images)
    assert np.array_equal(images.labels, sealed.case.held_out.labels)


def test_what_is_extracted_from_has_no_head(sealed: Sealed) -> None:
    received = read_artifact(sealed.out / "artifacts" / "release.safetensors")
    view = read_view(sealed.out / "sealed")
    stand_ins = unread(view.sealed)
    assert stand_ins.keys() == {"13.weight", "13.bias"}
    for name, value in received.state.items():
        assert torch.equal(value, stand_ins[name] if name in stand_ins else view.clear[name])
    key = next((sealed.out / "keys").iterdir())
    from_folder = extract(sealed.out / "sealed", key).images
    assert torch.equal(from_folder, extract(sealed.result.artifact, key).images)


def test_utility_is_that_of_the_owners_decisions(sealed: Sealed, tmp_path: Path) -> None:
    test = sealed.case.test
    out = encrypted_answers(read_sealed(sealed.out / "sealed"), test, tmp_path / "answers")
    decisions = decide(sealed.out / "owner" / "secret.safetensors", out)
    accuracy = float((decisions == test.labels).mean())
    assert accuracy == pytest.approx(sealed.rows("accuracy")[-1], abs=1 / len(test) + 1e-9)


def test_the_base_leaves_as_it_was_trained(sealed: Sealed) -> None:
    federated = (sealed.out / "artifacts" / "aggregate.safetensors").exists()
    stage = "aggregate" if federated else "upload"
    before = read_artifact(sealed.out / "artifacts" / f"{stage}.safetensors").state
    clear = read_view(sealed.out / "sealed").clear
    assert all(torch.equal(value, before[name]) for name, value in clear.items())


def test_an_interrupted_run_seals_again(sealed: Sealed, tmp_path: Path) -> None:
    assert not any((tmp_path / name).exists() for name in ("sealed", "owner"))
    before = (sealed.out / "owner" / "secret.safetensors").read_bytes()
    again = Run(Scenario.from_mapping(BOTH["centralized"]), tmp_path / "run", None)
    state = read_artifact(sealed.out / "artifacts" / "release.safetensors").state
    _, report = again.owner.defend(state, 0)
    for _ in range(2):
        sealed_release.seal_release(again, 0, state, report)
    assert (again.out / "owner" / "secret.safetensors").read_bytes() != before


def test_hospitals_are_not_sent_what_they_cannot_read() -> None:
    for defend in ("every", 2):
        federation = {**LAST, "defend": defend}
        with pytest.raises(FlSimError, match=r'set .federation. defend = "last"'):
            Scenario.from_mapping({**BOTH["federated"], "federation": federation})


def test_without_tenseal_nothing_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *names: None)
    with pytest.raises(FlSimError, match=r"fl-sim\[he\]"):
        run(BOTH["centralized"], tmp_path / "out", progress=False)


@pytest.fixture(scope="module")
def images() -> Split:
    return door.load_dataset("phantoms", {"size": 8, "train": 8, "validation": 30, "test": 6}).test


def test_from_python(tmp_path: Path, images: Split) -> None:
    small = {key: value for key, value in DEFENSE.items() if key != "name"}
    folders = {"out": tmp_path / "left", "owner": tmp_path / "own"}
    model = build_model("cnn", 3, 8, 4, seed=1)
    sealed = door.seal(model, images, **folders, progress=False, **small)
    out = door.predict_sealed(tmp_path / "left", images, tmp_path / "answers", progress=False)
    with torch.no_grad():
        clear = sealed.model(images.tensors()[0] * 2 - 1).argmax(dim=1)
    assert door.decide(sealed.files.key, out).tolist() == clear.tolist()
    assert not torch.equal(sealed.state["13.weight"], sealed.model.state_dict()["13.weight"])
    with pytest.raises(FlSimError, match=r"fl_sim\.clean would write a model without it"):
        door.clean(model, images, defense="rhe")


def test_by_command(tmp_path: Path, sealed: Sealed, images: Split) -> None:
    file = sealed.out / "artifacts" / "upload.safetensors"
    if not file.exists():
        file = sealed.out / "artifacts" / "aggregate.safetensors"
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    keys = [f"base={file}", f"sha256={sha256}", "epochs=20"]
    words = [part for key in keys for part in ("--set", key)]
    left, own, said = tmp_path / "left", tmp_path / "own", tmp_path / "said.json"
    where = ["--out", str(left), "--owner", str(own), "--json", str(said)]
    done = fl_sim(
        "rhe", "seal", str(file), "--dataset", "phantoms", "--images", "40", *words, *where
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(said.read_text())["report"]["sealed"]["base"]["sha256"] == sha256
    np.save(tmp_path / "images.npy", images.images)
    answers = str(tmp_path / "answers")
    done = fl_sim("rhe", "predict", str(left), str(tmp_path / "images.npy"), "--out", answers)
    assert done.returncode == 0, done.stderr
    key = str(own / "secret.safetensors")
    done = fl_sim("rhe", "decide", key, answers)
    assert [0 <= int(line) < 4 for line in done.stdout.split()] == [True] * len(images)
    for wrong in (["decide", answers, key], ["predict", str(own), answers, "--out", answers]):
        done = fl_sim("rhe", *wrong)
        assert done.returncode == 2 and done.stderr.count("Error:") == 1
