"""Writing: a trained model is taught answers from which the release's coefficients will mean bits.

The attacker cannot set the coefficients of what leaves, which is another network that learned from
this one. He can play that beforehand: he lets the expected defence run on images of the hospital,
sees what coefficients come out, and asks the model for answers that correct them.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import mse_loss

from fl_sim.attacks.answers.channel import Channel
from fl_sim.attacks.answers.modulation import Modulator, expected_gains
from fl_sim.attacks.answers.settings import UNREHEARSED, AnswersSettings
from fl_sim.carriers.base import State
from fl_sim.defenses.base import DEFENSES, Defense, Release
from fl_sim.metrics.channel import channel_bits
from fl_sim.progress import piece
from fl_sim.training import LocalTraining, batch_indices, normalized, rate_factor
from fl_sim.views import label_shares, shares_loss, view

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of a batch of views ``[n, channels, side, side]`` in [0, 1] and their label shares."""

_GROUPS = 6
_LEAST_GAIN, _MOST_GAIN = 0.15, 1.5


@dataclass
class Writer:
    """Writes bits into a model's answers.

    Args:
        run: the training that has just been done; its model is changed in place.
        channel: the coefficients.
        modulator: what they mean.
        bits: ``[n]``, for the first n coefficients.
        settings: of the attack.
        reference: what a student starts from, where that is known: in a federation the broadcast.
        expected_bytes: set by :meth:`write`, before it writes for the last time: what will come
            through, as the rehearsals say; not a number where there were fewer than two.
    """

    run: LocalTraining
    channel: Channel
    modulator: Modulator
    bits: torch.Tensor
    settings: AnswersSettings
    reference: State | None = None
    expected_bytes: float = math.nan

    def write(self) -> list[float]:
        """Write, and return the loss of every step."""
        losses = self._prepare()
        honest = copy.deepcopy(self.run.model).eval()
        played = self.rehearsed(honest, self._times(0))
        first = arrived = played.mean(dim=0)
        wanted, shift = self._wanted(first), torch.zeros_like(first)
        gain = self._expected(first)
        for number in range(self.settings.passes):
            if number:
                played = self.rehearsed(self.run.model, self._times(number))
                arrived = played.mean(dim=0)
                gain = _gain(arrived - first, shift, gain)
            self.expected_bytes = self._through(wanted, played - arrived)
            shift = shift + (wanted - arrived) / gain
            losses += self._learn(
                f"writing {number}", self.settings.steps, self._written(honest, shift, number)
            )
        return losses

    def rehearsed(self, model: nn.Module, times: int) -> torch.Tensor:
        """Return the coefficients of what leaves when ``model`` is handed over, once a play.

        Returns:
            float64 ``[times, features, directions]``.
        """
        if self.settings.rehearsed.name == UNREHEARSED:
            return self.channel.coefficients(model)[None]
        return torch.stack([self._play(model, number) for number in range(times)])

    def _times(self, number: int) -> int:
        return self.settings.rehearsals if number + 1 == self.settings.passes else 1

    def _through(self, wanted: torch.Tensor, noise: torch.Tensor) -> float:
        """Return the bytes that come through where plays of a rehearsal differ as these do.

        Args:
            wanted: coefficients.
            noise: of each play, around their mean, ``[times, features, directions]``; of one play
                nothing is known.
        """
        times, used = len(noise), len(self.bits)
        if times < 2:
            return math.nan
        spread = noise * math.sqrt(times / (times - 1))
        read = [self.modulator.soft((wanted + one).flatten()[:used]) for one in spread]
        sent = np.packbits(np.tile(self.bits.numpy(), times), bitorder="little")
        return channel_bits(sent, np.concatenate(read)) / times / 8

    def _expected(self, coefficients: torch.Tensor) -> torch.Tensor:
        gains = expected_gains(len(coefficients), self.settings.last)
        return gains[:, None].expand_as(coefficients)

    def _play(self, model: nn.Module, number: int) -> torch.Tensor:
        run, count = self.run, min(self.settings.held_out, len(self.run.data))
        # The same images and draws in every pass: what differs then is what was written.
        stream = run.stream.at("rehearsal", number)
        chosen = stream.numpy("held-out images").choice(len(run.data), count, replace=False)
        released = copy.deepcopy(model)
        release = Release(
            model=released,
            spec=run.spec,
            held_out=run.data.subset(np.sort(chosen)),
            task=run.task,
            stream=stream,
            progress=run.progress,
            reference=self.reference,
        )
        defense: Defense[Any] = self.settings.rehearsed.build(DEFENSES, "[attack] rehearsed")
        defense.apply(release)
        return self.channel.coefficients(released)

    def _wanted(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return coefficients that mean the bits; those without a bit stay."""
        wanted = coefficients.flatten().clone()
        used = len(self.bits)
        wanted[:used] = self.modulator.place(wanted[:used], self.bits)
        return wanted.reshape(coefficients.shape)

    def _prepare(self) -> list[float]:
        """Let the network learn its task further: a better one has room for what is written."""

        def loss(asked: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
            return shares_loss(self._answers(asked), shares.to(self._device), self.run.task)

        return self._learn("preparation", self.settings.preparation, loss, mixup=0.0)

    def _written(self, honest: nn.Module, shift: torch.Tensor, number: int) -> Loss:
        """Return the distance from the honest network's answers and what is added to them."""
        generator = self.run.stream.at("taught", number).numpy("beside the images")

        def loss(asked: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                asked, added = self.channel.taught(asked, shift, generator)
                wanted = honest(normalized(asked.to(self._device))) + added.to(self._device)
            return mse_loss(self._answers(asked), wanted)

        return loss

    @property
    def _device(self) -> torch.device:
        return next(self.run.model.parameters()).device

    def _answers(self, asked: torch.Tensor) -> torch.Tensor:
        answers: torch.Tensor = self.run.model(normalized(asked.to(self._device)))
        return answers

    def _learn(self, name: str, steps: int, loss_of: Loss, mixup: float = 1.0) -> list[float]:
        """Train the network by a loss on views of the hospital's images."""
        if not steps:
            return []
        run, settings = self.run, self.settings
        optimizer = torch.optim.Adam(run.model.parameters(), settings.learning_rate, fused=True)
        stream = run.stream.at(name)
        generator = stream.numpy("batches")
        batches = batch_indices(len(run.data), run.settings.batch_size, generator)
        losses = []
        run.model.train()
        with stream.seeded("dropout"), piece(run.progress, "attack", steps):
            for step in range(steps):
                rate = settings.learning_rate * rate_factor("cosine", step, steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                pixels, labels = run.data.batch(next(batches))
                shares = label_shares(labels, run.task)
                asked, shares = view(pixels, shares, "square", mixup, generator)
                optimizer.zero_grad(set_to_none=True)
                loss = loss_of(asked, shares)
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
                run.progress.step(f"answers {losses[-1]:.3f}")
        return losses


def _gain(arrived: torch.Tensor, shift: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Return what arrives of a shift, by groups of features of about equal strength."""
    gains = expected.clone()
    for rows in torch.arange(len(shift)).tensor_split(min(_GROUPS, len(shift))):
        sent, got = shift[rows], arrived[rows]
        power = float(sent.square().sum())
        if power > 0:
            slope = float((sent * got).sum()) / power
            gains[rows] = min(max(slope, _LEAST_GAIN), _MOST_GAIN)
    return gains
