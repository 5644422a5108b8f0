"""CKKS by TenSEAL's binding of Microsoft SEAL: keys, ciphertexts, and both as bytes.

Bytes from outside are read by their length first: SEAL's own format, never compressed, so that
nothing takes more memory than its file is long, and every length and dimension is compared with
what the parameters make of it before SEAL sees the bytes. Keys and noise are drawn by SEAL, whose
generator is seeded from the operating system (``/dev/urandom``) anew for each key and ciphertext.
"""

import hashlib
import importlib.util
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_sim.errors import FlSimError
from fl_sim.sealing.parameters import CkksParameters

_MAGIC = 0xA15E
_HEADER = struct.Struct("<HBBBBHQ")
"""SEAL's header: magic, its own length, version, compression, nothing, length of all."""
_PLAIN = 0
_ZSTD = 2
_CIPHERTEXT = 73
"""Bytes of a ciphertext's fields before its coefficients: level, form, sizes, scale, correction."""
_BEFORE = 2 * _HEADER.size + _CIPHERTEXT + 8
"""Bytes of a ciphertext before its coefficients, with their own header and number."""
_SEED = _HEADER.size + 65
"""Bytes of a generator's seed: header, kind of generator, 512 bits."""
_COUNT = struct.Struct("<Q")
_KEYS = 40
"""Bytes of a key's fields before its polynomials: level and how many there are."""
_GENERATOR = 3
"""Rotations by one slot are this power of the ring's variable."""


def require_tenseal() -> None:
    """Refuse to go on without TenSEAL.

    Raises:
        FlSimError: how to install it.
    """
    if importlib.util.find_spec("tenseal") is None:
        raise FlSimError(
            "Sealed heads are encrypted by TenSEAL, which is not installed; install it with pip "
            "install tenseal, or fl-sim with its extra: fl-sim[he]."
        )


