"""Every check of a build once more, on a finished package: with nothing but the package, and data if there is any.

The package is unpacked into a temporary folder, its files are held against the SHA-256 sums of its manifest, and the
weights are decoded. If anything differs, nothing after that is checked: a damaged model isn't opened. The loss of
quality is measured beside what the float model said of the build's evaluation samples, as far as the package holds that
(``recording``); with ``reference``, the float model itself is exported as a build exports it, and everything is
measured beside it. Without either such limits stay unjudged.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgeslim import __version__
from edgeslim.checks.accuracy import check_accuracy
from edgeslim.checks.operators import check_operators
from edgeslim.checks.package import check_files, check_signature, check_weights
from edgeslim.core import Artifact, ArtifactInfo, Batch, Feed, Finding, Progress, Quiet, Report, Runner, Task
from edgeslim.datasets.recording import RECORDING_NAME, load_recording
from edgeslim.datasets.samples import Samples, hash_batches
from edgeslim.errors import BadInputError, UsageError
from edgeslim.final_checks import check_cost, timed_feed
from edgeslim.graphs import graph
from edgeslim.inputs import versions
from edgeslim.packaging.manifest import Manifest
from edgeslim.packaging.unpack import Package, unpack_package
from edgeslim.project import AndroidOptions, Plan
from edgeslim.recheck_device import DeviceOptions, run_package
from edgeslim.recheck_inputs import (
    data_options,
    evaluation_samples,
    example_feed,
    manifest_task,
    preprocessing_options,
)
from edgeslim.recipe import Recipe
from edgeslim.reference import export_reference
from edgeslim.session import OrtRunner, open_runner, runtime_version
from edgeslim.source import resolve_source
from edgeslim.steps import Steps
from edgeslim.target import Budget, MachineProfile, PackageProfile, RuntimeProfile, TargetProfile, load_target
from edgeslim.units import parse_bytes, parse_ms

__all__ = ["CheckOptions", "check_package"]

_NO_REFERENCE = (
    "nothing to compare with: give the data that the build evaluated, whose outputs by the float model are in the "
    "package, or --reference MODEL"
)


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What the command line said.

    ``reference`` is the model that the package was built from, ``task`` a metric of one's own.
    """

    package: str
    data: str | None = None
    target: str | None = None
    reference: str | None = None
    task: str | None = None
    max_drop: float | None = None
    max_size: str | None = None
    max_latency: str | None = None
    device: DeviceOptions | None = None
    max_instructions: int | None = None


def check_package(options: CheckOptions, progress: Progress | None = None) -> Report:
    """Checks a finished package and reports on it in the form of a build's report.

    Raises:
        EdgeslimError: it is no package, or the options, the data or the reference can't be used.
    """
    progress = progress or Quiet()
    path = Path(options.package)
    given = Budget(
        max_drop=options.max_drop,
        max_size_bytes=None if options.max_size is None else parse_bytes(options.max_size, "--max-size"),
        max_latency_ms=None if options.max_latency is None else parse_ms(options.max_latency, "--max-latency"),
        max_instructions=options.max_instructions,
    )
    wanted = None if options.target is None else load_target(options.target)
    with _temporary_folder() as work:
        progress.step("unpack")
        (work / "package").mkdir()
        package = unpack_package(path, work / "package")
        target = wanted or _target(package)
        notes: list[str] = []
        findings = list(check_files(package))
        if not _failed(findings):
            progress.step("decode")
            findings += check_weights(package)
        if _failed(findings):
            notes.append("the package is damaged: nothing else was checked")
        else:
            findings += _check_model(package, target, given.over(target.budget), options, work, progress, notes)
        return Report(
            target=target.name,
            artifact=ArtifactInfo(path=options.package, bytes=path.stat().st_size),
            steps=(),
            findings=tuple(findings),
            notes=tuple(notes),
            environment={"edgeslim": __version__, "onnxruntime": runtime_version()},
        )


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="edgeslim-check-") as name:
        try:
            yield Path(name)
        except OSError as error:
            raise BadInputError(
                str(error.filename or name), error.strerror or str(error), expected="room for the unpacked package"
            ) from error


