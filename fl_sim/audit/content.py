"""Content that nobody encrypted: the signatures of files in entries and in low bits."""

import numpy as np
import torch
from numpy.typing import NDArray

from fl_sim.audit.subject import Subject
from fl_sim.checkpoints import Finding, Level

SIGNATURES = {
    "PNG": b"\x89PNG\r\n\x1a\n",
    "JPEG": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    "zip": b"PK\x03\x04\x14\x00\x00\x00",
    "bzip2": b"BZh91AY&SY",
    "xz": b"\xfd7zXZ\x00\x00",
    "7z": b"7z\xbc\xaf\x27\x1c\x00",
    "NumPy": b"\x93NUMPY\x01\x00",
    "PDF": b"%PDF-1.",
    "JPEG 2000": b"\x00\x00\x00\x0cjP  \r\n",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "safetensors header": b'{"__metadata__"',
}
"""Seven bytes or more each: in 100 MB of random bytes one occurs by chance once in ten million
files."""

DEPTHS = (1, 2, 4, 8, 16)
"""Low bits an element for which a stream of bytes is put together, in the order of the elements."""

_SAMPLE = 1 << 16
_LOW_ENTROPY = 7.5  # bits a byte; random bytes of a sample have 7.99


def check_content(subject: Subject) -> list[Finding]:
    """Look for the signatures of files, and for entries of bytes with little entropy.

    A payload that is encrypted, or compressed without a header, has none.
    """
    findings = []
    for name, tensor in subject.state.items():
        for where, content in _streams(tensor):
            found = {what: content.count(magic) for what, magic in SIGNATURES.items()}
            found = {what: count for what, count in found.items() if count}
            if found:
                words = ", ".join(f"{count} {what}" for what, count in found.items())
                findings.append(
                    Finding("content", "carries", f"Signatures of files in {where}: {words}.", name)
                )
        known = name in subject.own or tensor.is_floating_point()
        if not known and tensor.numel() >= 256:
            findings.append(_whole(name, tensor))
    return findings


def low_bits(words: NDArray[np.uint32], depth: int) -> bytes:
    """Return the low ``depth`` bits of each word as one stream of bytes, lowest bit first."""
    if depth == 16:
        return words.astype("<u2").tobytes()
    if depth == 8:
        return words.astype(np.uint8).tobytes()
    low = words.astype(np.uint8)[:, None]
    bits = np.unpackbits(low, axis=1, count=depth, bitorder="little")
    return np.packbits(bits.ravel(), bitorder="little").tobytes()


def entropy(content: NDArray[np.uint8]) -> float:
    """Return the Shannon entropy of bytes, in bits a byte."""
    counts = np.bincount(content, minlength=256)
    shares = counts[counts > 0] / max(1, len(content))
    return float(-(shares * np.log2(shares)).sum())


def _streams(tensor: torch.Tensor) -> list[tuple[str, bytes]]:
    flat = tensor.contiguous().view(-1)
    if tensor.dtype == torch.float32:
        words = flat.numpy().view(np.uint32)
        low = [(f"its lowest {depth} bits", low_bits(words, depth)) for depth in DEPTHS]
        return [("its bytes", words.tobytes()), *low]
    if flat.numel() == 0:
        return []
    return [("its bytes", flat.view(torch.uint8).numpy().tobytes())]


def _whole(name: str, tensor: torch.Tensor) -> Finding:
    """Say what a large entry of integers is: networks here have no such thing."""
    content = tensor.contiguous().view(-1).view(torch.uint8).numpy()[:_SAMPLE]
    bits = entropy(content)
    kind = "text, plain pixels or code" if bits < _LOW_ENTROPY else "compressed or encrypted"
    what = f"An entry of {tensor.numel()} integers, whose bytes look like {kind} content."
    level: Level = "suspicious" if bits >= _LOW_ENTROPY or tensor.element_size() == 1 else "note"
    return Finding("content", level, what, name, {"entropy, bits a byte": bits})
