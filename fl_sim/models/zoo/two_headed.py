"""The two-headed network of DEC's internal scenario: one encoder, a utility branch, a decoder.

Li, Ayache and Delingette, MELBA 2025:032, section 2.2: the encoder of a learned codec is the
feature extractor of the utility network. The task's branch takes the encoder's output before
quantisation; the decoder, which the task never uses, leaves in the same file.
"""

from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field
from torch import nn

from fl_sim.codec import CODECS, LearnedCodec
from fl_sim.component import Component
from fl_sim.errors import FlSimError
from fl_sim.models.base import MODELS, ModelEntry, ModelSpec
from fl_sim.models.branches import ClassificationBranch, SegmentationBranch
from fl_sim.settings import Settings, parse

_WHERE = "[model] codec"


def _checked(value: Any) -> dict[str, Any]:
    codec = Component.of(value, _WHERE)
    if not issubclass(CODECS.get(codec.name), LearnedCodec):
        raise FlSimError(f"{_WHERE}: '{codec.name}' is lossless and has no encoder to share.")
    return {"name": codec.name, **codec.checked(CODECS, _WHERE).settings}


class TwoHeadedSettings(Settings):
    """Keys of the two-headed network.

    Args:
        codec: a registered learned codec, by its name or as a table of its name and settings.
    """

    codec: Annotated[dict[str, Any], BeforeValidator(_checked), Field(validate_default=True)] = {  # noqa: RUF012
        "name": "factorized"
    }


class TwoHeaded(nn.Module):
    """A classifier or segmentation network on a codec's encoder, with the codec inside.

    Takes ``[n, channels, size, size]`` in [-1, 1]. Only the encoder and the branch are used.

    Args:
        inner: the codec; its network's parameters are this network's.
        branch: the task's head on the encoder's features.
        size: side of the images in pixels.
    """

    def __init__(self, inner: LearnedCodec[Any], branch: nn.Module, size: int) -> None:
        super().__init__()
        self.inner = inner
        self.codec = inner.network
        self.branch = branch
        rest = -size % inner.stride
        self.pad = nn.ReplicationPad2d((0, rest, 0, rest))

    @property
    def encoder(self) -> nn.Module:
        """The codec's encoder, up to its latents."""
        return self.codec.get_submodule("g_a")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the task's logits.

        The same as the codec's ``analysis``, but for the sizes that it checks and computes, which
        a traced graph cannot have.
        """
        three = ((images + 1) / 2).expand(-1, 3, -1, -1)
        logits: torch.Tensor = self.branch(self.encoder(self.pad(three)))
        return logits


def _build(spec: ModelSpec) -> nn.Module:
    codec = parse(TwoHeadedSettings, spec.settings, "[model]").codec
    inner = Component.of(codec, _WHERE).build(CODECS, _WHERE)
    assert isinstance(inner, LearnedCodec)  # or the settings would have been refused
    channels = inner.latent_channels
    if spec.task == "segmentation":
        branch: nn.Module = SegmentationBranch(channels, spec.classes, spec.size, inner.stride)
    else:
        branch = ClassificationBranch(channels, spec.classes)
    return TwoHeaded(inner, branch, spec.size)


MODELS.register("two_headed", "a codec's encoder with a task branch, and its decoder inside (DEC)")(
    ModelEntry(
        _build,
        {"default": 16},
        settings=TwoHeadedSettings,
        tasks=("classification", "segmentation"),
    )
)
