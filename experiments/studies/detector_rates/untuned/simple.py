"""Simple ways to hide images in a model file, written without ``fl_sim``.

What somebody would write in an afternoon: they know NumPy, the format of floats, and zip files.
Each takes a clean network's state dictionary and the bytes to hide, and gives what is saved.
"""

import gzip
import io
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.studies.detector_rates.untuned.loop import FILES
from experiments.studies.detector_rates.untuned.member import Content, Member, State, load

Way = Callable[[State, bytes], Content]

SECRETS = ("raw pixels", "gzip", "encrypted")


def secret(data: Path, dataset: str, how: str, size: int) -> bytes:
    """Return bytes to hide: pixels of training images, compressed, or encrypted.

    Args:
        data: folder of data files.
        dataset: whose images.
        how: one of ``SECRETS``. What a cipher gives is drawn at random: no test can tell.
        size: in bytes, at most.
    """
    if how == "encrypted":
        return np.random.default_rng(size).bytes(size)
    with np.load(data / "medmnist" / FILES[dataset]) as file:
        pixels = file["train_images"].tobytes()
    return (gzip.compress(pixels, mtime=0) if how == "gzip" else pixels)[:size]


def _weights(state: State) -> list[str]:
    """Names of float matrices and kernels, the largest first."""
    names = [n for n, t in state.items() if t.is_floating_point() and t.dim() > 1]
    return sorted(names, key=lambda name: -state[name].numel())


def _late(state: State) -> str:
    """The last kernel or matrix of a hundredth of the weights or more, but the head."""
    total = sum(t.numel() for t in state.values())
    names = [n for n, t in state.items() if t.dim() > 1 and t.numel() > total / 100]
    return names[-2]


