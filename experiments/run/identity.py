"""What a result depends on, said once: the name of a scenario, and of work that scenarios share.

A product (the trained network, the attacked model, what leaves, ...) is identified by the settings
that it depends on, and of those only by the ones that differ from their defaults, with
:data:`VERSION`. So a new setting with a default renames nothing; whoever changes a default, or what
a setting means, raises :data:`VERSION`.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_sim import __version__
from fl_sim.case import model_settings
from fl_sim.component import Component
from fl_sim.data import dataset_settings
from fl_sim.defenses.base import DEFENSES
from fl_sim.errors import printable
from fl_sim.settings import Settings
from strategies.base import STRATEGIES

if TYPE_CHECKING:
    from experiments.run.scenario import Scenario

VERSION = 1
"""Raised when a default changes, or what a setting does: earlier results have other names then."""

_LONGEST_NAME = 80
_OF_ATTACKERS = ("malicious", "malicious_rounds", "boost", "update_norm", "collusion")
"""Keys of [federation] that say what malicious hospitals do."""

Plain = dict[str, Any]


def identity(scenario: "Scenario") -> str:
    """Return a readable name with a hash of everything that results depend on, except the seed.

    Not of ``threads`` and ``device``, which change the last bits only, nor of where files lie.
    """
    content = {"version": VERSION, "released": released(scenario), "measures": measures(scenario)}
    parts = [
        scenario.mode,
        printable(Path(scenario.dataset.name).stem)[:_LONGEST_NAME],
        scenario.model.name,
        scenario.attack.name if scenario.attack else "honest",
        scenario.defense.name if scenario.defense else "undefended",
    ]
    if scenario.federation:
        parts.append(scenario.federation.strategy.name)
    return "-".join([*parts, digest_of(content)[:8]])


def digest_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain values, the same for the same values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def data(scenario: "Scenario") -> Plain:
    """Return what the images depend on that are trained, tested and attacked with."""
    kind = dataset_settings(scenario.dataset.name)
    name = Path(scenario.dataset.name).name  # wherever the file lies
    sizes = scenario.data.differing()
    if scenario.data.validation_share is None:
        sizes.pop("images", None)  # held out from a split of their own, and never tested on
    if scenario.data.duplicates != "drop":
        sizes.pop("duplicates", None)  # it changes what is said, and no image
    return {"dataset": _component(scenario.dataset, kind, name), "data": sizes}


def network(scenario: "Scenario") -> Plain:
    """Return what a network depends on that is trained as the scenario trains, unattacked."""
    content = {
        **data(scenario),
        "mode": scenario.mode,
        "model": _model(scenario.model),
        "training": scenario.training.differing(),
        "plugins": list(scenario.plugins),
    }
    if scenario.federation is not None:
        federation = scenario.federation.differing()
        for other in (*_OF_ATTACKERS, "defend", "engine"):  # engines give the same, bit for bit
            federation.pop(other, None)
        strategy = scenario.federation.strategy
        federation["strategy"] = strategy.plain()
        if strategy.name in STRATEGIES.names():  # and not somebody's own object
            federation["strategy"] = _component(strategy, STRATEGIES.get(strategy.name).settings)
        content["federation"] = federation
    return content


def attacked(scenario: "Scenario") -> Plain:
    """Return what the attacked model depends on."""
    attack = scenario.make_attack()
    if attack is None or scenario.attack is None:
        return network(scenario)
    whole: Plain = {"name": scenario.attack.name, "settings": attack.settings.identity()}
    if scenario.federation is not None:
        told = scenario.federation.differing()
        whole["federation"] = {key: told[key] for key in _OF_ATTACKERS if key in told}
    content = {**network(scenario), "attack": whole}
    if scenario.attacker.hospital is not None:
        content["attacker.hospital"] = scenario.attacker.hospital.differing()
    return content


def released(scenario: "Scenario") -> Plain:
    """Return what leaves depends on."""
    content = {**attacked(scenario), "held_out": scenario.data.images}
    if scenario.federation is not None and scenario.defense is not None:
        content["defend"] = scenario.federation.defend
    return {**content, "defense": _defense(scenario)}


def measures(scenario: "Scenario") -> Plain:
    """Return what is measured, and what of it depends on the attacker's own work."""
    measure = scenario.measure.differing()
    for shown in ("columns", "keep"):
        measure.pop(shown, None)
    return {
        "measure": measure,
        "attacker": scenario.attacker.differing(),
        **_optional(scenario),
    }


