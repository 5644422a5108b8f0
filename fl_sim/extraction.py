"""Extraction: what the receiver does with the two files that reached him, and nothing else."""

from pathlib import Path

from fl_sim.artifact import read_artifact, read_key
from fl_sim.attacks.base import ATTACKS, Extraction
from fl_sim.carriers.base import Payload
from fl_sim.metrics.measure import NO_EXTRACTION, Measured


def extract(artifact: Path, key: Path) -> Extraction:
    """Recover images from an exported model.

    Args:
        artifact: the model file, read back from disk.
        key: the attacker's key file.

    Returns:
        The images, float32 ``[n, channels, height, width]``, and what came out of a carrier.

    Raises:
        FlSimError: if a file is missing, damaged, or names an attack that is not installed.
    """
    known = read_key(key)
    return ATTACKS.get(known.attack).extract(read_artifact(artifact), known)


def survival_by_place(sent: Path, arrived: Path, payload: Payload, key: Path) -> list[Measured]:
    """Return where a payload was damaged: the carrier's error rate in every place it uses.

    Args:
        sent: the model file that the payload was written into.
        arrived: the model file that it is read from.
        payload: what the carrier was given.
        key: the attacker's key file.

    Returns:
        ``carrier_error[<tensor>]``: the share of wrong bits, or the relative error of values; and
        ``carrier_error[bit <number>]`` for carriers in chosen bits.
    """
    known = read_key(key)
    errors = ATTACKS.get(known.attack).survival(
        read_artifact(sent).state, read_artifact(arrived).state, payload, known
    )
    return [Measured(NO_EXTRACTION, f"carrier_error[{n}]", v) for n, v in errors.items()]
