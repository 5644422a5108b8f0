"""Which training image lies in which hospital, dealt out by Flower's partitioners."""

import hashlib
import heapq
import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from fl_sim.data.base import Split, Task
from fl_sim.data.cache import cache_folder
from fl_sim.errors import FlSimError
from fl_sim.files import write_atomically
from fl_sim.randomness import derive_seed, numpy_generator
from fl_sim.registry import Registry
from fl_sim.settings import Settings

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

Indices = NDArray[np.int64]
Scheme = Callable[[Split, Task, int, "PartitionSettings", int], list[Indices]]

MOST_HOSPITALS = 10_000
SCHEMES: Registry[Scheme] = Registry("partition scheme", "fl_sim.data.partitions")
_DIRICHLET_TRIES = 10
_MASKS_AT_ONCE = 256


class PartitionSettings(Settings):
    """How images are dealt out to hospitals.

    Args:
        scheme: ``iid`` (at random, equally many), ``dirichlet`` (each class in shares drawn from a
            Dirichlet distribution), ``pathological`` (few classes a hospital) or ``patient``
            (whole patients, or volumes, about equally many images).
        alpha: Dirichlet concentration; small is uneven.
        classes_per_hospital: for ``pathological``.
        min_images: the fewest images that a hospital may have.
    """

    scheme: str = "iid"
    alpha: float = Field(0.5, ge=1e-3, le=1e6)
    classes_per_hospital: int = Field(2, ge=1)
    min_images: int = Field(2, ge=1)

    @field_validator("scheme")
    @classmethod
    def _known(cls, scheme: str) -> str:
        SCHEMES.get(scheme)
        return scheme


class HospitalShare(PartitionSettings):
    """One hospital's images among those that a partition deals out.

    Args:
        hospitals: how many the images are dealt out to.
        number: of the one, from 0.
    """

    hospitals: int = Field(4, ge=1, le=MOST_HOSPITALS)
    number: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _exists(self) -> Self:
        if self.number >= self.hospitals:
            raise ValueError(
                f"number is {self.number}, but {self.hospitals} hospitals are numbered from 0 to "
                f"{self.hospitals - 1}"
            )
        return self


def cached_partition(
    train: Split, task: Task, hospitals: int, settings: PartitionSettings, seed: int
) -> list[Indices]:
    """Return what :func:`partition` returns, from disk where it was computed before.

    A process that finds it there need not import Flower's partitioners, which takes seconds.
    """
    digest = hashlib.sha256(f"1 {hospitals} {seed} {settings.model_dump_json()}".encode())
    digest.update(_what_counts(train, task, settings).tobytes())
    if train.patients is not None:
        digest.update("\x1f".join(map(str, train.patients)).encode())
    path = cache_folder() / "partitions" / f"{digest.hexdigest()[:32]}.npy"
    if path.exists():
        owner = np.load(path, allow_pickle=False)
        return [np.flatnonzero(owner == hospital) for hospital in range(hospitals)]
    shares = partition(train, task, hospitals, settings, seed)
    owner = np.empty(len(train), dtype=np.int32)
    for hospital, indices in enumerate(shares):
        owner[indices] = hospital
    buffer = io.BytesIO()
    np.save(buffer, owner, allow_pickle=False)
    write_atomically(path, buffer.getvalue())
    return shares


def images_of(train: Split, task: Task, share: HospitalShare, seed: int) -> Indices:
    """Return which training images one hospital has; see :func:`partition`."""
    common = share.model_dump(include=set(PartitionSettings.model_fields))
    settings = PartitionSettings(**common)
    return cached_partition(train, task, share.hospitals, settings, seed)[share.number]


def partition(
    train: Split, task: Task, hospitals: int, settings: PartitionSettings, seed: int
) -> list[Indices]:
    """Deal the training images out to hospitals.

    Args:
        train: the images.
        task: what their labels mean; see :func:`single_labels` for multi-label tasks and masks.
        hospitals: how many, at least one.
        settings: scheme and its parameters.
        seed: the scenario's; the same seed gives the same partition in any process.

    Returns:
        For each hospital the sorted int64 indices of its images; they are disjoint and together
        cover all images.

    Raises:
        FlSimError: if the images, classes or patients do not suffice.
    """
    if hospitals < 1:
        raise FlSimError(f"The number of hospitals is {hospitals}; give at least 1.")
    most = len(train) // settings.min_images
    if hospitals > most:
        raise FlSimError(
            f"{len(train)} training images cannot be dealt out to {hospitals} hospitals with "
            f"min_images = {settings.min_images}; at most {most} hospitals are possible."
        )
    parts = SCHEMES.get(settings.scheme)(train, task, hospitals, settings, seed)
    fewest = min(len(part) for part in parts)
    if fewest < settings.min_images:
        raise FlSimError(
            f"The partition '{settings.scheme}' leaves a hospital with {fewest} images, below "
            f"min_images = {settings.min_images}; use fewer hospitals or lower min_images."
        )
    return parts


