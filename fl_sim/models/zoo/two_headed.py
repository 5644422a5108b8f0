"""The two-headed network of DEC's internal scenario: one encoder, a utility branch, a decoder.

Li, Ayache and Delingette, MELBA 2025:032, section 2.2: the encoder of a learned codec is the
feature extractor of the utility network. The task's branch takes the encoder's output before
quantisation; the decoder, which the task never uses, leaves in the same file.
"""

from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, model_validator
from torch import nn

from fl_sim.codecs.base import CODECS, LearnedCodec
from fl_sim.errors import FlSimError
from fl_sim.models.base import MODELS, ModelEntry, ModelSpec
from fl_sim.models.branches import ClassificationBranch, SegmentationBranch
from fl_sim.settings import Settings, parse

_WHERE = "[model] codec"


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class TwoHeadedSettings(Settings):
    """Keys of the two-headed network.

    Args:
        codec: a registered learned codec, by its name or as a table of its name and settings.
    """

    codec: Annotated[dict[str, Any], BeforeValidator(_named)] = {"name": "factorized"}  # noqa: RUF012

    @model_validator(mode="after")
    def _complete(self) -> "TwoHeadedSettings":
        object.__setattr__(self, "codec", _checked(self.codec))
        return self


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


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    name, settings = _split(values)
    kind = CODECS.get(name)
    if not issubclass(kind, LearnedCodec):
        raise FlSimError(f"{_WHERE}: '{name}' is lossless and has no encoder to share.")
    return {"name": name, **parse(kind.Settings, settings, _WHERE).model_dump(mode="json")}


def _split(values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if not isinstance(values.get("name"), str):
        raise FlSimError(f"{_WHERE} lacks the key 'name'.")
    return values["name"], {key: value for key, value in values.items() if key != "name"}


def _build(spec: ModelSpec) -> nn.Module:
    codec = parse(TwoHeadedSettings, spec.settings, "[model]").codec
    name, settings = _split(codec)
    kind = CODECS.get(name)
    inner = kind(parse(kind.Settings, settings, _WHERE))
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
