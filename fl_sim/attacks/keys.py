"""What keys of all attacks have in common to be checked: anybody may have written the file."""

import json
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

from fl_sim.artifact import Artifact, Key
from fl_sim.errors import FlSimError, shown
from fl_sim.settings import Settings, parse

MOST_PIXELS = 1 << 28
"""Pixel values of all images of a key together: a gigabyte of floats."""

KeyT = TypeVar("KeyT", bound=Settings)


def key_settings(key: Key, kind: type[KeyT]) -> KeyT:
    """Return a key's settings, checked.

    Raises:
        FlSimError: naming the first that is missing, unknown or impossible.
    """
    known = parse(kind, key.settings, f"The key of the attack '{key.attack}'")
    # What was written is what is read: no 1 that was "true", or 1.0.
    plain = known.model_dump(mode="json", exclude_unset=True)
    if json.dumps(plain, sort_keys=True) != json.dumps(key.settings, sort_keys=True):
        raise wrong(key, "has a value of another type than its attack writes")
    return known


def key_tensors(
    key: Key, shapes: Mapping[str, Sequence[int | None]], dtypes: Mapping[str, torch.dtype]
) -> None:
    """Check that a key has these tensors and no others.

    Args:
        key: the attacker's.
        shapes: by name; ``None`` is any length from 1.
        dtypes: by name.

    Raises:
        FlSimError: naming the first that is missing, unknown, of another type or shape, or that
            has a value that is not finite.
    """
    for name in [*shapes, *key.tensors]:
        if name not in key.tensors:
            raise wrong(key, f"lacks the tensor '{name}'")
        if name not in shapes:
            raise wrong(key, f"has a tensor {shown(name)} that this attack does not know")
        tensor, shape = key.tensors[name], shapes[name]
        fits = tensor.ndim == len(shape) and all(
            have > 0 if want is None else have == want
            for have, want in zip(tensor.shape, shape, strict=True)
        )
        if not fits or tensor.dtype != dtypes[name]:
            wanted = ", ".join("n" if side is None else str(side) for side in shape)
            raise wrong(
                key,
                f"has '{name}' as {_type(tensor.dtype)} {list(tensor.shape)} instead of "
                f"{_type(dtypes[name])} [{wanted}]",
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise wrong(key, f"has values in '{name}' that are not finite")


def key_images(key: Key, images: int, artifact: Artifact) -> None:
    """Refuse a key of more images than a receiver could hold.

    Raises:
        FlSimError: naming how many there are and can be.
    """
    channels, height, width = artifact.spec.input_shape
    most = MOST_PIXELS // max(1, channels * height * width)
    if not 1 <= images <= most:
        raise wrong(
            key,
            f"is for {images} images; of {height}x{width} pixels and {channels} channels there can "
            f"be 1 to {most}",
        )


def wrong(key: Key, what: str) -> FlSimError:
    """Build the error of a key that is wrong in a part, for example ``"lacks ..."``."""
    return FlSimError(f"The key of the attack '{key.attack}' {what}.")


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