def single_labels(labels: NDArray[Any], task: Task) -> NDArray[np.int64]:
    """Return one class an image, for what needs a single one (partitions, stratified draws).

    A multi-label image counts as the rarest of its labels, so that rare findings shape the result
    too, and as one more class, "no finding" (the number of labels), where it has none. A mask
    counts as the foreground class with most pixels, or as background (0) where it has none.

    Args:
        labels: ``[n]``, ``[n, labels]`` or ``[n, height, width]``.
        task: says which of the three.

    Returns:
        int64 ``[n]``.
    """
    if task.is_segmentation:
        steps = range(0, len(labels), _MASKS_AT_ONCE)
        parts = [_most_frequent(labels[first : first + _MASKS_AT_ONCE], task) for first in steps]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    if not task.multi_label:
        return np.asarray(labels, dtype=np.int64)
    frequency = labels.sum(axis=0)
    scores = np.where(labels == 1, frequency, len(labels) + 1)
    rarest = scores.argmin(axis=1)
    return np.where(labels.any(axis=1), rarest, labels.shape[1]).astype(np.int64)


def _most_frequent(masks: NDArray[np.uint8], task: Task) -> NDArray[np.int64]:
    pixels = np.stack(
        [(masks == value).sum(axis=(1, 2)) for value in range(1, task.outputs)], axis=1
    )
    return np.where(pixels.any(axis=1), pixels.argmax(axis=1) + 1, 0).astype(np.int64)


def _what_counts(train: Split, task: Task, settings: PartitionSettings) -> NDArray[Any]:
    """Return what a partition depends on beside patients, for the name of a cached one."""
    if not task.is_segmentation:
        return np.ascontiguousarray(train.labels)
    # Masks are gigabytes, so they are read only where classes count.
    if settings.scheme in ("iid", "patient"):
        return np.array([len(train)])
    return single_labels(train.labels, task)


@SCHEMES.register("iid", "at random, equally many images in each hospital")
def _iid(
    train: Split, task: Task, hospitals: int, settings: PartitionSettings, seed: int
) -> list[Indices]:
    from flwr_datasets.partitioner import IidPartitioner

    # Flower cuts consecutive rows, so the order has to be random beforehand.
    order = numpy_generator(seed, "partition", "iid").permutation(len(train))
    parts = _deal(IidPartitioner(hospitals), len(train), {}, hospitals)
    return [np.sort(order[part]).astype(np.int64) for part in parts]


@SCHEMES.register(
    "dirichlet", "each class in shares drawn from a Dirichlet distribution; small alpha is uneven"
)
def _dirichlet(
    train: Split, task: Task, hospitals: int, settings: PartitionSettings, seed: int
) -> list[Indices]:
    from flwr_datasets.partitioner import DirichletPartitioner

    classes = single_labels(train.labels, task)
    # Flower gives up after ten draws that leave a hospital too small; start it afresh a few times.
    for attempt in range(_DIRICHLET_TRIES):
        partitioner = DirichletPartitioner(
            num_partitions=hospitals,
            partition_by="class",
            alpha=float(settings.alpha),
            min_partition_size=settings.min_images,
            self_balancing=False,
            shuffle=False,
            seed=derive_seed(seed, "partition", "dirichlet", attempt),
        )
        try:
            return _deal(partitioner, len(train), {"class": classes}, hospitals)
        except ValueError:
            continue
    raise FlSimError(
        f"No Dirichlet partition with alpha = {settings.alpha} gives each of {hospitals} hospitals "
        f"{settings.min_images} of the {len(train)} images; raise alpha, lower min_images or use "
        "fewer hospitals."
    )


