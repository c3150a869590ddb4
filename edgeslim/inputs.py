"""What a build reads, and so what its result depends on.

From these come the depfile of a build system, and the answer to "has anything changed?" without loading a model.
Inputs that can't all be known (own code, a metric of one's own) make a build always run.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from edgeslim.cache import Cache, hash_file, hash_parts
from edgeslim.core import ArtifactInfo, Report
from edgeslim.errors import BadInputError, MissingToolError
from edgeslim.fields import parse_fields
from edgeslim.project import PROJECT_FILE, Overrides, Plan, plan_build
from edgeslim.source import Source, resolve_source
from edgeslim.target import profile_folder
from edgeslim.workspace import sweep

__all__ = [
    "BuildInputs",
    "build_inputs",
    "find_unchanged",
    "hash_model",
    "input_files",
    "recipe_files",
    "remember",
    "versions",
    "why_changed",
    "write_depfile",
]

BuildInputs = dict[str, dict[str, Any]]
"""All that a result depends on: hashes of ``files`` by path, ``settings``, and ``versions``."""

_LIBRARIES = (
    "accelerate",
    "datasets",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "optimum-onnx",
    "pillow",
    "tokenizers",
    "torch",
    "transformers",
)
_BESIDE = ("config.json", "LICEN[SC]E*", "README.md")
_TOKENIZER = ("*.json", "*.txt", "*.model", "*.bpe", "*.tiktoken")
_FOLDER = (*_TOKENIZER, *_BESIDE, "*.safetensors", "*/config.json", "*/*/config.json")
_SOURCES = (".py", ".c", ".h", ".jar", ".cmake", ".in")
_STEP = "build"
_RECIPE_FILES = ("corpus", "outside")
_PARTS = {"files": "", "settings": "the setting ", "versions": "the version of "}


@cache
def versions() -> Mapping[str, str]:
    """The versions that a result depends on: libraries, Python, the CPU's class, and edgeslim's own sources."""
    found = {name: _version(name) for name in _LIBRARIES}
    root = Path(__file__).parent
    sources = sorted(path for path in root.rglob("*") if path.suffix in _SOURCES)
    kernels = sorted((profile_folder() / "runtimes").glob("*.json"))
    return {
        **found,
        "python": platform.python_version(),
        "cpu": _cpu_class(),
        "edgeslim": hash_parts({path.relative_to(root).as_posix(): hash_file(path) for path in sources}),
        "coder": _hash_coder(),
        "kernels": hash_parts({path.name: hash_file(path) for path in kernels}),
    }


def input_files(plan: Plan, source: Source) -> tuple[Path, ...]:
    """The files that the build reads, in a fixed order."""
    found: list[Path] = [plan.base / PROJECT_FILE, *plan.files, *_model_files(source), *_own_files(plan, source)]
    for name in (plan.data.file, plan.data.calibration, plan.data.evaluation, plan.data.training):
        if name is not None:
            found += [plan.base / name, *_below(plan.base / name)]
    found += recipe_files(plan)
    if source.tokenizer is not None:
        found += _matching(source.tokenizer, _TOKENIZER)
    return tuple(sorted({path.absolute() for path in found if path.is_file()}))


def recipe_files(plan: Plan) -> tuple[Path, ...]:
    """The files that the recipe's steps name."""
    found = [table.get(key) for table in plan.recipe.tables for key in _RECIPE_FILES]
    return tuple(plan.base / name for name in found if isinstance(name, str))


def hash_model(source: Source) -> dict[str, str]:
    """The hashes of the model's own files, by their names in its folder: what its export depends on."""
    folder = source.path if source.path is None or source.path.is_dir() else source.path.parent
    paths = sorted(path for path in _model_files(source) if path.is_file())
    return {str(path.relative_to(folder) if folder else path): hash_file(path) for path in paths}


def build_inputs(plan: Plan) -> BuildInputs | None:
    """All that the result depends on, or ``None`` where that can't be known: own code may read anything.

    Raises:
        BadInputError: there is no such model.
    """
    if plan.task is not None and ":" in plan.task:
        return None
    source = resolve_source(plan.model, base=plan.base, tokenizer=plan.tokenizer, name=plan.name)
    if source.kind == "module":
        return None
    settings: dict[str, Any] = {
        "target": asdict(plan.target),
        "recipe": [dict(table) for table in plan.recipe.tables],
        "data": asdict(plan.data),
        "preprocessing": asdict(plan.preprocessing),
        "labels": list(plan.labels),
        "export": asdict(plan.export),
        "budget": asdict(plan.budget),
        "android": asdict(plan.android),
        "task": plan.task,
        "name": source.name,
        "seed": plan.seed,
        "out": str(plan.out.absolute()),
    }
    files = {str(path): hash_file(path) for path in input_files(plan, source)}
    return {"files": files, "settings": settings, "versions": dict(versions())}


