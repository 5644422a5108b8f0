"""Capped distillation: a student that may be told so many bytes by the attacked model, and no more.

What a student learns of a teacher's answers has no bound, see :mod:`fl_sim.defenses.ledger`. Here
the budget is given: the owner knows his images' labels, so that the model has to say only where he
is not sure, and coarsely. What so few bytes add to the labels is little, and has to be measured
beside them (``budget = 0``).

1. The owner trains two students of his own on the labels alone, each on one half of the held-out
   images, and lets each answer for the half that it has not seen. That is what can be said without
   the attacked model.
2. The images that his students are least sure of, whatever the label, are asked about: by the
   entropy of their answers, as many as the budget pays for, each one once, as it is.
3. Each answer is stored as one of ``2 ** bits`` codewords of the image's label: the centres of what
   his own students answer to images of that label (k-means on square roots of probabilities, which
   is vector quantisation in Hellinger's distance; Lloyd 1982). The nearest one is stored.
4. The student that leaves learns the labels, mixed with the stored answers where there are any, on
   views and mixtures of the images. They are mixed linearly, so no further question is asked.

Order and code book are made without the attacked model, so ``M`` answers tell at most ``M * bits``
bits of it, whoever made it. An answer that is no number is stored as what the owner's own student
answers, which is a codeword like the others: nothing the model does ends the release, or changes
anything else about it. Of several labels an image, an answer is of one label.

The student's start, its views and their order are drawn from the seed, which in a simulation
everybody knows; with ``secret`` they come from the operating system. The cap holds either way.
"""

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fl_sim.data.base import Task
from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.ledger import coded_answers_bits
from fl_sim.defenses.loops.distil import DistillingSettings, StudentSettings, distil
from fl_sim.errors import FlSimError
from fl_sim.models import fresh
from fl_sim.progress import SILENT
from fl_sim.randomness import Stream, derive_seed
from fl_sim.training import predict
from fl_sim.views import label_shares

Books = dict[int, NDArray[np.float64]]
"""Code books by group, each ``[codewords, classes]``."""

_HALVES = 2
_FEWEST = 4
_FEW_BITS, _MOST_BITS = 4, 8
_LEAST = 1e-12


