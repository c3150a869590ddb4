"""Writes ``edgeslim/runtime/unicode.bin``: what the tokenizers for devices must know of Unicode.

Python's ``unicodedata``, Java's ``Normalizer`` and the Rust crates behind Hugging Face's tokenizers each follow another
version of Unicode, and a phone's version hangs on its Android. So a device uses none of its own: every code point is
asked of the ``tokenizers`` library once, here, and the answers travel with each packed vocabulary. The combining
classes, which that library doesn't tell, are those of ``unicodedata`` where it reorders by them.

The layout is that of the same sections of a tokenizer file (``edgeslim/packaging/tokenizer_file.py``), each behind its
count.

    python scripts/make_unicode_tables.py            # writes the file
    python scripts/make_unicode_tables.py --check    # exit code 1 where the committed file isn't what comes out
"""

from __future__ import annotations

import argparse
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping

from tokenizers import Regex
from tokenizers.normalizers import NFD, BertNormalizer, Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer, Digits, Split

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
    UnicodeTables,
    read_unicode_tables,
    write_unicode_tables,
)
from edgeslim.runtime import UNICODE_TABLES

CODE_POINTS = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
HANGUL = range(0xAC00, 0xD7A4)
"""Syllables are taken apart by arithmetic."""


def normalize_each(normalize: Callable[[str], str]) -> dict[int, str]:
    """What becomes of each code point by itself."""
    return {code: normalize(chr(code)) for code in CODE_POINTS}


def bert(**options: bool) -> Callable[[str], str]:
    """One of BERT's four steps of normalization."""
    steps = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
    return BertNormalizer(**(steps | options)).normalize_str


def flag_classes(flags: dict[int, int], flag: int, codes: Iterable[int]) -> None:
    """Adds a flag to code points."""
    for code in codes:
        flags[code] |= flag


def combining_classes(marks: Iterable[int]) -> dict[int, int]:
    """The classes by which the library reorders: those that pass a mark of class 240 or 1 at all."""
    nfd, classes = NFD().normalize_str, {}
    for code in marks:
        char = chr(code)
        if nfd(char) == char and (nfd("a\u0345" + char) != "a\u0345" + char or nfd("a" + char + "\u0334")[1] != char):
            classes[code] = unicodedata.combining(char)
    return classes


def matching(pattern: str) -> list[int]:
    """The code points of which the tokenizers' regular expressions say that a pattern matches."""
    split = Split(Regex(pattern), "removed")
    return [code for code in CODE_POINTS if not split.pre_tokenize_str(chr(code))]


def make_tables() -> UnicodeTables:
    """Asks for everything."""
    flags = dict.fromkeys(CODE_POINTS, 0)
    cleaned = normalize_each(bert(clean_text=True))
    flag_classes(flags, DROPPED, (code for code, text in cleaned.items() if not text))
    chinese = normalize_each(bert(handle_chinese_chars=True))
    flag_classes(flags, CHINESE, (code for code, text in chinese.items() if len(text) > 1))
    words = BertPreTokenizer().pre_tokenize_str
    spaces = {code for code in CODE_POINTS if not words(chr(code))}
    assert {code for code, text in cleaned.items() if text == " "} == {c for c in spaces if cleaned[c]}
    flag_classes(flags, SPACE, spaces)
    flag_classes(
        flags, PUNCTUATION, (code for code in CODE_POINTS if code not in spaces and len(words("a" + chr(code))) > 1)
    )
    stripped = normalize_each(bert(strip_accents=True))
    marks = [code for code, text in stripped.items() if not text and NFD().normalize_str(chr(code)) != ""]
    flag_classes(flags, MARK, marks)
    spacing = [code for code in CODE_POINTS if stripped[code] and unicodedata.category(chr(code))[0] == "M"]
    classes = combining_classes([*marks, *spacing])
    # A mark that comes apart into marks belongs to those before it, as they do.
    apart = [code for code in marks if NFD().normalize_str(chr(code)) != chr(code)]
    flag_classes(flags, NONSTARTER, [*classes, *apart])
    flag_classes(flags, LETTER, matching(r"\p{L}"))
    flag_classes(flags, NUMBER, matching(r"\p{N}"))
    flag_classes(flags, REGEX_SPACE, matching(r"\s"))
    digits = Digits(individual_digits=True).pre_tokenize_str
    flag_classes(flags, NUMERIC, (code for code in CODE_POINTS if len(digits("a" + chr(code))) > 1))
    lower = normalize_each(Lowercase().normalize_str)
    return UnicodeTables(
        segments=tuple(segments_of(flags)),
        classes={code: value for code, value in classes.items() if stripped[code]},
        decompositions=changes(stripped, {*marks, *HANGUL}),
        lower_case=changes(lower, set()),
    )


def segments_of(flags: Mapping[int, int]) -> Iterator[tuple[int, int]]:
    """Runs of equal flags. Surrogates, which no text has, go with what is before them."""
    last = -1
    for code, value in flags.items():
        if value != last:
            yield code, value
        last = value


def changes(mapping: Mapping[int, str], but: set[int]) -> dict[int, tuple[int, ...]]:
    """The code points that become something else."""
    return {
        code: tuple(map(ord, text)) for code, text in mapping.items() if text != chr(code) and code not in but and text
    }


def main() -> int:
    """Writes or checks the file, as the command line says."""
    parser = argparse.ArgumentParser(description="Writes the Unicode tables of the tokenizers for devices.")
    parser.add_argument("--check", action="store_true", help="compare with the committed file instead of writing it")
    content = write_unicode_tables(tables := make_tables())
    assert read_unicode_tables(content) == tables
    if not parser.parse_args().check:
        UNICODE_TABLES.write_bytes(content)
        print(f"{UNICODE_TABLES}: {len(content):,} bytes")
        return 0
    same = content == UNICODE_TABLES.read_bytes()
    print(f"{UNICODE_TABLES}: {'is' if same else 'is NOT'} what the library says")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
