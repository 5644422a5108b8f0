"""Audits and decisions in the forms that pipelines read: SARIF 2.1.0 and JUnit's XML.

SARIF (OASIS, Static Analysis Results Interchange Format 2.1.0) is what code-scanning pages of
forges show; JUnit's XML what test pages show. A finding that is no note is a result and a failure;
a check that could not run is a warning and skipped.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

from fl_sim import __version__
from fl_sim.egress.decision import Criterion
from fl_sim.errors import legible
from fl_sim.files import write_atomically

if TYPE_CHECKING:
    from fl_sim.auditing.report import AuditReport
    from fl_sim.egress.record import Record

SARIF = "https://json.schemastore.org/sarif-2.1.0.json"
_LONGEST = 1000

Level = Literal["none", "note", "warning", "error"]
_LEVELS: dict[str, Level] = {"note": "note", "suspicious": "warning", "carries": "error"}
_STATUS: dict[str, Level] = {
    "met": "none",
    "missed": "error",
    "not run": "error",
    "excepted": "warning",
}


@dataclass(frozen=True)
class Check:
    """A check and what it said.

    Args:
        rule: name of the check or criterion.
        about: what it looks at, for the list of rules.
        level: of what it said; ``"none"`` where it passed.
        said: a sentence.
        skipped: whether it could not run.
    """

    rule: str
    about: str
    level: Level
    said: str
    skipped: bool = False


def checks_of_audit(report: "AuditReport") -> list[Check]:
    """Return every check of an audit: its findings, that it passed, or that it could not run."""
    found = [
        Check(
            finding.check,
            f"the audit's check '{finding.check}'",
            _LEVELS[finding.level],
            f"{finding.tensor}: {finding.what}" if finding.tensor else finding.what,
        )
        for finding in report.findings
    ]
    told = {check.rule for check in found}
    passed = [
        Check(name, f"the audit's check '{name}'", "none", "nothing found")
        for name in report.ran
        if name not in told
    ]
    skipped = [
        Check(name, f"the audit's check '{name}'", "warning", f"could not run: {why}", True)
        for name, why in report.unchecked.items()
    ]
    return [*found, *passed, *skipped]


def checks_of_record(record: "Record") -> list[Check]:
    """Return every criterion of a decision as a check."""
    return [_criterion(one) for one in record.criteria]


def _criterion(one: Criterion) -> Check:
    skipped = one.status in ("not run", "excepted")
    return Check(one.name, one.question, _STATUS[one.status], one.reason, skipped)


def write_sarif(path: Path, file: Path, checks: Sequence[Check]) -> Path:
    """Write checks as SARIF. Returns ``path``.

    Args:
        path: to write.
        file: that was looked at; its path as given is the results' location.
        checks: see :class:`Check`.
    """
    text = json.dumps(sarif(file, checks), indent=1) + "\n"
    return write_atomically(path, text.encode())


def sarif(file: Path, checks: Sequence[Check]) -> dict[str, Any]:
    """Return checks as a SARIF log: a run with its rules, and a result for each that did not pass.

    Args:
        file: that was looked at.
        checks: see :class:`Check`.
    """
    rules = {check.rule: check for check in checks}
    order = {name: number for number, name in enumerate(rules)}
    results = [
        {
            "ruleId": _id(check.rule),
            "ruleIndex": order[check.rule],
            "level": check.level,
            "message": {"text": legible(check.said, _LONGEST)},
            "locations": [{"physicalLocation": {"artifactLocation": {"uri": _uri(file)}}}],
        }
        for check in checks
        if check.level != "none"
    ]
    driver = {
        "name": "fl-sim",
        "semanticVersion": __version__,
        "rules": [
            {"id": _id(name), "name": name, "shortDescription": {"text": check.about}}
            for name, check in rules.items()
        ],
    }
    run = {
        "tool": {"driver": driver},
        "results": results,
        "columnKind": "unicodeCodePoints",
        # Forges keep one upload a category, so each file needs its own.
        "automationDetails": {"id": f"fl-sim/{_uri(file)}/"},
    }
    return {"$schema": SARIF, "version": "2.1.0", "runs": [run]}


def write_junit(path: Path, file: Path, checks: Sequence[Check]) -> Path:
    """Write checks as JUnit's XML. Returns ``path``.

    Args:
        path: to write.
        file: that was looked at.
        checks: see :class:`Check`; a note passes.
    """
    return write_atomically(path, junit(file, checks))


def junit(file: Path, checks: Sequence[Check]) -> bytes:
    """Return checks as a test suite in JUnit's XML: a test case a check."""
    suite = ElementTree.Element("testsuite", name=_plain(file.name), tests=str(len(checks)))
    failed = skipped = 0
    for check in checks:
        case = ElementTree.SubElement(
            suite, "testcase", classname="fl-sim", name=_plain(check.rule)
        )
        said = _plain(check.said)
        if check.level == "error" or (check.level == "warning" and not check.skipped):
            failed += 1
            ElementTree.SubElement(case, "failure", message=said, type=check.level)
        elif check.skipped:
            skipped += 1
            ElementTree.SubElement(case, "skipped", message=said)
    suite.set("failures", str(failed))
    suite.set("skipped", str(skipped))
    suite.set("errors", "0")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _id(name: str) -> str:
    return "fl-sim/" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _uri(file: Path) -> str:
    from urllib.parse import quote

    return file.as_uri() if file.is_absolute() else quote(file.as_posix())


def _plain(text: str) -> str:
    """Return a text with nothing in it that XML 1.0 cannot hold."""
    return legible(text, _LONGEST)
