"""``fl_sim.release``: from a stranger's model file to a folder that may leave, or a refusal.

Audit, defence or export form, audit of what would leave, attacks rehearsed by the owner,
membership, utility beside its floors, decision, record. The folder is written whole, last, and only
where every criterion of the policy is met. Everything that names an image, a patient, a tensor or a
path is written to the owner's folder, which stays.
"""

import hashlib
import json
import platform
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fl_sim import __version__
from fl_sim.artifact import write_artifact
from fl_sim.auditing.architecture import Statement
from fl_sim.auditing.auditor import audit as audit_checkpoint
from fl_sim.auditing.auditor import audit_file
from fl_sim.auditing.page import page as audit_page
from fl_sim.auditing.report import AuditReport
from fl_sim.bars import chosen_progress
from fl_sim.checkpoints import Checkpoint
from fl_sim.data.base import Dataset
from fl_sim.defenses.base import DefenseReport, Release
from fl_sim.defenses.ledger import cap_bits
from fl_sim.egress.decision import SETTLED, UNTOLD, Figure, judge, verdict
from fl_sim.egress.folder import require_new, write_checksums, write_folder
from fl_sim.egress.membership import CRITERIA, Membership, measured_membership
from fl_sim.egress.opening import Handed, data_of, open_handed
from fl_sim.egress.pages import model_card, owners_page, report_page
from fl_sim.egress.policy import GRAVITIES, Policy, limits, read_policy
from fl_sim.egress.record import (
    RECORD,
    AuditSummary,
    DefenseSummary,
    PolicySummary,
    Record,
    Utility,
)
from fl_sim.egress.rehearsing import Played, Rehearsals, rehearse
from fl_sim.egress.residue import CONTROLS, not_checked, residual_risks
from fl_sim.egress.signing import require_key, require_signing, sign
from fl_sim.egress.worth import own_network, utility_figures, worth
from fl_sim.errors import FlSimError
from fl_sim.files import briefly, write_atomically
from fl_sim.models import state_of
from fl_sim.models.pixels import Normalization
from fl_sim.progress import Progress
from fl_sim.randomness import Stream
from fl_sim.sealing.files import write_sealed
from fl_sim.sealing.view import as_received
from fl_sim.verbs.auditing import statement_of
from fl_sim.verbs.cleaning import cleaned_release, defense_of

MODEL, SEALED = "model.safetensors", "sealed"
PACKAGES = ("torch", "numpy", "safetensors", "scikit-learn", "torchvision")
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Released:
    """A decision, and where its files are.

    Args:
        record: of the decision.
        out: the folder that may leave; ``None`` where the model is refused.
        owner: the folder that stays with the owner.
        sha256: of the record's file.
    """

    record: Record
    out: Path | None
    owner: Path
    sha256: str

    @property
    def approved(self) -> bool:
        """Whether the model may leave."""
        return self.record.decision == "release"

    def reasons(self) -> list[str]:
        """Return why it is refused, a sentence each; where it is not, one sentence."""
        return list(self.record.reasons)


