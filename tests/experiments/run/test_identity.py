"""What results depend on: every field of a scenario, and every default, is accounted for.

``python tests/experiments/run/test_identity.py`` writes the snapshot of defaults anew.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic_core import to_jsonable_python

from experiments.run import identity
from experiments.run.scenario import MeasureSettings, Scenario
from fl_sim.attacks.base import ATTACKS
from fl_sim.carriers.base import CARRIERS
from fl_sim.case import model_settings
from fl_sim.codec import CODECS
from fl_sim.coding.base import CODES
from fl_sim.component import Component
from fl_sim.data import dataset_settings
from fl_sim.data.base import DATASETS
from fl_sim.defenses.base import DEFENSES
from fl_sim.models.base import MODELS
from fl_sim.overrides import apply_override
from fl_sim.settings import Settings
from fl_sim.training import TrainingSettings
from strategies.base import STRATEGIES

ROOT = Path(__file__).parents[3]
SNAPSHOT = Path(__file__).with_name("identity_defaults.json")

PRODUCTS = {
    "data": identity.data,
    "network": identity.network,
    "floor": identity.floor,
    "codec": identity.outside,
    "attacked": identity.attacked,
    "upload": identity.upload,
    "released": identity.released,
    "measures": identity.measures,
}
AFTER_DATA = {"network", "floor", "attacked", "upload", "released"}
FROM_DATA = {"data", *AFTER_DATA}
TRAINED = {"network", "attacked", "upload", "released"}
ATTACKED = {"attacked", "upload", "released"}

LAKE: dict[str, Any] = {
    "mode": "centralized",
    "dataset": "phantoms",
    "model": "cnn",
    "attack": {"name": "dec", "images": 8, "external": "pneumoniamnist"},
    "defense": "lwlrd",
    "training": {"epochs": 3},
}
UNION: dict[str, Any] = {**LAKE, "mode": "federated"}

# By field: another value, in TOML, and the products that it changes.
FIELDS: dict[str, tuple[str, set[str]]] = {
    "dataset": ("dermamnist", FROM_DATA),
    "model": ("resnet18", AFTER_DATA),
    "mode": ("federated", TRAINED),
    "seed": ("1", set()),  # stands beside the name in every folder and row
    "attack": ("{name = 'transpose'}", {"codec", *ATTACKED}),
    "attack.images": ("9", ATTACKED),
    "attack.external": ("chestmnist", {"codec", *ATTACKED}),
    "attack.codec": ("scale_hyperprior", {"codec", *ATTACKED}),
    "defense": ("{name = 'scratch'}", {"released"}),
    "defense.batch_size": ("8", {"released"}),
    "threads": ("1", set()),  # the last bits only
    "device": ("cuda", set()),
    "plugins": ("['tests_plugin']", AFTER_DATA),
    "data.images": ("20", {"floor", "released"}),
    "data.public_images": ("20", FROM_DATA - {"floor"}),
    "data.train_images": ("50", FROM_DATA - {"floor"}),
    "data.test_images": ("50", FROM_DATA),
    "data.validation_share": ("0.25", FROM_DATA),
    "data.split": ("patient", FROM_DATA),
    "data.duplicates": ("drop", FROM_DATA),
    "training.batch_size": ("32", AFTER_DATA),
    "training.optimizer": ("sgd", AFTER_DATA),
    "training.momentum": ("0.5", AFTER_DATA),
    "training.weight_decay": ("0.1", AFTER_DATA),
    "training.flip": ("true", AFTER_DATA),
    "training.learning_rate": ("0.01", AFTER_DATA),
    "training.views": ("square", AFTER_DATA),
    "training.mixup": ("0.5", AFTER_DATA),
    "training.schedule": ("cosine", AFTER_DATA),
    "training.epochs": ("2", TRAINED),
    "training.dp": ("{noise_multiplier = 1.0}", TRAINED),
    "attacker.hospital": ("{hospitals = 3, number = 1}", {"measures", *ATTACKED}),
    "attacker.knows_defense": ("true", {"measures", "upload"}),
    "attacker.search": ("true", {"measures", "upload"}),
    "attacker.restorations": ("['affine']", {"measures", "upload"}),
    "attacker.rehearsal_images": ("9", {"measures", "upload"}),
    "attacker.rehearsal_epochs": ("2.0", {"measures", "upload"}),
    "attacker.rehearsal_defenses": ("2", {"measures", "upload"}),
    "attacker.held_out_share": ("0.5", {"measures", "upload"}),
    "measure.every": ("2", {"measures"}),
    "measure.scratch_epochs": ("2", {"measures", "floor"}),
    "measure.usability_epochs": ("2", {"measures", "upload"}),
    "measure.columns": ("2", set()),
    "measure.keep": ("all", set()),
    "membership": ("{name = 'rmia'}", {"measures", "upload"}),
    "inversion": ("{images = 4}", {"measures", "upload"}),
    "federation.hospitals": ("5", TRAINED),
    "federation.rounds": ("3", TRAINED),
    "federation.strategy": ("fedadam", TRAINED),
    "federation.partition": ("dirichlet", TRAINED),
    "federation.cohort": ("2", TRAINED),
    "federation.absent": ("[3]", TRAINED),
    "federation.defend": ("last", {"released"}),
    "federation.malicious": ("[1]", ATTACKED),
    "federation.malicious_rounds": ("last", ATTACKED),
    "federation.boost": ("2.0", ATTACKED),
    "federation.update_norm": ("2.0", ATTACKED),
    "federation.collusion": ("repeat", ATTACKED),
    "federation.door": ("{clip = 2.0}", TRAINED),
    "federation.engine": ("inprocess", set()),
}


def _changed(field: str, value: str) -> tuple[Scenario, Scenario]:
    """Return a scenario without and with another value of a field."""
    base = json.loads(json.dumps(UNION if field.startswith("federation.") else LAKE))
    if field == "federation.collusion":
        base["federation"] = {"malicious": [0, 1]}
    other = json.loads(json.dumps(base))
    apply_override(other, f"{field}={value}")
    if field == "training.dp":
        return (_built({**base, "attack": None}), _built({**other, "attack": None}))
    return _built(base), _built(other)


def _built(values: dict[str, Any]) -> Scenario:
    return Scenario.from_mapping(values)


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_changes_the_products_that_depend_on_it(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.run.scenario.import_plugins", lambda modules: None)
    value, products = FIELDS[field]
    before, after = _changed(field, value)
    assert {n for n, of in PRODUCTS.items() if of(before) != of(after)} == products
    named = products - {"floor", "codec", "upload"}
    assert (before.identity != after.identity) == bool(named)


def test_who_knows_the_defence_depends_on_it() -> None:
    knowing = {**LAKE, "attacker": {"knows_defense": True}}
    known = identity.upload(_built(knowing))
    assert identity.upload(_built({**knowing, "defense": "scratch"})) != known
    assert identity.upload(_built({**knowing, "data": {"images": 20}})) != known


def test_what_is_measured_depends_on_the_held_out_images_where_a_part_of_them_is_tested_on() -> (
    None
):
    tuned = {**LAKE, "data": {"validation_share": 0.25}}
    fewer = _built({**LAKE, "data": {"validation_share": 0.25, "images": 20}})
    assert identity.upload(fewer) != identity.upload(_built(tuned))


def test_dropped_duplicates_are_those_near_training_images_and_counting_them_changes_nothing() -> (
    None
):
    lake = Scenario.create(**LAKE)
    quiet = Scenario.create(**LAKE, data={"duplicates": "keep"})
    assert quiet.identity == lake.identity
    dropped = [
        Scenario.create(**LAKE, data={"duplicates": "drop", "public_images": images})
        for images in (20, 30)
    ]
    assert identity.floor(dropped[0]) != identity.floor(dropped[1])


def test_every_field_of_a_scenario_is_accounted_for() -> None:
    assert set(FIELDS) >= set(_fields(Scenario)) - {"attack", "defense"}


def _fields(kind: type[Settings], prefix: str = "") -> Iterator[str]:
    tables = {"data", "training", "attacker", "measure", "federation"}
    for name, field in kind.model_fields.items():
        if not prefix and name in tables:
            inner = [k for k in (field.annotation, *get_args(field.annotation)) if _table(k)]
            yield from _fields(inner[0], f"{name}.")
        else:
            yield f"{prefix}{name}"


def _table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings)


def test_a_value_that_is_the_default_is_none() -> None:
    told = {
        **LAKE,
        "training": {"epochs": 3, "batch_size": TrainingSettings().batch_size},
        "attack": {**LAKE["attack"], "codec": "factorized", "carrier": {"name": "lsb"}},
        "measure": {"every": 1},
    }
    assert _built(told).identity == _built(LAKE).identity
    content = json.dumps(identity.released(_built(LAKE)))
    assert "batch_size" not in content and '"dec"' in content and "factorized" not in content


def test_a_new_key_with_a_default_renames_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _built(LAKE).identity

    class Longer(MeasureSettings):
        new: int = 5

    longer = _built(LAKE).model_copy(update={"measure": Longer()})
    assert longer.identity == before
    assert longer.model_copy(update={"measure": Longer(new=6)}).identity != before
    monkeypatch.setattr(identity, "VERSION", identity.VERSION + 1)
    assert _built(LAKE).identity != before


def _defaults() -> dict[str, Any]:
    """Return the default of every key of everything that a scenario can name."""
    kinds: dict[str, type[Settings]] = {"scenario": Scenario}
    for name, field in Scenario.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if _table(kind):
                kinds[name] = kind
    for registry in (ATTACKS, DEFENSES, CARRIERS, CODES, CODECS):
        for name in registry.names():
            kinds[f"{registry.kind} {name}"] = registry.get(name).Settings
    kinds |= {f"strategy {name}": STRATEGIES.get(name).settings for name in STRATEGIES.names()}
    kinds |= {f"dataset {name}": dataset_settings(name) for name in DATASETS.names()}
    kinds |= {f"model {name}": model_settings(name) for name in MODELS.names()}
    return {
        where: dict(sorted(_of_kind(kind)))
        for where, kind in sorted(kinds.items())
        if kind != Component
    }


def _of_kind(kind: type[Settings]) -> Iterator[tuple[str, Any]]:
    for name, field in kind.model_fields.items():
        if field.is_required():
            yield name, "no default"
        else:
            yield name, to_jsonable_python(field.get_default(call_default_factory=True))


def test_who_changes_a_default_raises_the_version() -> None:
    known = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    # In a process of its own: here, other tests have registered components.
    done = subprocess.run(
        [sys.executable, __file__, "--print"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    ours, mine = known["defaults"], json.loads(done.stdout)
    changed = [
        f"{where}: {key}"
        for where, keys in ours.items()
        for key, value in keys.items()
        if not _keeps(value, mine.get(where, {}).get(key, value))
    ]
    if known["version"] == identity.VERSION:
        assert not changed, f"raise VERSION in experiments/run/identity.py: {changed}"
    assert (known["version"], ours) == (identity.VERSION, mine), (
        f"keys are new or gone, or the version is: run python {Path(__file__).name} and commit"
    )


def _keeps(known: Any, mine: Any) -> bool:
    """Whether a default is as it was; of a table, in every key that it had."""
    if isinstance(known, dict) and isinstance(mine, dict):
        return all(_keeps(value, mine.get(key, value)) for key, value in known.items())
    return bool(known == mine)


if __name__ == "__main__":
    if "--print" in sys.argv:
        print(json.dumps(_defaults()))
    else:
        content = {"version": identity.VERSION, "defaults": _defaults()}
        SNAPSHOT.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
