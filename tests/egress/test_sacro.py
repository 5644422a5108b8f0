"""SACRO-ML's files: read without running what they name, written in their layout."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from fl_sim.auditing.architecture import Statement
from fl_sim.auditing.report import AuditReport
from fl_sim.checkpoints import Finding
from fl_sim.egress.sacro import (
    add_entry,
    entry_of_audit,
    entry_of_record,
    is_target,
    read_target,
)
from fl_sim.errors import FlSimError
from tests.egress.egress_kit import sample_record

PLAIN = """dataset_name: derma
features: {0: {name: pixel, indices: [0], encoding: float}}
generalisation_gap: .nan
safemodel: []
model_type: PytorchModel
model_name: CNN
model_params: {num_classes: 7, in_channels: 3}
model_path: model.pth
model_module_path: model.py
train_module_path: train.py
train_params: {epochs: 3}
X_train_path: X_train.npy
y_train_path: y_train.pkl
X_test_path: ''
"""


class _Touching:
    """What leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def _target(folder: Path, text: str = PLAIN) -> Path:
    path = folder / "target.yaml"
    path.write_text(text)
    return path


def test_a_target_is_read_and_nothing_that_it_names_runs(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for module in ("model.py", "train.py"):
        (tmp_path / module).write_text(f"open({str(mark)!r}, 'w')\n")
    (tmp_path / "y_train.pkl").write_bytes(pickle.dumps(_Touching(mark)))
    np.save(tmp_path / "X_train.npy", np.arange(6).reshape(2, 3))
    target = read_target(_target(tmp_path))
    assert target.model_path == tmp_path / "model.pth"
    assert set(target.arrays) == {"X_train", "y_train"}
    assert target.array("X_train").tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(FlSimError, match="a pickle runs code"):
        target.array("y_train")
    with pytest.raises(FlSimError, match="no array 'X_test'"):
        target.array("X_test")
    assert not mark.exists()
    assert is_target(tmp_path) and read_target(tmp_path) == target


def test_an_object_array_is_not_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    np.save(tmp_path / "X_train.npy", np.array([_Touching(mark)], dtype=object))
    with pytest.raises(FlSimError, match="cannot be read"):
        read_target(_target(tmp_path)).array("X_train")
    assert not mark.exists()


def test_what_the_target_says_of_the_network_fills_what_the_owner_does_not(tmp_path: Path) -> None:
    target = read_target(_target(tmp_path))
    told = target.statement(Statement(size=28))
    assert (told.model, told.classes, told.channels, told.size) == ("cnn", 7, 3, 28)
    own = target.statement(Statement("mlp", classes=9))
    assert (own.model, own.classes) == ("mlp", 9)
    other = read_target(_target(tmp_path, PLAIN.replace("CNN", "os:system")))
    assert other.statement(Statement()).model is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- 1", "no table"),
        ("a: [", "plain YAML"),
        ("a: !!python/object/apply:os.system ['true']", "plain YAML"),
        ("a: &x [1]\nb: *x", "alias"),
        ("model_path: ''", "names no model file"),
        ("model_path: ../secret.pth", "outside its folder"),
        ("model_path: /etc/passwd", "outside its folder"),
        ("model_path: m.pth\nX_train_path: ../../x.npy", "outside its folder"),
        ("model_type: SklearnModel\nmodel_path: m.pkl", "only networks of PyTorch"),
        ("a: " + "[" * 3000, "plain YAML"),
        ("a: " + "[" * 100 + "]" * 100 + "\nmodel_path: m", "inside each other"),
        ("#" * (1 << 21), "longer than"),
    ],
)
def test_a_target_that_is_none_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(FlSimError, match=said):
        read_target(_target(tmp_path, text))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "out.pth").write_bytes(b"")
    (inside / "model.pth").symlink_to(tmp_path / "out.pth")
    with pytest.raises(FlSimError, match="outside its folder"):
        read_target(_target(inside))


def test_entries_have_the_layout_of_its_report_and_add_up(tmp_path: Path) -> None:
    report = AuditReport("m", ran=["bits"], findings=[Finding("bits", "carries", "x")])
    path = tmp_path / "report.json"
    for _ in range(2):
        add_entry(path, entry_of_audit(report, "1"))
    entries = json.loads(path.read_text())
    assert len(entries) == 2
    for name, entry in entries.items():
        assert name == f"{entry['metadata']['attack_name']}_{entry['log_id']}"
        assert set(entry) == {"log_id", "log_time", "metadata"}
        assert set(entry["metadata"]) == {
            "sacroml_version",
            "attack_name",
            "attack_params",
            "global_metrics",
            "target_model",
            "target_model_params",
            "target_train_params",
        }
        assert entry["metadata"]["global_metrics"]["carries"] == 1
    path.write_text("[]")
    with pytest.raises(FlSimError, match="no table of entries"):
        add_entry(path, entry_of_audit(report, "1"))
    assert path.read_text() == "[]"


GROUP = {
    "auc": 0.6,
    "auc_95_percent": [0.55, 0.65],
    "members": 100,
    "nonmembers": 90,
    "tpr": [{"false_positive_rate": 0.001, "found": 0.02, "found_by_guessing": 0.01}],
}


def test_membership_has_the_names_and_the_p_value_that_its_report_reads() -> None:
    record = sample_record(membership={"training": GROUP})
    logger = entry_of_record(record)["attack_experiment_logger"]["attack_instance_logger"]
    (instance,) = logger.values()
    assert (instance["AUC"], instance["TPR@0.1%"]) == (0.6, 0.02)
    assert instance["P_HIGHER_AUC"] == pytest.approx(4.4e-5, rel=0.05)  # z = 3.92
    even = sample_record(membership={"training": {**GROUP, "auc": 0.5}})
    logger = entry_of_record(even)["attack_experiment_logger"]["attack_instance_logger"]
    assert logger["instance_0"]["P_HIGHER_AUC"] == pytest.approx(0.5)


def test_a_refused_model_is_never_evidence_for_release() -> None:
    """Its report counts an AUC that is not significant as evidence for release."""
    even = {"training": {**GROUP, "auc": 0.5}}
    entry = entry_of_record(sample_record(decision="refuse", membership=even))
    assert "attack_experiment_logger" not in entry
    assert entry["metadata"]["attack_name"] == "fl-sim refusal"


def test_sacro_mls_own_report_reads_our_entries(tmp_path: Path) -> None:
    formatter = pytest.importorskip("sacroml.attacks.attack_report_formatter")
    path = tmp_path / "report.json"
    strong = {**GROUP, "auc": 0.8, "auc_95_percent": [0.75, 0.85]}
    for record in (
        sample_record(membership={"training": strong}),
        sample_record(decision="refuse", membership={"training": {**GROUP, "auc": 0.5}}),
    ):
        add_entry(path, entry_of_record(record))
    report = formatter.GenerateTextReport()
    report.process_attack_target_json(str(path))
    report.export_to_file(str(tmp_path / "summary.txt"))
    rejecting, releasing = (tmp_path / "summary.txt").read_text().split("supporting release:")
    assert "fl-sim release_" in rejecting and "fl-sim" not in releasing