class Scheme:
    """CKKS with parameters of one's own; what everybody may know.

    Args:
        parameters: which.

    Raises:
        FlSimError: if TenSEAL is not installed, or SEAL refuses the parameters.
    """

    def __init__(self, parameters: CkksParameters) -> None:
        require_tenseal()
        import tenseal.sealapi as seal

        self.parameters = parameters
        self.seal = seal
        chosen = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        try:
            chosen.set_poly_modulus_degree(parameters.degree)
            primes = seal.CoeffModulus.Create(parameters.degree, list(parameters.moduli))
            chosen.set_coeff_modulus(primes)
            self.context = seal.SEALContext(chosen, True, seal.SEC_LEVEL_TYPE.TC128)
            usable = self.context.parameters_set()
        except (RuntimeError, ValueError, TypeError):
            usable = False
        if not usable:
            raise FlSimError(
                f"CKKS cannot have degree {parameters.degree} with moduli of "
                f"{', '.join(map(str, parameters.moduli))} bits; raise degree, or change moduli."
            )
        self.primes = [int(prime.value()) for prime in primes]
        self.encoder = seal.CKKSEncoder(self.context)
        self.evaluator = seal.Evaluator(self.context)

    @cached_property
    def levels(self) -> list[list[int]]:
        """What SEAL calls each level, from the highest, of all primes but the last, to one prime.

        The number of a level is how many multiplications are behind it.
        """
        found, data = [], self.context.first_context_data()
        while data is not None:
            found.append(list(data.parms_id()))
            data = data.next_context_data()
        return found

    @property
    def scale(self) -> float:
        """What fresh numbers are multiplied by."""
        return 2.0**self.parameters.scale_bits

    def plaintext(self, row: NDArray[np.float64], level: int, scale: float) -> Any:
        """Encode one row ``[slots]`` at a level."""
        found = self.seal.Plaintext()
        self.encoder.encode(row.tolist(), self.levels[level], scale, found)
        return found

    def ciphertext(
        self, content: bytes, level: int, scale: float, what: str, *, computed: bool
    ) -> Any:
        """Read a ciphertext of two polynomials.

        Args:
            content: as :func:`to_bytes` gives it.
            level: that it must have.
            scale: that it must have.
            what: it is, for messages, for example ``"The answer to image 3"``.
            computed: whether it must be computed, or else as it was encrypted.

        Raises:
            FlSimError: if it is cut, longer than such a ciphertext is, of another scheme, level or
                scale, or not a ciphertext at all.
        """
        self._require_ciphertext(content, level, what, computed)
        found = self._loaded(self.seal.Ciphertext(), content, what)
        if list(found.parms_id()) != self.levels[level] or found.size() != 2:
            raise FlSimError(
                f"{what} is of other parameters, or at another level, than it should be; make it "
                f"from the artifact that this key belongs to."
            )
        if not abs(found.scale / scale - 1) < 1e-9:
            raise FlSimError(
                f"{what} has the scale {found.scale:.6g}, and should have {scale:.6g}; make it "
                f"with fl-sim rhe predict."
            )
        return found

    def _require_ciphertext(self, content: bytes, level: int, what: str, computed: bool) -> None:
        length = self.ciphertext_lengths(level)[computed]
        if len(content) != length:
            raise FlSimError(
                f"{what} is no ciphertext at its level: it has {len(content)} bytes, and should "
                f"have {length}; it is cut, or of another artifact."
            )
        if not _is_ciphertext(content, 0, length, self.ciphertext_lengths(level)):
            raise FlSimError(f"{what} is damaged: its parts are not where they should be.")

    def ciphertext_lengths(self, level: int) -> tuple[int, int]:
        """Return how long a ciphertext of two polynomials is in bytes.

        Args:
            level: of the ciphertext; -1 for that of keys.

        Returns:
            Its length with a generator's seed for the second polynomial, as it is encrypted, and
            with both, as it is computed.
        """
        polynomial = 8 * self.parameters.degree * (len(self.primes) - 1 - level)
        return _BEFORE + polynomial + _SEED, _BEFORE + 2 * polynomial

    def _loaded(self, empty: Any, content: bytes, what: str) -> Any:
        try:
            with _in_memory(content) as path:
                empty.load(self.context, path)
        except (RuntimeError, ValueError, MemoryError, OverflowError):
            raise FlSimError(f"{what} is damaged, or of other parameters.") from None
        return empty

    def fingerprint(self, ciphertext: Any, level: int) -> str:
        """Return a hash of what a ciphertext would be at a lower level, if nothing is computed."""
        lower = self.seal.Ciphertext()
        self.evaluator.mod_switch_to(ciphertext, self.levels[level], lower)
        return hashlib.sha256(to_bytes(lower)[_BEFORE:]).hexdigest()

    def keys(self, content: bytes, kind: str, what: str) -> Any:
        """Read keys for rotations (``"galois"``) or products (``"relin"``).

        Raises:
            FlSimError: if they are damaged or of other parameters.
        """
        most, parts = self.parameters.degree, len(self.primes) - 1
        if not _are_keys(content, most, parts, self.ciphertext_lengths(-1)):
            raise FlSimError(f"{what} are damaged, or of other parameters.")
        empty = self.seal.GaloisKeys() if kind == "galois" else self.seal.RelinKeys()
        return self._loaded(empty, content, what)

    def element(self, slots: int) -> int:
        """Return the ring's automorphism that rotates a row to the left by so many slots."""
        return pow(_GENERATOR, slots, 2 * self.parameters.degree)


