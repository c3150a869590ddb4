from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import pytest

from edgeslim.codec import (
    Segment,
    decode_container,
    decode_file,
    decode_reference,
    encode_container,
    read_index,
    write_container,
)
from edgeslim.codec.format import ALPHABETS, SegmentInfo, hash32, parse_header, parse_index, xxh32
from edgeslim.errors import BadInputError


def int8(seed: int, size: int, sparsity: float, scale: float = 20) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = np.clip(np.round(rng.laplace(0, scale, size)), -127, 127).astype(np.int8)
    values[rng.random(size) < sparsity] = 0
    return values


def int4(seed: int, size: int, sparsity: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = np.clip(np.round(rng.normal(8, 2.2, 2 * size)), 0, 15).astype(np.uint8)
    values[rng.random(2 * size) < sparsity] = 8
    return values[::2] | values[1::2] << 4


def entropy_bits(counts: np.ndarray) -> float:
    """Order-0 entropy of all items, in bits."""
    used = counts[counts > 0]
    return float(-(used * np.log2(used / used.sum())).sum())


def whole(segment: Segment, **options: object) -> bytes:
    return encode_container([segment], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 1, 2, 7, 8, 9, 63, 64, 65, 2047, 2048, 4095, 4096, 4097, 16_385, 33_333])
@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_round_trip(size: int, alphabet: str) -> None:
    for sparsity in (0, 0.6, 0.95, 1):
        for data in (int8(1, size, sparsity), int4(2, size, sparsity)):
            for small in (False, True):
                coded = whole(
                    Segment("w", data, "bytes", ()), block_bytes=4096, small_memory=small, alphabets=[alphabet]
                )
                assert decode_container(coded) == data.tobytes()
                if not small:
                    assert decode_reference(coded) == data.tobytes()


@pytest.mark.parametrize("values", [1, 2, 3, 9, 15])
@pytest.mark.parametrize("fill", [0, 8])
def test_groups_of_any_number_of_values(values: int, fill: int) -> None:
    """MASK8 has a loop for bytes and one for nibbles of short codes; both take groups of 0 to 8 values."""
    rng = np.random.default_rng(values)
    others = np.delete(np.arange(16, dtype=np.uint8), fill)[:values]
    groups = np.full((3_000, 8), fill, np.uint8)
    for group in groups:
        count = int(rng.integers(0, 9)) if rng.random() < 0.5 else 4
        group[rng.permutation(8)[:count]] = rng.choice(others, count)
    elements = groups.reshape(-1)
    for data, nibble in ((elements, False), (elements[::2] | elements[1::2] << 4, True)):
        coded = whole(Segment("w", data, "bytes", ()), alphabets=["MASK8"])
        segment = parse_index(parse_header(coded), coded[64 : 64 + parse_header(coded).index_bytes]).segments[0]
        assert (segment.alphabet, segment.nibble) == ("MASK8", nibble)
        assert decode_container(coded) == data.tobytes()
        assert decode_reference(coded) == data.tobytes()


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_clustered_tensors_become_indices(dtype: str) -> None:
    rng = np.random.default_rng(15)
    width = np.dtype(dtype).itemsize
    for count in (1, 2, 16, 256):
        values = rng.normal(size=count).astype(dtype)
        for size, sparsity in ((2, 0), (500, 0), (30_000, 0), (30_000, 0.9)):
            data = values[rng.integers(0, count, size)]
            data[rng.random(size) < sparsity] = values[0]
            coded = whole(Segment("w", data, "bytes", ()), block_bytes=16_384)
            assert decode_container(coded) == data.tobytes()
            assert decode_reference(coded) == data.tobytes()
            assert len(coded) <= 300 + count * width + size * (0.2 + np.log2(count)) / 8
    many = rng.normal(size=257).astype("<f4")
    coded = whole(Segment("w", np.tile(many, 9), "bytes", ()))
    assert decode_reference(coded) == np.tile(many, 9).tobytes()


