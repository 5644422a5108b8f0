"""Ensemble distillation: a federation's server learns from answers, not from weights.

Lin, Kong, Stich and Jaggi, "Ensemble Distillation for Robust Model Fusion in Federated Learning"
(FedDF), NeurIPS 2020, arXiv 2006.07242: the uploads of a round are teachers, and the student that
leaves learns what they answer together to the server's held-out images. What the aggregator makes
of the weights is not used, and neither are weights that it would clip or noise: only the round, its
hospitals and its schedule are its own. In a data lake there is one model and no ensemble.

How answers are combined says what one malicious upload of ``n`` can move:

- ``"mean"`` of the logits (FedDF's equation 3), which is the normalised geometric mean of
  probabilities: as far as it likes. Of one upload it is consistent distillation, bit for bit.
- ``"median"`` of each output's log-probability, normalised: from three uploads on it stays, before
  it is normalised, between the smallest and the largest of the honest ones.
- ``"vote"``: the share of hospitals whose top answer it is; ``1 / n`` of one image.

Mean and median are of fresh views at every step, as in consistent distillation, and an upload has
no say in answers of its own that are no numbers. Votes are asked for once an image, as it is, and
mixed linearly as labels are; a logit that is no number counts as 0, so that all are votes. ``M``
votes among ``K`` outputs are all that one upload can tell: ``M log2 K`` bits (the row
``cap_bytes_of_one``), whoever made it. The cap of a release is of all uploads together, as if every
hospital were malicious, see :func:`fl_sim.defenses.ledger.voted_answers_bits`; whether a hospital
delivers at all is not counted.

**PATE** (Papernot et al., "Semi-supervised Knowledge Transfer for Deep Learning from Private
Training Data", ICLR 2017, arXiv 1610.05755): with ``noise`` the student learns, of each image, the
top of the vote counts after Gaussian noise of that deviation (GNMax; Papernot et al., "Scalable
Private Learning with PATE", ICLR 2018, arXiv 1802.08908). Replacing a hospital's vote moves the
counts by the square root of 2, so a question costs the Rényi divergence ``alpha / noise ** 2`` of
order ``alpha`` (their proposition 8), whatever the answers are; questions and rounds add up. Opacus
turns the sum into an epsilon at delta 1e-5: the row ``pate_epsilon``, and ``pate_epsilon_total`` of
all rounds so far, which is infinite once a release has left without the defence.

What this protects is **one hospital**: with or without what its model says, releases are alike up
to epsilon, whoever made that model, and so is anything that only its images show. It says nothing
of two hospitals together (nearly twice the epsilon), of the server's own held-out images, which the
student is trained on, of what the server's tables and logs tell, or of a patient known to several
hospitals. A few hospitals cannot be hidden: noise that outvotes one of four outvotes all of them.
And the promise needs noise that nobody can draw again (``secret``); in a simulation it is drawn
from the seed. The data-dependent accounting of the papers, which is smaller where teachers agree,
is not made.
"""

import copy
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch.nn.functional import log_softmax, one_hot

from fl_sim.data.base import Task
from fl_sim.defenses.base import DEFENSES, Defense, DefenseReport, Release
from fl_sim.defenses.ledger import coded_answers_bits, voted_answers_bits
from fl_sim.defenses.loops.distil import DistillingSettings, distil
from fl_sim.privacy import gaussian_epsilon
from fl_sim.randomness import Stream
from fl_sim.training import normalized
from fl_sim.views import label_shares

Combine = Literal["mean", "median", "vote"]

DELTA = 1e-5
"""Probability with which the promise of ``pate_epsilon`` may fail."""

LARGEST = 1e30
"""Largest logit that has a say: sums of such answers stay within float32."""

_BATCH = 256


