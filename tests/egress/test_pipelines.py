"""SARIF and JUnit: what code scanning and test pages need is there."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fl_sim.auditing.report import AuditReport
from fl_sim.checkpoints import Finding
from fl_sim.egress.decision import Figure, judge
from fl_sim.egress.pipelines import (
    Check,
    _criterion,
    checks_of_audit,
    junit,
    sarif,
    write_junit,
    write_sarif,
)
from tests.egress.egress_kit import policy

HOSTILE = "a\x1b[2Jb\x00<script>&\u202e" + "x" * 5000
REPORT = AuditReport(
    "m.pth",
    ran=["bits", "values", "entries"],
    unchecked={"dead weights": "the network is not known"},
    findings=[
        Finding("bits", "carries", "Low bits hold a picture.", HOSTILE),
        Finding("values", "suspicious", HOSTILE),
        Finding("file", "note", "A pruning mask."),
    ],
)


def _require_sarif(log: dict) -> None:
    """Check what SARIF 2.1.0 requires of what is used here (sections 3.13 to 3.49)."""
    assert log["version"] == "2.1.0" and log["$schema"].endswith("sarif-2.1.0.json")
    for run in log["runs"]:
        driver = run["tool"]["driver"]
        assert run["automationDetails"]["id"].startswith("fl-sim/")
        assert driver["name"] == "fl-sim" and driver["semanticVersion"]
        ids = [rule["id"] for rule in driver["rules"]]
        assert len(set(ids)) == len(ids)
        assert all(rule["shortDescription"]["text"] for rule in driver["rules"])
        for result in run["results"]:
            assert ids[result["ruleIndex"]] == result["ruleId"]
            assert result["level"] in ("none", "note", "warning", "error")
            assert 0 < len(result["message"]["text"]) <= 1000
            (place,) = result["locations"]
            uri = place["physicalLocation"]["artifactLocation"]["uri"]
            assert uri and " " not in uri and "\\" not in uri


@pytest.mark.parametrize("file", [Path("models/a b.pth"), Path("/srv/a.pth")])
def test_an_audit_as_sarif(tmp_path: Path, file: Path) -> None:
    log = sarif(file, checks_of_audit(REPORT))
    _require_sarif(log)
    levels = {r["ruleId"]: r["level"] for r in log["runs"][0]["results"]}
    assert levels == {
        "fl-sim/bits": "error",
        "fl-sim/values": "warning",
        "fl-sim/file": "note",
        "fl-sim/dead-weights": "warning",
    }
    written = write_sarif(tmp_path / "a.sarif", file, checks_of_audit(REPORT))
    assert json.loads(written.read_text()) == log


def test_an_audit_as_junit(tmp_path: Path) -> None:
    path = write_junit(tmp_path / "a.xml", Path("m.pth"), checks_of_audit(REPORT))
    (suite,) = ElementTree.parse(path).getroot()
    cases = {case.get("name"): [child.tag for child in case] for case in suite}
    assert cases == {
        "bits": ["failure"],
        "values": ["failure"],
        "file": [],
        "entries": [],
        "dead weights": ["skipped"],
    }
    counts = (suite.get("tests"), suite.get("failures"), suite.get("skipped"), suite.get("errors"))
    assert counts == ("5", "2", "1", "0")


def test_a_clean_audit_has_no_result_and_no_failure() -> None:
    checks = checks_of_audit(AuditReport("m.pth", ran=["bits", "values"]))
    assert sarif(Path("m.pth"), checks)["runs"][0]["results"] == []
    assert b"<failure" not in junit(Path("m.pth"), checks)
    assert len(checks) == 2


def test_criteria_that_refuse_are_errors_and_exceptions_warnings() -> None:
    asked = policy(exceptions={"utility_lost": "no labels"})
    good = {name: Figure(0.0) for name in ("audit_came", "unchecked_came", "audit_leaves")}
    checks = [_criterion(one) for one in judge(asked, {**good, "utility": Figure(-1.0)})]
    levels = {check.rule: check.level for check in checks}
    assert levels == {
        "audit_came": "none",
        "unchecked_came": "none",
        "audit_leaves": "none",
        "unchecked_leaves": "error",
        "utility": "error",
        "utility_lost": "warning",
    }
    log = sarif(Path("m.pth"), checks)
    _require_sarif(log)
    assert len(log["runs"][0]["results"]) == 3


def test_names_from_outside_cannot_break_the_xml() -> None:
    check = Check("bits", "about", "error", HOSTILE)
    (suite,) = ElementTree.fromstring(junit(Path(f"m{HOSTILE[:20]}.pth"), [check]))
    assert "<script>" in suite[0][0].get("message") and "\x1b" not in suite[0][0].get("message")
