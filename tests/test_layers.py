"""The layer table of docs/architecture.md, enforced: a module imports only from its own layer or from below.

Imports inside functions count like all others. Those under ``if TYPE_CHECKING`` are never run; they may point upwards
only where ``TYPES_ONLY`` gives a reason.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import edgeslim

LAYERS = {
    "errors": 0,
    "core": 0,
    "fields": 0,
    "target": 0,
    "units": 0,
    "replacing": 0,
    "cache": 0,
    "folders": 0,
    "numerics": 1,
    "sensitivity_inputs": 3,
    "html_sensitivity": 4,
    "metrics": 1,
    "algorithms": 1,
    "codec": 1,
    "source": 2,
    "task": 2,
    "signature": 2,
    "custom_task": 2,
    "pooling": 2,
    "export": 2,
    "tensor_files": 2,
    "module_paths": 2,
    "anatomy": 2,
    "comparison": 2,
    "session": 2,
    "loading": 2,
    "torch_graph": 2,
    "processes": 0,
    "stage_runs": 3,
    "stage_cost": 3,
    "datasets": 2,
    "decoders": 2,
    "language_task": 2,
    "graphs": 2,
    "quantizing": 2,
    "training": 2,
    "stages": 2,
    "checks": 2,
    "packaging": 2,
    "devices": 2,
    "toolbox": 2,
    "runtime": 2,
    "conversation": 3,
    "pipeline": 3,
    "final_checks": 3,
    "recheck": 3,
    "recheck_device": 3,
    "recheck_inputs": 3,
    "scaffold": 3,
    "recipe": 3,
    "reference": 3,
    "steps": 3,
    "explain": 3,
    "size_forecast": 3,
    "inputs": 3,
    "workspace": 3,
    "project": 3,
    "tune": 3,
    "cli": 4,
    "commands": 4,
    "report": 4,
    "html": 4,
    "html_charts": 4,
    "verdict": 4,
    "progress": 4,
    "__main__": 4,
    "__init__": 4,
}
GROUND, MATH, FACE = 0, 1, 4
HEAVY = {"torch", "transformers", "onnxruntime", "datasets", "optimum", "onnx_ir", "onnx", "numpy", "safetensors"}
TYPES_ONLY = {}
ROOT = Path(edgeslim.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


@dataclass(frozen=True)
class Import:
    """One import statement's target: the whole name of a module, and where it stands."""

    module: str
    line: int
    types_only: bool
    in_function: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in FILES}


def layer_of(module: str) -> int | None:
    _, *inner = module.split(".")
    return LAYERS.get(inner[0] if inner else "__init__")


def imports_of(tree: ast.AST, module: str) -> Iterator[Import]:
    yield from _walk(tree, module, types_only=False, in_function=False)


def _walk(node: ast.AST, module: str, *, types_only: bool, in_function: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        for name in _targets(node, module):
            yield Import(name, node.lineno, types_only, in_function)
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for child in node.body:
            yield from _walk(child, module, types_only=True, in_function=in_function)
        for child in node.orelse:
            yield from _walk(child, module, types_only=types_only, in_function=in_function)
        return
    inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, module, types_only=types_only, in_function=inside)


def _targets(node: ast.Import | ast.ImportFrom, module: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        package = module.split(".")
        package = package if (ROOT.parent.joinpath(*package) / "__init__.py").is_file() else package[:-1]
        base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
    for alias in node.names:
        inner = f"{base}.{alias.name}"
        yield inner if inner in MODULES else base


def read(path: Path) -> tuple[str, list[Import]]:
    module = module_name(path)
    return module, list(imports_of(ast.parse(path.read_text(encoding="utf-8")), module))


IMPORTS = dict(read(path) for path in FILES)
each_module = pytest.mark.parametrize("module", sorted(IMPORTS))


@each_module
def test_every_module_has_a_layer(module: str) -> None:
    assert layer_of(module) is not None, "give it a row in the table of docs/architecture.md, and one here"


def upward(module: str) -> list[Import]:
    mine = layer_of(module)
    assert mine is not None
    own = [item for item in IMPORTS[module] if item.module.split(".")[0] == "edgeslim" and item.module != "edgeslim"]
    return [item for item in own if (layer_of(item.module) or 0) > mine]


@each_module
def test_imports_point_downwards(module: str) -> None:
    wrong = [item for item in upward(module) if not item.types_only]
    assert not wrong, f"{module} is of layer {layer_of(module)}: {wrong}"


def test_types_point_upwards_only_for_a_reason() -> None:
    found = {(module, item.module) for module in IMPORTS for item in upward(module) if item.types_only}
    assert found == set(TYPES_ONLY)


@each_module
def test_the_package_itself_gives_lower_layers_nothing_but_its_version(module: str) -> None:
    """``edgeslim.build`` is the face: whoever stands below it and calls it closes a circle."""
    if layer_of(module) == FACE:
        return
    tree = ast.parse(next(path for path in FILES if module_name(path) == module).read_text(encoding="utf-8"))
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "edgeslim" and not node.level
        for alias in node.names
        if f"edgeslim.{alias.name}" not in MODULES
    }
    assert names <= {"__version__"}