def test_encoder_chooses_what_suits() -> None:
    rng = np.random.default_rng(3)
    payloads = {
        "RAW": np.frombuffer(rng.bytes(50_000), np.uint8),
        "PLAIN": int8(4, 50_000, 0),
        "GAP": int8(5, 50_000, 0.9),
        "PAIR": int4(6, 300, 0),
    }
    halves = int8(7, 50_000, 0).reshape(-1, 2)
    halves[:, 1] = 0
    payloads["MASK8"] = halves.reshape(-1)
    for alphabet, data in payloads.items():
        path_info = _info(data)
        assert path_info.alphabet == alphabet, (alphabet, path_info)


def _info(data: np.ndarray) -> SegmentInfo:
    coded = whole(Segment("w", data, "uint8", (data.nbytes,)))
    header = parse_header(coded)
    return parse_index(header, coded[64 : 64 + header.index_bytes]).segments[0]


def test_sizes_against_zlib_and_entropy() -> None:
    size = 1_000_000
    for sparsity, times in ((0.8, 1.22), (0.9, 1.25)):
        data = int8(8, size, sparsity)
        ours = len(whole(Segment("w", data, "int8", (1000, 1000))))
        assert len(zlib.compress(data.tobytes(), 9)) / ours >= times
        zeros = np.bincount(data.view(np.uint8), minlength=256)
        assert ours * 8 <= 1.015 * entropy_bits(zeros)
    dense = np.clip(np.round(np.random.default_rng(9).normal(0, 35, size)), -127, 127).astype(np.int8)
    bits = entropy_bits(np.bincount(dense.view(np.uint8), minlength=256))
    assert len(whole(Segment("w", dense, "int8", (size,)))) * 8 <= 1.01 * bits
    packed = int4(10, size, 0)
    counts = np.bincount(packed & 15, minlength=16) + np.bincount(packed >> 4, minlength=16)
    assert len(whole(Segment("w", packed, "uint4x2", (2 * size,)))) * 8 <= 1.015 * entropy_bits(counts)


def test_small_containers_have_little_overhead() -> None:
    """A whole LeNet: 10 tensors, the large ones 90 % sparse 8-bit; overhead counts."""
    shapes = {"c1": (6, 25), "b1": (6,), "c2": (16, 150), "b2": (16,), "f1": (120, 400), "d1": (120,), "f2": (84, 120),
              "d2": (84,), "f3": (10, 84), "d3": (10,)}  # fmt: skip
    segments = [Segment(name, int8(11, math.prod(shape), 0.9), "int8", shape) for name, shape in shapes.items()]
    coded = encode_container(segments)
    assert sum(math.prod(shape) for shape in shapes.values()) == 61_706
    assert len(coded) < 12_000
    assert decode_reference(coded) == b"".join(bytes(segment.data) for segment in segments)


def test_raw_segments_can_be_mapped_in_place(tmp_path: Path) -> None:
    noise = np.random.default_rng(12).bytes(700_000)
    path = tmp_path / "a.esz"
    info = write_container(path, [Segment("x", b"abc", "bytes", ()), Segment("noise", noise, "uint8", (700_000,))])
    segment = info.segments[1]
    start = segment.coded_offset + segment.data_offset
    assert segment.alphabet == "RAW"
    assert start % 64 == 0
    assert path.read_bytes()[start : start + len(noise)] == noise


def test_write_container_and_index(tmp_path: Path) -> None:
    path = tmp_path / "weights.esz"
    path.write_bytes(b"old")
    done: list[int] = []
    segments = [
        Segment("a", int8(13, 300_000, 0.9), "int8", (300, 1000)),
        Segment("b", np.arange(10, dtype="<f4"), "float32", (10,)),
        Segment("empty", b"", "int8", (0, 4)),
        Segment("c", memoryview(b"\0" * 40), "int64", (5,)),
        Segment("d", np.arange(12, dtype=np.int8).reshape(3, 4)[:, ::2], "int8", (3, 2)),
    ]
    info = write_container(path, segments, progress=done.append)
    assert info == read_index(path)
    assert info.file_bytes == path.stat().st_size
    assert [(s.name, s.dtype, s.shape) for s in info.segments] == [(s.name, s.dtype, s.shape) for s in segments]
    assert [s.decoded_offset for s in info.segments] == [0, 300_000, 300_040, 300_040, 300_080]
    assert done == [300_000, 300_040, 300_040, 300_080, 300_086]
    decode_file(path, tmp_path / "image")
    image = (tmp_path / "image").read_bytes()
    assert image[300_080:] == bytes([0, 2, 4, 6, 8, 10])
    assert info.image_hash == hash32(image)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["image", "weights.esz"]
    assert path.stat().st_mode & 0o777 == (tmp_path / "image").stat().st_mode & 0o777


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.esz"
    path.write_bytes(b"old")

    def stop(done: int) -> None:
        raise KeyboardInterrupt(done)

    with pytest.raises(KeyboardInterrupt):
        write_container(path, [Segment("a", b"abc", "bytes", ())], progress=stop)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["weights.esz"]


