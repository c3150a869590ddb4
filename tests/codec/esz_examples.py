"""One small container an alphabet, worked by hand. The bytes are literal; the comments show how they come about."""

from __future__ import annotations

from esz_builder import GAP, JOINT, MASK8, PAIR, PLAIN, PLANES, Part, assemble, table

# Lengths A 1, B 2, C 3, D 3 -> codes A 0, B 10, C 110, D 111. ABACABAD is 0 10 0 110 0 10 0 111, then the sentinel 1:
# 01001100 1001111(1)  read from bit 0 up: 0x32, 0x79.
PLAIN_BLOCK = bytes.fromhex("01 ff  01 41 44 21 33  32 79")

# Nibbles 8: length 1, code 0; 7: 2, 10; 9: 2, 11. Low nibble first. 88 78 98 88 87 88 89 88 is
# 00 010 011 00 100 00 110 00 and the sentinel: 00010011 00100001 10001 -> 0xC8, 0x84, 0x11.
PAIR_BLOCK = bytes.fromhex("01 ff  01 07 09 12 02  c8 84 11")

# 44 bytes: 5 at 2, 250 at 4, 5 at 41. Gap symbols 2, 1, 31 (the cap, no value), 5, 2; values 5, 250, 5.
# Gaps: 2 -> 0, 1 -> 10, 5 -> 110, 31 -> 111. Values: 5 -> 0, 250 -> 1.
# 0 0 10 1 111 110 0 0 and the sentinel: 00101111 110001 -> 0xF4, 0x23.
GAP_BLOCK = bytes.fromhex("01 ff  02 03 01 02 05 1f 12 33  02 01 05 fa 11  f4 23")
GAP_IMAGE = bytes([0, 0, 5, 0, 250]) + bytes(36) + bytes([5, 0, 0])

# 12 bytes in groups of 8 and 4. Masks 0x92 (bits 1, 4, 7) and 0x09 (bits 0, 3); values 3, 7, 3, 3, 3.
# 0x09 -> 0, 0x92 -> 1; 3 -> 0, 7 -> 1. 1 0 1 0 0 0 0 and the sentinel: 10100001 -> 0x85.
MASK8_BLOCK = bytes.fromhex("01 ff  02 01 09 92 11  02 01 03 07 11  85")
MASK8_IMAGE = bytes([0, 3, 0, 0, 7, 0, 0, 3, 3, 0, 0, 3])

# GAP over nibbles with fill value 8; the low nibble of a byte is the earlier element.
NIBBLE_IMAGE = bytes([0x88, 0x88, 0x28, 0x88, 0x82, 0x88, 0x28, 0x88, 0x82, 0x88, 0x28, 0x88])
# Nibbles 2 stand at 5, 8, 13, 16, 21 of 24: gaps 5, 2, 4, 2, 4, and 2 to the end. 2 -> 0, 4 -> 10, 5 -> 11.
# The value table has one symbol, which takes no bits. 11 0 10 0 10 0 and the sentinel: 11010010 01 -> 0x4B, 0x02.
NIBBLE_BLOCK = bytes.fromhex("01 ff  01 02 05 01 22  02 00 02 01  4b 02")


# Six float32 values 1, -2, 1, 1, 0.5, 1 as indices 0 1 0 0 2 0. 0 -> 0, 1 -> 10, 2 -> 11; the table in form 0 has three
# lengths. 0 10 0 0 11 0 and the sentinel: 01000110 1 -> 0x62, 0x01. Before the block: 3 values of 4 bytes.
BOOK = bytes.fromhex("02  0000803f 000000c0 0000003f")
BOOK_BLOCK = bytes.fromhex("01 ff  00 21 02  62 01")
BOOK_IMAGE = bytes.fromhex("0000803f 000000c0 0000803f 0000803f 0000003f 0000803f")


# Sixteen bfloat16 values 1 (3f80) and -1 (bf80), rotated up by one bit: 7f00 and 7f01. The low bytes 00 and 01 take one
# bit each, the high byte is always 7f and takes none. 0110 1001 1001 0110 and the sentinel -> 0x96, 0x69, 0x01.
SIGNS = [0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0]
PLANES_IMAGE = b"".join(b"\x80\xbf" if sign else b"\x80\x3f" for sign in SIGNS)
LOW_PLANE = bytes.fromhex("01 ff  02 01 00 01 11  96 69 01")
HIGH_PLANE = bytes.fromhex("01 ff  02 00 7f 01  01")
PLANES_BLOCK = bytes.fromhex("01 00  0a 00 00") + LOW_PLANE + HIGH_PLANE

