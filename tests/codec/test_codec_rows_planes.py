"""Row classes and planes: what they save, and every way to break them; the C decoder and the reference agree."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from esz_builder import GAP, MASK8, PAIR, PLAIN, PLANES, RAW, Part, assemble, bits, block, stored, table
from esz_examples import HIGH_PLANE, LOW_PLANE, PLANES_BLOCK, PLANES_IMAGE, ROWS_BLOCK, ROWS_IMAGE, ROWS_SETS
from test_codec_malformed import assert_refused, verdicts

from edgeslim.codec import Segment, decode_container, decode_reference, encode_container
from edgeslim.codec.format import ALPHABETS, SegmentInfo, parse_header, parse_index


def segment_of(coded: bytes) -> SegmentInfo:
    header = parse_header(coded)
    return parse_index(header, coded[64 : 64 + header.index_bytes]).segments[0]


def uneven_rows(rows: int, columns: int, share: float) -> np.ndarray:
    """int8; rows differ in spread and in their share of zeros, which is ``share`` on average."""
    rng = np.random.default_rng(rows)
    density = rng.random((rows, 1))
    values = np.round(rng.laplace(0, 1, (rows, columns)) * (1 + 20 * density)).clip(-127, 127)
    kept = rng.random((rows, columns)) < 2 * (1 - share) * density
    return np.where(kept, values, 0).astype(np.int8)


@pytest.mark.parametrize("columns", [384, 1_536])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.7, 0.8])  # PLAIN, PLAIN, MASK8, GAP
def test_row_classes_save_bytes_and_round_trip(columns: int, share: float) -> None:
    values = uneven_rows(230_400 // columns, columns, share)
    segment = Segment("w", values, "int8", values.shape)
    coded, without = encode_container([segment]), encode_container([segment], alphabets=ALPHABETS)
    assert segment_of(coded).row_items % 8 == 0
    assert len(coded) < 0.985 * len(without)
    for container in (coded, encode_container([segment], block_bytes=4096)):
        assert decode_container(container) == values.tobytes()
        assert decode_container(container, threads=2) == values.tobytes()
    assert decode_reference(coded) == values.tobytes()


def test_rows_of_nibbles_and_of_indices_round_trip() -> None:
    values = uneven_rows(600, 384, 0.8) // 16 + 8
    packed = (values[:, ::2] | values[:, 1::2] << 4).astype(np.uint8)
    for segment in (
        Segment("int4", packed, "uint4x2", (600, 384)),
        Segment("clustered", values.astype("<f4"), "float32", (600, 384)),
    ):
        for block_bytes in (8_192, 262_144):
            coded = encode_container([segment], block_bytes=block_bytes)
            assert decode_container(coded) == np.ascontiguousarray(segment.data).tobytes()
        assert decode_reference(coded) == np.ascontiguousarray(segment.data).tobytes()
        assert segment_of(coded).row_items > 0


@pytest.mark.parametrize(
    ("dtype", "name", "bits_a_value"), [("<f4", "float32", 27.1), ("<f2", "float16", 13.9), ("<f8", "float64", 57)]
)
def test_planes_of_floats(dtype: str, name: str, bits_a_value: float) -> None:
    values = np.random.default_rng(5).normal(0, 0.05, 40_000).astype(dtype)
    for size in (1, 7, 384, 3_000, 40_000):
        for block_bytes in (4096, 262_144):
            coded = encode_container([Segment("w", values[:size], name, (size,))], block_bytes=block_bytes)
            assert decode_container(coded) == values[:size].tobytes()
            assert decode_reference(coded) == values[:size].tobytes()
    assert segment_of(coded).alphabet == "PLANES"
    assert 8 * segment_of(coded).coded_bytes / 40_000 < bits_a_value


def test_planes_of_bfloat16_and_of_scales() -> None:
    values = np.random.default_rng(6).normal(0, 0.05, 40_000).astype("<f4")
    short = (values.view("<u4") >> 16).astype("<u2")
    coded = encode_container([Segment("w", short, "bfloat16", (40_000,))])
    assert 8 * segment_of(coded).coded_bytes / 40_000 < 10.8
    scales = np.abs(values[:384]) + np.float32(0.01)
    assert segment_of(encode_container([Segment("s", scales, "float32", (384,))])).coded_bytes < 0.85 * scales.nbytes


def planes(*parts: bytes, head: bytes = b"\1\0", **changes: Any) -> Part:
    sizes = b"".join(len(part).to_bytes(3, "little") for part in parts[:-1])
    blocks = [head + sizes + b"".join(parts)] if parts else [PLANES_BLOCK]
    part = Part(image=PLANES_IMAGE, alphabet=PLANES, blocks=blocks, book_log2=1, fill=1)
    return dataclasses.replace(part, **changes)


def test_sound_planes() -> None:
    low, high = bytes([0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0]), b"\x7f" * 16
    shared = planes(b"\1\0" + LOW_PLANE[-3:], b"\1\1\1", block_log2=12,
                    sets=b"\2" + LOW_PLANE[2:7] + HIGH_PLANE[2:6])  # fmt: skip
    for part in (planes(), planes(stored(low), HIGH_PLANE), planes(LOW_PLANE, stored(high)), shared,
                 planes(blocks=[stored(PLANES_IMAGE)])):  # fmt: skip
        assert verdicts(assemble([part], required=4)) == (PLANES_IMAGE,) * 2
    apart = planes(fill=0, image=b"".join(bytes([a, 0x7F]) for a in low))
    assert verdicts(assemble([apart], required=4)) == (apart.image,) * 2


PLANES_BROKEN: dict[str, Part] = {
    "no value size": planes(book_log2=0), "16-byte values": planes(book_log2=4), "four bytes": planes(book_log2=2),
    "fill 2": planes(fill=2), "nibbles": planes(nibble=True), "a cap": planes(cap_log2=5), "rows": planes(row_units=1),
    "odd size": planes(image=PLANES_IMAGE[:-1]), "mode 4": planes(LOW_PLANE, HIGH_PLANE, head=b"\4\0"),
    "table 255": planes(LOW_PLANE, HIGH_PLANE, head=b"\1\xff"), "no sizes": planes(blocks=[b"\1\0\x0a"]),
    "one plane": planes(LOW_PLANE), "three planes": planes(LOW_PLANE, HIGH_PLANE, HIGH_PLANE),
    "plane cut": planes(LOW_PLANE, HIGH_PLANE[:-1]), "empty plane": planes(b"", HIGH_PLANE),
    "plane of a byte": planes(LOW_PLANE, b"\0"), "stored short": planes(LOW_PLANE, stored(bytes(15))),
    "stored long": planes(LOW_PLANE, stored(bytes(17))), "stored table": planes(LOW_PLANE, b"\0\1" + bytes(16)),
    "mode 2": planes(LOW_PLANE, b"\2" + HIGH_PLANE[1:]), "no set": planes(b"\1\0" + LOW_PLANE[-3:], HIGH_PLANE),
    "low plane short": planes(LOW_PLANE[:-3] + bits("0" * 15), HIGH_PLANE),
    "size too large": planes(blocks=[b"\1\0\xff\xff\xff" + LOW_PLANE + HIGH_PLANE]),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANES_BROKEN)
def test_broken_planes_are_refused(name: str) -> None:
    assert_refused(assemble([PLANES_BROKEN[name]], required=4))
    assert_refused(assemble([dataclasses.replace(PLANES_BROKEN[name], block_log2=12)], required=4))


def test_features_need_their_bits() -> None:
    assert_refused(assemble([planes()], required=8 | 2))
    assert_refused(assemble([rows()], required=4 | 2))
    assert verdicts(assemble([rows(), planes()], required=14)) == (ROWS_IMAGE + PLANES_IMAGE,) * 2


def rows(**changes: Any) -> Part:
    part = Part(image=ROWS_IMAGE, alphabet=PLAIN, blocks=[ROWS_BLOCK], block_log2=12, sets=ROWS_SETS, row_units=1)
    return dataclasses.replace(part, **changes)


def test_sound_rows() -> None:
    own = rows(blocks=[block(1, table({0x41: 1, 0x42: 2, 0x43: 2}), [bits("0" * 8 + "10 11" * 4 + "0" * 8)])])
    four = rows(blocks=[b"\4\0\4" + b"\1\0\0\2\0\0\1\0\0" + b"\1\xaa\1\1\1"])
    eight = b"\x08\0\x44\0" + b"\1\0\0" * 7 + b"\4\7" * 4
    twice = rows(image=ROWS_IMAGE[:16] * 2 + b"A" * 16, blocks=[eight])
    assert verdicts(assemble([twice], required=8)) == (twice.image,) * 2
    for part in (rows(), own, four, rows(blocks=[stored(ROWS_IMAGE)])):
        assert verdicts(assemble([part], required=8)) == (ROWS_IMAGE,) * 2
    lone = table({0x41: 1})
    one = rows(row_units=4, image=b"A" * 24, sets=b"\5" + lone * 5, blocks=[b"\1\1\0\1"])
    assert verdicts(assemble([one], required=8)) == (b"A" * 24,) * 2


def test_rows_go_on_across_blocks() -> None:
    """Rows of 1,600 bytes, each a letter of its own, which takes no bits: 3 rows in block 0, 3 in block 1."""
    image = b"".join(bytes([0x41 + row]) * 1600 for row in (0, 1, 2, 3, 1))
    sets = b"\4" + b"".join(table({0x41 + k: 1}) for k in range(4))
    blocks = [b"\1\0" + bytes([0b100100]) + b"\1", b"\1\0" + bytes([0b011110]) + b"\1"]
    part = Part(image=image, alphabet=PLAIN, block_log2=12, sets=sets, row_units=200, blocks=blocks)
    assert verdicts(assemble([part], required=8)) == (image, image)
    blocks[1] = b"\1\0" + bytes([0b1011110]) + b"\1"
    assert_refused(assemble([part], required=8))


def test_gaps_take_their_tables_from_the_row_that_they_start_in() -> None:
    """Rows of 8: in class 0 gaps 5 and 9 cost a bit, in class 1 gap 1 none."""
    sets = b"\4" + table({5: 1, 9: 1}) + table({7: 1, 8: 1}) + (table({1: 1}) + table({6: 1})) * 3
    # 9 zeros from row 0, then a value at 9 by class 0 (7 is 0); from 10 on class 1: 1 zero, 6; 1 zero, 6; ...
    image = bytes(9) + b"\7" + b"\0\6" * 3
    part = Part(image=image, alphabet=GAP, cap_log2=5, block_log2=12, sets=sets, row_units=1,
                blocks=[b"\1\0\4" + bits("1 0")])  # fmt: skip
    assert verdicts(assemble([part], required=8)) == (image, image)


ROWS_BROKEN: dict[str, Part] = {
    "no map": rows(blocks=[b"\1\0"]), "map only": rows(blocks=[b"\1\0\4"]), "class 3 behind": rows(blocks=[
        ROWS_BLOCK[:2] + b"\xc4" + ROWS_BLOCK[3:]]), "class 1 behind": rows(blocks=[
        ROWS_BLOCK[:2] + b"\x44" + ROWS_BLOCK[3:]]), "table 1 of 4": rows(blocks=[b"\1\1" + ROWS_BLOCK[2:]]),
    "three sets": rows(sets=b"\3" + ROWS_SETS[1:-4]), "no sets": rows(sets=b"\0"),
    "a map with an own table": rows(blocks=[b"\1\xff" + table({0x41: 1}) + b"\4\1"]),
    "all class 1": rows(blocks=[ROWS_BLOCK[:2] + b"\x15" + ROWS_BLOCK[3:]]),
    "all class 0": rows(blocks=[ROWS_BLOCK[:2] + b"\0" + ROWS_BLOCK[3:]]), "PAIR": rows(alphabet=PAIR),
    "RAW": rows(alphabet=RAW), "COMPACT": rows(block_log2=0), "rows of 16": rows(row_units=2),
    "MASK8 with sets of PLAIN": rows(alphabet=MASK8),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS_BROKEN)
def test_broken_rows_are_refused(name: str) -> None:
    assert_refused(assemble([ROWS_BROKEN[name]], required=8))


@pytest.mark.parametrize("part", [planes(), rows()], ids=["planes", "rows"])
def test_decoders_agree_on_every_changed_byte_behind_right_hashes(part: Part) -> None:
    assert part.blocks
    coded = part.blocks[0]
    for at in range(len(coded)):
        for value in range(256):
            changed = coded[:at] + bytes([value]) + coded[at + 1 :]
            ours, reference = verdicts(assemble([dataclasses.replace(part, blocks=[changed])], required=12))
            assert ours == reference, (at, value)
