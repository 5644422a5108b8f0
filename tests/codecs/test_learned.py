"""What all learned codecs do: round trips, grids, files without an encoder, and garbage."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fl_sim.codec import CODECS
from fl_sim.codecs.factorized import Factorized
from fl_sim.codecs.learned import CompressAICodec
from fl_sim.errors import FlSimError
from tests.codecs.codec_kit import LEARNED, images, trained


def copy_of(codec: CompressAICodec[Any]) -> CompressAICodec[Any]:
    """A codec that a test may change."""
    result = type(codec)(codec.settings)
    result.load_tensors(codec.tensors())
    return result


def decoded(
    codec: CompressAICodec[Any], codes: list[bytes], shape: tuple[int, int, int]
) -> torch.Tensor:
    """Decode what must be decodable."""
    results = codec.decode(codes, shape)
    images = [r for r in results if not isinstance(r, str)]
    assert len(images) == len(codes), results
    return torch.stack(images)


@pytest.mark.parametrize("name", LEARNED)
def test_most_decoded_images_are_nearest_to_their_own_originals(name: str) -> None:
    codec, batch = trained(name), images(120)[:20]
    result = decoded(codec, codec.encode(batch), (3, 28, 28))
    distances = ((result[:, None] - batch[None]) ** 2).mean((2, 3, 4))
    assert (distances.argmin(1) == torch.arange(20)).sum() >= 15


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize(
    "shape", [(3, 28, 28), (1, 16, 16), (3, 33, 50), (1, 64, 64), (3, 100, 17)]
)
def test_decoding_gives_what_the_latents_give(name: str, shape: tuple[int, int, int]) -> None:
    codec, batch = trained(name), images(4, *shape)
    latents = codec.latents(batch)
    assert latents.shape == (4, 6, -(-shape[1] // 16), -(-shape[2] // 16))
    assert codec.analysis(batch).shape == latents.shape
    result = decoded(codec, codec.encode(batch), shape)
    assert result.dtype == torch.float32 and result.shape == batch.shape
    assert torch.equal(result, codec.synthesis(latents, shape).detach())
    assert result.min() >= 0 and result.max() <= 1


@pytest.mark.parametrize("name", LEARNED)
def test_a_batch_and_single_images_agree(name: str) -> None:
    codec, batch = trained(name), images(7)
    codes = codec.encode(batch)
    together = decoded(codec, codes, (3, 28, 28))
    alone = torch.cat([decoded(codec, [code], (3, 28, 28)) for code in codes])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("name", LEARNED)
def test_codes_are_as_long_as_the_distributions_say(name: str) -> None:
    codec, batch = trained(name), images(120)
    with torch.no_grad():
        out = codec.forward(batch, training=False)
    estimate, rarest = (
        float(out.bpp()) * 28 * 28 / 8,
        min(p.min() for p in out.likelihoods.values()),
    )
    real = np.mean([len(code) for code in codec.encode(batch)])
    # The coder's last word, of which half is needed; the rest is frequencies of 16 bits.
    assert real - estimate < 3 + 0.02 * estimate
    # A symbol outside its table costs less than a Gaussian's tail says.
    assert real - estimate > 1 or rarest < 2**-24


@pytest.mark.parametrize("name", LEARNED)
def test_noise_on_latents_is_rounded_away_where_there_is_a_grid(name: str) -> None:
    codec = trained(name)
    latents = codec.latents(images(5))
    noisy = latents + 0.9 * (torch.rand(latents.shape, generator=torch.manual_seed(0)) - 0.5)
    wanted = noisy if name == "mean_scale_hyperprior" else latents
    assert torch.equal(codec.on_grid(noisy), wanted)


@pytest.mark.parametrize("name", ["scale_hyperprior", "mean_scale_hyperprior"])
def test_tables_rows_are_those_that_compressai_chooses(name: str) -> None:
    if name == "factorized":
        pytest.skip("its rows are its channels")
    codec, batch = trained(name), images(6, height=64, width=64)
    network: Any = codec.network
    count = network.entropy_bottleneck.channels
    with torch.no_grad():
        y = codec.analysis(batch)
        z = network.h_a(y.abs() if name == "scale_hyperprior" else y)
        medians = codec.tensors()["tables.medians"][:, None, None]
        scales = network.h_s((z - medians).round() + medians)[:, :6]
        expected = network.gaussian_conditional.build_indexes(scales).numpy()
        for one, wanted in zip(codec._quantize(batch), expected, strict=True):
            of_z, of_y = (part.rows for part in one.parts)
            assert (of_z == np.arange(count).repeat(z[0, 0].numel())).all()
            # The reference is in single precision: a scale at a threshold may fall otherwise.
            assert (of_y - count != wanted.reshape(-1)).mean() < 0.01


@pytest.mark.parametrize("name", LEARNED)
def test_the_decoders_part_decodes_the_same_and_nothing_more(name: str) -> None:
    codec, batch = trained(name), images(6)
    codes, part = codec.encode(batch), codec.tensors(decoder_only=True)
    assert {n.split(".")[1] for n in part if n.startswith("network.")} <= {"g_s", "h_s"}
    receiver = type(codec)(codec.settings)
    receiver.load_tensors(part)
    shape = (3, 28, 28)
    assert torch.equal(decoded(receiver, codes, shape), decoded(codec, codes, shape))
    for use in (receiver.encode, receiver.latents):
        with pytest.raises(FlSimError, match="without its encoder"):
            use(batch)
    assert set(receiver.tensors(decoder_only=True)) == set(part)


@pytest.mark.parametrize("name", LEARNED)
def test_weights_alone_have_to_be_frozen_first(name: str) -> None:
    codec, batch = trained(name), images(3)
    weights = {n: t for n, t in codec.tensors().items() if n.startswith("network.")}
    other = type(codec)(codec.settings)
    other.load_tensors(weights)
    with pytest.raises(FlSimError, match="not trained"):
        other.encode(batch)
    assert all("not trained" in str(r) for r in other.decode(codec.encode(batch), (3, 28, 28)))
    other.freeze()
    assert other.encode(batch) == codec.encode(batch)


@pytest.mark.parametrize("name", LEARNED)
def test_the_networks_state_keeps_its_names_and_shapes(name: str) -> None:
    codec = trained(name)
    fresh = type(codec)(codec.settings)
    shapes = {n: t.shape for n, t in fresh.network.state_dict().items()}
    assert {n: t.shape for n, t in codec.network.state_dict().items()} == shapes
    assert all(shape.numel() for shape in shapes.values())
    assert not [n for n in shapes if n.endswith(("_cdf", "_offset", "_cdf_length", "scale_table"))]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = fresh.network

    Whole().load_state_dict({f"inner.{n}": t for n, t in codec.network.state_dict().items()})
    fresh.freeze()
    assert fresh.encode(images(2)) == codec.encode(images(2))


@pytest.mark.parametrize("name", LEARNED)
def test_thousands_of_damaged_codes_are_values(name: str) -> None:
    codec, random = trained(name), np.random.default_rng(0)
    good, garbage = codec.encode(images(20)), []
    for _ in range(1000):
        code = bytearray(good[int(random.integers(20))])
        for _ in range(int(random.integers(1, 4))):
            code[int(random.integers(len(code)))] = int(random.integers(256))
        kinds = [bytes(code), code[: int(random.integers(len(code)))], random.bytes(30)]
        garbage.append(bytes(kinds[int(random.integers(3))]))
    garbage += [b"", b"\0", bytes(10**6), b"\xff" * 300]
    results = codec.decode([*garbage, *good], (3, 28, 28))
    assert len(results) == len(garbage) + 20
    for result in results:
        if isinstance(result, str):
            assert result.endswith(".") and "\n" not in result
        else:
            assert result.shape == (3, 28, 28) and result.min() >= 0 and result.max() <= 1
    reasons = [isinstance(r, str) for r in results]
    assert any(reasons[:1000]) and not all(reasons[:1000]) and all(reasons[1000:1004])
    wanted = decoded(codec, good, (3, 28, 28))
    assert torch.allclose(torch.stack(results[-20:]), wanted, atol=1e-5)


@pytest.mark.parametrize("name", LEARNED)
def test_damaged_weights_are_reasons(name: str) -> None:
    codec, codes = copy_of(trained(name)), trained(name).encode(images(3))
    for part in ("g_s", "h_s"):
        if not hasattr(codec.network, part):
            continue
        with torch.no_grad():
            for parameter in getattr(codec.network, part).parameters():
                parameter.fill_(float("nan"))
        for result in codec.decode(codes, (3, 28, 28)):
            assert isinstance(result, str)


def test_impossible_images_are_refused_in_one_sentence() -> None:
    codec = trained("factorized")
    for shape in [(2, 28, 28), (3, 15, 28), (3, 28, 5000), (28, 28)]:
        with pytest.raises(FlSimError, match="takes images of"):
            codec.decode([], shape)
    for use in (codec.encode, codec.analysis, codec.latents):
        with pytest.raises(FlSimError, match="takes images of"):
            use(torch.zeros(1, 3, 8, 8))


def test_tensors_that_do_not_fit_are_refused_in_one_sentence() -> None:
    codec = trained("factorized")
    tensors = codec.tensors()
    other = Factorized(codec.settings.model_copy(update={"M": 7}))
    with pytest.raises(FlSimError, match=r"do not fit the codec 'factorized'"):
        other.load_tensors(tensors)
    with pytest.raises(FlSimError, match=r"lack 'g_s\.0\.weight', which decoding needs"):
        copy_of(codec).load_tensors({})
    with pytest.raises(FlSimError, match=r"'nonsense' .* do not fit"):
        copy_of(codec).load_tensors({**tensors, "network.nonsense": torch.zeros(1)})
    for change in (
        {"tables.medians": torch.zeros(5)},
        {"tables.scales": torch.ones(2)},
        {"tables.lengths": tensors["tables.lengths"] + 1},
    ):
        with pytest.raises(FlSimError, match="entropy coder's tables"):
            copy_of(codec).load_tensors({**tensors, **change})
    gaussian = trained("scale_hyperprior").tensors()
    kept = {n: t for n, t in gaussian.items() if n != "tables.scales"}
    with pytest.raises(FlSimError, match="entropy coder's tables"):
        copy_of(trained("scale_hyperprior")).load_tensors(kept)


def test_tables_of_another_size_are_taken_up_as_they_are() -> None:
    codec = copy_of(trained("factorized"))
    codes, weights = codec.encode(images(3)), codec.tensors()
    with torch.no_grad():
        for matrix in codec.network.entropy_bottleneck.matrices:
            matrix -= 0.3  # wider distributions
    codec.freeze()
    wide = codec.tensors()
    assert wide["tables.cdf"].numel() > weights["tables.cdf"].numel()
    codec.load_tensors(weights)
    assert codec.encode(images(3)) == codes
    codec.load_tensors(wide)
    again = decoded(codec, codec.encode(images(3)), (3, 28, 28))
    assert torch.equal(again, codec.synthesis(codec.latents(images(3)), (3, 28, 28)).detach())


def test_a_grey_image_is_one_of_three_equal_channels() -> None:
    codec, grey = trained("factorized"), images(3, channels=1)
    three = grey.expand(-1, 3, -1, -1)
    assert torch.equal(codec.latents(grey), codec.latents(three))
    latents = codec.latents(grey)
    inside = codec.synthesis(latents, (3, 28, 28)).mean(1, keepdim=True)
    assert torch.allclose(codec.synthesis(latents, (1, 28, 28)), inside, atol=0.05)


@pytest.mark.parametrize("name", LEARNED)
def test_training_reaches_every_weight_but_the_quantiles(name: str) -> None:
    codec = copy_of(trained(name))
    out = codec.forward(images(4))
    (((out.images - images(4)) ** 2).mean() + out.bpp()).backward()
    for parameter_name, parameter in codec.network.named_parameters():
        reached = parameter.grad is not None and bool((parameter.grad != 0).any())
        assert reached != parameter_name.endswith("quantiles"), parameter_name


@pytest.mark.parametrize("name", LEARNED)
def test_quantiles_have_no_part_in_the_training_loss_nor_in_the_tables(name: str) -> None:
    codec, batch = copy_of(trained(name)), images(4)
    codes = codec.encode(batch)
    torch.manual_seed(0)
    before = codec.forward(batch).bpp()
    with torch.no_grad():
        codec.network.entropy_bottleneck.quantiles.mul_(3.0).add_(1.0)
    torch.manual_seed(0)
    assert torch.equal(codec.forward(batch).bpp(), before)
    codec.freeze()
    assert codec.encode(batch) == codes


def test_the_learned_codecs_are_registered() -> None:
    for name in LEARNED:
        assert CODECS.get(name).name == name and not CODECS.get(name).lossless