def release(
    file: Path | str,
    dataset: Dataset | str,
    /,
    *,
    out: Path | str,
    policy: Policy | Path | str = "cautious",
    owner: Path | str | None = None,
    model: Any = None,
    normalize: Normalization = None,
    images: int | None = None,
    seed: int | None = None,
    sign: Path | str | None = None,
    stop_early: bool = False,
    data_root: Path | str | None = None,
    progress: Progress | bool | None = None,
    statement: Statement | None = None,
) -> Released:
    """Decide by a policy whether a model may leave, and write the folder that leaves if it may.

    Args:
        file: path of the model file, of any format; or of a ``target.yaml`` of SACRO-ML. Nothing
            in it is run.
        dataset: the owner's images: training, held-out (validation) and test splits; a dataset, a
            registered name, or the path of an ``.npz`` file.
        out: folder that leaves; must not be there, and is not made where the model is refused.
        policy: one that comes along (``"cautious"``, ``"moderate"``), the path of a TOML file, or a
            :class:`fl_sim.egress.policy.Policy`.
        owner: folder that stays; must not be there. By default ``out`` with ``-owner`` behind.
        model: the network that the file is of, as for :func:`fl_sim.audit`.
        normalize: how the network takes pixels, where it is not the file's word or [-1, 1].
        images: how many held-out images; all of the validation split where not given.
        seed: everything random follows from it. By default it is drawn by the operating system;
            it stays with the owner in either case.
        sign: the owner's private key (PEM) to sign the folder with; needs ``fl-sim[sign]``.
        stop_early: do not measure further once a criterion is missed: the model is refused
            whatever the others say, and the record says that they were not looked at.
        data_root: folder of data files.
        progress: ``False`` for silence; by default bars on terminals and in notebooks.
        statement: what is said of the network, instead of ``model`` and ``normalize``.

    Returns:
        The decision; ``.approved``, ``.reasons()``, ``.record``.

    Raises:
        FlSimError: for a file, a policy or images that cannot be used; then nothing is written.
    """
    out = Path(out)
    kept = out.with_name(f"{out.name}-owner") if owner is None else Path(owner)
    _require_places(out, kept)
    if sign is not None:
        require_key(Path(sign), "private")
        require_signing()
    chosen, name, content = read_policy(policy)
    stated = statement or _stated(model, normalize)
    drawn = secrets.randbits(62) if seed is None else seed
    root = None if data_root is None else Path(data_root)
    handed = open_handed(Path(file), dataset, stated, images, drawn, root)
    about = PolicySummary(
        name=name,
        sha256=hashlib.sha256(content).hexdigest(),
        content=without_paths(chosen.model_dump(mode="json")),
    )
    with tempfile.TemporaryDirectory(prefix="fl-sim-release-") as passing:
        way = _Way(
            handed, chosen, drawn, root, chosen_progress(progress), Path(passing), stop_early
        )
        way.go()
        return _written(way, about, out, kept, None if sign is None else Path(sign))


def _stated(model: Any, normalize: Normalization) -> Statement:
    return replace(statement_of(model, None, None, None), normalize=normalize)


def _require_places(out: Path, owner: Path) -> None:
    require_new(out, "folder that would leave")
    require_new(owner, "owner's folder")
    one, other = out.absolute(), owner.absolute()
    if one == other or one in other.parents or other in one.parents:
        raise FlSimError(
            f"The folder that would leave, {briefly(out)}, and the owner's, {briefly(owner)}, lie "
            f"in each other; name two apart."
        )


