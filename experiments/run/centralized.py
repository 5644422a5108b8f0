"""A centralized data lake: train, release, extract, measure."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from clients.hospital import plan_for, train_locally
from experiments.run.failures import failures_logged
from experiments.run.owner import State
from experiments.run.running import Run
from experiments.run.scratch_floor import record_scratch_floor
from experiments.run.sealed_release import seal_release
from experiments.run.standing import TRAINED, damaged, proven, set_mark
from fl_sim.artifact import read_artifact, write_artifact
from fl_sim.attacks.base import Attack, Plan
from fl_sim.data.partitions import images_of
from fl_sim.defenses.base import DefenseReport
from fl_sim.faults import blaming
from fl_sim.files import write_atomically
from fl_sim.models import state_of
from fl_sim.models.entries import require_sound
from fl_sim.randomness import Stream
from fl_sim.training import LocalTraining


def run_centralized(run: Run) -> None:
    """Run a centralized scenario: stages ``upload`` (as trained) and ``release`` (as it leaves).

    An interrupted run continues after its training, if that had ended.
    """
    trained = train_and_attack(run)
    with failures_logged(run.out):
        released, defence = _cleaned(run, trained)
    sealing = None if defence is None else defence.sealed
    run.measurer.record(0, "release", {None: released}, sealing=sealing)
    seal_release(run, 0, released, defence)
    run.folder.record_report(0, defence)
    run.folder.record_values(0, "release", cap_bytes=run.owner.cap_bytes(released, defence))
    record_scratch_floor(run, 0)


def _cleaned(run: Run, trained: State) -> tuple[State, DefenseReport | None]:
    """Let the defence clean the model, and refuse a release that it has broken.

    Raises:
        FlSimError: naming the defence, whatever it raises.
    """
    defense = run.scenario.defense
    if defense is None:
        return run.owner.defend(trained, 0)
    with blaming(f"The defence '{defense.name}'"):
        released, report = run.owner.defend(trained, 0)
        require_sound(released, trained)
    return released, report


def train_and_attack(run: Run, weights: Path | None = None) -> State:
    """Run a centralized scenario up to its stage ``upload``, and return the model.

    Args:
        run: the run; if it had come so far before, that model is taken up.
        weights: network that :func:`train_network` has trained; trained here where not given.
    """
    scenario, case = run.scenario, run.case
    attack = scenario.make_attack()
    plan = plan_attack(run, attack)
    if attack is not None and plan is not None:
        run.measurer.add_target(0, case.train, plan)

    before = _trained_before(run)
    if before is not None:
        return before
    run.folder.return_to(None)
    trained, said = _train(run, attack, plan) if weights is None else _read(run, weights)
    run.folder.record_values(0, "upload", **said)
    if attack is not None and plan is not None:
        what = f"The attack '{_name(run)}'"
        with failures_logged(run.out), blaming(what, sentences=False):
            embedding = attack.embed(trained, case.spec, plan)
        if embedding.values:
            run.measurer.record_before_embedding(0, trained, **embedding.values)
        trained = embedding.state
    run.measurer.record(0, "upload", {None: trained}, senders=scenario.attackers)
    run.folder.save_pictures()
    mark_trained(run)
    return trained


def train_network(run: Run, path: Path) -> None:
    """Train the network of a centralized scenario, write it to a file, and stop there.

    Runs with the same training may start from it; see :func:`train_and_attack`.
    """
    attack = run.scenario.make_attack()
    state, said = _train(run, attack, plan_attack(run, attack))
    write_atomically(_said_of(path), json.dumps(said).encode())
    write_artifact(path, run.case.spec, state)


def plan_attack(run: Run, attack: Attack[Any] | None) -> Plan | None:
    """Return the attack's plan for the lake; of one hospital's images, as in a federation."""
    if attack is None:
        return None
    case, seed, share = run.case, run.scenario.seed, run.scenario.attacker.hospital
    outside = (run.data_root, run.progress)
    if share is None:
        return plan_for(attack, _name(run), case, case.train, _stream(run), *outside)
    brought = images_of(case.train, case.task, share, seed)
    stream = Stream(seed, ("hospital", share.number))
    plan = plan_for(attack, _name(run), case, case.train.subset(brought), stream, *outside)
    return replace(plan, indices=brought[plan.indices])


def _name(run: Run) -> str:
    attack = run.scenario.attack
    return "" if attack is None else attack.name


def _train(
    run: Run, attack: Attack[Any] | None, plan: Plan | None
) -> tuple[State, dict[str, float]]:
    """Return the trained network, before anything is written into it, and what it cost."""
    model = run.owner.initial_model()
    lake = LocalTraining(
        model=model,
        spec=run.case.spec,
        data=run.case.train,
        task=run.case.task,
        settings=run.scenario.training,
        stream=_stream(run).at(0),
        progress=run.progress,
    )
    what = f"The attack '{_name(run)}'"
    with run.owner.threads(), failures_logged(run.out), blaming(what, sentences=False):
        report = train_locally(lake, attack, plan)
    said = {"seconds": report.seconds}
    if report.dp_epsilon is not None:
        said["dp_epsilon"] = report.dp_epsilon
    return state_of(model), said | report.values


def _read(run: Run, path: Path) -> tuple[State, dict[str, float]]:
    """Return a network as :func:`_train` does; its file need not have the entries' order."""
    model = run.owner.initial_model()
    model.load_state_dict(read_artifact(path).state)
    try:
        said = json.loads(_said_of(path).read_bytes())
        return state_of(model), {str(name): float(value) for name, value in said.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        raise damaged(_said_of(path), path.parent) from None


def _said_of(path: Path) -> Path:
    return path.with_suffix(".json")


def _stream(run: Run) -> Stream:
    return Stream(run.scenario.seed, ("hospital", 0))


def mark_trained(run: Run) -> None:
    """Note that a run's training and the measuring of its trained model have ended."""
    files = [_upload(run), *(run.out / "artifacts").glob("sent-*.safetensors")]
    set_mark(run.out, TRAINED, run.folder.results.stand(), files)


def _trained_before(run: Run) -> State | None:
    """Return the trained model of an interrupted run, if its training and measuring had ended.

    What the run had measured since is dropped.
    """
    stand = proven(run.out, TRAINED)
    if stand is None:
        return None
    if run.measurer.targets:
        run.folder.restore_pictures()
    run.folder.results.rewind(stand)
    return read_artifact(_upload(run)).state


def _upload(run: Run) -> Path:
    return run.out / "artifacts" / "upload.safetensors"
