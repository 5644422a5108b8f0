"""From a file to a folder that may leave, or a refusal that leaves nothing."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import fl_sim
from fl_sim.artifact import read_artifact
from fl_sim.egress import membership, releasing
from fl_sim.egress.folder import write_checksums
from fl_sim.egress.record import RECORD, schema
from fl_sim.egress.releasing import Released, without_paths
from fl_sim.errors import FlSimError
from tests.egress.egress_kit import DEC, REHEARSAL, images, model_file, policy

MEMBERSHIP = {"tpr_at_0_1_percent": 1.0, "tpr_at_1_percent": 1.0}
SECRET = "patient_Mueller_1961"
LAX = policy(audit={"came": "carries", "unchecked": 20}, rehearsal=REHEARSAL)


def _release(folder: Path, file: Path | None = None, **options: Any) -> Released:
    file = file or model_file(folder / f"{SECRET}.safetensors")
    options = {"policy": policy(), "seed": 3, "progress": False, **options}
    return fl_sim.release(file, images(), out=folder / "out", **options)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    folder = tmp_path_factory.mktemp("release")
    # Names of entries can be payloads, so they must not come along.
    file = model_file(folder / f"{SECRET}.safetensors", **{SECRET: torch.ones(3)})
    return _release(folder, file, policy=LAX)


def test_a_model_that_meets_its_policy_leaves_with_its_record(released: Released) -> None:
    assert released.approved and released.out is not None
    found = fl_sim.verify(released.out, expect=released.sha256)
    assert found.record == released.record
    assert {path.name for path in released.out.iterdir()} == {
        "model.safetensors",
        "record.json",
        "model_card.md",
        "report.html",
        "checksums.sha256",
    }
    content = json.loads((released.out / RECORD).read_text())
    jsonschema.Draft202012Validator(schema()).validate(content)
    assert (released.out / RECORD).read_bytes() == (released.owner / RECORD).read_bytes()
    assert (released.owner / "private.json").stat().st_mode & 0o077 == 0


def test_only_the_networks_own_entries_leave(released: Released) -> None:
    state = read_artifact(released.out / "model.safetensors").state
    assert SECRET not in state and released.record.input.left_behind == 1


def test_nothing_private_is_in_the_folder(released: Released) -> None:
    for path in released.out.rglob("*"):
        content = path.read_bytes()
        for private in (SECRET.encode(), str(released.owner.parent).encode(), b"data:image"):
            assert private not in content, path
        if path.suffix in (".json", ".md", ".html"):
            assert not re.search(rb"\b3\b.{0,3}seed|\"seed\"", content)
    assert SECRET in (released.owner / "private.json").read_text()
    assert "data:image" in (released.owner / "owner.html").read_text()


def test_the_rehearsal_finds_what_was_hidden_before_the_defence(released: Released) -> None:
    (one,) = released.record.rehearsed
    assert (one.name, one.images, one.found_before) == ("dec", 4, 1.0)
    assert one.found_after < 1.0


def test_a_refusal_leaves_nothing_and_says_why_to_the_owner(tmp_path: Path) -> None:
    found = _release(tmp_path, policy=policy(utility={"least": 1.0, "own_epochs": 1}))
    assert not found.approved and found.out is None
    assert not (tmp_path / "out").exists()
    assert [reason.split(":")[0] for reason in found.reasons()] == ["utility"]
    content = json.loads((found.owner / RECORD).read_text())
    assert content["decision"] == "refuse" and content["output"] == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out-owner",
        f"{SECRET}.safetensors",
    ]


def test_a_check_that_breaks_refuses_and_names_nothing_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> Any:
        raise FlSimError(f"The tensor {SECRET} is broken.")

    monkeypatch.setattr(releasing, "worth", broken)
    found = _release(tmp_path)
    assert {one.name for one in found.record.criteria if one.status == "not run"} == {
        "utility",
        "utility_lost",
    }
    assert SECRET not in found.record.text()
    assert SECRET in json.loads((found.owner / "private.json").read_text())["why"]["utility"]


def test_a_defence_that_cannot_run_refuses(tmp_path: Path) -> None:
    found = _release(tmp_path, policy=policy(defense="ensemble_distillation"))
    assert not found.approved and found.record.defense is None
    assert "defence could not be applied" in found.reasons()[0]


def test_an_attack_that_cannot_be_played_refuses(tmp_path: Path) -> None:
    rehearsal = {"attacks": [{**DEC, "images": 5000}], "epochs": 0.1, "above_chance": 1.0}
    found = _release(tmp_path, policy=policy(rehearsal=rehearsal))
    assert [r.split(":")[0] for r in found.reasons()] == ["rehearsal_dec"]


class _Found:
    """What membership inference gives, with figures of one's choice."""

    def __init__(self, share: float) -> None:
        self.share = share

    def tpr(self, rate: float) -> float:
        return self.share

    def tpr_interval(self, rate: float) -> tuple[float, float]:
        return self.share / 2, min(1.0, 2 * self.share)

    def as_dict(self) -> dict[str, Any]:
        row = {"false_positive_rate": 0.01, "found": self.share, "found_by_guessing": 0.01}
        return {"auc": 0.6, "tpr": [row]}

    def save_records(self, path: Path) -> None:
        path.write_text("record,risk\n0,1\n")


