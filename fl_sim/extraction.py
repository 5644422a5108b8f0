"""Extraction: what the receiver does with the two files that reached him, and nothing else."""

from pathlib import Path

import torch

from fl_sim.artifact import read_artifact, read_key
from fl_sim.attacks.base import ATTACKS


def extract(artifact: Path, key: Path) -> torch.Tensor:
    """Recover images from an exported model.

    Args:
        artifact: the model file, read back from disk.
        key: the attacker's key file.

    Returns:
        float32 ``[n, channels, height, width]``, as the attack's ``extract`` gives them.

    Raises:
        FlSimError: if a file is missing, damaged, or names an attack that is not installed.
    """
    known = read_key(key)
    return ATTACKS.get(known.attack).extract(read_artifact(artifact), known)