@dataclass
class _Way:
    """One model's way from the file to a decision; the methods are its steps."""

    handed: Handed
    policy: Policy
    seed: int
    data_root: Path | None
    progress: Progress
    passing: Path
    stop_early: bool = False
    figures: dict[str, Figure] = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)
    audits: dict[str, AuditReport] = field(default_factory=dict)
    report: DefenseReport | None = None
    defense: DefenseSummary | None = None
    own: State = field(default_factory=dict)
    left: State = field(default_factory=dict)
    played: list[Played] = field(default_factory=list)
    membership: Membership = field(default_factory=Membership)
    utility: Utility | None = None

    def go(self) -> None:
        """Take every step; once the defence has failed there is nothing further to look at."""
        self._audit("came", audit_file(self.handed.path, self.handed.stated, None, self.progress))
        if self._settled():
            return
        with self._failing("defense", *self._later()):
            self._clean()
        if self.defense is None:
            return
        for step in (self._audit_left, self._rehearse, self._measure_membership):
            step()
            if self._settled():
                return
        with self._failing("utility", "utility", "utility_above_own", "utility_lost"):
            self._measure_utility()

    def _settled(self) -> bool:
        """Whether a missed criterion makes the rest needless; that is said as their reason then."""
        figures = self.figures
        missed = any(one.status == "missed" for one in judge(self.policy, figures))
        if not (self.stop_early and missed):
            return False
        left = [limit.name for limit in limits(self.policy) if limit.name not in figures]
        self.figures = figures | {name: Figure(why=SETTLED) for name in left}
        return True

    def _rehearse(self) -> None:
        on = Rehearsals(
            self.handed.artifact,
            self.handed.data,
            self.handed.held_out,
            self.policy,
            self.seed,
            self.data_root,
            self.progress,
        )
        self.played, figures = rehearse(on, self.troubles)
        self.figures |= figures

    @contextmanager
    def _failing(self, what: str, *criteria: str) -> Iterator[None]:
        """Note an error of the enclosed step for the owner; its criteria have no figure then."""
        try:
            yield
        except FlSimError as error:
            self.troubles[what] = str(error)
            for name in criteria:
                self.figures[name] = Figure(why=UNTOLD)

    def _later(self) -> list[str]:
        """Return the criteria that need what the defence leaves."""
        return ["audit_leaves", "unchecked_leaves", "cap", *CRITERIA.values(), "utility"]

    def _audit(self, place: str, report: AuditReport) -> None:
        self.audits[place] = report
        levels = [finding.level for finding in report.findings if finding.level != "note"]
        worst = max((GRAVITIES.index(level) for level in levels), default=0)
        self.figures[f"audit_{place}"] = Figure(float(worst))
        self.figures[f"unchecked_{place}"] = Figure(float(len(report.unchecked)))

    def _clean(self) -> None:
        artifact, choice = self.handed.artifact, self.policy.defense
        chosen, name = defense_of({"name": choice.name, **choice.settings})
        model = artifact.model()
        release = Release(
            model,
            artifact.spec,
            self.handed.held_out,
            self.handed.data.task,
            Stream(self.seed, ("release", 0)),
            progress=self.progress,
            training=self.handed.data.train,
        )
        self.own, self.report = cleaned_release(chosen, name, release, artifact.state)
        if release.entries:  # none came in, and what a defence adds nobody asked for
            raise FlSimError(f"The defence '{name}' adds entries to the file.")
        self.left = as_received(self.own, self.report.sealed)
        cap = cap_bits(self.report, state_of(model), release.entries) / 8
        self.figures["cap"] = Figure(cap)
        self.defense = DefenseSummary(
            name=name,
            settings=without_paths(chosen.settings.plain()),
            images=self.report.images,
            seconds=round(self.report.seconds, 3),
            cap_bytes=cap,
        )

    def _audit_left(self) -> None:
        """Audit the very file that would leave; of a sealed model what its receiver can read."""
        assert self.report is not None
        spec = self.handed.artifact.spec
        if self.report.sealed is None:
            path = write_artifact(self.passing / MODEL, spec, self.left)
            report = audit_file(path, None, None, self.progress)
        else:
            report = audit_checkpoint(Checkpoint(self.left), spec, None, self.progress)
        self._audit("leaves", report)

    def _measure_membership(self) -> None:
        if self.policy.membership is None:
            return
        handed = self.handed
        self.membership = measured_membership(
            self.policy.membership,
            handed.artifact.spec,
            self.own,
            handed.data,
            handed.held_out,
            self.passing,
            self.troubles,
            self.progress,
        )
        self.figures |= self.membership.figures

    def _measure_utility(self) -> None:
        asked, handed = self.policy.utility, self.handed
        if asked is None:
            return
        artifact, task = handed.artifact, handed.data.task
        network = artifact.model()
        before = worth(network, handed.data.test, task)
        network.load_state_dict(self.own, strict=False)
        after = worth(network, handed.data.test, task)
        own = own_network(
            artifact.spec,
            network,
            handed.held_out,
            handed.data,
            asked.own_epochs,
            Stream(self.seed, ("own network",)),
            self.progress,
        )
        self.utility, figures = utility_figures(
            asked, before, after, worth(own, handed.data.test, task), task
        )
        self.figures |= figures

    def record(self, policy: PolicySummary, salt: str) -> Record:
        """Return the record of the decision, before any file is bound to it."""
        criteria = judge(self.policy, self.figures)
        decided = verdict(criteria) if self.defense is not None else "refuse"
        reasons = [f"{one.name}: {one.reason}" for one in criteria if one.refuses]
        if "defense" in self.troubles:
            reasons.insert(0, "the defence could not be applied; the owner's folder says why")
        if decided == "release":
            reasons = ["every criterion of the policy is met, or excepted by it"]
        return Record(
            made=datetime.now(UTC).isoformat(timespec="seconds"),
            decision=decided,
            reasons=tuple(reasons),
            criteria=tuple(criteria),
            policy=policy,
            input=self.handed.came,
            output={},
            data=data_of(self.handed),
            audits={place: summary(one) for place, one in self.audits.items()},
            defense=self.defense,
            rehearsed=tuple(one.summary for one in self.played),
            membership=dict(self.membership.told),
            utility=self.utility,
            controls=CONTROLS,
            residual_risks=tuple(
                residual_risks(
                    self.policy,
                    self.handed.came,
                    self.defense,
                    sealed=bool(self.report and self.report.sealed),
                )
            ),
            not_checked=tuple(not_checked(self.policy, criteria, self.audits)),
            versions=versions(),
            seed_commitment=hashlib.sha256(f"{salt} {self.seed}".encode()).hexdigest(),
        )


