"""The whole flow of a build, one way, in one file::

    source --> torch stages --> export --> graph stages --> model.onnx + weights.bin
                                                                   |
                        report <-- checks <-- package <-- weights.esz

Every arrow is a step: it makes the files of one folder from those of the one before, and is done only once for each set
of inputs (``steps``, ``cache``). What passes its checks is renamed into place; on any failure the output folder is left
as it was (``workspace``).
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from edgeslim import __version__
from edgeslim.cache import Cache
from edgeslim.core import Artifact, ArtifactInfo, Context, Finding, Progress, Quiet, Report, Task
from edgeslim.datasets.calibration import judge_calibration
from edgeslim.datasets.recording import RECORDING_NAME, record_outputs
from edgeslim.datasets.samples import Samples, hash_batches
from edgeslim.decoders.language_source import complete_task
from edgeslim.final_checks import check_build
from edgeslim.graphs import graph
from edgeslim.inputs import build_inputs, remember, versions
from edgeslim.packaging.android import AndroidSettings, MavenCoordinates, write_aar, write_maven
from edgeslim.packaging.archive import deflated_bytes
from edgeslim.packaging.bundle import Bundle, file_entry, tokenizer_extras, write_manifest
from edgeslim.packaging.cmake_files import cmake_extras
from edgeslim.packaging.swift_files import swift_extras
from edgeslim.packaging.tarball import write_tarball
from edgeslim.packaging.tokenizer_file import TOKENIZER_FILE, write_tokenizer
from edgeslim.pooling import pooling_from_folder
from edgeslim.project import Plan
from edgeslim.recheck_device import DeviceOptions
from edgeslim.reference import class_labels, export_reference, graph_bytes, retokenize
from edgeslim.session import RunnerOnDemand, open_runner, runtime_version
from edgeslim.source import Source, resolve_source
from edgeslim.stage_cost import pack_weights
from edgeslim.stage_runs import check_source, run_stages
from edgeslim.steps import StepFacts, Steps, hash_folder
from edgeslim.task import CausalLM, ImageClassification, resolve_task
from edgeslim.workspace import publish, scratch_folder

__all__ = ["run_build"]

SHRINKING_SHARE = 0.3
"""Of the float graph's size: int8 weights with their scales and the rest in float take less."""
REPORT_NAME = "report.json"
PAGE_NAME = "report.html"
PACKED_NAME = "weights.esz"
MANIFEST_NAME = "manifest.json"
READY = "ready"
SPARE_BYTES = 256
"""A manifest's numbers may take some digits more than those of a package without weights."""

Render = Callable[[Report, Artifact], str]
"""Makes the page that a person reads from a report and the files that it is about."""


def run_build(
    plan: Plan,
    progress: Progress | None = None,
    cache: Cache | None = None,
    render: Render | None = None,
    device: DeviceOptions | None = None,
) -> Report:
    """Builds ``plan`` and reports on it. The package is in ``plan.out`` if, and only if, no finding failed.

    With ``render``, a page for people lies beside the report; it isn't written where a check failed.
    On a ``device``, if one is named, the package is run before it is published.

    Raises:
        EdgeslimError: something stopped the build before there was a package to check.
    """
    progress = progress or Quiet()
    source = resolve_source(plan.model, base=plan.base, tokenizer=plan.tokenizer, name=plan.name)
    pooling = pooling_from_folder(source.path) if source.kind == "huggingface" and source.path else None
    task = resolve_task(
        plan.task, config=source.config, labels=class_labels(source, plan), pooling=pooling, folder=plan.base
    )
    check_source(source, plan, task)
    asked = plan
    if isinstance(task, CausalLM):
        task, plan = complete_task(task, source, plan.data), plan.for_language_model()
    before = None if cache is None else build_inputs(asked)
    with scratch_folder(plan.out) as work:
        steps = Steps(work, cache, versions(), progress)
        exported = export_reference(source, task, plan, steps)
        reference, samples = exported.folder, exported.samples
        if isinstance(task, ImageClassification):
            task = replace(task, preprocessing=samples.preprocessing)
        context = Context(
            target=plan.target,
            task=task,
            calibration=samples.calibration,
            reference=RunnerOnDemand(reference / graph.MODEL_NAME),
            seed=plan.seed,
            work_dir=work,
            progress=progress,
            checkpoint=exported.checkpoint,
        )
        extras, notes = _extras(source, source.tokenizer, samples, context, plan, work / "extras")
        if plan.budget.max_size_bytes is not None:
            other = _other_bytes(source, task, reference, extras, samples, plan, work)
            goal = _goal(plan.budget.max_size_bytes - other, graph_bytes(reference))
            context = replace(context, goal_bytes=goal)
        compressed, tokenizer = run_stages(exported, plan, context, steps, cache)
        if tokenizer is not None:
            samples = retokenize(exported, plan, tokenizer)
            extras, notes = _extras(source, tokenizer, samples, context, plan, work / "trimmed-extras")
        encoded = _encode(compressed, steps)
        packed = _package(source, task, compressed, encoded, extras, samples, plan, steps)
        artifact = Artifact(
            package=packed / READY / _package_name(source, plan),
            model=compressed / graph.MODEL_NAME,
            weights=compressed / graph.WEIGHTS_NAME,
            packed=encoded / PACKED_NAME,
            manifest=packed / MANIFEST_NAME,
            reference=reference / graph.MODEL_NAME,
        )
        progress.step("checks")
        findings = tuple(check_build(artifact, task, samples, context, plan, work, device))
        report = Report(
            target=plan.target.name,
            artifact=ArtifactInfo(path=str(plan.out / artifact.package.name), bytes=artifact.package.stat().st_size),
            steps=tuple(steps.records),
            findings=(*findings, _build_memory()),
            notes=(
                *samples.notes,
                *notes,
                *_calibration_notes(exported.samples, plan, reference),
                *_host_notes(findings),
            ),
            environment={"edgeslim": __version__, "onnxruntime": runtime_version()},
        )
        if not report.failed():
            (packed / READY / REPORT_NAME).write_text(report.to_json(), encoding="utf-8")
            if render is not None:
                (packed / READY / PAGE_NAME).write_text(render(report, artifact), encoding="utf-8")
            published = hash_folder(packed / READY)
            publish(packed / READY, plan.out)
            if cache is not None and device is None:
                remember(asked, cache, before, report, published)
    return report


