"""The folder of a run: its table, its pictures, what its defence reports, and its end."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file

from experiments.run.scenario import NONE, Scenario
from experiments.run.standing import (
    FINISHED,
    TABLE,
    Standing,
    damaged,
    proven,
    read_sealed,
    set_mark,
    write_sealed,
)
from fl_sim.defenses.base import DefenseReport
from fl_sim.files import Stand, write_atomically
from fl_sim.metrics.measure import LeakageMeasurement, Measured
from fl_sim.results import Results

REPORTS = "defense.jsonl"
PICTURES = Path("images") / "recovered.safetensors"


class RunFolder:
    """What a run writes, and brings back when it goes on.

    Args:
        scenario: what is run.
        dataset: name of its data in the table and the picture.
        path: of the folder.
    """

    def __init__(self, scenario: Scenario, dataset: str, path: Path) -> None:
        self.path = path
        self._scenario = scenario
        self._dataset = dataset
        self.results = Results(
            path / TABLE,
            {
                "scenario": scenario.identity,
                "seed": scenario.seed,
                "mode": scenario.mode,
                "dataset": dataset,
                "model": scenario.model.name,
                "attack": scenario.attack.name if scenario.attack else NONE,
                "defense": scenario.defense.name if scenario.defense else NONE,
                "aggregator": scenario.aggregator,
                "clients": scenario.federation.hospitals if scenario.federation else 1,
            },
        )
        self._pictures: dict[str, torch.Tensor] = {}
        self._reports = b""

    def add(self, server_round: int, stage: str, rows: Iterable[Measured]) -> None:
        """Append rows to the table.

        Args:
            server_round: from 1; 0 in centralized mode.
            stage: ``"upload"``, ``"aggregate"`` or ``"release"``; of one of several attackers
                ``"<stage>:<hospital>"``.
            rows: what was measured.
        """
        self.results.add((row._asdict() for row in rows), round=server_round, stage=stage)

    def record_values(self, server_round: int, stage: str, **values: float) -> None:
        """Append plain numbers, metric by name."""
        self.add(server_round, stage, [Measured("-", m, v) for m, v in values.items()])

    def record_report(self, server_round: int, report: DefenseReport | None) -> None:
        """Append a defence's cost to the table and its details to ``defense.jsonl``."""
        if report is None:
            return
        self.record_values(
            server_round,
            "release",
            seconds=report.seconds,
            held_out_images=float(report.images),
            **report.figures,
        )
        self._reports += (json.dumps({"round": server_round, **asdict(report)}) + "\n").encode()
        write_atomically(self.path / REPORTS, self._reports)

    def finish(self) -> None:
        """Write the Parquet table and the picture of recovered images, and mark the run as done."""
        from experiments.tables.pictures import draw_grid

        self.results.write_parquet(self.path / "results.parquet")
        if self._pictures:
            self.save_pictures()
            draw_grid(
                self.path / "images" / "recovered.png",
                self._pictures,
                columns=self._scenario.measure.columns,
                title=f"{self._dataset}, {self._scenario.model.name}: {self._scenario.identity}",
            )
        set_mark(self.path, FINISHED, self.results.stand())

    @property
    def finished(self) -> bool:
        """Whether this folder holds the finished run of this scenario.

        Raises:
            FlSimError: if it does, and the table is not as it was then.
        """
        return proven(self.path, FINISHED, whole=True) is not None

    def tidy(self) -> None:
        """Remove the model files of a finished run that the scenario does not keep."""
        if self._scenario.measure.keep == "release":
            for artifact in (self.path / "artifacts").glob("*.safetensors"):
                if artifact.stem != "release":
                    artifact.unlink()

    def standing(self) -> Standing:
        """Return what a checkpoint has to say about the files that go with it."""
        reports = Stand.of(self.path / REPORTS)
        return Standing(self.results.stand(), reports, bool(self._pictures))

    def return_to(self, standing: Standing | None) -> None:
        """Bring the folder's files back to where a checkpoint stands, or to the beginning.

        Args:
            standing: what :meth:`standing` said then.

        Raises:
            FlSimError: if one of them is not what it was; nothing has been changed then.
        """
        if standing is None:
            self.results.rewind(None)
            return
        for name, stand in ((TABLE, standing.table), (REPORTS, standing.reports)):
            if not stand.begins(self.path / name):
                raise damaged(self.path / name, self.path)
        if standing.pictures:
            self.restore_pictures()
        self.results.rewind(standing.table)
        standing.reports.cut(self.path / REPORTS)
        if standing.reports.size:
            self._reports = (self.path / REPORTS).read_bytes()

    def save_pictures(self) -> None:
        """Write the recovered images of the stages measured so far."""
        if self._pictures:
            write_sealed(self.path / PICTURES, self._pictures)

    def adopt_pictures(self, other: Path) -> None:
        """Take up another run's recovered images as they were before its release."""
        self._pictures = {
            name: image
            for name, image in load_pictures(other).items()
            if not name.startswith("release")
        }
        self.save_pictures()

    def restore_pictures(self) -> None:
        """Take up the recovered images of an interrupted run's stages, in their order.

        Raises:
            FlSimError: if their file is damaged or missing.
        """
        self._pictures, _ = read_sealed(self.path / PICTURES, self.path)

    def keep_pictures(
        self, stage: str, originals: torch.Tensor, leakage: LeakageMeasurement
    ) -> None:
        """Keep the recovered images of a stage for the picture, in place of an earlier round's.

        Args:
            stage: as in the table.
            originals: the true images, ``[n, channels, height, width]``.
            leakage: what was measured of the recovered ones; it has these.
        """
        self._pictures["original"] = originals
        # Which extraction was strongest in an earlier round does not matter any more.
        for name in [n for n in self._pictures if n.startswith(f"{stage}/")]:
            del self._pictures[name]
        for extraction, images in leakage.images.items():
            self._pictures[f"{stage}/{extraction}"] = images.contiguous()
            self._pictures[f"{stage}/{extraction}/ssim"] = leakage.ssim[extraction].contiguous()

    def artifact(self, server_round: int, stage: str, hospital: int | None) -> Path:
        """Return where a model of a round and stage is written; see ``[measure] keep``."""
        return self.path / "artifacts" / f"{self._name(server_round, stage, hospital)}.safetensors"

    def answers(self, server_round: int, stage: str, hospital: int | None) -> Path:
        """Return where that model's answers to the test images are written.

        They are as many as there would be model files, and small: ``keep = "release"`` keeps them.
        """
        return self.path / "answers" / f"{self._name(server_round, stage, hospital)}.npz"

    def membership(self, server_round: int, stage: str, hospital: int | None) -> Path:
        """Return where its owner's file on the membership of each image is written."""
        return self.path / "membership" / f"{self._name(server_round, stage, hospital)}.csv"

    def inversion(self, server_round: int, stage: str, hospital: int | None) -> Path:
        """Return where the class representatives of a stage are written."""
        name = self._name(server_round, stage, hospital)
        return self.path / "inversion" / f"{name}.safetensors"

    def _name(self, server_round: int, stage: str, hospital: int | None) -> str:
        name = stage if hospital is None else f"{stage}-hospital-{hospital}"
        if server_round and self._scenario.measure.keep == "all":
            return f"round-{server_round:03d}-{name}"
        return name


def load_pictures(out: Path) -> dict[str, torch.Tensor]:
    """Read a run's recovered images by ``"<stage>/<extraction>"``, and ``"original"``."""
    path = out / PICTURES
    return load_file(path) if path.exists() else {}
