"""What a finished build is judged by: its files, its quality, its costs, and what a device makes of it.

These look at the files that are about to be published, never at what made them. ``recheck`` runs most of them again on
a package from anybody.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from edgeslim.checks.accuracy import check_accuracy
from edgeslim.checks.generation import check_generation, has_cache
from edgeslim.checks.latency import check_latency
from edgeslim.checks.lossless import check_lossless
from edgeslim.checks.operators import check_operators
from edgeslim.checks.size import check_size
from edgeslim.core import Artifact, Batch, Budget, Context, Feed, Finding, Progress, Task
from edgeslim.datasets.samples import Samples, fixed_length_feed
from edgeslim.graphs.freeze import timed_length
from edgeslim.packaging.archive import apk_download_bytes
from edgeslim.packaging.bundle import file_entry
from edgeslim.project import Plan
from edgeslim.recheck_device import DeviceOptions, run_package
from edgeslim.session import close_runner, open_runner
from edgeslim.target import TargetProfile

__all__ = ["check_build", "check_cost", "timed_feed"]

LATENCY_LENGTH = 128


def check_build(
    artifact: Artifact,
    task: Task,
    samples: Samples,
    context: Context,
    plan: Plan,
    work: Path,
    device: DeviceOptions | None,
) -> Iterator[Finding]:
    """Every finding on a build; ``work`` is a folder for files that are needed meanwhile.

    Raises:
        EdgeslimError: a check can't be made, or the device gives trouble.
    """
    yield from check_lossless(artifact.packed, artifact.weights, str(file_entry(artifact.weights)["sha256"]), work)
    yield from check_operators(artifact.model, plan.target)
    yield from check_accuracy(
        open_runner(artifact.model),
        context.reference,
        samples.evaluation,
        task,
        plan.budget,
        where=f"host, {sum(batch.rows for batch in samples.evaluation)} samples",
        judged=samples.judged,
        progress=context.progress,
    )
    close_runner(context.reference)  # latency is measured with a session of its own
    budget = plan.budget
    if device is not None:
        there = run_package(
            device,
            isa=plan.target.machine.isa,
            model=artifact.model,
            weights=artifact.weights,
            packed=artifact.packed,
            evaluation=samples.evaluation,
            timed=timed_feed(artifact.model, samples.evaluation, plan.data.max_length),
            threads=plan.target.runtime.threads,
            progress=context.progress,
        )
        yield from there.findings(open_runner(artifact.model), budget)
        budget = replace(budget, max_latency_ms=None, max_instructions=None)  # judged there
    elif budget.max_instructions is not None:
        note = "only an emulated machine counts them: --device qemu"
        limit = budget.max_instructions
        yield Finding.at_most("device", "device_instructions", None, "instructions", limit, "device", note)
    yield from check_cost(
        artifact,
        samples.evaluation,
        plan.target,
        budget,
        aar=plan.target.package.kind == "aar",
        max_length=plan.data.max_length,
        progress=context.progress,
    )


def check_cost(
    artifact: Artifact,
    evaluation: Sequence[Batch],
    target: TargetProfile,
    budget: Budget,
    *,
    aar: bool,
    max_length: int,
    progress: Progress,
) -> Iterator[Finding]:
    """What the package costs: bytes, and on this host latency, load time and memory."""
    package = artifact.package.stat().st_size
    yield from check_size(
        artifact,
        budget,
        download_bytes=apk_download_bytes(artifact.package) if aar else package,
        installed_bytes=package + artifact.weights.stat().st_size + artifact.model.stat().st_size,
        memory_bytes=target.machine.memory_bytes,
        flash_bytes=target.machine.flash_bytes,
    )
    feed = timed_feed(artifact.model, evaluation, max_length)
    yield from check_latency(artifact, feed, target, budget, progress=progress)
    if has_cache(feed):
        yield from check_generation(artifact, feed, target)


def timed_feed(model: Path, evaluation: Sequence[Batch], max_length: int) -> Feed:
    """The inputs of the run that is timed: a sample at the usual length, or at the only one that the model takes."""
    return fixed_length_feed(evaluation, timed_length(model, min(LATENCY_LENGTH, max_length)))