def versions() -> dict[str, str]:
    """Return the versions of fl-sim and of what its figures depend on."""
    own = {package: version(package) for package in PACKAGES}
    return {"fl-sim": __version__, "python": platform.python_version(), **own}


def summary(report: AuditReport) -> AuditSummary:
    """Return an audit in this program's words alone; names of tensors can be payloads."""
    counts: dict[str, int] = {}
    for finding in report.findings:
        name = f"{finding.check}: {finding.level}"
        counts[name] = counts.get(name, 0) + 1
    return AuditSummary(
        outcome=report.outcome,
        ran=tuple(report.ran),
        could_not_run=tuple(report.unchecked),
        findings=counts,
    )


def without_paths(value: Any) -> Any:
    """Return plain values with words in place of texts that are paths of the owner's machine."""
    if isinstance(value, dict):
        return {str(key): without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(inner) for inner in value]
    if isinstance(value, str) and ("/" in value or "\\" in value):
        return "a file of the owner's"
    return value


def _written(
    way: _Way, policy: PolicySummary, out: Path, owner: Path, key: Path | None
) -> Released:
    """Write the owner's folder, and, where the model may leave, the other one after it."""
    salt = secrets.token_hex(16)
    record = way.record(policy, salt)
    if record.decision == "refuse":
        record = record.sealed()
        write_folder(owner, lambda folder: _write_owners(folder, way, record, salt))
        return Released(record, None, owner, _record_hash(owner))
    bound: list[Record] = []

    def leaving(folder: Path) -> None:
        bound.append(_write_leaving(folder, way, record, key))
        write_folder(owner, lambda other: _write_owners(other, way, bound[0], salt))
        if way.report is not None and way.report.sealed is not None:
            shutil.move(way.passing / "key", owner / "key")

    try:
        write_folder(out, leaving)
    except BaseException:
        _remove(owner, bool(bound))
        raise
    return Released(bound[0], out, owner, _record_hash(owner))


def _remove(owner: Path, ours: bool) -> None:
    """Take back the owner's folder of a release that could not be written to the end."""
    if ours:
        shutil.rmtree(owner, ignore_errors=True)


def _record_hash(owner: Path) -> str:
    return hashlib.sha256((owner / RECORD).read_bytes()).hexdigest()


def _write_leaving(folder: Path, way: _Way, record: Record, key: Path | None) -> Record:
    """Write what leaves; return the record, bound to the model's files."""
    assert way.report is not None
    spec = way.handed.artifact.spec
    if way.report.sealed is None:
        files = [write_artifact(folder / MODEL, spec, way.left)]
    else:
        task = way.handed.data.task
        write_sealed(folder / SEALED, way.passing / "key", spec, way.own, way.report.sealed, task)
        files = sorted((folder / SEALED).iterdir())
    hashes = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    record = record.model_copy(update={"output": hashes}).sealed()
    write_atomically(folder / RECORD, record.text().encode())
    write_atomically(folder / "model_card.md", model_card(record).encode())
    write_atomically(folder / "report.html", report_page(record).encode())
    write_checksums(folder)
    if key is not None:
        sign(folder, key)
    return record


def _write_owners(folder: Path, way: _Way, record: Record, salt: str) -> None:
    """Write what stays: the audits in full, pictures, risks by image, the seed."""
    folder.chmod(0o700)
    write_atomically(folder / RECORD, record.text().encode())
    write_atomically(folder / "report.html", report_page(record).encode())
    for place, report in way.audits.items():
        write_atomically(folder / f"audit_{place}.html", audit_page(report).encode())
        text = json.dumps(report.as_dict(), indent=1) + "\n"
        write_atomically(folder / f"audit_{place}.json", text.encode())
    private = {"file": str(way.handed.path), "seed": way.seed, "salt": salt, "why": way.troubles}
    write_atomically(
        folder / "private.json", (json.dumps(private, indent=1) + "\n").encode(), private=True
    )
    page = owners_page(record, way.played, way.troubles)
    write_atomically(folder / "owner.html", page.encode(), private=True)
    for group, found in way.membership.groups.items():
        found.save_records(folder / f"membership_{group}.csv")
