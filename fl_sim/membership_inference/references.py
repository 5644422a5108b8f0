"""Reference models: trained as the target is, on random halves of a pool of images.

They come in pairs: the second of a pair is trained on the images that the first is not, so that of
every image half of the reference models have seen it and half have not. The pool is put into an
order of its own content, and a reference model's images, weights and batches follow from its number
alone: models of different seeds, defences and stages that are asked about the same images share
their reference models, and four of them are the first four of sixteen. What is kept on disk is what
each answers to the pool; an interrupted call goes on behind the last one that ended.
"""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_sim.data.base import Split, Task, joined
from fl_sim.data.cache import cache_folder
from fl_sim.errors import FlSimError
from fl_sim.files import built_once, write_atomically
from fl_sim.membership_inference.signals import Floats, ask
from fl_sim.models import MODELS, build
from fl_sim.models.base import ModelSpec
from fl_sim.progress import SILENT, Progress, piece
from fl_sim.randomness import Stream, derive_seed, numpy_generator
from fl_sim.training import LocalTraining, TrainingSettings, train

MOST_REFERENCES = 1024
_MOST_HERE = 2 * MOST_REFERENCES
_HERE: dict[tuple[str, int], Floats] = {}
VERSION = 1
"""Raised when reference models are trained otherwise: earlier answers are not found again then."""


@dataclass(frozen=True)
class Pool:
    """Images that reference models are trained on, half of them each, in an order of their content.

    Args:
        split: the images, with labels.
        places: where the rows of each split that :func:`pool_of` was given are in the pool.
        digest: SHA-256 of all of it.
    """

    split: Split
    places: tuple[NDArray[np.int64], ...]
    digest: str


def pool_of(*splits: Split) -> Pool:
    """Return the images of splits as one pool, the same for the same images in any order.

    Args:
        splits: with labels; an image in two of them is in the pool twice.
    """
    everything = joined(*splits)
    digests = [
        hashlib.blake2b(
            np.ascontiguousarray(everything.images[row]).tobytes()
            + np.ascontiguousarray(everything.labels[row]).tobytes(),
            digest_size=16,
        ).digest()
        for row in range(len(everything))
    ]
    order = np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)
    whole = hashlib.sha256(
        repr((everything.images.shape[1:], everything.labels.shape[1:])).encode()
    )
    for row in order:
        whole.update(digests[row])
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    ends = np.cumsum([len(split) for split in splits])
    places = tuple(np.split(place, ends[:-1]))
    return Pool(everything.subset(order), places, whole.hexdigest())


