"""Model files from outside, read without running anything in them, and accounted for by byte."""

from fl_sim.checkpoints.checkpoint import Checkpoint
from fl_sim.checkpoints.finding import LEVELS, UNSEEN, Finding, Level
from fl_sim.checkpoints.reader import read_checkpoint

__all__ = ["LEVELS", "UNSEEN", "Checkpoint", "Finding", "Level", "read_checkpoint"]
