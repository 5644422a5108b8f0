"""Files that are no checkpoints, named for what they are, with what to do."""

from fl_sim.checkpoints.source import Source

_LFS = (
    "is a pointer of Git LFS, not the file itself: run 'git lfs pull', or download the file from "
    "its page"
)
_HDF5 = (
    "is an HDF5 file (Keras or another program): load it there and save its weights as safetensors"
)
_TAR = (
    "is a tar archive: unpack it first, and audit the model in it (a torch file from before 2017: "
    "load and save it with torch 1.5)"
)
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", _LFS),
    (b"\x89HDF\r\n\x1a\n", _HDF5),
    (b"GGUF", "is a GGUF file of llama.cpp: convert it to safetensors"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it first ('gunzip')"),
    (b"BZh", "is compressed with bzip2: unpack it first ('bunzip2')"),
    (b"\xfd7zXZ\0", "is compressed with xz: unpack it first ('unxz')"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it first ('unzstd')"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it first"),
    (b"Rar!", "is a RAR archive: unpack it first"),
    (b"\x89PNG", "is an image (PNG), not a model"),
    (b"\xff\xd8\xff", "is an image (JPEG), not a model"),
    (b"GIF8", "is an image (GIF), not a model"),
    (b"%PDF", "is a PDF document, not a model"),
    (b"\x7fELF", "is a program, not a model"),
    (b"MZ", "is a program, not a model"),
    (b"PAR1", "is a Parquet table, not a model"),
    (b"\x93NUMPY", "is one NumPy array without names: save the weights as .npz or safetensors"),
    (b"\xef\xbb\xbf", "is a text file, not a model"),
)
_PARTS: tuple[tuple[slice, bytes, str], ...] = (
    (slice(257, 262), b"ustar", _TAR),
    (slice(128, 132), b"DICM", "is a DICOM image, not a model"),
    (slice(4, 8), b"TFL3", "is a TensorFlow Lite file: export its weights as safetensors"),
    (slice(4, 8), b"ftyp", "is a film or image file, not a model"),
)


def foreign(source: Source) -> str | None:
    """Return what a file is and what to do, ``None`` where it may be a checkpoint.

    The words continue "The checkpoint ... ".
    """
    head = source.head(4096)
    if not head:
        return "is empty: it was not downloaded, or not written to the end"
    for start, words in _STARTS:
        if head.startswith(start):
            return words
    for where, part, words in _PARTS:
        if head[where] == part:
            return words
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return "is a web page, probably an error or a login: download the file itself"
    return _binary(head, text)


def _binary(head: bytes, text: bytes) -> str | None:
    if head[:1] == b"\x08" and (b"onnx" in head or b"pytorch" in head[:64] or _onnx(head)):
        return (
            "is an ONNX model: export the network's state dictionary from the program that made it"
        )
    if (head[:1] == b"\x08" and b"saved_model" in head) or b"\x12\x05serve" in head[:64]:
        return "is a TensorFlow SavedModel: load it there and save its weights as safetensors"
    if text.startswith((b"{", b"[")) and _printable(head):
        return "is JSON text, not a model; an index of shards is called '....index.json'"
    if not any(head):
        return "has nothing but zeros: the disk was full, or the download broke off"
    return "is a text file, not a model" if _printable(head) else None


def _onnx(head: bytes) -> bool:
    """An ONNX file begins with its version (field 1, below 20), then its producer (field 2)."""
    return len(head) > 4 and 2 <= head[1] < 20 and head[2] == 0x12 and head[4:5].isalpha()


def _printable(head: bytes) -> bool:
    try:
        text = head[:-3].decode("utf-8") if len(head) > 64 else head.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\r\n\t" for character in text)
