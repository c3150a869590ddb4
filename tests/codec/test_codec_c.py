"""The C sources by themselves: warnings, sanitizers, the builds for small and for 32-bit devices."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from esz_compile import SOURCES, compile_c

from edgeslim.codec import library
from edgeslim.codec.format import FEATURE_ROWS, parse_header
from edgeslim.errors import MissingToolError
from tests.needs import need

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"
READER = ("parse_header", "index_begin", "index_next", "segment_begin", "block_at", "block_decode")
UNKNOWN_ALPHABET, UNKNOWN_FEATURE = 12, 7
SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def needs_rows(path: Path) -> bool:
    """Small builds refuse row classes."""
    return bool(parse_header(path.read_bytes()).required_features & FEATURE_ROWS)


@pytest.fixture(scope="module")
def harness_lines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the harness says in each build of the decoder."""
    folder = tmp_path_factory.mktemp("harness")
    files = sorted(path for path in GOLDEN.glob("*.esz") if not needs_rows(path))
    lines = {}
    builds = {"default": (), "lean": ("-DESZ_LEAN",), "small": ("-DESZ_SMALL",), "32-bit": ("-DESZ_32_BIT",)}
    for name, flags in builds.items():
        sources = ("-I", SOURCES, HERE / "harness.c", SOURCES / "esz.c")
        program = compile_c(folder / name, *SANITIZERS, *flags, *sources)
        done = subprocess.run([program, "8", *files], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        lines[name] = done.stdout
        rows = sorted(path for path in GOLDEN.glob("*.esz") if needs_rows(path))
        done = subprocess.run([program, "8", *rows], capture_output=True, text=True, check=False)
        lines[f"{name}, rows"] = done.stdout
        assert done.returncode == (name == "small"), done.stdout + done.stderr
    return lines


def test_sanitizers_find_nothing_in_damaged_containers(harness_lines: dict[str, str]) -> None:
    words = harness_lines["default"].split()
    tried, accepted = int(words[1].rstrip(",")), int(words[3].rstrip(","))
    assert tried > 2_500
    assert 0 < accepted < tried  # some changes behind right hashes are harmless: a name, a dtype, a shape


def test_all_builds_decode_the_same(harness_lines: dict[str, str]) -> None:
    assert len({harness_lines[name] for name in ("default", "lean", "small", "32-bit")}) == 1, harness_lines
    assert harness_lines["default, rows"] == harness_lines["lean, rows"] == harness_lines["32-bit, rows"]
    assert harness_lines["small, rows"].endswith("refused\n")


def test_encoder_under_sanitizers(tmp_path: Path) -> None:
    program = compile_c(
        tmp_path / "encode", *SANITIZERS, "-I", SOURCES, HERE / "harness_encode.c", SOURCES / "esz_encode.c"
    )
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("coded ")


TARGETS = {
    "gcc": ("gcc", "-O3", "-Wconversion", "-Wno-sign-conversion"),
    "gcc -O0": ("gcc", "-O0"),
    "gcc lean": ("gcc", "-Os", "-DESZ_LEAN", "-Wconversion", "-Wno-sign-conversion"),
    "gcc small": ("gcc", "-Os", "-DESZ_SMALL", "-Wconversion", "-Wno-sign-conversion"),
    "gcc 32-bit": ("gcc", "-O2", "-DESZ_32_BIT", "-Wconversion", "-Wno-sign-conversion"),
    "clang": ("clang", "-O3", "-Wconversion", "-Wno-sign-conversion"),
    "clang small": ("clang", "-Os", "-DESZ_SMALL"),
    "clang 32-bit": ("clang", "-O2", "-DESZ_32_BIT"),
    "aarch64": ("aarch64-linux-gnu-gcc", "-O3"),
    "aarch64 lean": ("aarch64-linux-gnu-gcc", "-Os", "-DESZ_LEAN"),
    "armhf": ("arm-linux-gnueabihf-gcc", "-O3"),
    "cortex-m3": ("arm-none-eabi-gcc", "-Os", "-mcpu=cortex-m3", "-mthumb", "-DESZ_SMALL"),
    "wasm32": ("clang", "--target=wasm32", "-nostdlib", "-Os"),
}


@pytest.mark.parametrize("target", TARGETS)
def test_sources_compile_without_a_warning(target: str, tmp_path: Path) -> None:
    compiler, *flags = TARGETS[target]
    need(compiler)
    if target == "wasm32":  # without a C library, the three functions that the decoder calls are declared by hand
        (tmp_path / "string.h").write_text(
            "#include <stddef.h>\nvoid *memcpy(void *, const void *, size_t);\n"
            "void *memset(void *, int, size_t);\nint memcmp(const void *, const void *, size_t);\n"
        )
        flags += ["-isystem", str(tmp_path)]
    compile_c(tmp_path / "out.o", *flags, "-c", SOURCES / "esz.c", compiler=compiler)
    if target not in ("wasm32", "cortex-m3"):  # who encodes has a C library
        compile_c(tmp_path / "out.o", *flags, "-c", SOURCES / "esz_encode.c", compiler=compiler)


def code_bytes(path: Path) -> int:
    """Code and constants, without unwinding tables."""
    listed = subprocess.run(["aarch64-linux-gnu-size", "-A", path], capture_output=True, text=True, check=True)
    sections = [line.split() for line in listed.stdout.splitlines() if line.startswith((".text", ".rodata", ".data"))]
    return sum(int(section[1]) for section in sections)


@pytest.mark.parametrize(
    ("alphabets", "most", "most_linked"),
    [(255, 8_320, 6_500), (95, 7_520, 5_720), (11, 7_200, 5_500)],
    ids=["everything", "neither planes nor codebooks", "RAW, PLAIN and GAP"],
)
def test_decoder_for_small_devices_does_not_grow(alphabets: int, most: int, most_linked: int, tmp_path: Path) -> None:
    """All of it with its messages, and what a device links that reads block by block; the aim is 6,144."""
    need("aarch64-linux-gnu-gcc")
    flags = ("-Os", "-DESZ_SMALL", f"-DESZ_ALPHABETS={alphabets}u", "-fno-asynchronous-unwind-tables")
    compiled = compile_c(
        tmp_path / "esz.o", *flags, "-ffunction-sections", "-c", SOURCES / "esz.c", compiler="aarch64-linux-gnu-gcc"
    )
    roots = [word for name in READER for word in ("-u", f"esz_{name}")]
    linked = tmp_path / "linked.o"
    subprocess.run(["aarch64-linux-gnu-ld", "-r", "--gc-sections", *roots, compiled, "-o", linked], check=True)
    assert code_bytes(linked) <= most_linked
    assert code_bytes(compiled) <= most


@pytest.mark.parametrize("flags", [(), ("-DESZ_SMALL",)], ids=["default", "small"])
def test_alphabets_left_out_are_refused(flags: tuple[str, ...], tmp_path: Path) -> None:
    results: list[dict[str, tuple[int, bytes]]] = []
    for alphabets in (255, 3):
        options = ("-O1", "-fPIC", "-shared", "-DESZ_SHARED", f"-DESZ_ALPHABETS={alphabets}u", *flags)
        library = ctypes.CDLL(str(compile_c(tmp_path / f"{alphabets}.so", *options, SOURCES / "esz.c")))
        library.esz_decoder_bytes.restype = ctypes.c_size_t
        decoder = ctypes.create_string_buffer(library.esz_decoder_bytes())
        seen = {}
        for path in sorted(GOLDEN.glob("*.esz")):
            data = path.read_bytes()
            image = ctypes.create_string_buffer(int.from_bytes(data[32:40], "little") + 1)
            sizes = (ctypes.c_size_t(len(data)), image, ctypes.c_size_t(len(image)), ctypes.c_uint32(0), None)
            seen[path.name] = library.esz_decode_image(decoder, data, *sizes), image.raw
        results.append(seen)
    everything, few = results
    assert {status for status, _ in few.values()} == {0, UNKNOWN_ALPHABET, UNKNOWN_FEATURE}
    for name, (status, image) in few.items():
        assert status in (UNKNOWN_ALPHABET, UNKNOWN_FEATURE) or (status, image) == everything[name]
        assert everything[name][0] == (UNKNOWN_FEATURE if flags and needs_rows(GOLDEN / name) else 0)


@pytest.mark.slow
def test_fuzzer_finds_nothing(tmp_path: Path) -> None:
    need("clang")
    flags = ("-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all", "-I", SOURCES)
    program = compile_c(tmp_path / "fuzz", *flags, HERE / "fuzz_esz.c", SOURCES / "esz.c", compiler="clang")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "seeds").mkdir()
    for path in GOLDEN.glob("*.esz"):
        shutil.copy(path, tmp_path / "seeds")
    # libFuzzer's own limit takes the peak, which a process inherits from a large parent such as this one.
    limits, environment = ("-rss_limit_mb=0", "-malloc_limit_mb=1024"), {"ASAN_OPTIONS": "hard_rss_limit_mb=1024"}
    command = [program, "-max_total_time=30", "-max_len=131072", *limits, "corpus", "seeds"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_decoder_needs_memory_functions_only(tmp_path: Path) -> None:
    compiled = compile_c(tmp_path / "esz.o", "-Os", "-fno-stack-protector", "-c", SOURCES / "esz.c")
    listed = subprocess.run(["nm", "-u", compiled], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in listed.splitlines()} - {"_GLOBAL_OFFSET_TABLE_"}
    assert names <= {"memcpy", "memset", "memcmp", "__cpu_model", "__cpu_indicator_init"}, names


def test_library_exports_the_interface_only(compiled_library: Path) -> None:
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", compiled_library], capture_output=True, text=True, check=True
    )
    names = {line.split()[-1] for line in listed.stdout.splitlines()}
    assert names
    assert all(name.startswith("esz_") for name in names), names


