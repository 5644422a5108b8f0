"""What a restoration is: how an attacker repairs recovered images before he looks at them.

He has the recovered batch and public images of the same kind, nothing else: never an original.
"""

from collections.abc import Callable, Collection, Iterator, Mapping

import torch

from fl_sim.errors import FlSimError
from fl_sim.registry import Registry
from fl_sim.words import RAW

Restoration = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``restore(recovered [n, c, h, w], public [m, c, h, w]) -> [n, c, h, w]``, float32.

Recovered values may be anything, also outside [0, 1]; images that are not finite stay so, for
measuring to count. Public images are in [0, 1]. A restoration draws nothing at random.
"""

RESTORATIONS: Registry[Restoration] = Registry("restoration", "fl_sim.restorations")

_WILD = 10.0


def choose(names: Collection[str] | None = None) -> dict[str, Restoration]:
    """Return restorations by name: the given ones, or all that are registered.

    Raises:
        FlSimError: if there is no restoration of a name.
    """
    if names is None:
        return {entry.name: entry.component for entry in RESTORATIONS.entries()}
    return {name: RESTORATIONS.get(name) for name in names}


def extractions(
    recovered: torch.Tensor,
    public: torch.Tensor,
    restorations: Mapping[str, Restoration] | None = None,
    variants: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the recovered images as they came out (``"raw"``), and after every restoration.

    Args:
        recovered: ``[n, channels, height, width]``, as extracted: not clamped, perhaps not finite.
        public: ``[m, channels, height, width]`` in [0, 1]; images the attacker can have.
        restorations: by name; all registered ones where not given.
        variants: the same images extracted in other ways, by name; of the shape of ``recovered``.
            One called ``"aligned"`` is yielded as ``"aligned"``, ``"aligned+affine"`` and so on.

    Without any public image nothing can be restored, and every variant is yielded as it came out.

    Raises:
        FlSimError: if the public images' shape is another one.
    """
    chosen: Mapping[str, Restoration] = {}
    if len(public):
        check_public(recovered, public)
        chosen = choose() if restorations is None else restorations
    for variant, images in {RAW: recovered, **(variants or {})}.items():
        yield variant, images
        for name, restore in chosen.items():
            yield (name if variant == RAW else f"{variant}+{name}"), restore(images, public)


def check_public(images: torch.Tensor, public: torch.Tensor) -> None:
    """Check that public images can stand beside ``images``.

    Raises:
        FlSimError: if there is none, or its shape is another one.
    """
    if public.ndim != 4 or len(public) == 0 or public.shape[1:] != images.shape[1:]:
        raise FlSimError(
            f"Public images of shape [m, {', '.join(map(str, images.shape[1:]))}] with m >= 1 are "
            f"needed, but their shape is {list(public.shape)}."
        )


def finite(images: torch.Tensor) -> torch.Tensor:
    """Return which images have only finite values, as booleans ``[n]``."""
    return images.flatten(1).isfinite().all(dim=1)


def typical(images: torch.Tensor) -> torch.Tensor:
    """Return which images a batch's statistics should be taken over, as booleans ``[n]``.

    Not those that are not finite, nor those whose root mean square is over ten times the batch's
    median (or over ten, if that is more): a single image read from damaged bits can hold values of
    1e30, and would otherwise hide from a batch statistic that all the others are legible.
    """
    good = finite(images)
    if not bool(good.any()):
        return good
    size = images.double().flatten(1).square().mean(dim=1).sqrt()
    return good & (size <= _WILD * size[good].median().clamp(min=1.0))
