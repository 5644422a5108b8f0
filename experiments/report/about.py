"""What a run says of itself, ``scenario.json``, as a file that may be damaged or a stranger's."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_sim.errors import FlSimError, printable
from fl_sim.plain import parse_json


def read_about(path: Path) -> dict[str, Any]:
    """Read a run's ``scenario.json``.

    Returns:
        Its content: ``scenario`` is a table, ``identity`` a text.

    Raises:
        FlSimError: if it is missing, damaged, or describes no run.
    """
    name = printable(str(path))
    if not os.path.isfile(path):
        raise FlSimError(f"The file {name} does not exist; the run has lost its description.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FlSimError(f"The file {name} cannot be read: {error.strerror}.") from None
    about = parse_json(content, f"The file {name}")
    if not isinstance(about, dict) or not isinstance(about.get("scenario"), dict):
        raise FlSimError(f"The file {name} does not describe a run of fl-sim.")
    return about


def whose_run(path: Path) -> tuple[str, int]:
    """Return the identity and the seed of the run that a ``scenario.json`` describes.

    Raises:
        FlSimError: see :func:`read_about`; or if it states neither.
    """
    about: Mapping[str, Any] = read_about(path)
    identity, seed = about.get("identity"), about["scenario"].get("seed")
    if not isinstance(identity, str) or not isinstance(seed, int) or isinstance(seed, bool):
        raise FlSimError(
            f"The file {printable(str(path))} is damaged: it does not say which scenario and seed "
            f"this folder holds; give another --out."
        )
    return identity, seed
