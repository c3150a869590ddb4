"""Decoding to a file, into one buffer and tensor by tensor: the same bytes, no memory to spare, nothing half-done."""

from __future__ import annotations

import hashlib
import mmap
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeslim.codec import Segment, loading, write_container
from edgeslim.codec.loading import decode_into, decode_to_file, iterate_tensors
from edgeslim.errors import BadInputError

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.esz"))
BLOCK = 65_536
ROOM = 192 << 10  # the decoder's tables, the index, a directory, and what Python itself makes


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A container of 6 MB in blocks of 64 KiB, and its image."""
    rng = np.random.default_rng(3)
    dense = np.clip(np.round(rng.laplace(0, 20, (1500, 2000))), -127, 127).astype(np.int8)
    sparse = np.where(rng.random((1000, 2000)) < 0.9, 0, dense[:1000]).astype(np.int8)
    scales = rng.normal(size=(1000, 250)).astype("<f4")
    segments = [
        Segment("dense", dense, "int8", dense.shape),
        Segment("sparse", sparse, "int8", sparse.shape),
        Segment("scales", scales, "float32", scales.shape),
    ]
    path = tmp_path_factory.mktemp("loading") / "weights.esz"
    write_container(path, segments, block_bytes=BLOCK)
    return path, dense.tobytes() + sparse.tobytes() + scales.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_every_golden_container_in_all_three_ways(name: str, tmp_path: Path) -> None:
    container, image = GOLDEN / f"{name}.esz", (GOLDEN / f"{name}.bin").read_bytes()
    assert decode_to_file(container, tmp_path / "new folder" / "weights.bin")
    assert (tmp_path / "new folder" / "weights.bin").read_bytes() == image
    assert decode_into(container).tobytes() == image
    assert b"".join(values.tobytes() for _, values in iterate_tensors(container)) == image


def test_tensors_come_with_dtype_and_shape(big: tuple[Path, bytes]) -> None:
    found = {info.name: values for info, values in iterate_tensors(big[0])}
    assert [(values.dtype, values.shape) for values in found.values()] == [
        (np.int8, (1500, 2000)),
        (np.int8, (1000, 2000)),
        (np.dtype("<f4"), (1000, 250)),
    ]
    np.testing.assert_array_equal(
        found["sparse"].ravel().view(np.uint8), np.frombuffer(big[1], np.uint8)[3_000_000:-1_000_000]
    )


def test_tensors_go_where_the_caller_has_memory(big: tuple[Path, bytes]) -> None:
    arena = np.zeros(len(big[1]), np.uint8)
    found = list(
        iterate_tensors(big[0], allocate=lambda info: arena[info.decoded_offset :][: info.decoded_bytes])
    )  # fmt: skip
    assert arena.tobytes() == big[1]
    assert all(np.shares_memory(values, arena) for _, values in found)
    with pytest.raises(ValueError, match="dense, which has 3000000"):
        list(iterate_tensors(big[0], allocate=lambda info: arena[:5]))


@pytest.mark.parametrize("kind", ["bytearray", "mmap", "array"])
def test_one_buffer_of_the_caller(kind: str, big: tuple[Path, bytes]) -> None:
    size = len(big[1])
    target = {"bytearray": bytearray, "mmap": lambda n: mmap.mmap(-1, n), "array": lambda n: np.zeros(n // 4, np.int32)}
    buffer = target[kind](size)
    image = decode_into(big[0], buffer)
    assert bytes(memoryview(buffer).cast("B")) == big[1]
    assert np.shares_memory(image, np.frombuffer(buffer, np.uint8))
    del image


def test_a_buffer_that_does_not_fit_is_refused(big: tuple[Path, bytes]) -> None:
    with pytest.raises(BadInputError, match="read-only"):
        decode_into(big[0], bytes(len(big[1])))
    with pytest.raises(BadInputError, match="a buffer of 5 bytes"):
        decode_into(big[0], bytearray(5))
    with pytest.raises(BadInputError, match="interrupted"):
        decode_into(big[0], np.zeros(2 * len(big[1]), np.uint8)[::2])


def drop_each(container: Path) -> None:
    for _, values in iterate_tensors(container):
        del values


WAYS: dict[str, Callable[[Path, Path], object]] = {
    "file": lambda container, folder: decode_to_file(container, folder / "weights.bin"),
    "memory": lambda container, folder: decode_into(container),
    "tensors": lambda container, folder: [values for _, values in iterate_tensors(container)],
    "one tensor at a time": lambda container, folder: drop_each(container),
}
HELD = {"file": 0, "memory": 6_000_000, "tensors": 6_000_000, "one tensor at a time": 3_000_000}


@pytest.mark.parametrize("way", WAYS)
def test_no_more_memory_than_weights_and_blocks(way: str, big: tuple[Path, bytes], tmp_path: Path) -> None:
    """Held: what is handed out, one decoded block (for a file), one coded block, tables. tracemalloc sees all of it."""
    WAYS[way](big[0], tmp_path)  # imports and the library
    (tmp_path / "weights.bin").unlink(missing_ok=True)
    tracemalloc.start()
    try:
        kept = WAYS[way](big[0], tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    del kept
    assert HELD[way] <= peak <= HELD[way] + 2 * BLOCK + ROOM, peak


def test_a_fresh_process_needs_no_more_either(big: tuple[Path, bytes], tmp_path: Path) -> None:
    """The kernel's view: VmHWM, set back after the library is loaded."""
    code = f"""
import sys
from pathlib import Path
from edgeslim.codec import loading
from edgeslim.codec.library import load_library
load_library(), loading.decode_into(Path({str(GOLDEN / "sparse.esz")!r}))
def high():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
try:
    open("/proc/self/clear_refs", "w").write("5")
except OSError:
    sys.exit(9)
before = high()
loading.decode_to_file(Path({str(big[0])!r}), Path({str(tmp_path)!r}) / "weights.bin")
file = high()
kept = loading.decode_into(Path({str(big[0])!r}))
print(file - before, high() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 9:
        pytest.skip("this system's high-water mark can't be set back")
    assert done.returncode == 0, done.stderr
    file, memory = map(int, done.stdout.split())
    assert file < 1 << 20
    assert len(big[1]) * 0.99 < memory < len(big[1]) + (1 << 20)


def test_a_file_that_is_there_is_used(big: tuple[Path, bytes], tmp_path: Path) -> None:
    out, digest = tmp_path / "weights.bin", hashlib.sha256(big[1]).hexdigest()
    assert decode_to_file(big[0], out, sha256=digest, expected_bytes=len(big[1]))
    before = out.stat()
    assert not decode_to_file(big[0], out, sha256=digest.upper())
    assert not decode_to_file(big[0], out)  # by the hash in the container
    assert (out.stat().st_ino, out.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("change", ["cut", "flipped", "empty"])
@pytest.mark.parametrize("hashed", [True, False])
def test_a_damaged_file_is_replaced(change: str, hashed: bool, big: tuple[Path, bytes], tmp_path: Path) -> None:
    out, digest = tmp_path / "weights.bin", hashlib.sha256(big[1]).hexdigest() if hashed else None
    flipped = bytearray(big[1])
    flipped[777] ^= 1
    out.write_bytes({"cut": big[1][:-1], "flipped": flipped, "empty": b""}[change])
    assert decode_to_file(big[0], out, sha256=digest)
    assert out.read_bytes() == big[1]
    assert [path.name for path in tmp_path.iterdir()] == ["weights.bin"]


def test_another_image_than_promised_is_refused(big: tuple[Path, bytes], tmp_path: Path) -> None:
    out = tmp_path / "weights.bin"
    out.write_bytes(b"as it was")
    with pytest.raises(BadInputError, match="it decodes to SHA-256"):
        decode_to_file(big[0], out, sha256="0" * 64)
    for way in (decode_into, lambda path, **more: decode_to_file(path, out, **more)):
        with pytest.raises(BadInputError, match="it decodes to 6,000,000 bytes"):
            way(big[0], expected_bytes=5_999_999)
    with pytest.raises(BadInputError, match="it decodes to 6,000,000 bytes"):
        next(iterate_tensors(big[0], expected_bytes=1))
    assert out.read_bytes() == b"as it was"
    assert [path.name for path in tmp_path.iterdir()] == ["weights.bin"]


def test_a_hostile_size_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    """2 GiB of zeros take a few kilobytes; who expects 1 MB holds neither."""
    bomb = tmp_path / "bomb.esz"
    zeros = np.memmap(tmp_path / "zeros", np.uint8, "w+", shape=(1 << 26,))
    write_container(bomb, [Segment("w", zeros, "uint8", zeros.shape)])
    del zeros
    tracemalloc.start()
    try:
        with pytest.raises(BadInputError, match="expected: 1,000,000"):
            decode_into(bomb, expected_bytes=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < ROOM
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("way", WAYS)
def test_damage_anywhere_is_an_error_and_leaves_no_file(way: str, tmp_path: Path) -> None:
    whole = (GOLDEN / "mixed.esz").read_bytes()
    rng = np.random.default_rng(5)
    container = tmp_path / "weights.esz"
    for at in rng.integers(0, len(whole), 60).tolist():
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        container.write_bytes(damaged)
        with pytest.raises(BadInputError):
            WAYS[way](container, tmp_path)
    for size in (0, 63, 64, 200, len(whole) - 1):
        container.write_bytes(whole[:size])
        with pytest.raises(BadInputError):
            WAYS[way](container, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.esz"]


def test_a_full_disk_is_told_before_anything_is_written(
    big: tuple[Path, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 5_999_999})
    monkeypatch.setattr(loading.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(BadInputError, match="5,999,999 bytes free") as caught:
        decode_to_file(big[0], tmp_path / "weights.bin")
    assert "room for 6,000,000 bytes" in caught.value.expected
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_nothing(big: tuple[Path, bytes], tmp_path: Path) -> None:
    """A real limit of the system's: no file of this process may grow past 1 MB."""
    code = f"""
import resource, signal
from pathlib import Path
from edgeslim.codec.loading import decode_to_file
from edgeslim.errors import BadInputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    decode_to_file(Path({str(big[0])!r}), Path({str(tmp_path)!r}) / "weights.bin")
except BadInputError as error:
    print(error.got, "|", error.expected)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("File too large | room for 6,000,000 bytes"), done.stdout
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_flushed_before_it_gets_its_name(
    big: tuple[Path, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    out = tmp_path / "weights.bin"
    real = loading.os.fsync
    monkeypatch.setattr(loading.os, "fsync", lambda fd: (done.append(f"sync, named: {out.exists()}"), real(fd))[1])
    decode_to_file(big[0], out)
    assert done == ["sync, named: False", "sync, named: True"]  # the file, then its folder
