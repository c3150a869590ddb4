"""Containers that break one rule of FORMAT.md each, with right hashes: the Java decoder must reject every one.

The containers are put together byte by byte by the builder of the codec's own tests; the C decoder rejects them too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from esz_builder import GAP, MASK8, PAIR, PLAIN, RAW, Part, assemble, bits, block, nibbles, stored, table
from test_java_decoder import batch

from edgeslim.codec import decode_container
from edgeslim.codec.format import hash32
from edgeslim.errors import BadInputError

IMAGE = b"ABACABAD"
LONG_IMAGE = IMAGE * 50
CODES = {"A": "0", "B": "10", "C": "110", "D": "111"}
STREAM = bits("".join(CODES[letter] for letter in IMAGE.decode()))
SET = b"\1\x41\x44" + nibbles([1, 2, 3, 3])
GAPS = table({0: 2, 1: 2, 5: 2, 31: 2})  # 0 00, 1 01, 5 10, 31 11
GAP_IMAGE = bytes(36) + b"\5\0\5" + bytes(5)
GAP_STREAM = "11 10 0 01 0 10"  # 31 + 5 zeros, 5, 1 zero, 5, 5 zeros
MASKS = table({0x05: 1, 0x12: 1})  # 05 is 0, 12 is 1
MASK_IMAGE = b"\7\0\7\0\0\0\0\0" + b"\7\0\3\0"
TWO = table({0x41: 1, 0x42: 1})
BOOK = b"\3" + b"1.5 2.5 3.5 4.5 "
BOOK_IMAGE = b"1.5 2.5 1.5 3.5 1.5 2.5 1.5 4.5 "
BOOK_SET = b"\1\0\3" + nibbles([1, 2, 3, 3])
CODEBOOK = 2  # the feature bit


def plain(**changes: Any) -> Part:
    part = Part(image=IMAGE, alphabet=PLAIN, blocks=[block(1, SET, [STREAM])], shape=(8,))
    return dataclasses.replace(part, **changes)


def coded(table_set: bytes, codes: dict[str, str] = CODES, image: bytes = LONG_IMAGE, **changes: Any) -> Part:
    """An image long enough for any table: a block may not be longer than its image."""
    stream = bits("".join(codes[letter] for letter in image.decode()))
    return Part(image=image, alphabet=PLAIN, blocks=[block(1, table_set, [stream])], **changes)


def clustered(alphabet: int = PLAIN, book: bytes = BOOK, table_set: bytes = BOOK_SET, **changes: Any) -> Part:
    """A COMPACT segment of four-byte values, coded as indices into a codebook of four."""
    blocks = [book + block(1, table_set, [STREAM])]
    part = Part(image=BOOK_IMAGE, alphabet=alphabet, book_log2=2, blocks=blocks)
    return dataclasses.replace(part, **changes)


def clustered_gaps(**changes: Any) -> Part:
    """Two-byte values in blocks; the codebook is in the directory, and its value 1 fills the gaps."""
    sets = b"\2" + b"ccFFvv" + b"\1" + GAPS + table({0: 1, 2: 1})
    image = b"FF" * 36 + b"vvFFcc" + b"FF" * 5
    blocks = [block(1, 0, [bits("11 10 1 01 0 10")])]
    part = Part(image=image, alphabet=GAP, cap_log2=5, fill=1, book_log2=1, block_log2=12, sets=sets, blocks=blocks)
    return dataclasses.replace(part, **changes)


def with_longer_index(container: bytes) -> bytes:
    """The same container with one more byte between index and payload; all offsets, sizes and hashes are right."""
    size = struct.unpack_from("<Q", container, 24)[0]
    longer = bytearray(container[: 64 + size] + b"\0" + container[64 + size :])
    for at in (24, 40, 64 + 8):  # index_bytes, file_bytes, coded_offset of the COMPACT segment
        struct.pack_into("<Q", longer, at, struct.unpack_from("<Q", longer, at)[0] + 1)
    struct.pack_into("<I", longer, 56, hash32(longer[64 : 64 + size + 1]))
    struct.pack_into("<I", longer, 60, hash32(longer[:60]))
    return bytes(longer)


def with_longer_data(part: Part) -> Part:
    """A byte behind the last block, which the directory doesn't know."""
    directory, _ = part.payload()
    *blocks, last = part.blocks or []
    return dataclasses.replace(part, directory=directory, blocks=[*blocks, last + b"\0"])


