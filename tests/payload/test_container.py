"""The payload container: what comes back, whole or damaged, and that no input hurts it."""

import struct
import tracemalloc
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from fl_sim.errors import FlSimError
from fl_sim.payload.container import Found, pack, packed_size, unpack

SHAPE = (3, 28, 28)
HEADER = 44
GOLDEN_CRC = 2321008460


def made(count: int, low: int = 20, high: int = 60, seed: int = 0) -> list[bytes]:
    """Random codes with lengths in [low, high]."""
    random = np.random.default_rng(seed)
    return [random.bytes(int(n)) for n in random.integers(low, high + 1, count)]


def ends(codes: list[bytes], extra: bytes = b"") -> np.ndarray:
    """Where each image ends in the payload, its checksum included."""
    sizes = np.array([len(code) + 4 for code in codes])
    index = (packed_size([len(code) for code in codes]) - 2 * HEADER - sizes.sum()) // 2
    return HEADER + index + len(extra) + np.cumsum(sizes)


def wrongly_intact(images: Sequence[Found | None], codes: list[bytes]) -> list[int]:
    """Images reported intact that are not what was packed."""
    return [
        i
        for i, image in enumerate(images)
        if image is not None and image.intact and (i >= len(codes) or image.code != codes[i])
    ]


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 200])
@pytest.mark.parametrize("lengths", [(0, 0), (37, 37), (0, 1), (8, 300), (0, 5000)])
def test_a_payload_comes_back_whatever_follows_it(count: int, lengths: tuple[int, int]) -> None:
    codes, extra = made(count, *lengths), bytes(range(97))
    data = pack(codes, (1, 30, 4096), "uint16", -3.5, 4095.0, extra)
    assert len(data) == packed_size([len(c) for c in codes], extra)
    for received in (
        data,
        bytearray(data) + b"\xff" * 999,
        memoryview(data + bytes(50)),
        np.frombuffer(data + b"fLp\x01", np.uint8),
        np.frombuffer(data + b"x", np.uint8).repeat(2)[::2],
    ):
        read = unpack(received)
        assert read.header is not None and read.problem is None
        assert (read.header.count, read.header.shape) == (count, (1, 30, 4096))
        assert (read.header.dtype, read.header.low, read.header.high) == ("uint16", -3.5, 4095.0)
        assert read.extra == extra
        assert read.images[:] == [Found(code, True) for code in codes]


def test_the_format_stays_readable() -> None:
    """A payload of version 1, byte for byte: files outlive the program that wrote them."""
    data = pack([b"one", b"", b"three"], (1, 2, 3), "float32", -1.0, 2.0, b"ex")
    assert zlib.crc32(data) == GOLDEN_CRC and len(data) == 150
    assert data[:12] == b"fLp\x01" + bytes([2, 1, 3, 0, 2, 0, 3, 0])
    assert data[64:66] == b"ex" and data[66:69] == b"one"


def test_the_cost_is_what_is_stated() -> None:
    images = 32 * 40
    for spread, each in ((0, 4.5), (255, 6.5), (2**14 - 1, 8.0)):
        lengths = [100] * (images - 1) + [100 + spread]
        assert packed_size(lengths) - sum(lengths) == 2 * HEADER + images * each
    assert packed_size([]) == 2 * HEADER


def test_what_cannot_be_packed_is_refused() -> None:
    for shape in ((2, 8, 8), (1, 0, 8), (1, 8, 4097)):
        with pytest.raises(FlSimError, match="shape"):
            pack([], shape)
    for low, high in ((1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))):
        with pytest.raises(FlSimError, match="range"):
            pack([], SHAPE, low=low, high=high)
    with pytest.raises(FlSimError, match="not 'int8'"):
        pack([], SHAPE, dtype="int8")
    with pytest.raises(FlSimError, match="more than"):
        pack([b""] * (2**24 + 1), SHAPE)


def test_a_cut_off_payload_gives_every_image_that_is_all_there() -> None:
    codes = made(70, 0, 25)
    extra = b"tables"
    data = pack(codes, SHAPE, extra=extra)
    end = ends(codes, extra)
    index_end = end[0] - len(codes[0]) - 4 - len(extra)
    for length in range(len(data)):
        read = unpack(data[:length])
        whole = sum(image is not None and image.intact for image in read.images)
        assert (read.header is not None) == (length >= HEADER)
        if length >= index_end:
            assert whole == np.sum(end <= length), length
        assert not wrongly_intact(read.images, codes)
        assert read.header is None or len(read.images) == 70
        assert all(read.images.reason(i) for i, image in enumerate(read.images) if image is None)