def _target(package: Package) -> TargetProfile:
    """The target that the manifest names; one that isn't known here is made of what the manifest says of it."""
    manifest = package.manifest
    runtime, machine = manifest.runtime, manifest.machine
    known = None
    if re.fullmatch(r"[\w-]+", manifest.target):  # a name, never a path: anybody may have written it
        try:
            known = load_target(manifest.target)
        except UsageError:
            known = None
    if known is not None:
        return replace(
            known,
            machine=known.machine if machine is None else replace(known.machine, isa=machine.isa),
            runtime=replace(known.runtime, version=runtime.version, threads=runtime.threads, loading=runtime.loading),
        )
    if machine is None:
        raise BadInputError(
            f"{package.path}: manifest.json",
            f'target "{manifest.target}", which isn\'t known here',
            expected="a package of a known target",
            hint="--target FILE.toml names its profile",
        )
    profile = RuntimeProfile(
        version=runtime.version, providers=runtime.providers, threads=runtime.threads, loading=runtime.loading
    )
    return TargetProfile(
        name=manifest.target,
        summary="as the package's manifest has it",
        machine=MachineProfile(isa=machine.isa, features=machine.features),
        runtime=profile if runtime.opset_max is None else replace(profile, opset_max=runtime.opset_max),
        package=PackageProfile(kind=package.kind),
    )


def _check_model(
    package: Package,
    target: TargetProfile,
    budget: Budget,
    options: CheckOptions,
    work: Path,
    progress: Progress,
    notes: list[str],
) -> Iterator[Finding]:
    """What is left to check once every byte is known to be right."""
    manifest = package.manifest
    model = package.folder / graph.MODEL_NAME
    graph.load_graph(model)  # refuses external data outside the package, before a runtime follows it
    runner = open_runner(model)
    signature = check_signature(runner.signature(), manifest)
    yield signature
    if _failed([signature]):
        notes.append("the model isn't the one that the manifest describes: nothing else was checked")
        return
    yield from check_operators(model, target)
    task = manifest_task(manifest, str(package.path), options.task)
    reference: Path | None = None
    example: Feed | None = example_feed(manifest)
    if options.reference is not None:
        if task is None:
            metric = str(manifest.task.get("metric"))[:200]
            raise UsageError(
                "--reference",
                f"the package is measured by code of its own, {metric!r}",
                expected="--task module:function",
                hint="it is run: name it if you trust it",
            )
        reference, example, theirs = _export(options.reference, task, target, manifest, options, work, progress)
        _check_inputs(open_runner(reference), runner, options.reference)
    tokenizer = None if manifest.tokenizer is None else package.folder / manifest.tokenizer.folder
    samples = evaluation_samples(manifest, task, options.data, tokenizer, runner.inputs, example)
    _try_feed(runner, samples.evaluation[0].feed, options.data)
    notes += samples.notes
    if reference is not None and theirs is not None and tokenizer is not None:
        samples = _beside(samples, manifest, task, options.data, theirs, tokenizer, runner.inputs)
    length = 128 if manifest.tokenizer is None else manifest.tokenizer.max_length
    candidate: Runner = runner
    place = "host"
    if options.device is not None:
        there = run_package(
            options.device,
            isa=target.machine.isa,
            model=model,
            weights=package.folder / graph.WEIGHTS_NAME,
            packed=package.folder / "weights.esz",
            evaluation=samples.evaluation,
            timed=timed_feed(model, samples.evaluation, length),
            threads=target.runtime.threads,
            progress=progress,
        )
        yield from there.findings(runner, budget)
        budget = replace(budget, max_latency_ms=None, max_instructions=None)  # judged there
        samples = replace(samples, evaluation=there.batches)
        candidate, place = there.runner, f"device: {there.label}"
    where = f"{place}, {sum(batch.rows for batch in samples.evaluation)} samples"
    progress.step("checks")
    if reference is not None and task is not None:
        yield from check_accuracy(
            candidate,
            open_runner(reference),
            samples.evaluation,
            task,
            budget,
            where=where,
            judged=samples.judged,
            progress=progress,
        )
    else:
        compared = list(_check_recording(candidate, samples, task, budget, package, progress, place))
        missing = None if compared else budget.max_drop
        yield from _check_labels(candidate, samples.evaluation, task, missing, where, progress)
        yield from compared
    artifact = Artifact(
        package=package.path,
        model=model,
        weights=package.folder / graph.WEIGHTS_NAME,
        packed=package.folder / "weights.esz",
        manifest=package.folder / "manifest.json",
        reference=reference,
    )
    yield from check_cost(
        artifact,
        samples.evaluation,
        target,
        budget,
        aar=package.kind == "aar",
        max_length=length,
        progress=progress,
    )


