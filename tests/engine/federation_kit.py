"""A tiny federation for tests: 8-pixel noise, a network with batch norm, a fake attack.

It registers itself as a plugin does, so hospitals in other processes find it by its name.
"""

import os
import sys

import numpy as np
import torch
from flwr.clientapp import ClientApp
from torch import nn

from clients.app import client_app
from clients.settings import HospitalSettings
from fl_sim.artifact import Key
from fl_sim.attacks.base import ATTACKS, Attack, Extraction, Plan
from fl_sim.case import CaseSettings
from fl_sim.component import Component
from fl_sim.data.base import DATASETS, Dataset, DatasetSettings, DatasetSource, Split, Task
from fl_sim.data.splits import HeldOutSettings
from fl_sim.engine import guard
from fl_sim.engine.inprocess import InProcessGrid
from fl_sim.engine.records import from_record, to_record
from fl_sim.models import build_model
from fl_sim.models.base import MODELS, ModelEntry
from fl_sim.training import TrainingSettings, train
from strategies.base import build_aggregator
from strategies.defended import DefendedStrategy
from strategies.observers import Unobserved


def _load(name, settings, root):
    random = np.random.default_rng(7)

    def split(images):
        labels = random.integers(0, 2, images)
        pixels = random.integers(0, 200, (images, 8, 8, 1)) + labels[:, None, None, None] * 55
        return Split(pixels.astype(np.uint8), labels.astype(np.int64))

    task = Task("binary-class", ("no", "yes"))
    return Dataset("tiny", task, split(70), split(12), split(12))


def _build(spec):
    return nn.Sequential(
        nn.Conv2d(spec.channels, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 16, spec.classes),
    )


class FakeAttack(Attack):
    """Trains honestly, then writes its first image's mean into the last bias and the window."""

    def plan(self, inside):
        indices = np.arange(min(self.settings.images, len(inside.data)))
        targets = inside.data.batch(indices)[0]
        return Plan(indices, targets, Key("fake-attack"))

    def train(self, run, plan):
        report = train(run)
        with torch.no_grad():
            run.model[4].bias[0] = plan.targets[0].mean()
            run.model[4].bias[1] = run.window.start + 2 * run.window.end
        report.losses["memory"] = [0.5]
        return report

    @classmethod
    def extract(cls, artifact, key):
        return Extraction(torch.zeros(1))


class BrokenAttack(FakeAttack):
    """Raises, kills its process, or uploads what a server must reject, by its plan's size."""

    def train(self, run, plan):
        if self.settings.images == 13:
            os._exit(13)
        raise RuntimeError("the scanner is on fire")


class NanAttack(FakeAttack):
    def train(self, run, plan):
        report = super().train(run, plan)
        with torch.no_grad():
            run.model[4].bias[0] = float("nan")
        return report


class LeavingAttack(FakeAttack):
    def train(self, run, plan):
        sys.exit(7)


class LateAttack(FakeAttack):
    """Takes LATE seconds, by the clock of this process."""

    def train(self, run, plan):
        before = guard._clock
        guard._clock = lambda: before() + LATE
        return super().train(run, plan)


LATE = 1e6
DATASETS.register("tiny", "noise")(DatasetSource(DatasetSettings, _load))
MODELS.register("tiny-net", "one convolution")(ModelEntry(_build))
ATTACKS.register("fake-attack", "writes two biases")(FakeAttack)
ATTACKS.register("broken-attack", "raises")(BrokenAttack)
ATTACKS.register("nan-attack", "uploads NaN")(NanAttack)
ATTACKS.register("leaving-attack", "ends the program")(LeavingAttack)
ATTACKS.register("late-attack", "takes its time")(LateAttack)


def settings(**changes) -> HospitalSettings:
    """Four hospitals, three rounds, the first one malicious if an attack is given."""
    case = CaseSettings(
        dataset=Component(name="tiny", settings={"size": 8}),
        model=Component(name="tiny-net"),
        data=HeldOutSettings(public_images=6),
        seed=3,
    )
    training = TrainingSettings(epochs=1, batch_size=8, learning_rate=0.01)
    values = {"case": case, "hospitals": 4, "rounds": 3, "training": training}
    if "attack" in changes:
        changes["attack"] = Component(name=changes["attack"], settings={"images": 3})
        changes.setdefault("malicious", (0,))
    return HospitalSettings(**{**values, "plugins": ("tests.engine.federation_kit",), **changes})


def network():
    return build_model("tiny-net", 1, 8, 2, seed=3)


def initial():
    """The first broadcast: a fresh network's state."""
    return {k: v.clone() for k, v in network().state_dict().items()}


def buffers():
    return tuple(name for name, _ in network().named_buffers())


class Recorder(Unobserved):
    """Remembers every stage."""

    def __init__(self):
        self.uploads, self.aggregates, self.releases = {}, {}, {}
        self.reports, self.failures, self.metrics = {}, {}, {}
        self.server = {}
        self.strategy = None

    def upload(self, server_round, hospital, state, metrics):
        self.uploads[server_round, hospital] = state
        self.metrics[server_round, hospital] = metrics

    def aggregate(self, server_round, state):
        self.aggregates[server_round] = state

    def release(self, server_round, state, report):
        self.releases[server_round] = state
        self.reports[server_round] = report
        self.server[server_round] = self.strategy.state_for_resume()

    def failed(self, server_round, hospital, reason):
        self.failures[server_round, hospital] = reason


class Steps:
    """Progress that remembers what it is told, in order."""

    def __init__(self):
        self.said = []

    def start(self, what, total):
        self.said.append((what, total))

    def step(self, note="", advance=1):
        self.said.append(advance)

    def finish(self):
        self.said.append("end")


def halve(state, server_round, reference, uploads):
    """A defence: half of every weight of the last layer."""
    return {k: v / 2 if k.startswith("4.") else v for k, v in state.items()}, server_round


def changed_upload(change, hospitals=(1,)):
    """A client app whose named hospitals change their reply before it leaves."""
    app = ClientApp()
    app.query()(lambda m, c: client_app(m, c))

    @app.train()
    def train(message, context):
        reply = client_app(message, context)
        if context.node_config["partition-id"] in hospitals:
            reply = change(reply) or reply
        return reply

    return app


def tampered(name, value):
    """A change of one uploaded tensor: what a function makes of it, or none at all."""

    def change(reply):
        state = from_record(reply.content["arrays"])
        if value is None:
            del state[name]
        else:
            state[name] = value(state.get(name))
        reply.content["arrays"] = to_record(state)

    return change


def strategy(recorder, hospital_settings, name="fedavg", keys=None, **changes):
    built = DefendedStrategy(
        build_aggregator(name, keys),
        hospitals=hospital_settings.hospitals,
        hospital_settings_json=hospital_settings.model_dump_json(),
        seed=5,
        observer=recorder,
        buffers=buffers(),
        **changes,
    )
    recorder.strategy = built
    return built


def federate(hospital_settings, name="fedavg", keys=None, app=client_app, **changes):
    """Run in process; return what was recorded and the last release."""
    recorder = Recorder()
    built = strategy(recorder, hospital_settings, name, keys, **changes)
    grid = InProcessGrid(app, hospital_settings.hospitals)
    result = built.start(grid, to_record(initial()), hospital_settings.rounds)
    return recorder, from_record(result.arrays)


def same(one, other):
    """Whether two states are equal bit for bit."""
    return list(one) == list(other) and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one
    )