class EnsembleDistillationSettings(DistillingSettings):
    """Settings of ensemble distillation.

    Args:
        combine: how the hospitals' answers become one: their ``"mean"``, ``"median"`` or
            ``"vote"``.
        noise: deviation of Gaussian noise on the vote counts (PATE); 0 for none.
        temperature: that answers are softened with, the student's and the combined ones; votes are
            learned as labels are, without one.
        secret: draw noise, the student's start, its views and their order from the operating system
            instead of the seed, as a release that really leaves should be; it cannot be repeated.

    Example:
        combine = "median"
        [federation]
        hospitals = 4
    """

    combine: Combine = "median"
    noise: float = Field(0.0, ge=0)
    secret: bool = False

    @model_validator(mode="after")
    def _noise_is_on_votes(self) -> Self:
        if self.noise and self.combine != "vote":
            raise ValueError('noise is added to vote counts; set combine = "vote"')
        return self


@DEFENSES.register(
    "ensemble_distillation", "a student of all hospitals' answers leaves (Lin et al. 2020, PATE)"
)
class EnsembleDistillation(Defense[EnsembleDistillationSettings]):
    """Let a student leave that learned what a round's uploads answer together."""

    Settings = EnsembleDistillationSettings

    @property
    def needs_uploads(self) -> bool:
        """Whether it asks for the uploads of a federation's hospitals: it does."""
        return True

    @property
    def uses_labels(self) -> bool:
        """Whether the labels have any weight."""
        return self.settings.labels > 0

    def apply(self, release: Release) -> DefenseReport:
        """Replace the model in place; see :class:`fl_sim.defenses.base.Defense`.

        Raises:
            FlSimError: if there are no uploads, fewer than two held-out images, or no upload
                answers in numbers.
        """
        ensemble = Ensemble(release)
        if self.settings.secret:
            release = replace(release, stream=Stream.secret())
        if self.settings.labels == 1:  # nobody is asked
            report = distil(release, self._plain())
            return self._priced(report, 0)
        if self.settings.combine == "vote":
            return self._of_votes(release, ensemble)
        together = partial(ensemble.together, combine=self.settings.combine)
        return distil(release, self._plain(), teacher=together)

    def _plain(self, **changes: float) -> DistillingSettings:
        own = self.settings.model_dump(include=set(DistillingSettings.model_fields))
        return DistillingSettings(**own | changes)

    def _of_votes(self, release: Release, ensemble: "Ensemble") -> DefenseReport:
        began = time.perf_counter()
        counts = ensemble.votes()
        outputs = counts.shape[1]
        questions = counts.numel() // outputs
        if self.settings.noise:
            cap = coded_answers_bits(questions, outputs)
            counts = noisy_top(counts, self.settings.noise, release.stream)
        else:
            cap = voted_answers_bits(questions, outputs, ensemble.voters)
            counts = counts / ensemble.voters
        answers = counts[:, 1] if release.task.multi_label else counts
        truth = label_shares(release.held_out.tensors()[1], release.task)
        targets = torch.lerp(answers, truth, self.settings.labels)
        spent = time.perf_counter() - began
        report = distil(release, self._plain(labels=1.0), targets=targets)
        report.seconds += spent
        report.cap_bits = cap
        report.figures["cap_bytes_of_one"] = coded_answers_bits(questions, outputs) / 8
        return self._priced(report, questions)

    def _priced(self, report: DefenseReport, questions: int) -> DefenseReport:
        """Add what so many noisy answers cost of every hospital's privacy."""
        if self.settings.noise:
            report.zcdp = questions / self.settings.noise**2
            report.figures["pate_epsilon"] = gaussian_epsilon(report.zcdp, DELTA)
        return report


