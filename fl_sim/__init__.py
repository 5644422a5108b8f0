"""fl-sim: can patient images leave a hospital hidden inside a trained model, and what stops them?

The verbs work on ordinary networks, files and images:

>>> import torch, fl_sim
>>> from torch import nn
>>> data = fl_sim.load_dataset("phantoms")
>>> network = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 4))
>>> attacked = fl_sim.attack("transpose", network, data.train, images=8, training={"epochs": 0.1})
>>> cleaned = fl_sim.clean(attacked.model, data.validation, defense="lwlrd", epochs=1)
>>> stolen = fl_sim.extract(attacked.model, attacked.key)
>>> stolen.shape
torch.Size([8, 3, 28, 28])
>>> leak = fl_sim.measure(stolen, attacked.originals, public=data.test)
>>> float(leak.loc["floor: guessing", "found by distance"])
0.125
>>> fl_sim.audit(cleaned.model).outcome
'clean'

:func:`run` runs a scenario, :func:`sweep` a grid of them, :func:`tune` chooses defences' settings
away from the test set, :func:`load_runs` and :func:`compare` put runs side by side, and
:class:`Defended` cleans what any Flower strategy broadcasts, and :func:`egress_check` puts a door
on any ClientApp. :func:`membership` tells whose images a model was trained on, and :func:`invert`
looks for images of its classes. :func:`seal` lets a model leave with a head that only its owner can
read, :func:`predict_sealed` asks it, and :func:`decide` answers; :func:`reconstruct` attacks a head
that left in clear. :func:`release` decides by a policy whether a model may leave,
and :func:`verify` checks what left.

The parts of a study (data, models, attacks, defences, restorations, metrics, the artifact file, the
table) are the modules of this package; how they run together is in :mod:`experiments`; the
federated server and client sides are in :mod:`strategies` and :mod:`clients`.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clients.egress import behind_door, egress_check
    from experiments.run.start import run
    from experiments.sweep.compare import compare, load_runs
    from experiments.sweep.start import sweep
    from experiments.tuning.start import tune
    from fl_sim.data import load_dataset
    from fl_sim.egress.folder import verify
    from fl_sim.egress.releasing import release
    from fl_sim.errors import FlSimError
    from fl_sim.verbs.attacking import attack
    from fl_sim.verbs.auditing import audit
    from fl_sim.verbs.cleaning import clean
    from fl_sim.verbs.evaluating import evaluate
    from fl_sim.verbs.extracting import extract
    from fl_sim.verbs.gating import gate
    from fl_sim.verbs.inferring import membership
    from fl_sim.verbs.inverting import invert
    from fl_sim.verbs.measuring import measure
    from fl_sim.verbs.reconstructing import reconstruct
    from fl_sim.verbs.restoring import restore
    from fl_sim.verbs.sealing import decide, predict_sealed, seal
    from strategies.any_app import Defended

# No telemetry and no update checks, unless the user has asked for them; and idle threads sleep
# instead of spinning, which on a busy machine makes two threads up to ten times slower than one.
# These must be set before flwr, ray or torch are imported, hence here.
for _switch, _off in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}.items():
    os.environ.setdefault(_switch, _off)

__version__ = "0.1.0"

_HOMES = {
    "Defended": "strategies.any_app",
    "FlSimError": "fl_sim.errors",
    "compare": "experiments.sweep.compare",
    "load_runs": "experiments.sweep.compare",
    "attack": "fl_sim.verbs.attacking",
    "audit": "fl_sim.verbs.auditing",
    "behind_door": "clients.egress",
    "clean": "fl_sim.verbs.cleaning",
    "decide": "fl_sim.verbs.sealing",
    "egress_check": "clients.egress",
    "evaluate": "fl_sim.verbs.evaluating",
    "extract": "fl_sim.verbs.extracting",
    "gate": "fl_sim.verbs.gating",
    "invert": "fl_sim.verbs.inverting",
    "load_dataset": "fl_sim.data",
    "measure": "fl_sim.verbs.measuring",
    "membership": "fl_sim.verbs.inferring",
    "predict_sealed": "fl_sim.verbs.sealing",
    "reconstruct": "fl_sim.verbs.reconstructing",
    "release": "fl_sim.egress.releasing",
    "restore": "fl_sim.verbs.restoring",
    "run": "experiments.run.start",
    "seal": "fl_sim.verbs.sealing",
    "sweep": "experiments.sweep.start",
    "tune": "experiments.tuning.start",
    "verify": "fl_sim.egress.folder",
}
"""Where each name of this module comes from; imported when it is asked for."""

__all__ = [
    "Defended",
    "FlSimError",
    "attack",
    "audit",
    "behind_door",
    "clean",
    "compare",
    "decide",
    "egress_check",
    "evaluate",
    "extract",
    "gate",
    "invert",
    "load_dataset",
    "load_runs",
    "measure",
    "membership",
    "predict_sealed",
    "reconstruct",
    "release",
    "restore",
    "run",
    "seal",
    "sweep",
    "tune",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fl_sim' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