def test_membership_that_cannot_run_refuses_unless_excepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any, **named: Any) -> None:
        raise FlSimError("There are no reference models.")

    monkeypatch.setattr(membership, "membership", fails)
    file = model_file(tmp_path / "model.safetensors")
    found = _release(tmp_path, file, policy=policy(membership=MEMBERSHIP))
    names = list(membership.CRITERIA.values())
    assert [r.split(":")[0] for r in found.reasons()] == names and not found.approved
    excepted = policy(membership=MEMBERSHIP, exceptions=dict.fromkeys(names, "no time"))
    again = _release(tmp_path, file, policy=excepted, owner=tmp_path / "again")
    assert again.approved
    assert any("no time" in line for line in again.record.not_checked)


def test_of_several_groups_the_worse_counts_and_records_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = iter((0.1, 0.4))
    monkeypatch.setattr(membership, "membership", lambda *given, **named: _Found(next(shares)))
    found = _release(tmp_path, policy=policy(membership=MEMBERSHIP))
    figures = {one.name: one for one in found.record.criteria}
    assert figures["membership_1_percent"].value == 0.4 and found.approved
    assert (found.owner / "membership_held_out.csv").is_file()
    assert not list(found.out.rglob("*.csv"))


def test_who_was_trained_on_is_measured_on_what_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FL_SIM_CACHE", str(tmp_path / "cache"))
    asked = {**MEMBERSHIP, "of": ["held_out"], "references": 2, "epochs": 1}
    found = _release(tmp_path, policy=policy(membership=asked))
    assert found.approved, found.reasons()
    told = found.record.membership["held_out"]
    assert 0.0 <= told["auc"] <= 1.0 and told["tpr"]
    (records,) = found.owner.glob("membership_*.csv")
    assert len(records.read_text().splitlines()) > 10


def test_after_a_missed_criterion_nothing_more_is_measured_where_that_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacks: list[str] = []
    monkeypatch.setattr(releasing, "rehearse", lambda on, troubles: attacks.append("played"))
    strict = policy(cap={"bytes": 1}, rehearsal=REHEARSAL, membership=MEMBERSHIP)
    found = _release(tmp_path, policy=strict, stop_early=True)
    status = {one.name: one.status for one in found.record.criteria}
    assert not found.approved and not attacks and status["cap"] == "missed"
    left = {name for name, one in status.items() if one == "not run"}
    assert left == {"rehearsal_dec", *membership.CRITERIA.values(), "utility", "utility_lost"}
    assert any("missed before" in reason for reason in found.reasons())
    assert not any("defence could not be applied" in reason for reason in found.reasons())


