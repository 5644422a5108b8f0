"""What learned codecs on CompressAI's entropy models share.

An encoder ``g_a`` maps an image to latents ``y``, which are rounded, entropy coded, and mapped back
by a decoder ``g_s``. Their distribution is one of three:

- ``"factorized"``: one for each channel (Ballé et al. 2018, arXiv 1802.01436, section 2);
- ``"scale"``: Gaussian around zero, with scales that a second, small code ``z`` tells (a scale
  hyperprior; the same paper, section 3);
- ``"mean-scale"``: the same with means (Minnen et al. 2018, arXiv 1809.02736).
"""

import copy
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fl_sim.codec import CodecTrainer, FitReport, ImageShape, LearnedCodec
from fl_sim.codecs.entropy import (
    Integers,
    SymbolDecoder,
    Symbols,
    Tables,
    calibrated,
    encode_symbols,
    factorized_prior,
    gaussian_tables,
)
from fl_sim.codecs.training import LearnedSettings, fit
from fl_sim.errors import FlSimError
from fl_sim.progress import SILENT, Progress
from fl_sim.randomness import Stream, seeded

SMALLEST, LARGEST = 16, 4096
"""Sides of images that learned codecs take."""

LearnedSettingsT = TypeVar("LearnedSettingsT", bound=LearnedSettings)


@dataclass(frozen=True)
class Forward:
    """What a network makes of a batch in training.

    Args:
        images: decoded, of the batch's shape, not clamped.
        latents: ``y`` with noise, or rounded: what the decoder got.
        likelihoods: of ``"y"`` and, with a hyperprior, ``"z"``.
    """

    images: torch.Tensor
    latents: torch.Tensor
    likelihoods: dict[str, torch.Tensor]

    def bpp(self) -> torch.Tensor:
        """Bits a pixel, on average over the batch."""
        bits = sum((-torch.log2(p).sum() for p in self.likelihoods.values()), torch.zeros(()))
        return bits / (len(self.images) * self.images.shape[-2] * self.images.shape[-1])


