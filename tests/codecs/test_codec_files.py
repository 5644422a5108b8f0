"""Codec files: the same codec back, also in another process, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fl_sim.claims import building_within
from fl_sim.codec import CODECS
from fl_sim.codecs.files import _ENCODER_TOO, codec_from, load_codec, save_codec
from fl_sim.errors import FlSimError
from fl_sim.files import checksum
from fl_sim.randomness import Stream
from tests.codecs.codec_kit import LEARNED, images, trained

DECODING = """
import sys
from pathlib import Path
import numpy as np
import torch
from fl_sim.codecs.files import load_codec
torch.set_num_threads(1)
folder = Path(sys.argv[1])
for name in sys.argv[2:]:
    packed = np.load(folder / f"{name}.npz")
    codes = [bytes(packed[key]) for key in sorted(packed.files)]
    decoded = load_codec(folder / f"{name}.safetensors").decode(codes, (3, 28, 28))
    np.save(folder / f"{name}.npy", torch.stack(decoded).numpy())
"""


def test_another_process_decodes_the_same_from_the_decoders_file(tmp_path: Path) -> None:
    batch = images(30)
    for name in LEARNED:
        codec = trained(name)
        save_codec(tmp_path / f"{name}.safetensors", codec, decoder_only=True)
        codes = [np.frombuffer(code, dtype=np.uint8) for code in codec.encode(batch)]
        np.savez(tmp_path / f"{name}.npz", **{f"{i:03}": code for i, code in enumerate(codes)})
    done = subprocess.run(
        [sys.executable, "-c", DECODING, str(tmp_path), *LEARNED],
        capture_output=True,
        text=True,
        check=False,
        env={"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    for name in LEARNED:
        codec = trained(name)
        here = codec.decode(codec.encode(batch), (3, 28, 28))
        there = np.load(tmp_path / f"{name}.npy")
        for one, other in zip(here, there, strict=True):
            assert isinstance(one, torch.Tensor) and np.array_equal(one.numpy(), other)


@pytest.mark.parametrize("name", [*LEARNED, "gzip", "png"])
def test_a_codec_comes_back_whole(name: str, tmp_path: Path) -> None:
    codec = trained(name) if name in LEARNED else CODECS.get(name)(CODECS.get(name).Settings())
    path = save_codec(tmp_path / "deep" / "codec.safetensors", codec)
    again = load_codec(path)
    assert type(again) is type(codec) and again.settings == codec.settings
    assert again.encode(images(4)) == codec.encode(images(4))
    assert {n: t.dtype for n, t in again.tensors().items()} == {
        n: t.dtype for n, t in codec.tensors().items()
    }
    same = save_codec(tmp_path / "again.safetensors", again)
    assert checksum(same) == checksum(path)
    whole = codec_from(name, codec.settings.model_dump(mode="json"), codec.tensors())
    assert whole.encode(images(4)) == codec.encode(images(4))


@pytest.mark.parametrize("name", LEARNED)
def test_a_decoder_alone_is_read_at_the_sizes_that_are_usual(name: str) -> None:
    kind: Any = CODECS.get(name)
    codec = kind(kind.Settings(max_steps=1, validate_every=1))
    codec.fit(images(2), images(2), Stream(0))
    settings, tensors = codec.settings.model_dump(mode="json"), codec.tensors(decoder_only=True)
    assert codec_from(name, settings, tensors).name == name
    # Tables are longer or shorter; it does not take them.
    weights = sum(t.numel() for n, t in tensors.items() if not n.startswith("tables."))
    with building_within(_ENCODER_TOO * weights):
        kind(codec.settings)


def test_the_header_says_what_is_in_the_file(tmp_path: Path) -> None:
    path = save_codec(tmp_path / "codec.safetensors", trained("factorized"), decoder_only=True)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["fl_sim.codec"])
    assert header["name"] == "factorized" and header["decoder_only"] is True
    assert header["settings"]["N"] == 12 and set(header["versions"]) == {"torch", "compressai"}
    assert all(header["versions"].values())


def test_what_is_no_codec_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    with pytest.raises(FlSimError, match="does not exist"):
        load_codec(path)
    path.write_bytes(b"\x80\x04 nothing")
    with pytest.raises(FlSimError, match="cannot be read"):
        load_codec(path)
    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(FlSimError, match="not a codec file"):
        load_codec(path)
    for header in ("{", "[]", json.dumps({"name": 3, "settings": {}}), json.dumps({"name": "png"})):
        save_file({"w": torch.zeros(1)}, path, {"fl_sim.codec": header})
        with pytest.raises(FlSimError, match="header"):
            load_codec(path)


def test_parts_that_do_not_fit_are_refused_in_one_sentence() -> None:
    codec = trained("factorized")
    settings, tensors = codec.settings.model_dump(mode="json"), codec.tensors()
    with pytest.raises(FlSimError, match=r"no codec called 'factorised'\. Did you mean"):
        codec_from("factorised", settings, tensors)
    with pytest.raises(FlSimError, match="The codec 'factorized' has no key 'channels'"):
        codec_from("factorized", {"channels": 3}, tensors)
    with pytest.raises(FlSimError, match="do not fit the codec 'factorized'"):
        codec_from("factorized", {**settings, "N": 16}, tensors)
    with pytest.raises(FlSimError, match="'png' has no weights"):
        codec_from("png", {}, tensors)
