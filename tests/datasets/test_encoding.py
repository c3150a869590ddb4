"""Texts to model inputs: by hand, padded, cut, and refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from edgeslim.datasets.data import Example
from edgeslim.datasets.encoding import encode_examples, load_tokenizer
from edgeslim.errors import BadInputError

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "##s", "the", "very"]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(VOCABULARY))
    BertTokenizerFast(str(vocabulary), model_max_length=64).save_pretrained(folder)
    return folder


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_encode_examples_one_by_one(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    assert tokenizer.is_fast
    examples = [Example(text="The good films", label="pos"), Example(text="bad", label=0)]
    batches = encode_examples(
        examples, tokenizer, ["attention_mask", "input_ids"], max_length=8, labels={"neg": 0, "pos": 1}
    )
    assert [batch.labels for batch in batches] == [(1,), (0,)]
    assert list(batches[0].feed) == ["attention_mask", "input_ids"]
    np.testing.assert_array_equal(batches[0].feed["input_ids"], [[2, 10, 6, 8, 9, 3]])
    np.testing.assert_array_equal(batches[0].feed["attention_mask"], [[1] * 6])
    np.testing.assert_array_equal(batches[1].feed["input_ids"], [[2, 7, 3]])
    assert all(array.dtype == np.int64 for batch in batches for array in batch.feed.values())


def test_encode_examples_padded_and_cut(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    examples = [Example(text="a"), Example(text="a very very good film"), Example(text="film")]
    batches = encode_examples(
        examples, tokenizer, ["input_ids", "attention_mask", "token_type_ids"], max_length=5, batch_size=2
    )
    assert [(batch.rows, batch.labels) for batch in batches] == [(2, ()), (1, ())]
    np.testing.assert_array_equal(batches[0].feed["input_ids"], [[2, 5, 3, 0, 0], [2, 5, 11, 11, 3]])
    np.testing.assert_array_equal(batches[0].feed["attention_mask"], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(batches[0].feed["token_type_ids"], np.zeros((2, 5)))
    np.testing.assert_array_equal(batches[1].feed["input_ids"], [[2, 8, 3]])


@pytest.mark.parametrize(
    ("examples", "names", "labels", "got"),
    [
        ([Example(text="a")], ["input_ids", "position_ids"], None, 'the model input "position_ids" comes from no'),
        ([Example(text="a")], ["attention_mask"], None, 'no model input "input_ids"'),
        ([Example(text="a", label="Good")], ["input_ids"], {"bad": 0, "good": 1}, 'hint: did you mean "good"?'),
        ([Example(text="a", label="new")], ["input_ids"], {"bad": 0, "good": 1}, "expected: one of bad, good"),
        ([Example(text="a", label="new")], ["input_ids"], None, "the model names no labels"),
        ([Example(text="a", label=2)], ["input_ids"], {"bad": 0, "good": 1}, "expected: 0 (bad), 1 (good)"),
        ([Example(text="a", label=-1)], ["input_ids"], None, "unknown class index -1"),
        ([Example(text="a", label=1), Example(text="a")], ["input_ids"], None, "some samples have a label"),
    ],
)
def test_encode_examples_refuses(
    tokenizer_folder: Path, examples: list[Example], names: list[str], labels: dict[str, int] | None, got: str
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    with pytest.raises(BadInputError, match=re.escape(got)):
        encode_examples(examples, tokenizer, names, max_length=8, batch_size=2, labels=labels)


def test_encode_examples_refuses_to_pad_without_a_padding_token(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.pad_token = None
    examples = [Example(text="a"), Example(text="a film")]
    with pytest.raises(BadInputError, match="no padding token"):
        encode_examples(examples, tokenizer, ["input_ids"], max_length=8, batch_size=2)
    assert len(encode_examples(examples, tokenizer, ["input_ids"], max_length=8)) == 2


def test_encode_examples_refuses_what_the_tokenizer_withholds() -> None:
    class Narrow:
        pad_token = "[PAD]"

        def __call__(self, text: list[str], **_: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [[1, 2] for _ in text]}

    with pytest.raises(BadInputError, match='it gives no "token_type_ids"'):
        encode_examples([Example(text="a")], Narrow(), ["input_ids", "token_type_ids"], max_length=8)


@pytest.mark.parametrize(
    ("files", "got"),
    [
        ({}, "its tokenizer doesn't load"),
        ({"tokenizer.json": "{", "tokenizer_config.json": '{"tokenizer_class": "BertTokenizerFast"}'}, "doesn't load"),
        ({"tokenizer_config.json": "[]", "config.json": "{}"}, "doesn't load"),
        (
            {"tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}}', "evil.py": "1 / 0"},
            "doesn't load",
        ),
    ],
)
def test_load_tokenizer_refuses(tmp_path: Path, files: dict[str, str], got: str) -> None:
    for name, content in files.items():
        write(tmp_path, name, content)
    with pytest.raises(BadInputError, match=got) as caught:
        load_tokenizer(tmp_path)
    assert "ZeroDivisionError" not in str(caught.value)


def test_load_tokenizer_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such folder"):
        load_tokenizer(tmp_path / "none")
