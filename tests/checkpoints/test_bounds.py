"""No file asks for more memory than it justifies, and no text from it steers a terminal."""

import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fl_sim.checkpoints import Finding, read_checkpoint
from fl_sim.errors import FlSimError, legible
from tests.checkpoints.checkpoint_kit import edited, loud, saved, zip_by_hand

MEGABYTE = 1 << 20
_ALLOWED = 24 * MEGABYTE  # for what Python itself needs, whatever the file


def _asked(path: Path) -> int:
    """Bytes of memory that reading a file takes at its peak, beyond what the process has."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before = _resident("VmRSS")
    try:
        read = read_checkpoint(path)
    except FlSimError:
        read = None
    peak = _resident("VmHWM")
    del read
    return peak - before


def _resident(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{key}:")[2].split()[0]) * 1024


def _header(path: Path, text: bytes, data: bytes = b"") -> None:
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def _npy(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode()


def _stride_bomb(path: Path) -> None:
    saved(path, {"w": torch.ones(1).expand(500_000_000), "v": torch.ones(2)})


def _overlapping(path: Path) -> None:
    base = torch.randn(1000)
    saved(path, {f"w{i}": base.as_strided((900, 100), (1, 1)) for i in range(2000)})


def _many_views(path: Path) -> None:
    base = torch.randn(3000, 1000)
    saved(path, {f"w{i}": base[i:].t() for i in range(100)})


def _sparse(path: Path) -> None:
    saved(path, {"w": torch.sparse_coo_tensor([[1], [2]], [1.0], (30_000, 30_000)).coalesce()})


def _quantised(path: Path) -> None:
    saved(path, {"w": torch.quantize_per_tensor(torch.zeros(2, 3), 0.1, 0, torch.qint8)})
    edited(path, lambda content: content.replace(b"K\x02K\x03\x86", b"J\0\0\0\x10K\x03\x86", 1))


def _deflated(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02N." + bytes(300 * MEGABYTE))


def _deflated_with_lies(path: Path) -> None:
    packed = zlib.compress(bytes(300 * MEGABYTE), 9)[2:-4]
    content = bytearray(zip_by_hand(OrderedDict({"arr_0.npy": packed})))
    content[8:10] = content[-22 - 55 + 10 : -22 - 55 + 12] = struct.pack("<H", 8)
    path.write_bytes(content)


def _length_that_lies(path: Path) -> None:
    path.write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 30) + b"x" * 100)


def _npz(path: Path) -> None:
    path.write_bytes(zip_by_hand(OrderedDict({"arr_0.npy": _npy("(1000000, 1000)")})))


def _shared_array(path: Path) -> None:
    """Many arrays of the same bytes, which the pickle has once."""
    body = b"\x80\x04](" + b"B" + struct.pack("<I", 4 * MEGABYTE) + bytes(4 * MEGABYTE) + b"\x940"
    dtype = b"cnumpy\ndtype\n\x8c\x02u1\x89\x88\x87R\x940"
    one = b"cnumpy.core.numeric\n_frombuffer\n(h\0h\1\x8a\x04\0\0\x40\0\x85\x8c\1Ct" + b"R"
    path.write_bytes(body + dtype + one * 200 + b"e.")


def _instructions(path: Path) -> None:
    path.write_bytes(b"\x80\x02(" + b"}" * 30 * MEGABYTE + b"l.")


def _safetensors(path: Path) -> None:
    _header(path, b'{"w":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}')


def _long_header(path: Path) -> None:
    _header(path, b'{"a":' + b"[" * 10 * MEGABYTE)


BOMBS = (
    _stride_bomb,
    _overlapping,
    _many_views,
    _sparse,
    _quantised,
    _deflated,
    _deflated_with_lies,
    _npz,
    _shared_array,
    _length_that_lies,
    _instructions,
    _safetensors,
    _long_header,
)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_asks_for_no_more_than_its_size_justifies(
    tmp_path: Path, bomb: Callable[[Path], None]
) -> None:
    path = tmp_path / "bomb"
    bomb(path)
    asked = _asked(path)
    allowed = _ALLOWED + 3 * path.stat().st_size
    if bomb is _instructions:
        allowed += 130 * MEGABYTE  # half a million dictionaries
    assert asked < allowed, (asked / MEGABYTE, path.stat().st_size / MEGABYTE)


def test_an_ordinary_file_costs_its_tensors_once(tmp_path: Path) -> None:
    state = {f"{i}.weight": torch.randn(512, 1024) for i in range(16)}  # 32 MB
    saved(tmp_path / "a.pth", state)
    saved(tmp_path / "b.pth", state, _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "c.safetensors")
    np.savez(tmp_path / "d.npz", *[t.numpy() for t in state.values()])
    for name in ("a.pth", "b.pth", "c.safetensors", "d.npz"):
        asked = _asked(tmp_path / name)
        assert asked < 48 * MEGABYTE, (name, asked / MEGABYTE)


STEERS = "\x1b[31m\x07\x00\n\u202e\u200b\x9b\ud800\u2028"


def test_text_that_steers_is_escaped() -> None:
    text = legible(f"a{STEERS}b")
    assert text.isprintable() and text.startswith(r"a\x1b[31m\x07") and text.endswith("b")
    assert legible(text) == text
    assert legible("größe [1] 'x' 模型") == "größe [1] 'x' 模型"
    assert len(legible("s" * 1000, 50)) == 50 and legible("s" * 1000, 50).endswith("…")
    assert legible("s" * 1000, None) == "s" * 1000
    assert legible("\x1b" * 1000, 50).isprintable() and len(legible("\x1b" * 1000, 50)) == 50


def test_findings_are_printable() -> None:
    finding = Finding("file", "note", f"it is {STEERS}", STEERS)
    assert finding.what.isprintable() and str(finding.tensor).isprintable()
    assert len(Finding("file", "note", "s" * 10_000).what) <= 1000


def test_names_from_a_file_are_printable(tmp_path: Path) -> None:
    content = {
        "model": {STEERS: torch.ones(2), STEERS + "\x01": torch.ones(3), "w": torch.ones(4)},
        STEERS: "s",
        "ema" + STEERS: {"w": torch.ones(4), STEERS: torch.ones(2)},
    }
    path = saved(tmp_path / "a.pth", content)
    read = read_checkpoint(path)
    texts = [*read.state, *read.copies, *read.layouts, *(f.what for f in read.findings)]
    texts += [str(f.tensor) for f in read.findings]
    texts += [name for copy in read.copies.values() for name in copy]
    assert all(text.isprintable() for text in texts)
    assert len(read.state) == 3 and len(read.copies) == 1 and loud(read)


def test_two_names_that_look_alike_stay_two(tmp_path: Path) -> None:
    long = {"s" * 500 + str(i): torch.full((2,), float(i)) for i in range(3)}
    read = read_checkpoint(saved(tmp_path / "a.pth", long))
    assert [tensor[0].item() for tensor in read.state.values()] == [0, 1, 2]


def test_sentences_are_printable(tmp_path: Path) -> None:
    path = tmp_path / f"a{STEERS.replace(chr(0), '').replace(chr(0xD800), '')}.pth"
    path.write_bytes(b"nothing\xff\xff")
    with pytest.raises(FlSimError) as error:
        read_checkpoint(path)
    assert str(error.value).isprintable()


def test_nothing_takes_time_that_grows_with_its_square(tmp_path: Path) -> None:
    """Each of these once took hours, or gigabytes, for some megabytes."""
    weight = torch.ones(2)
    many = {f"k{i}": i for i in range(60_000)}
    alike = {"s" * 300 + f"{i:06d}": weight for i in range(6_000)}
    dotted = OrderedDict({"." * 100_000: weight})
    dotted._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    cases = {
        "siblings": {**many, "model": {"w": weight}},
        "alike": alike,
        "dots": dotted,
        "prefixes": {"module." * 30_000 + "w": weight},
        "wide": {"model": {"w": weight, **many}},
        "nested": {"a": [{"b": [{"w": weight}] * 50}] * 50},
    }
    for name, content in cases.items():
        assert read_checkpoint(saved(tmp_path / f"{name}.pth", content)).state, name
