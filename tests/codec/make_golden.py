"""Writes tests/golden: ``python tests/codec/make_golden.py``. Existing files are left alone.

The hand-worked examples come from esz_examples.py. The larger ones are coded by the encoder as it is when they are
written, and stay what they are when the encoder learns to choose better.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from esz_builder import GAP, PLAIN, Part, assemble, bits, block, stored, table
from esz_examples import hand_worked

from edgeslim.codec import Segment, encode_container

FOLDER = Path(__file__).parents[1] / "golden"


def int8(rng: np.random.Generator, size: int, sparsity: float) -> np.ndarray:
    values = np.clip(np.round(rng.laplace(0, 20, size)), -127, 127).astype(np.int8)
    values[rng.random(size) < sparsity] = 0
    return values


def int4(rng: np.random.Generator, size: int, sparsity: float) -> np.ndarray:
    """Packed nibbles around 8."""
    values = np.clip(np.round(rng.normal(8, 2.2, size)), 0, 15).astype(np.uint8)
    values[rng.random(size) < sparsity] = 8
    return values[::2] | values[1::2] << 4


def two_of_four(rng: np.random.Generator, size: int) -> np.ndarray:
    values = int8(rng, size, 0).reshape(-1, 4)
    values[values == 0] = 1
    drop = np.argsort(np.abs(values.astype(np.int16)), axis=1, kind="stable")[:, :2]
    np.put_along_axis(values, drop, 0, axis=1)
    return values.reshape(-1)


def special() -> dict[str, tuple[bytes, bytes]]:
    """Containers that the encoder does not write of itself."""
    a, b = bytes([0, 1, 2, 3]) * 1024, bytes([7, 9]) * 2048
    flat = table({0: 2, 1: 2, 2: 2, 3: 2})
    codes = {symbol: f"{symbol:02b}" for symbol in range(4)}
    chunks = [bits("".join(codes[x] for x in a[at : at + 1024])) for at in range(0, 4096, 1024)]
    eight = [bits("".join(codes[x] for x in a[s::8])) for s in range(8)]
    own = block(8, table({7: 1, 9: 1}), [bits("".join("0" if x == 7 else "1" for x in b[s::8])) for s in range(8)])
    kinds = Part(
        name=b"every mode",
        image=a + a + a + b + a[:5],
        alphabet=PLAIN,
        block_log2=12,
        sets=b"\x02" + table({7: 1, 9: 1}) + flat,
        blocks=[
            block(4, 1, chunks),
            block(8, 1, eight),
            block(1, 1, [bits("".join(codes[x] for x in a))]),
            own,
            stored(a[:5]),
        ],
    )
    # 9,000 zeros with ones at 300 and 8,191: with cap 255, gaps 255 + 45, then 30 × 255 + 240, then 3 × 255 + 43.
    lone = bytearray(9000)
    lone[300] = lone[8191] = 1
    gaps = table({43: 3, 45: 3, 240: 2, 255: 1})
    # Canonical: 255 -> 0, 240 -> 10, 43 -> 110, 45 -> 111.
    stream = "0 111" + " 0" * 30 + " 10" + " 0" * 3 + " 110"
    long_gaps = Part(
        name=b"long gaps",
        image=bytes(lone),
        alphabet=GAP,
        cap_log2=8,
        blocks=[block(1, gaps + table({1: 1}), [bits(stream)])],
    )
    return {
        "block_modes": (assemble([kinds]), kinds.image),
        "long_gaps": (assemble([long_gaps]), long_gaps.image),
    }


def encoded() -> dict[str, tuple[bytes, bytes]]:
    rng = np.random.default_rng(20)
    every = {
        "empty_segment": [("nothing", b"", "bytes", ()), ("some", b"\1\2", "uint8", (2,)), ("end", b"", "int8", (0,))],
        "single_symbol": [("ones", b"\x01" * 100_000, "uint8", (100_000,)), ("zeros", bytes(3_000), "bytes", ())],
        "multi_block": [("dense", int8(rng, 50_000, 0), "int8", (50, 1000)), ("noise", rng.bytes(9_000), "bytes", ())],
        "dense_int4": [("int4", int4(rng, 60_000, 0), "uint4x2", (60, 1000)), ("tiny", int4(rng, 600, 0), "bytes", ())],
        "sparse": [("int8", int8(rng, 60_000, 0.9), "int8", (60, 1000)), ("int4", int4(rng, 60_000, 0.9), "bytes", ())],
        "two_of_four": [("int8", two_of_four(rng, 40_000), "int8", (40_000,))],
        "mixed": [
            ("a/weight", int8(rng, 30_001, 0.5), "int8", (30_001,)),
            ("a/scale", rng.normal(size=301).astype("<f4"), "float32", (7, 43)),
            ("ünïcode", int4(rng, 9_000, 0.7), "uint4x2", (9_000,)),
            ("", rng.bytes(70), "bytes", ()),
            ("big", rng.bytes(6_000), "uint8", (6_000,)),
            ("gaps", int8(rng, 20_000, 0.97), "int8", (100, 200)),
        ],
    }  # fmt: skip
    vectors = {}
    for name, rows in every.items():
        segments = [Segment(*row) for row in rows]
        image = b"".join(bytes(memoryview(segment.data).cast("B")) for segment in segments if len(segment.data))
        vectors[name] = (encode_container(segments, block_bytes=16_384 if name != "single_symbol" else 4_096), image)
    segments = [
        Segment("w", int8(rng, 40_000, 0.9), "int8", (40_000,)),
        Segment("v", int8(rng, 20_000, 0), "int8", (20_000,)),
    ]
    image = b"".join(bytes(segment.data) for segment in segments)
    vectors["small_memory"] = (encode_container(segments, small_memory=True), image)
    float32, int64 = rng.normal(size=17).astype("<f4"), np.array([-1, 5, 1 << 40], "<i8")
    clustered = float32[rng.integers(0, 17, 30_000)]
    pruned = np.where(rng.random(30_000) < 0.9, np.float32(0), clustered)
    segments = [
        Segment("dense", clustered, "float32", (30_000,)),
        Segment("pruned", pruned, "float32", (30_000,)),
        Segment("half", clustered[:5000].astype("<f2"), "float16", (5000,)),
        Segment("ids", int64[rng.integers(0, 3, 400)], "int64", (400,)),
    ]
    image = b"".join(segment.data.tobytes() for segment in segments)
    vectors["codebooks"] = (encode_container(segments, block_bytes=16_384), image)
    weights = rng.normal(0, 0.05, 5_000)
    segments = [
        Segment("float32", weights.astype("<f4"), "float32", (5_000,)),
        Segment("float16", weights.astype("<f2"), "float16", (5_000,)),
        Segment("bfloat16", (weights.astype("<f4").view("<u4") >> 16).astype("<u2"), "bfloat16", (5_000,)),
        Segment("scales", weights[:300].astype("<f4"), "float32", (300,)),
    ]
    image = b"".join(segment.data.tobytes() for segment in segments)
    vectors["float_planes"] = (encode_container(segments, block_bytes=8_192), image)
    density = rng.random((200, 1))
    rows = np.round(rng.laplace(0, 1, (200, 160)) * (1 + 6 * density)).clip(-127, 127).astype(np.int8)
    often = np.where(rng.random((300, 1)) < 0.5, 0.99, 0.5)
    small = np.round(rng.laplace(0, 1, (300, 320))).clip(-1, 1).astype(np.int8)
    sparse = np.where(rng.random((300, 320)) < often, 0, small).astype(np.int8)
    nibbles = np.where(rng.random((300, 320)) < often, 8, small + 8)
    segments = [
        Segment("dense", rows, "int8", (200, 160)),
        Segment("sparse", sparse, "int8", (300, 320)),
        Segment("int4", (nibbles[:, ::2] | nibbles[:, 1::2] << 4).astype(np.uint8), "uint4x2", (300, 320)),
    ]
    image = b"".join(segment.data.tobytes() for segment in segments)
    vectors["row_classes"] = (encode_container(segments, block_bytes=8_192), image)
    clusters = np.where(rng.random((200, 320)) < often[:200], 0, rng.integers(1, 16, (200, 320))).astype(np.uint8)
    segments = [
        Segment("clusters", clusters, "uint8", (200, 320)),
        Segment("int4", int4(rng, 200_000, 0.85), "uint4x2", (200, 1000)),
        Segment("pruned", np.where(rng.random(40_000) < 0.8, np.float32(0), clustered[0]), "float32", (40_000,)),
        Segment(
            "few", np.where(rng.random(3_000) < 0.8, 2, rng.integers(0, 6, 3_000)).astype(np.uint8), "uint8", (3_000,)
        ),
    ]
    image = b"".join(segment.data.tobytes() for segment in segments)
    vectors["joints"] = (encode_container(segments, block_bytes=32_768, alphabets=("JOINT", "CODEBOOK", "ROWS")), image)
    return vectors


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    vectors = hand_worked() | special() | encoded()
    for name, (container, image) in vectors.items():
        for suffix, data in ((".esz", container), (".bin", image)):
            path = FOLDER / f"{name}{suffix}"
            if not path.exists():
                path.write_bytes(data)
    found = sorted(path.stem for path in FOLDER.glob("*.esz"))
    digests = {
        f"{name}{suffix}": hashlib.sha256((FOLDER / f"{name}{suffix}").read_bytes()).hexdigest()
        for name in found
        for suffix in (".esz", ".bin")
    }
    (FOLDER / "golden.json").write_text(json.dumps(digests, indent=2) + "\n")


if __name__ == "__main__":
    main()
