"""Training HiFiC: the rate-distortion loss, and a discriminator that joins after a warm-up."""

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from fl_sim.codecs.hific.discriminator import Discriminator
from fl_sim.codecs.hific.networks import LEVELS
from fl_sim.codecs.hific.perceptual import Perceptual
from fl_sim.codecs.learned import RateDistortionTrainer
from fl_sim.randomness import Stream

if TYPE_CHECKING:
    from fl_sim.codecs.hific import Hific

_CLIP = 1.0  # as the other learned codecs


class HificTrainer(RateDistortionTrainer):
    """Alternates a step of the discriminator and one of the codec, on the same batch.

    The adversarial losses are the non-saturating ones (Goodfellow et al. 2014; Mentzer et al. 2020,
    equations 3, 4 and 7).

    Args:
        codec: whose network is trained, in place.
        stream: where the noise and the discriminator's weights are derived from.

    Raises:
        FlSimError: if LPIPS is asked for and its weights are not on disk.
    """

    def __init__(self, codec: "Hific", stream: Stream) -> None:
        super().__init__(codec, stream)
        self._settings = codec.settings
        device = next(codec.network.parameters()).device
        with stream.seeded("discriminator weights"):
            discriminator = Discriminator(codec.settings.latent, codec.settings.width)
        self._discriminator = discriminator.to(device)
        self._adversary = torch.optim.Adam(
            self._discriminator.parameters(), codec.settings.learning_rate, fused=True
        )
        self._perceptual = Perceptual().to(device) if codec.settings.perceptual_weight else None
        self._factor = 1.0
        self.set_rate(1.0)

    @property
    def adversarial(self) -> bool:
        """Whether the next step trains the discriminator, and the codec against it."""
        return self._settings.gan_weight > 0 and self._steps >= self._settings.warm_up

    def step(self, images: torch.Tensor) -> dict[str, float]:
        """Take one step.

        Returns:
            ``"codec"`` (the whole loss), ``"bpp"``, ``"mse"`` and, where they have a part in it,
            ``"lpips"``, ``"gan"`` (the codec's adversarial loss) and ``"discriminator"``.
        """
        self.codec.network.train()
        if self.adversarial:
            self._set_rates()
        with self._stream.at(self._steps).seeded("quantisation noise"):
            out = self.codec.forward(images)
        images = images.to(out.images.device)
        losses = {"bpp": out.bpp(), "mse": functional.mse_loss(out.images, images)}
        if self._perceptual is not None:
            losses["lpips"] = self._perceptual(images, out.images)
        noted: dict[str, float] = {}
        if self.adversarial:
            latents = out.latents.detach()
            real, fake = (_whole_patches(batch, latents) for batch in (images, out.images))
            noted["discriminator"] = self._train_discriminator(real, fake.detach(), latents)
            self._discriminator.requires_grad_(False)
            losses["gan"] = functional.softplus(-self._discriminator(fake, latents)).mean()
        loss = self._whole_loss(losses)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, _CLIP)
        self._optimizer.step()
        self._steps += 1
        values = {name: float(value.detach()) for name, value in losses.items()}
        return {"codec": float(loss.detach()), **values, **noted}

    def set_rate(self, factor: float) -> None:
        """Scale the learning rates of the codec and the discriminator."""
        self._factor = factor
        self._set_rates()

    @torch.no_grad()
    def evaluate(self, images: torch.Tensor) -> dict[str, float]:
        """Return ``"bpp"``, ``"psnr"`` and their loss, without perceptual and adversarial parts."""
        values = super().evaluate(images)
        excess = self._rate_weight(values["bpp"]) - 1.0
        return {**values, "loss": values["loss"] + excess * values["bpp"]}

    def _set_rates(self) -> None:
        share = self._settings.gan_learning_rate if self.adversarial else 1.0
        rate = self._factor * share * self._settings.learning_rate
        for optimizer in (self._optimizer, self._adversary):
            for group in optimizer.param_groups:
                group["lr"] = rate

    def _train_discriminator(
        self, real: torch.Tensor, fake: torch.Tensor, latents: torch.Tensor
    ) -> float:
        self._discriminator.requires_grad_(True)
        self._adversary.zero_grad(set_to_none=True)
        seen_real, seen_fake = (self._discriminator(batch, latents) for batch in (real, fake))
        loss = functional.softplus(-seen_real).mean() + functional.softplus(seen_fake).mean()
        loss.backward()
        self._adversary.step()
        return float(loss.detach())

    def _whole_loss(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        chosen = self._settings
        rate = self._rate_weight(float(losses["bpp"].detach()))
        weights = {
            "bpp": rate,
            "mse": chosen.lmbda * 255**2,
            "lpips": chosen.perceptual_weight,
            "gan": chosen.gan_weight,
        }
        return torch.stack([weights[name] * value for name, value in losses.items()]).sum()

    def _rate_weight(self, bpp: float) -> float:
        # HiFiC's rate control: a rate above the target costs many times more than one below.
        if self._settings.target_bpp is None:
            return 1.0
        above = bpp > self._settings.target_bpp
        return self._settings.rate_above if above else self._settings.rate_below


def _whole_patches(images: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Pad images to the size that their latents stand for; grey ones become three channels."""
    height, width = (side << LEVELS for side in latents.shape[-2:])
    missing = (0, width - images.shape[-1], 0, height - images.shape[-2])
    return functional.pad(images.expand(-1, 3, -1, -1), missing, mode="replicate")
