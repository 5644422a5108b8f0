"""The scale-hyperprior codec of Ballé et al. 2018 (arXiv 1802.01436) on CompressAI."""

from torch import nn

from fl_sim.codec import CODECS
from fl_sim.codecs.factorized import ConvolutionalSettings, transforms
from fl_sim.codecs.learned import CompressAICodec


@CODECS.register("scale_hyperprior", "learned codec with a scale hyperprior (Ballé et al. 2018)")
class ScaleHyperprior(CompressAICodec[ConvolutionalSettings]):
    """The scale-hyperprior codec; images of at least 16 pixels a side."""

    name = "scale_hyperprior"
    Settings = ConvolutionalSettings
    prior = "scale"

    @property
    def latent_channels(self) -> int:
        """Channels of ``y``."""
        return self.settings.M

    def build_network(self) -> nn.Module:
        """Return CompressAI's network."""
        from compressai.models.google import ScaleHyperprior as Whole

        return with_hyperprior(Whole(self.settings.N, self.settings.M), self.settings)


def with_hyperprior(whole: nn.Module, settings: ConvolutionalSettings) -> nn.Module:
    """Return the settings' encoder and decoder with the hyperprior of a CompressAI network."""
    from compressai.entropy_models import GaussianConditional
    from compressai.models.base import get_scale_table

    network = transforms(settings)
    network.entropy_bottleneck = whole.entropy_bottleneck
    network.h_a, network.h_s = whole.h_a, whole.h_s
    network.gaussian_conditional = GaussianConditional(get_scale_table().tolist())
    return network
