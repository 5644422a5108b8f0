"""What the shipped policies decide on five files: honest, and with images hidden in four ways.

Run ``python -m experiments.benchmarks.releases FOLDER``. A network is trained on DermaMNIST as its
makers would, honestly or with 64 images hidden in it: memorised (Transpose), in low bits, in dead
weights, or in answers. Each file goes through ``fl_sim.release`` under each policy. The rows say
what the audits found, what was decided, and every criterion that refused. What FOLDER has is not
made again, and a decision's record lies in it.

``--short`` leaves rehearsals and membership out and takes fewer steps: what then decides are the
audits, the cap and what the model is worth. ``--stop-early`` measures no further once a criterion
is missed, and ``--pth`` hands the network over as a plain script would: a file with its state
dictionary alone, and its name on the command line.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fl_sim
from fl_sim.artifact import read_artifact
from fl_sim.data.base import Dataset
from fl_sim.egress.policy import Policy, read_policy, shipped

PUBLIC = 256
_STEPS, _OWN = 200, 5


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="for model files and records")
    parser.add_argument("--model", default="cnn", help="name of the network")
    parser.add_argument("--epochs", type=float, default=4.0, help="of each training")
    parser.add_argument("--files", nargs="*", default=list(FILES), help="only these files")
    parser.add_argument("--policies", nargs="*", default=list(shipped()), help="only these")
    for flag in ("short", "stop-early", "pth"):
        parser.add_argument(f"--{flag}", action="store_true", help="see above")
    arguments = parser.parse_args()
    data = fl_sim.load_dataset("dermamnist")
    print("| file | policy | audit before | audit after | cap, bytes | AUC before | after | own |"
          " decision | refused by |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in arguments.files:
        path = arguments.folder / f"{arguments.model}-{name}.safetensors"
        if not path.is_file():
            FILES[name](arguments.model, data, path, arguments.epochs)
        for policy in arguments.policies:
            record = _decided(path, data, policy, arguments)
            print(_row(name, policy, record), flush=True)


def _attacked(attack: str, **settings: Any) -> Callable[[str, Dataset, Path, float], None]:
    """Return what trains a network with an attack and writes it."""

    def make(model: str, data: Dataset, path: Path, epochs: float) -> None:
        found = fl_sim.attack(
            attack,
            model,
            data.train,
            training={"epochs": epochs},
            public=data.test if attack == "answers" else None,
            progress=False,
            **settings,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        found.save(path, path.with_suffix(".key"))
        outside = data.test.subset(np.arange(PUBLIC))
        stolen = fl_sim.extract(path, found.key)
        leak = fl_sim.measure(stolen, found.originals, public=outside)
        told = leak["found by distance"].loc[["strongest", "floor: guessing"]].tolist()
        path.with_suffix(".json").write_text(
            json.dumps({"found": told[0], "guessed": told[1], "images": len(found.originals)})
        )

    return make


def _honest(model: str, data: Dataset, path: Path, epochs: float) -> None:
    from fl_sim.artifact import write_artifact
    from fl_sim.models import build, state_of
    from fl_sim.models.base import ModelSpec
    from fl_sim.randomness import Stream
    from fl_sim.training import LocalTraining, TrainingSettings, train

    spec = ModelSpec(name=model, channels=data.channels, size=data.size, classes=data.task.outputs)
    network = build(spec, 0)
    run = LocalTraining(
        network,
        spec,
        data.train,
        data.task,
        TrainingSettings(epochs=epochs),
        Stream(0, ("honest",)),
    )
    train(run)
    write_artifact(path, spec, state_of(network))


_PNG = {"images": 64, "codec": "png"}
FILES: dict[str, Callable[[str, Dataset, Path, float], None]] = {
    "honest": _honest,
    "transpose": _attacked("transpose", images=64),
    "low bits": _attacked("dec", carrier={"name": "lsb", "bits": 8}, **_PNG),
    "dead weights": _attacked(
        "dec", carrier={"name": "lsb", "bits": 23, "elements": "dead"}, **_PNG
    ),
    "answers": _attacked(
        "answers",
        images=2,
        external="public",
        codec={"name": "principal", "bytes": 5},
        frame=6,
        features=56,
        coding={"name": "polar", "rate": 0.31},
        rehearsed="none",
        preparation=0,
        passes=1,
        steps=300,
    ),
}
"""What makes each file."""


def _decided(
    path: Path, data: Dataset, policy: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return the record of a decision, from the folder where it is there."""
    form = "-short" if arguments.short else ""
    form += "-early" if arguments.stop_early else ""
    kept = path.with_name(f"{path.stem}-{policy}{form}.record.json")
    if not kept.is_file():
        chosen: Policy = read_policy(policy)[0]
        if arguments.short:
            chosen = _shortened(chosen)
        found = fl_sim.release(
            _plain(path) if arguments.pth else path,
            data,
            out=path.with_name(f"{path.stem}-{policy}{form}"),
            policy=chosen,
            model=arguments.model if arguments.pth else None,
            seed=0,
            stop_early=arguments.stop_early,
            progress=False,
        )
        kept.write_text(found.record.text())
    record: dict[str, Any] = json.loads(kept.read_text())
    return record


def _plain(path: Path) -> Path:
    """Return the same weights as ``torch.save`` of a state dictionary writes them."""
    plain = path.with_suffix(".pth")
    if not plain.is_file():
        torch.save(read_artifact(path).state, plain)
    return plain


def _shortened(policy: Policy) -> Policy:
    table = policy.model_dump(mode="json") | {"rehearsal": None, "membership": None}
    table["defense"]["settings"]["steps"] = _STEPS
    table["utility"]["own_epochs"] = _OWN
    return Policy.model_validate(table)


def _row(name: str, policy: str, record: dict[str, Any]) -> str:
    refused = [c["name"] for c in record["criteria"] if c["status"] in ("missed", "not run")]
    worth, defense = record["utility"], record["defense"]
    cells = [
        name,
        policy,
        record["audits"]["came"]["outcome"],
        record["audits"].get("leaves", {}).get("outcome", "-"),
        f"{defense['cap_bytes']:.0f}" if defense else "-",
        *(f"{worth[key]:.3f}" if worth else "-" for key in ("before", "after", "own")),
        record["decision"],
        ", ".join(refused) or "-",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
