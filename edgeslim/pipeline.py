"""The whole flow of a build, one way, in one file::

    source --> torch stages --> export --> graph stages --> model.onnx + weights.bin
                                                                   |
                        report <-- checks <-- package <-- weights.esz

Everything is made in a scratch folder beside the output. What passes its checks is renamed into place; on any failure
the output folder is left as it was.
"""

from __future__ import annotations

import gc
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeslim import __version__, codec, export, graph
from edgeslim.checks.accuracy import check_accuracy
from edgeslim.checks.latency import check_latency
from edgeslim.checks.lossless import check_lossless
from edgeslim.checks.operators import check_operators
from edgeslim.checks.size import check_size
from edgeslim.core import Artifact, ArtifactInfo, Context, Feed, Finding, Progress, Quiet, Report, StepRecord, Task
from edgeslim.data import load_tokenizer
from edgeslim.errors import BadInputError
from edgeslim.packaging.android import AndroidSettings, MavenCoordinates, write_aar, write_maven
from edgeslim.packaging.archive import apk_download_bytes
from edgeslim.packaging.bundle import Bundle, file_entry, tokenizer_extras, write_manifest
from edgeslim.packaging.tarball import write_tarball
from edgeslim.project import Plan
from edgeslim.samples import Samples, fixed_length_feed, load_samples
from edgeslim.session import open_runner, runtime_version
from edgeslim.source import Source, load_huggingface, load_own, resolve_source
from edgeslim.task import FeatureExtraction, TextClassification, is_classifier, pooling_from_folder, resolve_task

__all__ = ["run_build"]

COMPARED_SAMPLES = 8
LATENCY_LENGTH = 128
REPORT_NAME = "report.json"


def run_build(plan: Plan, progress: Progress | None = None) -> Report:
    """Builds ``plan`` and reports on it. The package is in ``plan.out`` if, and only if, no finding failed.

    Raises:
        EdgeslimError: something stopped the build before there was a package to check.
    """
    progress = progress or Quiet()
    source = resolve_source(plan.model, base=plan.base, tokenizer=plan.tokenizer, name=plan.name)
    pooling = pooling_from_folder(source.path) if source.kind == "huggingface" and source.path else None
    task = resolve_task(plan.task, config=source.config, pooling=pooling)
    with _scratch(plan.out) as work:
        steps = _Steps(progress)
        reference, samples = _export(source, task, plan, work, steps)
        context = Context(
            target=plan.target,
            task=task,
            calibration=samples.calibration,
            reference=open_runner(reference),
            seed=plan.seed,
            work_dir=work,
            progress=progress,
        )
        model = graph.load_graph(reference)
        for named in plan.recipe.graph:
            stage_dir = work / f"stage-{len(steps.records)}"
            stage_dir.mkdir()
            with steps.record(named.name) as record:
                result = named.stage.run(model, replace(context, work_dir=stage_dir))
                model = result.model
                record.changed, record.skipped, record.metrics = result.changed, result.skipped, result.metrics
                record.bytes = _model_bytes(model)
        artifact = _write(source, task, model, reference, plan, work, steps)
        progress.step("checks")
        findings = tuple(_check(artifact, task, samples, context, plan, work))
        notes = (*samples.notes, *_host_notes(findings))
        ready = work / "ready"
        report = Report(
            target=plan.target.name,
            artifact=ArtifactInfo(path=str(plan.out / artifact.package.name), bytes=artifact.package.stat().st_size),
            steps=tuple(steps.records),
            findings=(*findings, _build_memory()),
            notes=notes,
            environment={"edgeslim": __version__, "onnxruntime": runtime_version()},
        )
        if not report.failed():
            (ready / REPORT_NAME).write_text(report.to_json(), encoding="utf-8")
            _publish(ready, plan.out)
    return report


