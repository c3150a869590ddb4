"""Programs in C over the loader and the real ONNX Runtime, compiled for this host or another instruction set."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from edgeslim.devices.runtimes import runtime_headers, runtime_library
from edgeslim.packaging.cmake_files import loader_sources

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror")
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def compile_program(main: Path, compiler: str, isa: Any, folder: Path, *flags: str, chat: bool = False) -> Path:
    """``main`` with the loader (with ``chat``, its generate loop too), beside the library that it links."""
    library = folder / "libonnxruntime.so.1"
    shutil.copy(runtime_library(isa, "glibc"), library)
    (folder / "libonnxruntime.so").symlink_to(library.name)
    sources = loader_sources(chat=chat)
    folders = dict.fromkeys(path.parent for path in sources)
    words = [compiler, *flags, "-isystem", str(runtime_headers()), *(f"-I{place}" for place in folders)]
    words += [str(main), *(str(path) for path in sources if path.suffix == ".c"), "-o", str(folder / main.stem)]
    subprocess.run([*words, f"-L{folder}", "-lonnxruntime", "-lm", "-Wl,-rpath,$ORIGIN"], check=True)
    return folder / main.stem
