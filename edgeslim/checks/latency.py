"""Latency beside the float export, load time and peak memory, all on this host.

Both models are open in one process and run in turns; every round gives one ratio, and their median is the finding.
So whatever slows the host for a while slows both. Which of the two goes first changes from round to round. Load time
and memory are measured in fresh processes (``probe``).

No figure here is the target's. ``max_latency_ms`` is a limit for the device, and unjudged without one.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import edgeslim
from edgeslim.core import Artifact, Budget, Feed, Finding, Progress, Quiet, Runner
from edgeslim.errors import CheckError
from edgeslim.session import open_runner
from edgeslim.target import Loading, TargetProfile

__all__ = ["HostTimes", "check_latency", "describe_host", "measure_alone", "measure_pair"]

WARM_UP_ROUNDS = 3
PROBES = 3
PROBE_SECONDS = 600
_WAYS = {"file": "a mapped file", "tensors": "an array a tensor", "memory": "one buffer in memory"}
_FLAGS = {
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "asimddp": "asimddp",
    "i8mm": "i8mm",
}


@dataclass(frozen=True, kw_only=True)
class HostTimes:
    """Milliseconds of each round, reference and candidate in pairs."""

    reference_ms: tuple[float, ...]
    candidate_ms: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median over the rounds of candidate by reference."""
        return statistics.median(b / a for a, b in zip(self.reference_ms, self.candidate_ms, strict=True))


def check_latency(
    artifact: Artifact,
    feed: Feed,
    target: TargetProfile,
    budget: Budget,
    *,
    rounds: int = 30,
    progress: Progress | None = None,
) -> Iterator[Finding]:
    """Findings ``latency_*`` (limit ``max_latency_ratio``), ``load_ms`` and ``peak_memory_bytes`` (its own limit).

    Load time and memory are those of the way in which the target's profile has weights loaded; by way of a file there
    is ``unpack_ms``, too.

    ``feed`` is one run's inputs for both the artifact's model and its float reference; without a reference the model
    is timed alone, and the ratio is unjudged. The intra-op threads are those of the target's profile.

    Raises:
        BadInputError: ONNX Runtime refuses one of the models.
        CheckError: a model can't be run in a process of its own.
    """
    threads = target.runtime.threads
    where = describe_host(threads)
    candidate = open_runner(artifact.model, threads=threads)
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in sorted(feed.items()))
    limit = budget.max_latency_ratio
    if artifact.reference is None:
        alone = measure_alone(candidate, feed, rounds=rounds, progress=progress)
        yield from _percentiles(alone, where, f"{rounds} rounds alone; {shapes}")
        if limit is not None:
            note = "there is no float model to compare it with"
            yield Finding.at_most("latency", "latency_ratio", None, "ratio", limit, where, note)
    else:
        reference = open_runner(artifact.reference, threads=threads)
        times = measure_pair(reference, candidate, feed, rounds=rounds, progress=progress)
        yield from _percentiles(times.candidate_ms, where, f"{rounds} rounds in turns with the float export; {shapes}")
        p50 = statistics.median(times.reference_ms)
        samples = _microseconds(times.reference_ms)
        yield Finding.at_most("latency", "latency_reference_p50_ms", p50, "ms", None, where, samples=samples)
        yield Finding.at_most("latency", "latency_ratio", times.ratio, "ratio", limit, where, "median of paired ratios")
    if budget.max_latency_ms is not None:
        note = "no device was measured; this host's figures are not the device's"
        yield Finding.at_most("latency", "device_latency_p50_ms", None, "ms", budget.max_latency_ms, "device", note)
    probes = _probe(artifact, feed, threads, target.runtime.loading)
    load, unpack = (statistics.median(float(probe[key]) for probe in probes) for key in ("load_ms", "unpack_ms"))
    way = probes[0]["way"]
    note = f"median of {PROBES} fresh processes; weights by way of {_WAYS[str(way)]}"
    yield Finding.at_most("memory", "load_ms", load, "ms", None, where, note)
    if way == "file":
        note = "once, before the first load: decoded, hashed and flushed to this host's disk"
        yield Finding.at_most("memory", "unpack_ms", unpack, "ms", None, where, note)
    most = max(probes, key=lambda probe: float(probe["added_bytes"]))
    note = (
        f"added by decoding the weights, opening the model and running it once, most of {PROBES} fresh processes, "
        f"{most['measured_by']}; "
        f"with runtime and interpreter {int(most['peak_bytes']):,}"
    )
    yield Finding.at_most(
        "memory", "peak_memory_bytes", int(most["added_bytes"]), "bytes", budget.max_peak_memory_bytes, where, note
    )