def _export(source: Source, task: Task, plan: Plan, work: Path, steps: _Steps) -> tuple[Path, Samples]:
    """The float graph of ``source``, compared with it, and the samples that fit its inputs."""
    folder, opset_max = work / "float", plan.target.runtime.opset_max

    def samples_for(names: Sequence[str], example: Feed | None) -> Samples:
        return load_samples(
            plan.data,
            base=plan.base,
            tokenizer=source.tokenizer,
            input_names=names,
            labels=_label_ids(source),
            example=example,
            seed=plan.seed,
        )

    with steps.record("export") as record:
        if source.kind == "onnx":
            assert source.path is not None
            samples = samples_for(open_runner(source.path).inputs, None)
            made = export.import_onnx(source.path, _compared(samples), folder=folder)
        elif source.kind == "module":
            own = load_own(source)
            example = {name: value.numpy() for name, value in own.inputs.items()}
            samples = samples_for(tuple(example), example)
            made = export.export_own(own, _compared(samples), opset_max=opset_max, folder=folder)
        else:
            classifier = isinstance(task, TextClassification) or (
                not isinstance(task, FeatureExtraction) and is_classifier(source.config)
            )
            module: Any = load_huggingface(source, classifier=classifier)
            given = load_tokenizer(source.tokenizer).model_input_names if source.tokenizer else ("input_ids",)
            names = export.module_inputs(module, given)
            samples = samples_for(names, None)
            made = export.export_huggingface(
                module, _compared(samples), classifier=classifier, opset_max=opset_max, folder=folder
            )
            del module
        gc.collect()
        record.changed = 1
        record.metrics = made.metrics
        record.bytes = sum(file.stat().st_size for file in folder.iterdir())
    return made.path, samples


def _write(
    source: Source, task: Task, model: ir.Model, reference: Path, plan: Plan, work: Path, steps: _Steps
) -> Artifact:
    """Writes graph, weights, packed weights, manifest and package; the package goes into ``work/ready``."""
    final, ready = work / "final", work / "ready"
    ready.mkdir()
    path, weights = graph.save_graph(model, final)
    packed, manifest = final / "weights.esz", final / "manifest.json"
    with steps.record("encode") as record:
        image = weights.read_bytes()
        segments = [
            codec.Segment(
                name=span.name,
                data=memoryview(image)[span.offset : span.offset + span.length],
                dtype=span.dtype,
                shape=span.shape,
            )
            for span in graph.weight_spans(path)
        ]
        codec.write_container(packed, segments)
        record.changed = len(segments)
        record.bytes = path.stat().st_size + packed.stat().st_size
        record.metrics = {"weights_bytes": float(len(image)), "packed_bytes": float(packed.stat().st_size)}
        del image, segments
    extras = tokenizer_extras(source.tokenizer)
    if source.licence_file is not None:
        extras = (*extras, ("LICENSE", source.licence_file))
    files = {"model.onnx": path, "weights.bin": weights, "weights.esz": packed, **dict(extras)}
    with steps.record("package") as record:
        write_manifest(manifest, _facts(source, task, model, path, plan), files)
        bundle = Bundle(name=source.name, model=path, packed=packed, manifest=manifest, extras=extras)
        if plan.target.package.kind == "aar":
            package = ready / f"{source.name}.aar"
            write_aar(bundle, AndroidSettings(min_sdk=plan.target.package.min_sdk), package)
            coordinates = MavenCoordinates(
                group=plan.android.group,
                artifact=plan.android.artifact or source.name,
                version=plan.android.version,
                onnxruntime=plan.target.runtime.version,
            )
            write_maven(package, coordinates, ready / "maven")
        else:
            package = write_tarball(bundle, ready / f"{source.name}.tar.gz")
        record.changed = len(files) + 1
        record.bytes = package.stat().st_size
    return Artifact(package=package, model=path, weights=weights, packed=packed, manifest=manifest, reference=reference)


def _check(
    artifact: Artifact, task: Task, samples: Samples, context: Context, plan: Plan, work: Path
) -> Iterator[Finding]:
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
    aar = plan.target.package.kind == "aar"
    yield from check_size(
        artifact,
        plan.budget,
        download_bytes=apk_download_bytes(artifact.package) if aar else artifact.package.stat().st_size,
        installed_bytes=artifact.package.stat().st_size
        + artifact.weights.stat().st_size
        + artifact.model.stat().st_size,
    )
    feed = fixed_length_feed(samples.evaluation, min(LATENCY_LENGTH, plan.data.max_length))
    yield from check_latency(artifact, feed, plan.target, plan.budget, progress=context.progress)


