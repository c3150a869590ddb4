"""Calibration data is judged by statistics of the inputs alone, and read in memory that doesn't grow."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from scipy import stats

import edgeslim
from edgeslim.algorithms.smoothing import Smoothing
from edgeslim.checks import latency
from edgeslim.core import Batch, Feed, Quiet
from edgeslim.datasets.builtin import builtin_text
from edgeslim.datasets.calibration import judge_calibration, judge_likeness, judge_quantity, widest_layer
from edgeslim.numerics import activation_affine
from edgeslim.quantizing.observation import ROWS, input_hessian, observe
from edgeslim.stages.quantize_int8 import QuantizeInt8


def texts(*samples: Sequence[int]) -> list[Batch]:
    return [Batch(feed={"input_ids": np.array([sample], np.int64)}, rows=1) for sample in samples]


def arrays(values: Sequence[Any]) -> list[Batch]:
    return [Batch(feed={"x": np.asarray(value, np.float32)[None]}, rows=1) for value in values]


def words(count: int, start: int, known: dict[str, int]) -> list[Batch]:
    """Pieces of Python's manual, a number a word."""
    pieces = builtin_text(start + count, seed=0)[start:]
    return texts(*([known.setdefault(word.casefold(), len(known)) for word in piece.text.split()] for piece in pieces))


def test_the_cost_of_foreign_tokens_by_hand() -> None:
    # Left out of its own counts, [1, 1] is coded by two ones: log2((2 + 0.1 * 2) / (2 + 0.1)) bits a token. A 2 costs
    # log2((4 + 0.1 * 2) / 0.1).
    (note,) = judge_likeness(texts([1, 1], [1, 1]), texts([2, 2]))
    assert f"{math.log2(4.2 / 0.1) - math.log2(2.2 / 2.1):.2f} bits" in note
    assert "100% don't occur in it, by itself 0% would not" in note


def test_one_sources_halves_are_alike_and_another_source_is_not() -> None:
    known: dict[str, int] = {}
    manual, more = words(128, 0, known), words(200, 128, known)
    assert judge_likeness(manual, more) == ()
    prose = [line for name in ("README.md", "CONTRIBUTING.md", "docs/architecture.md") for line in read_lines(name)]
    other = texts(*([known.setdefault(word.casefold(), len(known)) for word in line.split()] for line in prose))
    (note,) = judge_likeness(manual, other)
    assert note.startswith("calibration data is unlike the evaluation data: by what it holds, evaluation's input_ids")


def read_lines(name: str) -> list[str]:
    content = (Path(__file__).parents[2] / name).read_text(encoding="utf-8")
    return [line for line in content.splitlines() if len(line.split()) > 12]


def test_no_false_alarm_in_200_splits_of_one_source() -> None:
    samples = words(400, 0, {})
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        order = random.permutation(len(samples))
        alarms += len(judge_likeness([samples[i] for i in order[:32]], [samples[i] for i in order[32:132]]))
    assert alarms == 0


def test_moments_against_scipy() -> None:
    random = np.random.default_rng(3)
    known = random.normal(0, 1, (40, 20)) + random.normal(0, 0.5, (40, 1))
    shift = 0.0
    while not (notes := judge_likeness(arrays(known), arrays(known + shift))):
        shift += 0.01
    found = stats.ttest_ind(known.mean(axis=1) + shift, known.mean(axis=1), equal_var=False)
    assert float(found.statistic) == pytest.approx(4, abs=0.15)
    assert "the mean of x is" in notes[0]
    (note,) = judge_likeness(arrays(known), arrays(3 * (known - known.mean(axis=1, keepdims=True))))
    assert "the standard deviation of x is" in note


