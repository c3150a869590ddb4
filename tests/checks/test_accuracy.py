from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from edgeslim.checks.accuracy import check_accuracy
from edgeslim.core import Batch, Feed, Finding, Progress, Quiet, Runner
from edgeslim.target import Budget

BATCH = Batch(feed={"x": np.zeros((2, 1))}, rows=2)


class Fixed:
    """A task whose figures are given; it notes what it was asked."""

    name = "fixed"

    def __init__(self, metrics: Mapping[str, float]) -> None:
        self.metrics = metrics
        self.asked: list[object] = []

    def evaluate(
        self, candidate: Runner, reference: Runner, batches: Sequence[Batch], progress: Progress
    ) -> Mapping[str, float]:
        self.asked.append((candidate, reference, tuple(batches)))
        return self.metrics

    def drop(self, metrics: Mapping[str, float]) -> float:
        return metrics["drop"]

    def note(self, metrics: Mapping[str, float]) -> str:
        return f"of {len(metrics)} figures"

    def manifest(self) -> Mapping[str, object]:
        return {}


def candidate(feed: Feed) -> Feed:
    return feed


def reference(feed: Feed) -> Feed:
    return feed


def check(task: Fixed, budget: Budget, *, judged: bool = True) -> list[Finding]:
    progress = Quiet()
    return list(
        check_accuracy(candidate, reference, [BATCH], task, budget, where="host", judged=judged, progress=progress)
    )


@pytest.mark.parametrize(
    ("drop", "limit", "judged", "verdict"),
    [
        (0.005, 0.01, True, "pass"),
        (0.01, 0.01, True, "pass"),
        (0.011, 0.01, True, "fail"),
        (float("nan"), 0.01, True, "fail"),
        (0.5, None, True, "measured"),
        (0.0, 0.0, True, "pass"),
        (1e-9, 0.0, True, "fail"),
        (0.005, 0.01, False, "unjudged"),
        (0.5, 0.01, False, "unjudged"),
        (0.5, None, False, "measured"),
    ],
)
def test_verdicts(drop: float, limit: float | None, judged: bool, verdict: str) -> None:
    first, *_ = check(Fixed({"drop": drop}), Budget(max_drop=limit), judged=judged)
    assert (first.check, first.metric, first.verdict) == ("accuracy", "drop", verdict)
    assert first.value == pytest.approx(drop, nan_ok=True)
    assert first.limit == limit
    assert first.where == "host"
    assert ("give data of your own" in first.note) == (verdict == "unjudged")


def test_every_figure_is_told_once() -> None:
    task = Fixed({"cosine_mean": 0.99, "drop": 0.01, "samples": 7.0})
    findings = check(task, Budget(max_drop=0.5))
    assert [finding.metric for finding in findings] == ["drop", "cosine_mean", "samples"]
    assert [finding.verdict for finding in findings] == ["pass", "measured", "measured"]
    assert findings[0].note == "of 3 figures"
    assert task.asked == [(candidate, reference, (BATCH,))], "the candidate comes first"
