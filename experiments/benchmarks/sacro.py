"""What SACRO-ML and fl-sim say about the same model files.

Run ``python -m experiments.benchmarks.sacro FOLDER --python PYTHON`` with the files of ``python -m
experiments.benchmarks.releases FOLDER``, and the interpreter of an environment that has SACRO-ML
(2.0; ``pip install sacroml torch``), which need not be this one. SACRO-ML gets what its worst-case
attack asks for: a model's probabilities for images that it was trained on and for others. Its
figure is the AUC of telling these apart, a mean over ten splits.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import fl_sim
from fl_sim.artifact import read_artifact
from fl_sim.data.base import Dataset
from fl_sim.training import predict

IMAGES = 1000
"""Of each kind, members and others."""

REFERENCES = 4

THEIRS = """
import json, sys
import numpy as np
from sacroml.attacks.target import Target
from sacroml.attacks.worst_case_attack import WorstCaseAttack
given = np.load(sys.argv[1], allow_pickle=False)
target = Target(proba_train=given["members"], proba_test=given["others"])
attack = WorstCaseAttack(output_dir=sys.argv[2], write_report=False)
attack.attack(target)
rows = attack.attack_metrics
json.dump([float(row["AUC"]) for row in rows], open(sys.argv[3], "w"))
"""
"""Run by their interpreter: reads probabilities, writes the figures of each split."""


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="with model files")
    parser.add_argument("--python", required=True, help="an interpreter that has sacroml")
    parser.add_argument("--model", default="cnn", help="name of the network")
    parser.add_argument("--epochs", type=float, default=4.0, help="that the files were trained for")
    parser.add_argument("--files", nargs="*", default=["honest", "transpose", "low bits"])
    arguments = parser.parse_args()
    data = fl_sim.load_dataset("dermamnist")
    print("| file | SACRO-ML, AUC of membership | fl-sim, AUC of membership | fl-sim, audit |"
          " images found with the attacker's key |")  # fmt: skip
    print("|---|---|---|---|---|")
    for name in arguments.files:
        path = arguments.folder / f"{arguments.model}-{name}.safetensors"
        print(_row(name, path, data, arguments.python, arguments.epochs), flush=True)


def _row(name: str, path: Path, data: Dataset, python: str, epochs: float) -> str:
    members, others = data.train.subset(np.arange(IMAGES)), data.test.subset(np.arange(IMAGES))
    further = data.train.subset(np.arange(IMAGES, len(data.train)))
    ours = fl_sim.membership(
        path,
        members,
        others,
        further=further,
        references=REFERENCES,
        training={"epochs": epochs},
        progress=False,
    )
    low, high = ours.auc_interval
    audit = fl_sim.audit(path, progress=False)
    kinds = sorted({one.check for one in audit.findings if one.level == "carries"})
    told = path.with_suffix(".json")
    found = "-"
    if told.is_file():
        hidden = json.loads(told.read_text())
        found = f"{hidden['found']:.2f} of {hidden['images']} (guessing {hidden['guessed']:.2f})"
    words = audit.outcome + (f": {', '.join(kinds)}" if kinds else "")
    auc = np.array(_theirs(path, data, python))
    return (
        f"| {name} | {auc.mean():.3f} ({auc.min():.3f}-{auc.max():.3f}) | {ours.auc:.3f} "
        f"({low:.3f}-{high:.3f}) | {words} | {found} |"
    )


def _theirs(path: Path, data: Dataset, python: str) -> list[float]:
    """Return the AUC of SACRO-ML's worst-case attack in each of its splits."""
    network = read_artifact(path).model()
    with tempfile.TemporaryDirectory(prefix="fl-sim-sacro-") as folder:
        given, written = Path(folder) / "given.npz", Path(folder) / "written.json"
        np.savez(
            given,
            members=_probabilities(network, data, "train"),
            others=_probabilities(network, data, "test"),
        )
        subprocess.run(
            [python, "-c", THEIRS, str(given), str(Path(folder) / "out"), str(written)],
            check=True,
            stdout=sys.stderr,
        )
        found: list[float] = json.loads(written.read_text())
    return found


def _probabilities(network: torch.nn.Module, data: Dataset, split: str) -> NDArray[Any]:
    images = getattr(data, split).subset(np.arange(IMAGES))
    found: NDArray[Any] = predict(network, images, data.task).double().numpy()
    return found


if __name__ == "__main__":
    main()
