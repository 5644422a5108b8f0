"""What leaves and what stays: the key, the files, and answers that are decided or refused."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fl_sim.data.base import MULTI_LABEL, Split, Task
from fl_sim.errors import FlSimError
from fl_sim.models import ModelSpec, build, state_of
from fl_sim.sealing.answers import answered, decide, encrypted_answers
from fl_sim.sealing.bases import Base
from fl_sim.sealing.ckks import SecretScheme, to_bytes
from fl_sim.sealing.files import (
    ANSWERED,
    CLEAR,
    CONTEXT,
    HEAD,
    MANIFEST,
    SECRET,
    SealedFiles,
    read_owners_key,
    read_sealed,
    read_view,
    write_sealed,
)
from fl_sim.sealing.forms import Shape
from fl_sim.sealing.heads import entries_of, find_head
from fl_sim.sealing.view import Sealing, as_received, receivers_view
from fl_sim.training import normalized
from tests.sealing.seal_kit import SMALL

pytest.importorskip("tenseal")

SPEC = ModelSpec(name="cnn", channels=1, size=8, classes=3)
TASK = Task("multi-class", ("a", "b", "c"))
LIMIT = 12


def _images(count: int = 4) -> Split:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)
    return Split(pixels, np.zeros(count, np.int64))


@torch.no_grad()
def _network() -> nn.Module:
    """Answers differ from image to image, by more than encryption's noise."""
    network = build(SPEC, 1).eval()
    last = network.get_submodule(find_head(network, SPEC, 1)[0])
    assert isinstance(last, nn.Linear)
    last.weight.mul_(100)
    last.bias.mul_(100)
    last.bias.sub_(network(normalized(_images().tensors()[0])).mean(dim=0))
    return network


NETWORK = _network()


def _sealing(form: str = "product") -> Sealing:
    head = find_head(NETWORK, SPEC, 1)
    features = NETWORK.get_submodule(head[0]).in_features
    shape = Shape(int(features), 3, 0, form, SMALL)
    return Sealing(head, entries_of(NETWORK, head), shape, Base("given"), LIMIT)


def _write(folder: Path, task: Task = TASK, form: str = "product") -> SealedFiles:
    left, own = folder / "left", folder / "own"
    return write_sealed(left, own, SPEC, state_of(NETWORK), _sealing(form), task)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> SealedFiles:
    return _write(tmp_path_factory.mktemp("sealed"))


@pytest.fixture
def files(kept: SealedFiles, tmp_path: Path) -> SealedFiles:
    """Copies, which a test may change."""
    shutil.copytree(kept.artifact.parent, tmp_path / "copy")
    copy = tmp_path / "copy"
    return SealedFiles(copy / "left", copy / "own" / SECRET, kept.bytes)