def test_failed_decode_leaves_no_file(tmp_path: Path) -> None:
    data = bytearray(whole(Segment("a", int8(14, 50_000, 0.5), "int8", (50_000,))))
    data[-1] ^= 1
    (tmp_path / "a.esz").write_bytes(data)
    with pytest.raises(BadInputError, match=r"a\.esz: byte \d+, segment 0"):
        decode_file(tmp_path / "a.esz", tmp_path / "image")
    assert [p.name for p in tmp_path.iterdir()] == ["a.esz"]


def test_threads_decode_the_same_and_refuse_the_same() -> None:
    segments = [
        Segment("a", int8(16, 300_000, 0.9), "int8", (300_000,)),
        Segment("", b"", "bytes", ()),
        Segment("b", np.random.default_rng(17).bytes(60_000), "bytes", ()),
        Segment("c", int8(18, 5_000, 0), "int8", (5_000,)),
    ]
    coded = bytearray(encode_container(segments, block_bytes=4096))
    image = decode_container(coded)
    for threads in (2, 3):
        assert decode_container(coded, threads=threads) == image
        for at in range(64, len(coded), len(coded) // 60):
            coded[at] ^= 4
            with pytest.raises(BadInputError, match="byte"):
                decode_container(coded, threads=threads)
            coded[at] ^= 4
        damaged = bytearray(coded)
        damaged[48] ^= 1
        damaged[60:64] = hash32(damaged[:60]).to_bytes(4, "little")
        with pytest.raises(BadInputError, match="image hash"):
            decode_container(damaged, threads=threads)


@pytest.mark.parametrize(
    ("segment", "word"),
    [
        (Segment("w", b"abc", "int9", (3,)), "int9"),
        (Segment("w", b"abc", "int16", (3,)), "3 bytes"),
        (Segment("w", b"abc", "uint8", (4,)), "4 for shape"),
        (Segment("w", b"", "uint8", (1,) * 9), "shape"),
        (Segment("w" * 1025, b"", "bytes", ()), "name"),
        (Segment("a\nb", b"", "bytes", ()), "name"),
        (Segment("w", memoryview(b"abcdef")[::2], "bytes", ()), "gaps"),
        (Segment("w", b"", "bytes", (1 << 31,)), "shape"),
    ],
    ids=range(8),
)
def test_bad_segment_is_refused(segment: Segment, word: str) -> None:
    with pytest.raises(BadInputError, match=word):
        whole(segment)


@pytest.mark.parametrize("block_bytes", [0, 1, 2048, 5000, 2 << 20, -4096])
def test_bad_block_size_is_refused(block_bytes: int) -> None:
    with pytest.raises(BadInputError, match="power of two"):
        whole(Segment("w", b"abc", "bytes", ()), block_bytes=block_bytes)


def test_bad_alphabet_is_refused() -> None:
    with pytest.raises(BadInputError, match="HUFF"):
        whole(Segment("w", b"abc", "bytes", ()), alphabets=["HUFF"])


def test_xxh32_of_published_strings() -> None:
    """The values that implementations of XXH32 agree on."""
    assert xxh32(b"") == 0x02CC5D05
    assert xxh32(b"a") == 0x550D7456
    assert xxh32(b"abc") == 0x32D153FF
    assert xxh32(b"Nobody inspects the spammish repetition") == 0xE2293B2F


def test_hash32_of_known_strings() -> None:
    assert hash32(b"") == 4024716748
    assert hash32(b"a") == 582288592
    assert hash32(b"Nobody inspects the spammish repetition") == 133519323
    assert hash32(bytes(32)) != hash32(bytes(31)) != hash32(bytes(64))
