"""A tokenizer as one small binary file, which the C and the Java tokenizer use as it lies in memory.

``tokenizer.json`` of a Hugging Face tokenizer is megabytes of JSON, most of it merges as text. This file has the same
in sorted tables, so that a device searches and builds nothing. Two kinds exist: WordPiece as BERT uses it (Schuster and
Nakajima 2012; Devlin et al. 2018, arXiv 1810.04805), and BPE on bytes as GPT-2 uses it (Sennrich et al. 2015, arXiv
1508.07909; Radford et al. 2019). What else a tokenizer does is refused, with its reason: a file that is written gives
the same tokens.

All is little-endian. 32 numbers of 32 bits come first, the last ones 0::

     0 magic "ETK" 1            8 ids in front, how many   16-19 lower case, likewise
     1 kind: 1 WordPiece, 2 BPE 9 ids behind               20 added tokens, 21 their bytes
     2 flags, bit by bit below  10 segments                22 words, 23 their bytes
     3 every id is below this   11 combining classes       24 parts of words, 25 their bytes
     4 unknown token            12-15 decompositions:      26 merges
     5 most characters a word   runs, pairs, pool,         27 entries of the index by id
     6 padding token            short pairs                28 bytes of the file
     7 bytes of the longest token

An absent token is all ones. Then follow, each padded to 4 bytes: ids in front and behind (u32); Unicode's tables
as ``unicode_tables.py`` has them (segments, classes, decompositions, lower case); three string tables (added tokens,
words, parts of words without their "##"); the merges; the index by id. A *string table* is sorted by bytes::

    lengths   u8 each
    places    u32, where each 16th string begins in the pool
    ids       wide or narrow, each; added tokens always wide, with bit 31 for special ones
    pool      the strings' bytes

*Wide* is u32 and *narrow* u16, by a flag. *Merges* are keys (both ids, the left one first and high: u32 narrow, u64
wide), sorted; their ranks; and what they give, ids. The *index by id* says where in ``words`` an id stands, all bits
set where it doesn't. BPE's strings are bytes, not the letters that stand for them in tokenizer.json.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeslim.datasets.encoding import load_tokenizer
from edgeslim.errors import BadInputError
from edgeslim.packaging.tokenizer_json import NONE, WORDPIECE, TokenizerTables, read_tokenizer_json
from edgeslim.packaging.unicode_tables import (
    CHINESE,
    DROPPED,
    LETTER,
    MARK,
    NONSTARTER,
    NUMBER,
    NUMERIC,
    PUNCTUATION,
    REGEX_SPACE,
    SPACE,
    pack_classes,
    pack_map,
    pack_segments,
    read_unicode_tables,
)
from edgeslim.runtime import UNICODE_TABLES

__all__ = ["TOKENIZER_FILE", "pack_tokenizer", "write_tokenizer"]

TOKENIZER_FILE = "tokenizer.etk"
_MAGIC = 0x014B5445
_WIDE = 1 << 8
_BLOCK = 16
_WORDPIECE_FLAGS = DROPPED | SPACE | CHINESE | PUNCTUATION | MARK | NONSTARTER
_BPE_FLAGS = LETTER | NUMBER | REGEX_SPACE | NUMERIC


def write_tokenizer(folder: Path, out: Path) -> str:
    """Writes the tokenizer of a Hugging Face folder to ``out``, and returns "": or, in words, why it can't be packed.

    Raises:
        BadInputError: the folder holds no tokenizer that loads.
    """
    tokenizer = load_tokenizer(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return "it has no tokenizer.json"
    try:
        content = pack_tokenizer(backend.to_str(), pad_id=tokenizer.pad_token_id, where=str(folder / "tokenizer.json"))
    except BadInputError as error:
        return f"{error.got}, expected {error.expected}"
    out.write_bytes(content)
    return ""


def pack_tokenizer(tokenizer_json: str, *, pad_id: int | None = None, where: str = "tokenizer.json") -> bytes:
    """The binary file of a tokenizer that is given as JSON, as ``tokenizers.Tokenizer.to_str`` writes it.

    Truncation and padding that the JSON asks for are left to the caller of the tokenizer.

    Raises:
        BadInputError: it isn't well-formed, too large, or does something that devices' tokenizers don't.
    """
    return _pack(read_tokenizer_json(tokenizer_json, where), pad_id)


def _pack(tables: TokenizerTables, pad_id: int | None) -> bytes:
    wide = max(tables.vocabulary_size, len(tables.merges), len(tables.words)) >= 0xFFFF
    kind = "I" if wide else "H"
    unicode = read_unicode_tables(UNICODE_TABLES.read_bytes())
    bert = tables.kind == WORDPIECE
    segments = pack_segments(unicode.segments, _WORDPIECE_FLAGS if bert else _BPE_FLAGS)
    classes = pack_classes(unicode.classes if bert else {})
    decomposed, decompositions = pack_map(unicode.decompositions if bert else {})
    lowered, lower_case = pack_map(unicode.lower_case if bert else {})
    merges = sorted((left, right, rank, into) for rank, (left, right, into) in enumerate(tables.merges))
    words = sorted(tables.words)
    index = {} if bert else {tables.words[word]: place for place, word in enumerate(words)}
    by_id = [index.get(number, NONE if wide else 0xFFFF) for number in range(0 if bert else tables.vocabulary_size)]
    body = b"".join(
        (
            _numbers("I", [*tables.front, *tables.behind]),
            segments + classes + decompositions + lower_case,
            _strings(tables.added, "I"),
            _strings(tables.words, kind),
            _strings(tables.parts, kind),
            b"".join(
                struct.pack("<II", right, left) if wide else struct.pack("<HH", right, left)
                for left, right, _, _ in merges
            ),
            _numbers(kind, [rank for _, _, rank, _ in merges]),
            _numbers(kind, [into for _, _, _, into in merges]),
            _numbers(kind, by_id),
        )
    )
    header = [
        _MAGIC,
        tables.kind,
        tables.flags | _WIDE * wide,
        tables.vocabulary_size,
        tables.unknown,
        tables.most_characters,
        NONE if pad_id is None else pad_id,
        max(map(len, (*tables.words, *tables.parts))),
        len(tables.front),
        len(tables.behind),
        len(segments) // 4,
        len(classes) // 4,
        *decomposed,
        *lowered,
        len(tables.added),
        sum(map(len, tables.added)),
        len(tables.words),
        sum(map(len, tables.words)),
        len(tables.parts),
        sum(map(len, tables.parts)),
        len(tables.merges),
        len(by_id),
        128 + len(body),
    ]
    return _numbers("I", header + [0] * (32 - len(header))) + body


def _strings(tokens: Mapping[bytes, int], kind: str) -> bytes:
    ordered = sorted(tokens)
    places, at = [], 0
    for number, token in enumerate(ordered):
        if number % _BLOCK == 0:
            places.append(at)
        at += len(token)
    return b"".join(
        (
            _padded(bytes(map(len, ordered))),
            _numbers("I", places),
            _numbers(kind, [tokens[token] for token in ordered]),
            _padded(b"".join(ordered)),
        )
    )


def _numbers(kind: str, values: Sequence[int]) -> bytes:
    return _padded(struct.pack(f"<{len(values)}{kind}", *values))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
