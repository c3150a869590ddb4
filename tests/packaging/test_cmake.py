"""CMake packages and edgeslim_add_model(): found, cross-compiled, built again when an input changed, run under QEMU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeslim
from edgeslim.checks import latency
from edgeslim.devices.device import open_device
from edgeslim.devices.runtimes import runtime_headers, runtime_library
from edgeslim.packaging.cmake_files import CMAKE_DIR, cmake_extras, loader_sources
from edgeslim.packaging.tokenizer_file import write_tokenizer
from edgeslim.packaging.unpack import unpack_package
from edgeslim.session import open_runner
from tests.devices.conftest import TRIPLETS, need, need_machine
from tests.tokenizing.token_tables import unicode_part

MAIN = Path(__file__).parents[1] / "runtime" / "loader_main.c"
TOOLCHAINS = Path(__file__).parents[2] / "samples" / "iot_firmware" / "toolchains"
BOARD = 'extends = "linux-armhf"\nname = "board"\nsummary = "a board"\n[package]\nkind = "cmake"\n'
PROJECT = """\
cmake_minimum_required(VERSION 3.21)
project(firmware LANGUAGES C)
find_package({package} CONFIG REQUIRED)
{model}
add_executable(firmware "{main}")
target_link_libraries(firmware PRIVATE {target})
get_target_property(folder {target} EDGESLIM_FOLDER)
file(GENERATE OUTPUT folder.txt CONTENT "${{folder}}")
"""
VALUES = np.linspace(-1, 1, 16).astype(np.float32)


def configure(source: Path, build: Path, isa: Any, *definitions: str) -> None:
    toolchain = TOOLCHAINS / {"armhf": "armhf.cmake", "aarch64": "arm64.cmake"}[isa]
    words = ["cmake", "-G", "Ninja", "-S", str(source), "-B", str(build), f"-DCMAKE_TOOLCHAIN_FILE={toolchain}"]
    library = f"-DONNXRUNTIME_LIBRARY={runtime_library(isa, 'glibc')}"
    words += [library, f"-DONNXRUNTIME_INCLUDE_DIR={runtime_headers()}", *definitions]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def make(build: Path, cache: Path | None = None) -> str:
    """What Ninja says that it did; ``cache`` is edgeslim's."""
    environment = {**os.environ, "PYTHONPATH": str(Path(edgeslim.__file__).parents[1])}
    environment |= {} if cache is None else {"EDGESLIM_CACHE": str(cache)}
    done = subprocess.run(
        ["cmake", "--build", str(build)], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(program: Path, model: Path, machine: str, isa: Any, *words: str) -> np.ndarray:
    with open_device(f"qemu:{machine}", isa) as device:
        device.push({name: model / name for name in ("manifest.json", "model.onnx", "weights.esz")})
        device.push({"firmware": program})
        library = runtime_library(isa, "glibc")  # each release calls itself by one of the two names
        device.push({"libonnxruntime.so.1": library, "libonnxruntime.so": library})
        told = device.run(["firmware", ".", "0", *words], timeout_s=60)
    assert told.status == 0, told.stderr
    return np.array([float(line) for line in told.stdout.split()])


def expected(model: Path) -> np.ndarray:
    edgeslim.load(model)
    runner = open_runner(model / "model.onnx")
    values: np.ndarray = next(iter(runner({next(iter(runner.inputs)): VALUES[None]}).values()))[0]
    return values


def test_the_loader_brings_what_it_includes_and_no_encoder(tmp_path: Path) -> None:
    names = {path.name for path in loader_sources()}
    assert {"edgeslim.c", "edgeslim.h", "esz_load.c", "esz.c", "esz_fast.h", "esz_table.h"} <= names
    assert not {name for name in names if "encode" in name or "choose" in name}
    extras = dict(cmake_extras("a-model", "a-board", tmp_path / "scratch"))
    assert "@" not in extras["cmake/a-modelConfig.cmake"].read_text(encoding="utf-8")


USE = """\
#include "edgeslim.h"
int main(int count, char **words) {
    edgeslim_model *model;
    edgeslim_error error;
    float vector[9];
    size_t size;
    if (count < 3 || edgeslim_open(words[1], 0, &model, &error)) return 1;
    edgeslim_embed(model, words[2], vector, 9, &size, &error);
    edgeslim_run(model, 0, 0, 0, 0, &error);
    edgeslim_close(model);
    return edgeslim_label(model, 0) != 0;
}
"""


SIZES = """\
cmake_minimum_required(VERSION 3.21)
project(sizes LANGUAGES C)
find_package(Edgeslim CONFIG REQUIRED)
add_executable(nothing nothing.c)
add_executable(use use.c)
target_link_libraries(use PRIVATE edgeslim::loader)
target_link_options(use PRIVATE -Wl,--gc-sections -Wl,--allow-shlib-undefined)
"""


@pytest.mark.parametrize("isa", ["armhf", "aarch64"])
def test_loader_and_tables_take_64_kilobytes(isa: Any, tiny_bert: Path, tmp_path: Path) -> None:
    """What a program grows by, built as CMake builds it, with all that it links but ONNX Runtime and libc; and the
    tables of Unicode that a packed vocabulary of BERT brings."""
    need("cmake", "ninja")
    need_machine(isa)
    files = {"CMakeLists.txt": SIZES, "use.c": USE, "nothing.c": "int main(void) { return 0; }\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    options = ("-DCMAKE_BUILD_TYPE=Release", f"-DEdgeslim_DIR={CMAKE_DIR}", "-DEDGESLIM_COMMAND=unused")
    configure(tmp_path, tmp_path / "build", isa, *options)
    make(tmp_path / "build")
    growth = loaded_bytes(isa, tmp_path / "build" / "use") - loaded_bytes(isa, tmp_path / "build" / "nothing")
    assert write_tokenizer(tiny_bert, tmp_path / "tokenizer.etk") == ""
    tables = len(unicode_part((tmp_path / "tokenizer.etk").read_bytes()))
    assert growth > 16_000
    assert tables > 16_000
    assert growth + tables <= 64_000


def loaded_bytes(isa: Any, program: Path) -> int:
    """Code, constants and data of a program."""
    told = subprocess.run([f"{TRIPLETS[isa]}-size", program], check=True, capture_output=True, text=True).stdout
    return sum(map(int, told.splitlines()[1].split()[:2]))


def test_a_package_is_found_and_runs(mlp_onnx: Path, mlp_samples: Path, tmp_path: Path) -> None:
    need("cmake", "ninja")
    need_machine("armhf")
    (tmp_path / "board.toml").write_text(BOARD, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "PROBES", 1)
        built = edgeslim.build(
            str(mlp_onnx),
            target=str(tmp_path / "board.toml"),
            data=str(mlp_samples),
            out=str(tmp_path / "out"),
            use_cache=False,
        )
    assert built.failed() == ()
    model = unpack_package(Path(built.artifact.path), tmp_path).folder
    project = tmp_path / "project"
    project.mkdir()
    text = PROJECT.format(package="mlp", model="", main=MAIN, target="mlp::model")
    (project / "CMakeLists.txt").write_text(text, encoding="utf-8")
    configure(project, tmp_path / "build", "armhf", f"-Dmlp_DIR={model / 'cmake'}")
    make(tmp_path / "build")
    assert (tmp_path / "build" / "folder.txt").read_text() == str(model)
    there = run(tmp_path / "build" / "firmware", model, "cortex-a7", "armhf", "floats", *map(str, VALUES))
    np.testing.assert_allclose(there, expected(model), rtol=1e-4, atol=1e-5)


def test_models_are_built_with_the_firmware(mlp_onnx: Path, mlp_samples: Path, tmp_path: Path) -> None:
    need("cmake", "ninja")
    need_machine("aarch64")
    project, build = tmp_path / "my project", tmp_path / "my build"
    project.mkdir()
    shutil.copy(mlp_onnx, project / "mlp.onnx")
    shutil.copy(mlp_samples, project / "samples.npz")
    model = "edgeslim_add_model(net MODEL mlp.onnx TARGET linux-arm64 DATA samples.npz MAX_DROP 0.05)"
    text = PROJECT.format(package="Edgeslim", model=model, main=MAIN, target="net")
    (project / "CMakeLists.txt").write_text(text, encoding="utf-8")
    command = f"-DEDGESLIM_COMMAND={sys.executable};-m;edgeslim"
    configure(project, build, "aarch64", f"-DEdgeslim_DIR={CMAKE_DIR}", command)
    assert "edgeslim build net" in make(build)
    assert "no work to do" in make(build)
    folder = Path((build / "folder.txt").read_text())
    first = (folder / "weights.esz").read_bytes()
    time.sleep(0.02)
    (project / "samples.npz").touch()  # newer, and the same
    assert "edgeslim build net" in make(build)
    assert (folder / "weights.esz").read_bytes() == first
    assert "no work to do" in make(build)
    np.savez(project / "samples.npz", x=np.random.default_rng(1).normal(0, 3, (40, 16)).astype(np.float32))
    make(build)
    assert (folder / "weights.esz").read_bytes() != first
    assert "no work to do" in make(build)
    there = run(build / "firmware", folder, "cortex-a53", "aarch64", "floats", *map(str, VALUES))
    np.testing.assert_allclose(there, expected(folder), rtol=1e-4, atol=1e-5)