@dataclass(frozen=True)
class _Frozen:
    """What was fixed by ``freeze``.

    Args:
        tables: of each channel of ``y`` or, where there is a hyperprior, of ``z``; then, if there
            is one, of each Gaussian scale.
        medians: what the channels' symbols count from, float32 ``[channels]``.
        scales: the Gaussian tables' scales, float64, rising.
    """

    tables: Tables
    medians: torch.Tensor
    scales: torch.Tensor | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return everything by name."""
        result = {**self.tables.tensors("tables."), "tables.medians": self.medians.clone()}
        if self.scales is not None:
            result["tables.scales"] = self.scales.clone()
        return result

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, torch.Tensor], channels: int, hyperprior: bool
    ) -> "_Frozen":
        """Rebuild it for so many channels; raises FlSimError where something does not fit."""
        tables = Tables.from_tensors(tensors, "tables.")
        medians, scales = tensors.get("tables.medians"), tensors.get("tables.scales")
        rows = channels + (0 if scales is None else scales.numel())
        if medians is None or medians.shape != (channels,) or len(tables.lengths) != rows:
            raise FlSimError(
                f"The entropy coder's tables do not fit a codec of {channels} channels."
            )
        if hyperprior != (scales is not None and scales.ndim == 1 and scales.numel() > 0):
            raise FlSimError("The entropy coder's tables are those of another kind of codec.")
        return cls(tables, medians.float(), None if scales is None else scales.double())


class CompressAICodec(LearnedCodec[LearnedSettingsT]):
    """A learned codec whose latents are coded with CompressAI's entropy models.

    A subclass sets ``name``, ``Settings`` (of :class:`LearnedSettings`), ``prior``, ``stride`` and
    ``hyper_stride``; it defines :meth:`build_network` and :attr:`latent_channels`, and may override
    :meth:`trainer` and :meth:`fit`. The network is any module with these attributes:

    - ``g_a``: images ``[n, 3, H, W]``, sides multiples of ``stride``, to ``[n, C, H/s, W/s]``;
    - ``g_s``: back to ``[n, 3, H, W]``, not clamped;
    - ``entropy_bottleneck``: CompressAI's ``EntropyBottleneck`` over the channels of ``y``
      (factorized) or of ``z`` (with a hyperprior);
    - with a hyperprior ``h_a``: ``y`` (``|y|`` for ``"scale"``), sides multiples of
      ``hyper_stride``, to ``z``, sides divided by ``hyper_stride``; ``h_s``: ``z`` back to scales
      ``[n, C, ...]``, or to scales and means, in this order, ``[n, 2C, ...]``; and
      ``gaussian_conditional``: CompressAI's ``GaussianConditional``.

    Networks map each image on its own, in the same way in training and in evaluation mode. Grey
    images go in as three equal channels and come out as the three channels' mean. Sides are padded
    by replication and cropped back. The network's state has no entropy tables, so its shapes never
    change and it can be part of a larger network; tables are fixed by :meth:`freeze` and kept
    beside it.
    """

    prior: ClassVar[Literal["factorized", "scale", "mean-scale"]]
    hyper_stride: ClassVar[int] = 4
    """Latents that a hyperlatent stands for along a side."""

    def __init__(self, settings: LearnedSettingsT) -> None:
        super().__init__(settings)
        self.network = self._initial_network(0)
        self._frozen: _Frozen | None = None
        self._loaded = False
        self._encodes = True

    @abstractmethod
    def build_network(self) -> nn.Module:
        """Return a new network, its weights drawn from torch's global generator."""

    def fit(
        self,
        images: torch.Tensor,
        validation: torch.Tensor,
        stream: Stream,
        progress: Progress = SILENT,
    ) -> FitReport:
        """Train; see :class:`Codec`.

        Weights that were loaded are trained further; otherwise training starts from new ones, drawn
        from the stream.
        """
        for batch in (images, validation):
            _check(tuple(batch.shape[1:]))
        self._require_encoder()
        if not self._loaded:
            start = self._initial_network(stream.seed, *stream.path)
            self.network.load_state_dict(start.state_dict())
        return fit(self, self.settings, images, validation, stream, progress)

    def trainer(self, stream: Stream) -> CodecTrainer:
        """Return a trainer for the rate-distortion loss; override for other losses."""
        return RateDistortionTrainer(self, stream)

    def freeze(self) -> None:
        """Build the entropy coder's tables from the network as it is now."""
        tables, medians = factorized_prior(_part(self.network, "entropy_bottleneck"))
        if self.prior == "factorized":
            self._frozen = _Frozen(tables, medians)
            return
        conditional = _part(self.network, "gaussian_conditional")
        scales = conditional.scale_table.detach().cpu().double()
        self._frozen = _Frozen(tables.joined(gaussian_tables(conditional)), medians, scales)

    def analysis(self, images: torch.Tensor) -> torch.Tensor:
        """Map images to ``y``; see :class:`LearnedCodec`."""
        _check(tuple(images.shape[1:]))
        three = images.expand(-1, 3, -1, -1)
        result: torch.Tensor = _part(self.network, "g_a")(
            _padded(three.to(self._device()), self.stride)
        )
        return result

    def synthesis(self, latents: torch.Tensor, shape: ImageShape) -> torch.Tensor:
        """Map ``y_hat`` to images of ``shape`` in [0, 1]; see :class:`LearnedCodec`."""
        return self._raw_synthesis(latents, shape).clamp(0, 1)

    def forward(self, images: torch.Tensor, training: bool = True) -> Forward:
        """Encode and decode, differentiably, with additive noise in the place of rounding.

        Args:
            images: float32 ``[n, channels, height, width]`` in [0, 1].
            training: with noise; otherwise rounded, by the distributions' medians of now.
        """
        bottleneck = _part(self.network, "entropy_bottleneck")
        if not training:
            bottleneck = calibrated(bottleneck).to(self._device())
        y = self.analysis(images)
        shape = tuple(images.shape[1:])
        if self.prior == "factorized":
            y_hat, likelihood = bottleneck(y, training=training)
            return Forward(self._raw_synthesis(y_hat, shape), y_hat, {"y": likelihood})
        z_hat, z_likelihood = bottleneck(self._hyper_analysis(y), training=training)
        scales, means = self._parameters(_part(self.network, "h_s")(z_hat), y.shape[-2:])
        conditional = _part(self.network, "gaussian_conditional")
        y_hat, likelihood = conditional(y, scales, means=means, training=training)
        likelihoods = {"y": likelihood, "z": z_likelihood}
        return Forward(self._raw_synthesis(y_hat, shape), y_hat, likelihoods)

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> list[bytes]:
        """Return each image's code: one string of ``z``'s symbols, if any, followed by ``y``'s."""
        frozen = self._require_frozen()
        return [
            encode_symbols(quantized.parts, frozen.tables)
            for batch in _batches(images)
            for quantized in self._quantize(batch)
        ]

    @torch.no_grad()
    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """Return ``y_hat`` on the CPU; see :class:`LearnedCodec`."""
        self._require_frozen()
        return torch.stack([q.latents for batch in _batches(images) for q in self._quantize(batch)])

    @torch.no_grad()
    def decode(self, codes: Sequence[bytes], shape: ImageShape) -> list[torch.Tensor | str]:
        """Return each image or why it cannot be decoded; see :class:`Codec`.

        Raises:
            FlSimError: if there are no images of such a shape.
        """
        _check(shape)
        if self._frozen is None:
            return [_NOT_FROZEN for _ in codes]
        results: list[torch.Tensor | str] = []
        for first in range(0, len(codes), _batch_size(shape)):
            results += self._decode_batch(codes[first : first + _batch_size(shape)], shape)
        return results

    def on_grid(self, latents: torch.Tensor) -> torch.Tensor:
        """Round to the medians' grid; latents with means can have any value."""
        if self.prior == "mean-scale":
            return latents
        if self.prior == "scale":
            return latents.round()
        medians = self._require_tables().medians[:, None, None].to(latents)
        return (latents - medians).round() + medians

    def tensors(self, decoder_only: bool = False) -> dict[str, torch.Tensor]:
        """Return weights (``network.*``) and, once frozen, tables (``tables.*``)."""
        state = self.network.state_dict()
        kept = [name for name in state if not decoder_only or name.startswith(_DECODER)]
        tensors = {f"network.{name}": state[name].detach().clone() for name in kept}
        return {**tensors, **(self._frozen.tensors() if self._frozen else {})}

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take up weights and tables; without tables the codec has to be frozen before use."""
        prefix = "network."
        given = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        self._check_weights(given)
        frozen = None
        if any(name.startswith("tables.") for name in tensors):
            channels = _part(self.network, "entropy_bottleneck").channels
            frozen = _Frozen.from_tensors(tensors, channels, self.prior != "factorized")
        nn.Module.load_state_dict(self.network, given, strict=False)
        self._frozen, self._loaded = frozen, True
        self._encodes = set(given) == set(self.network.state_dict())

    def _check_weights(self, given: dict[str, torch.Tensor]) -> None:
        expected = {name: tensor.shape for name, tensor in self.network.state_dict().items()}
        for name, tensor in given.items():
            if name not in expected or expected[name] != tensor.shape:
                raise FlSimError(
                    f"The weights '{name}' {tuple(tensor.shape)} do not fit the codec "
                    f"'{self.name}' as its settings describe it."
                )
        missing = [n for n in expected if n not in given and n.startswith(_DECODER)]
        if missing:
            raise FlSimError(f"The codec's weights lack '{missing[0]}', which decoding needs.")

    def _initial_network(self, seed: int, *path: int | str) -> nn.Module:
        with seeded(seed, "codec weights", *path):
            network = self.build_network()
        for module in network.modules():
            for name in _TABLE_BUFFERS:
                buffer = getattr(module, name, None)
                if isinstance(buffer, torch.Tensor):
                    module.register_buffer(name, buffer, persistent=False)
        return network

    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _raw_synthesis(self, latents: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        channels, height, width = shape
        images: torch.Tensor = _part(self.network, "g_s")(latents.to(self._device()))
        images = images[..., :height, :width]
        return images.mean(1, keepdim=True) if channels == 1 else images

    def _hyper_analysis(self, y: torch.Tensor) -> torch.Tensor:
        y = _padded(y, self.hyper_stride)
        result: torch.Tensor = _part(self.network, "h_a")(y.abs() if self.prior == "scale" else y)
        return result

    def _parameters(
        self, hyper: torch.Tensor, size: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Split the hyper-decoder's output into scales and means of ``y``'s size."""
        hyper = hyper[..., : size[0], : size[1]]
        if self.prior == "scale":
            return hyper, None
        scales, means = hyper.chunk(2, 1)
        return scales, means

    def _quantize(self, images: torch.Tensor) -> Iterator["_Quantized"]:
        frozen = self._require_tables()
        y = self.analysis(images).float()
        if self.prior == "factorized":
            for one in y.cpu():
                symbols, latents = _by_median(one, frozen.medians)
                yield _Quantized([symbols], latents)
            return
        hyper_decoder = _exact(self.network)
        for z, one in zip(self._hyper_analysis(y).float().cpu(), y.cpu(), strict=True):
            side, z_hat = _by_median(z, frozen.medians)
            given = self._conditions(hyper_decoder, z_hat, one.shape[-2:])
            symbols = (one - given.means).round()
            main = Symbols(symbols.numpy().reshape(-1), given.indexes)
            yield _Quantized([side, main], symbols + given.means)

    def _conditions(
        self, hyper_decoder: nn.Module, z_hat: torch.Tensor, size: Sequence[int]
    ) -> "_Conditions":
        frozen = self._require_tables()
        assert frozen.scales is not None
        scales, means = self._parameters(hyper_decoder(z_hat[None].double()), size)
        # The row of the smallest scale that is not below: what CompressAI chooses.
        indexes = torch.bucketize(scales[0].contiguous(), frozen.scales[:-1])
        means = torch.zeros_like(scales) if means is None else means
        rows = indexes.reshape(-1).numpy().astype(np.int32) + np.int32(len(frozen.medians))
        return _Conditions(rows, means[0].float())

    def _decode_batch(self, codes: Sequence[bytes], shape: ImageShape) -> list[torch.Tensor | str]:
        size = [-(-side // self.stride) for side in shape[1:]]
        hyper_decoder = None if self.prior == "factorized" else _exact(self.network)
        results: list[torch.Tensor | str] = []
        for code in codes:
            try:
                results.append(self._decode_latents(code, size, hyper_decoder))
            except FlSimError as error:
                results.append(str(error))
        good = [i for i, result in enumerate(results) if not isinstance(result, str)]
        if not good:
            return results
        stacked = torch.stack([r for r in results if not isinstance(r, str)])
        for index, image in zip(good, self.synthesis(stacked, shape).cpu(), strict=True):
            finite = bool(image.isfinite().all())
            results[index] = image if finite else "The codec's decoder gives no finite image."
        return results

    def _decode_latents(
        self, code: bytes, size: Sequence[int], hyper_decoder: nn.Module | None
    ) -> torch.Tensor:
        frozen = self._require_tables()
        shape = (self.latent_channels, *size)
        if hyper_decoder is None:
            coder = SymbolDecoder(code, math.prod(shape), frozen.tables)
            return _from_median(coder, frozen.medians, shape)
        hyper_shape = (len(frozen.medians), *(-(-side // self.hyper_stride) for side in size))
        coder = SymbolDecoder(code, math.prod(hyper_shape) + math.prod(shape), frozen.tables)
        z_hat = _from_median(coder, frozen.medians, hyper_shape)
        given = self._conditions(hyper_decoder, z_hat, size)
        values = torch.from_numpy(coder.take(given.indexes).astype(np.float32))
        return values.reshape(shape) + given.means

    def _require_tables(self) -> _Frozen:
        if self._frozen is None:
            raise FlSimError(_NOT_FROZEN)
        return self._frozen

    def _require_encoder(self) -> None:
        if not self._encodes:
            raise FlSimError("This codec was loaded without its encoder; it can only decode.")

    def _require_frozen(self) -> _Frozen:
        self._require_encoder()
        return self._require_tables()


class RateDistortionTrainer(CodecTrainer):
    """Trains with ``lmbda * 255^2 * MSE + bits a pixel`` by Adam, gradients clipped to norm 1.

    Args:
        codec: whose network is trained, in place.
        stream: where the noise is derived from.
    """

    def __init__(self, codec: CompressAICodec[Any], stream: Stream) -> None:
        self.codec = codec
        self._stream = stream
        self._steps = 0
        # Quantiles have no part in the loss: they are found by bisection when tables are built.
        self._parameters = [
            parameter
            for name, parameter in codec.network.named_parameters()
            if not name.endswith("quantiles")
        ]
        rate = codec.settings.learning_rate
        self._optimizer = torch.optim.Adam(self._parameters, rate, fused=True)

    def step(self, images: torch.Tensor) -> dict[str, float]:
        """Take one step; returns ``"codec"`` (the loss), ``"bpp"`` and ``"mse"``."""
        self.codec.network.train()
        self._optimizer.zero_grad(set_to_none=True)
        with self._stream.at(self._steps).seeded("quantisation noise"):
            out = self.codec.forward(images)
        mse = functional.mse_loss(out.images, images.to(out.images.device))
        loss = self.codec.settings.lmbda * 255**2 * mse + out.bpp()
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._steps += 1
        return {
            "codec": float(loss.detach()),
            "bpp": float(out.bpp().detach()),
            "mse": float(mse.detach()),
        }

    def set_rate(self, factor: float) -> None:
        """Scale the learning rate."""
        for group in self._optimizer.param_groups:
            group["lr"] = factor * self.codec.settings.learning_rate

    @torch.no_grad()
    def evaluate(self, images: torch.Tensor) -> dict[str, float]:
        """Return loss, bits a pixel (of the distributions) and PSNR (mean over images)."""
        self.codec.network.eval()
        bpp, errors = 0.0, []
        for batch in _batches(images):
            out = self.codec.forward(batch, training=False)
            bpp += float(out.bpp()) * len(batch) / len(images)
            squares = (out.images.clamp(0, 1) - batch.to(out.images.device)) ** 2
            errors.append(squares.double().mean((1, 2, 3)).cpu())
        mse = torch.cat(errors)
        loss = self.codec.settings.lmbda * 255**2 * float(mse.mean()) + bpp
        psnr = float((-10 * mse.clamp(min=1e-10).log10()).mean())
        return {"loss": loss, "bpp": bpp, "psnr": psnr}


@dataclass(frozen=True)
class _Quantized:
    """One image's symbols, ``z``'s first if there is one, and its decoded latents."""

    parts: list[Symbols]
    latents: torch.Tensor


@dataclass(frozen=True)
class _Conditions:
    """What ``z`` tells of one image's ``y``: rows of the joint tables, and means."""

    indexes: Integers
    means: torch.Tensor


_NOT_FROZEN = "The codec is not trained: fit it, or freeze it after training."

_DECODER = ("g_s.", "h_s.")

_TABLE_BUFFERS = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table", "scale_bound")


def _part(network: nn.Module, name: str) -> Any:
    return getattr(network, name)


def _exact(network: nn.Module) -> nn.Module:
    # In double precision, on the CPU, one image at a time: sender and receiver must choose the same
    # tables from the same z, whatever their batch size, threads or device. In single precision a
    # scale near a threshold now and then falls on the other side, and the image is lost.
    return copy.deepcopy(_part(network, "h_s")).cpu().double().eval()


def _by_median(values: torch.Tensor, medians: torch.Tensor) -> tuple[Symbols, torch.Tensor]:
    symbols = (values - medians[:, None, None]).round()
    rows = _channel_indexes(tuple(values.shape))
    return Symbols(symbols.numpy().reshape(-1), rows), symbols + medians[:, None, None]


def _from_median(
    coder: SymbolDecoder, medians: torch.Tensor, shape: tuple[int, ...]
) -> torch.Tensor:
    symbols = coder.take(_channel_indexes(shape)).astype(np.float32)
    return torch.from_numpy(symbols).reshape(shape) + medians[:, None, None]


def _channel_indexes(shape: tuple[int, ...]) -> Integers:
    return np.repeat(np.arange(shape[0], dtype=np.int32), shape[1] * shape[2])


def _padded(images: torch.Tensor, multiple: int) -> torch.Tensor:
    height, width = images.shape[-2:]
    below, right = -height % multiple, -width % multiple
    if not below and not right:
        return images
    return functional.pad(images, (0, right, 0, below), mode="replicate")


def _check(shape: Sequence[int]) -> None:
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise FlSimError("A codec takes images of 1 or 3 channels, [n, channels, height, width].")
    if not (SMALLEST <= shape[1] <= LARGEST and SMALLEST <= shape[2] <= LARGEST):
        raise FlSimError(
            f"A learned codec takes images of {SMALLEST} to {LARGEST} pixels a side, not of "
            f"{shape[1]} x {shape[2]}."
        )


def _batch_size(shape: Sequence[int]) -> int:
    return max(1, min(64, 2**20 // (shape[-2] * shape[-1])))


def _batches(images: torch.Tensor) -> Iterator[torch.Tensor]:
    _check(tuple(images.shape[1:]))
    return iter(images.split(_batch_size(images.shape)))
