"""Samples: every way that a file can be read, and every way that it can't."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeslim.datasets import data
from edgeslim.datasets.data import Example
from edgeslim.errors import BadInputError


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def texts(examples: tuple[Example, ...]) -> list[str]:
    return [example.text for example in examples]


def test_import_stays_light() -> None:
    code = (
        "import sys, edgeslim.datasets.data, edgeslim.task\n"
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


def test_parquet(tmp_path: Path) -> None:
    import datasets

    rows = {"text": ["one", "two"], "label": [1, 0], "other": [0.5, None]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    assert data.load_examples(tmp_path / "a.parquet") == (Example(text="one", label=1), Example(text="two", label=0))
    with pytest.raises(BadInputError, match=re.escape("row 1, other: 0.5 (float)")):
        data.load_examples(tmp_path / "a.parquet", text_column="other")


@pytest.mark.parametrize("content", [b"", b"PAR1 cut off", b"text,label\none,1\n"])
def test_parquet_refuses(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "a.parquet", content)
    with pytest.raises(BadInputError, match="can't be read" if content else "no rows") as caught:
        data.load_examples(path)
    assert caught.value.where == str(path)
    assert capfd.readouterr() == ("", "")
