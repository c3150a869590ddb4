"""Every broken container is refused, by both decoders, and the C decoder and the reference agree."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from esz_builder import GAP, MASK8, PAIR, PLAIN, RAW, Part, assemble, bits, block, nibbles, stored, table
from esz_examples import GAP_BLOCK, GAP_IMAGE, MASK8_BLOCK, MASK8_IMAGE, PAIR_BLOCK, PLAIN_BLOCK

from edgeslim.codec import decode_container, decode_file, decode_reference, read_index
from edgeslim.errors import BadInputError

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = (
    "raw", "plain", "pair", "gap", "mask8", "gap_nibble", "long_gaps", "empty_segment", "codebook", "planes", "rows"
)  # fmt: skip


def verdicts(data: bytes) -> tuple[bytes | None, bytes | None]:
    """What both decoders make of ``data``; None for refused."""
    found: list[bytes | None] = []
    for decode in (decode_container, decode_reference):
        try:
            found.append(bytes(decode(data)))
        except BadInputError as error:
            found.append(None)
            said_all = error.where and error.got and error.expected and error.hint
            if not said_all:
                pytest.fail(f"an error without where, got, expected or hint: {error}")
    return found[0], found[1]


def assert_refused(data: bytes) -> None:
    assert verdicts(data) == (None, None)


@pytest.mark.parametrize("name", SMALL)
def test_every_truncation_is_refused(name: str) -> None:
    data = (GOLDEN / f"{name}.esz").read_bytes()
    for length in range(len(data)):
        assert_refused(data[:length])
    assert_refused(data + b"\0")


@pytest.mark.parametrize("name", SMALL)
def test_every_bit_flip_is_refused(name: str) -> None:
    data = bytearray((GOLDEN / f"{name}.esz").read_bytes())
    for bit in range(8 * len(data)):
        data[bit >> 3] ^= 1 << (bit & 7)
        assert_refused(bytes(data))
        data[bit >> 3] ^= 1 << (bit & 7)


def test_bit_flips_in_larger_files_are_refused() -> None:
    data = bytearray((GOLDEN / "block_modes.esz").read_bytes())
    for bit in range(0, 8 * len(data), 41):
        data[bit >> 3] ^= 1 << (bit & 7)
        assert_refused(bytes(data))
        data[bit >> 3] ^= 1 << (bit & 7)


def plain(**changes: Any) -> Part:
    part = Part(image=b"ABACABAD", alphabet=PLAIN, blocks=[PLAIN_BLOCK], shape=(8,))
    return dataclasses.replace(part, **changes)


def mapped(**changes: Any) -> Part:
    return dataclasses.replace(Part(image=bytes(range(200)), block_log2=12), **changes)


def blocked(**changes: Any) -> Part:
    part = Part(image=b"ABACABAD" * 600, alphabet=PLAIN, block_log2=12, sets=b"\x01" + PLAIN_BLOCK[2:7])
    codes = {"A": "0", "B": "10", "C": "110", "D": "111"}
    stream = bits("".join(codes[x] for x in "ABACABAD") * 512)
    short = bits("".join(codes[x] for x in "ABACABAD") * 88)
    return dataclasses.replace(part, **{"blocks": [block(1, 0, [stream]), block(1, 0, [short])], **changes})


def test_the_parts_that_the_tests_break_are_sound() -> None:
    for part in (plain(), mapped(), blocked()):
        assert verdicts(assemble([part])) == (part.image, part.image)
    assert verdicts(assemble([plain()], optional=0xFFFFFFFF)) == (b"ABACABAD",) * 2
    assert verdicts(assemble([plain(dtype=200, name=b"\xff\xfe")])) == (b"ABACABAD",) * 2


@pytest.mark.parametrize(
    "header",
    [
        {"version": 0}, {"version": 2}, {"header_bytes": 65}, {"required": 1}, {"required": 16},
        {"required": 15}, {"required": 1 << 31},
        {"reserved": 1}, {"count": 0}, {"count": 2}, {"count": 65_537}, {"count": 0xFFFFFFFF},
        {"index_bytes": 0}, {"index_bytes": 48}, {"index_bytes": 50}, {"index_bytes": 1 << 27},
        {"index_bytes": 1 << 63},
        {"decoded_bytes": 7}, {"decoded_bytes": 9}, {"decoded_bytes": 1 << 40}, {"decoded_bytes": (1 << 64) - 1},
        {"file_bytes": 0}, {"file_bytes": 100}, {"file_bytes": 1 << 41}, {"file_bytes": (1 << 64) - 1},
        {"image_hash": 0}, {"index_hash": 0},
    ],
    ids=str,
)  # fmt: skip
def test_hostile_header_is_refused(header: dict[str, int], tmp_path: Path) -> None:
    data = assemble([plain()], **header)
    assert_refused(data)
    (tmp_path / "a.esz").write_bytes(data)
    with pytest.raises(BadInputError):
        decode_file(tmp_path / "a.esz", tmp_path / "a.bin")
    assert not (tmp_path / "a.bin").exists()
    if "image_hash" not in header:
        with pytest.raises(BadInputError, match=r"a\.esz"):
            read_index(tmp_path / "a.esz")


ENTRIES: list[dict[str, Any]] = [
    {"decoded_offset": 1}, {"coded_offset": 0}, {"coded_offset": 1 << 63}, {"decoded_bytes": 7},
    {"decoded_bytes": 0x80000000}, {"coded_bytes": 8}, {"coded_bytes": 0xFFFFFFFF}, {"directory_bytes": 1}, {"hash": 1},
    {"name": b"a\x1fb"}, {"name": b"n" * 1025}, {"name_bytes": 2}, {"name_bytes": 0xFFFF}, {"rank": 9}, {"rank": 255},
    {"shape": (1 << 31,)}, {"alphabet": 5}, {"alphabet": 6}, {"alphabet": 255},
    {"flags": 0}, {"flags": 3}, {"flags": 5}, {"flags": 129},
    {"cap_log2": 5}, {"fill": 1}, {"row_units": 1}, {"row_units": 65_535},
    {"book_log2": 1}, {"book_log2": 255}, {"alphabet": RAW}, {"alphabet": PAIR}, {"alphabet": GAP},
    {"alphabet": GAP, "cap_log2": 4}, {"alphabet": GAP, "cap_log2": 9}, {"alphabet": MASK8},
    {"image": b"", "blocks": [b""]}, {"image": b"", "blocks": [stored(b"")]},
    {"image": b"", "alphabet": RAW, "hash": 0},
    {"image": bytes(65_537), "blocks": [stored(bytes(65_537))]},
]  # fmt: skip


@pytest.mark.parametrize("changes", ENTRIES, ids=lambda changes: str(changes)[:60])
def test_broken_index_entry_is_refused(changes: dict[str, Any]) -> None:
    assert_refused(assemble([plain(**changes)]))
    assert_refused(assemble([mapped(), plain(**changes)]))


@pytest.mark.parametrize(
    "changes",
    [
        {"flags": 1}, {"flags": 2}, {"block_log2": 11, "directory": bytes(8)}, {"block_log2": 21},
        {"directory_bytes": 0},
        {"directory_bytes": 16}, {"coded_bytes": 265}, {"hash": 5}, {"ends": [199]}, {"ends": [201]}, {"ends": [0]},
        {"directory": b""}, {"directory": bytes(7)}, {"directory": bytes(9)}, {"cap_log2": 6}, {"fill": 3},
        {"image": b""}, {"coded_offset": 108}, {"blocks": [bytes(range(199))]},
    ],
    ids=str,
)  # fmt: skip
def test_broken_raw_segment_is_refused(changes: dict[str, Any]) -> None:
    assert_refused(assemble([mapped(**changes)]))


def test_padding_must_be_zero() -> None:
    assert verdicts(assemble([mapped()])) != (None, None)
    assert_refused(assemble([mapped()], padding=1))
    assert_refused(assemble([plain(), blocked()], padding=128))
    assert_refused(assemble([plain()], tail=b"\0"))


SET = PLAIN_BLOCK[2:7]


@pytest.mark.parametrize(
    "changes",
    [
        {"sets": b""}, {"sets": b"\0"}, {"sets": b"\1"}, {"sets": b"\2" + SET}, {"sets": b"\1" + SET + b"\0"},
        {"sets": b"\1" + SET[:-1]}, {"sets": b"\x41" + SET * 65}, {"sets": b"\2" + SET + b"\1\x41\x44\x11\x11"},
        {"ends": [1, 1069]}, {"ends": [1069, 0]}, {"ends": [0, 1069]}, {"ends": [898, 1068]}, {"ends": [898, 1070]},
        {"blocks": [stored(bytes(4096)), block(1, 0, [b"\1"])]},
    ],
    ids=lambda changes: str(changes)[:50],
)  # fmt: skip
def test_broken_directory_is_refused(changes: dict[str, Any]) -> None:
    assert_refused(assemble([blocked(**changes)]))


def test_64_table_sets_are_allowed() -> None:
    part = blocked(sets=b"\x40" + SET * 64)
    assert verdicts(assemble([part])) == (part.image, part.image)


LETTERS = bytes([0x41, 0x44])
TABLES = {
    "over-subscribed": b"\1" + LETTERS + nibbles([1, 2, 2, 3]),
    "incomplete": b"\1" + LETTERS + nibbles([1, 3, 3, 3]),
    "two symbols, incomplete": b"\1" + LETTERS + nibbles([1, 2, 0, 0]),
    "two symbols, over-subscribed": b"\1" + LETTERS + nibbles([1, 1, 1, 0]),
    "lone symbol of length 2": table({0x41: 2}),
    "no symbol": b"\1" + LETTERS + nibbles([0, 0, 0, 0]),
    "no symbol, dense": bytes(129),
    "too long": table({0x41 + k: min(k + 1, 12) for k in range(13)}),
    "length 15": table({0x41: 1, 0x42: 15}),
    "unknown form": b"\3" + SET[1:],
    "form 255": b"\xff" + SET[1:],
    "first above last": b"\1\x44\x41" + nibbles([1, 2, 3, 3]),
    "symbols not rising": b"\2\3\x41\x43\x42\x44" + nibbles([1, 2, 3, 3]),
    "symbol twice": b"\2\3\x41\x42\x42\x44" + nibbles([1, 2, 3, 3]),
    "last nibble set": b"\2\2\x41\x42\x43" + bytes([0x21, 0x12]),
    "cut off": b"\1",
    "cut off list": b"\2\xff\x41",
    "empty": b"",
}


@pytest.mark.parametrize("name", TABLES)
def test_broken_code_table_is_refused(name: str) -> None:
    stream = PLAIN_BLOCK[7:]
    image = b"ABACABAD" * 20
    assert_refused(assemble([plain(blocks=[block(1, TABLES[name], [stream])])]))
    assert_refused(assemble([Part(image=image, alphabet=PLAIN, blocks=[block(1, TABLES[name], [bytes(99) + b"\1"])])]))
    assert_refused(assemble([blocked(sets=b"\1" + TABLES[name])]))


def test_pair_codes_are_at_most_6_bits() -> None:
    lengths = {0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: 6, 6: 6}
    image = bytes(64)
    stream = bits("0" * 128)
    part = Part(image=image, alphabet=PAIR, blocks=[block(1, table(lengths), [stream])])
    assert verdicts(assemble([part])) == (image, image)
    lengths = {0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: 6, 6: 7, 7: 7}
    assert_refused(assemble([dataclasses.replace(part, blocks=[block(1, table(lengths), [stream])])]))
    assert_refused(assemble([dataclasses.replace(part, blocks=[block(1, b"\1\0\x10" + bytes(9), [stream])])]))


TWO = table({0x41: 1, 0x42: 1})
BLOCKS = {
    "empty": b"",
    "one byte": b"\1",
    "mode 2": block(2, TWO, [bits("0000"), bits("0000")]),
    "mode 16": block(16, TWO, [b"\1"] * 16),
    "stored with a table": b"\0\1" + bytes(8),
    "stored too short": b"\0\0" + bytes(7),
    "no such table set": block(1, 0, [bits("00000000")]),
    "table 64": block(1, 64, [bits("00000000")]),
    "table 254": block(1, 254, [bits("00000000")]),
    "no stream": b"\1\xff" + TWO,
    "one item short": block(1, TWO, [bits("0" * 7)]),
    "one item more": block(1, TWO, [bits("0" * 9)]),
    "no sentinel": block(1, TWO, [b"\0\0"]),
    "sentinel in the next byte but one": block(1, TWO, [b"\0\0\1"]),
    "bits behind the sentinel": block(1, TWO, [b"\0\3"]),
    "a byte behind the sentinel": block(1, TWO, [b"\0\1\0"]),
    "longer than stored": block(1, table({0x41 + k: 3 for k in range(8)}), [b"\0\0\0\1"]),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_broken_block_is_refused(name: str) -> None:
    assert_refused(assemble([plain(blocks=[BLOCKS[name]], image=b"A" * 8)]))


def many(mode: int, streams: list[bytes], alphabet: int = PLAIN) -> Part:
    """64 letters A or B in streams of their own size."""
    return Part(image=b"A" * 64, alphabet=alphabet, blocks=[block(mode, TWO, streams)])


def test_stream_sizes_are_checked() -> None:
    whole = [bits("0" * 8)] * 8
    assert verdicts(assemble([many(8, whole)])) == (b"A" * 64,) * 2
    quarter = [bits("0" * 16)] * 4
    assert verdicts(assemble([many(4, quarter)])) == (b"A" * 64,) * 2
    for k in range(8):
        for bad in (b"", bits("0" * 7), bits("0" * 9), bits("0" * 16)):
            assert_refused(assemble([many(8, [*whole[:k], bad, *whole[k + 1 :]])]))
    head = b"\x08\xff" + TWO
    for sizes in (b"\xff\xff\xff" * 7, b"\2\0\0" * 6 + b"\3\0\0", b"\2\0\0" * 6 + b"\4\0\0", b"\2\0\0" * 6 + b"\5\0\0"):
        assert_refused(assemble([Part(image=b"A" * 64, alphabet=PLAIN, blocks=[head + sizes + b"\0\1" * 8])]))
    for cut in range(22):
        assert_refused(assemble([Part(image=b"A" * 64, alphabet=PLAIN, blocks=[head + bytes(cut)])]))


def test_sparse_alphabets_take_at_most_four_streams() -> None:
    assert_refused(assemble([Part(image=bytes(64), alphabet=GAP, cap_log2=5, blocks=[
        block(8, table({7: 1, 8: 1}) + table({1: 1}), [bits("1")] * 8)])]))  # fmt: skip


def gap(stream: str, size: int = 44, values: bytes | None = None, **changes: Any) -> Part:
    sets = table({0: 2, 1: 2, 5: 2, 31: 2}) + (values or table({5: 1, 250: 1}))  # 0 00, 1 01, 5 10, 31 11
    return Part(image=bytes(size), alphabet=GAP, cap_log2=5, blocks=[block(1, sets, [bits(stream)])], **changes)


def test_gaps_must_stay_within_their_chunk() -> None:
    assert verdicts(assemble([gap("11 10 10 01 01", 44)])) == (None, None)  # values are missing
    sound = gap("11 10 0 01 0 10", 44)  # 31 + 5, value 5, 1, value 5, 5 to the end: 36 + 1 + 1 + 1 + 5 = 44
    sound.image = bytes(36) + b"\5\0\5" + bytes(5)
    assert verdicts(assemble([sound])) == (sound.image, sound.image)
    assert_refused(assemble([gap("11 10 0 01 0 11", 44)]))  # the cap runs past the end
    assert_refused(assemble([gap("11 10 0 01 0 01 0 10", 44)]))  # a gap runs past the end
    assert_refused(assemble([gap("11 10 0 01 0 10 0", 44)]))  # a value behind the end
    assert_refused(assemble([gap("11 10 0 01 0 10 00", 44)]))  # a gap of 0 behind the end
    assert_refused(assemble([gap("11 11", 32)]))


def test_the_fill_value_must_not_have_a_code() -> None:
    image = bytes(44)
    sets = table({13: 1, 31: 1})
    for values, fine in ((table({5: 1, 250: 1}), True), (table({0: 1, 250: 1}), False), (table({0: 1}), False)):
        part = Part(image=image, alphabet=GAP, cap_log2=5, blocks=[block(1, sets + values, [bits("1 0")])])
        assert verdicts(assemble([part])) == ((image, image) if fine else (None, None))
    masks = table({0: 1})
    part = Part(image=image, alphabet=MASK8, blocks=[block(1, masks + table({0: 1}), [bits("")])])
    assert_refused(assemble([part]))


def book(**changes: Any) -> Part:
    image = b"".join(b"\x01\x10" if k % 3 else b"\x02\x20" for k in range(40))
    stream = bits("".join("0" if k % 3 else "1" for k in range(40)))
    part = Part(image=image, alphabet=PLAIN, book_log2=1, book=b"\1\x01\x10\x02\x20",
                blocks=[block(1, table({0: 1, 1: 1}), [stream])])  # fmt: skip
    return dataclasses.replace(part, **changes)


def test_codebooks() -> None:
    sound = book()
    assert verdicts(assemble([sound], required=2)) == (sound.image, sound.image)
    kept = book(blocks=[stored(sound.image)], coded_bytes=None, book=b"\0\7\7")
    assert_refused(assemble([kept], required=2))  # a COMPACT payload with codebook and STORED block is too long
    directory = book(block_log2=12, sets=b"\1" + table({0: 1, 1: 1}))
    directory.blocks = [block(1, 0, [sound.blocks[0][-6:]])]
    assert verdicts(assemble([directory], required=2)) == (sound.image, sound.image)
    stored_book = dataclasses.replace(directory, blocks=[stored(sound.image)])
    assert verdicts(assemble([stored_book], required=2)) == (sound.image, sound.image)
    gaps = Part(image=b"abcdefgh" * 9, alphabet=GAP, cap_log2=5, book_log2=3, book=b"\1abcdefghABCDEFGH",
                blocks=[block(1, table({9: 1, 31: 1}) + table({1: 1}), [bits("0")])])  # fmt: skip
    assert verdicts(assemble([gaps], required=2)) == (gaps.image, gaps.image)


@pytest.mark.parametrize(
    "changes",
    [
        {"book_log2": 4}, {"book_log2": 3}, {"nibble": True}, {"book": b""}, {"book": b"\1\1"}, {"book": b"\xff" * 20},
        {"book": b"\0\1\x10"}, {"alphabet": PAIR}, {"alphabet": RAW}, {"fill": 1}, {"image": b"x" * 79},
        {"blocks": [block(1, table({0: 1, 2: 1}), [bits("0" * 40)])]},
        {"blocks": [block(1, table({0: 1, 1: 1}), [bits("0" * 80)])]},
        {"blocks": [block(1, b"\0" + nibbles([1, 1, 0]), [bits("0" * 40)])]},
    ],
    ids=lambda changes: str(changes)[:50],
)  # fmt: skip
def test_broken_codebook_is_refused(changes: dict[str, Any]) -> None:
    assert_refused(assemble([book(**changes)], required=2))
    assert_refused(assemble([book(block_log2=12, **changes)], required=2))


def test_codebook_needs_its_feature_bit_and_a_fill_value_within() -> None:
    assert_refused(assemble([book()]))
    masks = Part(image=bytes(32), alphabet=MASK8, book_log2=2, book=b"\0" + bytes(4), fill=1,
                 blocks=[block(1, table({0: 1}) + table({0: 1}), [bits("")])])  # fmt: skip
    assert_refused(assemble([masks], required=2))


def test_masks_must_not_reach_past_a_short_group() -> None:
    part = Part(image=MASK8_IMAGE, alphabet=MASK8, blocks=[MASK8_BLOCK])
    assert verdicts(assemble([part])) == (MASK8_IMAGE, MASK8_IMAGE)
    sets = bytes.fromhex("02 01 11 92 11  02 01 03 07 11")  # mask 0x11 has a bit for element 4 of 4
    assert_refused(assemble([dataclasses.replace(part, blocks=[block(1, sets, [bits("1 010 0 00")])])]))
    assert_refused(assemble([dataclasses.replace(part, blocks=[block(1, sets, [bits("1 010 0 0")])])]))


@pytest.mark.parametrize(
    ("coded", "part"),
    [
        (PAIR_BLOCK, Part(image=bytes.fromhex("8878988887888988"), alphabet=PAIR)),
        (GAP_BLOCK, Part(image=GAP_IMAGE, alphabet=GAP, cap_log2=5)),
        (MASK8_BLOCK, Part(image=MASK8_IMAGE, alphabet=MASK8)),
        (PLAIN_BLOCK, Part(image=b"ABACABAD", alphabet=PLAIN)),
    ],
    ids=["PAIR", "GAP", "MASK8", "PLAIN"],
)
def test_decoders_agree_on_every_changed_byte_behind_right_hashes(coded: bytes, part: Part) -> None:
    """All 255 other values of every byte of a block, its hash recomputed: same verdict, same image."""
    for at in range(len(coded)):
        for value in range(256):
            changed = coded[:at] + bytes([value]) + coded[at + 1 :]
            ours, reference = verdicts(assemble([dataclasses.replace(part, blocks=[changed])]))
            assert ours == reference, (at, value)
