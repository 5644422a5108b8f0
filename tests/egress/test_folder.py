"""A released folder: whole or not there, and any change of it is noticed."""

import hashlib
import json
from pathlib import Path

import jsonschema
import pytest

from fl_sim.egress.folder import CHECKSUMS, require_new, verify, write_checksums, write_folder
from fl_sim.egress.pages import model_card, report_page
from fl_sim.egress.record import RECORD, Record, read_record, schema, seal_of
from fl_sim.errors import FlSimError
from tests.egress.egress_kit import MODEL, NOUGHT, sample_record
from tests.experiments.cli_kit import ROOT

PUBLISHED = ROOT / "docs" / "schemas" / "release-record.schema.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _written(tmp_path / "out", sample_record())


def _written(path: Path, record: Record) -> Path:
    def write(inside: Path) -> None:
        (inside / "model.safetensors").write_bytes(MODEL)
        (inside / RECORD).write_text(record.text())
        (inside / "model_card.md").write_text(model_card(record))
        (inside / "report.html").write_text(report_page(record))
        write_checksums(inside)

    return write_folder(path, write)


def test_an_untouched_folder_is_as_it_was_written(folder: Path) -> None:
    found = verify(folder)
    assert (found.files, found.signed) == (4, False)
    assert found.sha256 == hashlib.sha256((folder / RECORD).read_bytes()).hexdigest()
    assert verify(folder, expect=found.sha256).record == found.record
    with pytest.raises(FlSimError, match="not the one that its owner has"):
        verify(folder, expect=NOUGHT)


@pytest.mark.parametrize("name", ["model.safetensors", RECORD, "model_card.md", "report.html"])
def test_one_changed_byte_of_any_file_is_refused(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(FlSimError, match="not as it was written"):
        verify(folder)


def test_a_record_with_one_byte_changed_is_refused_even_where_the_checksums_are_made_anew() -> None:
    text = sample_record().text().encode()
    assert read_record(text, "The record").decision == "release"
    for place in range(0, len(text), 7):
        changed = text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :]
        if json.loads(text) == _loaded(changed):
            continue  # white space
        with pytest.raises(FlSimError):
            read_record(changed, "The record")


def _loaded(text: bytes) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def test_checksums_made_anew_do_not_help_a_changed_model(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weightz")
    (folder / CHECKSUMS).unlink()
    write_checksums(folder)
    with pytest.raises(FlSimError, match="is of another file"):
        verify(folder)


def test_what_is_added_or_taken_away_is_noticed(folder: Path) -> None:
    (folder / "more.txt").write_text("images")
    with pytest.raises(FlSimError, match=r"nobody stated: more\.txt"):
        verify(folder)
    (folder / "more.txt").unlink()
    (folder / "report.html").unlink()
    with pytest.raises(FlSimError, match=r"lacks the file report\.html"):
        verify(folder)


def test_a_link_is_refused(folder: Path) -> None:
    (folder / "report.html").unlink()
    (folder / "report.html").symlink_to("/etc/hostname")
    with pytest.raises(FlSimError, match="no plain file"):
        verify(folder)


def test_a_folder_whose_record_refuses_should_not_have_left(tmp_path: Path) -> None:
    folder = _written(tmp_path / "refused", sample_record(decision="refuse"))
    with pytest.raises(FlSimError, match="should not have left"):
        verify(folder)
    folder = _written(tmp_path / "empty", sample_record(output={}))
    with pytest.raises(FlSimError, match="names no model file"):
        verify(folder)


@pytest.mark.parametrize("name", [CHECKSUMS, RECORD])
def test_another_folder_is_none_of_ours(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FlSimError, match="none that fl-sim release wrote"):
        verify(folder)


def test_a_folder_that_cannot_be_finished_is_not_there(tmp_path: Path) -> None:
    def write(inside: Path) -> None:
        (inside / "model.safetensors").write_bytes(MODEL)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "out", write)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(FlSimError, match="is there already"):
        require_new(tmp_path / "out", "folder")


def test_the_published_schema_is_the_records_and_records_keep_it() -> None:
    published = json.loads(PUBLISHED.read_text())
    assert published == schema()
    validator = jsonschema.Draft202012Validator(published)
    validator.check_schema(published)
    good = json.loads(sample_record().text())
    assert list(validator.iter_errors(good)) == []
    for key in ("decision", "criteria", "output", "versions"):
        assert list(validator.iter_errors({k: v for k, v in good.items() if k != key}))
    assert list(validator.iter_errors({**good, "patient": "A"}))
    assert list(validator.iter_errors({**good, "decision": "perhaps"}))


def test_the_seal_does_not_depend_on_the_order_of_keys() -> None:
    content = json.loads(sample_record().text())
    turned = dict(reversed(content.items()))
    assert seal_of(turned) == seal_of(content) == content["seal"]
    assert seal_of({**content, "decision": "refuse"}) != content["seal"]