def measure_pair(
    reference: Runner, candidate: Runner, feed: Feed, *, rounds: int, progress: Progress | None = None
) -> HostTimes:
    """Runs both in turns, ``rounds`` times after a warm-up."""
    for _ in range(WARM_UP_ROUNDS):
        reference(feed)
        candidate(feed)
    left: list[float] = []
    right: list[float] = []
    for number in (progress or Quiet()).track(range(rounds), "latency", rounds):
        turns = [(reference, left), (candidate, right)]
        for runner, times in turns if number % 2 == 0 else reversed(turns):
            started = time.perf_counter_ns()
            runner(feed)
            times.append((time.perf_counter_ns() - started) / 1e6)
    return HostTimes(reference_ms=tuple(left), candidate_ms=tuple(right))


def measure_alone(candidate: Runner, feed: Feed, *, rounds: int, progress: Progress | None = None) -> tuple[float, ...]:
    """Milliseconds of each of ``rounds`` runs after a warm-up."""
    for _ in range(WARM_UP_ROUNDS):
        candidate(feed)
    times = []
    for _ in (progress or Quiet()).track(range(rounds), "latency", rounds):
        started = time.perf_counter_ns()
        candidate(feed)
        times.append((time.perf_counter_ns() - started) / 1e6)
    return tuple(times)


def describe_host(threads: int) -> str:
    """``host: <CPU>, <n> threads, CPUExecutionProvider, <flags>``, the flags being those that decide on kernels."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        fields: dict[str, str] = {}
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
        name = fields.get("model name") or fields.get("CPU part") or name
        flags = set((fields.get("flags") or fields.get("Features") or "").split())
    known = " ".join(label for flag, label in _FLAGS.items() if flag in flags)
    count = f"{threads} thread{'' if threads == 1 else 's'}" if threads else "all cores"
    return f"host: {name}, {count}, CPUExecutionProvider, {known or 'no known flags'}"


def _percentiles(times_ms: Sequence[float], where: str, note: str) -> Iterator[Finding]:
    p50, p95 = (float(np.percentile(times_ms, share)) for share in (50, 95))
    yield Finding.at_most("latency", "latency_p50_ms", p50, "ms", None, where, note, _microseconds(times_ms))
    yield Finding.at_most("latency", "latency_p95_ms", p95, "ms", None, where)


def _microseconds(times_ms: Sequence[float]) -> tuple[float, ...]:
    """The times as the report keeps them: nothing below a microsecond is worth its digits."""
    return tuple(round(value, 3) for value in times_ms)


def _probe(artifact: Artifact, feed: Feed, threads: int, loading: Loading) -> list[dict[str, float | str]]:
    found = []
    model = artifact.model
    package_parent = str(Path(edgeslim.__file__).parent.parent)
    paths = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "ORT_DISABLE_TELEMETRY": "1"}
    with tempfile.TemporaryDirectory(prefix="edgeslim-probe-") as folder:
        inputs = Path(folder) / "feed.npz"
        _write_feed(inputs, feed)
        command = [sys.executable, "-m", "edgeslim.checks.probe", str(model.absolute()), str(inputs), str(threads)]
        command += [loading, str(artifact.packed.absolute())]
        for _ in range(PROBES):
            try:
                done = subprocess.run(
                    command, env=environment, cwd=folder, capture_output=True, text=True, timeout=PROBE_SECONDS
                )
            except subprocess.TimeoutExpired as error:
                raise CheckError(str(model), f"not loaded and run within {PROBE_SECONDS} s") from error
            if done.returncode != 0:
                said = done.stderr.strip().splitlines()
                raise CheckError(
                    str(model),
                    f"a fresh process that opens it ended with status {done.returncode}",
                    expected="load time and memory",
                    hint=said[-1] if said else "is there enough memory?",
                )
            found.append(json.loads(done.stdout))
    return found


def _write_feed(path: Path, feed: Feed) -> None:
    """An ``.npz`` of ``feed``, as ``numpy.savez`` writes it but for any input's name."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in feed.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(value), allow_pickle=False)
