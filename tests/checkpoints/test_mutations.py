"""Mutated files of every format: nothing but one sentence comes out, and nothing hangs."""

import pickle
import random
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fl_sim.checkpoints import read_checkpoint
from fl_sim.errors import FlSimError
from tests.checkpoints.checkpoint_kit import archive, network, records, saved, weights

ROUNDS = 250
_OPERATIONS = b"012(.Rb\x81\x93ctQ]}sueahNoi\x8a\x8f\x90\x92\x95PVSIFL\x8b\x8c\x8d\x8e"
_NUMBERS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def _mutated(content: bytes, random_: random.Random) -> bytes:
    mutant = bytearray(content)
    for _ in range(random_.choice((1, 1, 1, 2, 4, 16))):
        place = random_.randrange(len(mutant) or 1)
        length = random_.choice((1, 2, 4, 8, 64, 200))
        match random_.randrange(7):
            case 0:
                mutant[place : place + 1] = bytes([random_.randrange(256)])
            case 1:
                mutant[place : place + 1] = bytes(
                    b ^ 1 << random_.randrange(8) for b in mutant[place : place + 1]
                )
            case 2:
                del mutant[place : place + random_.choice((length, len(mutant)))]
            case 3:
                mutant[place:place] = random_.randbytes(length)
            case 4:
                other = random_.randrange(len(mutant) or 1)
                mutant[place : place + length] = mutant[other : other + length]
            case 5:
                number = struct.pack("<Q", random_.choice(_NUMBERS))[: min(length, 8)]
                mutant[place : place + length] = number
            case _:
                mutant[place : place + 1] = bytes([random_.choice(_OPERATIONS)])
    return bytes(mutant)


def _inner(content: bytes, random_: random.Random) -> bytes:
    """Mutate records and put the archive together again with right checksums."""
    files = records(content)
    for name in files:
        if name.endswith((".pkl", ".npy")) or random_.random() < 0.1:
            files[name] = _mutated(files[name], random_)
    return archive(files)


def _header(content: bytes, random_: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    header = _mutated(content[8 : 8 + length], random_)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def _files(folder: Path) -> dict[str, Path]:
    state = weights()
    arrays = OrderedDict((name, tensor.numpy()) for name, tensor in state.items())
    np.savez(folder / "npz.npz", **arrays)
    save_file(state, folder / "safetensors.safetensors", {"format": "pt"})
    (folder / "arrays.pkl").write_bytes(pickle.dumps(arrays, 4))
    (folder / "tensors.pkl").write_bytes(pickle.dumps(state, 2))
    special = {
        "coo": torch.eye(4).to_sparse(),
        "csr": torch.eye(4).to_sparse_csr(),
        "quantised": torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 0, torch.qint8),
        "meta": torch.zeros(2, device="meta"),
        "half": torch.ones(2).half(),
        "v3": torch.ones(3, dtype=torch.uint16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    wrapped = {
        "state_dict": {f"model.{n}": t for n, t in state.items()},
        "ema": dict(state),
        "optimizer": {"state": {0: {"m": torch.ones(3)}}, "param_groups": []},
    }
    return {
        "zip": saved(folder / "zip.pth", state),
        "special": saved(folder / "s.pth", special),
        "wrapped": saved(folder / "w.pth", wrapped),
        "whole": saved(folder / "m.pth", network()),
        "old": saved(folder / "old.pth", state, _use_new_zipfile_serialization=False),
        "npz": folder / "npz.npz",
        "safetensors": folder / "safetensors.safetensors",
        "arrays": folder / "arrays.pkl",
        "tensors": folder / "tensors.pkl",
    }


KINDS = ("zip", "special", "wrapped", "whole", "old", "npz", "safetensors", "arrays", "tensors")


@pytest.mark.parametrize("kind", KINDS)
def test_a_mutant_is_read_or_refused(tmp_path: Path, kind: str) -> None:
    random_ = random.Random(kind)
    content = _files(tmp_path)[kind].read_bytes()
    deeper = _header if kind == "safetensors" else _inner
    outcomes = set()
    for number in range(ROUNDS):
        inner = number % 2 and kind not in ("old", "arrays", "tensors")
        mutant = deeper(content, random_) if inner else _mutated(content, random_)
        path = tmp_path / "mutant"
        path.write_bytes(mutant)
        try:
            read = read_checkpoint(path)
        except FlSimError as error:
            assert str(error).isprintable() and len(str(error)) < 1000
            outcomes.add("refused")
        else:
            assert all(name.isprintable() for name in read.state)
            outcomes.add("read")
    assert "refused" in outcomes
