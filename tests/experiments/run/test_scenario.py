"""Scenarios: what is accepted, what is refused, and in which words."""

from pathlib import Path
from typing import Any

import pytest

from experiments.run.scenario import Scenario
from experiments.run.shipped import SCENARIOS
from fl_sim.errors import FlSimError

DOCUMENTED = """
mode = "federated"
dataset = "dermamnist"
model = "resnet18"
seed = 0
[attack]
name = "transpose"
images = 64
[defense]
name = "lwlrd"
[federation]
hospitals = 4
malicious = [0]
rounds = 8
strategy = "fedprox"
proximal_mu = 0.3
partition = "dirichlet"
alpha = 0.2
engine = "ray"
"""


def _file(folder: Path, text: str = DOCUMENTED) -> Path:
    path = folder / "scenario.toml"
    path.write_text(text)
    return path


def test_the_documented_scenario_is_read_with_flat_keys_of_strategy_and_partition(
    tmp_path: Path,
) -> None:
    scenario = Scenario.from_toml(_file(tmp_path))
    federation = scenario.federation
    assert federation is not None
    assert federation.strategy.name == "fedprox"
    assert federation.strategy.settings["proximal_mu"] == 0.3
    assert (federation.partition.scheme, federation.partition.alpha) == ("dirichlet", 0.2)
    assert federation.engine.engine == "ray"
    assert scenario.attack is not None and scenario.attack.settings["images"] == 64
    assert scenario.training.epochs == 1


def test_every_shipped_scenario_is_valid_and_described() -> None:
    files = sorted(SCENARIOS.glob("*.toml"))
    assert len(files) >= 5
    for file in files:
        Scenario.from_toml(file)
        assert file.read_text().startswith("# ")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    scenario = Scenario.from_toml(_file(tmp_path))
    again = Scenario.model_validate_json(scenario.model_dump_json())
    assert again == scenario and again.identity == scenario.identity


def test_the_identity_ignores_the_seed_and_the_engine_and_nothing_else(tmp_path: Path) -> None:
    file = _file(tmp_path)
    identity = Scenario.from_toml(file).identity
    same = ["seed=5", 'federation.engine="inprocess"', "threads=1", "measure.keep=all"]
    for override in same:
        assert Scenario.from_toml(file, [override]).identity == identity, override
    others = [
        "attack.images=65",
        "defense=none",
        "federation.alpha=0.3",
        "federation.proximal_mu=0.4",
        "training.epochs=2",
        "model.stem=small",
        "data.public_images=10",
    ]
    identities = {Scenario.from_toml(file, [override]).identity for override in others}
    assert len(identities | {identity}) == len(others) + 1


def test_overrides_change_components_given_by_name_or_by_table(tmp_path: Path) -> None:
    file = _file(tmp_path)
    scenario = Scenario.from_toml(
        file, ["dataset.size=64", "attack.images=8", "defense=none", "model=cnn", "seed=3"]
    )
    assert scenario.dataset.name == "dermamnist" and scenario.dataset.settings["size"] == 64
    assert scenario.attack is not None and scenario.attack.settings["images"] == 8
    assert scenario.defense is None and scenario.model.name == "cnn" and scenario.seed == 3


def test_a_models_own_keys_stand_beside_the_stem() -> None:
    values: dict[str, Any] = {"mode": "centralized", "dataset": "phantoms"}
    own = {"name": "unet", "channels": [8, 16, 32]}
    scenario = Scenario.create(**values, model=own)
    assert scenario.model.settings == {
        "stem": "default",
        "weights": None,
        "normalize": "symmetric",
        "channels": [8, 16, 32],
        "residual_units": 2,
    }
    assert Scenario.create(**values, model="unet").identity != scenario.identity
    again = Scenario.model_validate_json(scenario.model_dump_json())
    assert again == scenario and again.identity == scenario.identity
    assert Scenario.create(**values, model=scenario.model) == scenario
    for model, words in (
        (
            {"name": "unet", "chanels": [8]},
            r"\[model\] has no key 'chanels'. Did you mean 'channels'",
        ),
        ({"name": "unet", "step": "small"}, r"\[model\] has no key 'step'. Did you mean 'stem'"),
        ({"name": "cnn", "channels": [8, 16]}, r"\[model\] has no key 'channels'"),
        ({"name": "unett"}, "no model called 'unett'. Did you mean 'unet'"),
    ):
        with pytest.raises(FlSimError, match=words):
            Scenario.create(**values, model=model)