def half(images: int, number: int) -> NDArray[np.bool_]:
    """Return which images of a pool a reference model is trained on, ``[images]``.

    Args:
        images: of the pool.
        number: of the model, from 0; 0 and 1, 2 and 3, ... divide the pool between them.
    """
    order = numpy_generator(0, "reference models", "halves", number // 2).permutation(images)
    chosen = np.zeros(images, dtype=np.bool_)
    chosen[order[: images // 2]] = True
    return chosen if number % 2 == 0 else ~chosen


@dataclass(frozen=True)
class Recipe:
    """How reference models are trained.

    Args:
        spec: their network.
        task: what it is for.
        training: how it is trained; the target's own recipe, unless the caller states another.
        start: ``start(seed)`` gives the network that training starts from; by default fresh.
        from_file: SHA-256 of the checkpoint that ``start`` reads, if it does.
        device: where they are trained.
    """

    spec: ModelSpec
    task: Task
    training: TrainingSettings
    start: Callable[[int], nn.Module] | None = None
    from_file: str = ""
    device: str = "cpu"

    def model(self, seed: int) -> nn.Module:
        """Return a network to train."""
        made = build(self.spec, seed) if self.start is None else self.start(seed)
        return made.to(self.device)

    @cached_property
    def plain(self) -> Mapping[str, Any]:
        """Everything that what is trained depends on, beside the images."""
        return {
            "version": VERSION,
            "versions": [version("torch")],
            "spec": self.spec.model_dump(mode="json"),
            "task": self.task.kind,
            "training": self.training.differing(),
            "from": self.from_file,
            "device": self.device,
            "threads": torch.get_num_threads(),
        }


@dataclass(frozen=True)
class References:
    """What reference models answer to a pool.

    Args:
        odds: ``[models, images]``, log-odds of each image's label; see
            :func:`fl_sim.membership_inference.signals.log_odds`.
        included: ``[models, images]``, which images each was trained on.
    """

    odds: Floats = field(repr=False)
    included: NDArray[np.bool_] = field(repr=False)

    def of(self, places: NDArray[np.int64]) -> "References":
        """Return what they answer to some images of the pool."""
        return References(self.odds[:, places], self.included[:, places])


def references(pool: Pool, recipe: Recipe, count: int, progress: Progress = SILENT) -> References:
    """Return what reference models answer to a pool; those that are not kept are trained.

    Those of a network that this process alone knows, as it was handed over or is made by a user's
    function, are kept in this process.

    Args:
        pool: the images.
        recipe: how they are trained.
        count: how many, an even number.
        progress: where to report.

    Raises:
        FlSimError: if the number is odd, or the pool too small to be halved.
    """
    if count < 2 or count % 2 or count > MOST_REFERENCES:
        raise FlSimError(
            f"Reference models come in pairs, each trained on the other half of the images: ask "
            f"for an even number from 2 to {MOST_REFERENCES}, not {count}."
        )
    images = len(pool.split)
    if images < 4:
        raise FlSimError(f"A pool of {images} images cannot be halved; give 4 or more.")
    name = _name(pool, recipe)
    odds = []
    with piece(progress, "reference models", count) as report:
        for number in range(count):
            if _is_known_elsewhere(recipe.spec):
                path = cache_folder() / "reference-models" / name / f"{number}.npy"
                odds.append(_kept(path, pool, recipe, number, progress))
            else:
                odds.append(_kept_here(name, pool, recipe, number, progress))
            report.step()
    included = np.stack([half(images, number) for number in range(count)])
    return References(np.stack(odds), included)


def _name(pool: Pool, recipe: Recipe) -> str:
    """Return a name for everything that answers depend on."""
    content = {**recipe.plain, "pool": pool.digest}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _is_known_elsewhere(spec: ModelSpec) -> bool:
    """Whether a network's name means the same in another process; of a user's function never."""
    return MODELS.lent(spec.name) is None and ":" not in spec.name


def _kept_here(name: str, pool: Pool, recipe: Recipe, number: int, progress: Progress) -> Floats:
    """Return a model's answers from this process, which keeps the last ones."""
    if (name, number) not in _HERE:
        while len(_HERE) >= _MOST_HERE:
            del _HERE[next(iter(_HERE))]
        _HERE[name, number] = _trained(pool, recipe, number, progress)
    return _HERE[name, number]


def _kept(path: Path, pool: Pool, recipe: Recipe, number: int, progress: Progress) -> Floats:
    """Return a model's answers from the cache; a second process that asks waits for the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with built_once(path):
        if not path.exists():
            content = io.BytesIO()
            np.save(content, _trained(pool, recipe, number, progress))
            write_atomically(path, content.getvalue())
    try:
        # Its header is checked before it asks for memory: a mapped file cannot be shorter.
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        right = found.shape == (len(pool.split),) and found.dtype == np.float64
    except (OSError, ValueError):
        right = False
    if not right or not np.isfinite(found).all():
        raise FlSimError(
            f"The cached answers {path} of a reference model are damaged; delete that file, and "
            f"they are made anew."
        )
    return np.array(found)


def _trained(pool: Pool, recipe: Recipe, number: int, progress: Progress) -> Floats:
    stream = Stream(0, ("reference models", number))
    model = recipe.model(derive_seed(0, "reference models", "initial weights", number))
    rows = np.flatnonzero(half(len(pool.split), number)).astype(np.int64)
    train(
        LocalTraining(
            model=model,
            spec=recipe.spec,
            data=pool.split.subset(rows),
            task=recipe.task,
            settings=recipe.training,
            stream=stream,
            progress=progress,
        )
    )
    return ask(model, pool.split, recipe.task)
