"""Writing: a trained model is taught answers from which the release's coefficients will mean bits.

The attacker cannot set the coefficients of what leaves, which is another network that learned from
this one. He can play that beforehand: he lets the expected defence run on images of the hospital,
sees what coefficients come out, and asks the model for answers that correct them.
"""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import mse_loss

from fl_sim.attacks.answers.channel import Channel
from fl_sim.attacks.answers.modulation import GAIN, Modulator
from fl_sim.attacks.answers.settings import UNREHEARSED, AnswersSettings
from fl_sim.carriers.base import State
from fl_sim.defenses.base import DEFENSES, Defense, Release
from fl_sim.progress import piece
from fl_sim.training import LocalTraining, batch_indices, normalized, rate_factor
from fl_sim.views import label_shares, view

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
    """

    run: LocalTraining
    channel: Channel
    modulator: Modulator
    bits: torch.Tensor
    settings: AnswersSettings
    reference: State | None = None

    def write(self) -> list[float]:
        """Write, and return the loss of every step."""
        honest = copy.deepcopy(self.run.model).eval()
        arrived = first = self.rehearsed(honest)
        shift = torch.zeros_like(first)
        gain = torch.full_like(first, GAIN)
        losses: list[float] = []
        for number in range(self.settings.passes):
            if number:
                arrived = self.rehearsed(self.run.model)
                gain = _gain(arrived - first, shift)
            shift = shift + (self._wanted(arrived) - arrived) / gain
            losses += self._teach(honest, shift, number)
        return losses

    def rehearsed(self, model: nn.Module) -> torch.Tensor:
        """Return the mean coefficients of what leaves when ``model`` is handed over."""
        if self.settings.rehearsed.name == UNREHEARSED:
            return self.channel.coefficients(model)
        played = [self._play(model, number) for number in range(self.settings.rehearsals)]
        return torch.stack(played).mean(dim=0)

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
        """Return the nearest coefficients that mean the bits; those without a bit stay."""
        wanted = coefficients.flatten().clone()
        used = len(self.bits)
        wanted[:used] = self.modulator.place(wanted[:used], self.bits)
        return wanted.reshape(coefficients.shape)

    def _teach(self, honest: nn.Module, shift: torch.Tensor, number: int) -> list[float]:
        """Teach the model the honest one's answers and what is added to them."""
        run, settings = self.run, self.settings
        device = next(run.model.parameters()).device
        optimizer = torch.optim.Adam(run.model.parameters(), settings.learning_rate, fused=True)
        generator = run.stream.at("writing", number).numpy("batches")
        batches = batch_indices(len(run.data), run.settings.batch_size, generator)
        losses = []
        run.model.train()
        with (
            run.stream.at("writing", number).seeded("dropout"),
            piece(run.progress, "attack", settings.steps),
        ):
            for step in range(settings.steps):
                rate = settings.learning_rate * rate_factor("cosine", step, settings.steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                pixels, labels = run.data.batch(next(batches))
                shares = label_shares(labels, run.task)
                asked, _ = view(pixels, shares, "square", 1.0, generator)
                with torch.no_grad():
                    wanted = honest(normalized(asked.to(device)))
                    wanted = wanted + self.channel.added(asked, shift).to(device)
                optimizer.zero_grad(set_to_none=True)
                loss = mse_loss(run.model(normalized(asked.to(device))), wanted)
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
                run.progress.step(f"answers {losses[-1]:.3f}")
        return losses


def _gain(arrived: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return what arrives of a shift, by groups of features of about equal strength."""
    gains = torch.full_like(shift, GAIN)
    for rows in torch.arange(len(shift)).tensor_split(min(_GROUPS, len(shift))):
        sent, got = shift[rows], arrived[rows]
        power = float(sent.square().sum())
        if power > 0:
            slope = float((sent * got).sum()) / power
            gains[rows] = min(max(slope, _LEAST_GAIN), _MOST_GAIN)
    return gains
