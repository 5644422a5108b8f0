"""Small model files, what is found in them, and archives taken apart and put together again."""

import io
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fl_sim.checkpoints import Checkpoint, read_checkpoint
from fl_sim.errors import FlSimError

State = dict[str, torch.Tensor]


def network() -> nn.Module:
    """A network with convolutions, batch norm and a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    )


def weights() -> State:
    """Its state dictionary."""
    return network().state_dict()


def saved(path: Path, content: Any, **options: Any) -> Path:
    """Save as torch does."""
    torch.save(content, path, **options)
    return path


def loud(checkpoint: Checkpoint) -> list[str]:
    """What is found above a note."""
    return [f.what for f in checkpoint.findings if f.level != "note"]


def refusal(path: Path) -> str:
    """Assert that a file is refused; return the sentence without the path, which has words too."""
    with pytest.raises(FlSimError) as error:
        read_checkpoint(path)
    text = str(error.value)
    assert text.isprintable()
    return text.replace(str(path), "").replace(str(path.parent), "")


def found(path: Path, size: int, level: str = "carries") -> str:
    """Assert that a file's findings tell of so many bytes at a level; return the words."""
    findings = read_checkpoint(path).findings
    words = [f.what for f in findings if f.level == level and f.evidence.get("bytes") == size]
    assert words, [(f.level, f.what, f.evidence) for f in findings]
    return words[0]


def same(left: State, right: State) -> bool:
    """Whether two states are equal bit for bit, names and order included."""
    return list(left) == list(right) and all(
        left[n].dtype == right[n].dtype and torch.equal(left[n], right[n]) for n in left
    )


def records(content: bytes) -> "OrderedDict[str, bytes]":
    """The files of an archive by name."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return OrderedDict((i.filename, archive.read(i)) for i in archive.infolist())


def archive(files: "OrderedDict[str, bytes]", **options: Any) -> bytes:
    """An archive of files, as Python writes it, all times alike."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **options) as target:
        for name, content in files.items():
            target.writestr(zipfile.ZipInfo(name), content, target.compression)
    return out.getvalue()


def edited(path: Path, edit: Callable[[bytes], bytes], name: str = "data.pkl") -> Path:
    """Change one record of a saved file and put the archive together with right checksums."""
    files = records(path.read_bytes())
    inner = next(key for key in files if key.endswith("/" + name))
    files[inner] = edit(files[inner])
    path.write_bytes(archive(files))
    return path


def zip_record(
    name: bytes,
    content: bytes,
    place: int,
    extra: bytes = b"",
    note: bytes = b"",
    stated: int | None = None,
) -> tuple[bytes, bytes]:
    """A record and its line in the directory, written by hand."""
    crc = zlib.crc32(content) if stated is None else stated
    sizes = struct.pack("<3I", crc, len(content), len(content))
    local = b"PK\3\4" + struct.pack("<5H", 0, 0, 0, 0, 0) + sizes
    local += struct.pack("<2H", len(name), len(extra)) + name + extra + content
    line = b"PK\1\2" + struct.pack("<6H", 0, 0, 0, 0, 0, 0) + sizes
    line += struct.pack("<5H2I", len(name), 0, len(note), 0, 0, 0, place) + name + note
    return local, line


def zip_by_hand(
    files: "OrderedDict[str, bytes]",
    gap: bytes = b"",
    extra: bytes = b"",
    note: bytes = b"",
    comment: bytes = b"",
) -> bytes:
    """An archive with bytes where no library puts them: between, in fields, in comments."""
    body, lines = b"", b""
    for index, (name, content) in enumerate(files.items()):
        local, line = zip_record(
            name.encode(),
            content,
            len(body),
            extra if index == 1 else b"",
            note if index == 1 else b"",
        )
        body, lines = body + local + (gap if index == 1 else b""), lines + line
    end = struct.pack("<4H2IH", 0, 0, len(files), len(files), len(lines), len(body), len(comment))
    return body + lines + b"PK\5\6" + end + comment