@pytest.fixture(scope="module")
def answers(kept: SealedFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("answers") / "answers.safetensors"
    return encrypted_answers(read_sealed(kept.artifact), _images(), out)


def test_decisions_are_those_of_the_model_in_clear(files: SealedFiles, answers: Path) -> None:
    with torch.no_grad():
        clear = NETWORK(normalized(_images().tensors()[0]))
    assert decide(files.key, answers).tolist() == clear.argmax(dim=1).tolist()
    assert len(set(clear.argmax(dim=1).tolist())) > 1


def test_labels_are_decided_each(tmp_path: Path) -> None:
    files = _write(tmp_path, Task(MULTI_LABEL, ("a", "b", "c")), form="dot")
    out = encrypted_answers(read_sealed(files.artifact), _images(2), tmp_path / "answers")
    with torch.no_grad():
        clear = NETWORK(normalized(_images(2).tensors()[0])).numpy()
    decided, sure = decide(files.key, out), abs(clear) > 0.05  # noise is below
    assert np.array_equal(decided[sure], clear[sure] > 0)
    assert set(decided[sure]) == {0, 1}


def _words(content: bytes) -> np.ndarray:
    """Every 8 bytes, wherever they begin, as numbers."""
    parts = [
        np.frombuffer(content[at : at + (len(content) - at) // 8 * 8], "<u8") for at in range(8)
    ]
    return np.concatenate(parts)


def _holds(content: bytes, secret: bytes) -> bool:
    """Whether any eight bytes of a key's coefficients are in a file."""
    own = np.frombuffer(secret[-8 * 3 * SMALL.degree :], "<u8")
    own = own[own > 1 << 32]  # small numbers are everywhere
    assert len(own) > 1000
    return bool(np.isin(_words(content), own).any())


def test_the_key_is_in_nothing_that_leaves(kept: SealedFiles, answers: Path) -> None:
    secret = load_file(kept.key)["secret"].numpy().tobytes()
    leaves = [path for path in kept.artifact.rglob("*") if path.is_file()]
    assert {path.name for path in leaves} == {MANIFEST, CLEAR, HEAD, CONTEXT}
    for path in [*leaves, answers]:
        assert not _holds(path.read_bytes(), secret), path
    assert _holds(kept.key.read_bytes(), secret)  # or nothing would ever be found
    assert _holds(b"abc" + secret[900:1100] + bytes(8), secret)


@pytest.mark.parametrize("form", ["product", "sum"])
def test_what_leaves_cannot_decrypt(tmp_path: Path, form: str) -> None:
    files = _write(tmp_path, form=form)
    known, received = read_owners_key(files.key), read_sealed(files.artifact)
    own = received.head._weights[0]
    true = known.scheme.decrypted(own)
    tried = 0
    for path in files.artifact.glob("*.safetensors"):
        for value in load_file(path).values():
            contents = value if value.dtype == torch.uint8 and value.ndim == 2 else [value]
            for content in contents:
                with pytest.raises(FlSimError):
                    SecretScheme(SMALL, content.numpy().tobytes())
                tried += 1
    assert tried >= 5
    for path in files.artifact.iterdir():
        with pytest.raises(FlSimError):
            read_owners_key(path)
    found = SecretScheme(SMALL).decrypted(own)
    assert np.abs(found - true).mean() > 10 * np.abs(true).max()


def test_only_its_owner_can_read_the_key(kept: SealedFiles) -> None:
    owner = kept.key.parent
    assert owner.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in owner.iterdir()} >= {SECRET, ANSWERED}
    for name in (SECRET, ANSWERED):
        assert (owner / name).stat().st_mode & 0o777 == 0o600


def test_a_key_that_others_can_read_is_refused(files: SealedFiles, answers: Path) -> None:
    files.key.chmod(0o640)
    with pytest.raises(FlSimError, match="can be read by others"):
        decide(files.key, answers)


def test_folders_lie_apart_and_are_new(kept: SealedFiles, tmp_path: Path) -> None:
    state, sealing = state_of(NETWORK), _sealing()
    for left, own in (("a", "a"), ("a", "a/own"), ("own/a", "own"), ("a", "b/../a/c")):
        with pytest.raises(FlSimError, match="must lie apart"):
            write_sealed(tmp_path / left, tmp_path / own, SPEC, state, sealing, TASK)
    taken = ((kept.artifact, tmp_path / "own"), (tmp_path / "left", kept.key.parent))
    for folder, key in taken:
        with pytest.raises(FlSimError, match="is there already"):
            write_sealed(folder, key, SPEC, state, sealing, TASK)
    assert not any(tmp_path.iterdir())


def test_questions_are_counted_up_to_the_limit(files: SealedFiles, answers: Path) -> None:
    for count in range(1, 4):
        decide(files.key, answers)
        assert answered(files.key) == 4 * count
    with pytest.raises(FlSimError, match="answers 12 questions, 12 are answered, and these are 4"):
        decide(files.key, answers)
    assert answered(files.key) == 12
    counter = files.key.with_name(ANSWERED)
    for content in (b"", b"[]", b'{"answered": -5}', b'{"answered": "2"}', b"[" * 5000):
        counter.write_bytes(content)
        with pytest.raises(FlSimError, match="answered"):
            decide(files.key, answers)
    counter.unlink()
    with pytest.raises(FlSimError, match="without it nothing is decided"):
        decide(files.key, answers)


def test_they_are_counted_before_anything_is_decided(
    files: SealedFiles, answers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(self: SecretScheme, ciphertext: object) -> np.ndarray:
        raise KeyboardInterrupt

    monkeypatch.setattr(SecretScheme, "decrypted", cut)
    with pytest.raises(KeyboardInterrupt):
        decide(files.key, answers)
    assert answered(files.key) == 4


def _forged(answers: Path, to: Path, tensor: torch.Tensor | None) -> Path:
    """Answers with other content and an honest header."""
    from safetensors import safe_open

    with safe_open(answers, framework="pt") as file:
        header = file.metadata()
    save_file({} if tensor is None else {"answers": tensor.contiguous()}, to, header)
    return to


def test_sealed_weights_are_not_decided_on(
    files: SealedFiles, answers: Path, tmp_path: Path
) -> None:
    head = load_file(files.artifact / HEAD)["level 0"]
    as_they_are = _forged(answers, tmp_path / "one", head[None])
    with pytest.raises(FlSimError, match="as long as sealed weights"):
        decide(files.key, as_they_are)
    received = read_sealed(files.artifact)
    scheme, level = received.scheme, received.view.shape.answer_level
    rows = []
    for weight in received.head._weights:
        lower = scheme.seal.Ciphertext()
        scheme.evaluator.mod_switch_to(weight, scheme.levels[level], lower)
        content = bytearray(to_bytes(lower))
        # The scale is a field that the sender can write as he likes.
        honest = load_file(answers)["answers"][0, 0].numpy().tobytes()
        content[16 : 16 + 73] = honest[16 : 16 + 73]
        rows.append(torch.frombuffer(content, dtype=torch.uint8))
    lowered = _forged(answers, tmp_path / "two", torch.stack(rows)[None])
    with pytest.raises(FlSimError, match="the sealed weights themselves"):
        decide(files.key, lowered)
    assert answered(files.key) == 0


def _hostile(answers: Path, folder: Path) -> Iterator[tuple[Path, str]]:
    own = load_file(answers)["answers"]
    yield _forged(answers, folder / "cut", own[:, :, :-8]), "no ciphertext at its level"
    yield _forged(answers, folder / "none", own[:0]), "are none"
    yield _forged(answers, folder / "missing", None), "hold no answers"
    yield _forged(answers, folder / "more", own.repeat(1, 2, 1)), "hold no answers"
    yield _forged(answers, folder / "floats", own.float()), "hold no answers"
    noise = torch.randint(0, 256, own.shape, dtype=torch.uint8)
    yield _forged(answers, folder / "noise", noise), "damaged"
    for header in ({}, {"fl_sim.answers": "[" * 9000}, {"fl_sim.answers": "[]"}):
        save_file({"answers": own}, folder / "header", header)
        yield folder / "header", "header"
    save_file({"answers": own}, folder / "other", {"fl_sim.answers": '{"artifact": "abc"}'})
    yield folder / "other", "of another sealed model"
    (folder / "short").write_bytes(answers.read_bytes()[:-5])
    yield folder / "short", "cannot be read"
    yield folder / "nowhere", "does not exist"


def test_hostile_answers_are_one_sentence_and_count_nothing(
    files: SealedFiles, answers: Path, tmp_path: Path
) -> None:
    for path, words in _hostile(answers, tmp_path):
        with pytest.raises(FlSimError, match=rf"^[^\n]*{words}[^\n]*\.$"):
            decide(files.key, path)
    assert answered(files.key) == 0


def _rewrite(path: Path, **changes: object) -> None:
    """Change a manifest's words."""
    values = json.loads(path.read_text())
    for key, value in changes.items():
        values[key] = value
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": "much"}, "'shape'"),
        ({"files": {}}, "not the one of its manifest"),
        ({"sealed": {"1.weight": [5, 5]}}, "sealed entries are not of a head"),
        ({"head": ["1", "3"]}, "sealed entries are not of a head"),
        ({"more": 1}, "no key 'more'"),
        ({"format": 2}, "'format'"),
    ],
)
def test_a_hostile_manifest_is_one_sentence(
    files: SealedFiles, changes: dict[str, object], words: str
) -> None:
    _rewrite(files.artifact / MANIFEST, **changes)
    for read in (read_sealed, read_view):
        with pytest.raises(FlSimError, match=rf"^[^\n]*{words}[^\n]*[.?]$"):
            read(files.artifact)


@pytest.mark.parametrize("form", ["product", "sum", "dot"])
def test_a_manifest_cannot_ask_for_more_than_its_files_hold(files: SealedFiles, form: str) -> None:
    path = files.artifact / MANIFEST
    shape = json.loads(path.read_text())["shape"]
    for key in ("features", "outputs", "hidden"):
        _rewrite(path, shape={**shape, "form": form, key: 1 << 20})
        with pytest.raises(FlSimError, match=r"cannot hold them|has no form|primes"):
            read_sealed(files.artifact)


@pytest.mark.parametrize("name", [CLEAR, HEAD, CONTEXT])
def test_a_file_that_was_changed_is_refused(files: SealedFiles, name: str) -> None:
    path = files.artifact / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(FlSimError, match=r"cannot be read|not the one of its manifest"):
        read_sealed(files.artifact)
    path.unlink()
    with pytest.raises(FlSimError, match="does not exist"):
        read_sealed(files.artifact)


def test_what_is_no_sealed_model_is_said(tmp_path: Path, files: SealedFiles) -> None:
    with pytest.raises(FlSimError, match="is no sealed model"):
        read_sealed(tmp_path)
    os.truncate(files.artifact / MANIFEST, 2 << 20)
    with pytest.raises(FlSimError, match="longer than a manifest"):
        read_sealed(files.artifact)


def test_the_receivers_view_has_all_but_the_head(kept: SealedFiles) -> None:
    state, sealing = state_of(NETWORK), _sealing()
    read = read_view(kept.artifact)
    for view in (read, receivers_view(SPEC, state, sealing)):
        assert view.clear.keys() == state.keys() - set(sealing.entries)
        assert all(torch.equal(value, state[name]) for name, value in view.clear.items())
        assert view.sealed == {name: tuple(state[name].shape) for name in sealing.entries}
        assert view.base == Base("given") and view.shape == sealing.shape
        left = view.artifact().state
        for name in sealing.entries:
            assert not (left[name] == state[name]).any()
    others = {n: torch.randn_like(v) if n in sealing.entries else v for n, v in state.items()}
    received = [as_received(own, sealing) for own in (state, others)]
    assert list(received[0]) == list(state)
    assert all(torch.equal(received[0][n], received[1][n]) for n in state)
    assert all(torch.equal(received[0][n], left[n]) for n in state)


def test_images_of_another_size_are_refused(kept: SealedFiles, tmp_path: Path) -> None:
    with pytest.raises(FlSimError, match=r"takes images of shape \[1, 8, 8\]"):
        wide = Split(np.zeros((1, 9, 9, 1), np.uint8), np.zeros(1))
        encrypted_answers(read_sealed(kept.artifact), wide, tmp_path / "answers")


def test_without_tenseal_it_says_how_to_get_it(
    kept: SealedFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FlSimError, match=r"fl-sim\[he\]"):
        read_sealed(kept.artifact)
    assert read_view(kept.artifact).clear  # what anybody can read, takes none
