"""Every byte of a file is shown by a tensor, or is structure that was checked, or is a finding."""

import io
import pickle
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fl_sim.checkpoints import read_checkpoint
from fl_sim.checkpoints.pickles import read_pickle
from fl_sim.checkpoints.source import Source
from fl_sim.errors import FlSimError
from tests.checkpoints.checkpoint_kit import (
    archive,
    edited,
    found,
    loud,
    records,
    refusal,
    same,
    saved,
    weights,
    zip_by_hand,
)

N = 777
SECRET = bytes(range(256)) * 3 + b"end of it"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return saved(tmp_path / "a.pth", weights())


def test_the_secret_has_its_length() -> None:
    assert len(SECRET) == N


def test_bytes_around_an_archive(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content + SECRET)
    assert f"byte {len(content)}" in found(path, N)
    assert len(loud(read_checkpoint(path))) == 1
    path.write_bytes(content + SECRET * 200)
    found(path, 200 * N)
    path.write_bytes(SECRET + content)
    assert "before" in found(path, N)
    with zipfile.ZipFile(path, "w") as target:
        for name, inner in records(content).items():
            target.writestr(zipfile.ZipInfo(name), inner)
        target.comment = SECRET
    found(path, N)


def test_bytes_inside_an_archives_structure(path: Path) -> None:
    files = records(path.read_bytes())
    path.write_bytes(zip_by_hand(files))
    assert loud(read_checkpoint(path)) == []
    path.write_bytes(zip_by_hand(files, gap=SECRET))
    assert "between" in found(path, N)
    path.write_bytes(zip_by_hand(files, extra=b"UT" + struct.pack("<H", N - 4) + SECRET[4:]))
    assert "header" in found(path, N)
    path.write_bytes(zip_by_hand(files, extra=b"FB" + struct.pack("<H", N - 4) + SECRET[4:]))
    found(path, N)
    path.write_bytes(zip_by_hand(files, extra=b"FB" + struct.pack("<H", N - 4) + b"Z" * (N - 4)))
    assert loud(read_checkpoint(path)) == []  # as torch pads
    path.write_bytes(zip_by_hand(files, note=SECRET))
    assert "directory" in found(path, N)
    path.write_bytes(zip_by_hand(files, comment=SECRET))
    found(path, N)


def test_records_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    inner = np.zeros(100).tobytes()
    content = bytearray(zip_by_hand(OrderedDict({"a.npy": inner, "b.npy": inner})))
    line = content.rindex(b"PK\1\2")
    struct.pack_into("<I", content, line + 42, 0)  # the second where the first is
    content[line + 46 : line + 51] = b"a.npy"
    (tmp_path / "a.npz").write_bytes(content)
    assert re.search("overlap", refusal(tmp_path / "a.npz"))


def test_records_that_no_tensor_uses(path: Path) -> None:
    content = path.read_bytes()
    for name in ("a/data/9999", "a/notes.bin", "elsewhere/data/0", "a/.data/more"):
        path.write_bytes(content)
        with zipfile.ZipFile(path, "a") as target:
            target.writestr(name, SECRET)
        found(path, N)
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as target:
        target.writestr("a/version", SECRET)
        target.writestr("a/version", b"3\n")
    found(path, N)


def test_fixed_records_have_fixed_content(path: Path) -> None:
    for name in ("version", "byteorder", ".format_version", ".storage_alignment"):
        edited(path, lambda _: SECRET, name)
        found(path, N)
        edited(path, lambda _: b"3", name)
    saved(path, weights())
    digits = edited(path, lambda content: b"7" * len(content), ".data/serialization_id")
    assert "identifier" in found(digits, 40, "suspicious")


