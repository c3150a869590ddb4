"""The Swift package: its structure, the syntax of its Swift, and its C sources. Nothing here can compile Swift."""

from __future__ import annotations

import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tree_sitter_swift
from tree_sitter import Language, Node, Parser

import edgeslim
from edgeslim.checks import latency
from edgeslim.packaging.bundle import Bundle, write_manifest
from edgeslim.packaging.swift_files import module_name, swift_extras
from edgeslim.packaging.tarball import write_tarball
from edgeslim.packaging.unpack import unpack_package
from edgeslim.runtime import SWIFT_DIR
from tests.needs import need

GOLDEN = Path(__file__).parents[1] / "golden"
NAME = "all-minilm-l6-v2"
MODULE = "AllMinilmL6V2"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked folder of a package around golden weights."""
    folder = tmp_path_factory.mktemp("swift")
    model, manifest, tokenizer = folder / "m.onnx", folder / "manifest.json", folder / "tokenizer.etk"
    model.write_bytes(b"graph")
    tokenizer.write_bytes(b"tokenizer")
    extras = (("tokenizer/tokenizer.etk", tokenizer),)
    extras += swift_extras(NAME, has_tokenizer=True, scratch=folder / "scratch")
    files = {"model.onnx": model, "weights.bin": GOLDEN / "mixed.bin", "weights.esz": GOLDEN / "mixed.esz"}
    facts = {
        "name": NAME,
        "target": "ios-arm64",
        "task": {"task": "feature-extraction"},
        "signature": {"inputs": [], "outputs": []},
        "runtime": {"version": "1.29.0"},
    }
    write_manifest(manifest, facts, {**files, **dict(extras)})
    bundle = Bundle(name=NAME, model=model, packed=GOLDEN / "mixed.esz", manifest=manifest, extras=extras)
    archive = write_tarball(bundle, folder / "package.tar.gz")
    unpacked = folder / "unpacked"
    unpacked.mkdir()
    assert unpack_package(archive, unpacked).manifest.name == NAME  # what `edgeslim check` reads
    with tarfile.open(archive) as content:
        content.extractall(folder / "app", filter="data")
    return folder / "app" / NAME


def parse(path: Path) -> Node:
    return Parser(Language(tree_sitter_swift.language())).parse(path.read_bytes()).root_node


def errors_of(node: Node) -> Iterator[str]:
    if node.type == "ERROR" or node.is_missing:
        yield f"line {node.start_point[0] + 1}: {node.text.decode() if node.text else ''}"
    for child in node.children:
        yield from errors_of(child)


def test_every_swift_file_parses(package: Path) -> None:
    files = sorted(package.rglob("*.swift"))
    assert {path.name for path in files} >= {"Package.swift", "Model.swift", "EdgeslimModel.swift", "Tokenizer.swift"}
    for path in files:
        assert not list(errors_of(parse(path))), path.name
        assert "@" + "NAME@" not in path.read_text(encoding="utf-8")


def test_the_parser_sees_mistakes(tmp_path: Path) -> None:
    source = tmp_path / "a.swift"
    for text in ("func f( { }", "let a = [1, 2", "final class A { func b() -> { } }"):
        source.write_text(text, encoding="utf-8")
        assert list(errors_of(parse(source))), text


def test_package_names_what_is_there(package: Path) -> None:
    text = (package / "Package.swift").read_text(encoding="utf-8")
    assert text.startswith("// swift-tools-version: 5.9\n")
    for path in re.findall(r'path: "([^"]+)"', text):
        assert (package / path).is_dir(), path
    resources = re.findall(r'\.copy\("([^"]+)"\)', text)
    assert resources == ["manifest.json", "model.onnx", "weights.esz", "tokenizer"]
    for name in [*resources, *re.search(r"exclude: \[(.+)\]", text)[1].replace('"', "").split(", ")]:  # type: ignore[index]
        assert (package / name).exists(), name
    assert re.findall(r'\.target\(\s*name: "(\w+)"', text) == ["CEdgeslim", "Edgeslim", MODULE]
    assert (package / "Sources" / MODULE / "Model.swift").is_file()
    assert {path.name for path in (package / "Sources" / "CEdgeslim" / "include").iterdir()} == {
        "esz.h",
        "esz_format.h",
        "esz_load.h",
        "esz_token.h",
    }


def test_build_for_ios(tiny_bert: Path, text_files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "PROBES", 1)
    out = str(tmp_path / "out")
    report = edgeslim.build(str(tiny_bert), target="ios-arm64", data=str(text_files.txt), out=out, use_cache=False)
    assert not report.failed()
    found = unpack_package(Path(report.artifact.path), tmp_path)
    assert found.manifest.target == "ios-arm64"
    assert {"Package.swift", "tokenizer/tokenizer.etk", "Sources/Edgeslim/Tokenizer.swift"} <= set(found.names)
    assert '.copy("tokenizer")' in (found.folder / "Package.swift").read_text(encoding="utf-8")


def test_package_without_a_tokenizer(tmp_path: Path) -> None:
    files = dict(swift_extras("cnn", has_tokenizer=False, scratch=tmp_path))
    assert '"tokenizer"' not in files["Package.swift"].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "module"), [(NAME, MODULE), ("4bit", "Model4bit"), ("a_b.c", "ABC"), ("tiny", "Tiny"), ("X-1", "X1")]
)
def test_module_names(name: str, module: str) -> None:
    assert module_name(name) == module


@pytest.mark.parametrize("compiler", ["gcc", "clang", "aarch64-linux-gnu-gcc"])
def test_c_sources_compile_as_the_package_lays_them(package: Path, compiler: str) -> None:
    need(compiler)
    folder = package / "Sources" / "CEdgeslim"
    sources = sorted(folder.glob("*.c"))
    assert [source.name for source in sources] == ["esz.c", "esz_load.c", "esz_token.c"]
    flags = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only")
    for source in sources:
        command = [compiler, *flags, "-I", folder / "include", source]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_swift_calls_only_what_c_declares(package: Path) -> None:
    """Names of functions and status values that Swift takes from the C headers."""
    headers = "".join(path.read_text() for path in (package / "Sources" / "CEdgeslim" / "include").iterdir())
    for path in SWIFT_DIR.glob("*.swift"):
        for name in re.findall(r"\b(?:esz|ESZ)_\w+", path.read_text(encoding="utf-8")):
            assert re.search(rf"\b{name}\b", headers), f"{path.name}: {name}"