class Ensemble:
    """A round's uploads as networks that answer, of which only one is in memory at a time.

    Args:
        release: of whose network they are the weights.

    Raises:
        FlSimError: if it has no uploads.
    """

    def __init__(self, release: Release) -> None:
        self._uploads = release.received()
        self._held_out, self._task = release.held_out, release.task
        self._network = copy.deepcopy(release.model).eval()

    @property
    def voters(self) -> int:
        """How many uploads there are."""
        return len(self._uploads)

    @torch.no_grad()
    def together(self, asked: torch.Tensor, combine: Combine) -> torch.Tensor:
        """Return what the uploads answer together, as logits; see :func:`combined`.

        Args:
            asked: views ``[n, channels, side, side]``, normalised, on the network's device.
            combine: how their answers become one.
        """
        answers = torch.stack([self._network(asked) for _ in self._in_turn()])
        return combined(answers, combine, self._task)

    @torch.no_grad()
    def votes(self) -> torch.Tensor:
        """Return how many uploads answer what to each held-out image, asked once as it is.

        Returns:
            Counts ``[n, classes, ...]``, of a segmentation for each pixel; of several labels an
            image ``[n, 2, labels]``, those who say no and yes.
        """
        counts: list[torch.Tensor] = []
        device = next(self._network.parameters()).device
        starts = range(0, len(self._held_out), _BATCH)
        for _ in self._in_turn():
            for number, first in enumerate(starts):
                pixels, _ = self._held_out.batch(slice(first, first + _BATCH))
                given = ballots(self._network(normalized(pixels.to(device))).cpu(), self._task)
                if number == len(counts):
                    counts.append(given)
                else:
                    counts[number] += given
        return torch.cat(counts).float()

    def _in_turn(self) -> Iterator[None]:
        """Give the network each upload's weights in turn."""
        for state in self._uploads:
            self._network.load_state_dict(state)
            yield


def combined(answers: torch.Tensor, combine: Combine, task: Task) -> torch.Tensor:
    """Return what hospitals answer together, as logits ``[n, outputs, ...]``.

    An upload has no say about an image, or pixel, where its logits are not finite or exceed
    :data:`LARGEST`; where none has, the answer is NaN.

    Args:
        answers: logits ``[uploads, n, outputs, ...]``.
        combine: ``"mean"`` of logits, or ``"median"`` of log-probabilities, of several labels an
            image of log-odds; with an even number the mean of the two in the middle.
        task: what they are answers to.
    """
    sound = answers.abs().amax(dim=2, keepdim=True) <= LARGEST
    if combine == "mean":
        return answers.where(sound, torch.nan).nanmean(dim=0)
    if task.multi_label:
        return _median(answers.where(sound, torch.nan))
    middle = _median(log_softmax(answers, dim=2).where(sound, torch.nan))
    return log_softmax(middle, dim=1)


def _median(values: torch.Tensor) -> torch.Tensor:
    """Return the median of the first dimension without NaN; of an even number the middle's mean."""
    count = (~values.isnan()).sum(dim=0, keepdim=True)
    ranked = values.sort(dim=0).values  # NaN comes last
    low = ranked.gather(0, (count - 1).clamp(min=0) // 2)
    high = ranked.gather(0, (count // 2).clamp(max=len(values) - 1))
    return torch.lerp(low, high, 0.5)[0]


def ballots(answers: torch.Tensor, task: Task) -> torch.Tensor:
    """Return an upload's votes, zeros and ones ``[n, classes, ...]``: one for each top answer.

    Args:
        answers: logits ``[n, outputs, ...]``; NaN counts as 0, so that every answer is a vote.
        task: of several labels an image each one is voted on, ``[n, 2, labels]``: no and yes.
    """
    if task.multi_label:
        return torch.stack([~(answers > 0), answers > 0], dim=1).long()
    return one_hot(answers.nan_to_num().argmax(dim=1), task.outputs).movedim(-1, 1)


def noisy_top(counts: torch.Tensor, noise: float, stream: Stream) -> torch.Tensor:
    """Return the top of vote counts after Gaussian noise (GNMax), zeros and ones.

    Args:
        counts: ``[n, classes, ...]``.
        noise: its deviation, in votes.
        stream: where it is drawn from.
    """
    drawn = stream.numpy("noise on votes").normal(0.0, noise, tuple(counts.shape))
    top = (counts.double() + torch.from_numpy(drawn)).argmax(dim=1)
    return one_hot(top, counts.shape[1]).movedim(-1, 1).float()