@SCHEMES.register("pathological", "few classes in each hospital")
def _pathological(
    train: Split, task: Task, hospitals: int, settings: PartitionSettings, seed: int
) -> list[Indices]:
    from flwr_datasets.partitioner import PathologicalPartitioner

    classes, each = single_labels(train.labels, task), settings.classes_per_hospital
    present, numbers = np.unique(classes, return_inverse=True)
    if each > len(present):
        raise FlSimError(
            f"The training images have {len(present)} classes, but classes_per_hospital is {each}; "
            f"give at most {len(present)}."
        )
    if hospitals * each < len(present):
        raise FlSimError(
            f"{hospitals} hospitals with {each} classes each cannot cover {len(present)} classes; "
            f"use at least {-(-len(present) // each)} hospitals or set classes_per_hospital to "
            f"{-(-len(present) // hospitals)}."
        )
    # Flower's own ways of giving several classes to a hospital may leave classes to nobody. So it
    # deals one class to each of hospitals * each shares in turn, and a hospital takes the next few.
    order = numpy_generator(seed, "partition", "pathological").permutation(len(present))
    partitioner = PathologicalPartitioner(
        num_partitions=hospitals * each,
        partition_by="class",
        num_classes_per_partition=1,
        class_assignment_mode="deterministic",
        shuffle=False,
        seed=0,
    )
    rows = numpy_generator(seed, "partition", "pathological", "rows").permutation(len(train))
    try:
        shares = _deal(partitioner, len(train), {"class": order[numbers][rows]}, hospitals * each)
    except ValueError:
        rarest = int(np.bincount(numbers).min())
        raise FlSimError(
            f"The rarest class has {rarest} training images, too few for {hospitals} hospitals "
            f"with {each} classes each; use fewer hospitals or lower classes_per_hospital."
        ) from None
    joined = (shares[first : first + each] for first in range(0, hospitals * each, each))
    return [np.sort(rows[np.concatenate(own)]).astype(np.int64) for own in joined]


@SCHEMES.register(
    "patient", "whole patients, or volumes; about equally many images in each hospital"
)
def _patient(
    train: Split, task: Task, hospitals: int, settings: PartitionSettings, seed: int
) -> list[Indices]:
    from flwr_datasets.partitioner import GroupedNaturalIdPartitioner

    if train.patients is None:
        raise FlSimError(
            "The partition 'patient' needs to know the patient of each image, which this dataset "
            "does not tell; use another scheme, or a dataset with patients."
        )
    patients, of_image, counts = np.unique(train.patients, return_inverse=True, return_counts=True)
    if hospitals > len(patients):
        raise FlSimError(
            f"The {len(patients)} patients of the training images cannot be dealt out to "
            f"{hospitals} hospitals; use at most {len(patients)}."
        )
    hospital_of = _balanced(counts, hospitals, seed)
    # Flower groups equally many patients, whatever their images; so it is given balanced groups.
    partitioner = GroupedNaturalIdPartitioner("hospital", group_size=1, sort_unique_ids=True)
    return _deal(partitioner, len(train), {"hospital": hospital_of[of_image]}, hospitals)


def _balanced(counts: NDArray[np.int64], hospitals: int, seed: int) -> NDArray[np.int64]:
    """Give each patient, those with most images first, to the hospital with fewest images."""
    random = numpy_generator(seed, "partition", "patient")
    shuffled = random.permutation(len(counts))
    order = shuffled[np.argsort(-counts[shuffled], kind="stable")]
    heap = [(0, int(rank), hospital) for hospital, rank in enumerate(random.permutation(hospitals))]
    heapq.heapify(heap)
    result = np.empty(len(counts), dtype=np.int64)
    for patient in order:
        images, rank, hospital = heapq.heappop(heap)
        result[patient] = hospital
        heapq.heappush(heap, (images + int(counts[patient]), rank, hospital))
    return result


def _deal(
    partitioner: "Partitioner", rows: int, columns: dict[str, NDArray[Any]], parts: int
) -> list[Indices]:
    """Run a Flower partitioner over row numbers; return the rows of each part, sorted."""
    from datasets import Dataset as Table

    content = {"row": np.arange(rows, dtype=np.int64), **columns}
    partitioner.dataset = Table.from_dict(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its warnings repeat the errors handled here
        loaded = [partitioner.load_partition(part).with_format("numpy") for part in range(parts)]
    return [np.sort(np.asarray(part["row"][:], dtype=np.int64)) for part in loaded]
