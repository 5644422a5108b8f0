"""The kinds of file that are mutated: honest ones, how they are damaged, and what reads them."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from experiments.benchmarks.mutators import (
    bytes_mutated,
    csv_mutated,
    json_mutated,
    parquet_mutated,
    safetensors_mutated,
)

DATA = {"name": "phantoms", "size": 16, "train": 60, "validation": 12, "test": 12, "channels": 1}
RUN: dict[str, Any] = {
    "mode": "centralized",
    "dataset": DATA,
    "model": "cnn",
    "threads": 1,
    "device": "cpu",
    "training": {"epochs": 1},
    "attack": {"name": "transpose", "images": 2},
    "attacker": {"restorations": ["affine"]},
    "measure": {"scratch_epochs": 1},
}
ATTACKS: tuple[dict[str, Any], ...] = (
    {"name": "transpose", "images": 3},
    {"name": "memory_backdoor", "images": 2},
    {"name": "correlated", "images": 2},
    {"name": "sign_encoding", "images": 2},
    {"name": "dec", "images": 2, "codec": "png"},
    {
        "name": "dec",
        "images": 3,
        "codec": "gzip",
        "carrier": "entries",
        "coding": "reed_solomon",
        "erasure": {"data": 2, "parity": 1},
    },
    {
        "name": "dec",
        "images": 2,
        "codec": "png",
        "carrier": "sign",
        "canonical": True,
        "coding": "ldpc",
    },
    {
        "name": "combined",
        "parts": {
            "one": {"name": "transpose", "images": 2},
            "two": {"name": "dec", "images": 2, "codec": "png"},
        },
    },
)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        seeds: contents of honest files.
        mutate: how one is damaged, with the generator that decides.
        read: what a user does with the file; raises ``FlSimError`` where it is refused.
        name: of the file that is written for ``read``.
    """

    seeds: list[bytes]
    mutate: Callable[[Random], bytes]
    read: Callable[[Path], object]
    name: Path


def keys(folder: Path) -> Kind:
    """Attackers' keys, read with the model file that they belong to."""
    from experiments.run.centralized import plan_attack
    from experiments.run.running import Run
    from experiments.run.scenario import Scenario
    from experiments.tables.pictures import write_images
    from fl_sim.artifact import write_artifact, write_key
    from fl_sim.extraction import extract
    from fl_sim.models import state_of

    seeds: list[bytes] = []
    models: dict[str, Path] = {}
    for number, attack in enumerate(ATTACKS):
        study = Run(Scenario.create(**{**RUN, "attack": attack}), folder / f"{number}", None)
        plan = plan_attack(study, study.scenario.make_attack())
        assert plan is not None
        state = state_of(study.owner.initial_model())
        own = study.scenario.make_attack()
        assert own is not None
        state = own.embed(state, study.case.spec, plan).state
        model = write_artifact(folder / f"{number}.safetensors", study.case.spec, state)
        path = write_key(folder / f"{number}.key", plan.key)
        assert len(extract(model, path).images)
        seeds.append(path.read_bytes())
        models[str(number)] = model

    def mutate(random: Random) -> bytes:
        # The number of its model goes in front, and is taken off again before reading.
        number = random.randrange(len(seeds))
        own = [seeds[number]]
        if random.random() < 0.6:
            return bytes([number]) + safetensors_mutated(own, random, "fl_sim.key")
        others = own * 8 + seeds
        return bytes([number]) + bytes_mutated(others, random)

    def read(path: Path) -> None:
        content = path.read_bytes()
        key = path.with_suffix(".key")
        key.write_bytes(content[1:])
        images = extract(models[str(content[0])], key).images
        write_images(folder / "recovered", images[:4])

    return Kind(
        [bytes([i]) + seed for i, seed in enumerate(seeds)], mutate, read, folder / "mutant.bin"
    )