class CappedDistillationSettings(StudentSettings):
    """Settings of capped distillation.

    Args:
        budget: bytes that the attacked model may tell at most. With 0 it is not asked, and the
            student learns the labels only, as in consistent distillation with ``labels = 1``.
        bits: of each answer that is stored; ``8 * budget // bits`` questions are asked, at most one
            an image (of several labels an image, one a label). By default 4, or more where the
            budget pays for more about every image, up to 8.
        labels: weight of the label in what is learned of an image that was asked about, from 0 (the
            stored answer only) to 1.
        secret: draw the student's start, its views and their order from the operating system
            instead of the seed, as a release that really leaves should be; it cannot be repeated.
    """

    budget: int = Field(64, ge=0)
    bits: int | None = Field(None, ge=1, le=12)
    labels: float = Field(0.5, ge=0, le=1)
    secret: bool = False

    def bits_of(self, questions: int) -> int:
        """Return the bits of each answer, where so many questions can be asked."""
        if self.bits is not None:
            return self.bits
        return min(max(_FEW_BITS, 8 * self.budget // questions), _MOST_BITS)


@dataclass(frozen=True)
class Questions:
    """What can be asked of a model, a row a question: an image, or of several labels one of them.

    Args:
        own: what the owner's own students answer, ``[n, classes]``, sums of 1; of several labels
            an image the two chances of each label, ``[images * labels, 2]``.
        true: the class that the label says, int64 ``[n]``.
        groups: int64 ``[n]``: questions of one group share a code book, and have the same label.
    """

    own: NDArray[np.float64]
    true: NDArray[np.int64]
    groups: NDArray[np.int64]

    @classmethod
    def of(cls, own: torch.Tensor, labels: torch.Tensor, task: Task) -> "Questions":
        """Return the questions of a held-out set.

        Args:
            own: chances ``[images, outputs]``.
            labels: as a split has them.
            task: of one label an image, or of several.
        """
        true = labels.flatten().numpy()
        names = np.arange(true.size) % task.outputs if task.multi_label else np.zeros_like(true)
        return cls(_by_question(own, task).double().numpy(), true, 2 * names + true)

    def least_sure(self) -> NDArray[np.int64]:
        """Return the questions' numbers, by the entropy of what the own students answer."""
        entropy = -(self.own * np.log(np.maximum(self.own, _LEAST))).sum(axis=1)
        return np.argsort(-entropy, kind="stable")

    def books(self, codewords: int, seed: int) -> Books:
        """Return the code book of each group, of so many codewords at most; see the module."""
        groups = np.unique(self.groups).tolist()
        return {g: code_book(self.own[self.groups == g], codewords, seed) for g in groups}

    def stored(
        self, asked: NDArray[np.int64], answers: torch.Tensor, books: Books
    ) -> NDArray[np.float64]:
        """Return what is stored of a model's answers: codewords ``[asked, classes]``.

        Args:
            asked: the questions' numbers.
            answers: the model's, ``[asked, classes]``, whatever they are.
            books: of :meth:`books`.
        """
        given = answers.double().numpy()
        stored = np.empty_like(given)
        for group, book in books.items():
            chosen = self.groups[asked] == group
            own = self.own[asked[chosen]]
            stored[chosen] = book[coded(given[chosen], book, own)]
        return stored


@DEFENSES.register("capped_distillation", "a student that is told at most so many bytes leaves")
class CappedDistillation(Defense[CappedDistillationSettings]):
    """Let a student leave that learned labels, and at most ``budget`` bytes of the model."""

    Settings = CappedDistillationSettings

    def apply(self, release: Release) -> DefenseReport:
        """Replace the model in place; see :class:`fl_sim.defenses.base.Defense`."""
        began = time.perf_counter()
        if self.settings.secret:
            release = replace(release, stream=Stream.secret())
        targets, cap, asked = self._targets(release)
        spent = time.perf_counter() - began
        report = distil(release, self._labels_only(), targets=targets)
        report.cap_bits = cap
        report.figures["questions_asked"] = float(asked)
        report.seconds += spent
        return report

    def _labels_only(self) -> DistillingSettings:
        own = self.settings.model_dump(include=set(StudentSettings.model_fields))
        return DistillingSettings(**own | {"labels": 1.0})

    def _targets(self, release: Release) -> tuple[torch.Tensor | None, float, int]:
        """Return what is learned of each image, its cap in bits, and how many questions it took."""
        settings, task = self.settings, release.task
        askable = len(release.held_out) * (task.outputs if task.multi_label else 1)
        bits = settings.bits_of(max(1, askable))
        affordable = 8 * settings.budget // bits
        if affordable == 0:
            return None, 0.0, 0
        if task.is_segmentation:
            raise FlSimError(
                "Capped distillation stores an answer an image, and a segmentation answers for "
                "every pixel; set budget = 0, or take trusted_training."
            )
        if len(release.held_out) < _FEWEST:
            raise FlSimError(
                f"Capped distillation needs {_FEWEST} held-out images or more; raise [data] images."
            )
        labels = release.held_out.tensors()[1]
        questions = Questions.of(self._own_answers(release), labels, task)
        asked = questions.least_sure()[:affordable]
        seed = derive_seed(release.stream.seed, "code books", *release.stream.path)
        books = questions.books(2**bits, seed)
        # Asked last of all, and only what was asked is looked at.
        answers = _by_question(predict(release.model, release.held_out, task), task)[asked]
        stored = torch.from_numpy(questions.stored(asked, answers, books)).float()
        shares = label_shares(labels, task)
        learned = _by_question(shares, task)
        learned[asked] = torch.lerp(stored, learned[asked], settings.labels)
        learned = (learned[:, 1] if task.multi_label else learned).reshape(shares.shape)
        return learned, coded_answers_bits(len(asked), 2**bits), len(asked)

    def _own_answers(self, release: Release) -> torch.Tensor:
        """Return what students of one half of the images answer to those of the other."""
        order = release.stream.numpy("halves").permutation(len(release.held_out))
        halves = np.array_split(order, _HALVES)
        steps = max(1, self.settings.steps // _HALVES)
        recipe = self._labels_only().model_copy(update={"steps": steps, "start": "fresh"})
        answers = torch.empty(len(order), release.task.outputs)
        for number, (seen, unseen) in enumerate(zip(halves, reversed(halves), strict=True)):
            own = self._own(release, seen, number)
            distil(own, recipe)
            answers[unseen] = predict(own.model, release.held_out.subset(unseen), release.task)
        return answers

    def _own(self, release: Release, images: NDArray[np.int64], number: int) -> Release:
        """Return a release of the owner's own: a network that has nothing of the attacked one."""
        stream = release.stream.at("own", number)
        network = fresh(release.spec, derive_seed(stream.seed, "own student", *stream.path))
        return replace(
            release,
            model=network.to(next(release.model.parameters()).device),
            held_out=release.held_out.subset(images),
            stream=stream,
            evaluate=None,
            progress=SILENT,
            entries={},
            reference=None,
            training=None,
        )


def code_book(chances: NDArray[np.float64], codewords: int, seed: int) -> NDArray[np.float64]:
    """Return centres of answers, at most so many, as chances ``[centres, classes]``.

    Args:
        chances: answers ``[n, classes]``, with sums of 1; at least one.
        codewords: how many are wanted.
        seed: of k-means.
    """
    from sklearn.cluster import KMeans

    roots = np.unique(np.sqrt(chances), axis=0)
    if len(roots) > codewords:
        roots = KMeans(codewords, n_init=1, random_state=seed % 2**32).fit(roots).cluster_centers_
    squares = np.square(roots)
    return squares / squares.sum(axis=1, keepdims=True)


def coded(
    answers: NDArray[np.float64], book: NDArray[np.float64], own: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the number of each answer's nearest codeword by Hellinger's distance.

    Args:
        answers: ``[n, classes]``; one that is not finite, or no distribution, counts as ``own``.
        book: of :func:`code_book`.
        own: what is stored in place of such an answer, ``[n, classes]``.
    """
    sound = np.isfinite(answers).all(1) & (answers >= 0).all(1) & (abs(answers.sum(1) - 1) < 1e-3)
    usable = np.where(sound[:, None], answers, own)
    likeness = np.sqrt(usable) @ np.sqrt(book).T
    return likeness.argmax(axis=1)


def _by_question(shares: torch.Tensor, task: Task) -> torch.Tensor:
    """Return answers or labels a row a question: of several labels both chances of each."""
    return torch.stack([1 - shares, shares], dim=-1).flatten(0, 1) if task.multi_label else shares
