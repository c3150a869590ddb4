from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeslim.core import Batch
from edgeslim.datasets.samples import BUILTIN_EVALUATION, DataOptions, Samples, fixed_length_feed, load_samples
from edgeslim.errors import BadInputError

INPUTS = ("input_ids", "attention_mask")


@pytest.fixture
def load(tiny_tokenizer: Path, tmp_path: Path) -> Any:
    def run(options: DataOptions, **changes: Any) -> Samples:
        given: dict[str, Any] = {
            "base": tmp_path,
            "tokenizer": tiny_tokenizer,
            "input_names": INPUTS,
            "labels": None,
            "example": None,
            "seed": 0,
        }
        return load_samples(options, **(given | changes))

    return run


def rows_of(batches: tuple[Batch, ...]) -> set[bytes]:
    return {value.tobytes() for batch in batches for value in (next(iter(batch.feed.values())),)}


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl"])
def test_one_file_is_split(load: Any, text_files: Any, kind: str) -> None:
    path: Path = getattr(text_files, kind)
    labels = None if kind == "txt" else {"bad": 0, "good": 1}
    samples = load(DataOptions(file=path.name, calibration_samples=24), base=path.parent, labels=labels)
    assert (len(samples.calibration), len(samples.evaluation)) == (24, 56)
    assert not rows_of(samples.calibration) & rows_of(samples.evaluation)
    assert samples.judged
    assert samples.notes == ()
    for batch in (*samples.calibration, *samples.evaluation):
        assert batch.rows == 1
        assert set(batch.feed) == set(INPUTS)
        assert batch.feed["attention_mask"].all(), "one text a run: nothing is padded"
    assert not any(batch.labels for batch in samples.calibration)
    assert {batch.labels for batch in samples.evaluation} == ({()} if labels is None else {(0,), (1,)})