def find_unchanged(plan: Plan, store: Cache) -> Report | None:
    """The report of an earlier build of the same ``plan`` whose output still lies there untouched, or ``None``."""
    inputs = build_inputs(plan)
    facts = None if inputs is None else store.read(hash_parts(_STEP, inputs))
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
        found = parse_fields(Report, report, "cache")
    except BadInputError:
        return None
    # A kill may have come after the last rename, and then this is the next build.
    sweep(plan.out)
    store.sweep()
    # The earlier build may have been started elsewhere, where a relative path was another.
    place = plan.out / Path(found.artifact.path).name
    return replace(found, artifact=ArtifactInfo(path=str(place), bytes=found.artifact.bytes))


def remember(
    plan: Plan, store: Cache, inputs: BuildInputs | None, report: Report, published: Mapping[str, str]
) -> None:
    """Keeps ``report`` for ``find_unchanged``.

    ``inputs`` are those of before the build: if they have changed since, nobody knows which ones it read, and nothing
    is kept. ``published`` are the hashes of the files in ``plan.out``.
    """
    with suppress(OSError, BadInputError):  # an input is gone
        if inputs is not None and build_inputs(plan) == inputs:
            facts = {"published": dict(published), "report": report.to_dict()}
            store.store(hash_parts(_STEP, inputs), _STEP, None, facts, replace=True)
            store.store(_last_key(plan), "last inputs", None, inputs, replace=True)


def why_changed(plan: Plan, store: Cache) -> tuple[str, ...]:
    """What differs from the last build into the same output folder, in words; empty if nothing does."""
    now = build_inputs(plan)
    if now is None:
        return ("own code may depend on anything: it always runs",)
    last = store.read(_last_key(plan))
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
    """Writes ``artifact: inputs…`` as Make and Ninja read it, and an empty rule for each input.

    The empty rules keep Make going after an input was deleted.

    Raises:
        BadInputError: the file can't be written.
    """
    plan = plan_build(overrides, load_stages=False)
    source = resolve_source(plan.model, base=plan.base, tokenizer=plan.tokenizer, name=plan.name)
    names = [_escape(str(item)) for item in input_files(plan, source)]
    rules = [f"{_escape(artifact)}: " + " \\\n  ".join(names), *(f"{name}:" for name in names)]
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text("\n\n".join(rules) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise BadInputError("--depfile", f"can't write {path}: {error.strerror}", expected="a writable file") from error


def _escape(name: str) -> str:
    """A file's name in a rule: backslashes count only before what they escape."""
    return re.sub(r"(\\*)([ #:])", lambda match: 2 * match[1] + "\\" + match[2], name).replace("$", "$$")


def _model_files(source: Source) -> Iterator[Path]:
    """The files of a model: a Hugging Face folder's, or an ONNX file, its external weights, and what lies beside it."""
    if source.path is None or source.kind == "module":
        return
    if source.kind == "gguf":
        yield source.path
        yield from _matching(source.path.parent, ("LICEN[SC]E*",))
    elif source.kind == "onnx":
        yield source.path
        yield from _external_files(source.path)
        yield from _matching(source.path.parent, _BESIDE)
    else:
        yield from _matching(source.path, _FOLDER)


def _own_files(plan: Plan, source: Source) -> Iterator[Path]:
    """The modules of own code: those that are named, and those of the project's folder that they have loaded."""
    specs = [source.spec] if source.kind == "module" else []
    specs += [plan.task] if plan.task is not None and ":" in plan.task else []
    base = plan.base.resolve()
    for spec in specs:
        stem = plan.base / spec.partition(":")[0].replace(".", "/")
        yield from (stem.with_name(stem.name + ".py"), stem / "__init__.py")
    if specs:
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None)
            if isinstance(file, str) and Path(file).is_relative_to(base) and "site-packages" not in file:
                yield Path(file)


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return [path for pattern in patterns for path in folder.glob(pattern)]


def _below(folder: Path) -> Iterator[Path]:
    """All in a folder of samples; nothing for a file."""
    return folder.rglob("*") if folder.is_dir() else iter(())


def _last_key(plan: Plan) -> str:
    return hash_parts("last", str(plan.out.absolute()))


def _external_files(path: Path) -> tuple[Path, ...]:
    """The external weights that an ONNX file names; what leaves its folder is refused later, and never read."""
    import onnx  # not edgeslim.graphs.graph: onnx_ir takes half a second to import

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # protobuf raises many kinds; the export words them
        return ()
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    names: set[str] = set()
    while graphs or nodes:
        tensors = []
        if graphs:
            graph = graphs.pop()
            tensors += graph.initializer
            nodes += graph.node
        for attribute in nodes.pop().attribute if nodes else ():
            tensors += (attribute.t, *attribute.tensors)
            graphs += (attribute.g, *attribute.graphs) if attribute.graphs or attribute.HasField("g") else ()
        names |= {item.value for tensor in tensors for item in tensor.external_data if item.key == "location"}
    folder = path.parent
    found = (folder / name for name in sorted(names))
    return tuple(file for file in found if file.resolve().is_relative_to(folder.resolve()))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _hash_coder() -> str:
    """The library that really codes: an editable install may go on loading an old one."""
    from edgeslim.codec.library import find_library

    try:
        return hash_file(find_library())
    except MissingToolError:
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
