"""Flower grids: Ray (many processes, many machines) and in-process (one, without Ray)."""

from fl_sim.engine.base import ENGINES, Engine, EngineSettings, run

__all__ = ["ENGINES", "Engine", "EngineSettings", "run"]
