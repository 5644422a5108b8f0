"""What freezing a base costs: AUC of a head on a public base, against training more than a head."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from experiments.studies.rhe.world import BASE_TRAINING, World
from fl_sim.data.base import Split, joined
from fl_sim.models import build
from fl_sim.randomness import Stream
from fl_sim.sealing.heads import HeadSettings, features_of, find_head, train_head, write_head
from fl_sim.training import LocalTraining, predict, train

EXPORT = HeadSettings(epochs=600, learning_rate=0.002)
"""As the defence trains a head, at a rate at which steps on these features do not swing."""


def _frozen(world: World, stream: Stream) -> nn.Module:
    """Return the public base with a head trained on the owner's images."""
    network, owner = world.base.model(), world.parts.held_out
    head = find_head(network, world.base.spec, 1)
    features, (_, labels) = features_of(network, head, owner), owner.tensors()
    trained, _ = train_head(features, labels, world.dataset.task, EXPORT, stream)
    write_head(network, head, trained)
    return network


def _all_layers(world: World, stream: Stream) -> nn.Module:
    """Return the public base, all layers of it trained on on the owner's images."""
    return _trained(world, world.base.model(), world.parts.held_out, stream)


def _fresh(world: World, stream: Stream) -> nn.Module:
    """Return a fresh network, trained on the owner's images alone."""
    return _trained(world, build(world.base.spec, stream.seed), world.parts.held_out, stream)


def _everything(world: World, stream: Stream) -> nn.Module:
    """Return a fresh network, trained on all training images and the owner's."""
    parts = world.parts
    whole = joined(parts.public, parts.attacker, parts.held_out)
    return _trained(world, build(world.base.spec, stream.seed), whole, stream)


def _trained(world: World, network: nn.Module, images: Split, stream: Stream) -> nn.Module:
    spec, task = world.base.spec, world.dataset.task
    train(LocalTraining(network, spec, images, task, BASE_TRAINING, stream))
    return network.eval()


WAYS: dict[str, Callable[[World, Stream], nn.Module]] = {
    "public base, head of the owner": _frozen,
    "public base, all layers trained on": _all_layers,
    "fresh network, the owner's images": _fresh,
    "fresh network, all images": _everything,
}
"""By what was trained; all but the last see the owner's held-out images and the public base."""


def rows_of_freezing(world: World, seed: int) -> list[dict[str, Any]]:
    """Return the AUC on test images of each way to train, and CPU seconds.

    Args:
        world: the case.
        seed: of initial weights and batches.
    """
    from sklearn.metrics import roc_auc_score

    rows = []
    for name, made in WAYS.items():
        began = time.process_time()
        network = made(world, Stream(seed, ("freezing", name)))
        spent = time.process_time() - began
        scores = predict(network, world.parts.test, world.dataset.task).double().numpy()
        scores /= scores.sum(axis=1, keepdims=True)
        auc = roc_auc_score(world.parts.test.labels, scores, multi_class="ovr")
        trained = int(np.sum([p.numel() for p in network.parameters()]))
        head = 0 if made is not _frozen else world.classes * (world.public.features.shape[1] + 1)
        rows.append(
            {
                "way": name,
                "seed": seed,
                "auc": float(auc),
                "trained parameters": head or trained,
                "cpu_seconds": round(spent, 1),
            }
        )
    return rows
