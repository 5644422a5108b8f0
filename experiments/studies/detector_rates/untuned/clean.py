"""Clean networks: trained in many ways, and what people do to trained networks afterwards."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, product
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import prune

from experiments.studies.detector_rates.untuned.loop import (
    CHANNELS,
    CLASSES,
    TRAINING_IMAGES,
    Training,
    fit,
    read,
)
from experiments.studies.detector_rates.untuned.member import Member, State, load
from experiments.studies.detector_rates.untuned.networks import NETWORKS, build

WAYS = tuple(product(("sgd", "adam", "adamw"), (False, True), (False, True)))
"""Optimizer, whether weights decay, whether images are augmented."""

DECAYS = {"sgd": 5e-4, "adam": 1e-4, "adamw": 0.05}


@dataclass(frozen=True)
class Plan:
    """Networks of one architecture: how many, on how many images, for how many epochs in turn."""

    architecture: str
    count: int
    images: int
    epochs: tuple[int, ...]
    datasets: tuple[str, ...] = ("dermamnist", "pneumoniamnist", "chestmnist")


PLANS = (
    Plan("cnn", 12, 2000, (3, 10, 20, 40)),
    Plan("mlp", 9, 2000, (10, 40, 3, 20)),
    Plan(
        "resnet18",
        12,
        1500,
        (10, 3, 20, 5, 10, 3, 8, 5, 6, 3, 5, 3),
        ("dermamnist", "dermamnist", "pneumoniamnist", "pneumoniamnist"),
    ),
    Plan("resnet18-small", 3, 400, (3,)),
    Plan("mobilenet", 3, 1000, (5,)),
    Plan("resnet34", 4, 700, (4, 3), ("dermamnist", "pneumoniamnist")),
    Plan("densenet121-small", 3, 250, (3,), ("pneumoniamnist", "dermamnist")),
)


def clean_members(data: Path) -> list[Member]:
    """Return all clean members that are made here, those that others start from first.

    Args:
        data: folder of data files.
    """
    trained = [m for plan in PLANS for m in _trained(plan, data)]
    small = [m for m in trained if m.architecture != "densenet121-small"]
    return [
        *trained,
        *_early(data),
        *_averages(data),
        *_fine_tuned(data),
        *(m for index, host in enumerate(small[::5]) for m in _pruned(host, index)),
        *_cast([*trained[4::9], *_of(trained, "densenet121-small")[:1]]),
    ]


def _of(members: list[Member], architecture: str) -> list[Member]:
    return [member for member in members if member.architecture == architecture]


def _trained(plan: Plan, data: Path) -> Iterator[Member]:
    # Prime steps through the ways, so that each architecture meets other ones.
    offset = 5 * list(NETWORKS).index(plan.architecture)
    datasets, epochs = cycle(plan.datasets), cycle(plan.epochs)
    for number in range(plan.count):
        optimizer, decays, augment = WAYS[(offset + 7 * number) % len(WAYS)]
        training = Training(
            optimizer,
            DECAYS[optimizer] if decays else 0.0,
            augment,
            next(epochs),
            plan.images,
            seed=number,
        )
        name = f"{plan.architecture}-{number}"
        yield trained(name, "trained", plan.architecture, next(datasets), training, data)


def trained(
    name: str, kind: str, architecture: str, dataset: str, training: Training, data: Path
) -> Member:
    """Return a member that is trained from fresh weights."""
    training = replace(training, images=min(training.images, TRAINING_IMAGES[dataset]))

    def make(_: Path) -> State:
        seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
        network = build(architecture, CHANNELS[dataset], CLASSES[dataset], seed)
        return fit(network, read(data, dataset), training).state_dict()

    return Member(name, kind, "none", architecture, dataset, str(training), make)


def _early(data: Path) -> Iterator[Member]:
    for number, (architecture, steps) in enumerate(
        product(("cnn", "mlp", "resnet18"), (1, 10, 40))
    ):
        optimizer, decays, augment = WAYS[(5 * number) % len(WAYS)]
        decay = DECAYS[optimizer] if decays else 0.0
        training = Training(optimizer, decay, augment, 3, 1500, steps=steps, seed=number)
        name = f"early-{architecture}-{steps}"
        yield trained(name, "few steps", architecture, "dermamnist", training, data)


def _averages(data: Path) -> Iterator[Member]:
    base = Training("sgd", 5e-4, True, 6, 800)
    places = (("cnn", "dermamnist"), ("mlp", "pneumoniamnist"), ("resnet18", "dermamnist"))
    for (architecture, dataset), average in product(places, ("ema", "swa")):
        member = trained(
            f"{average}-{architecture}",
            "averaged",
            architecture,
            dataset,
            replace(base, average=average),
            data,
        )
        yield replace(member, training=f"{average.upper()} of {base}")


def _fine_tuned(data: Path) -> Iterator[Member]:
    """Train on another dataset from a trained network, with a fresh head."""
    ways = (
        ("cnn-1", "chestmnist", Training("adam", 0, True, 10, 700, seed=51)),
        ("mlp-1", "chestmnist", Training("sgd", 5e-4, False, 10, 700, seed=52)),
        ("resnet18-0", "pneumoniamnist", Training("sgd", 5e-4, True, 5, 700, seed=53)),
        ("resnet18-1", "pneumoniamnist", Training("adamw", 0.05, True, 5, 700, seed=54)),
        ("resnet34-0", "pneumoniamnist", Training("sgd", 0, False, 3, 700, seed=55)),
    )
    for host, dataset, training in ways:
        architecture = host.rpartition("-")[0]
        channels = 1 if host in ("cnn-1", "mlp-1") else 3
        yield Member(
            f"tuned-{host}",
            "fine-tuned",
            "none",
            architecture,
            dataset,
            f"{training}, from another dataset",
            partial(_tuned, host, architecture, channels, dataset, training, data),
        )


def _tuned(
    host: str,
    architecture: str,
    channels: int,
    dataset: str,
    training: Training,
    data: Path,
    folder: Path,
) -> State:
    before = load(folder, host)
    network = build(architecture, channels, CLASSES[dataset], training.seed)
    own = network.state_dict()
    kept = {name: tensor for name, tensor in before.items() if own[name].shape == tensor.shape}
    network.load_state_dict(kept, strict=False)
    return fit(network, read(data, dataset, colours=channels), training).state_dict()


def _pruned(host: Member, index: int) -> Iterator[Member]:
    ways: tuple[tuple[str, Callable[[nn.Module], None]], ...] = (
        ("half of the weights of half of the layers", partial(_half, every=2, keep_masks=False)),
        ("half of the weights of all layers", partial(_half, every=1, keep_masks=False)),
        ("half of all weights, masks left in", partial(_half, every=1, keep_masks=True)),
        ("90 % of all weights", _global),
        ("half of the channels of every layer", _channels),
        ("all of one layer", _whole_layer),
    )
    for turn in range(2):
        number = (2 * index + turn) % len(ways)
        words, way = ways[number]
        yield replace(
            host,
            name=f"pruned-{number}-{host.name}",
            kind="pruned",
            training=f"{host.training}; pruned: {words}",
            make=partial(_prune, host, way),
        )


def _prune(host: Member, way: Callable[[nn.Module], None], folder: Path) -> State:
    network = build(host.architecture, CHANNELS[host.dataset], CLASSES[host.dataset], 0)
    network.load_state_dict(load(folder, host.name))
    way(network)
    return network.state_dict()


def _layers(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def _half(network: nn.Module, every: int, keep_masks: bool) -> None:
    for layer in _layers(network)[::every]:
        prune.l1_unstructured(layer, "weight", 0.5)
        if not keep_masks:
            prune.remove(layer, "weight")


def _global(network: nn.Module) -> None:
    places = [(layer, "weight") for layer in _layers(network)]
    prune.global_unstructured(places, prune.L1Unstructured, amount=0.9)
    for layer, name in places:
        prune.remove(layer, name)


def _channels(network: nn.Module) -> None:
    for layer in _layers(network)[:-1]:
        prune.ln_structured(layer, "weight", 0.5, n=2, dim=0)
        prune.remove(layer, "weight")


def _whole_layer(network: nn.Module) -> None:
    layer = _layers(network)[-2]
    prune.l1_unstructured(layer, "weight", 1.0)
    prune.remove(layer, "weight")


def _cast(hosts: list[Member]) -> Iterator[Member]:
    kinds = (torch.float16, torch.bfloat16)
    for number, host in enumerate(hosts):
        dtype = kinds[number % 2]
        word = str(dtype).removeprefix("torch.")
        yield replace(
            host,
            name=f"{word}-{host.name}",
            kind="half precision",
            training=f"{host.training}; saved as {word}",
            make=partial(_as, host.name, dtype),
        )


def _as(host: str, dtype: torch.dtype, folder: Path) -> State:
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in load(folder, host).items()
    }