def raw(**changes: Any) -> Part:
    return dataclasses.replace(Part(image=bytes(range(200)), block_log2=12), **changes)


def blocked(**changes: Any) -> Part:
    image = IMAGE * 600
    text = "".join(CODES[letter] for letter in IMAGE.decode())
    blocks = [block(1, 0, [bits(text * 512)]), block(1, 0, [bits(text * 88)])]
    part = Part(image=image, alphabet=PLAIN, block_log2=12, sets=b"\1" + SET, blocks=blocks)
    return dataclasses.replace(part, **changes)


def gap(stream: str = GAP_STREAM, values: bytes | None = None, **changes: Any) -> Part:
    sets = GAPS + (values or table({5: 1, 250: 1}))
    part = Part(image=GAP_IMAGE, alphabet=GAP, cap_log2=5, blocks=[block(1, sets, [bits(stream)])])
    return dataclasses.replace(part, **changes)


def mask(stream: str = "0 0 0 0 0 1", masks: bytes = MASKS, values: bytes | None = None) -> Part:
    sets = masks + (values or table({3: 1, 7: 1}))
    return Part(image=MASK_IMAGE, alphabet=MASK8, blocks=[block(1, sets, [bits(stream)])])


def eight(streams: list[bytes], alphabet: int = PLAIN, **changes: Any) -> Part:
    return Part(image=b"A" * 64, alphabet=alphabet, blocks=[block(len(streams), TWO, streams)], **changes)


def sound() -> Iterator[Part]:
    yield from (plain(), raw(), blocked(), gap(), eight([bits("0" * 8)] * 8), eight([bits("0" * 16)] * 4))
    yield mask("0 1 1 0 1 0", table({0x05: 1, 0x12: 1}))
    yield plain(name=b"\xff", dtype=99)
    yield blocked(sets=b"\x40" + SET * 64)
    yield coded(b"\0" + nibbles([0] * 65 + [1, 2, 3, 3] + [0] * 187))  # form 0
    yield coded(b"\2\5\x40\x41\x42\x43\x44\xff" + nibbles([0, 1, 2, 3, 3, 0]))  # form 2 may list unused symbols


