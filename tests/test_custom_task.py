"""Metrics of one's own: their figures, and all that their code may do wrong."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeslim.core import Batch, Quiet, Runner
from edgeslim.custom_task import CustomTask
from edgeslim.errors import BadInputError


class Recording(Quiet):
    """Notes which steps a task names."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def step(self, what: str) -> None:
        self.said.append(what)


BATCH = Batch(feed={"x": np.zeros((1, 2), np.float32)}, rows=1)


def replay(*values: Any) -> Runner:
    """A model that gives these outputs, one run after another."""
    remaining = iter(values)
    return lambda _: {"x": np.asarray(next(remaining), dtype=np.float32)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder for a user's own metric."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


METRIC = """
def measure(candidate, reference, batches):
    moved = [abs(candidate(b.feed)["x"] - reference(b.feed)["x"]).mean() for b in batches]
    return {"drop": sum(moved), "runs": len(moved)}

def bare(candidate, reference, batches): return 0.25
def nothing(candidate, reference, batches): return None
def unnamed(candidate, reference, batches): return {"rank": 0.5}
def empty(candidate, reference, batches): return {}
def text(candidate, reference, batches): return {"drop": "much"}
def infinite(candidate, reference, batches): return float("nan")
def raises(candidate, reference, batches): raise KeyError("x")
number = 3
"""


def test_custom_metric(folder: Path) -> None:
    (folder / "own_metric.py").write_text(METRIC)
    path_before = list(sys.path)
    task = CustomTask("own_metric:measure")
    assert sys.path == path_before
    progress = Recording()
    runners = (replay([1.0], [2.0]), replay([1.5], [2.0]))
    found = task.evaluate(*runners, (BATCH, BATCH), progress)
    assert found == {"drop": 0.5, "runs": 2.0}
    assert all(type(value) is float for value in found.values())
    assert task.drop(found) == 0.5
    assert progress.said == ["evaluate with own_metric:measure"]
    assert task.manifest() == {"task": "custom", "metric": "own_metric:measure"}
    assert "own_metric:measure" in task.note(found)
    assert CustomTask("own_metric:bare").evaluate(replay(), replay(), [BATCH], Quiet()) == {"drop": 0.25}


@pytest.mark.parametrize(
    ("function", "got"),
    [
        ("nothing", "it returned 'drop': None"),
        ("unnamed", 'expected: a key "drop"'),
        ("empty", "it returned nothing"),
        ("text", "it returned 'drop': 'much'"),
        ("infinite", "it returned 'drop': nan"),
        ("raises", "it raised KeyError: 'x'"),
    ],
)
def test_custom_metric_returns_something_else(folder: Path, function: str, got: str) -> None:
    (folder / "own_metric.py").write_text(METRIC)
    with pytest.raises(BadInputError, match=re.escape(got)):
        CustomTask(f"own_metric:{function}").evaluate(replay(), replay(), [BATCH], Quiet())


@pytest.mark.parametrize(
    ("spec", "got"),
    [
        ("own_absent:measure", 'no module "own_absent"'),
        ("own_absent.inner:measure", 'no module "own_absent"'),
        ("own_needy:measure", 'its module imports "own_absent", which isn\'t there'),
        ("own_broken:measure", "importing it raised SyntaxError"),
        ("own_metric:measur", 'hint: did you mean "measure"?'),
        ("own_metric:number", 'no function "number"'),
        ("own_metric:", "expected: module:function"),
        (":measure", "expected: module:function"),
    ],
)
def test_custom_metric_that_cannot_be_imported(folder: Path, spec: str, got: str) -> None:
    (folder / "own_metric.py").write_text(METRIC)
    (folder / "own_needy.py").write_text("import own_absent\n")
    (folder / "own_broken.py").write_text("def measure(:\n")
    with pytest.raises(BadInputError, match=re.escape(got)):
        CustomTask(spec)


def test_no_samples(folder: Path) -> None:
    (folder / "own_metric.py").write_text(METRIC)
    with pytest.raises(BadInputError, match="no samples to evaluate on"):
        CustomTask("own_metric:bare").evaluate(replay(), replay(), [], Quiet())
