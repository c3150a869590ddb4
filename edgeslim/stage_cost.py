"""What one stage costs and gives: size, download, latency and quality before and after it.

======================  =============================================================================================
bytes                   the graph and its weights as ONNX Runtime reads them
download_bytes          the graph and the weights in an ESZ container
latency_ms              median of ten rounds in which the graphs before and after run in turns, on this host
drop                    the task's loss of quality against the float original, on the first 32 calibration samples
======================  =============================================================================================

These are a quick look between two stages. The report's findings about the finished package are measured on the
evaluation data and over more rounds. A figure counts as unchanged within half a percent, a latency within five, which
is what two runs of one graph differ by on a busy host.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeslim.checks.latency import measure_pair
from edgeslim.core import Batch, Context, Quiet
from edgeslim.datasets.samples import fixed_length_feed
from edgeslim.errors import EdgeslimError
from edgeslim.graphs import graph
from edgeslim.graphs.freeze import timed_length
from edgeslim.quantizing.storage_grid import encode_weights
from edgeslim.session import RunnerOnDemand, close_runner

__all__ = ["StageCost", "measure_stage", "pack_weights"]

ROUNDS = 10
SAMPLES = 32
LENGTH = 128
SAME, SAME_LATENCY, SAME_DROP = 0.005, 0.05, 1e-4


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """The figures on both sides of a stage, and the names of those that it left as they were."""

    before: Mapping[str, float]
    after: Mapping[str, float]
    unchanged: tuple[str, ...]
    measured_on: str


def measure_stage(
    before: Path,
    after: Path,
    context: Context,
    scratch: Path,
    known: Mapping[str, float] | None = None,
    calibration: Sequence[Batch] | None = None,
) -> StageCost:
    """Measures the graphs in the folders ``before`` and ``after`` side by side.

    ``known`` are the figures of ``before`` as the stage before it found them: its bytes and quality stand.
    ``calibration`` are the samples as ``after`` takes them, where that isn't as ``before`` does.
    """
    changed = context if calibration is None else replace(context, calibration=calibration)
    threads = context.target.runtime.threads
    graphs = [folder / graph.MODEL_NAME for folder in (before, after)]
    feed = fixed_length_feed(changed.calibration, min(timed_length(path, LENGTH) for path in graphs))
    close_runner(context.reference)  # two graphs are open at a time, never three
    left, right = (RunnerOnDemand(path, threads=threads) for path in graphs)
    times = measure_pair(left, right, feed, rounds=ROUNDS)
    right.close()
    figures = [dict(known) if known else _figures(before, left, context, scratch)]
    left.close()
    figures.append(_figures(after, right, changed, scratch))
    figures[0]["latency_ms"] = round(statistics.median(times.reference_ms), 3)
    figures[1]["latency_ms"] = round(statistics.median(times.candidate_ms), 3)
    unchanged = [
        name
        for name in ("bytes", "download_bytes")
        if abs(figures[1][name] - figures[0][name]) <= SAME * figures[0][name]
    ]
    if abs(times.ratio - 1) <= SAME_LATENCY:
        unchanged.append("latency_ms")
    if "drop" in figures[0] and "drop" in figures[1] and abs(figures[1]["drop"] - figures[0]["drop"]) <= SAME_DROP:
        unchanged.append("drop")
    samples = sum(batch.rows for batch in context.calibration[:SAMPLES])
    return StageCost(
        before=figures[0],
        after=figures[1],
        unchanged=tuple(unchanged),
        measured_on=f"latency: {ROUNDS} rounds in turns on the building host; drop: {samples} calibration samples, "
        "against the float original",
    )


def pack_weights(folder: Path, path: Path) -> int:
    """Writes the weights of the graph in ``folder`` into the container ``path``; the number of its segments."""
    return encode_weights(folder / graph.MODEL_NAME, path)


def _figures(folder: Path, runner: object, context: Context, scratch: Path) -> dict[str, float]:
    assert callable(runner)
    model, packed = folder / graph.MODEL_NAME, scratch / "measured.esz"
    pack_weights(folder, packed)
    download = model.stat().st_size + packed.stat().st_size
    packed.unlink()
    found = {
        "bytes": float(model.stat().st_size + (folder / graph.WEIGHTS_NAME).stat().st_size),
        "download_bytes": float(download),
    }
    try:
        metrics = context.task.evaluate(runner, context.reference, context.calibration[:SAMPLES], Quiet())
        found["drop"] = round(context.task.drop(metrics), 6)
    except EdgeslimError:  # a metric of one's own may need labels, which calibration data don't have
        pass
    return found