def broken() -> Iterator[tuple[str, bytes]]:
    def one(rule: str, part: Part) -> tuple[str, bytes]:
        return rule, assemble([part])

    for field, values in {
        "version": (0, 2), "header_bytes": (0, 65), "required": (1, 15, 16, 1 << 31), "reserved": (1,),
        "count": (0, 2, 65_537, 0xFFFFFFFF), "index_bytes": (0, 54, 56, 1 << 27, 1 << 63),
        "decoded_bytes": (7, 9, 1 << 41, 1 << 63), "file_bytes": (0, 100, 1 << 41, 1 << 63), "image_hash": (0,),
        "index_hash": (0,),
    }.items():  # fmt: skip
        for value in values:
            yield f"header {field} {value}", assemble([plain()], **{field: value})
    for changes in (
        {"decoded_offset": 1}, {"coded_offset": 0}, {"coded_offset": 1 << 63}, {"decoded_bytes": 7},
        {"decoded_bytes": 1 << 31}, {"coded_bytes": 8}, {"coded_bytes": 0xFFFFFFFF}, {"directory_bytes": 1},
        {"hash": 1}, {"name": b"a\x1f"}, {"name": b"n" * 1025}, {"name_bytes": 2}, {"name_bytes": 0xFFFF},
        {"rank": 9}, {"rank": 255}, {"shape": (1,) * 9}, {"shape": (1 << 31,)}, {"alphabet": 5},
        {"alphabet": 6}, {"alphabet": 255},
        {"flags": 0}, {"flags": 3}, {"flags": 5}, {"cap_log2": 5}, {"fill": 1}, {"row_units": 1},
        {"row_units": 65_535}, {"alphabet": RAW}, {"alphabet": GAP},
        {"image": b"", "blocks": [b""]}, {"image": b"", "alphabet": RAW, "hash": 0},
        {"image": bytes(65_537), "blocks": [stored(bytes(65_537))]},
    ):  # fmt: skip
        yield one(f"entry {str(changes)[:50]}", plain(**changes))
    for changes in ({"cap_log2": 4}, {"cap_log2": 9}, {"nibble": True, "fill": 16}):
        yield one(f"gap entry {changes}", gap(**changes))
    for changes in (
        {"flags": 1}, {"flags": 2}, {"block_log2": 11, "directory": bytes(8)}, {"block_log2": 21}, {"hash": 5},
        {"directory_bytes": 0}, {"directory_bytes": 16}, {"coded_bytes": 265}, {"ends": [199]}, {"ends": [201]},
        {"ends": [0]}, {"directory": b""}, {"directory": bytes(7)}, {"directory": bytes(9)}, {"image": b""},
        {"coded_offset": 108}, {"blocks": [bytes(range(199))]},
    ):  # fmt: skip
        yield one(f"raw segment {changes}", raw(**changes))
    for changes in (
        {"sets": b""}, {"sets": b"\0"}, {"sets": b"\1"}, {"sets": b"\2" + SET}, {"sets": b"\1" + SET + b"\0"},
        {"sets": b"\1" + SET[:-1]}, {"sets": b"\x41" + SET * 65}, {"sets": b"\2" + SET + b"\1\x41\x44\x11\x11"},
        {"ends": [1, 1069]}, {"ends": [1069, 0]}, {"ends": [898, 1068]}, {"ends": [898, 1070]},
        {"blocks": [stored(bytes(4096)), block(1, 0, [b"\1"])]},
        {"image": IMAGE * 512, "sets": b"\0", "blocks": [stored(IMAGE * 512) + b"\0"]},
    ):  # fmt: skip
        yield one(f"directory {str(changes)[:40]}", blocked(**changes))
    yield "padding before a payload", assemble([plain(), blocked()], padding=1)
    yield "padding before RAW data", assemble([raw()], padding=1)
    yield "a byte at the end", assemble([plain()], tail=b"\0")
    yield "a byte behind the end", assemble([plain()]) + b"\0"
    yield "a byte behind the last block", assemble([with_longer_data(blocked()), raw()])
    yield "a byte behind the index entries", with_longer_index(assemble([plain()]))
    yield from (one(rule, case) for rule, case in TABLES.items())
    pairs = {0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: 6, 6: 7, 7: 7}
    part = Part(image=bytes(64), alphabet=PAIR, blocks=[block(1, table(pairs), [bits("0" * 128)])])
    yield one("PAIR code of 7 bits", part)
    for rule, case in BLOCKS.items():
        yield one(rule, Part(image=b"A" * 8, alphabet=PLAIN, blocks=[case]))
    whole = [bits("0" * 8)] * 8
    for k in range(8):
        for bad in (b"", bits("0" * 7), bits("0" * 9), bits("0" * 16)):
            yield one(f"stream {k} of size {len(bad)}", eight([*whole[:k], bad, *whole[k + 1 :]]))
    yield from (one(rule, case) for rule, case in SEGMENTS.items())
    yield one("codebook without its feature bit", clustered())
    for rule, case in CLUSTERED.items():
        yield f"codebook: {rule}", assemble([case], required=CODEBOOK)
    for stream in (
        "11 10 0 01 0 11", "11 10 0 01 0 01 0 10", "11 10 0 01 0 10 0", "11 10 0 01 0 10 00", "11 11", "11 10 0 01 0",
    ):  # fmt: skip
        yield one(f"gaps {stream}", gap(stream))
    yield one("mask behind a short group", mask("0 1 1 1 1 1"))
    yield one("masks too few", mask("0 1 1"))