def test_a_checksum_that_is_wrong(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = content.index(weights()["0.weight"].numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    words = loud(read_checkpoint(path))
    assert len(words) == 1 and "checksum" in words[0]


def test_packed_records_hide_nothing(path: Path) -> None:
    files = records(path.read_bytes())
    path.write_bytes(archive(files, compression=zipfile.ZIP_DEFLATED))
    assert same(read_checkpoint(path).state, dict(weights()))
    assert loud(read_checkpoint(path)) == []
    longer = OrderedDict(files)
    blocks = b"".join(b"\x00\x00\x00\xff\xff" for _ in range(400))  # empty blocks of deflate
    path.write_bytes(_with_packed(longer, "a/version", blocks + b"\x01\x02\x00\xfd\xff3\n"))
    assert any("packed record" in words for words in loud(read_checkpoint(path)))
    path.write_bytes(_with_packed(longer, "a/version", b"\x01\x02\x00\xfd\xff3\n" + SECRET))
    found(path, N)


def _with_packed(files: "OrderedDict[str, bytes]", name: str, packed: bytes) -> bytes:
    """Put a stream of deflate's into an archive as it stands."""
    plain = zip_by_hand(files)
    content = files[name]
    sizes = struct.pack("<3I", zlib.crc32(content), len(content), len(content))
    begin = plain.index(name.encode()) - 30
    end = begin + 30 + len(name) + len(content)
    local = bytearray(plain[begin : begin + 30 + len(name)])
    local[8:10] = struct.pack("<H", 8)
    local[18:22] = struct.pack("<I", len(packed))
    body = plain[:begin] + bytes(local) + packed + plain[end:]
    grown = len(packed) - len(content)
    line = body.rindex(name.encode()) - 46
    lines = bytearray(body)
    assert lines[line + 16 : line + 28] == sizes
    lines[line + 10 : line + 12] = struct.pack("<H", 8)
    lines[line + 20 : line + 24] = struct.pack("<I", len(packed))
    place = lines.index(b"PK\1\2")
    while lines[place : place + 4] == b"PK\1\2":
        (offset,) = struct.unpack_from("<I", lines, place + 42)
        if offset > begin:
            struct.pack_into("<I", lines, place + 42, offset + grown)
        place += 46 + sum(struct.unpack_from("<3H", lines, place + 28))
    (offset,) = struct.unpack_from("<I", lines, place + 16)
    struct.pack_into("<I", lines, place + 16, offset + grown)
    return bytes(lines)


@pytest.mark.parametrize("new", [True, False])
def test_storage_that_views_do_not_show(tmp_path: Path, new: bool) -> None:
    long = torch.randn(2000)
    cases = {
        "slice": ({"w": long[:10]}, 7960),
        "tied": ({"w": long[:1000], "v": long[:1000].view(10, 100)}, 4000),
        "expanded": ({"w": long[:1].expand(50)}, 7996),
        "two": ({"w": long[:500], "v": long[1500:]}, 4000),
        "strided": ({"w": long[::2]}, 4000),
        "rows": ({"w": torch.randn(20).as_strided((3, 2), (1, 10))}, 56),
        "to the last": ({"w": torch.randn(2001)[::2]}, 4000),
        "crossing": ({"w": long.as_strided((3, 4), (1, 2)), "v": long[100:]}, 4 * 91),
    }
    for name, (state, size) in cases.items():
        path = tmp_path / f"{name}.pth"
        found(saved(path, state, _use_new_zipfile_serialization=new), size)
    ordinary: dict[str, Any] = {"w": long[:1000], "v": long[1000:], "t": long.view(20, 100).t()}
    assert loud(read_checkpoint(saved(tmp_path / "all.pth", ordinary))) == []


def test_bytes_after_and_in_a_pickle(path: Path) -> None:
    edited(path, lambda content: content + SECRET)
    assert "after the end of the pickle" in found(path, N)
    text = b"X" + struct.pack("<I", N) + b"s" * N
    inserts = {
        "popped": text + b"0",
        "marked": b"(" + text + b"1",
        "beneath": text,  # left on the stack
    }
    for what, insert in inserts.items():
        saved(path, weights())
        edited(path, lambda content, insert=insert: content[:2] + insert + content[2:])  # type: ignore[misc]
        words = [f for f in read_checkpoint(path).findings if f.level == "carries"]
        assert words and words[0].evidence["bytes"] >= N, what


def _spare(content: bytes) -> int:
    return sum(read_pickle(Source(io.BytesIO(content), len(content)).stream()).spare.values())


def test_numbers_of_the_memo_and_padded_numbers() -> None:
    for value in ({"a": [1, 2.5, None, True, b"x", "é", 2**70, (1,), {3}]}, [["x"] * 2] * 2):
        for protocol in range(6):
            assert _spare(pickle.dumps(value, protocol)) == 0, (value, protocol)
    assert _spare(b"]q\x41.") > 0  # a number of the memo that no pickler gives
    assert _spare(b"I" + b"0" * 50 + b"7\n.") >= 49
    assert _spare(b"\x8b" + struct.pack("<i", 100) + b"\1" + b"\0" * 99 + b".") >= 90
    assert _spare(b"\x95" + b"\x00SECRET\x00" + b"N.") == 8  # a frame's length
    assert _spare(b"N\x80\x02.") == 2


def test_what_hangs_on_a_state_dictionary(tmp_path: Path) -> None:
    state = OrderedDict(weights())
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    assert loud(read_checkpoint(saved(tmp_path / "a.pth", state))) == []
    state.extra = SECRET  # type: ignore[attr-defined]
    (words,) = loud(read_checkpoint(saved(tmp_path / "b.pth", state)))
    assert "attributes" in words
    del state.extra  # type: ignore[attr-defined]
    state._metadata = OrderedDict({"": {"version": SECRET}})  # type: ignore[attr-defined]
    assert loud(read_checkpoint(saved(tmp_path / "c.pth", state)))
    state._metadata = OrderedDict({"x" * N: {"version": 1}})  # type: ignore[attr-defined]
    assert loud(read_checkpoint(saved(tmp_path / "d.pth", state)))
    state._metadata = OrderedDict({"": {"version": 2**6000}})  # type: ignore[attr-defined]
    assert loud(read_checkpoint(saved(tmp_path / "e.pth", state)))


def test_what_hangs_on_a_tensor(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    assert loud(read_checkpoint(saved(tmp_path / "a.pth", {"w": parameter}))) == []
    parameter.note = SECRET  # type: ignore[attr-defined]
    (words,) = loud(read_checkpoint(saved(tmp_path / "b.pth", {"w": parameter})))
    assert "part of no tensor" in words


def test_what_a_tensors_description_says_more(tmp_path: Path) -> None:
    text = b"X" + struct.pack("<I", N) + b"s" * N

    def described(old: bytes, new: bytes, state: Any) -> list[str]:
        def change(content: bytes) -> bytes:
            assert old in content
            return content.replace(old, new, 1)

        words = loud(read_checkpoint(edited(saved(tmp_path / "a.pth", state), change)))
        return [text for text in words if "part of no tensor" in text]

    real, complex_ = {"w": torch.ones(2)}, {"w": torch.ones(2, dtype=torch.complex64).conj()}
    assert described(b"cpu", b"cpu", real) == described(b"conj", b"conj", complex_) == []
    assert described(b"X\3\0\0\0cpu", text, real)  # where the device is said
    assert described(b"\x89c", text + b"c", real)  # where the gradient is said
    assert described(b"X\4\0\0\0conj", text, complex_)
    assert described(b")R", b"(" + text + b"tR", real)  # in the hooks' dictionary


def test_what_stands_beside_the_weights(tmp_path: Path) -> None:
    for secret in (
        SECRET * 10,
        list(SECRET * 10),
        "s" * 7770,
        {"a": [{"b": SECRET * 10}]},
        torch.zeros(7770, dtype=torch.uint8),
        2**62160,
        np.zeros(7770, np.uint8),
        torch.zeros(7770, dtype=torch.uint8).untyped_storage(),
    ):
        read = read_checkpoint(saved(tmp_path / "a.pth", {"model": weights(), "x": secret}))
        sizes = [f.evidence["bytes"] for f in read.findings if f.level == "suspicious"]
        assert sizes and max(sizes) >= 7770, type(secret)
        assert any("'x'" in f.what for f in read.findings)
    many = {f"k{i}": f"{i:070d}" for i in range(100)}
    assert loud(read_checkpoint(saved(tmp_path / "b.pth", {"model": weights(), **many})))
    few = {"epoch": 3, "lr": 0.1, "note": "s" * 50}
    read = read_checkpoint(saved(tmp_path / "c.pth", {"model": weights(), **few}))
    assert loud(read) == [] and any("'note'" in f.what for f in read.findings)


def test_doubled_and_endless_names(path: Path, tmp_path: Path) -> None:
    state = {"w": torch.zeros(4), "v": torch.ones(3)}
    saved(path, state)
    edited(path, lambda content: content.replace(b"X\1\0\0\0v", b"X\1\0\0\0w"))
    assert "twice" in found(path, 16)
    assert read_checkpoint(path).state["w"].tolist() == [1, 1, 1]
    found(saved(tmp_path / "b.pth", {"s" * 5000: torch.zeros(2)}), 5000)
    assert len(next(iter(read_checkpoint(tmp_path / "b.pth").state))) <= 200


def test_truth_values_are_0_and_1(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"mask": torch.ones(30, dtype=torch.bool)})
    edited(path, lambda content: bytes(range(30)), "data/0")
    found(path, 28)


def test_bytes_after_other_formats(tmp_path: Path) -> None:
    old = saved(tmp_path / "old.pth", weights(), _use_new_zipfile_serialization=False)
    plain = tmp_path / "a.pkl"
    plain.write_bytes(pickle.dumps({n: t.numpy() for n, t in weights().items()}))
    save_file(weights(), tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", *[t.numpy() for t in weights().values()])
    for path in (old, plain, tmp_path / "a.safetensors", tmp_path / "a.npz"):
        size = path.stat().st_size
        path.write_bytes(path.read_bytes() + SECRET)
        assert f"byte {size}" in found(path, N)


def test_bytes_inside_an_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, *[t.numpy() for t in weights().values()])
    files = records(path.read_bytes())
    path.write_bytes(archive(OrderedDict({**files, "arr_0.npy": files["arr_0.npy"] + SECRET})))
    found(path, N)
    path.write_bytes(archive(OrderedDict({**files, "notes.txt": SECRET})))
    found(path, N)
    first = files["arr_0.npy"]
    padded = first[:8] + struct.pack("<H", 118 + N) + first[10:127] + b" " * N + first[127:]
    path.write_bytes(archive(OrderedDict({**files, "arr_0.npy": padded})))
    assert re.search("padded", refusal(path))


def test_the_old_formats_head_is_fixed(tmp_path: Path) -> None:
    path = saved(tmp_path / "old.pth", weights(), _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"protocol_version", b"protocol_versioM"))
    assert any("head" in words for words in loud(read_checkpoint(path)))


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors", "npz"])
def test_a_changed_byte_never_goes_unseen(tmp_path: Path, kind: str) -> None:
    state = {"w": torch.randn(2, 3), "n": torch.tensor(5)}
    path = tmp_path / "a.bin"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "npz":
        with open(path, "wb") as file:
            np.savez(file, *[t.numpy() for t in state.values()])
    else:
        saved(path, state, _use_new_zipfile_serialization=kind == "zip")
    content, before, unseen = path.read_bytes(), read_checkpoint(path), []
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 0xFF
        path.write_bytes(changed)
        try:
            after = read_checkpoint(path)
        except FlSimError:
            continue
        if same(before.state, after.state) and before.findings == after.findings:
            unseen.append(place)
    assert unseen == []
