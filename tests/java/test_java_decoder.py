"""The Java decoder on a JVM: equal to the golden vectors and to the C decoder, in what it decodes and what it rejects.

Damage that a hash finds is one thing (every truncation and bit flip of the small goldens). The rules behind the hashes
are another: there containers are damaged and their hashes set right again, and the two decoders must agree on each.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeslim.codec import Segment, decode_container, encode_container
from edgeslim.codec.library import load_library

GOLDEN = Path(__file__).parents[1] / "golden"
DIGESTS: dict[str, str] = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))
NAMES = sorted(name for name in DIGESTS if name.endswith(".esz"))
SMALL_BYTES = 1200

SIZES = (0, 1, 7, 8, 33, 64, 1000, 4096, 4097, 9001, 65_537, 300_000)
ALPHABETS = ("RAW", "PLAIN", "PAIR", "GAP", "MASK8", "PLANES", "JOINT")
NO_IMAGE_HASH = 1
COMPACT, RAW = 1, 0


@pytest.fixture(autouse=True)
def _fresh_library(c_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESLIM_LIBESZ", str(c_library))


def payloads(size: int) -> Iterator[bytes]:
    """Bytes that each alphabet likes: dense, sparse, half, 2:4, constant and clustered, and noise."""
    random_ = np.random.default_rng(size)
    int8 = np.clip(np.round(random_.normal(0, 20, size)), -127, 127).astype(np.int8)
    nibbles = np.clip(np.round(random_.normal(8, 2, 2 * size)), 0, 15).astype(np.uint8)
    for share in (0.0, 0.5, 0.9, 1.0):
        yield np.where(random_.random(size) < share, 0, int8).tobytes()
        sparse = np.where(random_.random(2 * size) < share, 8, nibbles)
        yield (sparse[::2] | sparse[1::2] << 4).astype(np.uint8).tobytes()
    yield np.where(np.arange(size) % 4 < 2, 0, int8).tobytes()
    yield random_.bytes(size)
    for width in (2, 4, 8):  # clustered values: a codebook
        values = np.frombuffer(random_.bytes(20 * width), dtype=f"V{width}")
        clusters = np.where(random_.random(size // width) < 0.5, 0, random_.integers(0, 20, size // width))
        yield values[clusters].tobytes()


def containers(sizes: tuple[int, ...]) -> Iterator[tuple[bytes, bytes]]:
    """Images and their containers, by every alphabet and block size."""
    for size in sizes:
        for data in payloads(size):
            segment = Segment(name="weight", data=data, dtype="bytes", shape=(len(data),))
            for alphabet in ALPHABETS:
                yield data, encode_container([segment], block_bytes=4096, alphabets=["RAW", alphabet])
            for block_bytes in (4096, 65_536):
                yield data, encode_container([segment], block_bytes=block_bytes, alphabets=[*ALPHABETS, "CODEBOOK"])
            yield data, encode_container([segment])
            yield data, encode_container([segment], small_memory=True)
            many = [segment, Segment(name="ä", data=data[:9], dtype="bytes", shape=()), segment]
            yield data + data[:9] + data, encode_container(many, block_bytes=4096)


def batch(run_java: Callable[..., str], cases: list[bytes]) -> list[str]:
    stdin = b"".join(struct.pack(">I", len(case)) + case for case in cases)
    return run_java("DecoderMain", "batch", stdin=stdin).splitlines()


def accepted(image: bytes) -> str:
    return f"ok {hashlib.sha256(image).hexdigest()} {len(image)}"


def test_golden_vectors(run_java: Callable[..., str]) -> None:
    cases = [(GOLDEN / name).read_bytes() for name in NAMES]
    images = [(GOLDEN / name).with_suffix(".bin") for name in NAMES]
    expected = [f"ok {DIGESTS[image.name]} {image.stat().st_size}" for image in images]
    assert dict(zip(NAMES, batch(run_java, cases), strict=True)) == dict(zip(NAMES, expected, strict=True))
    assert len(NAMES) >= 16
    for case, line in zip(cases, expected, strict=True):
        assert accepted(bytes(decode_container(case))) == line  # the C decoder


def test_every_truncation_and_bit_flip_of_small_goldens_is_rejected(run_java: Callable[..., str]) -> None:
    small = [GOLDEN / name for name in NAMES if (GOLDEN / name).stat().st_size <= SMALL_BYTES]
    assert len(small) >= 9
    assert_all_rejected(run_java, small)


def test_decodes_what_the_encoder_writes(run_java: Callable[..., str]) -> None:
    images, cases = zip(*containers(SIZES), strict=True)
    assert batch(run_java, list(cases)) == [accepted(image) for image in images]


class CDecoder:
    """The C decoder on a whole container, with or without the image's hash."""

    def __init__(self) -> None:
        self.library = load_library()
        self.library.esz_hash32.restype = ctypes.c_uint32
        self.library.esz_decoder_bytes.restype = ctypes.c_size_t
        self.decoder = ctypes.create_string_buffer(self.library.esz_decoder_bytes())

    def hash32(self, data: bytearray) -> int:
        return int(self.library.esz_hash32(bytes(data), ctypes.c_size_t(len(data))))

    def decode(self, case: bytes, options: int = 0) -> bytes | None:
        size = struct.unpack_from("<Q", case, 32)[0]
        if size > 1 << 20:  # far more than any undamaged case, so its segments can't add up to it
            return None
        image = ctypes.create_string_buffer(max(size, 1))
        status = self.library.esz_decode_image(
            self.decoder, case, ctypes.c_size_t(len(case)), image, ctypes.c_size_t(size), options, None
        )
        return None if status else image.raw[:size]

    def with_right_hashes(self, damaged: bytes) -> bytes:
        """Sets every hash that the header and index still lead to, so that only the rules behind them decide."""
        case = bytearray(damaged)
        count, index_bytes = struct.unpack_from("<I", case, 20)[0], struct.unpack_from("<Q", case, 24)[0]
        index_end = 64 + index_bytes
        at = 64
        for _ in range(min(count, 16)):
            if at + 44 > min(index_end, len(case)):
                break
            at += self._set_payload_hashes(case, at)
        if index_end <= len(case):
            struct.pack_into("<I", case, 56, self.hash32(case[64:index_end]))
        struct.pack_into("<I", case, 60, self.hash32(case[:60]))
        image = self.decode(bytes(case), NO_IMAGE_HASH)
        if image is not None:
            struct.pack_into("<I", case, 48, self.hash32(bytearray(image)))
            struct.pack_into("<I", case, 60, self.hash32(case[:60]))
        return bytes(case)

    def _set_payload_hashes(self, case: bytearray, at: int) -> int:
        """One index entry's payload; returns the entry's size."""
        start, decoded, coded, directory, _, name_bytes, alphabet, _, rank, log2, flags = struct.unpack_from(
            "<QIIIIHBBBBB", case, at + 8
        )
        if start + coded <= len(case):
            if flags & COMPACT:
                struct.pack_into("<I", case, at + 28, self.hash32(case[start : start + coded]))
            elif directory <= coded:
                data = start + directory
                data += -data % 64 if alphabet == RAW else 0
                block_start = 0
                for block in range(min(directory // 8, (decoded + (1 << log2) - 1) >> log2)):
                    end = struct.unpack_from("<I", case, start + 8 * block)[0]
                    if block_start <= end <= len(case) - data:
                        value = self.hash32(case[data + block_start : data + end])
                        struct.pack_into("<I", case, start + 8 * block + 4, value)
                    block_start = end
                struct.pack_into("<I", case, at + 28, self.hash32(case[start : start + directory]))
        return 44 + 4 * rank + name_bytes


def damage(case: bytes, random_: random.Random) -> bytes:
    """Changes one to three bytes, oftenest where structure is: index, directory, tables, stream sizes."""
    damaged = bytearray(case)
    index_end = 64 + struct.unpack_from("<Q", case, 24)[0]
    areas = [(0, 64), (64, index_end), (index_end, index_end + 60), (index_end, index_end + 60), (0, len(case))]
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        start, end = random_.choice(areas)
        at = min(random_.randrange(start, max(end, start + 1)), len(case) - 1)
        changed = (damaged[at] ^ 1 << random_.randrange(8), damaged[at] + 1, damaged[at] - 1, 0, 255, 128)
        damaged[at] = random_.choice(changed) & 255
    return bytes(damaged)


def test_same_verdicts_as_the_c_decoder(run_java: Callable[..., str]) -> None:
    c_decoder = CDecoder()
    random_ = random.Random(1)
    whole = [case for _, case in containers((1, 8, 33, 1000, 5000))]
    cases = [c_decoder.with_right_hashes(damage(random_.choice(whole), random_)) for _ in range(6000)]
    images = [c_decoder.decode(case) for case in cases]
    for case, image, line in zip(cases, images, batch(run_java, cases), strict=True):
        assert line == (accepted(image) if image is not None else f"no {line[3:]}"), case.hex()
    share = sum(image is not None for image in images) / len(images)
    assert 0.05 < share < 0.5, f"{share:.0%} of the damaged containers keep all rules: a poor sample"


@pytest.mark.parametrize("size", [1, 9, 200, 700])
def test_every_truncation_and_bit_flip_is_rejected(run_java: Callable[..., str], tmp_path: Path, size: int) -> None:
    for number, data in enumerate(payloads(size)):
        segment = Segment(name="w", data=data, dtype="bytes", shape=(len(data),))
        (tmp_path / f"{number}.esz").write_bytes(encode_container([segment], block_bytes=4096))
    assert_all_rejected(run_java, sorted(tmp_path.glob("*.esz")))


def assert_all_rejected(run_java: Callable[..., str], files: list[Path]) -> None:
    for file, line in zip(files, run_java("DecoderMain", "damage", *files).splitlines(), strict=True):
        name, cases, wrongly_accepted = line.rsplit(" ", 2)
        assert name == str(file)
        assert int(cases) == 9 * file.stat().st_size + 1
        assert wrongly_accepted == "0", line
