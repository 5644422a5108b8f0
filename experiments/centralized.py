"""A centralized data lake: train, release, extract, measure. Run this file for an example."""

from pathlib import Path
from typing import Any

from experiments.floor import record_scratch_floor
from experiments.study import State, Study
from fl_sim.artifact import read_artifact, write_atomically
from fl_sim.attacks.base import Inside
from fl_sim.models import state_of
from fl_sim.randomness import Stream
from fl_sim.training import LocalTraining, train


def run_centralized(study: Study) -> None:
    """Run a centralized scenario: stages ``upload`` (as trained) and ``release`` (as it leaves).

    An interrupted run continues after its training, if that had ended.
    """
    scenario, case = study.scenario, study.case
    attack = scenario.make_attack()
    stream = Stream(scenario.seed, ("hospital", 0))
    if attack is not None:
        inside = Inside(case.train, case.task, case.spec, stream, study.data_root, study.progress)
        plan = attack.plan(inside)
        study.add_target(0, case.train, plan)

    trained = _trained_before(study)
    if trained is None:
        study.results.drop_rounds(0)
        model = study.initial_model()
        lake = LocalTraining(
            model=model,
            spec=case.spec,
            data=case.train,
            task=case.task,
            settings=scenario.training,
            stream=stream.at(0),
            progress=study.progress,
        )
        with study.threads():
            report = train(lake) if attack is None else attack.train(lake, plan)
        trained = state_of(model)
        study.record_values(0, "upload", seconds=report.seconds)
        if report.dp_epsilon is not None:
            study.record_values(0, "upload", dp_epsilon=report.dp_epsilon)
        if attack is not None:
            embedding = attack.embed(trained, case.spec, plan)
            if embedding.values:
                study.record_before_embedding(0, trained, **embedding.values)
            trained = embedding.state
        study.record(0, "upload", {None: trained}, senders=scenario.attackers)
        study.save_pictures()
        write_atomically(study.out / "trained", b"")
    else:
        study.results.keep(lambda row: row["stage"] != "release")

    released, defence = study.defend(trained, 0)
    study.record(0, "release", {None: released})
    study.record_report(0, defence)
    record_scratch_floor(study, 0)


def _trained_before(study: Study) -> State | None:
    """Return the trained model of an interrupted run, if its training and measuring had ended."""
    if not (study.out / "trained").exists():
        return None
    study.restore_pictures()
    return read_artifact(study.out / "artifacts" / "upload.safetensors").state


def example(out: Path | None = None) -> Any:
    """Run a small data lake of embedded images."""
    from experiments.run import run

    return run(
        {
            "mode": "centralized",
            "dataset": "phantoms",
            "model": "cnn",
            "training": {"epochs": 12},
            "attack": {"name": "transpose", "images": 32},
            "defense": "lwlrd",
        },
        out,
    )


if __name__ == "__main__":
    result = example()
    print(result.summary().to_string())
    print(f"Recovered images: {result.picture}")
