"""Where in a packed tokenizer Unicode's tables lie."""

from __future__ import annotations

import struct


def unicode_part(content: bytes) -> bytes:
    """The tables of a tokenizer.etk: tokens around a text, segments, classes, decompositions, lower case."""
    head = struct.unpack("<32I", content[:128])
    tables = sum(count * size for count, size in zip(head[12:20], 2 * (12, 8, 4, 4), strict=True))
    return content[128 : 128 + 4 * sum(head[10:12]) + tables]