def test_what_the_mask_hides_does_not_count() -> None:
    def padded(real: Sequence[int], pads: int) -> Batch:
        ids = np.array([[*real, *[0] * pads]], np.int64)
        return Batch(feed={"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)}, rows=1)

    random = np.random.default_rng(1)
    samples = [list(random.integers(1, 40, 30)) for _ in range(80)]
    known, new = [padded(s, 2) for s in samples[:40]], [padded(s, 40) for s in samples[40:]]
    assert not [note for note in judge_likeness(known, new) if "input_ids" in note]


def test_several_inputs_are_judged_each() -> None:
    random = np.random.default_rng(2)

    def make(shift: float) -> list[Batch]:
        return [
            Batch(
                feed={
                    "same": random.normal(size=(1, 8)).astype(np.float32),
                    "moved": (random.normal(size=(1, 8)) + shift).astype(np.float32),
                    "flag": np.ones((1, 4), np.bool_),
                },
                rows=1,
            )
            for _ in range(50)
        ]

    (note,) = judge_likeness(make(0), make(5))
    assert "mean of moved" in note


@pytest.mark.parametrize(
    ("samples", "length", "widest", "words"),
    [
        (8, 25, 1536, ["8 samples", "probability 1/9", "200 rows can't tell the widest layer's 1,536 inputs apart"]),
        (40, 25, 1536, ["1,000 rows"]),
        (31, 100, 1536, ["probability 1/32"]),
        (1, 9, 0, ["1 sample)"]),
        (64, 25, 1536, []),
    ],
)
def test_too_little(samples: int, length: int, widest: int, words: list[str]) -> None:
    notes = judge_quantity(texts(*[range(length)] * samples), widest)
    assert len(notes) == bool(words)
    assert all(word in notes[0] for word in words)


def test_rows_of_vectors_and_of_pictures() -> None:
    assert "32 rows" in judge_quantity(arrays(np.zeros((32, 64))), 64)[0]
    assert judge_quantity(arrays(np.zeros((32, 3, 8, 8))), 6400) == ()


def test_the_widest_layer(tmp_path: Path, mlp_onnx: Path) -> None:
    assert widest_layer(mlp_onnx) == 96
    model = onnx.load(mlp_onnx)
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            node.op_type, node.domain = "Foreign", "elsewhere"
    onnx.save(model, tmp_path / "foreign.onnx")
    assert widest_layer(tmp_path / "foreign.onnx") == 0
    notes = judge_calibration(arrays(np.zeros((4, 16))), arrays(np.ones((4, 16))), mlp_onnx)
    assert ["little" in note for note in notes] == [True, False]


class Generated(Sequence[Batch]):
    """``count`` batches of different lengths and two inputs, each made when it is asked for."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        random = np.random.default_rng(index)
        shape = (1, 1 + index % 9, 16)
        feed = {name: random.standard_normal(shape, np.float32) for name in ("x", "z")}
        return Batch(feed=feed, rows=1)

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(self.count))


def double(feed: Feed) -> Feed:
    return {"y": 2 * feed["x"]}


def peak_of(count: int) -> tuple[int, Any]:
    site = Smoothing(scale=None, affine=activation_affine(-4, 4, symmetric=False), strength=0, error=0)
    tracemalloc.start()
    try:
        seen = observe(double, ("y",), Generated(count), rows={"y"}, products={"y"}, seed=0, progress=Quiet())
        input_hessian(seen["y"], site)
        return tracemalloc.get_traced_memory()[1], seen
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_20_000_batches() -> None:
    few, _ = peak_of(1000)
    many, seen = peak_of(20_000)
    assert seen["y"].histogram.counts.sum() == 16 * sum(1 + index % 9 for index in range(20_000))
    assert len(seen["y"].rows) <= ROWS
    assert many < 1.1 * few


def test_the_report_and_the_page_say_it(mlp_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(4)
    np.savez(tmp_path / "a.npz", x=random.normal(0, 1, (10, 16)).astype(np.float32))
    np.savez(tmp_path / "b.npz", x=random.normal(9, 1, (40, 16)).astype(np.float32))
    (tmp_path / "edgeslim.toml").write_text(
        f'model = "{mlp_onnx}"\ntarget = "android-arm64"\n'
        '[data]\ncalibration = "a.npz"\nevaluation = "b.npz"\n[budget]\nmax_drop = 0.5\n',
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(latency, "PROBES", 1)
    calibrated: list[Batch] = []
    run = QuantizeInt8.run

    def spy(stage: QuantizeInt8, model: Any, ctx: Any) -> Any:
        calibrated.extend(ctx.calibration)
        return run(stage, model, ctx)

    monkeypatch.setattr(QuantizeInt8, "run", spy)
    report = edgeslim.build(out=str(tmp_path / "made"))
    assert report.failed() == ()
    little, unlike = (note for note in report.notes if note.startswith("calibration data is"))
    assert "little (10 samples)" in little
    assert "unlike the evaluation data: the mean of x" in unlike
    page = (tmp_path / "made" / "report.html").read_text(encoding="utf-8")
    assert "calibration data is little (10 samples)" in page
    assert "calibration data is unlike the evaluation data" in page
    # Evaluation data never calibrates: what the stage saw is the calibration file, whole and alone.
    np.testing.assert_array_equal(
        np.concatenate([batch.feed["x"] for batch in calibrated]), np.load(tmp_path / "a.npz")["x"]
    )
