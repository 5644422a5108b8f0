"""HiFiC, the codec of the DEC attack: a mean-scale hyperprior trained against a discriminator.

Mentzer, Toderici, Tschannen and Agustsson, "High-Fidelity Generative Image Compression", NeurIPS
2020 (arXiv 2006.09965), as used by Li, Ayache and Delingette, "Data Exfiltration by Compression
Attack", MELBA 2025:032, sections 2.2 and 2.3: fewer latent channels, and the decoder D1 without
residual blocks. At width 1 and 220 latent channels D has 156.8 million parameters (627 MB) and D1
7.4 million (30 MB); the encoder has 7.4, all of HiFiC 181.5 million.
"""

import copy

import torch
from pydantic import Field, model_validator
from torch import nn

from fl_sim.codec import CODECS, CodecTrainer, FitReport
from fl_sim.codecs.hific.networks import HificNetwork
from fl_sim.codecs.hific.trainer import HificTrainer
from fl_sim.codecs.learned import CompressAICodec, Forward
from fl_sim.codecs.training import LearnedSettings
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream

CHANNELS = {220: 320, 110: 160, 50: 80, 25: 40, 12: 20, 6: 10}
"""The DEC paper's configurations: hyperlatent channels by latent channels."""


class HificSettings(LearnedSettings):
    """Settings of HiFiC.

    The loss is ``lmbda * 255^2 * MSE + rate * bits a pixel + perceptual_weight * LPIPS +
    gan_weight * adversarial loss`` (Mentzer et al. 2020, equation 7, with ``lmbda`` in the place of
    k_M). ``rate`` is 1, or with a ``target_bpp`` one of two values. HiFiC itself: ``width = 1``,
    ``latent = 220``, ``hyper = 320``, ``lmbda = 0.00234``, ``perceptual_weight = 1``,
    ``gan_weight = 0.15``, ``target_bpp = 0.14``, ``learning_rate = 1e-4``, ``batch_size = 8``,
    ``crop = 256``, two million steps.

    Args:
        latent: channels of the latents; the DEC paper's 220, 110, 50, 25, 12 or 6, or any other.
        hyper: channels of the hyperlatents; by default what the DEC paper pairs with ``latent``,
            and for other numbers 1.6 times as many.
        width: factor on the filters of encoder, generator and discriminator; 1 is the paper's.
        residual_blocks: of the generator; 9 is the paper's D, 0 its reduced D1.
        gan_weight: of the adversarial loss; 0 trains without a discriminator.
        gan_after: steps before the discriminator joins; by default half of ``max_steps``, which is
            HiFiC's own share. Training has a stage before and one after, each with its own fall of
            the learning rate and its own choice of the best weights.
        gan_learning_rate: of the codec and the discriminator once both train, as a share of
            ``learning_rate``; the default makes it HiFiC's own 1e-4.
        perceptual_weight: of LPIPS, for which torchvision's AlexNet weights must be on disk.
        target_bpp: bits a pixel to aim at; by default the rate is what the losses make it.
        rate_above: weight of the rate where it is above the target (HiFiC's lambda a).
        rate_below: weight of the rate where it is not (HiFiC's lambda b).
    """

    latent: int = Field(50, ge=2, le=1024)
    hyper: int | None = Field(None, ge=2, le=1024)
    width: float = Field(0.25, ge=0.05, le=2)
    residual_blocks: int = Field(0, ge=0, le=32)
    gan_weight: float = Field(0.15, ge=0)
    gan_after: int | None = Field(None, ge=0)
    gan_learning_rate: float = Field(0.1, gt=0, le=1)
    perceptual_weight: float = Field(0.0, ge=0)
    target_bpp: float | None = Field(None, gt=0)
    rate_above: float = Field(2.0, gt=0)
    rate_below: float = Field(0.0625, gt=0)

    @model_validator(mode="after")
    def _check_rates(self) -> "HificSettings":
        if self.rate_above < self.rate_below:
            raise ValueError(
                f"rate_above is {self.rate_above:g}, which must not be under rate_below "
                f"({self.rate_below:g})."
            )
        return self

    @property
    def hyper_channels(self) -> int:
        """Channels of the hyperlatents."""
        if self.hyper is not None:
            return self.hyper
        return CHANNELS.get(self.latent, max(2, round(1.6 * self.latent)))

    @property
    def warm_up(self) -> int:
        """Steps without a discriminator."""
        return self.max_steps // 2 if self.gan_after is None else self.gan_after