def third_party(module: str) -> set[str]:
    roots = {item.module.split(".")[0] for item in IMPORTS[module] if not item.types_only}
    return roots - set(sys.stdlib_module_names) - {"edgeslim"}


@pytest.mark.parametrize("module", [name for name in sorted(IMPORTS) if layer_of(name) == GROUND])
def test_the_ground_is_the_standard_library(module: str) -> None:
    assert third_party(module) == set()


@pytest.mark.parametrize("module", [name for name in sorted(IMPORTS) if layer_of(name) == MATH])
def test_math_is_numpy_and_the_ground(module: str) -> None:
    assert third_party(module) <= {"numpy"}


@pytest.mark.parametrize("module", [name for name in sorted(IMPORTS) if layer_of(name) == FACE])
def test_the_face_loads_nothing_heavy_at_module_level(module: str) -> None:
    eager = [item for item in IMPORTS[module] if not item.types_only and not item.in_function]
    assert not [item for item in eager if item.module.split(".")[0] in HEAVY]
    # Nor by way of a module below it that does.
    inner = {item.module for item in eager if item.module in IMPORTS}
    assert inner <= {"edgeslim", *(name for name in IMPORTS if layer_of(name) in (GROUND, FACE))}


def inside(package: str) -> list[str]:
    return [name for name in sorted(IMPORTS) if name.startswith(f"edgeslim.{package}.")]


@pytest.mark.parametrize("module", inside("stages"))
def test_stages_never_import_each_other(module: str) -> None:
    assert not [item for item in IMPORTS[module] if item.module.startswith("edgeslim.stages")]


@pytest.mark.parametrize("module", inside("checks"))
def test_checks_never_import_stages(module: str) -> None:
    assert not [item for item in IMPORTS[module] if item.module.startswith("edgeslim.stages")]


def test_the_encoder_and_the_decoders_share_only_the_format_and_the_library() -> None:
    allowed = {
        "edgeslim.codec.format": set(),
        "edgeslim.codec.library": set(),
        "edgeslim.codec.encode": {"edgeslim.codec.format", "edgeslim.codec.library"},
        "edgeslim.codec.decode": {"edgeslim.codec.format", "edgeslim.codec.library"},
        "edgeslim.codec.loading": {"edgeslim.codec.format", "edgeslim.codec.decode"},
        "edgeslim.codec.reference": {"edgeslim.codec.format", "edgeslim.codec.reference_tables"},  # plain Python
        "edgeslim.codec.reference_tables": {"edgeslim.codec.format"},
    }
    found = {
        module: {item.module for item in IMPORTS[module] if item.module.startswith("edgeslim.codec")}
        for module in inside("codec")
    }
    assert found == {module: found.get(module, set()) & names for module, names in allowed.items()}


def test_this_test_sees_what_it_should() -> None:
    source = """
import edgeslim.cli
from edgeslim import pipeline, __version__
from edgeslim.codec import format as esz, decode_file
if TYPE_CHECKING:
    from edgeslim.project import Plan
def run():
    from edgeslim.stages.quantize_int8 import QuantizeInt8
    from ..report import print_report
    from . import accuracy
"""
    found = [
        (item.module, item.types_only, item.in_function) for item in imports_of(ast.parse(source), "edgeslim.checks.x")
    ]
    assert found == [
        ("edgeslim.cli", False, False),
        ("edgeslim.pipeline", False, False),
        ("edgeslim", False, False),
        ("edgeslim.codec.format", False, False),
        ("edgeslim.codec", False, False),
        ("edgeslim.project", True, False),
        ("edgeslim.stages.quantize_int8", False, True),
        ("edgeslim.report", False, True),
        ("edgeslim.checks.accuracy", False, True),
    ]
