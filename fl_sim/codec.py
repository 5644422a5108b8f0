"""What a codec is: images to bytes inside the hospital, bytes to images outside.

A codec does not know how its bytes travel. Whoever decodes has the codec file, or the part of it
that decoding needs, exactly as it was saved; nothing is estimated anew from data.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import nn

from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream
from fl_sim.registry import Registry
from fl_sim.settings import Settings

ImageShape = tuple[int, int, int]
"""Channels (1 or 3), height, width of one image."""

CodecSettingsT = TypeVar("CodecSettingsT", bound=Settings)


@dataclass
class FitReport:
    """What training a codec did.

    Args:
        steps: optimizer steps taken.
        seconds: wall time.
        curves: values by name, one each validation: ``"step"``, ``"loss"``, ``"bpp"``, ``"psnr"``.
        stopped: ``"plateau"`` or ``"limit"`` (all steps); ``"nothing to fit"`` for lossless codecs.
    """

    steps: int = 0
    seconds: float = 0.0
    curves: dict[str, list[float]] = field(default_factory=dict)
    stopped: str = "nothing to fit"


class Codec(ABC, Generic[CodecSettingsT]):
    """A codec. Subclass, set ``Settings``, and register with ``CODECS``.

    Images are float32 ``[n, channels, height, width]`` in [0, 1] with 1 or 3 channels, of any size
    that the codec's documentation allows; one codec takes all of them.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[Settings]] = Settings
    lossless: ClassVar[bool] = False

    def __init__(self, settings: CodecSettingsT) -> None:
        self.settings = settings

    @property
    def code_bytes(self) -> int | None:
        """Length of every code, where all have the same; else ``None``."""
        return None

    @abstractmethod
    def fit(
        self,
        images: torch.Tensor,
        validation: torch.Tensor,
        stream: Stream,
        progress: Progress = SILENT,
    ) -> FitReport:
        """Train on images, in place; the same result for the same arguments on one machine.

        Args:
            images: to train on.
            validation: to watch for a plateau.
            stream: where randomness is derived from.
            progress: where to report.

        Raises:
            FlSimError: if there are no images, their size is impossible, or training diverges.
        """

    @abstractmethod
    def encode(self, images: torch.Tensor) -> list[bytes]:
        """Return each image's code.

        Raises:
            FlSimError: if the images' size is impossible, or the codec is not trained.
        """

    @abstractmethod
    def decode(self, codes: Sequence[bytes], shape: ImageShape) -> list[torch.Tensor | str]:
        """Return each image, or one sentence on why its code cannot be decoded.

        Codes may be damaged or garbage: that is a value here, never an exception, a hang, a crash
        or a large allocation. Images are float32 of ``shape`` in [0, 1].
        """

    @abstractmethod
    def tensors(self, decoder_only: bool = False) -> dict[str, torch.Tensor]:
        """Return weights and tables; with ``decoder_only``, those that :meth:`decode` needs."""

    @abstractmethod
    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take up what :meth:`tensors` returned; an encoder's part may be missing.

        Raises:
            FlSimError: if the tensors do not fit the settings.
        """


class LearnedCodec(Codec[CodecSettingsT]):
    """A codec with a network, whose latents ``y`` can travel instead of their entropy code."""

    network: nn.Module
    """Everything trained, one module; its parameters are what a trainer optimises."""

    stride: ClassVar[int] = 16
    """Pixels a latent stands for along a side; images are padded to multiples and cropped back."""

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """Number of channels of ``y``."""

    @abstractmethod
    def analysis(self, images: torch.Tensor) -> torch.Tensor:
        """The encoder before quantisation: images to ``y``, differentiable.

        Args:
            images: float32 ``[n, channels, height, width]`` in [0, 1], any size allowed.

        Returns:
            ``[n, latent_channels, ceil(height / stride), ceil(width / stride)]``.
        """

    @abstractmethod
    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """Return the decoded latents ``y_hat``: what a receiver has after entropy decoding."""

    @abstractmethod
    def synthesis(self, latents: torch.Tensor, shape: ImageShape) -> torch.Tensor:
        """The decoder: ``y_hat``, perhaps with noise, to images of ``shape`` in [0, 1]."""

    @abstractmethod
    def on_grid(self, latents: torch.Tensor) -> torch.Tensor:
        """Round noisy latents to the values that they can have; unchanged where any can be had."""

    @abstractmethod
    def trainer(self, stream: Stream) -> "CodecTrainer":
        """Return the optimizers and losses of this codec, for training it step by step."""

    @abstractmethod
    def freeze(self) -> None:
        """Build the entropy coder's integer tables from the network as it is now."""


class CodecTrainer(ABC):
    """Trains a codec's network, one batch at a time; holds the optimizers."""

    @abstractmethod
    def step(self, images: torch.Tensor) -> dict[str, float]:
        """Take one training step; returns losses by name, ``"codec"`` (the whole) among them.

        Args:
            images: float32 ``[n, channels, height, width]`` in [0, 1].
        """

    @abstractmethod
    def set_rate(self, factor: float) -> None:
        """Scale the learning rates of the settings by ``factor``, for schedules."""

    @abstractmethod
    def evaluate(self, images: torch.Tensor) -> dict[str, float]:
        """Return ``"loss"``, ``"bpp"`` and ``"psnr"`` on images, without training."""


CODECS: Registry[type[Codec[Any]]] = Registry("codec", "fl_sim.codecs")