# Three rows of 8 bytes in classes 0, 1, 0: the map is 00 01 00, from the lowest two bits up -> 0x04. Class 0 knows A
# alone, which takes no bits; in class 1 B is 0 and C is 1. 0 1 0 1 0 1 0 1 and the sentinel -> 0xAA, 0x01.
ROWS_IMAGE = b"AAAAAAAABCBCBCBCAAAAAAAA"
ROWS_SETS = b"\x04" + table({0x41: 1}) + table({0x42: 1, 0x43: 1}) + 2 * table({0x41: 1})
ROWS_BLOCK = bytes.fromhex("01 00  04  aa 01")


# 13 bytes with values up to 3, two gaps with symbols of their own: symbol 3 · gap + value - 1, and 6 + k is a run of
# 2 · (k + 1) zeros. 0 1 is symbol 3; 0 0 0 0 is 7; 2 is 1; 3 is 2; 0 1 is 3; 0 0 0 is 7, which reaches past the end.
# 7 -> 0, 3 -> 10, 1 -> 110, 2 -> 111. 10 0 110 111 10 0 and the sentinel: 10011011 11001 -> 0xD9, 0x13.
# The table in form 3, from symbol 1 to 7, in rows of 3: lengths 3 3 2, 0 0 0, 1. 3 by itself is 111 and its four bits
# 1100; the same: 0; one less: 110; then 0 0 0 by themselves, below 3 3 2: three times 111 0000; one more than 0: 10.
# 11111000 11011100 00111000 01110000 10 -> 0x1F, 0x3B, 0x1C, 0x0E, 0x01.
JOINT_BLOCK = bytes.fromhex("01 ff  03  03 01 07 1f 3b 1c 0e 01  d9 13")
JOINT_IMAGE = bytes([0, 1, 0, 0, 0, 0, 2, 3, 0, 1, 0, 0, 0])


def hand_worked() -> dict[str, tuple[bytes, bytes]]:
    """Name -> (container, image)."""
    raw_big = bytes(range(5))
    parts = {
        "raw": [
            Part(name=b"small", image=b"abc", shape=(3,), dtype=1),
            Part(name=b"mapped", image=raw_big, block_log2=12, shape=(5,), dtype=1),
        ],
        "plain": [Part(name=b"letters", image=b"ABACABAD", alphabet=PLAIN, blocks=[PLAIN_BLOCK])],
        "pair": [
            Part(name=b"int4", image=bytes.fromhex("8878988887888988"), alphabet=PAIR, blocks=[PAIR_BLOCK], dtype=14)
        ],
        "gap": [Part(name=b"gaps", image=GAP_IMAGE, alphabet=GAP, blocks=[GAP_BLOCK], cap_log2=5, dtype=2)],
        "mask8": [Part(name=b"masks", image=MASK8_IMAGE, alphabet=MASK8, blocks=[MASK8_BLOCK], shape=(3, 4))],
        "joint": [Part(name=b"joint", image=JOINT_IMAGE, alphabet=JOINT, blocks=[JOINT_BLOCK], cap_log2=1, dtype=2)],
        "gap_nibble": [
            Part(
                name=b"int4 gaps", image=NIBBLE_IMAGE, alphabet=GAP, blocks=[NIBBLE_BLOCK], cap_log2=5, fill=8,
                nibble=True, dtype=14,
            )
        ],
        "no_segments": [],
    }  # fmt: skip
    clustered = Part(
        name=b"clustered", image=BOOK_IMAGE, alphabet=PLAIN, blocks=[BOOK_BLOCK], book_log2=2, book=BOOK, dtype=11,
        shape=(6,),
    )  # fmt: skip
    examples = {name: (assemble(list_), b"".join(part.image for part in list_)) for name, list_ in parts.items()}
    signs = Part(
        name=b"signs", image=PLANES_IMAGE, alphabet=PLANES, blocks=[PLANES_BLOCK], book_log2=1, fill=1, dtype=10,
        shape=(16,),
    )  # fmt: skip
    rows = Part(
        name=b"rows", image=ROWS_IMAGE, alphabet=PLAIN, blocks=[ROWS_BLOCK], block_log2=12, sets=ROWS_SETS, row_units=1,
        shape=(3, 8),
    )  # fmt: skip
    return examples | {
        "codebook": (assemble([clustered], required=2), BOOK_IMAGE),
        "planes": (assemble([signs], required=4), PLANES_IMAGE),
        "rows": (assemble([rows], required=8), ROWS_IMAGE),
    }