def test_at_most_half_of_a_small_file_calibrates(load: Any, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("one\ntwo\nthree\nfour\nfive\n", encoding="utf-8")
    samples = load(DataOptions(file="few.txt"))
    assert (len(samples.calibration), len(samples.evaluation)) == (2, 3)


def test_the_seed_decides_the_split(load: Any, text_files: Any) -> None:
    options = DataOptions(file=str(text_files.txt), calibration_samples=20)
    first, again, other = (rows_of(load(options, seed=seed).calibration) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_texts_are_cut_at_max_length(load: Any, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("a b c d e f g h i j\nk l m n o p q\n", encoding="utf-8")
    samples = load(DataOptions(file="long.txt", max_length=5))
    assert {batch.feed["input_ids"].shape for batch in (*samples.calibration, *samples.evaluation)} == {(1, 5)}


def test_the_padded_batch_has_texts_of_different_length(load: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine day\ndull day\npoor day\nbroken old day\nbad day\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("another day\n", encoding="utf-8")
    (padded,) = load(DataOptions(calibration="a.txt", evaluation="b.txt")).padded
    assert padded.rows == 2
    lengths = padded.feed["attention_mask"].sum(axis=1)
    assert lengths.min() < lengths.max() == padded.feed["input_ids"].shape[1]


def test_two_files(load: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fine day\nlovely day\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("body,kind\npoor day,1\ndull day,0\nbroken day,1\n", encoding="utf-8")
    text = DataOptions(calibration="a.txt", evaluation="b.csv", text_column="body", label_column="kind")
    with pytest.raises(BadInputError, match="body"):  # the columns' names hold for tables, and a .txt has its own
        load(DataOptions(calibration="b.csv", evaluation="a.txt", text_column="boddy"))
    samples = load(text, labels={"bad": 0, "good": 1})
    assert (len(samples.calibration), len(samples.evaluation)) == (2, 3)
    assert [batch.labels for batch in samples.evaluation] == [(1,), (0,), (1,)]


@pytest.mark.parametrize("again", ["lovely day", "  Lovely   DAY "])
def test_texts_that_calibrate_may_not_evaluate(load: Any, tmp_path: Path, again: str, refuses: Any) -> None:
    (tmp_path / "a.txt").write_text("fine day\nlovely day\nbright day\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text(f"poor day\n{again}\n", encoding="utf-8")
    expected, hint = "share nothing", "split without overlap"
    with refuses(BadInputError, where="a.txt, b.txt", got="1 texts stand in both", expected=expected, hint=hint):
        load(DataOptions(calibration="a.txt", evaluation="b.txt"))


def test_without_data_python_gives_the_text_and_a_note_says_so(load: Any) -> None:
    samples = load(DataOptions(calibration_samples=16))
    assert (len(samples.calibration), len(samples.evaluation)) == (16, BUILTIN_EVALUATION)
    assert samples.judged
    (note,) = samples.notes
    assert "no data given" in note
    assert "Python's own manual" in note


def test_example_inputs_stand_in_where_there_is_no_data(load: Any) -> None:
    example = {"x": np.ones((3, 4), np.float32)}
    samples = load(DataOptions(), tokenizer=None, input_names=("x",), example=example)
    assert samples.calibration == samples.evaluation
    assert [batch.rows for batch in samples.calibration] == [3]
    assert not samples.judged
    assert "no data given" in samples.notes[0]
    assert "not judged" in samples.notes[0]


def test_data_goes_before_example_inputs(load: Any, mlp_samples: Path) -> None:
    example = {"x": np.ones((3, 4), np.float32)}
    samples = load(DataOptions(file=str(mlp_samples)), tokenizer=None, input_names=("x",), example=example)
    assert samples.judged
    assert (len(samples.calibration), len(samples.evaluation)) == (30, 30)


def test_arrays(load: Any, mlp_samples: Path) -> None:
    options = DataOptions(file=mlp_samples.name, calibration_samples=20)
    samples = load(options, base=mlp_samples.parent, tokenizer=None, input_names=("x",))
    assert (len(samples.calibration), len(samples.evaluation)) == (20, 40)
    assert not rows_of(samples.calibration) & rows_of(samples.evaluation)
    assert samples.padded == ()


def test_two_files_of_arrays(load: Any, tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(0, 1, (9, 4)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=values[:4])
    np.savez(tmp_path / "b.npz", x=values[4:], label=np.arange(5))
    options = DataOptions(calibration="a.npz", evaluation="b.npz")
    samples = load(options, tokenizer=None, input_names=("x",))
    assert (len(samples.calibration), len(samples.evaluation)) == (4, 5)
    assert [batch.labels for batch in samples.evaluation] == [(0,), (1,), (2,), (3,), (4,)]


def test_arrays_that_calibrate_may_not_evaluate(load: Any, tmp_path: Path, refuses: Any) -> None:
    values = np.random.default_rng(1).normal(0, 1, (9, 4)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=values[:6])
    np.savez(tmp_path / "b.npz", x=values[4:])
    with refuses(BadInputError, where="a.npz, b.npz", got="2 samples stand in both", expected="share nothing"):
        load(DataOptions(calibration="a.npz", evaluation="b.npz"), tokenizer=None, input_names=("x",))


def test_a_text_file_beside_an_array_file(load: Any, tmp_path: Path, mlp_samples: Path, refuses: Any) -> None:
    (tmp_path / "b.txt").write_text("text\n", encoding="utf-8")
    options = DataOptions(calibration=str(mlp_samples), evaluation="b.txt")
    with refuses(BadInputError, where="b.txt", got="", expected=".npz"):
        load(options, tokenizer=None, input_names=("x",))


@pytest.mark.parametrize(
    ("file", "got"),
    [(None, "no samples, and the model has no tokenizer"), ("a.txt", "a.txt, and the model has no tokenizer")],
)
def test_text_without_a_tokenizer(load: Any, file: str | None, got: str, refuses: Any) -> None:
    with refuses(BadInputError, where="data", got=got, expected="one array a model input: x, y", hint="tokenizer.json"):
        load(DataOptions(file=file), tokenizer=None, input_names=("x", "y"))


@pytest.mark.parametrize(
    ("options", "where", "got"),
    [
        (DataOptions(file="gone.txt"), "gone.txt", "no such file"),
        (DataOptions(file="gone.npz"), "gone.npz", "no such file"),
        (DataOptions(calibration="gone.txt", evaluation="gone.txt"), "gone.txt", "no such file"),
        (DataOptions(file="model.bin"), "model.bin", "no such file"),
    ],
)
def test_files_that_are_not_there(load: Any, options: DataOptions, where: str, got: str, refuses: Any) -> None:
    with refuses(BadInputError, where=where, got=got):
        load(options)


def test_labels_that_the_model_does_not_know(load: Any, text_files: Any, refuses: Any) -> None:
    with refuses(BadInputError, where="data", got='unknown label "', expected="one of cold, hot"):
        load(DataOptions(file=str(text_files.csv)), labels={"cold": 0, "hot": 1})


def test_one_text_is_too_few(load: Any, tmp_path: Path, refuses: Any) -> None:
    (tmp_path / "one.txt").write_text("the same\nThe  Same\n", encoding="utf-8")
    with refuses(BadInputError, where="data", got="1 different samples", expected="on either side", hint="more data"):
        load(DataOptions(file="one.txt"))


def batch_of(ids: list[int]) -> Batch:
    array = np.array([ids], np.int64)
    return Batch(feed={"input_ids": array, "attention_mask": np.ones_like(array)}, rows=1)


@pytest.mark.parametrize(("length", "ids"), [(3, [1, 2, 3]), (5, [1, 2, 3, 4, 5]), (8, [1, 2, 3, 4, 5, 1, 2, 3])])
def test_fixed_length_feed(length: int, ids: list[int]) -> None:
    feed = fixed_length_feed([batch_of([1, 2]), batch_of([3, 4, 5])], length)
    assert feed["input_ids"].tolist() == [ids]
    assert feed["attention_mask"].tolist() == [[1] * length]
    assert {value.dtype for value in feed.values()} == {np.dtype(np.int64)}


def test_inputs_that_are_no_tokens_are_measured_one_sample_at_a_time() -> None:
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    feed = fixed_length_feed([Batch(feed={"x": values}, rows=3)], 128)
    np.testing.assert_array_equal(feed["x"], values[:1])
