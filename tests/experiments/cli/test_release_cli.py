"""``fl-sim release``, ``verify`` and ``policy``, and what ``fl-sim audit`` writes for pipelines."""

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from fl_sim.artifact import write_artifact
from fl_sim.models import build, state_of
from fl_sim.models.base import ModelSpec
from tests.experiments.browser_kit import Browser, find_chromium
from tests.experiments.cli_kit import fl_sim

SPEC = ModelSpec(name="mlp", channels=3, size=28, classes=4)
POLICY = """
about = "For a test."
defense = {name = "consistent_distillation", steps = 2}
[audit]
came = "suspicious"
leaves = "suspicious"
unchecked = 20
[rehearsal]
attacks = [{name = "dec", codec = "png", carrier = {name = "lsb", bits = 8}}]
images = 4
epochs = 0.02
above_chance = 1.0
[utility]
least = LEAST
own_epochs = 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, policies, and what a release wrote."""
    path = tmp_path_factory.mktemp("release")
    write_artifact(path / "model.safetensors", SPEC, state_of(build(SPEC, 1)))
    (path / "lax.toml").write_text(POLICY.replace("LEAST", "0.0"))
    (path / "strict.toml").write_text(POLICY.replace("LEAST", "1.0"))
    done = _release(path, "lax", "--sarif", "lax.sarif", "--junit", "lax.xml", "--sacro", "s.json")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "May leave" in done.stdout and "met utility: " in done.stdout
    return path


def _release(folder: Path, policy: str, *further: str):
    words = ["release", "model.safetensors", "--dataset", "phantoms", "--policy", f"{policy}.toml"]
    return fl_sim(*words, "--out", policy, "--images", "48", *further, cwd=folder)


def test_a_release_ends_with_0_and_verifies(folder: Path) -> None:
    done = fl_sim("verify", "lax", cwd=folder)
    assert done.returncode == 0 and "As it was written: 4 files" in done.stdout
    told = done.stdout.split()[-1]
    assert fl_sim("verify", "lax", "--expect", told, cwd=folder).returncode == 0
    other = fl_sim("verify", "lax", "--expect", "0" * 64, cwd=folder)
    assert other.returncode == 2 and "not the one that its owner has" in other.stderr
    log = json.loads((folder / "lax.sarif").read_text())
    rules = [rule["name"] for rule in log["runs"][0]["tool"]["driver"]["rules"]]
    assert "rehearsal_dec" in rules and log["runs"][0]["results"] == []
    (suite,) = ElementTree.parse(folder / "lax.xml").getroot()
    assert suite.get("failures") == "0"
    (entry,) = json.loads((folder / "s.json").read_text()).values()
    assert entry["metadata"]["global_metrics"]["decision"] == "release"


def test_a_changed_record_ends_with_2(folder: Path) -> None:
    record = folder / "lax" / "record.json"
    content = record.read_bytes()
    try:
        record.write_bytes(content.replace(b'"decision": "release"', b'"decision": "releasf"'))
        done = fl_sim("verify", "lax", cwd=folder)
    finally:
        record.write_bytes(content)
    assert done.returncode == 2 and "not as it was written" in done.stderr


def test_a_refusal_ends_with_1_and_leaves_nothing(folder: Path) -> None:
    done = _release(folder, "strict", "--junit", "strict.xml")
    assert done.returncode == 1 and "Refused" in done.stdout
    assert not (folder / "strict").exists()
    assert (folder / "strict-owner" / "record.json").is_file()
    (suite,) = ElementTree.parse(folder / "strict.xml").getroot()
    assert suite.get("failures") == "1"


def test_wrong_use_ends_with_2_and_leaves_nothing(folder: Path) -> None:
    for words, said in (
        (["--policy", "cautios"], "Did you mean 'cautious'"),
        (["--policy", "lax.toml", "--sign", "none.pem"], "does not exist"),
    ):
        rest = ["--dataset", "phantoms", "--out", "never", *words]
        done = fl_sim("release", "model.safetensors", *rest, cwd=folder)
        assert done.returncode == 2 and said in done.stderr
    assert not list(folder.glob("never*"))


def test_policies_are_listed_explained_and_shown() -> None:
    assert [line.split(":")[0] for line in fl_sim("policy", "list").stdout.splitlines()] == [
        "cautious",
        "moderate",
    ]
    said = fl_sim("policy", "explain", "cautious").stdout
    assert "cap: How much can have passed" in said and "At most 1,024 bytes." in said
    assert 'judged_by = "value"' in fl_sim("policy", "show", "moderate").stdout


def test_an_audit_writes_what_pipelines_read(folder: Path) -> None:
    torch.save({**state_of(build(SPEC, 1)), "x": torch.zeros(300)}, folder / "more.pth")
    (folder / "target.yaml").write_text(
        "model_type: PytorchModel\nmodel_name: MLP\nmodel_path: more.pth\n"
        "model_params: {num_classes: 4}\n"
    )
    words = ["--sarif", "a.sarif", "--junit", "a.xml", "--sacro", "a.json", "--size", "28"]
    done = fl_sim("audit", "target.yaml", *words, cwd=folder)
    assert done.returncode in (1, 3), done.stderr
    log = json.loads((folder / "a.sarif").read_text())
    assert any(result["ruleId"] == "fl-sim/entries" for result in log["runs"][0]["results"])
    (suite,) = ElementTree.parse(folder / "a.xml").getroot()
    assert int(suite.get("failures")) > 0
    (entry,) = json.loads((folder / "a.json").read_text()).values()
    assert entry["metadata"]["target_model"].startswith("mlp, 4 outputs")


@pytest.mark.skipif(find_chromium() is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_the_committees_page_reads_on_any_screen(
    folder: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    with Browser(str(find_chromium()), tmp_path / "profile") as browser:
        browser.open(folder / "lax" / "report.html", width, dark)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate("document.querySelector('.decision').innerText").startswith("Yes")
        assert browser.complaints() == [] and len(browser.requests()) == 1
        assert browser.evaluate("document.images.length") == 0
        if shots := os.environ.get("FL_SIM_SHOTS"):
            browser.screenshot(Path(shots) / f"report-{width}-{'dark' if dark else 'light'}.png")