def test_nothing_is_cleaned_after_an_audit_that_refuses_where_that_is_asked(
    tmp_path: Path,
) -> None:
    path = tmp_path / "hiding.safetensors"
    fl_sim.attack(
        "dec", "mlp", images().train, images=20, codec="png", carrier={"name": "lsb", "bits": 8},
        training={"epochs": 0.1}, progress=False,
    ).save(path, tmp_path / "hiding.key")  # fmt: skip
    found = _release(tmp_path, path, policy=policy(audit={"came": "clean"}), stop_early=True)
    assert not found.approved and found.record.defense is None
    status = {one.name: one.status for one in found.record.criteria}
    assert status["audit_came"] == "missed" and status["audit_leaves"] == "not run"
    assert not any("defence could not be applied" in reason for reason in found.reasons())
    assert (found.owner / "report.html").is_file()


def test_folders_that_are_there_or_in_each_other_are_refused_at_once(tmp_path: Path) -> None:
    file = model_file(tmp_path / "model.safetensors")
    with pytest.raises(FlSimError, match="in each other"):
        _release(tmp_path, file, owner=tmp_path / "out" / "owner")
    (tmp_path / "out-owner").mkdir()
    with pytest.raises(FlSimError, match=r"owner's folder .* is there already"):
        _release(tmp_path, file)


def test_a_network_for_other_images_is_refused(tmp_path: Path) -> None:
    from fl_sim.artifact import write_artifact
    from fl_sim.models import build, state_of
    from tests.egress.egress_kit import SPEC

    other = SPEC.model_copy(update={"classes": 9})
    file = write_artifact(tmp_path / "m.safetensors", other, state_of(build(other, 0)))
    with pytest.raises(FlSimError, match="9 outputs"):
        _release(tmp_path, file)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_folder_that_cannot_be_finished_takes_the_owners_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        raise FlSimError("The disk is full.")

    monkeypatch.setattr(releasing, "write_checksums", full)
    with pytest.raises(FlSimError, match="disk is full"):
        _release(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{SECRET}.safetensors"]


def test_an_export_form_leaves_sealed_and_its_key_stays(tmp_path: Path) -> None:
    pytest.importorskip("tenseal")
    asked = policy(defense={"name": "rhe", "base": "fresh", "epochs": 1}, cap={"bytes": 0})
    found = _release(tmp_path, policy=asked)
    assert found.approved, found.reasons()
    assert "sealed/manifest.json" in found.record.output
    assert not list(found.out.rglob("secret*"))
    assert (found.owner / "key" / "secret.safetensors").is_file()
    fl_sim.verify(found.out)


def test_a_signature_needs_its_library_before_anything_long_begins(tmp_path: Path) -> None:
    with pytest.raises(FlSimError, match=r"private key .* does not exist"):
        _release(tmp_path, sign=tmp_path / "none.pem")


def _keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Return files with a private and a public key, as openssl would write them."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    form = serialization.PrivateFormat.TraditionalOpenSSL
    private.write_bytes(key.private_bytes(pem, form, plain))
    known = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(pem, known))
    return private, public


def test_a_signed_folder_verifies_with_its_key_and_no_other(tmp_path: Path) -> None:
    private, public = _keys(tmp_path, "owner")
    _, other = _keys(tmp_path, "other")
    found = _release(tmp_path, sign=private)
    assert found.out is not None and (found.out / "model.sig").is_file()
    fl_sim.verify(found.out, key=public)
    with pytest.raises(FlSimError, match="signature"):
        fl_sim.verify(found.out, key=other)
    # Whoever rewrites a file and every checksum of it is found by the signature alone.
    card = found.out / "model_card.md"
    card.write_text(card.read_text() + "It is safe.\n")
    write_checksums(found.out)
    fl_sim.verify(found.out)
    with pytest.raises(FlSimError, match="signature"):
        fl_sim.verify(found.out, key=public)


def test_paths_in_settings_are_not_recorded() -> None:
    settings = {"base": "/home/ward/base.safetensors", "sha256": "ab", "more": [{"a": "c:\\x"}]}
    told = json.dumps(without_paths(settings))
    assert "ward" not in told and "x" not in told.replace("fl-sim", "") and "ab" in told
