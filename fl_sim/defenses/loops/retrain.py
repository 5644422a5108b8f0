"""A fresh network in place of the one that was to leave, what retraining defences share."""

import torch

from fl_sim.defenses.base import DefenseReport, Release
from fl_sim.defenses.loops.fine_tune import (
    PLAIN,
    FineTuningHooks,
    FineTuningSettings,
    fine_tune,
    relative_change,
    uniform_rates,
)
from fl_sim.models import fresh
from fl_sim.randomness import derive_seed


def replace_weights(release: Release) -> None:
    """Replace a network's parameters and buffers by freshly initialised ones, in place."""
    stream = release.stream
    new = fresh(release.spec, derive_seed(stream.seed, "fresh weights", *stream.path))
    with torch.no_grad():
        release.model.load_state_dict(new.state_dict())


def retrain(
    release: Release,
    learning_rate: float,
    settings: FineTuningSettings,
    hooks: FineTuningHooks = PLAIN,
) -> DefenseReport:
    """Train a fresh network in place of the release's on the held-out set.

    What leaves is then a new file, without the old one's further entries.

    Args:
        release: the network, whose weights are replaced, and the held-out images.
        learning_rate: of every layer.
        settings: optimizer, epochs and so on.
        hooks: another loss; by default the task's own.

    Returns:
        The report; its relative change is that from the old weights to the new. Without hooks,
        nothing of the old network has any part in the new one, and its cap is 0 bits.
    """
    before = {name: p.detach().clone() for name, p in release.model.named_parameters()}
    replace_weights(release)
    release.entries.clear()
    rates = uniform_rates(release, learning_rate)
    report = fine_tune(release, rates, settings, hooks)
    blocks = [rate.layer for rate in rates]
    report.relative_change = relative_change(release.model, before, blocks)
    report.cap_bits = 0.0 if hooks is PLAIN else None
    return report
