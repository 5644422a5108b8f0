"""Measures every model that leaves: what attackers extract from its file, and what it is worth.

Everything measured goes the attacker's way: the model is written to a file, and what is extracted
comes from that file and the key's file.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from experiments.run.folder import RunFolder
from experiments.run.inversion import inversion_rows
from experiments.run.membership import MembershipOfRun
from experiments.run.owner import Owner, State
from experiments.run.scenario import Scenario
from experiments.run.worth_of_stolen import Worth
from fl_sim.artifact import artifact_bytes, read_artifact, read_key, write_artifact, write_key
from fl_sim.attacks.base import ATTACKS, Extraction, Plan
from fl_sim.carriers.base import Payload
from fl_sim.case import Case
from fl_sim.data.base import Split
from fl_sim.extraction import extract, survival_by_place
from fl_sim.files import write_atomically
from fl_sim.metrics.answers import answers, write_answers
from fl_sim.metrics.measure import LeakageMeasurement, Measured, measure_leakage
from fl_sim.metrics.payload import measure_payload
from fl_sim.metrics.uncertainty import utility_errors
from fl_sim.metrics.utility import utility
from fl_sim.progress import Progress
from fl_sim.randomness import Stream, derive_seed
from fl_sim.rehearsal import Outside, rehearse
from fl_sim.restorations.base import Restoration, choose
from fl_sim.restorations.learned import LEARNED, learn
from fl_sim.sealing.view import Sealing, as_received


@dataclass(frozen=True)
class Target:
    """What one attacker wants: the true images, for measuring, and his key, for extracting.

    Args:
        hospital: whose images they are.
        originals: ``[n, channels, height, width]`` in [0, 1].
        labels: theirs.
        key: file.
        key_has_labels: whether it tells the label of each image.
        payload: what a carrier is given, where that is known before training.
        content: the payload before error correction, likewise.
    """

    hospital: int
    originals: torch.Tensor
    labels: torch.Tensor
    key: Path
    key_has_labels: bool
    payload: Payload | None
    content: Payload | None


@dataclass(frozen=True)
class Sent:
    """What an attacker last sent: the payload, the images in it, and the model file around it."""

    payload: Payload
    images: torch.Tensor
    artifact: Path
    corrected: Payload | None = None


class Measurer:
    """Extracts with each attacker's key what left in each file, and appends what it is.

    Args:
        scenario: what is run.
        case: its data and network.
        folder: where files and rows go.
        owner: whose machine measures.
        data_root: folder of data files.
        progress: where long work reports.
    """

    def __init__(
        self,
        scenario: Scenario,
        case: Case,
        folder: RunFolder,
        owner: Owner,
        data_root: Path | None,
        progress: Progress,
    ) -> None:
        self._scenario = scenario
        self._case = case
        self._folder = folder
        self._owner = owner
        self._data_root = data_root
        self._progress = progress
        self.targets: list[Target] = []
        self._sent: dict[int, Sent] = {}

    def add_target(self, hospital: int, data: Split, plan: Plan) -> None:
        """Note what an attacker steals, and write his key to its file."""
        key = write_key(self._folder.path / "keys" / f"hospital-{hospital}.safetensors", plan.key)
        labels = torch.tensor(data.labels[plan.indices])
        attack = self._scenario.make_attack()
        told = attack is not None and attack.key_has_labels
        self.targets.append(
            Target(hospital, plan.targets, labels, key, told, plan.payload, plan.content)
        )

    def record(
        self,
        server_round: int,
        stage: str,
        models: Mapping[int | None, State],
        senders: Collection[int] = (),
        sealing: Sealing | None = None,
    ) -> None:
        """Write models to their files, extract from those files, and append what is measured.

        Rows are means over models and attackers; with several attackers each one's leakage also
        stands under ``"<stage>:<hospital>"``.

        Args:
            server_round: from 1; 0 in centralized mode.
            stage: ``"upload"``, ``"aggregate"`` or ``"release"``.
            models: state dictionaries by the hospital whose upload it is, or ``None`` for the one
                model that every attacker reads.
            senders: hospitals that have just written a payload into their model; what is read
                later is compared with it.
            sealing: what of the models leaves encrypted: a file has a stand-in for it, while
                utility is that of the whole model, whose owner decides.
        """
        utilities: list[list[Measured]] = []
        leaks: list[list[Measured]] = []
        for hospital, state in models.items():
            path = self._folder.artifact(server_round, stage, hospital)
            artifact = write_artifact(path, self._case.spec, as_received(state, sealing))
            size = Measured("-", "file_bytes", float(artifact.stat().st_size))
            with self._owner.threads():
                said = self._folder.answers(server_round, stage, hospital)
                utilities.append([*self._utility_rows(state, said), size])
                utilities[-1] += self._membership_rows(server_round, stage, hospital, state)
                utilities[-1] += self._inversion_rows(server_round, stage, hospital, state)
                for target in self.targets:
                    if hospital in (None, target.hospital):
                        sends = target.hospital in senders
                        leaks.append(
                            self._record_leakage(server_round, stage, artifact, target, sends)
                        )
        self._folder.add(server_round, stage, mean_rows(utilities) + mean_rows(leaks))

    def record_before_embedding(self, server_round: int, state: State, **values: float) -> None:
        """Append what the model was before a payload was written into it, and about the payload."""
        size = len(artifact_bytes(self._case.spec, state))
        with self._owner.threads():
            utilities = self._owner.utility(self._owner.model(state))
        before = {metric: value for metric, value in utilities.items() if "[" not in metric}
        before["file_bytes"] = float(size)
        named = {f"{metric}_before_embedding": value for metric, value in before.items()}
        self._folder.record_values(server_round, "upload", **named, **values)

    def _record_leakage(
        self, server_round: int, stage: str, artifact: Path, target: Target, sends: bool
    ) -> list[Measured]:
        public, public_labels = self._case.public.tensors()
        single_label = target.labels.ndim == 1
        extraction = extract(artifact, target.key)
        leakage = measure_leakage(
            extraction.images,
            target.originals,
            public,
            derive_seed(self._scenario.seed, "floors", target.hospital),
            labels=target.labels if single_label else None,
            public_labels=public_labels if single_label else None,
            restorations=self._restorations,
            variants=self._variants(artifact, target.key, public),
            key_labels=target.labels if target.key_has_labels else None,
        )
        rows = leakage.rows + self._survival_rows(artifact, target, extraction, sends)
        rows += self._usability_rows(stage, target, leakage)
        if stage == "upload":
            rows.append(Measured("-", "key_bytes", float(target.key.stat().st_size)))
        if len(self.targets) > 1:
            self._folder.add(server_round, f"{stage}:{target.hospital}", rows)
        if target is self.targets[0]:
            self._folder.keep_pictures(stage, target.originals, leakage)
        return rows

    def _membership_rows(
        self, server_round: int, stage: str, hospital: int | None, state: State
    ) -> list[Measured]:
        """Infer membership, where the scenario asks for it, and write its owner's file."""
        if self._membership is None:
            return []
        rows, found = self._membership.rows(self._owner.model(state), stage)
        found.save_records(self._folder.membership(server_round, stage, hospital))
        return rows

    def _inversion_rows(
        self, server_round: int, stage: str, hospital: int | None, state: State
    ) -> list[Measured]:
        """Look for images of classes, where the scenario asks for it, and keep them."""
        settings = self._scenario.inversion
        if settings is None:
            return []
        model = self._owner.model(state)
        rows, content = inversion_rows(self._scenario, settings, self._case, model, self._progress)
        write_atomically(self._folder.inversion(server_round, stage, hospital), content)
        return rows

    @cached_property
    def _membership(self) -> MembershipOfRun | None:
        scenario, settings = self._scenario, self._scenario.membership
        if settings is None:
            return None
        return MembershipOfRun(scenario, settings, self._case, self._owner, self._progress)

    @cached_property
    def _restorations(self) -> dict[str, Restoration]:
        """What the attackers try on recovered images; what has to be learned is, once a run."""
        attacker = self._scenario.attacker
        chosen = choose(None if attacker.restorations == "all" else attacker.restorations)
        if attacker.knows_defense and self._scenario.defense is not None:
            chosen[LEARNED] = self._learned()
        return chosen

    def _learned(self) -> Restoration:
        """Rehearse attack and defence on the public images, and learn to restore from that."""
        scenario = self._scenario
        attack, defense = scenario.make_attack(), scenario.make_defense()
        assert attack is not None and defense is not None
        stream = Stream(scenario.seed, ("rehearsal",))
        outside = Outside(
            public=self._case.public,
            task=self._case.task,
            spec=self._case.spec,
            training=scenario.training,
            steps=self._steps(),
            held_out=len(self._case.held_out),
            data_root=self._data_root,
            device=self._owner.device,
            progress=self._progress,
        )
        rehearsal = rehearse(outside, attack, defense, scenario.attacker, stream)
        public, _ = self._case.public.tensors()
        return learn(rehearsal.after, rehearsal.originals, public, stream, self._progress)

    def _steps(self) -> int:
        """Return how many optimizer steps a hospital of average size, or the data lake, takes."""
        federation, images = self._scenario.federation, len(self._case.train)
        if federation is None:
            return self._scenario.training.steps(images)
        return federation.rounds * self._scenario.training.steps(images // federation.hospitals)

    def _variants(self, artifact: Path, key: Path, public: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what can be extracted in other ways, where the attackers search."""
        if not self._scenario.attacker.search:
            return {}
        known = read_key(key)
        variants = ATTACKS.get(known.attack).variants(read_artifact(artifact), known, public)
        return {name: extract_so().images for name, extract_so in variants.items()}

    def _survival_rows(
        self, artifact: Path, target: Target, extraction: Extraction, sends: bool
    ) -> list[Measured]:
        """Measure what arrived of a payload, against what its attacker last sent."""
        reading = extraction.reading
        if reading is None:
            return []
        if sends:
            write_atomically(self._copy_of_sent(target), artifact.read_bytes())
            self._note_sent(target, extraction)
        sent = self._last_sent(target)
        if sent is None:
            return measure_payload(reading, None, extraction.images, None)
        rows = measure_payload(
            reading, sent.payload, extraction.images, sent.images, sent.corrected
        )
        return rows + survival_by_place(sent.artifact, artifact, sent.payload, target.key)

    def _usability_rows(
        self, stage: str, target: Target, leakage: LeakageMeasurement
    ) -> list[Measured]:
        """Train on what was recovered, and at the first stage on what that is compared with."""
        if self._scenario.measure.usability_epochs == 0:
            return []
        worth = Worth(self._scenario, self._case, self._owner, self._progress)
        found = worth.of_stolen(leakage, target.labels)
        if stage == "upload":
            found |= worth.comparisons(target.originals, target.labels)
        return [
            Measured("-", f"{metric}_trained_on_{kind}", value)
            for kind, values in found.items()
            for metric, value in values.items()
            if "[" not in metric
        ]

    def _last_sent(self, target: Target) -> Sent | None:
        """Return what an attacker last sent; an interrupted run reads it back from its file."""
        copy = self._copy_of_sent(target)
        if target.hospital not in self._sent and copy.exists():
            self._note_sent(target, extract(copy, target.key))
        return self._sent.get(target.hospital)

    def _note_sent(self, target: Target, extraction: Extraction) -> None:
        """Note what was read from the file that an attacker sent, or what he planned to send."""
        reading = extraction.reading
        if reading is None:
            return
        self._sent[target.hospital] = Sent(
            payload=reading.content if target.payload is None else target.payload,
            images=extraction.images,
            artifact=self._copy_of_sent(target),
            corrected=reading.corrected if target.content is None else target.content,
        )

    def _copy_of_sent(self, target: Target) -> Path:
        return self._folder.path / "artifacts" / f"sent-hospital-{target.hospital}.safetensors"

    def _utility_rows(self, state: State, kept: Path) -> list[Measured]:
        """Measure what a model is worth, with standard errors, and keep its answers in a file."""
        test, task = self._case.test, self._case.task
        labels = torch.tensor(np.asarray(test.labels))
        asked = (self._owner.answers(self._owner.model(state)), labels, task, test.patients)
        write_answers(kept, answers(*asked))
        values = utility(*asked) | utility_errors(*asked)
        return [Measured("-", metric, value) for metric, value in values.items()]


def mean_rows(parts: list[list[Measured]]) -> list[Measured]:
    """Average the rows of several attackers, number by number."""
    values: dict[tuple[str, str], list[float]] = {}
    for part in parts:
        for row in part:
            values.setdefault((row.extraction, row.metric), []).append(row.value)
    return [Measured(*key, sum(group) / len(group)) for key, group in values.items()]