def results_tables(folder: Path) -> Kind:
    """A run's results.csv: summarised, reported, and taken up by an interrupted run."""
    from experiments.report import write_report
    from experiments.run.standing import FINISHED, proven
    from fl_sim.results import Results, read_table, summary

    path = _run(folder / "run") / "results.csv"
    seeds = [path.read_bytes()]

    def read(path: Path) -> None:
        _each(
            lambda: summary(read_table(path)),
            lambda: Results(path).stand(),
            lambda: proven(path.parent, FINISHED, whole=True),
            lambda: write_report(path.parent, folder / "report.html", 1),
        )

    def mutate(random: Random) -> bytes:
        kind = csv_mutated if random.random() < 0.6 else bytes_mutated
        return kind(seeds, random)

    return Kind(seeds, mutate, read, path)


def scenario_files(folder: Path) -> Kind:
    """A run's scenario.json: reported, and compared with the scenario that is to go on."""
    import json

    from experiments.report import write_report
    from experiments.run.start import run

    path = _run(folder / "run") / "scenario.json"
    seeds = [path.read_bytes()]
    content = json.loads(seeds[0])

    def read(path: Path) -> None:
        _each(
            lambda: run(RUN, path.parent),
            lambda: write_report(path.parent, folder / "report.html", 1),
        )

    def mutate(random: Random) -> bytes:
        if random.random() < 0.7:
            return json.dumps(json_mutated(content, random)).encode()
        return bytes_mutated(seeds, random)

    return Kind(seeds, mutate, read, path)


def sweep_tables(folder: Path) -> Kind:
    """A sweep's table.parquet: reported."""
    from experiments.report import write_report
    from experiments.tables.summary import CELL, LABEL
    from fl_sim.results import read_table

    table = read_table(_run(folder / "run") / "results.csv")
    table.insert(0, LABEL + "attack", table["attack"])
    table.insert(0, CELL, table["scenario"] + "-seed0")
    path = folder / "sweep" / "table.parquet"
    path.parent.mkdir(parents=True)
    table.to_parquet(path, index=False)
    seeds = [path.read_bytes()]

    def read(path: Path) -> None:
        write_report(path.parent, folder / "report.html", 1, folder / "tables")

    def mutate(random: Random) -> bytes:
        kind = parquet_mutated if random.random() < 0.5 else bytes_mutated
        return kind(seeds, random)

    return Kind(seeds, mutate, read, path)


def checkpoints(folder: Path) -> Kind:
    """A .pth of torch's zip format: read, and audited."""
    import io

    import torch

    from fl_sim.auditing.auditor import audit_file
    from fl_sim.checkpoints import read_checkpoint
    from fl_sim.models import build_model

    state = build_model("cnn", 1, 16, 2).state_dict()
    small = {name: value[:4] if value.ndim else value for name, value in state.items()}
    wrapped = {"state_dict": small, "epoch": 3, "optimizer": {"step": torch.ones(3)}}
    seeds = []
    for content in (small, wrapped):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        seeds.append(buffer.getvalue())

    def read(path: Path) -> None:
        _each(lambda: read_checkpoint(path), lambda: audit_file(path))

    return Kind(seeds, partial(bytes_mutated, seeds), read, folder / "mutant.pth")


KINDS: Mapping[str, Callable[[Path], Kind]] = {
    "pth": checkpoints,
    "key": keys,
    "results.csv": results_tables,
    "scenario.json": scenario_files,
    "table.parquet": sweep_tables,
}


def _run(folder: Path) -> Path:
    from experiments.run.start import run

    shutil.rmtree(folder, ignore_errors=True)
    run(RUN, folder)
    return folder


def _each(*reads: Callable[[], object]) -> None:
    """Call all readers of a file; the refusal of one is raised when all have been called."""
    from fl_sim.errors import FlSimError

    refusals = []
    for read in reads:
        try:
            read()
        except FlSimError as refusal:
            refusals.append(refusal)
    if refusals:
        raise refusals[0]