TABLES: dict[str, Part] = {
    "over-subscribed": coded(b"\1\x41\x44" + nibbles([1, 2, 2, 3])),
    "over-subscribed by a symbol that isn't needed": coded(b"\1\x41\x45" + nibbles([1, 2, 3, 3, 3])),
    "incomplete": coded(b"\1\x41\x44" + nibbles([1, 3, 3, 3])),
    "incomplete where it isn't needed": coded(b"\1\x41\x44" + nibbles([1, 2, 3, 4]), {**CODES, "D": "1110"}),
    "only symbol of length 2": coded(table({0x41: 2}), {"A": ""}, b"A" * 99),
    "no symbol": coded(b"\1\x41\x44" + nibbles([0, 0, 0, 0])),
    "code of 12 bits": coded(table({0x41 + k: min(k + 1, 12) for k in range(13)}), {**CODES, "D": "1110"}),
    "unknown form": coded(b"\3" + SET[1:]),
    "first above last": coded(b"\1\x44\x41" + nibbles([1, 2, 3, 3])),
    "symbols fall": coded(b"\2\3\x41\x43\x42\x44" + nibbles([1, 3, 2, 3])),
    "symbol twice": coded(b"\2\4\x41\x42\x42\x43\x44" + nibbles([1, 2, 2, 3, 3])),
    "last nibble": coded(b"\2\4\x41\x42\x43\x44\x45" + bytes([0x21, 0x33, 0x10])),
    "cut off": plain(blocks=[b"\1\xff\1"]),
    "fill value with a code": gap("11 10 1 01 1 10", table({0: 1, 5: 1})),
    "fill value with the only code": gap("11 10 01 10", table({0: 1}), image=bytes(44)),
}
LONG_TABLE = b"\1\x41\x4c" + nibbles([1, 2, 3, 3] + [0] * 8)
FAR = table({13: 1, 31: 1}) + table({5: 1})  # with "1 0" 44 zeros
RAW_IMAGE = bytes(range(200)) * 21
SEGMENTS: dict[str, Part] = {
    "COMPACT block longer than stored": coded(LONG_TABLE, image=IMAGE),
    "block longer than stored": coded(LONG_TABLE, image=IMAGE, block_log2=12),
    "RAW block of 2 KiB": raw(block_log2=11),
    "RAW blocks of wrong sizes": raw(image=RAW_IMAGE, blocks=[RAW_IMAGE[:4097], RAW_IMAGE[4097:]]),
    "eight streams of gaps": Part(
        image=bytes(64), alphabet=GAP, cap_log2=5, blocks=[block(8, table({7: 1, 8: 1}) + TWO, [bits("1")] * 8)]
    ),
    "eight streams of masks": Part(
        image=bytes(64), alphabet=MASK8, blocks=[block(8, table({0: 1}) + TWO, [bits("")] * 8)]
    ),
    "cap of 15": Part(
        image=bytes(44), alphabet=GAP, cap_log2=4, blocks=[block(1, table({14: 1, 15: 1}) + TWO, [bits("1 1 0")])]
    ),
    "cap of 511": Part(
        image=bytes(44), alphabet=GAP, cap_log2=9, blocks=[block(1, table({13: 1, 44: 1}) + TWO, [bits("1")])]
    ),
    "fill of 16 in nibbles": Part(
        image=bytes(22), alphabet=GAP, cap_log2=5, nibble=True, fill=16, blocks=[block(1, FAR, [bits("1 0")])]
    ),
}
CLUSTERED: dict[str, Part] = {
    "value of 16 bytes": clustered(book_log2=4),
    "book_log2 of 255": clustered(book_log2=255),
    "PAIR": clustered(
        PAIR,
        image=b"1.5 2.5 " * 8,
        blocks=[b"\1" + b"1.5 2.5 " + block(1, table({0: 1, 1: 1}), [bits("00 10" * 8)])],
    ),
    "RAW": raw(book_log2=1),
    "nibbles": clustered_gaps(nibble=True),
    "half a value": clustered(image=BOOK_IMAGE + b"\0"),
    "symbol outside": clustered(table_set=b"\1\0\4" + nibbles([1, 2, 3, 3, 0])),
    "form 0 of 256 symbols": clustered(table_set=b"\0" + nibbles([1, 2, 3, 3] + [0] * 252)),
    "symbol outside, in the directory": clustered_gaps(
        sets=b"\2ccFFvv\1" + GAPS + table({0: 1, 2: 2, 200: 2}), blocks=[block(1, 0, [bits("11 10 10 01 0 10")])]
    ),
    "cut off": clustered(blocks=[BOOK[:-1]]),
    "nothing behind it": clustered(blocks=[BOOK]),
    "longer than the directory": clustered_gaps(sets=b"\xff" + b"ccFFvv"),
    "fill outside": clustered_gaps(fill=3),
    "fill outside, COMPACT": clustered_gaps(
        fill=3, block_log2=0, blocks=[b"\2ccFFvv" + block(1, GAPS + table({0: 1, 2: 1}), [bits("11 10 1 01 0 10")])]
    ),
    "payload longer than stored": clustered(image=BOOK_IMAGE[:24], blocks=[BOOK + b"\0\0" + BOOK_IMAGE[:24]]),
}
BLOCKS = {
    "empty": b"",
    "one byte": b"\1",
    "mode 2": block(2, TWO, [bits("0000"), bits("0000")]),
    "mode 3": block(3, TWO, [bits("000")] * 3),
    "stored with a table": b"\0\1" + b"A" * 8,
    "stored too short": b"\0\0" + b"A" * 7,
    "table that isn't there": block(1, 0, [bits("00000000")]),
    "table 254": block(1, 254, [bits("00000000")]),
    "no stream": b"\1\xff" + TWO,
    "an item too few": block(1, TWO, [bits("0" * 7)]),
    "an item too many": block(1, TWO, [bits("0" * 9)]),
    "no sentinel": block(1, TWO, [b"\0\0"]),
    "late sentinel": block(1, TWO, [b"\0\2"]),
    "bits behind the sentinel": block(1, TWO, [b"\0\3"]),
    "a byte behind the sentinel": block(1, table({0x41: 1}), [b"\1\0"]),
    "eight bits behind the sentinel": block(1, table({0x41: 1}), [b"\1\1"]),
}


