"""A finished package on a device: what is sent there, what stands in for this host's outputs, what is found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeslim.checks.device import check_device, replay
from edgeslim.core import Batch, Budget, Feed, Finding, Progress, Runner
from edgeslim.devices.device import Device, Isa, open_device
from edgeslim.devices.runner import DeviceRun, run_on_device
from edgeslim.errors import DeviceError, UsageError
from edgeslim.graphs.graph import input_forms, load_graph
from edgeslim.session import fit_feed

__all__ = ["DeviceOptions", "OnDevice", "machine_isa", "run_package"]

EMULATED_SAMPLES = 8
EMULATED_ROUNDS, ROUNDS = 1, 30
EMULATED_WARM_UP, WARM_UP = 1, 5
_ISAS: Mapping[str, Isa] = {
    "arm64-v8a": "aarch64",
    "arm64": "aarch64",
    "aarch64": "aarch64",
    "armeabi-v7a": "armhf",
    "armhf": "armhf",
    "armv7": "armhf",
    "x86_64": "x86_64",
}


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """``device`` as the command line has it, ``library`` an ONNX Runtime of one's own, ``samples`` how many are sent.

    An emulated machine is sent few samples unless told otherwise. ``operators`` counts instructions by operator there.
    """

    device: str
    library: str | None = None
    samples: int | None = None
    timeout_s: float = 600.0
    operators: bool = True


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """What ran there: ``runner`` gives the device's outputs for ``batches``, ``label`` says where they are from."""

    run: DeviceRun
    label: str
    real: bool
    batches: tuple[Batch, ...]
    timed: Feed

    @property
    def runner(self) -> Runner:
        """The device's outputs as a runner."""
        return replay(self.run.outputs[:-1], self.batches)

    def findings(self, host: Runner, budget: Budget) -> Iterator[Finding]:
        """The findings of ``checks.device``; ``host`` runs the same model here."""
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in sorted(self.timed.items()))
        batches = (*self.batches, Batch(feed=self.timed, rows=1))
        yield from check_device(self.run, self.label, batches, host, budget, real=self.real, shapes=shapes)


def machine_isa(isa: str) -> Isa:
    """The programs that a profile's machine runs.

    Raises:
        UsageError: none that edgeslim has a runner for.
    """
    if isa not in _ISAS:
        raise UsageError("--device", f"a package for {isa}", expected="one for " + ", ".join(sorted(_ISAS)))
    return _ISAS[isa]


def run_package(
    options: DeviceOptions,
    *,
    isa: str,
    model: Path,
    weights: Path,
    packed: Path,
    evaluation: Sequence[Batch],
    timed: Feed,
    threads: int,
    progress: Progress,
) -> OnDevice:
    """Runs a package's model on the device that ``options`` name: the evaluation samples, and ``timed`` for latency.

    Raises:
        EdgeslimError: see ``open_device`` and ``run_on_device``.
    """
    wanted = machine_isa(isa)
    forms = input_forms(load_graph(model))
    progress.step(f"device {options.device.partition(':')[0]}")
    with open_device(options.device, wanted) as device:
        _check_isa(device, wanted, options.device)
        count = options.samples or (EMULATED_SAMPLES if device.emulated else len(evaluation))
        batches = tuple(evaluation[:count])
        run = run_on_device(
            device,
            model=model,
            weights=weights,
            packed=packed,
            feeds=[fit_feed(feed, forms) for feed in (*(batch.feed for batch in batches), timed)],
            threads=1 if device.emulated else threads,
            rounds=EMULATED_ROUNDS if device.emulated else ROUNDS,
            warm_up=EMULATED_WARM_UP if device.emulated else WARM_UP,
            timeout_s=options.timeout_s,
            library=options.library,
            operators=options.operators,
        )
        return OnDevice(run=run, label=device.label, real=device.real, batches=batches, timed=timed)


def _check_isa(device: Device, wanted: Isa, spec: str) -> None:
    if device.isa != wanted and spec != "host":
        raise DeviceError(
            device.label,
            f"a machine that runs {device.isa} programs",
            expected=f"one for {wanted}, which the package is for",
        )
