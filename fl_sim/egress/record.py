"""The record of a decision: what was asked, measured and decided, bound to the files that left.

It is JSON, whose schema :func:`schema` gives. It holds no text that a model file brought along (a
name of a tensor can be a payload), no name of a file or a folder, no image, no label and no
patient. ``seal`` is the SHA-256 of everything else in it, so that one changed byte shows; whoever
changes both is found by the copy that stayed with the owner, or by a signature.
"""

import hashlib
import json
from typing import Any, Literal

from pydantic import Field, ValidationError

from fl_sim.egress.decision import Criterion, Plain, Verdict
from fl_sim.errors import FlSimError, printable
from fl_sim.plain import parse_json
from fl_sim.settings import explain

RECORD = "record.json"
SCHEMA = "https://json-schema.org/draft/2020-12/schema"
LONGEST = 1 << 22
"""Bytes of a record at most."""

Sha256 = str
_HASH = Field(pattern="^[0-9a-f]{64}$")


class ModelThatCame(Plain):
    """The file that was handed in, by what it is and never by its name.

    Args:
        sha256: of the file; of a folder of shards, of its files' hashes.
        bytes: of it.
        network: name of the network.
        outputs: of the network.
        input: channels, height and width of its images.
        told_by: ``"owner"``, where the owner stated the network, or ``"file"``.
        left_behind: entries of the file that the network does not have, which never leave.
    """

    sha256: Sha256 = _HASH
    bytes: int = Field(ge=0)
    network: str
    outputs: int = Field(ge=1)
    input: tuple[int, int, int]
    told_by: Literal["owner", "file"]
    left_behind: int = Field(ge=0)


class Data(Plain):
    """The owner's images, by hash and number.

    Args:
        sha256: of images and labels of the splits that were used.
        training, held_out, test: how many images.
        task: kind of task.
    """

    sha256: Sha256 = _HASH
    training: int = Field(ge=0)
    held_out: int = Field(ge=0)
    test: int = Field(ge=0)
    task: str


class AuditSummary(Plain):
    """What an audit found, without a word from the file.

    Args:
        outcome: ``"clean"``, ``"unchecked"``, ``"suspicious"`` or ``"carries"``.
        ran: checks that ran.
        could_not_run: checks that could not.
        findings: how many, by check and level, as ``"bits: carries"``.
    """

    outcome: Literal["clean", "unchecked", "suspicious", "carries"]
    ran: tuple[str, ...]
    could_not_run: tuple[str, ...]
    findings: dict[str, int]


class DefenseSummary(Plain):
    """What was done to the model.

    Args:
        name: of the defence or export form.
        settings: all of them.
        images: held-out images that it used.
        seconds: that it took.
        cap_bytes: the most that can have passed from the model that came into what leaves.
    """

    name: str
    settings: dict[str, Any]
    images: int = Field(ge=0)
    seconds: float = Field(ge=0)
    cap_bytes: float | None


class RehearsedAttack(Plain):
    """An attack that the owner played himself, through the same defence.

    Args:
        name: of the attack.
        settings: all of them.
        images: stolen.
        found_before: of them identified in the attacked model, as a share.
        found_after: likewise in what would have left.
        found_by_guessing: likewise by guessing.
        restoration: what the images found were restored with.
    """

    name: str
    settings: dict[str, Any]
    images: int
    found_before: float
    found_after: float
    found_by_guessing: float
    restoration: str


class Utility(Plain):
    """What the model is worth on test images.

    Args:
        metric: ``"auc"`` or ``"dice"``.
        before: as it came.
        after: as it leaves.
        own: of the same network, trained by the owner on the held-out images alone.
        chance: of a model that knows nothing, where there is such a figure.
        error: standard error of ``after`` over test images.
    """

    metric: str
    before: float
    after: float
    own: float | None
    chance: float | None
    error: float


class Control(Plain):
    """A control, and who controls it.

    Args:
        what: it is.
        by: whom.
    """

    what: str
    by: str


class PolicySummary(Plain):
    """The policy that was decided by.

    Args:
        name: of one that comes along, or words.
        sha256: of its file.
        content: all of it.
    """

    name: str
    sha256: Sha256 = _HASH
    content: dict[str, Any]


class Record(Plain):
    """A decision about one model, with everything that it rests on."""

    format: Literal["fl-sim release record 1"] = "fl-sim release record 1"
    made: str = Field(description="Time, UTC, ISO 8601.")
    decision: Verdict
    reasons: tuple[str, ...] = Field(description="Why it is refused, or a sentence for a release.")
    criteria: tuple[Criterion, ...]
    policy: PolicySummary
    input: ModelThatCame
    output: dict[str, str] = Field(
        description="SHA-256 of every model file that leaves, by its name in the folder."
    )
    data: Data
    audits: dict[Literal["came", "leaves"], AuditSummary]
    defense: DefenseSummary | None
    rehearsed: tuple[RehearsedAttack, ...]
    membership: dict[Literal["training", "held_out"], dict[str, Any]]
    utility: Utility | None
    controls: tuple[Control, ...]
    residual_risks: tuple[str, ...]
    not_checked: tuple[str, ...]
    versions: dict[str, str]
    seed_commitment: Sha256 = Field(
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 of the seed behind a salt. Both stay with the owner: whoever knew the "
        "seed could take off what a defence drew from it.",
    )
    seal: str = Field("", description="SHA-256 of the rest, as canonical JSON; see seal_of.")

    def sealed(self) -> "Record":
        """Return the record with its own seal."""
        return self.model_copy(update={"seal": seal_of(self.model_dump(mode="json"))})

    def text(self) -> str:
        """Return it as JSON, as it lies on disk."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"


def seal_of(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a record without its seal.

    Args:
        content: of the record, as JSON holds it; it is hashed with sorted keys, without spaces.
    """
    rest = {key: value for key, value in content.items() if key != "seal"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_record(content: bytes, where: str) -> Record:
    """Read a record, and check its seal.

    Args:
        content: of the file.
        where: how messages call it.

    Raises:
        FlSimError: if it is no record, or was changed.
    """
    if len(content) > LONGEST:
        raise FlSimError(f"{where} is longer than {LONGEST >> 20} MiB, so it is no record.")
    raw = parse_json(content, where)
    try:
        record = Record.model_validate_json(content)
    except ValidationError as error:
        raise FlSimError(printable(explain(error, Record, where))) from None
    if record.seal != seal_of(raw):
        raise FlSimError(
            f"{where} is not as it was written: its seal does not fit what it says; ask its owner "
            f"for the copy that stayed."
        )
    return record


def schema() -> dict[str, Any]:
    """Return the JSON Schema of records (draft 2020-12)."""
    return {
        "$schema": SCHEMA,
        "$id": "release-record.schema.json",
        **Record.model_json_schema(mode="serialization"),
        "title": "fl-sim release record",
    }
