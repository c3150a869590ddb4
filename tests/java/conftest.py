"""Compiles the Java loader and the test programs beside it, once a session. Without a JDK these tests fail."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


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
def any_container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest golden container that decodes to something."""
    goldens = sorted((ROOT / "tests" / "golden").glob("*.esz"), key=lambda path: path.stat().st_size)
    return next(path for path in goldens if path.stat().st_size > 200)


@pytest.fixture(scope="session")
def run_java(build_java: ModuleType, java_classes: Path) -> Callable[..., str]:
    """Runs a test program and returns what it prints; its exit code must be 0."""

    def run(main: str, *args: object, stdin: bytes = b"") -> str:
        command = [build_java.jdk_tool("java"), "-Xmx512m", "-cp", str(java_classes), f"io.edgeslim.{main}"]
        result = subprocess.run([*command, *map(str, args)], input=stdin, capture_output=True, check=False, timeout=300)
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout.decode()

    return run
