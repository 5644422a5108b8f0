"""A run while it runs: its data, its folder, its owner and its measurer."""

import sys
from pathlib import Path

from experiments.run.folder import RunFolder
from experiments.run.measurer import Measurer
from experiments.run.origin import note_origin
from experiments.run.owner import DEFAULT_THREADS, Owner
from experiments.run.preflight import check_ready
from experiments.run.scenario import Scenario
from fl_sim.case import Case, open_case
from fl_sim.models import build
from fl_sim.privacy import check_private
from fl_sim.progress import SILENT, Progress


class Run:
    """One run of one scenario.

    Args:
        scenario: what is run.
        out: folder of the run; made where missing.
        data_root: folder of data files.
        progress: where long work reports.

    Who may write in ``out`` meanwhile holds it by :func:`experiments.run.claim.claimed`.

    Raises:
        FlSimError: if a data file is missing, ``out`` holds the run of another scenario or of
            other data, or its ``scenario.json`` is damaged.
    """

    def __init__(
        self, scenario: Scenario, out: Path, data_root: Path | None, progress: Progress = SILENT
    ) -> None:
        self.scenario = scenario
        self.out = out
        self.data_root = data_root
        self.progress = progress
        self.case: Case = open_case(scenario.case, data_root, progress)
        check_ready(scenario, self.case, data_root, progress)
        if scenario.training.dp is not None:
            check_private(build(self.case.spec), self.case.spec)
        note_origin(scenario, self.case, scenario.threads or DEFAULT_THREADS, out)
        self.folder = RunFolder(scenario, self.case.name, out)
        self.owner = Owner(scenario, self.case, progress)
        self.measurer = Measurer(scenario, self.case, self.folder, self.owner, data_root, progress)

    def warn(self, message: str) -> None:
        """Say something that a user should know but that does not end the run."""
        print(f"Warning: {message}", file=sys.stderr, flush=True)
