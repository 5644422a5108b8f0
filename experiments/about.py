"""What a run says of itself, ``scenario.json``, as a file that may be damaged or a stranger's."""

import os
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
