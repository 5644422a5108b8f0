"""fl-sim: can patient images leave a hospital hidden inside a trained model, and what stops them?

The parts of a study: data, models, attacks, defences, restorations, metrics, the artifact file and
the results table. How the parts run together is in :mod:`experiments`; the federated server and
client sides are in :mod:`strategies` and :mod:`clients`.
"""

import os

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
