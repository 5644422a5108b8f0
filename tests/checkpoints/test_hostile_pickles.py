"""Pickles that would run something when loaded run nothing here, and are named."""

import io
import os
import pickle
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fl_sim.checkpoints import read_checkpoint
from fl_sim.checkpoints.nodes import walk
from fl_sim.checkpoints.pickles import read_pickle
from fl_sim.checkpoints.source import Source
from fl_sim.errors import FlSimError
from tests.checkpoints.checkpoint_kit import edited, loud, refusal, saved, weights


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _call(name: str, argument: bytes) -> bytes:
    return b"c" + name.replace(" ", "\n").encode() + b"\n" + argument + b"\x85R"


class _Runs:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.pair = (function, arguments)

    def __reduce__(self) -> Any:
        return self.pair


def _payloads(mark: Path) -> dict[str, bytes]:
    """Pieces of pickle that leave one object and would touch a file, by their kind."""
    shell, python = f"touch {mark}", f"open({str(mark)!r}, 'w')"
    run, called, state = _text(shell), _text("__call__"), _text("__setstate__")
    words = ("storage", "0", "cpu")
    return {
        "system": _call("os system", _text(shell)),
        "posix": _call("posix system", _text(shell)),
        "subprocess": _call("subprocess getoutput", _text(shell)),
        "exec": _call("builtins exec", _text(python)),
        "eval python 2": _call("__builtin__ eval", _text(python)),
        "open": b"cbuiltins\nopen\n" + _text(str(mark)) + _text("w") + b"\x86R",
        "runpy": _call("runpy run_path", _text(str(mark))),
        "import": _call("builtins __import__", _text("antigravity")),
        "getattr chain": b"cbuiltins\ngetattr\ncos\nsystem\n%b\x86R%b\x85R" % (called, run),
        "nested name": b"\x80\x04%b%b\x93%b\x85R" % (_text("os"), _text("path.os.system"), run),
        "inst": b"(" + _text(shell) + b"ios\nsystem\n",
        "obj": b"(cos\nsystem\n" + _text(shell) + b"o",
        "newobj": b"cos\nsystem\n" + _text(shell) + b"\x85\x81",
        "newobj_ex": b"cos\nsystem\n" + _text(shell) + b"\x85}\x92",
        "setstate": b"ccollections\nOrderedDict\n)R}%bcos\nsystem\nsb%bb" % (state, run),
        "hook of a tensor": b"ctorch._utils\n_rebuild_parameter\n(cos\nsystem\n%b\x85R\x89)tR"
        % run,
        "load from bytes": _call("torch.storage _load_from_bytes", b"C\x0ccos\nsystem\n."),
        "persistent system": b"(%bcos\nsystem\n%b%bK\1tQ" % tuple(map(_text, words)),
        "persistent text": b"Pos system\n",
        "persistent list": b"]Q",
        "persistent of itself": b"]q\x00h\x00aQ",
        "extension 1": b"\x82\x01",
        "extension 4": b"\x84\xff\xff\xff\x7f",
        "partial": b"cfunctools\npartial\ncos\nsystem\n" + _text(shell) + b"\x86R)R",
        "methodcaller": _call("operator methodcaller", _text("system")) + b"cos\n__dict__\n\x85R",
        "numpy": _call("numpy.testing._private.utils runstring", _text(python)),
        "torch hub": _call("torch.hub load", _text(str(mark))),
        "inductor": _call("torch._inductor.codecache run", _text(python)),
        "type": b"cbuiltins\ntype\n" + _text("x") + b")}\x87R",
        "code": _call("types CodeType", _text(python)),
        "list that is called": b"])R",
        "dtype": _call("numpy dtype", b"cos\nsystem\n"),
        "encode": _call("_codecs encode", b"cos\nsystem\n"),
    }


