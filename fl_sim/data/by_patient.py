"""A dataset split by patient: its images dealt out anew so that no patient is in two splits."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fl_sim.data.base import Dataset, joined
from fl_sim.data.partitions import single_labels
from fl_sim.errors import FlSimError
from fl_sim.randomness import numpy_generator


def by_patient(dataset: Dataset, seed: int) -> Dataset:
    """Deal all images of a dataset out to its three splits, a patient's to one of them.

    Splits have nearly the published sizes and nearly equal shares of the classes. Patients come in
    a random order, those with most images first, and each goes to the split that this takes nearest
    to its share of every class (the greedy rule of scikit-learn's ``StratifiedGroupKFold``, with
    chi-squared for the standard deviation, since splits have different sizes).

    Args:
        dataset: with patients in every split; of volumes these are the patients.
        seed: the scenario's.

    Raises:
        FlSimError: if patients are not known, or are too few for three splits.
    """
    splits = (dataset.train, dataset.validation, dataset.test)
    whole = joined(*splits)
    if whole.patients is None:
        raise FlSimError(
            f'[data] split = "patient" needs to know the patient of each image, which '
            f"{dataset.name} does not say; give a table of patients (dataset key 'patients') or "
            f'leave split = "published".'
        )
    names, of_image = np.unique(whole.patients, return_inverse=True)
    classes = single_labels(whole.labels, dataset.task)
    sizes = [len(split) for split in splits]
    dealt = _dealt(_counts(of_image, classes), sizes, numpy_generator(seed, "split by patient"))
    rows = [np.flatnonzero(dealt[of_image] == number) for number in range(len(splits))]
    if not all(map(len, rows)):
        raise FlSimError(
            f'[data] split = "patient" finds {len(names)} patients in {dataset.name}, too few for '
            f'three splits of its sizes; leave split = "published".'
        )
    train, validation, test = (whole.subset(own) for own in rows)
    said = f"{dataset.description}, split by patient".removeprefix(", ")
    return replace(dataset, train=train, validation=validation, test=test, description=said)


def _counts(of_image: NDArray[np.int64], classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how many images of each class a patient has, ``[patients, classes]``."""
    _, number = np.unique(classes, return_inverse=True)
    counts = np.zeros((of_image.max() + 1, number.max() + 1))
    np.add.at(counts, (of_image, number), 1)
    return counts


def _dealt(
    counts: NDArray[np.float64], sizes: list[int], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return the split of each patient."""
    wanted = np.outer(np.array(sizes) / sum(sizes), counts.sum(axis=0))
    filled = np.zeros_like(wanted)
    dealt = np.zeros(len(counts), dtype=np.int64)
    order = generator.permutation(len(counts))
    for patient in order[np.argsort(-counts[order].sum(axis=1), kind="stable")]:
        own = counts[patient]
        # What chi-squared, the sum of (filled - wanted)^2 / wanted, gains in each split.
        gained = (own * (own + 2 * (filled - wanted)) / wanted).sum(axis=1)
        dealt[patient] = gained.argmin()
        filled[dealt[patient]] += own
    return dealt