@CODECS.register("hific", "generative codec of the DEC attack (Mentzer et al. 2020)")
class Hific(CompressAICodec[HificSettings]):
    """HiFiC; images of at least 16 pixels a side.

    The discriminator belongs to the trainer: it is neither in the network nor in what leaves.
    """

    name = "hific"
    Settings = HificSettings
    prior = "mean-scale"
    stride = 16
    hyper_stride = 4

    @property
    def latent_channels(self) -> int:
        """Channels of ``y``."""
        return self.settings.latent

    def build_network(self) -> nn.Module:
        """Return encoder, generator, hyperprior and entropy models."""
        chosen = self.settings
        return HificNetwork(
            chosen.latent, chosen.hyper_channels, chosen.width, chosen.residual_blocks
        )

    def fit(
        self,
        images: torch.Tensor,
        validation: torch.Tensor,
        stream: Stream,
        progress: Progress = SILENT,
    ) -> FitReport:
        """Train without, then with the discriminator; see :class:`Codec`."""
        whole = self.settings
        first = whole.max_steps if whole.gan_weight == 0 else min(whole.warm_up, whole.max_steps)
        reports = []
        if first:
            changes = {"gan_weight": 0.0, "max_steps": first}
            reports.append(self._stage(changes, False, images, validation, stream, progress))
        if first < whole.max_steps:
            changes = {"gan_after": 0, "max_steps": whole.max_steps - first}
            second = stream.at("adversarial")
            reports.append(self._stage(changes, first > 0, images, validation, second, progress))
        return _joined(reports)

    def trainer(self, stream: Stream) -> CodecTrainer:
        """Return the trainer of network and discriminator."""
        return HificTrainer(self, stream)

    def forward(self, images: torch.Tensor, training: bool = True) -> Forward:
        """Encode and decode; in training the rate is that of noisy latents, the image of rounded.

        Mentzer et al. 2020, section 3.3: the generator sees what it will see in use, and gradients
        pass the rounding as if it were not there.
        """
        if not training:
            return super().forward(images, training=False)
        network = self.network
        assert isinstance(network, HificNetwork)
        y = self.analysis(images)
        z_noisy, z_likelihood = network.entropy_bottleneck(self._hyper_analysis(y), training=True)
        scales, means = self._parameters(network.h_s(z_noisy), y.shape[-2:])
        _, y_likelihood = network.gaussian_conditional(y, scales, means=means, training=True)
        assert means is not None
        residual = y - means
        y_hat = y + (residual.round() - residual).detach()
        decoded = self._raw_synthesis(y_hat, images.shape[1:])
        return Forward(decoded, y_hat, {"y": y_likelihood, "z": z_likelihood})

    def _stage(
        self,
        changes: dict[str, float],
        further: bool,
        images: torch.Tensor,
        validation: torch.Tensor,
        stream: Stream,
        progress: Progress,
    ) -> FitReport:
        """Train the same network with some settings changed, ``further`` or from the start."""
        stage = copy.copy(self)
        stage.settings = self.settings.model_copy(update=changes)
        stage._loaded = self._loaded or further
        report = super(Hific, stage).fit(images, validation, stream, progress)
        self._frozen = stage._frozen
        return report


def _joined(reports: list[FitReport]) -> FitReport:
    """Put the reports of stages together as one training."""
    whole = FitReport(stopped=reports[-1].stopped)
    for report in reports:
        for name, values in report.curves.items():
            shift = whole.steps if name == "step" else 0
            whole.curves.setdefault(name, []).extend(value + shift for value in values)
        whole.steps += report.steps
        whole.seconds += report.seconds
    return whole