def _export(
    model: str,
    task: Task,
    target: TargetProfile,
    manifest: Manifest,
    options: CheckOptions,
    work: Path,
    progress: Progress,
) -> tuple[Path, Feed, Path | None]:
    """The float export of ``model``, as a build makes it, a feed that it was tried with, and its tokenizer."""
    source = resolve_source(model)
    plan = Plan(
        model=model,
        base=Path(),
        name=None,
        task=None,
        tokenizer=None,
        target=target,
        recipe=Recipe(torch=(), graph=(), tables=()),
        data=data_options(manifest, options.data),
        budget=Budget(),
        android=AndroidOptions(),
        out=work / "out",
        seed=0 if manifest.calibration is None else manifest.calibration.seed,
        preprocessing=preprocessing_options(task),
    )
    reference = export_reference(source, task, plan, Steps(work, None, versions(), progress))
    return reference.folder / graph.MODEL_NAME, reference.samples.evaluation[0].feed, source.tokenizer


def _beside(
    samples: Samples,
    manifest: Manifest,
    task: Task | None,
    data: str | None,
    theirs: Path,
    ours: Path,
    names: Sequence[str],
) -> Samples:
    """``samples`` with what the float model takes of them, where its tokenizer isn't the package's: a trimmed one."""
    files = [folder / "tokenizer.json" for folder in (theirs, ours)]
    if not all(path.is_file() for path in files) or files[0].read_bytes() == files[1].read_bytes():
        return samples
    whole_file = manifest if data is None else replace(manifest, calibration=None)
    other = evaluation_samples(whole_file, task, data, theirs, names, None)
    whole = evaluation_samples(whole_file, task, data, ours, names, None)
    pairs = {hash_batches((mine,)): one.feed for mine, one in zip(whole.evaluation, other.evaluation, strict=True)}
    evaluation = tuple(replace(batch, original=pairs[hash_batches((batch,))]) for batch in samples.evaluation)
    return replace(samples, evaluation=evaluation)


def _try_feed(runner: Runner, feed: Feed, data: str | None) -> None:
    try:
        runner(feed)
    except Exception as error:  # the runtime's binding raises a class of its own for each status
        reason = str(error).strip().splitlines()[0][:300]
        shapes = ", ".join(f"{name} {value.dtype} {list(value.shape)}" for name, value in feed.items())
        raise BadInputError(
            f"--data {data}" if data else "--data",
            f"the model can't run on {shapes}: {reason}",
            expected="samples that fit its inputs" if data else "data: it doesn't run on a made-up input",
        ) from error


def _check_inputs(reference: OrtRunner, runner: OrtRunner, model: str) -> None:
    if set(reference.inputs) != set(runner.inputs):
        raise BadInputError(
            f"--reference {model}",
            "a model with the inputs " + ", ".join(reference.inputs),
            expected="the model that the package was built from, with the inputs " + ", ".join(runner.inputs),
        )


def _check_labels(
    runner: Runner,
    batches: Sequence[Batch],
    task: Task | None,
    missing: float | None,
    where: str,
    progress: Progress,
) -> Iterator[Finding]:
    """The metrics against labels, if there are any; ``missing`` is a limit for what nothing here could measure."""
    if missing is not None:
        yield Finding.at_most("accuracy", "drop", None, "", missing, where, _NO_REFERENCE)
    if task is None or not all(batch.labels for batch in batches):
        return
    once = _run_once(runner)
    metrics = task.evaluate(once, once, batches, progress)
    for name in ("accuracy", "f1", "samples"):
        if name in metrics:
            yield Finding.at_most("accuracy", name, metrics[name], "", None, where)


def _check_recording(
    runner: Runner,
    samples: Samples,
    task: Task | None,
    budget: Budget,
    package: Package,
    progress: Progress,
    place: str,
) -> Iterator[Finding]:
    """Beside what the float model said, of the samples that the build recorded; nothing where it recorded none."""
    path = package.folder / RECORDING_NAME
    if task is None or not path.is_file():
        return
    recording = load_recording(path)
    known = [batch for batch in samples.evaluation if recording.knows(batch)]
    if not known:
        return
    where = f"{place}, {len(known)} samples of which the package holds the float model's outputs"
    found = check_accuracy(runner, recording, known, task, budget, where=where, judged=True, progress=progress)
    labelled = all(batch.labels for batch in samples.evaluation)
    for finding in found:
        if not (labelled and finding.metric in ("accuracy", "f1", "samples")):  # those are told of all samples
            yield finding


def _run_once(runner: Runner) -> Runner:
    """``runner`` where it stands on both sides of a comparison: each feed is run once."""
    last: list[tuple[Feed, Feed]] = []

    def run(feed: Feed) -> Feed:
        if not last or last[0][0] is not feed:
            last[:] = [(feed, runner(feed))]
        return last[0][1]

    return run


def _failed(findings: Sequence[Finding]) -> bool:
    return any(finding.verdict == "fail" for finding in findings)
