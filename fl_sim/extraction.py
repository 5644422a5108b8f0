"""Extraction: what the receiver does with the two files that reached him, and nothing else."""

from pathlib import Path
from typing import Any

from fl_sim.artifact import Artifact, Key, read_artifact, read_key
from fl_sim.attacks.base import ATTACKS, Attack, Extraction
from fl_sim.carriers.base import Payload
from fl_sim.errors import FlSimError, printable
from fl_sim.metrics.measure import Measured
from fl_sim.sealing.files import MANIFEST, read_view
from fl_sim.words import NO_EXTRACTION


def extract(artifact: Path, key: Path) -> Extraction:
    """Recover images from an exported model.

    Args:
        artifact: the model file, read back from disk; or the folder of a sealed model, of which
            everything but the head can be read (:mod:`fl_sim.sealing.files`).
        key: the attacker's key file.

    Returns:
        The images, float32 ``[n, channels, height, width]``, and what came out of a carrier.

    Raises:
        FlSimError: if a file is missing, damaged, or names an attack that is not installed.
    """
    sealed = (artifact / MANIFEST).is_file()
    model = read_view(artifact).artifact() if sealed else read_artifact(artifact)
    attack, known = known_key(key, model)
    return attack.extract(model, known)


def known_key(path: Path, artifact: Artifact) -> tuple[type[Attack[Any]], Key]:
    """Read a key, and check it against the model file that it is for.

    Returns:
        The attack that reads with it, and the key.

    Raises:
        FlSimError: if it is missing, damaged, names an attack that is not installed, or does not
            fit the model.
    """
    key = read_key(path)
    try:
        attack = ATTACKS.get(key.attack)
        attack.check_key(key, artifact)
    except FlSimError as error:
        raise FlSimError(f"The key file {printable(str(path))} cannot be used: {error}") from None
    return attack, key


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
    before = read_artifact(sent)
    attack, known = known_key(key, before)
    errors = attack.survival(before.state, read_artifact(arrived).state, payload, known)
    return [Measured(NO_EXTRACTION, f"carrier_error[{n}]", v) for n, v in errors.items()]
