"""What a device says of a package: its outputs, and what a run costs there.

The outputs of the device stand in for those of this host in the check of accuracy, and are held against them: one
model, two machines. A graph that is integer from end to end gives the same bits everywhere; where floats lie between
integer kernels, a difference of 1e-7 can flip a rounding, so what is judged is the mean cosine.

A latency is judged only where it is a device's. Of an emulated machine the exact figure is instructions per run, which
says nothing of milliseconds, but tells changes of a model apart to the last instruction (``max_instructions``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from edgeslim.core import Batch, Budget, Feed, Finding, Runner
from edgeslim.devices.runner import DeviceRun
from edgeslim.errors import CheckError
from edgeslim.session import max_difference

__all__ = ["MIN_COSINE", "check_device", "replay"]

MIN_COSINE = 0.999
SHOWN_OPERATORS = 5


def replay(outputs: Sequence[Feed], batches: Sequence[Batch]) -> Runner:
    """A runner that gives what the device gave, for the feeds of ``batches`` alone."""
    known = {id(batch.feed): output for batch, output in zip(batches, outputs, strict=True)}

    def give(feed: Feed) -> Feed:
        if id(feed) not in known:
            raise CheckError("device", "a feed that it has not run", expected="the samples that were sent to it")
        return known[id(feed)]

    return give


def check_device(
    run: DeviceRun, label: str, batches: Sequence[Batch], host: Runner, budget: Budget, *, real: bool, shapes: str
) -> Iterator[Finding]:
    """Findings ``device_*``; ``host`` runs the same model here, ``shapes`` names the feed that was timed."""
    where = _where(run, label)
    differences = [
        max_difference(_aligned(host(batch.feed), output), output)
        for batch, output in zip(batches, run.outputs, strict=True)
    ]
    cosines = [smallest for _, smallest in differences]
    error = max(0.0, 1 - sum(cosines) / len(cosines))
    note = f"1 - mean cosine between its outputs and this host's, {len(batches)} samples; worst {min(cosines):.5f}"
    yield Finding.at_most("device", "device_output_error", error, "", 1 - MIN_COSINE, where, note)
    largest = max(largest for largest, _ in differences)
    same = sum(largest == 0 for largest, _ in differences)
    note = f"{same} of {len(batches)} outputs are identical"
    yield Finding.at_most("device", "device_largest_difference", largest, "", None, where, note)
    if real:
        p50, p95 = (float(np.percentile(run.run_ms, share)) for share in (50, 95))
        note = f"{len(run.run_ms)} runs after a warm-up; {shapes}"
        yield Finding.at_most(
            "device", "device_latency_p50_ms", p50, "ms", budget.max_latency_ms, where, note, run.run_ms
        )
        yield Finding.at_most("device", "device_latency_p95_ms", p95, "ms", None, where)
        yield Finding.at_most("device", "device_decode_ms", run.decode_ms, "ms", None, where)
        yield Finding.at_most("device", "device_load_ms", run.load_ms, "ms", None, where)
        limit = budget.max_peak_memory_bytes
        yield Finding.at_most("device", "device_peak_memory_bytes", run.peak_bytes, "bytes", limit, where)
    elif budget.max_latency_ms is not None:
        note = "emulated time is not latency" if run.instructions else "this host is not the device"
        yield Finding.at_most("device", "device_latency_p50_ms", None, "ms", budget.max_latency_ms, where, note)
    if run.instructions is not None:
        counted = run.instructions
        most = sum(share.instructions for share in run.operators)
        shown = [f"{s.operator} {s.instructions / most:.0%}" for s in run.operators[:SHOWN_OPERATORS]] if most else []
        note = f"emulated instructions of one run; {shapes}" + ("; " + ", ".join(shown) if shown else "")
        limit = budget.max_instructions
        yield Finding.at_most("device", "device_instructions", counted.run, "instructions", limit, where, note)
        note = f"emulated: decoding {counted.decode:,}, opening the session {counted.load:,}"
        total = counted.decode + counted.load
        yield Finding.at_most("device", "device_load_instructions", total, "instructions", None, where, note)
        for share in run.operators:
            name = f"instructions_{share.operator}"
            note = f"{share.nodes} nodes; counted apart, with the runtime's profile"
            yield Finding.at_most("device", name, share.instructions, "instructions", None, where, note)
    elif budget.max_instructions is not None:
        note = "only an emulated machine counts them: --device qemu"
        yield Finding.at_most(
            "device", "device_instructions", None, "instructions", budget.max_instructions, where, note
        )


def _where(run: DeviceRun, label: str) -> str:
    facts = "".join(f", {key.replace('_', ' ')} {value}" for key, value in run.facts.items() if key != "cpu")
    cpu = f" ({run.facts['cpu']})" if "cpu" in run.facts else ""
    return f"device: {label}{cpu}{facts}, ONNX Runtime {run.runtime}"


def _aligned(host: Feed, device: Feed) -> Feed:
    """The host's outputs in the device's order; those by another name stay, and count as a difference."""
    return {name: host[name] for name in device if name in host} if set(host) == set(device) else host
