"""Samples: every way that a file can be read, and every way that it can't."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeslim import data
from edgeslim.data import Arrays, Example
from edgeslim.errors import BadInputError

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "##s", "the", "very"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


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


def texts(examples: tuple[Example, ...]) -> list[str]:
    return [example.text for example in examples]


def test_import_stays_light() -> None:
    code = (
        "import sys, edgeslim.data, edgeslim.task\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'pandas', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "one\n\n  two \n\t\nthree", [("one", None), ("two", None), ("three", None)]),
        ("a.txt", "\ufeffone\r\ntwo\x0cthree\r\n", [("one", None), ("two\x0cthree", None)]),
        ("a.TXT", "über\n", [("über", None)]),
        ("a.csv", "text\none\n", [("one", None)]),
        ("a.csv", 'id,Sentence,LABEL\n1,"one, two",0\n2,NA,1\n', [("one, two", 0), ("NA", 1)]),
        ("a.csv", "\ufefftext,class\none,pos\n12,neg\n", [("one", "pos"), ("12", "neg")]),
        ("a.csv", "text,label\none,1\ntwo,x\n", [("one", "1"), ("two", "x")]),
        ("a.csv", 'text,label\n"one\ntwo",-1\n', [("one\ntwo", -1)]),
        ("a.jsonl", '{"content": "one", "target": 2}\n{"content": "two", "target": 0}\n', [("one", 2), ("two", 0)]),
        ("a.jsonl", '\ufeff{"text": "one", "label": 1.0}\n', [("one", 1)]),
        ("a.jsonl", '{"text": "one", "label": true}\n{"text": "two", "label": false}\n', [("one", 1), ("two", 0)]),
        ("a.jsonl", '{"text": "one", "label": "pos"}\n{"text": "two", "label": 3}\n', [("one", "pos"), ("two", "3")]),
        ("a.jsonl", '{"title": "no", "text": "yes"}\n', [("yes", None)]),
    ],
)
def test_load_examples(tmp_path: Path, name: str, content: str, expected: list[tuple[str, Any]]) -> None:
    examples = data.load_examples(write(tmp_path, name, content))
    assert [(example.text, example.label) for example in examples] == expected


@pytest.mark.parametrize(
    ("name", "content", "options", "got"),
    [
        ("a.md", "x", {}, 'unknown kind of file ".md"'),
        ("a.txt", "", {}, "no rows"),
        ("a.txt", "\n \n\t\n", {}, "no rows"),
        ("a.txt", b"fine\n\xff\xfe broken\n", {}, "not UTF-8 text"),
        ("a.csv", "", {}, "no rows"),
        ("a.csv", "\n\n", {}, "no rows"),
        ("a.csv", "text,label\n", {}, "no rows"),
        ("a.csv", b"text\n\xff\n", {}, "not UTF-8 text"),
        ("a.csv", "text,label\none,1,2\n", {}, "can't be read"),
        ("a.csv", 'text\n"one\n', {}, "can't be read"),
        ("a.csv", "utterance,score\none,1\n", {}, 'no text column among "utterance", "score"'),
        ("a.csv", "texts,score\none,1\n", {}, 'hint: text_column = "texts" if that is the text'),
        ("a.csv", "text;label\none;1\n", {}, "the columns seem to be divided by ';'"),
        ("a.csv", "body,label\none,1\n", {"text_column": "bodi"}, 'no column "bodi"\n  expected: one of body, label'),
        ("a.csv", "body,label\none,1\n", {"text_column": "bodi"}, 'hint: did you mean "body"?'),
        ("a.csv", "text,mark\none,1\n", {"label_column": "marc"}, 'hint: did you mean "mark"?'),
        ("a.csv", "text,label\none,1\n,1\n", {}, "row 2, text: no text"),
        ("a.csv", "text,label\none,1\ntwo,\n", {}, "row 2, label: no label"),
        ("a.csv", "text,label\none,NaN\n", {}, 'hint: label_column = "" reads the text alone'),
        ("a.jsonl", "not json\n", {}, "can't be read"),
        ("a.jsonl", '{"text": "one"}\n{"text": \n', {}, "can't be read"),
        ("a.jsonl", b'{"text": "\xff"}\n', {}, "not UTF-8 text"),
        ("a.jsonl", '{"text": "one"}\n{"text": 3}\n', {}, "row 2, text: 3 (int)"),
        ("a.jsonl", '{"text": "one"}\n{"text": null}\n', {}, "row 2, text: no text"),
        ("a.jsonl", '{"text": ["one"]}\n', {}, "row 1, text: ['one'] (list)"),
        ("a.jsonl", '{"text": "one", "label": NaN}\n', {}, "row 1, label: no label"),
        ("a.jsonl", '{"text": "one", "label": 1}\n{"text": "two"}\n', {}, "row 2, label: no label"),
        ("a.jsonl", '{"text": "one", "label": 0.5}\n', {}, "row 1, label: 0.5"),
        ("a.jsonl", '{"text": "one", "label": [1]}\n', {}, "row 1, label: [1]"),
    ],
)
def test_load_examples_refuses(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    content: str | bytes,
    options: dict[str, str],
    got: str,
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(BadInputError, match=re.escape(got)) as caught:
        data.load_examples(path, **options)  # type: ignore[arg-type]
    assert caught.value.where.startswith(str(path))
    assert capfd.readouterr() == ("", "")


def test_load_examples_refuses_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(BadInputError, match="no such file"):
            data.load_examples(path)


def test_load_examples_columns_and_limit(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,label,other\none,1,A\ntwo,,B\nthree,3,\n")
    assert data.load_examples(path, text_column="other", label_column="label", limit=1) == (Example(text="A", label=1),)
    assert texts(data.load_examples(path, label_column="")) == ["one", "two", "three"]
    assert data.load_examples(path, label_column="other", limit=2)[1] == Example(text="two", label="B")


def test_load_examples_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import datasets

    home, scratch = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    scratch.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(home / "cache"))
    before = (datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled())
    for name, content in (("a.txt", "one\n"), ("a.csv", "text\none\n"), ("a.jsonl", '{"text": "one"}\n')):
        assert texts(data.load_examples(write(tmp_path, name, content))) == ["one"]
    assert (datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()) == before
    assert not list(home.iterdir())
    assert not list(scratch.iterdir())
    assert capfd.readouterr() == ("", "")


def test_load_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=np.arange(12, dtype=np.float32).reshape(3, 4), label=np.array([2, 0, 1]))
    arrays = data.load_arrays(tmp_path / "a.npz")
    assert arrays.rows == 3
    assert arrays.labels == (2, 0, 1)
    batches = data.batch_arrays(arrays, ["image"], batch_size=2)
    assert [(batch.rows, batch.labels) for batch in batches] == [(2, (2, 0)), (1, (1,))]
    np.testing.assert_array_equal(batches[1].feed["image"], [[8, 9, 10, 11]])


@pytest.mark.parametrize(
    ("arrays", "got"),
    [
        ({}, "no arrays"),
        ({"label": np.array([1])}, "no arrays"),
        ({"a": np.zeros((2, 3)), "b": np.zeros((3, 3))}, "arrays of different lengths: a 2, b 3"),
        ({"a": np.zeros((2, 3)), "label": np.zeros(3, dtype=np.int64)}, "arrays of different lengths"),
        ({"a": np.zeros((2, 3)), "label": np.zeros(2)}, "float64 [2]"),
        ({"a": np.array(3.0)}, "shape []"),
        ({"a": np.zeros((0, 3))}, "shape [0, 3]"),
        ({"a": np.array([{}], dtype=object)}, "can't be read"),
    ],
)
def test_load_arrays_refuses(tmp_path: Path, arrays: dict[str, Any], got: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(BadInputError, match=re.escape(got)):
        data.load_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off", b"\x93NUMPY\x01\x00 cut off"])
def test_load_arrays_refuses_what_is_no_npz(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BadInputError, match="can't be read"):
        data.load_arrays(write(tmp_path, "a.npz", content))


def test_load_arrays_refuses_a_single_array_and_a_missing_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(BadInputError, match="can't be read"):
        data.load_arrays(tmp_path / "a.npz")
    with pytest.raises(BadInputError, match="no such file"):
        data.load_arrays(tmp_path / "b.npz")


def test_batch_arrays_refuses_other_inputs() -> None:
    arrays = Arrays(inputs={"image": np.zeros((2, 3)), "extra": np.zeros(2)})
    with pytest.raises(BadInputError, match='no array for the model input "pixels"; an array "image"'):
        data.batch_arrays(arrays, ["pixels", "extra"])


def test_split_keeps_content_apart_and_order() -> None:
    words = [f"sentence {number}" for number in range(30)]
    examples = [Example(text=text) for text in [*words, *(word.upper() for word in words), *(f" {w}  " for w in words)]]
    calibration, evaluation = data.split_examples(examples, calibration=10, seed=0)
    assert len(calibration) == 10
    assert len(evaluation) == 60
    assert not {e.text.strip().lower() for e in calibration} & {e.text.strip().lower() for e in evaluation}
    for side in (calibration, evaluation):
        places = [examples.index(example) for example in side]
        assert places == sorted(places)


def test_split_depends_on_seed_and_content_alone() -> None:
    examples = [Example(text=f"sentence {number}") for number in range(50)]
    first, _ = data.split_examples(examples, calibration=5, seed=0)
    again, _ = data.split_examples(examples[::-1], calibration=5, seed=0)
    other, _ = data.split_examples(examples, calibration=5, seed=1)
    assert set(first) == set(again) != set(other)
    # The very choice, so that figures stay comparable between machines and releases.
    assert texts(first) == ["sentence 3", "sentence 13", "sentence 25", "sentence 37", "sentence 38"]


@pytest.mark.parametrize(("count", "calibration"), [(0, 1), (3, 3), (3, 4), (3, 0)])
def test_split_refuses(count: int, calibration: int) -> None:
    # Copies don't help.
    examples = [Example(text=f"sentence {number}") for number in range(count)] * 2
    with pytest.raises(BadInputError, match="different samples"):
        data.split_examples(examples, calibration=calibration, seed=0)


def test_split_arrays_keeps_content_apart() -> None:
    values = np.arange(10, dtype=np.float32)
    arrays = Arrays(inputs={"x": np.concatenate([values, values])[:, None]}, labels=tuple(range(20)))
    calibration, evaluation = data.split_arrays(arrays, calibration=4, seed=0)
    assert (calibration.rows, evaluation.rows) == (4, 12)
    assert not set(calibration.inputs["x"].ravel()) & set(evaluation.inputs["x"].ravel())
    assert [label % 10 for label in evaluation.labels] == evaluation.inputs["x"].ravel().tolist()


def test_builtin_text() -> None:
    examples = data.builtin_text(600, seed=0)
    assert len(set(texts(examples))) == 600
    assert data.builtin_text(600, seed=0) == examples
    assert data.builtin_text(50, seed=1) != examples[:50]
    lengths = [len(example.text.split()) for example in examples]
    assert min(lengths) >= 4
    assert max(lengths) <= 120
    assert np.quantile(lengths, 0.1) < 12
    assert np.quantile(lengths, 0.9) > 35
    for example in examples:
        assert example.label is None
        assert example.text == " ".join(example.text.split())
        assert re.match(r"[A-Z]", example.text)
        assert not re.search(r"::=|>>>|[|`*]", example.text)


def test_builtin_text_refuses_more_than_there_is() -> None:
    with pytest.raises(BadInputError, match="at most"):
        data.builtin_text(1_000_000, seed=0)


def test_encode_examples_one_by_one(tokenizer_folder: Path) -> None:
    tokenizer = data.load_tokenizer(tokenizer_folder)
    assert tokenizer.is_fast
    examples = [Example(text="The good films", label="pos"), Example(text="bad", label=0)]
    batches = data.encode_examples(
        examples, tokenizer, ["attention_mask", "input_ids"], max_length=8, labels={"neg": 0, "pos": 1}
    )
    assert [batch.labels for batch in batches] == [(1,), (0,)]
    assert list(batches[0].feed) == ["attention_mask", "input_ids"]
    np.testing.assert_array_equal(batches[0].feed["input_ids"], [[2, 10, 6, 8, 9, 3]])
    np.testing.assert_array_equal(batches[0].feed["attention_mask"], [[1] * 6])
    np.testing.assert_array_equal(batches[1].feed["input_ids"], [[2, 7, 3]])
    assert all(array.dtype == np.int64 for batch in batches for array in batch.feed.values())


def test_encode_examples_padded_and_cut(tokenizer_folder: Path) -> None:
    tokenizer = data.load_tokenizer(tokenizer_folder)
    examples = [Example(text="a"), Example(text="a very very good film"), Example(text="film")]
    batches = data.encode_examples(
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
    tokenizer = data.load_tokenizer(tokenizer_folder)
    with pytest.raises(BadInputError, match=re.escape(got)):
        data.encode_examples(examples, tokenizer, names, max_length=8, batch_size=2, labels=labels)


def test_encode_examples_refuses_to_pad_without_a_padding_token(tokenizer_folder: Path) -> None:
    tokenizer = data.load_tokenizer(tokenizer_folder)
    tokenizer.pad_token = None
    examples = [Example(text="a"), Example(text="a film")]
    with pytest.raises(BadInputError, match="no padding token"):
        data.encode_examples(examples, tokenizer, ["input_ids"], max_length=8, batch_size=2)
    assert len(data.encode_examples(examples, tokenizer, ["input_ids"], max_length=8)) == 2


def test_encode_examples_refuses_what_the_tokenizer_withholds() -> None:
    class Narrow:
        pad_token = "[PAD]"

        def __call__(self, text: list[str], **_: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [[1, 2] for _ in text]}

    with pytest.raises(BadInputError, match='it gives no "token_type_ids"'):
        data.encode_examples([Example(text="a")], Narrow(), ["input_ids", "token_type_ids"], max_length=8)


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
        data.load_tokenizer(tmp_path)
    assert "ZeroDivisionError" not in str(caught.value)


def test_load_tokenizer_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such folder"):
        data.load_tokenizer(tmp_path / "none")
