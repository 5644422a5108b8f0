"""The Flower app of ``fl-sim deploy``: a scenario, on machines that have fl-sim installed."""

from fl_sim.engine.deployed import App

APP = App(
    "fl-sim-app",
    "experiments.cli.flower_app:server_app",
    "clients.app:client_app",
    {"scenario": "", "data-root": "", "out": ""},
)
"""Its settings are those of the ServerApp, which says what each means."""
