"""What a build reads, and so what its result depends on.

From these come the depfile of a build system, and the answer to "has anything changed?" without loading a model.
Inputs that can't all be known (own code, a metric of one's own) make a build always run.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from edgeslim.cache import Cache, hash_file, hash_parts
from edgeslim.core import Report
from edgeslim.errors import BadInputError
from edgeslim.fields import parse_fields
from edgeslim.project import PROJECT_FILE, Overrides, Plan, plan_build
from edgeslim.source import Source, resolve_source

__all__ = ["find_unchanged", "input_files", "remember", "versions", "why_changed", "write_depfile"]

_LIBRARIES = (
    "datasets",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "optimum-onnx",
    "tokenizers",
    "torch",
    "transformers",
)
_MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*/config.json", "LICEN[SC]E*", "README.md")
_STEP = "build"
_PARTS = {"files": "", "settings": "the setting ", "versions": "the version of "}


@cache
def versions() -> Mapping[str, str]:
    """The versions that a result depends on: libraries, Python, the CPU's class, and edgeslim's own sources."""
    found = {name: _version(name) for name in _LIBRARIES}
    root = Path(__file__).parent
    sources = sorted(path for path in root.rglob("*") if path.suffix in (".py", ".c", ".h", ".jar"))
    return {
        **found,
        "python": platform.python_version(),
        "cpu": _cpu_class(),
        "edgeslim": hash_parts({path.relative_to(root).as_posix(): hash_file(path) for path in sources}),
    }


def input_files(plan: Plan, source: Source) -> tuple[Path, ...]:
    """The files that the build reads, in a fixed order."""
    found: list[Path] = [plan.base / PROJECT_FILE, *plan.files]
    found += [plan.base / name for name in (plan.data.file, plan.data.calibration, plan.data.evaluation) if name]
    folders = [source.tokenizer]
    if source.kind == "onnx" and source.path is not None:
        found += [source.path, *_external_files(source.path)]
    elif source.kind == "huggingface":
        folders.append(source.path)
    for folder in folders:
        found += [path for pattern in _MODEL_FILES if folder is not None for path in folder.glob(pattern)]
    if source.kind == "module":
        module = plan.base / (source.spec.partition(":")[0].replace(".", "/") + ".py")
        found.append(module)
    return tuple(sorted({path.absolute() for path in found if path.is_file()}))


def find_unchanged(plan: Plan, store: Cache) -> Report | None:
    """The report of an earlier build of the same ``plan`` whose output still lies there untouched, or ``None``."""
    inputs = _build_inputs(plan)
    if inputs is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        facts = store.fetch(hash_parts(_STEP, inputs), Path(folder) / "entry")
    if facts is None:
        return None
    published, report = facts.get("published"), facts.get("report")
    if not isinstance(published, Mapping) or not isinstance(report, Mapping):
        return None
    for name, digest in published.items():
        path = plan.out / name
        if not path.is_file() or hash_file(path) != digest:
            return None
    try:
        return parse_fields(Report, report, "cache")
    except BadInputError:
        return None


def remember(plan: Plan, store: Cache, report: Report, published: Mapping[str, str], empty: Path) -> None:
    """Keeps ``report`` for ``find_unchanged``; ``published`` are the hashes of the files in ``plan.out``."""
    inputs = _build_inputs(plan)
    if inputs is not None:
        empty.mkdir()
        facts = {"published": dict(published), "report": report.to_dict()}
        for key, step, kept in ((hash_parts(_STEP, inputs), _STEP, facts), (_last_key(plan), "last inputs", inputs)):
            store.remove(key)
            store.store(key, step, empty, kept)


def why_changed(plan: Plan, store: Cache) -> tuple[str, ...]:
    """What differs from the last build into the same output folder, in words; empty if nothing does."""
    now = _build_inputs(plan)
    if now is None:
        return ("own code may depend on anything: it always runs",)
    with tempfile.TemporaryDirectory() as folder:
        last = store.fetch(_last_key(plan), Path(folder) / "entry")
    if last is None:
        return (f"no earlier build into {plan.out} is known",)
    reasons = []
    for part, table in now.items():
        earlier = last.get(part)
        before = earlier if isinstance(earlier, Mapping) else {}
        for name in sorted({*table, *before}):
            if json.dumps(table.get(name), sort_keys=True) != json.dumps(before.get(name), sort_keys=True):
                state = "is new" if name not in before else "is gone" if name not in table else "changed"
                reasons.append(f"{_PARTS[part]}{name} {state}")
    return tuple(reasons)


def write_depfile(path: Path, artifact: str, overrides: Overrides) -> None:
    """Writes ``artifact: inputs…`` as Make and Ninja read it.

    Raises:
        BadInputError: the file can't be written.
    """
    plan = plan_build(overrides)
    source = resolve_source(plan.model, base=plan.base, tokenizer=plan.tokenizer, name=plan.name)
    names = [_escape(str(item)) for item in input_files(plan, source)]
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(f"{_escape(artifact)}: " + " \\\n  ".join(names) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise BadInputError("--depfile", f"can't write {path}: {error.strerror}", expected="a writable file") from error


def _escape(name: str) -> str:
    return name.replace("\\", "\\\\").replace(" ", "\\ ").replace("#", "\\#").replace("$", "$$")


def _build_inputs(plan: Plan) -> dict[str, dict[str, Any]] | None:
    """All that the result depends on, or ``None`` where that can't be known."""
    if plan.task is not None and ":" in plan.task:
        return None
    source = resolve_source(plan.model, base=plan.base, tokenizer=plan.tokenizer, name=plan.name)
    if source.kind == "module":
        return None
    settings: dict[str, Any] = {
        "target": asdict(plan.target),
        "recipe": [dict(table) for table in plan.recipe.tables],
        "data": asdict(plan.data),
        "budget": asdict(plan.budget),
        "android": asdict(plan.android),
        "task": plan.task,
        "name": source.name,
        "seed": plan.seed,
        "out": str(plan.out.absolute()),
    }
    files = {str(path): hash_file(path) for path in input_files(plan, source)}
    return {"files": files, "settings": settings, "versions": dict(versions())}


def _last_key(plan: Plan) -> str:
    return hash_parts("last", str(plan.out.absolute()))


def _external_files(path: Path) -> tuple[Path, ...]:
    """The external weights that an ONNX file names, as far as they lie in its folder."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:
        return ()
    names = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    return tuple(path.parent / name for name in sorted(names) if (path.parent / name).is_file())


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu_class() -> str:
    """Machine and instruction sets: float kernels differ between them in the last bit."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine()
    flags = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    known = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")
    return " ".join([platform.machine(), *(flag for flag in known if flag in flags.split())])
