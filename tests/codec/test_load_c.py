"""The C loader: a file, a buffer, tensor by tensor, under sanitizers; hostile files; memory; full disks."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from esz_compile import SOURCES, compile_c

from edgeslim.codec import Segment, write_container
from edgeslim.runtime import C_DIR
from tests.needs import need

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.esz"))
SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
INCLUDES = ("-I", str(SOURCES), "-I", str(C_DIR))
FILES = (HERE / "harness_load.c", C_DIR / "esz_load.c", SOURCES / "esz.c")
OK, FOUND, FORMAT, SIZE, MEMORY, FULL, SYSTEM, STOPPED = range(8)


class Outcome:
    """What the harness said."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        assert done.returncode == 0, done.stderr.decode()
        self.data = done.stdout
        numbers = [int(word) for word in done.stderr.decode().splitlines()[-1].split()]
        self.status, self.format, self.errno, self.offset, self.segment, self.block, self.kib = numbers


Run = Callable[..., Outcome]


def runner(program: Path) -> Run:
    def run(*arguments: object, **more: object) -> Outcome:
        return Outcome(subprocess.run([program, *map(str, arguments)], capture_output=True, check=False, **more))  # type: ignore[call-overload]

    return run


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(tmp_path_factory.mktemp("load") / "asan", *SANITIZERS, *INCLUDES, *FILES)


@pytest.fixture(scope="module")
def run(program: Path) -> Run:
    return runner(program)


@pytest.mark.parametrize("name", NAMES)
def test_every_golden_container_in_all_three_ways(name: str, run: Run, tmp_path: Path) -> None:
    container, image = GOLDEN / f"{name}.esz", (GOLDEN / f"{name}.bin").read_bytes()
    assert run("size", container).data == str(len(image)).encode()
    for way in ("into", "tensors"):
        found = run(way, container)
        assert (found.status, found.data) == (OK, image)
    out = tmp_path / "weights.bin"
    assert run("file", container, out, len(image)).status == OK
    assert out.read_bytes() == image
    before = out.stat().st_mtime_ns
    assert run("file", container, out, "any").status == FOUND
    assert out.stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["weights.bin"]


@pytest.mark.parametrize("change", [b"", b"?", None])
def test_a_wrong_file_is_replaced(change: bytes | None, run: Run, tmp_path: Path) -> None:
    image = (GOLDEN / "mixed.bin").read_bytes()
    out = tmp_path / "weights.bin"
    out.write_bytes(image[:-1] + bytes([image[-1] ^ 1]) if change is None else change)
    assert run("file", GOLDEN / "mixed.esz", out, len(image)).status == OK
    assert out.read_bytes() == image


def test_another_size_than_expected(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "weights.bin"
    out.write_bytes(b"as it was")
    assert run("file", GOLDEN / "mixed.esz", out, 17).status == SIZE
    assert out.read_bytes() == b"as it was"


def test_a_caller_may_stop(run: Run) -> None:
    assert run("stop", GOLDEN / "mixed.esz", 0).status == STOPPED
    assert run("stop", GOLDEN / "mixed.esz", 2).status == STOPPED
    assert run("stop", GOLDEN / "mixed.esz", 99).status == OK


def test_what_the_system_refuses(run: Run, tmp_path: Path) -> None:
    assert run("into", tmp_path / "none").status == SYSTEM
    assert run("into", tmp_path).status == SYSTEM
    found = run("file", GOLDEN / "mixed.esz", tmp_path / "no folder" / "weights.bin", "any")
    assert (found.status, found.errno) == (SYSTEM, 2)
    (tmp_path / "weights.bin").mkdir()
    assert run("file", GOLDEN / "mixed.esz", tmp_path / "weights.bin", "any").status == SYSTEM
    assert [path.name for path in tmp_path.iterdir()] == ["weights.bin"]


def test_a_full_disk_leaves_nothing(run: Run, tmp_path: Path) -> None:
    """A limit of the system's on a file's size stands for it: the call fails in the same place."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    found = run("file", GOLDEN / "mixed.esz", tmp_path / "weights.bin", "any", preexec_fn=limit)
    assert found.status == FULL
    assert not list(tmp_path.iterdir())


def test_damage_is_named_by_its_place(run: Run, tmp_path: Path) -> None:
    whole = (GOLDEN / "multi_block.esz").read_bytes()
    container = tmp_path / "damaged.esz"
    container.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    found = run("into", container)
    assert found.status == FORMAT
    assert found.segment == 1  # the last one
    container.write_bytes(whole[:50])
    assert (run("into", container).status, run("into", container).segment) == (FORMAT, -1)


@pytest.mark.parametrize("name", ["mixed", "sparse", "codebooks", "float_planes", "row_classes", "single_symbol"])
def test_hostile_containers_do_no_harm(name: str, program: Path, tmp_path: Path) -> None:
    command = [program, "fuzz", GOLDEN / f"{name}.esz", "150", tmp_path / "weights.bin"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    words = done.stderr.split()
    assert int(words[1]) > 75
    assert not list(tmp_path.iterdir())


def test_memory_beside_the_weights(tmp_path: Path) -> None:
    """The kernel's high-water mark: a file takes a block or two, a buffer itself and the same."""
    run = runner(compile_c(tmp_path / "plain", "-O2", *INCLUDES, *FILES))
    values = np.clip(np.round(np.random.default_rng(1).laplace(0, 20, 8_000_000)), -127, 127).astype(np.int8)
    write_container(tmp_path / "weights.esz", [Segment("w", values, "int8", values.shape)], block_bytes=65_536)
    file, memory = run("file", tmp_path / "weights.esz", tmp_path / "weights.bin", "any"), None
    if file.kib < 0:
        pytest.skip("this system's high-water mark can't be set back")
    assert file.status == OK
    assert file.kib <= 768  # the kernel counts in batches of pages
    memory = run("into", tmp_path / "weights.esz")
    assert memory.data == values.tobytes()
    assert 7_700 < memory.kib <= 8_000_000 / 1024 + 768


@pytest.mark.parametrize("compiler", ["gcc", "clang", "aarch64-linux-gnu-gcc", "arm-linux-gnueabihf-gcc"])
def test_no_warning(compiler: str, tmp_path: Path) -> None:
    need(compiler)
    flags = ("-O2", "-Wconversion", "-Wno-sign-conversion", *INCLUDES)
    compile_c(tmp_path / "out.o", *flags, "-c", C_DIR / "esz_load.c", compiler=compiler)
