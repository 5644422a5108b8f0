"""The mean-scale hyperprior codec of Minnen et al. 2018 (arXiv 1809.02736), on CompressAI."""

from torch import nn

from fl_sim.codec import CODECS
from fl_sim.codecs.factorized import ConvolutionalSettings
from fl_sim.codecs.learned import CompressAICodec
from fl_sim.codecs.scale_hyperprior import with_hyperprior


@CODECS.register(
    "mean_scale_hyperprior", "learned codec with a mean and scale hyperprior (Minnen et al. 2018)"
)
class MeanScaleHyperprior(CompressAICodec[ConvolutionalSettings]):
    """The mean-scale hyperprior codec; images of at least 16 pixels a side."""

    name = "mean_scale_hyperprior"
    Settings = ConvolutionalSettings
    prior = "mean-scale"

    @property
    def latent_channels(self) -> int:
        """Channels of ``y``."""
        return self.settings.M

    def build_network(self) -> nn.Module:
        """Return CompressAI's network."""
        from compressai.models.google import MeanScaleHyperprior as Whole

        return with_hyperprior(Whole(self.settings.N, self.settings.M), self.settings)