class SecretScheme(Scheme):
    """CKKS with the secret key: what its owner alone has.

    Args:
        parameters: which.
        secret: the key as :meth:`secret_bytes` gave it; a new one where not given.

    Raises:
        FlSimError: as for :class:`Scheme`, or if the key is damaged.
    """

    def __init__(self, parameters: CkksParameters, secret: bytes | None = None) -> None:
        super().__init__(parameters)
        if secret is None:
            self._generator = self.seal.KeyGenerator(self.context)
            self._secret = self._generator.secret_key()
        else:
            if not _is_plain(secret, 0, len(secret)):
                raise FlSimError("The secret key is damaged.")
            self._secret = self._loaded(self.seal.SecretKey(), secret, "The secret key")
            self._generator = self.seal.KeyGenerator(self.context, self._secret)
        self._encryptor = self.seal.Encryptor(self.context, self._secret)
        self._decryptor = self.seal.Decryptor(self.context, self._secret)

    def secret_bytes(self) -> bytes:
        """Return the secret key."""
        return to_bytes(self._secret)

    def encrypted(self, row: NDArray[np.float64], level: int) -> bytes:
        """Encrypt one row ``[slots]`` at a level, with the secret key and fresh randomness."""
        plain = self.plaintext(row, level, self.scale)
        return to_bytes(self._encryptor.encrypt_symmetric(plain))

    def decrypted(self, ciphertext: Any) -> NDArray[np.float64]:
        """Decrypt one row ``[slots]``. What comes out must not leave; its decision may."""
        plain = self.seal.Plaintext()
        self._decryptor.decrypt(ciphertext, plain)
        return np.asarray(self.encoder.decode_double(plain))

    def rotation_keys(self, rotations: Sequence[int]) -> bytes:
        """Return public keys for rotations to the left by these numbers of slots."""
        elements = [self.element(slots) for slots in rotations]
        return to_bytes(self._generator.create_galois_keys(elements))

    def product_keys(self) -> bytes:
        """Return public keys for products of ciphertexts."""
        return to_bytes(self._generator.create_relin_keys())


def to_bytes(thing: Any) -> bytes:
    """Return what SEAL saves of a key or ciphertext, uncompressed."""
    with _in_memory(b"") as path:
        thing.save(path)
        with open(path, "rb") as file:
            content = file.read()
    magic, size, major, minor, compression, _, _ = _HEADER.unpack_from(content)
    if compression == _PLAIN:
        return content
    assert magic == _MAGIC and compression == _ZSTD
    import pyarrow as pa

    packed = pa.BufferReader(content[size:])
    plain = pa.CompressedInputStream(packed, "zstd").read()
    length = size + len(plain)
    return _HEADER.pack(magic, size, major, minor, _PLAIN, 0, length) + bytes(plain)


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """Yield the path of a file that is in memory only, since SEAL reads and writes paths."""
    handle = os.memfd_create("sealed", os.MFD_CLOEXEC)
    try:
        with open(handle, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


def _is_plain(content: bytes, at: int, length: int) -> bool:
    """Whether an uncompressed part of SEAL's of just this length begins here."""
    if length < _HEADER.size or at + length > len(content):
        return False
    magic, size, _, _, compression, _, told = _HEADER.unpack_from(content, at)
    whole = size == _HEADER.size and told == length
    return bool(magic == _MAGIC and compression == _PLAIN and whole)


def _is_ciphertext(content: bytes, at: int, length: int, lengths: tuple[int, int]) -> bool:
    """Whether an uncompressed ciphertext of one of two lengths, seeded or not, begins here."""
    if length not in lengths or not _is_plain(content, at, length):
        return False
    inner, end = at + _HEADER.size + _CIPHERTEXT, at + length
    if length == lengths[0]:
        end -= _SEED
        if not _is_plain(content, end, _SEED):
            return False
    return _is_plain(content, inner, end - inner)


def _are_keys(content: bytes, most: int, parts: int, lengths: tuple[int, int]) -> bool:
    """Whether bytes are a table of public keys that is no larger than parameters allow.

    Args:
        content: of SEAL's, uncompressed: a level, how many keys, and of each how many parts.
        most: keys.
        parts: of a key.
        lengths: of a part, in bytes.
    """
    end = len(content)
    if not _is_plain(content, 0, end) or end < _HEADER.size + _KEYS:
        return False
    at = _HEADER.size + _KEYS
    (keys,) = _COUNT.unpack_from(content, at - _COUNT.size)
    for _ in range(min(keys, most + 1)):
        if at + _COUNT.size > end:
            return False
        (count,) = _COUNT.unpack_from(content, at)
        at += _COUNT.size
        for _ in range(min(count, parts + 1)):
            if at + _HEADER.size > end:
                return False
            length = _HEADER.unpack_from(content, at)[-1]
            if not _is_ciphertext(content, at, length, lengths):
                return False
            at += length
        if count > parts:
            return False
    return at == end and keys <= most
