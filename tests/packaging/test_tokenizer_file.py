"""What a tokenizer.json may ask for, what is refused with its reason, and what the tables cost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeslim.errors import BadInputError
from edgeslim.packaging.tokenizer_file import pack_tokenizer, write_tokenizer
from edgeslim.packaging.tokenizer_json import read_tokenizer_json
from edgeslim.packaging.unicode_tables import read_unicode_tables, write_unicode_tables
from edgeslim.runtime import C_DIR, UNICODE_TABLES
from tests.needs import need

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "tokenizing"))
from texts import minilm_folder  # noqa: E402

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def wordpiece() -> str:
    return (minilm_folder() / "tokenizer.json").read_text(encoding="utf-8")


def make_bpe() -> dict[str, Any]:
    return {
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    }


WORDPIECE_CHANGES: dict[str, Change] = {
    "a model of type 'Unigram'": lambda root: root["model"].update(type="Unigram"),
    "another pre_tokenizer": lambda root: root["pre_tokenizer"].update(type="Whitespace"),
    "a normalizer of type 'NFC'": lambda root: root["normalizer"].update(type="NFC"),
    "continuing_subword_prefix = '@@'": lambda root: root["model"].update(continuing_subword_prefix="@@"),
    "'whatever!' is no token": lambda root: root["model"].update(unk_token="whatever!"),
    "max_input_chars_per_word = 5000": lambda root: root["model"].update(max_input_chars_per_word=5000),
    "has id -1": lambda root: root["model"]["vocab"].update(word=-1),
    "a token of 300 bytes": lambda root: root["model"]["vocab"].update({"x" * 300: 7}),
    "with lstrip": lambda root: root["added_tokens"][4].update(lstrip=True),
    "before and after normalization": lambda root: root["added_tokens"][4].update(normalized=True),
    "type_id 1 in a single text": lambda root: root["post_processor"]["single"][0]["SpecialToken"].update(type_id=1),
    "a malformed post_processor": lambda root: root["post_processor"]["single"].append({}),
    "a frame of unknown tokens": lambda root: root["post_processor"]["special_tokens"]["[SEP]"].update(ids=[99999]),
    '"vocab" is a list': lambda root: root["model"].update(vocab=[]),
}
BPE_CHANGES: dict[str, Change] = {
    "a normalizer": lambda root: root.update(normalizer={"type": "NFC"}),
    "use_regex = False": lambda root: root["pre_tokenizer"].update(use_regex=False),
    "dropout = 0.1": lambda root: root["model"].update(dropout=0.1),
    "comes twice": lambda root: root["model"].update(merges=[["a", "b"], "a b"]),
    "of unknown tokens": lambda root: root["model"].update(merges=[["a", "c"]]),
    "byte_fallback to tokens": lambda root: (
        root["model"].update(byte_fallback=True),
        root["model"]["vocab"].update({"<0x0A>": 3}),
    ),
    "'end_of_word_suffix'|end_of_word_suffix = '</w>'": lambda root: root["model"].update(end_of_word_suffix="</w>"),
}


@pytest.mark.parametrize("reason", WORDPIECE_CHANGES)
def test_wordpiece_that_is_refused(wordpiece: str, reason: str) -> None:
    root = json.loads(wordpiece)
    WORDPIECE_CHANGES[reason](root)
    with pytest.raises(BadInputError, match=reason):
        pack_tokenizer(json.dumps(root))


@pytest.mark.parametrize("reason", BPE_CHANGES)
def test_bpe_that_is_refused(reason: str) -> None:
    root = make_bpe()
    assert pack_tokenizer(json.dumps(root))[:4] == b"ETK\x01"
    BPE_CHANGES[reason](root)
    with pytest.raises(BadInputError, match=reason):
        pack_tokenizer(json.dumps(root))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"model": 1}', "{}"])
def test_json_that_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match=r"tokenizer\.json"):
        pack_tokenizer(text)


JUNK: list[Any] = [None, True, -1, 1.5, "", "x", [], [[]], {}, {"type": "ByteLevel"}, ["a", "b"], 2**40, "\ud800"]


def places_of(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container within, and a key or index of it."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places_of(value[key])


def make_wordpiece() -> dict[str, Any]:
    frame = {"id": "[SEP]", "ids": [1], "tokens": ["[SEP]"]}
    single = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]
    return {
        "added_tokens": [{"id": 1, "content": "[SEP]", "special": True, "normalized": False}],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": single, "special_tokens": {"[SEP]": frame}},
        "model": {"type": "WordPiece", "vocab": {"[UNK]": 0, "[SEP]": 1, "a": 2, "##a": 3}, "unk_token": "[UNK]"},
    }


@pytest.mark.parametrize("make", [make_bpe, make_wordpiece])
def test_junk_anywhere_is_refused_or_harmless(make: Callable[[], dict[str, Any]]) -> None:
    """Each value replaced by each kind of junk, and each taken out: a file or a reason, nothing else."""
    refused = packed = 0
    for number in range(len(list(places_of(make())))):
        for junk in [*JUNK, ...]:
            root = make()
            container, key = list(places_of(root))[number]
            if junk is ...:
                del container[key]
            else:
                container[key] = junk
            try:
                read_tokenizer_json(json.dumps(root), "tokenizer.json")
                packed += 1
            except BadInputError:
                refused += 1
    assert refused > 2 * packed > 0


def test_same_bytes_and_a_reason_in_words(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert write_tokenizer(minilm_folder(), tmp_path / name) == ""
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    folder = tmp_path / "other"
    shutil.copytree(minilm_folder(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    root = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    root["model"]["continuing_subword_prefix"] = "@@"
    (folder / "tokenizer.json").write_text(json.dumps(root), encoding="utf-8")
    assert "continuing_subword_prefix = '@@', expected '##'" in write_tokenizer(folder, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_tables_are_written_as_they_are_read() -> None:
    content = UNICODE_TABLES.read_bytes()
    tables = read_unicode_tables(content)
    assert write_unicode_tables(tables) == content
    assert tables.decompositions[ord("é")] == (ord("e"),)
    assert tables.lower_case[0x130] == (ord("i"), 0x307)  # the dotted capital I becomes two
    assert len(content) <= 24_000


@pytest.mark.slow
def test_tables_are_what_the_library_says() -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "make_unicode_tables.py", "--check"], check=True)


@pytest.mark.parametrize("compiler", ["aarch64-linux-gnu-gcc", "arm-linux-gnueabihf-gcc", "gcc"])
def test_the_tokenizer_is_small(compiler: str, tmp_path: Path) -> None:
    """At most 12 KiB of code: decoder, loader, tokenizer and tables share 64 kB on ARM (test_cmake.py)."""
    need(compiler)
    output = tmp_path / "token.o"
    command = [compiler, "-std=c99", "-Os", "-c", C_DIR / "esz_token.c", "-o", output]
    subprocess.run(command, check=True)
    sizes = subprocess.run(["size", output], check=True, capture_output=True, text=True).stdout.splitlines()[1]
    assert sum(map(int, sizes.split()[:3])) <= 12 << 10