KINDS = tuple(_payloads(Path("x")))


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_object_beside_the_weights_runs_nothing(tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "mark"
    piece = _payloads(mark)[kind]
    path = saved(tmp_path / "a.pth", {"weight": torch.ones(2)})
    edited(path, lambda content: content[:-2] + b"s" + _text("x") + piece + b"s.")
    modules = set(sys.modules)
    read = read_checkpoint(path)
    assert read.state["weight"].tolist() == [1, 1]
    assert not mark.exists()
    assert set(sys.modules) == modules
    named = [f for f in read.findings if f.level == "carries" and "would run code" in f.what]
    harmless = kind.startswith("persistent ") or kind in ("list that is called", "load from bytes")
    assert named or (harmless and kind != "persistent system"), read.findings


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_object_alone_is_refused(tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "mark"
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x04" + _payloads(mark)[kind] + b".")
    with pytest.raises(FlSimError):
        read_checkpoint(path)
    assert not mark.exists()


def test_a_pickle_that_runs_code_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "a.pth", {**weights(), "extra": _Runs(eval, "1")})
    assert "builtins.eval" in loud(read_checkpoint(path))[0]
    (tmp_path / "b.pt").write_bytes(pickle.dumps(_Runs(os.system, "echo printed")))
    assert re.search("would run code", refusal(tmp_path / "b.pt"))
    (tmp_path / "c.pt").write_bytes(pickle.dumps(_Runs(subprocess.run, ["echo", "printed"])))
    assert re.search("would run code", refusal(tmp_path / "c.pt"))
    assert "printed" not in capsys.readouterr().out


class Settings:
    """Settings as a training script has them."""

    def __init__(self) -> None:
        self.rate = 0.1

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("this must never run")


def test_classes_are_stand_ins_and_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {"model": weights(), "args": Settings()})
    (words,) = loud(read_checkpoint(path))
    assert Settings.__qualname__ in words and "not imported" in words


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",  # BINBYTES8
        b"\x80\x04\x8d" + struct.pack("<Q", (1 << 64) - 1) + b"x.",  # BINUNICODE8
        b"\x80\x02T" + struct.pack("<i", -5) + b"x.",  # BINSTRING
        b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b"x.",  # LONG4
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 63) + b"N.",  # FRAME
        b"L" + b"9" * 6000 + b"L\n.",
        b"I" + b"9" * 6000 + b"\n.",
        b"S'\\x'\n.",
        b"S'" + b"\\\n.",
        b"V\\ud800\\uZZZZ\n.",
        b"F" + b"1" * 400 + b"e9\n.",
        b"h\xff.",
        b"g99\n.",
        b"t.",
        b"(s.",
        b"R.",
        b"b.",
        b"}\x88s.",
        b"]K\1a",
        b"\x80\xff.",
        b"\x97.",
        b"\x80\x04" + _text("x") + b"]\x93.",
        b"0" * 20 + b".",
        b"(" * 3000 + b"l" * 3000 + b".",
        b"N" + b"\x85" * 200_000 + b".",
        b"]" * 200_000 + b"a" * 199_999 + b".",
        b"}" + b"}" * 100_000 + b"\x85" * 2 + b".",
        b"cx\ny\nq\0" + b"h\0" * 100_000 + b"N" + b"\x85R" * 100_000 + b".",
        b"ctorch._utils\n_rebuild_parameter\nq\0" + b"h\0" * 9_000 + b"N" + b"\x85R" * 9_000 + b".",
        b"cbuiltins\nbytes\nq\0" + b"h\0" * 9_000 + b"N" + b"\x85R" * 9_000 + b".",
        b"ctorch.storage\n_load_from_bytes\nq\0" + b"h\0" * 9_000 + b"N" + b"\x85R" * 9_000 + b".",
    ],
)
def test_lies_and_depths_end_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    with pytest.raises(FlSimError) as error:
        read_checkpoint(path)
    assert str(error.value).isprintable()


def test_a_bomb_of_references_stays_small(tmp_path: Path) -> None:
    laughs = b"]q\x00"
    for i in range(200):
        laughs += b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1])
    content = b"\x80\x02" + laughs + b"."
    root = read_pickle(Source(io.BytesIO(content), len(content)).stream()).root
    assert sum(1 for _ in walk(root)) == 201
    path = saved(tmp_path / "a.pth", {"weight": torch.ones(2)})
    piece = b"]r" + struct.pack("<I", 1000)
    for i in range(200):
        back = b"j" + struct.pack("<I", 1000 + i)
        piece += b"0" + back + back + b"\x86r" + struct.pack("<I", 1001 + i)
    edited(path, lambda content: content[:-2] + b"s" + _text("x") + piece + b"s.")
    assert read_checkpoint(path).state["weight"].tolist() == [1, 1]


def test_more_instructions_than_any_checkpoint_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02(" + b"N" * 600_000 + b"l.")
    assert re.search("instructions", refusal(tmp_path / "a.pkl"))