def _encode(before: Path, steps: Steps) -> Path:
    """The folder of ``weights.esz``, which decodes to ``weights.bin``."""

    def make(folder: Path, scratch: Path) -> StepFacts:  # noqa: ARG001
        folder.mkdir()
        segments = pack_weights(before, folder / PACKED_NAME)
        packed_bytes = (folder / PACKED_NAME).stat().st_size
        return StepFacts(
            changed=segments,
            bytes=(before / graph.MODEL_NAME).stat().st_size + packed_bytes,
            metrics={
                "weights_bytes": float((before / graph.WEIGHTS_NAME).stat().st_size),
                "packed_bytes": float(packed_bytes),
            },
        )

    return steps.run("encode", (hash_folder(before),), make)


def _package_name(source: Source, plan: Plan) -> str:
    return source.name + (".aar" if plan.target.package.kind == "aar" else ".tar.gz")


def _extras(
    source: Source, tokenizer: Path | None, samples: Samples, context: Context, plan: Plan, work: Path
) -> tuple[tuple[tuple[str, Path], ...], list[str]]:
    """What a package holds besides the model, and notes: tokenizer, licence, what the float model said of some samples.

    Files that are made for it lie in the new folder ``work``.
    """
    work.mkdir()
    notes: list[str] = []
    extras = tokenizer_extras(tokenizer)
    if source.licence_file is not None:
        extras = (*extras, ("LICENSE", source.licence_file))
    recording = work / RECORDING_NAME
    if samples.judged and record_outputs(context.reference, samples.evaluation, context.task, recording):
        extras = (*extras, (RECORDING_NAME, recording))
    if tokenizer is not None:
        if unfit := write_tokenizer(tokenizer, work / TOKENIZER_FILE):
            notes.append(f"the loaders for devices take token ids, not texts: {unfit}")
        else:
            extras = (*extras, (f"tokenizer/{TOKENIZER_FILE}", work / TOKENIZER_FILE))
    if plan.target.package.kind == "cmake":
        extras = (
            *extras,
            *cmake_extras(source.name, plan.target.name, work / "cmake", chat=context.task.name == "causal-lm"),
        )
    if plan.target.package.kind == "swift":
        has_tokenizer = any(name.startswith("tokenizer/") for name, _ in extras)
        extras = (*extras, *swift_extras(source.name, has_tokenizer=has_tokenizer, scratch=work / "swift"))
    return extras, notes


def _package(
    source: Source,
    task: Task,
    before: Path,
    encoded: Path,
    extras: tuple[tuple[str, Path], ...],
    samples: Samples,
    plan: Plan,
    steps: Steps,
) -> Path:
    """The folder of the manifest, and in ``ready`` of all that is published."""
    model, weights, packed = before / graph.MODEL_NAME, before / graph.WEIGHTS_NAME, encoded / PACKED_NAME
    files = {graph.MODEL_NAME: model, graph.WEIGHTS_NAME: weights, PACKED_NAME: packed, **dict(extras)}
    facts = _facts(source, task, model, samples, plan)

    def make(folder: Path, scratch: Path) -> StepFacts:  # noqa: ARG001
        ready, manifest = folder / READY, folder / MANIFEST_NAME
        ready.mkdir(parents=True)
        write_manifest(manifest, facts, files)
        bundle = Bundle(name=source.name, model=model, packed=packed, manifest=manifest, extras=extras)
        package = ready / _package_name(source, plan)
        _write_package(bundle, plan, package)
        if plan.target.package.kind == "aar":
            coordinates = MavenCoordinates(
                group=plan.android.group,
                artifact=plan.android.artifact or source.name,
                version=plan.android.version,
                onnxruntime=plan.target.runtime.version,
            )
            write_maven(package, coordinates, ready / "maven")
        return StepFacts(changed=len(files) + 1, bytes=package.stat().st_size)

    inputs = ({name: file_entry(path) for name, path in files.items()}, facts, asdict(plan.android))
    return steps.run("package", inputs, make)


