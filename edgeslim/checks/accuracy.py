"""Is the compressed model still as good as the float one? Measured by the task, on data that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgeslim.core import Batch, Finding, Progress, Runner, Task
from edgeslim.target import Budget

__all__ = ["check_accuracy"]


def check_accuracy(
    candidate: Runner,
    reference: Runner,
    batches: Sequence[Batch],
    task: Task,
    budget: Budget,
    *,
    where: str,
    judged: bool,
    progress: Progress,
) -> Iterator[Finding]:
    """The task's metrics, and its ``drop`` against the budget.

    With ``judged`` false (there was no data apart from what calibrated) the drop is reported and not judged.
    """
    metrics = task.evaluate(candidate, reference, batches, progress)
    drop = task.drop(metrics)
    finding = Finding.at_most("accuracy", "drop", drop, "", budget.max_drop, where, task.note(metrics))
    if not judged and finding.limit is not None:
        finding = Finding(
            check="accuracy",
            metric="drop",
            value=drop,
            unit="",
            limit=budget.max_drop,
            verdict="unjudged",
            where=where,
            note="measured on the calibration samples: give data of your own",
        )
    yield finding
    for name, value in metrics.items():
        if name != "drop":
            yield Finding.at_most("accuracy", name, value, "", None, where)
