"""Compiles the Java loader and the test programs beside it, once a session. Without a JDK these tests fail."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "codec"))  # esz_builder, which puts containers together byte by byte


@pytest.fixture(scope="session")
def build_java() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_java", ROOT / "scripts" / "build_java.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def java_classes(build_java: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the classes of the loader and of the test programs."""
    classes = tmp_path_factory.mktemp("classes")
    build_java.compile_loader(classes)
    build_java.compile_java(sorted((ROOT / "tests" / "java").rglob("*.java")), classes, classpath=[classes])
    return classes


@pytest.fixture(scope="session")
def c_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C coder, from its sources as they are now: an installed library may be older."""
    output = tmp_path_factory.mktemp("esz") / "libesz.so"
    sources = [ROOT / "edgeslim" / "codec" / "c" / name for name in ("esz.c", "esz_encode.c")]
    command = ["gcc", "-std=c99", "-O2", "-fPIC", "-shared", "-DESZ_SHARED", *map(str, sources), "-o", str(output)]
    subprocess.run(command, check=True)
    return output


@pytest.fixture(scope="session")
def run_java(build_java: ModuleType, java_classes: Path) -> Callable[..., str]:
    """Runs a test program and returns what it prints; its exit code must be 0."""

    def run(main: str, *args: object, stdin: bytes = b"") -> str:
        command = [build_java.jdk_tool("java"), "-Xmx512m", "-cp", str(java_classes), f"io.edgeslim.{main}"]
        result = subprocess.run([*command, *map(str, args)], input=stdin, capture_output=True, check=False, timeout=300)
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout.decode()

    return run