def until_release(scenario: "Scenario") -> Plain:
    """Return what a run depends on up to its release, but for how much is measured."""
    content = {**attacked(scenario), "attacker": scenario.attacker.differing()}
    if scenario.attacker.knows_defense and scenario.defense is not None:
        # He rehearses it, with as many images as the owner has.
        content |= {"defense": _defense(scenario), "held_out": scenario.data.images}
    return content


def upload(scenario: "Scenario") -> Plain:
    """Return what an attacked model, and all that is measured of it, depends on."""
    return {
        **until_release(scenario),
        "usability_epochs": scenario.measure.usability_epochs,
        **_optional(scenario),
    }


def _optional(scenario: "Scenario") -> Plain:
    """Return how membership is inferred, and classes are inverted, where they are."""
    found: Plain = {}
    if scenario.membership is not None:
        # An attack by its name, also where it is the default: the table itself says that it is.
        found["membership"] = {"name": scenario.membership.name, **scenario.membership.differing()}
    if scenario.inversion is not None:
        found["inversion"] = scenario.inversion.differing()
    return found


def floor(scenario: "Scenario") -> Plain:
    """Return what the floor of utility depends on: training on the held-out set alone."""
    training = scenario.training.differing()
    for other in ("epochs", "dp"):  # its own epochs, and not privately, as defences are not either
        training.pop(other, None)
    content = {
        "dataset": data(scenario)["dataset"],
        "model": _model(scenario.model),
        "held_out": scenario.data.images,
        "test_images": scenario.data.test_images,
        "training": training,
        "epochs": scenario.measure.scratch_epochs,
        "plugins": list(scenario.plugins),
        **_divided(scenario),
    }
    if scenario.data.validation_share is not None:
        content["validation_share"] = scenario.data.validation_share
    return content


def _divided(scenario: "Scenario") -> Plain:
    """Return what else held-out and test images depend on, where they are not as published."""
    told = data(scenario)["data"]
    keys = ["split"] if "split" in told else []
    if "duplicates" in told:  # those near training images are dropped, which public ones are not
        keys += ["duplicates", *(["public_images"] if "public_images" in told else [])]
    return {key: told[key] for key in keys}


def outside(scenario: "Scenario") -> Plain:
    """Return what the attacker prepares outside: a codec, for example; empty for nothing."""
    attack = scenario.make_attack()
    prepared = attack.prepared_outside if attack else None
    return {} if prepared is None else {"prepared": prepared}


def made_here(scenario: "Scenario", files: list[str], device: str) -> Plain:
    """Return what else a product depends on that is kept for others: files, versions, machine.

    Args:
        scenario: whose seed it is.
        files: SHA-256 of its data files.
        device: where it is computed.
    """
    return {
        "version": VERSION,
        "versions": [__version__, _torch_version()],
        "files": files,
        "device": device,
        "seed": scenario.seed,
    }


@cache
def _torch_version() -> str:
    return version("torch")  # parses a file of a thousand lines


def _component(component: Component, kind: type[Settings], name: str = "") -> Plain:
    settings = component.typed(kind, component.name).differing()
    return {"name": name or component.name, "settings": settings}


def _model(model: Component) -> Plain:
    content = _component(model, model_settings(model.name))
    weights = content["settings"].get("weights")
    if weights is not None:
        content["settings"]["weights"] = Path(weights).name  # wherever the file lies
    return content


def _defense(scenario: "Scenario") -> Plain | None:
    defense = scenario.defense
    return None if defense is None else _component(defense, DEFENSES.get(defense.name).Settings)
