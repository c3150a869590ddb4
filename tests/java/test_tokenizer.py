"""The Java tokenizer against Hugging Face's, on the texts that the C one gets, lone surrogates included."""

from __future__ import annotations

import random
import re
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer

sys.path.append(str(Path(__file__).parents[1] / "tokenizing"))

from token_cases import (
    BPE_KINDS,
    STEPS,
    Case,
    make_bpe,
    make_letters,
    make_minilm,
    make_smollm2,
    texts_of,
)

Encode = Callable[..., list[list[int]]]
FRAMED, LITERAL, PLAIN = "f", "l", "-"


@pytest.fixture
def encode(run_java: Callable[..., str], tmp_path: Path) -> Encode:
    def encode(case: Case, texts: Sequence[str], most: int = 20_000, options: str = FRAMED) -> list[list[int]]:
        (tmp_path / "tokenizer.etk").write_bytes(case.packed)
        units = [text.encode("utf-16-be", "surrogatepass") for text in texts]
        stdin = b"".join(struct.pack(">I", len(one) // 2) + one for one in units)
        lines = run_java("TokenizerMain", tmp_path / "tokenizer.etk", "encode", most, options, stdin=stdin)
        return [[int(word) for word in line.split()] for line in lines.split("\n")[:-1]]

    return encode


def whole(text: str) -> str:
    """With U+FFFD for surrogates by themselves; pairs become one character first."""
    paired = text.encode("utf-16-be", "surrogatepass").decode("utf-16-be", "surrogatepass")
    return re.sub("[\ud800-\udfff]", "\ufffd", paired)


def expected(reference: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [item.ids for item in reference.encode_batch([whole(text) for text in texts])]


def compare(encode: Encode, case: Case, count: int) -> None:
    texts = texts_of(count)
    for text, found, ids in zip(texts, encode(case, texts), expected(case.reference, texts), strict=True):
        assert found == ids, text


def test_ten_thousand_texts_as_wordpiece(encode: Encode) -> None:
    compare(encode, make_minilm(), 10_000)


@pytest.mark.parametrize("steps", STEPS)
def test_normalization_letter_by_letter(encode: Encode, steps: str) -> None:
    compare(encode, make_letters(steps), 2500)


@pytest.mark.parametrize("kind", BPE_KINDS)
def test_byte_level_bpe(encode: Encode, kind: str) -> None:
    compare(encode, make_bpe(kind), 10_000 if kind == "digits" else 2500)


@pytest.mark.slow
def test_ten_thousand_texts_as_smollm2(encode: Encode) -> None:
    compare(encode, make_smollm2(), 10_000)


@pytest.mark.parametrize("make", [make_minilm, lambda: make_bpe("plain")])
def test_long_texts_are_cut(encode: Encode, make: Callable[[], Case]) -> None:
    case, texts = make(), texts_of(2500)[:400]
    reference = Tokenizer.from_str(case.reference.to_str())
    reference.enable_truncation(7)
    assert encode(case, texts, 7) == expected(reference, texts)


def test_special_tokens_as_plain_text(encode: Encode) -> None:
    case, texts = make_minilm(), ["a [SEP] b[MASK]", "[SEP", "[CLS][CLS]x"]
    reference = Tokenizer.from_str(case.reference.to_str())
    reference.encode_special_tokens = True
    ids = [reference.encode(text, add_special_tokens=False).ids for text in texts]
    assert encode(case, texts, 100, LITERAL) == ids
    assert encode(case, texts, 100, PLAIN) != ids


@pytest.mark.parametrize("skip", [False, True])
def test_back_to_text(run_java: Callable[..., str], tmp_path: Path, *, skip: bool) -> None:
    case, draw = make_bpe("digits"), random.Random(5)
    lists = [ids for ids in expected(case.reference, texts_of(2500)[:300]) if ids]
    lists += [draw.choices(range(case.reference.get_vocab_size()), k=20) for _ in range(200)]
    (tmp_path / "tokenizer.etk").write_bytes(case.packed)
    stdin = b"".join(struct.pack(f">I{len(ids)}I", len(ids), *ids) for ids in lists)
    lines = run_java("TokenizerMain", tmp_path / "tokenizer.etk", "decode", int(skip), stdin=stdin).splitlines()
    for line, ids in zip(lines, lists, strict=True):
        assert bytes.fromhex(line).decode() == case.reference.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("make", [make_minilm, lambda: make_bpe("digits"), lambda: make_letters("uncased")])
def test_hostile_files_are_refused(run_java: Callable[..., str], tmp_path: Path, make: Callable[[], Case]) -> None:
    (tmp_path / "tokenizer.etk").write_bytes(make().packed)
    assert int(run_java("TokenizerMain", tmp_path / "tokenizer.etk", "fuzz", 300)) < 200