@pytest.mark.parametrize(("flag", "most"), [("-DESZ_SMALL", 1_024), ("-DESZ_FULL", 65_536)])
def test_tables_stay_in_their_limits(flag: str, most: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All that a decoder looks codes up in, however many tables it has at a time."""
    source = tmp_path / "size.c"
    source.write_text(
        '#include <stdio.h>\n#include "esz.h"\n'
        "#ifdef ESZ_SMALL\n#define TABLES table\n#else\n#define TABLES entry\n#endif\n"
        'int main(void) { printf("%u", (unsigned)sizeof ((esz_decoder *)0)->TABLES); return 0; }\n'
    )
    program = compile_c(tmp_path / "size", flag, "-I", SOURCES, source)
    table_bytes = int(subprocess.run([program], capture_output=True, text=True, check=True).stdout)
    with capsys.disabled():
        sys.stdout.write(f"\n{flag}: tables of {table_bytes} bytes, at most {most}\n")
    assert table_bytes <= most


def test_missing_library_says_where_it_was_sought(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGESLIM_LIBESZ", str(tmp_path / "none.so"))
    with pytest.raises(MissingToolError, match=r"none\.so"):
        library.find_library()
    monkeypatch.delenv("EDGESLIM_LIBESZ")
    monkeypatch.setattr(library, "_folders", lambda: iter([tmp_path]))
    with pytest.raises(MissingToolError, match="EDGESLIM_LIBESZ"):
        library.find_library()
    broken = tmp_path / library._names()[0]
    broken.write_bytes(b"not a library")
    with pytest.raises(MissingToolError, match="cannot be loaded"):
        library.load_library()


def test_library_beside_the_package_is_found(monkeypatch: pytest.MonkeyPatch, compiled_library: Path) -> None:
    monkeypatch.delenv("EDGESLIM_LIBESZ")
    monkeypatch.setattr(library, "_folders", lambda: iter([compiled_library.parent]))
    assert library.find_library() == compiled_library
    assert isinstance(library.load_library(), ctypes.CDLL)
