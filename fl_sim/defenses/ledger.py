"""How much can have passed from an attacked model into what leaves, whoever the attacker is.

A measured leak is what one attacker got through; a cap is what none can exceed. It counts what the
release is a function of: let ``X`` be everything that the attacked model holds, ``A`` what a
defence takes from it (weights, or answers), ``S`` the owner's own images and randomness, and ``Y``
the release. ``Y`` is a function of ``A`` and ``S``, so ``I(X; Y | S) <= H(A | S)``, at most the
logarithm of how many values ``A`` can take (data processing; Cover and Thomas, "Elements of
Information Theory", 2nd edition, sections 2.6 and 2.8). The bound holds for whoever knows ``S``,
too, so no secret is needed for it, nor anything about the attack.

Answers that are used as they come have no bound of their own: a real number has no last digit, and
a student that is asked about new views at every step gets new numbers at every step. What bounds
such a release is its own size alone, see :func:`cap_bits`.

Every function returns bits, as a float that may be infinite.
"""

import math
from collections.abc import Mapping

import torch

from fl_sim.defenses.base import DefenseReport

REFUSAL = 1.0
"""Bits told by whether there is a release at all, where the model can make its defence refuse it:
``log2(2 ** b + 1) <= b + 1``."""

_DIMENSION = 64
_DTYPE = 8


def tensor_bits(tensors: Mapping[str, torch.Tensor]) -> float:
    """Return the bits of tensors whose names and shapes the owner knows: all of every element.

    Args:
        tensors: by name, of any dtype; ``n`` elements of ``b`` bits take ``2 ** (n b)`` values.
    """
    return float(sum(8 * t.element_size() * t.numel() for t in tensors.values()))


def entry_bits(entries: Mapping[str, torch.Tensor]) -> float:
    """Return the bits of tensors that the owner did not ask for, beside those of their elements.

    Such entries also tell something by their names (8 bits a byte, and one byte for their end),
    their dtypes (8), how many dimensions they have (8) and how long each one is (64).
    """
    told = sum(
        8 * (len(name.encode()) + 1) + 2 * _DTYPE + _DIMENSION * entry.dim()
        for name, entry in entries.items()
    )
    return tensor_bits(entries) + told


def coded_answers_bits(answers: int, codewords: float) -> float:
    """Return the bits of answers that are stored as one of so many codewords: ``M log2 C``.

    The code book must be made without the model that answers; the choice of images, too. Each
    image is asked once: a second answer is another answer. For hard labels ``C`` is the number of
    classes, for ``q`` levels in each of ``K`` outputs it is ``q ** K``; where an answer that is no
    number has a codeword of its own, one more.

    Args:
        answers: how many, ``M``.
        codewords: that each of them can be, ``C``, 1 or more.
    """
    return answers * math.log2(codewords)


def voted_answers_bits(answers: int, outputs: int, voters: int) -> float:
    """Return the bits of vote counts: ``M log2 binomial(n + K - 1, n)``, all ``n`` together.

    An answer is how many of ``n`` voters say each of ``K`` outputs, one of as many multisets. One
    voter alone tells at most ``M log2 K`` bits of these, whatever the others say
    (:func:`coded_answers_bits`).

    Args:
        answers: how many are counted, ``M``; each voter asked once.
        outputs: that can be voted for, ``K``.
        voters: how many, ``n``.
    """
    return coded_answers_bits(answers, math.comb(voters + outputs - 1, voters))


def noised_answers_bits(answers: int, outputs: int, clip: float, noise: float) -> float:
    """Return the bits of clipped answers with Gaussian noise: ``M K / 2 log2(1 + c^2 / s^2)``.

    An output in ``[-c, c]`` has at most the power ``c^2``; the capacity of the Gaussian channel is
    ``1/2 log2(1 + P / N)`` a use (Cover and Thomas, theorem 9.1.1). The one bound here that needs a
    secret: the noise must be drawn where nobody can know it, once for each answer.

    Args:
        answers: how many, ``M``; each one asked once.
        outputs: of an answer, ``K``.
        clip: what each output is clipped to, ``c``.
        noise: its standard deviation, ``s``; without noise the bound is infinite.
    """
    if answers * outputs * clip == 0:
        return 0.0
    return math.inf if noise == 0 else answers * outputs / 2 * math.log2(1 + (clip / noise) ** 2)


def agreement_bits(images: int, disagreements: int | None = None) -> float:
    """Return the bits of a filter: only images are used whose label the model answers.

    What passes is which images these are, at most one of ``2 ** M`` subsets. Where the owner
    refuses to leave out more than ``d`` of them it is one of ``sum_{i <= d} C(M, i)``.

    Args:
        images: how many the model is asked about, ``M``.
        disagreements: that are left out at most, ``d``; by default any number.
    """
    most = images if disagreements is None else min(disagreements, images)
    return math.log2(sum(math.comb(images, left_out) for left_out in range(most + 1)))


def cap_bits(
    report: DefenseReport | None,
    network: Mapping[str, torch.Tensor],
    entries: Mapping[str, torch.Tensor],
) -> float:
    """Return the most bits that can have passed into a release.

    The smaller of two bounds: what the defence says of itself (``DefenseReport.cap_bits``), and
    what leaves, all bits of it, since no file tells more than it holds. Without a claim of its
    defence a model therefore has the cap of one that nothing cleaned. Noise and random bits take
    nothing off it: in a simulation they are drawn from the scenario's seed, which is no secret.

    Args:
        report: of the defence; ``None`` for none.
        network: what leaves of the network that the owner knows: its entries by name.
        entries: what else leaves.
    """
    claimed = math.inf if report is None or report.cap_bits is None else report.cap_bits
    return min(claimed, tensor_bits(network) + entry_bits(entries))