REFUSED = {
    "sed = 1\n" + DOCUMENTED: "has no key 'sed'. Did you mean 'seed'",
    DOCUMENTED.replace("images = 64", "image = 64"): r"\[attack\] has no key 'image'. Did you mean",
    DOCUMENTED.replace("transpose", "transposed"): "no attack called 'transposed'. Did you mean",
    DOCUMENTED.replace("lwlrd", "lwlr"): "no defense called 'lwlr'. Did you mean 'lwlrd'",
    DOCUMENTED.replace("resnet18", "resnet-18"): "no model called 'resnet-18'. Did you mean",
    DOCUMENTED.replace("dermamnist", "dermanist"): "no dataset called 'dermanist'. Did you mean",
    DOCUMENTED.replace("fedprox", "fedprx"): "no strategy called 'fedprx'. Did you mean",
    DOCUMENTED.replace("dirichlet", "dirichlett"): "Did you mean 'dirichlet'",
    DOCUMENTED.replace('"ray"', '"raay"'): "engine",
    DOCUMENTED.replace("malicious = [0]", "malicious = [4]"): "names hospital 4, but 4 hospitals",
    DOCUMENTED.replace("rounds = 8", "rounds = 0"): "'rounds' is 0",
    DOCUMENTED.replace("rounds = 8", "round = 8"): "has no key 'round'. Did you mean 'rounds'",
    DOCUMENTED.replace("images = 64", 'images = "many"'): "'images' is 'many'",
    DOCUMENTED.replace(
        'mode = "federated"', 'mode = "central"'
    ): "'mode' is 'central'. Did you mean 'centralized'",
    DOCUMENTED.replace('mode = "federated"', 'mode = "centralized"'): r"has no \[federation\]",
    DOCUMENTED.replace('model = "resnet18"', ""): "lacks the key 'model'",
    DOCUMENTED + "cohort = 9\n": "cohort is 9, but there are 4",
    DOCUMENTED + "malicious_rounds = [9]\n": "names round 9 of 1 to 8",
    DOCUMENTED + 'defend = "sometimes"\n': "defend",
    "mode = \n": "cannot be read",
    'plugins = ["no_such_module"]\n' + DOCUMENTED: "plugin 'no_such_module' cannot be imported",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(FlSimError, match=REFUSED[text]) as refusal:
        Scenario.from_toml(_file(tmp_path, text))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("override", ["seed", "=3", "seed.x=3"])
def test_a_bad_override_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(FlSimError, match="--set"):
        Scenario.from_toml(_file(tmp_path), [override])


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlSimError, match="does not exist"):
        Scenario.from_toml(tmp_path / "nothing.toml")


def test_scenarios_are_built_from_python_as_from_toml(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "mode": "federated",
        "dataset": "dermamnist",
        "model": "resnet18",
        "attack": {"name": "transpose", "images": 64},
        "defense": "lwlrd",
        "federation": {
            "hospitals": 4,
            "rounds": 8,
            "strategy": {"name": "fedprox", "proximal_mu": 0.3},
            "partition": {"scheme": "dirichlet", "alpha": 0.2},
        },
    }
    built = Scenario.create(**values)
    assert built.identity == Scenario.from_toml(_file(tmp_path)).identity


@pytest.mark.parametrize(
    ("given", "rounds", "expected"),
    [
        ("last", 5, (5,)),
        ("alternate", 5, (1, 3, 5)),
        ("alternate", 4, (2, 4)),
        ([2, 3], 4, (2, 3)),
        (None, 4, None),
    ],
)
def test_rounds_of_attack_by_name(given: Any, rounds: int, expected: Any) -> None:
    federation = {"rounds": rounds, "hospitals": 2}
    if given is not None:
        federation["malicious_rounds"] = given
    scenario = Scenario.create(
        mode="federated", dataset="phantoms", model="cnn", attack="transpose", federation=federation
    )
    assert scenario.federation is not None
    assert scenario.federation.attack_rounds == expected
    assert scenario.hospital_settings(None).malicious_rounds == expected


def test_hospitals_are_told_how_they_collude(tmp_path: Path) -> None:
    text = DOCUMENTED.replace("malicious = [0]", 'malicious = [2, 1]\ncollusion = "repeat"')
    settings = Scenario.from_toml(_file(tmp_path, text)).hospital_settings(None)
    assert settings.collusion == "repeat"
    assert [settings.planner(hospital) for hospital in settings.malicious] == [2, 2]
    alone = Scenario.from_toml(_file(tmp_path)).hospital_settings(None)
    assert alone.collusion == "none" and alone.planner(3) == 3
    with pytest.raises(FlSimError, match=r"'collusion' is 'share'"):
        Scenario.from_toml(_file(tmp_path, text.replace("repeat", "share")))