def test_a_payload_whose_front_is_gone_is_read_from_its_end() -> None:
    codes = made(100)
    data = pack(codes, SHAPE)
    starts = ends(codes) - [len(code) + 4 for code in codes]
    for cut in (1, 44, 500, 3000):
        images = unpack(data[cut:] + bytes(77)).images
        assert not wrongly_intact(images, codes)
        intact = [image is not None and image.intact for image in images]
        assert intact == (starts >= cut).tolist()


@pytest.mark.parametrize("hit", [{0}, {5, 6, 7}, set(range(0, 90, 3)), set(range(90))])
def test_damage_to_some_codes_leaves_all_others_intact(hit: set[int]) -> None:
    codes, random = made(90, 1, 40), np.random.default_rng(1)
    data = bytearray(pack(codes, SHAPE))
    for number, (code, end) in enumerate(zip(codes, ends(codes), strict=True)):
        if number in hit:
            data[end - int(random.integers(1, len(code) + 5))] ^= int(random.integers(1, 256))
    images = unpack(data).images
    assert {i for i, image in enumerate(images) if image and not image.intact} == hit
    assert all(image is not None for image in images)  # damaged codes are returned too
    assert not wrongly_intact(images, codes)


def test_a_damaged_index_costs_at_most_its_group() -> None:
    codes = made(128, 0, 60)
    data = bytearray(pack(codes, SHAPE))
    group = 8 + 4 * 6
    second = len(data) - HEADER - 4 * group
    data[HEADER + group + 9] ^= 1  # the second group of the first copy
    assert all(image and image.intact for image in unpack(data).images)
    data[second + 2 * group] ^= 1  # another group of the second copy
    assert all(image and image.intact for image in unpack(data).images)
    data[second + group + 20] ^= 128  # the second group of the second copy
    images = unpack(data).images
    assert [image is None for image in images] == [32 <= i < 64 for i in range(128)]
    assert all(image.intact for image in images if image)
    assert "both copies" in str(images.reason(40)) and images.reason(70) is None


def test_a_group_of_the_index_cannot_pass_for_another() -> None:
    codes = made(96, 0, 60)
    data = bytearray(pack(codes, SHAPE))
    group = 8 + 4 * 6
    data[HEADER : HEADER + group] = data[HEADER + group : HEADER + 2 * group]
    assert unpack(data).images[:] == [Found(code, True) for code in codes]


