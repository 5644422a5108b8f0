"""Sealed heads against plain products of matrices, parameters, and hostile ciphertexts."""

import struct

import numpy as np
import pytest

from fl_sim.errors import FlSimError
from fl_sim.sealing.ckks import Scheme, SecretScheme, to_bytes
from fl_sim.sealing.forms import SealedHead, Shape
from fl_sim.sealing.parameters import (
    ONE_LAYER,
    STANDARD,
    TWO_LAYERS,
    CkksParameters,
    require_secure,
    security_bits,
)
from tests.sealing.seal_kit import SMALL, Kept, plain, shape_of

pytest.importorskip("tenseal")

SHAPES = [
    shape_of(13, 3),
    shape_of(700, 7),  # three ciphertexts
    shape_of(1, 1),
    shape_of(33, 5, form="sum"),
    shape_of(1100, 3, form="sum"),  # three ciphertexts, one answer
    shape_of(9, 2, form="dot"),
    shape_of(21, 3, 30),
]


@pytest.fixture(scope="module")
def kept() -> Kept:
    return Kept(shape_of(13, 3))


@pytest.mark.parametrize(
    "shape", SHAPES, ids=lambda s: f"{s.features}x{s.outputs}-{s.hidden}-{s.form}"
)
def test_a_sealed_head_answers_as_the_clear_one(shape: Shape) -> None:
    kept = Kept(shape)
    assert len(kept.weights) == len(shape.weight_levels)
    generator = np.random.default_rng(1)
    for features in (generator.normal(size=shape.features), np.zeros(shape.features)):
        answer = kept.answer(features)
        assert len(answer) == shape.answer_rows
        bound = 1e-5 if shape.hidden else 5e-3
        np.testing.assert_allclose(kept.read(answer), plain(kept.layers, features), atol=bound)


def test_default_parameters_are_precise() -> None:
    kept = Kept(Shape(13, 3))
    features = np.random.default_rng(1).normal(size=13)
    wanted = plain(kept.layers, features)
    np.testing.assert_allclose(kept.read(kept.answer(features)), wanted, atol=1e-6)


def test_the_same_head_is_never_encrypted_alike(kept: Kept) -> None:
    row = np.zeros(kept.shape.parameters.slots)
    twice = [kept.owner.encrypted(row, 0) for _ in range(2)]
    words = [set(np.frombuffer(content, "<u8", count=4096, offset=113)) for content in twice]
    assert len(words[0] & words[1]) < 10
    assert SecretScheme(SMALL).secret_bytes() != kept.owner.secret_bytes()


def test_another_key_reads_nothing(kept: Kept) -> None:
    features = np.random.default_rng(1).normal(size=13)
    answer = kept.answer(features)
    other = SecretScheme(SMALL)
    level, scale = kept.shape.answer_level, kept.shape.answer_scale(other)
    row = other.decrypted(other.ciphertext(answer[0], level, scale, "It", computed=True))
    wanted = plain(kept.layers, features)
    assert np.abs(kept.shape.answers(row[None]) - wanted).min() > 10


@pytest.mark.parametrize("degree", STANDARD)
def test_security_is_by_the_table(degree: int) -> None:
    for security, bits in STANDARD[degree].items():
        assert security_bits(CkksParameters(degree, (bits,), 1)) == security
        assert security_bits(CkksParameters(degree, (bits + 1,), 1)) < security
    assert security_bits(ONE_LAYER) == security_bits(TWO_LAYERS) == 128


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (CkksParameters(4096, (40, 30, 40), 29), "below 128 bits of security"),
        (CkksParameters(5000, (40, 30, 40), 29), "not in the homomorphic encryption standard"),
        (CkksParameters(8192, (60, 40, 40, 60), 40), "has 4 primes, and this form takes 3"),
        (CkksParameters(8192, (40, 40, 60), 40), "lower scale_bits"),
        (CkksParameters(8192, (61, 40, 60), 40), "primes of 20 to 60 bits"),
    ],
)
def test_weak_or_impossible_parameters_are_refused(parameters: CkksParameters, words: str) -> None:
    with pytest.raises(FlSimError, match=words):
        require_secure(parameters, 1)
    with pytest.raises(FlSimError, match=words):
        Shape(2, 2, parameters=parameters)


def test_two_layers_have_one_form() -> None:
    with pytest.raises(FlSimError, match='no form "dot"'):
        Shape(2, 2, 3, "dot", TWO_LAYERS)


def _damaged(content: bytes, kind: str) -> bytes:
    if kind == "cut":
        return content[:-100]
    if kind == "longer":
        return content + bytes(100)
    if kind == "nothing":
        return b""
    if kind == "noise":
        return np.random.default_rng(0).bytes(len(content))
    if kind == "compressed":  # claims that what follows is to be inflated
        return content[:5] + b"\x02" + content[6:]
    if kind == "compressed inside":
        return content[: 16 + 73 + 5] + b"\x02" + content[16 + 73 + 6 :]
    if kind == "huge":  # claims more coefficients than there are bytes
        return content[:113] + struct.pack("<Q", 1 << 40) + content[121:]
    if kind == "many":  # claims a thousand polynomials
        return content[:49] + struct.pack("<Q", 1000) + content[57:]
    at = 113 + 8 * 100
    return content[:at] + b"\xff" * 8 + content[at + 8 :]  # no residue of the prime


KINDS = (
    "cut",
    "longer",
    "nothing",
    "noise",
    "compressed",
    "compressed inside",
    "huge",
    "many",
    "residue",
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_ciphertext_is_one_sentence(kept: Kept, kind: str) -> None:
    weights = [_damaged(kept.weights[0], kind)]
    with pytest.raises(FlSimError, match=r"^Ciphertext 0 of the head [^\n]*\.$"):
        SealedHead(kept.shape, Scheme(SMALL), weights, {})
    answer = [_damaged(part, kind) for part in kept.answer(np.ones(13))]
    with pytest.raises(FlSimError, match=r"^It [^\n]*\.$"):
        kept.read(answer)


def test_hostile_keys_are_one_sentence() -> None:
    kept = Kept(shape_of(5, 2, form="sum"))
    whole = kept.keys["galois"]
    huge = whole[:48] + struct.pack("<Q", 1 << 50) + whole[56:]
    for content in (whole[:-9], whole + b"x", b"", huge, whole[:5] + b"\x02" + whole[6:]):
        with pytest.raises(FlSimError, match=r"^The context's galois keys are damaged[^\n]*\.$"):
            SealedHead(kept.shape, Scheme(SMALL), kept.weights, {"galois": content})
    with pytest.raises(FlSimError, match="its form takes"):
        SealedHead(kept.shape, Scheme(SMALL), kept.weights, {})


def test_ciphertexts_of_other_parameters_or_scale_are_refused(kept: Kept) -> None:
    other = SecretScheme(CkksParameters(4096, (40, 28, 41), 28))
    content = other.encrypted(np.zeros(2048), 0)
    with pytest.raises(FlSimError, match=r"damaged, or of other parameters|is of other parameters"):
        SealedHead(kept.shape, Scheme(SMALL), [content], {})
    scheme = kept.owner
    content = kept.weights[0]
    fine = scheme.ciphertext(content, 0, scheme.scale, "It", computed=False)
    at = content.index(struct.pack("<d", fine.scale))
    content = content[:at] + struct.pack("<d", 2 * fine.scale) + content[at + 8 :]
    with pytest.raises(FlSimError, match="has the scale"):
        scheme.ciphertext(content, 0, scheme.scale, "It", computed=False)
    assert to_bytes(fine)
