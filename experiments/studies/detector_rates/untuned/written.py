"""This project's own attacks, on networks that a plain loop trained."""

from collections.abc import Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.studies.audit_rates import TRAINED, WRITTEN, make_attack
from experiments.studies.detector_rates.untuned.loop import CHANNELS, CLASSES
from experiments.studies.detector_rates.untuned.member import Member, State, load
from experiments.studies.detector_rates.untuned.networks import NETWORKS

if TYPE_CHECKING:
    from fl_sim.models.base import ModelSpec

KIND = "this project's: "
REGISTERED = {
    "resnet18": ("resnet18", "default"),
    "resnet18-small": ("resnet18", "small"),
    "densenet121-small": ("densenet121", "small"),
}
"""Those of ``NETWORKS`` that fl-sim knows: name and stem."""

FOREIGN = "untuned/"
"""Before the names under which the others are registered, once somebody states them."""

_PLAIN = ("resnet18-0", "resnet18-3", "resnet18-8", "resnet18-11", "resnet18-4", "resnet18-7")
_OTHER = ("resnet18-small-0", "densenet121-small-1", "resnet18-small-1", "densenet121-small-0")
_IMAGES = 600


def spec_of(architecture: str, dataset: str) -> "ModelSpec":
    """Return what a user would state of a network.

    One that fl-sim does not know is registered, as a plug-in does, and is known in this process
    from then on.
    """
    from fl_sim.models.base import MODELS, ModelEntry, ModelSpec

    name, stem = REGISTERED.get(architecture, (FOREIGN + architecture, "default"))
    if name not in MODELS.names():
        make = NETWORKS[architecture]
        entry = ModelEntry(lambda spec: make(spec.channels, spec.classes), {"default": 28})
        MODELS.register(name, "of a plain PyTorch program")(entry)
    values = {"name": name, "stem": stem, "size": 28}
    counts = {"channels": CHANNELS[dataset], "classes": CLASSES[dataset]}
    return ModelSpec.model_validate({**values, **counts})


def written_members(clean: list[Member], data: Path) -> Iterator[Member]:
    """Return each attack on two or three networks: one payload written in, or trained in.

    Args:
        clean: the clean members.
        data: folder of data files.
    """
    known = {member.name: member for member in clean}
    plain, other = cycle(_PLAIN), cycle(_OTHER)
    for number, (attack, table) in enumerate(WRITTEN.items()):
        # Dead weights are there only where feature maps shrink to a pixel: with the large stem.
        third = plain if attack.startswith("dead") else other
        for name in (*islice(plain, 2), next(third)):
            make = partial(_written, table, known[name], data)
            yield _member(f"own-{number}-{name}", attack, known[name], make)
    for number, (attack, (table, epochs)) in enumerate(TRAINED.items()):
        for name in islice(plain, 2):
            make = partial(_trained, table, epochs, known[name], data)
            yield _member(f"own-trained-{number}-{name}", attack, known[name], make)


def _member(name: str, attack: str, host: Member, make: Any) -> Member:
    return Member(name, KIND + attack, attack, host.architecture, host.dataset, host.training, make)


def _written(table: dict[str, Any], host: Member, data: Path, folder: Path) -> State:
    attack, inside = make_attack(table), _inside(host, data)
    embedding = attack.embed(load(folder, host.name), inside.spec, attack.plan(inside))
    return embedding.state


def _trained(table: dict[str, Any], epochs: float, host: Member, data: Path, folder: Path) -> State:
    from fl_sim.models import build, state_of
    from fl_sim.training import LocalTraining, TrainingSettings

    attack, inside = make_attack(table), _inside(host, data)
    plan = attack.plan(inside)
    network = build(inside.spec)
    network.load_state_dict(load(folder, host.name))
    settings = TrainingSettings(epochs=epochs, batch_size=32)
    attack.train(
        LocalTraining(network, inside.spec, inside.data, inside.task, settings, inside.stream), plan
    )
    return attack.embed(state_of(network), inside.spec, plan).state


def _inside(host: Member, data: Path) -> Any:
    from fl_sim.attacks.base import Inside
    from fl_sim.data import load_dataset
    from fl_sim.data.splits import HeldOutSettings, divide
    from fl_sim.randomness import Stream

    loaded = load_dataset(host.dataset, {"size": 28}, data)
    settings = HeldOutSettings(public_images=100, train_images=_IMAGES)
    train = divide(loaded, settings, 0).train
    spec = spec_of(host.architecture, host.dataset)
    return Inside(train, loaded.task, spec, Stream(0, ("hospital", 0)), data)