def _write_package(bundle: Bundle, plan: Plan, package: Path) -> None:
    if plan.target.package.kind == "aar":
        write_aar(bundle, AndroidSettings(min_sdk=plan.target.package.min_sdk), package)
    else:
        write_tarball(bundle, package)


def _other_bytes(
    source: Source,
    task: Task,
    reference: Path,
    extras: tuple[tuple[str, Path], ...],
    samples: Samples,
    plan: Plan,
    work: Path,
) -> int:
    """What a package takes besides graph and weights, from one with the float graph and no weights."""
    folder = work / "empty-package"
    folder.mkdir()
    model, packed, manifest = reference / graph.MODEL_NAME, folder / PACKED_NAME, folder / MANIFEST_NAME
    packed.touch()
    files = {graph.MODEL_NAME: model, graph.WEIGHTS_NAME: packed, PACKED_NAME: packed, **dict(extras)}
    write_manifest(manifest, _facts(source, task, model, samples, plan), files)
    bundle = Bundle(name=source.name, model=model, packed=packed, manifest=manifest, extras=extras)
    package = folder / _package_name(source, plan)
    _write_package(bundle, plan, package)
    return package.stat().st_size - deflated_bytes(model) + SPARE_BYTES


def _goal(room: int, float_bytes: int) -> int | None:
    """What stages that can shrink have to keep to, where a package leaves ``room`` for graph and coded weights.

    None where every int8 model fits, and where there is no room at all, which the check of the package says. Rounded
    down by a third of a percent, so that a longer name doesn't quantize anew.
    """
    if not 0 < room < SHRINKING_SHARE * float_bytes:
        return None
    step = 1 << max(0, room.bit_length() - 9)
    return room - room % step


def _facts(source: Source, task: Task, path: Path, samples: Samples, plan: Plan) -> Mapping[str, Any]:
    """What the manifest says besides files: nothing that depends on the machine or the hour."""
    spec = source.spec if source.kind == "module" or source.spec.startswith("pkg://") else Path(source.spec).name
    return {
        "name": source.name,
        "target": plan.target.name,
        "edgeslim": __version__,
        "source": {"model": spec, "licence": source.licence},
        "task": dict(task.manifest()),
        "signature": open_runner(path).signature(),
        "opsets": dict(sorted(graph.load_graph(path).graph.opset_imports.items())),
        "runtime": {
            "name": "onnxruntime",
            "version": plan.target.runtime.version,
            "providers": list(plan.target.runtime.providers),
            "threads": plan.target.runtime.threads,
            "opset_max": plan.target.runtime.opset_max,
            "loading": plan.target.runtime.loading,
        },
        "machine": {"isa": plan.target.machine.isa, "features": list(plan.target.machine.features)},
        "calibration": {
            "sha256": hash_batches(samples.calibration),
            "samples": plan.data.calibration_samples,
            "seed": plan.seed,
        },
        "min_sdk": plan.target.package.min_sdk if plan.target.package.kind == "aar" else None,
        "tokenizer": _tokenizer_facts(plan) if source.tokenizer else None,
        "recipe": [dict(table) for table in plan.recipe.tables],
    }


def _tokenizer_facts(plan: Plan) -> Mapping[str, Any]:
    facts = {"folder": "tokenizer", "max_length": plan.data.max_length}
    return {**facts, "pad": True} if plan.data.pad else facts


def _build_memory() -> Finding:
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)
    return Finding.at_most("build", "build_peak_memory_bytes", float(peak), "bytes", None, "host")


def _calibration_notes(samples: Samples, plan: Plan, reference: Path) -> tuple[str, ...]:
    if not samples.judged or not plan.recipe.graph:
        return ()
    return judge_calibration(samples.calibration, samples.evaluation, reference / graph.MODEL_NAME)


def _host_notes(findings: Sequence[Finding]) -> tuple[str, ...]:
    if any(finding.verdict == "unjudged" and finding.where == "device" for finding in findings):
        return ("no device was given: its budget is unjudged, and latency and memory are this host's",)
    return ()