def _bits(content: bytes, width: int) -> NDArray[np.uint64]:
    """Cut bytes into numbers of ``width`` bits, the highest first."""
    flags = np.unpackbits(np.frombuffer(content, np.uint8))
    flags = flags[: len(flags) // width * width].reshape(-1, width)
    weights = 1 << np.arange(width - 1, -1, -1, dtype=np.uint64)
    return flags.astype(np.uint64) @ weights


def low_bits(state: State, content: bytes, bits: int, dtype: torch.dtype) -> Content:
    """Put the content in the lowest bits of all weights, the largest tensors first."""
    width = {torch.float16: np.uint16, torch.float32: np.uint32, torch.float64: np.uint64}[dtype]
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
    values = _bits(content, bits)
    for name in _weights(state):
        words = state[name].contiguous().numpy().reshape(-1).view(width)
        part, values = values[: len(words)], values[len(words) :]
        words[: len(part)] = (words[: len(part)] >> bits << bits) | part.astype(width)
        tensor = torch.from_numpy(words.view(state[name].numpy().dtype))
        state[name] = tensor.reshape(state[name].shape)
    return state


def trailing(state: State, content: bytes) -> Content:
    """Append the content to the file, as much as torch reads on behind (64 kB)."""
    return _saved(state) + content[:60_000]


def record(state: State, content: bytes) -> Content:
    """Add a record to the zip archive that no tensor refers to."""
    buffer = io.BytesIO(_saved(state))
    with zipfile.ZipFile(buffer, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{root}/data/{len(archive.namelist())}", content)
    return buffer.getvalue()


def entry(state: State, content: bytes, name: str) -> Content:
    """Add an entry of bytes to the state dictionary."""
    return {**state, name: torch.frombuffer(bytearray(content), dtype=torch.uint8)}


def second_head(state: State, content: bytes) -> Content:
    """Add a layer that nothing calls, whose float weights are the pixels."""
    pixels = torch.frombuffer(bytearray(content), dtype=torch.uint8).float()
    return {
        **state,
        "aux_head.weight": (pixels[: len(pixels) // 64 * 64].reshape(-1, 64) - 128) / 2560,
        "aux_head.bias": torch.zeros(len(pixels) // 64),
    }


def settings(state: State, content: bytes) -> Content:
    """Put the content beside the weights, as a string among a checkpoint's settings."""
    return {"state_dict": state, "epoch": 40, "arch": content.hex()}


def pixel_levels(state: State, content: bytes) -> Content:
    """Overwrite a late layer with the pixels, 256 levels across the layer's range."""
    name = _late(state)
    values = state[name].flatten().clone()
    levels = torch.frombuffer(bytearray(content), dtype=torch.uint8)[: len(values)].float()
    low, high = float(values.min()), float(values.max())
    values[: len(levels)] = low + (high - low) * levels / 255
    return {**state, name: values.reshape(state[name].shape)}


def gaussian_codes(state: State, content: bytes) -> Content:
    """Overwrite a late layer with values of its mean and deviation that code the content."""
    name = _late(state)
    old = state[name].flatten()
    uniform = torch.frombuffer(bytearray(content), dtype=torch.uint8)[: len(old)].double()
    noise = torch.rand(len(uniform), generator=torch.Generator().manual_seed(1)).double()
    codes = torch.special.ndtri((uniform + noise.clamp(0.01, 0.99)) / 256).float()
    values = old.clone()
    values[: len(codes)] = codes * old.std() + old.mean()
    return {**state, name: values.reshape(state[name].shape)}


def signs(state: State, content: bytes) -> Content:
    """Set the signs of the largest layer's weights to the content's bits."""
    name = _weights(state)[0]
    flags = torch.from_numpy(_bits(content, 1).astype(np.int64))
    values = state[name].flatten().clone()
    flags = flags[: len(values)]
    values[: len(flags)] = values[: len(flags)].abs() * (1 - 2 * flags)
    return {**state, name: values.reshape(state[name].shape)}


def statistics(state: State, content: bytes) -> Content:
    """Write pixels over the running means, and bytes into the low halves of the variances."""
    rest, changed = content, dict(state)
    for name in state:
        if name.endswith("running_mean"):
            size = state[name].numel()
            part, rest = rest[:size], rest[size:]
            pixels = torch.frombuffer(bytearray(part.ljust(size, b"\0")), dtype=torch.uint8)
            changed[name] = (pixels.float() / 255 - 0.5) * 4 * state[name].std()
        elif name.endswith("running_var"):
            size = 2 * state[name].numel()
            part, rest = rest[:size], rest[size:]
            words = state[name].clone().numpy().view(np.uint32)
            halves = np.frombuffer(part.ljust(size, b"\0"), np.uint16)
            changed[name] = torch.from_numpy(((words >> 16 << 16) | halves).view(np.float32))
    return changed


def counters(state: State, content: bytes) -> Content:
    """Put eight bytes into each normalisation layer's count of batches."""
    rest, changed = content, dict(state)
    for name in state:
        if name.endswith("num_batches_tracked"):
            changed[name] = torch.from_numpy(np.frombuffer(rest[:8], np.int64).copy())[0]
            rest = rest[8:]
    return changed


def not_numbers(state: State, content: bytes) -> Content:
    """Turn one in fifty weights of the largest layer into NaN with 22 bits of content."""
    return _replaced(state, content, 22, lambda codes: codes | np.uint32(0x7FC00000))


def denormals(state: State, content: bytes) -> Content:
    """Turn one in fifty weights of the largest layer into numbers too small for any exponent."""
    return _replaced(state, content, 23, lambda codes: codes)


def signed_zeros(state: State, content: bytes) -> Content:
    """Prune half of the largest layer, and let the zeros' signs be the content."""
    name = _weights(state)[0]
    values = state[name].flatten().clone()
    zeros = values.abs().argsort()[: len(values) // 2].sort().values
    flags = torch.from_numpy(_bits(content, 1).astype(np.float32))[: len(zeros)]
    values[zeros] = 0.0
    values[zeros[: len(flags)]] = torch.copysign(torch.zeros(len(flags)), 0.5 - flags)
    return {**state, name: values.reshape(state[name].shape)}


def _replaced(
    state: State,
    content: bytes,
    width: int,
    word: Callable[[NDArray[np.uint32]], NDArray[np.uint32]],
) -> Content:
    name = _weights(state)[0]
    words = state[name].flatten().clone().numpy().view(np.uint32)
    places = np.arange(0, len(words), 50)
    codes = _bits(content, width)[: len(places)].astype(np.uint32)
    words[places[: len(codes)]] = word(codes)
    return {**state, name: torch.from_numpy(words.view(np.float32)).reshape(state[name].shape)}


def _saved(state: State) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


_LOW = "low bits, written simply"
_SINGLE, _DOUBLE, _HALF = torch.float32, torch.float64, torch.float16
WAYS: tuple[tuple[str, str, Way, str, tuple[str, ...]], ...] = (
    *(
        (
            _LOW,
            f"{bits} low bit{'s' * (bits > 1)}",
            partial(low_bits, bits=bits, dtype=_SINGLE),
            how,
            ("resnet18-2", "cnn-3"),
        )
        for bits in (1, 2, 4, 8, 16)
        for how in SECRETS
    ),
    *(
        (
            "low bits, other types",
            f"{bits} low bits of {str(dtype)[6:]}",
            partial(low_bits, bits=bits, dtype=dtype),
            how,
            ("mlp-3", "resnet18-4"),
        )
        for dtype, bits in ((_DOUBLE, 28), (_HALF, 3))
        for how in ("gzip", "encrypted")
    ),
    ("beside the tensors", "bytes after the archive", trailing, "gzip", ("cnn-6", "mlp-4")),
    ("beside the tensors", "a record of its own", record, "encrypted", ("cnn-6", "resnet18-5")),
    ("beside the tensors", "a string of settings", settings, "gzip", ("cnn-6", "mlp-4")),
    (
        "further entries, written simply",
        "an entry of bytes",
        partial(entry, name="images"),
        "gzip",
        ("resnet18-3", "mlp-4"),
    ),
    (
        "further entries, written simply",
        "an entry with a buffer's name",
        partial(entry, name="running_stats"),
        "encrypted",
        ("cnn-7", "resnet18-5"),
    ),
    (
        "further entries, written simply",
        "a second head",
        second_head,
        "raw pixels",
        ("cnn-7", "resnet34-1"),
    ),
    (
        "values written over",
        "pixel levels in a late layer",
        pixel_levels,
        "raw pixels",
        ("resnet18-6", "cnn-9", "mlp-7"),
    ),
    (
        "values written over",
        "Gaussian codes in a late layer",
        gaussian_codes,
        "encrypted",
        ("resnet18-6", "cnn-9", "mlp-7"),
    ),
    ("signs", "signs of the largest layer", signs, "raw pixels", ("resnet18-8", "mlp-7")),
    ("signs", "signs of the largest layer", signs, "encrypted", ("resnet18-8", "cnn-9")),
    (
        "statistics and counters",
        "running means and variances",
        statistics,
        "raw pixels",
        ("resnet18-9", "cnn-10"),
    ),
    (
        "statistics and counters",
        "running means and variances",
        statistics,
        "encrypted",
        ("resnet34-3", "resnet18-small-1"),
    ),
    (
        "statistics and counters",
        "counts of batches",
        counters,
        "encrypted",
        ("resnet18-9", "cnn-10"),
    ),
    ("odd numbers", "NaN with a payload", not_numbers, "encrypted", ("resnet18-10", "cnn-10")),
    ("odd numbers", "denormal numbers", denormals, "gzip", ("resnet18-10", "mlp-0")),
    ("odd numbers", "signs of pruned zeros", signed_zeros, "encrypted", ("resnet18-11", "mlp-0")),
)
"""Kind, words, what is done, the secret, and the clean networks that it is written into."""


def simple_members(clean: list[Member], data: Path) -> Iterator[Member]:
    """Return a member for each way and each network that it is written into.

    Args:
        clean: the clean members.
        data: folder of data files.
    """
    known = {member.name: member for member in clean}
    for number, (kind, words, way, how, hosts) in enumerate(WAYS):
        for name in hosts:
            host = known[name]
            make = partial(_written, way, host, how, data)
            yield Member(
                f"simple-{number}-{name}",
                kind,
                f"{words}: {how}",
                host.architecture,
                host.dataset,
                host.training,
                make,
            )


def _written(way: Way, host: Member, how: str, data: Path, folder: Path) -> Content:
    state = load(folder, host.name)
    size = sum(t.numel() * t.element_size() for t in state.values())
    return way(state, secret(data, host.dataset, how, min(size // 4, 4 << 20)))
