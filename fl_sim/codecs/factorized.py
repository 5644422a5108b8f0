"""The factorized-prior codec of Ballé et al. 2018 (arXiv 1802.01436) on CompressAI."""

from typing import Literal

from pydantic import Field
from torch import nn

from fl_sim.codec import CODECS
from fl_sim.codecs.learned import CompressAICodec
from fl_sim.codecs.training import LearnedSettings


class ConvolutionalSettings(LearnedSettings):
    """Settings of the codecs with CompressAI's four-layer networks.

    Args:
        N: channels within the networks.
        M: channels of the latents.
        activation: ``"gdn"`` is the paper's; ``"relu"`` is 5 to 10 times faster on a CPU.
        lmbda, learning_rate, max_steps: see :class:`LearnedSettings`; these suit images of 28
            pixels a side and a few minutes of one processor core.
    """

    N: int = Field(48, ge=4)
    M: int = Field(32, ge=4)
    activation: Literal["relu", "gdn"] = "relu"
    lmbda: float = Field(0.018, gt=0)
    learning_rate: float = Field(3e-3, gt=0)
    max_steps: int = Field(3000, ge=1)


@CODECS.register("factorized", "learned codec, one distribution a channel (Ballé et al. 2018)")
class Factorized(CompressAICodec[ConvolutionalSettings]):
    """The factorized-prior codec; images of at least 16 pixels a side."""

    name = "factorized"
    Settings = ConvolutionalSettings
    prior = "factorized"

    @property
    def latent_channels(self) -> int:
        """Channels of ``y``."""
        return self.settings.M

    def build_network(self) -> nn.Module:
        """Return CompressAI's network."""
        from compressai.entropy_models import EntropyBottleneck

        network = transforms(self.settings)
        network.entropy_bottleneck = EntropyBottleneck(self.settings.M)
        return network


def transforms(settings: ConvolutionalSettings) -> nn.Module:
    """Return a module with CompressAI's encoder ``g_a`` and decoder ``g_s``, and nothing else."""
    from compressai.models.google import FactorizedPrior, FactorizedPriorReLU

    kind = FactorizedPrior if settings.activation == "gdn" else FactorizedPriorReLU
    whole, network = kind(settings.N, settings.M), nn.Module()
    network.g_a, network.g_s = whole.g_a, whole.g_s
    return network