def c_verdict(container: bytes) -> bytes | None:
    try:
        return bytes(decode_container(container))
    except BadInputError:
        return None


@pytest.fixture(autouse=True)
def _library(c_library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESLIM_LIBESZ", str(c_library))


def test_sound_containers_of_the_same_make_are_accepted(run_java: Callable[..., str]) -> None:
    parts = [*sound(), clustered(), clustered_gaps(), clustered_gaps(blocks=[stored(clustered_gaps().image)])]
    lines = batch(run_java, [assemble([part], required=CODEBOOK) for part in parts])
    assert lines == [f"ok {hashlib.sha256(part.image).hexdigest()} {len(part.image)}" for part in parts]


def test_every_broken_rule_is_rejected(run_java: Callable[..., str]) -> None:
    cases = list(broken())
    lines = batch(run_java, [container for _, container in cases])
    accepted = [rule for (rule, _), line in zip(cases, lines, strict=True) if not line.startswith("no ")]
    assert accepted == []
    assert [rule for rule, container in cases if c_verdict(container) is not None] == []
    assert len(cases) > 150


def test_every_value_of_every_byte_of_a_block(run_java: Callable[..., str]) -> None:
    """The C decoder's verdict and image, for each of the 255 other values of each byte of six blocks."""
    parts = [plain(), gap(), mask("0 1 1 0 1 0"), eight([bits("0" * 16)] * 4), clustered(), clustered_gaps()]
    cases = []
    for part in parts:
        (whole,) = part.blocks or []
        for at in range(len(whole)):
            for value in range(256):
                changed = whole[:at] + bytes([value]) + whole[at + 1 :]
                cases.append(assemble([dataclasses.replace(part, blocks=[changed])], required=CODEBOOK))
    for case, line in zip(cases, batch(run_java, cases), strict=True):
        image = c_verdict(case)
        expected = "no " if image is None else f"ok {hashlib.sha256(image).hexdigest()} {len(image)}"
        assert line.startswith(expected), case.hex()