def _facts(source: Source, task: Task, model: ir.Model, path: Path, plan: Plan) -> Mapping[str, Any]:
    """What the manifest says besides files: nothing that depends on the machine or the hour."""
    spec = source.spec if source.kind == "module" or source.spec.startswith("pkg://") else Path(source.spec).name
    return {
        "name": source.name,
        "target": plan.target.name,
        "edgeslim": __version__,
        "source": {"model": spec, "licence": source.licence},
        "task": dict(task.manifest()),
        "signature": open_runner(path).signature(),
        "opsets": dict(sorted(model.graph.opset_imports.items())),
        "runtime": {
            "name": "onnxruntime",
            "version": plan.target.runtime.version,
            "providers": list(plan.target.runtime.providers),
            "threads": plan.target.runtime.threads,
        },
        "min_sdk": plan.target.package.min_sdk if plan.target.package.kind == "aar" else None,
        "tokenizer": {"folder": "tokenizer", "max_length": plan.data.max_length} if source.tokenizer else None,
        "recipe": [dict(table) for table in plan.recipe.tables],
    }


def _publish(ready: Path, out: Path) -> None:
    """Renames every finished file into ``out``, the package before the rest; other files there stay as they are."""
    files = [path for path in ready.rglob("*") if path.is_file()]
    files.sort(key=lambda path: (len(path.parts), path.name == REPORT_NAME, path))
    for path in files:
        place = out / path.relative_to(ready)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A folder on the output's own file system, so that finishing is a rename; removed whatever happens.

    Folders above the output that were made for it go again if they end up empty.
    """
    parent = out.absolute().parent
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        work = _make_scratch(out, parent)
        try:
            yield work
        except OSError as error:
            raise BadInputError(
                str(error.filename or work), f"{error.strerror or error}", expected="room and rights"
            ) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
    finally:
        for folder in made:
            with suppress(OSError):  # something lies in it
                folder.rmdir()


def _make_scratch(out: Path, parent: Path) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if out.exists() and not out.is_dir():
            raise BadInputError(str(out), "a file", expected="a folder for the build's output, new or old")
        if not os.access(out if out.exists() else parent, os.W_OK):
            raise PermissionError(13, "not writable")
        return Path(tempfile.mkdtemp(prefix=".edgeslim-", dir=parent))
    except OSError as error:
        raise BadInputError(
            str(out), f"can't write here: {error.strerror or error}", expected="a folder that can be written"
        ) from error


@dataclass(kw_only=True)
class _Open:
    """A step under way: what it will say of itself."""

    changed: int = 0
    bytes: int | None = None
    skipped: Mapping[str, str]
    metrics: Mapping[str, float]


class _Steps:
    """Keeps the record of each step as it ends."""

    def __init__(self, progress: Progress) -> None:
        self.records: list[StepRecord] = []
        self._progress = progress

    @contextmanager
    def record(self, name: str) -> Iterator[_Open]:
        self._progress.step(name)
        started, current = time.perf_counter(), _Open(skipped={}, metrics={})
        yield current
        self.records.append(
            StepRecord(
                name=name,
                seconds=round(time.perf_counter() - started, 3),
                changed=current.changed,
                bytes=current.bytes,
                skipped=dict(current.skipped),
                metrics=dict(current.metrics),
            )
        )


def _compared(samples: Samples) -> Sequence[Any]:
    return (*samples.calibration[:COMPARED_SAMPLES], *samples.padded)


def _label_ids(source: Source) -> Mapping[str, int] | None:
    table = source.config.get("label2id")
    if not isinstance(table, Mapping) or not all(isinstance(value, int) for value in table.values()):
        return None
    return {str(name): int(value) for name, value in table.items()}


def _model_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def _build_memory() -> Finding:
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)
    return Finding.at_most("build", "build_peak_memory_bytes", float(peak), "bytes", None, "host")


def _host_notes(findings: Sequence[Finding]) -> tuple[str, ...]:
    if any(finding.verdict == "unjudged" and finding.where == "device" for finding in findings):
        return ("no device was given: its budget is unjudged, and latency and memory are this host's",)
    return ()
