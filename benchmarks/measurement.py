"""What every benchmark of a model measures: quality beside the float model, latency in turns, bytes."""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np

from edgeslim import codec
from edgeslim.core import Batch, Feed, Quiet, Runner
from edgeslim.graphs.graph import MODEL_NAME, WEIGHTS_NAME, load_graph, save_graph, weight_spans
from edgeslim.session import open_runner
from edgeslim.task import Classification, FeatureExtraction

WARM_UP = 5


def measure_latency(models: Mapping[str, Path], feed: Feed, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each model's runs on one thread. All are open at once and run in turns: A B C A B C."""
    runners = {name: open_runner(path, threads=1) for name, path in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + WARM_UP):
        for name, runner in runners.items():
            started = time.perf_counter_ns()
            runner(feed)
            if turn >= WARM_UP:
                times[name].append((time.perf_counter_ns() - started) / 1e6)
    return times


def median_ratio(taken: Sequence[float], base: Sequence[float]) -> float:
    """The median of the ratios of runs of the same round."""
    return statistics.median(a / b for a, b in zip(taken, base, strict=True))


def measure_vectors(candidate: Runner, reference: Runner, batches: Sequence[Batch]) -> dict[str, float]:
    """Mean and worst cosine with the reference's vectors, and how much the ten nearest neighbours overlap."""
    return dict(FeatureExtraction().evaluate(candidate, reference, batches, Quiet()))


def classify(runner: Runner, batches: Sequence[Batch]) -> np.ndarray:
    """The class of each sample, int64 [N]."""
    task = Classification()
    return np.concatenate([task.compared(runner(batch.feed), batch)[1].argmax(axis=1) for batch in batches])


def compare_accuracy(ours: np.ndarray, reference: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Accuracy, what is lost against the reference, and half the width of its paired 95 % interval.

    The loss of each sample is -1, 0 or 1; the interval is 1.96 standard errors of their mean.
    """
    lost = (reference == truth).astype(np.float64) - (ours == truth)
    return {
        "accuracy": float((ours == truth).mean()),
        "drop": float(lost.mean()),
        "drop_interval": 1.96 * float(lost.std(ddof=1)) / math.sqrt(len(lost)),
        "agreement": float((ours == reference).mean()),
    }


def file_bytes(model: Path) -> int:
    """The size of a graph and of the weights beside it; an ``.onnx`` has a folder of its own."""
    return sum(path.stat().st_size for path in model.parent.iterdir() if path.suffix in (".onnx", ".bin", ".data"))


def packed_bytes(model: Path) -> int:
    """The size of a graph whose weights an ESZ container holds."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "plain"
        save_graph(load_graph(model), folder)
        image = (folder / WEIGHTS_NAME).read_bytes()
        segments = [
            codec.Segment(
                name=span.name,
                data=image[span.offset : span.offset + span.length],
                dtype=span.dtype,
                shape=span.shape,
            )
            for span in weight_spans(folder / MODEL_NAME)
        ]
        codec.write_container(Path(scratch) / "weights.esz", segments)
        return (folder / MODEL_NAME).stat().st_size + (Path(scratch) / "weights.esz").stat().st_size


def has_vnni() -> bool:
    """Whether this processor multiplies int8 without saturation."""
    path = Path("/proc/cpuinfo")
    return path.is_file() and bool({"avx512_vnni", "avx_vnni"} & set(path.read_text(encoding="utf-8").split()))
