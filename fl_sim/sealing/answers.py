"""Answers of a sealed model: made by its receiver, decided by its owner.

CKKS is not secure against chosen ciphertexts, and its decrypted values tell the secret key (Li and
Micciancio, "On the Security of Homomorphic Encryption on Approximate Numbers", EUROCRYPT 2021). So
the owner hands back decisions only, counts them, and refuses what can be told to be no answer: what
is at the level of sealed weights, or is these weights brought to the level of answers with nothing
computed. Whoever computes anything with them, a product with chosen features or with one, sends
what looks like an answer; all that he gets is one more decision, of which there are ``limit``.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors.torch import save

from fl_sim.artifact import read_safetensors
from fl_sim.data.base import MULTI_LABEL, Split
from fl_sim.errors import FlSimError, printable
from fl_sim.files import locked, write_atomically
from fl_sim.plain import LARGEST_INTEGER, parse_json
from fl_sim.progress import SILENT, Progress, piece
from fl_sim.sealing.ckks import to_bytes
from fl_sim.sealing.files import ANSWERED, OwnersKey, Received, header_of, read_owners_key
from fl_sim.sealing.heads import features_of
from fl_sim.settings import Settings, parse


class Answered(Settings):
    """How many questions an owner has answered."""

    answered: int = Field(ge=0, le=LARGEST_INTEGER)


def encrypted_answers(
    received: Received, images: Split, out: Path, progress: Progress = SILENT
) -> Path:
    """Let a sealed model answer, as its receiver can, and write the encrypted answers.

    Args:
        received: the sealed model.
        images: any number from 1.
        out: file to write (safetensors): ``answers``, ``[n, ciphertexts, bytes]``.
        progress: where to report.

    Returns:
        ``out``.

    Raises:
        FlSimError: if the network does not take such images, or is not the manifest's.
    """
    spec, shape = received.view.spec, received.view.shape
    given = (images.images.shape[3], *images.images.shape[1:3])
    if given != spec.input_shape:
        raise FlSimError(
            f"The sealed model takes images of shape {list(spec.input_shape)}, and these are "
            f"{list(given)}; bring them to that size."
        )
    network = received.view.artifact().model()
    features = features_of(network, received.view.head, images).double().numpy()
    if features.ndim != 2 or features.shape[1] != shape.features:
        raise FlSimError("The sealed model's network has not the features that its head takes.")
    length = received.scheme.ciphertext_lengths(shape.answer_level)[1]
    answers = np.empty((len(features), shape.answer_rows, length), np.uint8)
    with piece(progress, "predictions", len(features)):
        for own, row in zip(answers, features, strict=True):
            for into, ciphertext in zip(own, received.head.answer(row), strict=True):
                into[:] = np.frombuffer(to_bytes(ciphertext), np.uint8)
            progress.step()
    header = {"fl_sim.answers": json.dumps({"artifact": received.identity})}
    return write_atomically(out, save({"answers": torch.from_numpy(answers)}, header))


def decide(key: Path, answers: Path) -> NDArray[np.int64]:
    """Decrypt answers, and return what they decide and nothing else.

    Every answer counts, and is counted before anything is decided; where there would be more than
    the limit, none is decided.

    Args:
        key: the owner's key, with ``answered.json`` beside it.
        answers: file of encrypted answers.

    Returns:
        The class of each image ``[n]``, or zeros and ones ``[n, labels]`` of a multi-label task.

    Raises:
        FlSimError: if a file is missing or damaged, belongs to something else, holds anything that
            can be told to be no answer, or the limit would be exceeded.
    """
    known = read_owners_key(key)
    contents = _contents(answers, known)
    for _ in _ciphertexts(known, contents):
        pass  # all are looked at before any is counted
    _count(key.with_name(ANSWERED), len(contents), known.limit)
    decided = []
    for ciphertexts in _ciphertexts(known, contents):
        rows = np.stack([known.scheme.decrypted(ciphertext) for ciphertext in ciphertexts])
        logits = known.shape.answers(rows)
        decided.append(logits > 0 if known.task == MULTI_LABEL else logits.argmax())
    return np.asarray(decided, np.int64)


def answered(key: Path) -> int:
    """Return how many questions the owner of a key has answered.

    Raises:
        FlSimError: if the file that counts them is missing or damaged.
    """
    return _answered(key.with_name(ANSWERED))


def _contents(answers: Path, known: OwnersKey) -> NDArray[np.uint8]:
    """Return the bytes of answers, ``[n, ciphertexts, bytes]``."""
    what = f"answers {printable(str(answers))}"
    tensors, metadata = read_safetensors(answers, what)
    if header_of(metadata, what).get("artifact") != known.identity:
        raise FlSimError(
            f"The {what} are of another sealed model than the key; take the key that was written "
            f"with it."
        )
    found = tensors.get("answers")
    rows = known.shape.answer_rows
    if found is None or found.dtype != torch.uint8 or found.ndim != 3 or found.shape[1] != rows:
        raise FlSimError(
            f"The {what} hold no answers of this model, which has {rows} ciphertexts an image."
        )
    if len(found) == 0:
        raise FlSimError(f"The {what} are none.")
    weights = {known.scheme.ciphertext_lengths(level)[0] for level in known.shape.weight_levels}
    if found.shape[2] in weights:
        raise FlSimError(
            f"The {what} are as long as sealed weights, and answers are not; weights are not "
            f"decided on."
        )
    array: NDArray[np.uint8] = found.numpy()
    return array


def _ciphertexts(known: OwnersKey, contents: NDArray[np.uint8]) -> Iterator[list[object]]:
    """Yield the ciphertexts of each answer.

    Raises:
        FlSimError: naming the first that is no answer.
    """
    scheme, level = known.scheme, known.shape.answer_level
    scale = known.shape.answer_scale(scheme)
    for number, rows in enumerate(contents):
        found = []
        for row in rows:
            what = f"Answer {number}"
            own = scheme.ciphertext(row.tobytes(), level, scale, what, computed=True)
            if scheme.fingerprint(own, level) in known.sealed:
                raise FlSimError(
                    f"{what} is the sealed weights themselves, brought to the level of answers; "
                    f"weights are not decided on."
                )
            found.append(own)
        yield found


def _count(path: Path, questions: int, limit: int) -> None:
    """Count questions, durably, unless there would be too many.

    Raises:
        FlSimError: if there would be.
    """
    with locked(path.with_suffix(".lock")):
        before = _answered(path)
        if before + questions > limit:
            raise FlSimError(
                f"The owner answers {limit} questions, {before} are answered, and these are "
                f"{questions}; ask {max(0, limit - before)} or fewer."
            )
        content = json.dumps({"answered": before + questions}).encode()
        write_atomically(path, content, private=True)


def _answered(path: Path) -> int:
    name = printable(str(path))
    try:
        content = path.read_bytes()[:4096]
    except OSError:
        raise FlSimError(
            f"The file {name}, which counts answered questions, cannot be read; without it "
            f"nothing is decided."
        ) from None
    values = parse_json(content, f"The file {name}")
    if not isinstance(values, dict):
        raise FlSimError(f"The file {name} does not say how many questions were answered.")
    return parse(Answered, values, f"The file {name}").answered