@pytest.mark.parametrize("count", [2**16, 2**16 + 1, 2**24, 2**32 - 1])
def test_a_header_cannot_make_images_out_of_nothing(count: int) -> None:
    header = bytearray(pack([], SHAPE)[:HEADER])
    struct.pack_into("<3I", header, 12, count, 0, 2**32 - 1)
    header[-4:] = zlib.crc32(header[:-4]).to_bytes(4, "little")
    data = bytes(header) + bytes(1000)
    tracemalloc.start()
    read = unpack(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 2**20
    assert len(read.images) == (count if count == 2**16 else 0)
    large = unpack(np.frombuffer(data, np.uint8, HEADER).tobytes() + bytes(4 * 2**17))
    assert len(large.images) == (count if count < 2**17 else 0)


def test_either_header_is_enough() -> None:
    codes = made(10)
    for broken in (slice(0, 4), slice(-HEADER, -HEADER + 4), slice(20, 44)):
        data = bytearray(pack(codes, SHAPE, extra=b"ex")) + bytes(1000)
        part = data[: len(data) - 1000]
        part[broken] = bytes(len(part[broken]))
        read = unpack(part + bytes(1000))
        assert read.images[:] == [Found(code, True) for code in codes] and read.extra == b"ex"
    part[:HEADER] = bytes(HEADER)
    part[-HEADER:] = bytes(HEADER)
    read = unpack(part)
    assert read.header is None and len(read.images) == 0 and read.problem


def test_damaged_extra_is_not_returned() -> None:
    data = bytearray(pack([b"code"], SHAPE, extra=b"tables"))
    data[data.index(b"tables")] ^= 4
    read = unpack(data)
    assert read.extra is None and read.images[0] == Found(b"code", True)


def flips(rate: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """Bit flips at a rate."""

    def mutate(data: np.ndarray, random: np.random.Generator) -> np.ndarray:
        mask = np.packbits(random.random(8 * len(data)) < rate)
        return data ^ mask

    return mutate


def swapped(data: np.ndarray, random: np.random.Generator) -> np.ndarray:
    for a, b in random.integers(len(data), size=(random.integers(1, 9), 2)):
        data[[a, b]] = data[[b, a]]
    return data


def truncated(data: np.ndarray, random: np.random.Generator) -> np.ndarray:
    begin, end = np.sort(random.integers(len(data) + 1, size=2))
    return data[begin:] if random.random() < 0.3 else data[:end]


def inserted(data: np.ndarray, random: np.random.Generator) -> np.ndarray:
    place = int(random.integers(len(data) + 1))
    return np.insert(data, place, random.integers(0, 256, random.integers(1, 60)))


def garbage(data: np.ndarray, random: np.random.Generator) -> np.ndarray:
    begin, end = np.sort(random.integers(len(data) + 1, size=2))
    data[begin:end] = random.integers(0, 256, end - begin)
    return data


def displaced(data: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A piece copied over another place, checksums and all."""
    size = int(random.integers(1, 60))
    a, b = random.integers(len(data) - size, size=2)
    data[a : a + size] = data[b : b + size].copy()
    return data


def forged(data: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Headers and index groups with absurd numbers and right checksums."""
    result = bytearray(data.tobytes())
    extremes = (0, 1, 2**16, 2**24, 2**24 + 1, 2**31, 2**32 - 1, len(data), len(data) // 4)
    fields = random.choice([12, 16, 20, 24, 28], size=random.integers(1, 4), replace=False)
    front, back = bytearray(result[:HEADER]), bytearray(result[-HEADER:])
    for header in (front, back):
        for field in fields:
            struct.pack_into("<I", header, int(field), int(random.choice(extremes)))
        if random.random() < 0.5:
            header[6] = int(random.integers(0, 40))
        header[-4:] = zlib.crc32(header[:-4]).to_bytes(4, "little")
    result[:HEADER], result[-HEADER:] = front, back
    for group in range(3):
        size = 8 + 4 * front[6]
        begin = HEADER + group * size
        content = result[begin : begin + size - 4]
        if len(content) == size - 4 and random.random() < 0.5:
            content[:4] = int(random.choice(extremes)).to_bytes(4, "little")
            content[4:] = random.bytes(len(content) - 4) if random.random() < 0.5 else content[4:]
            crc = zlib.crc32(content, zlib.crc32(struct.pack("<I", group)))
            result[begin : begin + size] = content + crc.to_bytes(4, "little")
    return np.frombuffer(bytes(result), np.uint8).copy()


HARMFUL = [
    *(flips(rate) for rate in (1e-4, 1e-3, 1e-2, 0.1)),
    *(swapped, truncated, inserted, garbage, displaced, forged),
]


def test_ten_thousand_damaged_payloads_are_read_without_harm() -> None:
    random = np.random.default_rng(2)
    codes = made(40, 0, 40, seed=3)
    data = np.frombuffer(pack(codes, SHAPE, extra=b"x" * 30), np.uint8)
    intact, lost = 0, 0
    for turn in range(10_000):
        damaged = HARMFUL[turn % len(HARMFUL)](data.copy(), random)
        if turn % 7 == 0:
            damaged = HARMFUL[(turn // 7) % len(HARMFUL)](damaged, random)
        read = unpack(damaged)
        images = read.images[:200]
        # Together no longer than the data, however the index was forged.
        assert sum(len(image.code) for image in images if image) <= len(damaged)
        assert not wrongly_intact(images, codes), turn
        intact += sum(image.intact for image in images if image)
        lost += read.header is None
    assert intact > 100_000 and 0 < lost < 5_000  # both happen


def test_damaged_payloads_take_no_memory() -> None:
    random = np.random.default_rng(4)
    data = np.frombuffer(pack(made(40, 0, 40), SHAPE), np.uint8)
    made_up = [mutate(data.copy(), random) for mutate in [*HARMFUL, forged, forged] * 20]
    tracemalloc.start()
    try:
        for damaged in made_up:
            unpack(damaged).images[:200]
        # A header may always speak of 65,536 images, of 16 bytes each.
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()


def test_a_large_capacity_costs_no_copy() -> None:
    codes = made(300)
    data = np.zeros(22 << 20, np.uint8)
    packed = np.frombuffer(pack(codes, SHAPE), np.uint8)
    data[: len(packed)] = packed
    for tag_lost in (False, True):
        data[3] ^= tag_lost
        tracemalloc.start()
        images = unpack(data).images[:]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert [image and image.code for image in images] == codes
        assert peak < 2**20


def test_data_full_of_tags_is_given_up() -> None:
    tries = 0
    real = zlib.crc32

    def counted(*arguments: object) -> int:
        nonlocal tries
        tries += 1
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fl_sim.payload.container.zlib.crc32", counted)
        for tag in (b"fLp\x01", b"\x01pLf"):
            assert unpack(tag * 1_000_000).header is None
    assert tries < 50_000
