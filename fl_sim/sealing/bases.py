"""The base under a sealed head: whose it is, and that nothing of it was changed."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fl_sim.checkpoints import read_checkpoint
from fl_sim.errors import FlSimError, printable, shown
from fl_sim.files import checksum
from fl_sim.models import fresh, skeleton, state_of
from fl_sim.models.base import ModelSpec

State = dict[str, torch.Tensor]

GIVEN = "given"
"""The model that was handed over, whoever trained it."""
FRESH = "fresh"
"""The network's initial weights, which the owner draws himself."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Base:
    """Which base a head was trained on.

    Args:
        name: :data:`GIVEN`, :data:`FRESH`, or the name of a file.
        sha256: of the file, as hexadecimal digits; ``None`` for the others.
    """

    name: str
    sha256: str | None = None


def require_known(base: str, sha256: str | None) -> None:
    """Refuse a base that is not said exactly.

    Raises:
        FlSimError: if a file comes without its SHA-256, or that is no such hash.
    """
    if base in (GIVEN, FRESH):
        if sha256 is not None:
            raise FlSimError(f'sha256 is of a file, and base is "{base}"; leave it out.')
        return
    if sha256 is None:
        raise FlSimError(
            f"base is {shown(base)}, a file, and a file is trusted by its hash; add sha256, as "
            f"whoever published the file tells it."
        )
    if not _SHA256.fullmatch(sha256):
        raise FlSimError("sha256 should be 64 hexadecimal digits, in lower case.")


def load_base(path: Path, sha256: str, spec: ModelSpec, sealed: Collection[str]) -> State:
    """Read a trusted base from a file that anybody may have sent; nothing in it is run.

    Args:
        path: of the file, any format that ``fl-sim audit`` reads.
        sha256: that it must have.
        spec: the network.
        sealed: entries that are not taken from it.

    Returns:
        Every other entry of the network.

    Raises:
        FlSimError: if it is another file, or lacks an entry, or has it in another shape or type.
    """
    shown_path = printable(str(path))
    if not path.is_file():
        raise FlSimError(f"The base {shown_path} does not exist.")
    found = checksum(path)
    if found != sha256:
        raise FlSimError(
            f"The base {shown_path} has the SHA-256 {found[:16]}..., not {sha256[:16]}...; it is "
            f"another file than the one that is trusted."
        )
    state, base = read_checkpoint(path).state, {}
    for name, own in skeleton(spec).items():
        if name in sealed:
            continue
        if name not in state:
            raise FlSimError(f"The base {shown_path} lacks the entry '{name}'.")
        if state[name].shape != own.shape or state[name].dtype != own.dtype:
            raise FlSimError(
                f"The base {shown_path} has '{name}' as {state[name].dtype} of shape "
                f"{list(state[name].shape)}, and the network has {own.dtype} of shape "
                f"{list(own.shape)}."
            )
        base[name] = state[name].clone()
    return base


def fresh_base(spec: ModelSpec, seed: int, sealed: Collection[str]) -> State:
    """Return a network's initial weights, without the entries that are sealed."""
    return {n: v for n, v in state_of(fresh(spec, seed)).items() if n not in sealed}


def require_same_base(
    state: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor], what: str
) -> None:
    """Refuse a model whose base differs from the one that is trusted, in any bit.

    Args:
        state: of the model, with its head.
        base: every parameter and buffer that must be the same.
        what: the model is, for the message.

    Raises:
        FlSimError: naming the first entry that differs, and the first element of it.
    """
    for name, trusted in base.items():
        own = state.get(name)
        if own is None or own.shape != trusted.shape or own.dtype != trusted.dtype:
            raise FlSimError(f"{what} has no entry '{name}' like the trusted base's.")
        ours, theirs = own.detach().cpu(), trusted.detach().cpu()
        different = (_bits(ours) != _bits(theirs)).flatten()
        if bool(different.any()):
            raise FlSimError(
                f"{what} differs from the trusted base, first in '{name}' at element "
                f"{int(different.nonzero()[0])}: {ours.flatten()[different][0].item()!r} in place "
                f"of {theirs.flatten()[different][0].item()!r}; seal a head on the base as it is."
            )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's elements so that two of them are equal only if all their bits are."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    if not tensor.is_floating_point():
        return tensor
    return tensor.contiguous().view(whole[tensor.element_size()])
