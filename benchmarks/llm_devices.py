"""A packaged language model in the C loop on emulated ARM machines beside the same loop on x86-64, token by token.

    python benchmarks/llm_devices.py PACKAGE [--machines NAME,...] [--tokens N] [--text FILE] [--json]

The first N tokens of the text (that of samples/chat-llm) go in one at a time through the KV cache, whatever the model
would have said; agreement is the share of them behind which both put the same token first. One thread. Needs what
`edgeslim check --device qemu` needs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeslim.datasets.encoding import load_tokenizer
from edgeslim.datasets.running_text import encode_text, read_running_text
from edgeslim.devices.arm_machines import MACHINES
from edgeslim.devices.device import Isa, open_device
from edgeslim.devices.runtimes import runtime_headers, runtime_library
from edgeslim.packaging.cmake_files import loader_sources
from edgeslim.packaging.unpack import unpack_package

TEXT = Path(__file__).parent.parent / "samples" / "chat-llm" / "data" / "evaluation.txt"
SOURCE = Path(__file__).parent / "forced.c"
COMPILERS = {"x86_64": "gcc", "aarch64": "aarch64-linux-gnu-gcc", "armhf": "arm-linux-gnueabihf-gcc"}
TIMEOUT_S = 7200.0


def compile_loop(isa: Isa, folder: Path) -> dict[str, Path]:
    """The program and the runtime that it links, by the names that they have to have beside each other."""
    folder.mkdir()
    library = folder / "libonnxruntime.so.1"
    shutil.copy(runtime_library(isa, "glibc"), library)
    sources = loader_sources(chat=True)
    words = [COMPILERS[isa], "-std=gnu99", "-Os", "-DESZ_LEAN", "-isystem", str(runtime_headers())]
    words += [f"-I{place}" for place in dict.fromkeys(path.parent for path in sources)]
    words += [str(SOURCE), *(str(path) for path in sources if path.suffix == ".c"), "-o", str(folder / "forced")]
    subprocess.run([*words, str(library), "-lm", "-Wl,-rpath,$ORIGIN", "-Wl,--allow-shlib-undefined"], check=True)
    return {"forced": folder / "forced", library.name: library, "libonnxruntime.so": library}


def likeliest(device: str, isa: Isa, folder: Path, tokens: Path, scratch: Path) -> list[int]:
    """What the C loop puts first behind each of ``tokens``, on ``device``."""
    program = compile_loop(isa, scratch / isa)
    with open_device(device, isa) as there:
        there.push({**program, "tokens": tokens})
        told = there.run(["forced", str(folder), "tokens"], timeout_s=TIMEOUT_S)
    if told.status:
        raise SystemExit(f"{device}: {told.stderr}")
    return [int(line) for line in told.stdout.split()]


def compare(folder: Path, tokens: Sequence[int], machines: Sequence[str], scratch: Path) -> list[dict[str, Any]]:
    """A row for each machine: tokens, agreement with x86-64, and where they differ."""
    listed = scratch / "tokens"
    listed.write_text("".join(f"{token}\n" for token in tokens))
    here = likeliest("host", "x86_64", folder, listed, scratch)  # decodes the weights to a file, too
    rows = []
    for machine in machines:
        shutil.rmtree(scratch / MACHINES[machine].isa, ignore_errors=True)
        there = likeliest(f"qemu:{machine}", MACHINES[machine].isa, folder, listed, scratch)
        if len(there) != len(tokens) or len(here) != len(tokens):
            raise SystemExit(f"{machine}: {len(there)} tokens of {len(tokens)}")
        differ = [index for index, (one, other) in enumerate(zip(here, there, strict=True)) if one != other]
        agreement = 1 - len(differ) / len(tokens)
        rows.append({"machine": machine, "tokens": len(tokens), "agreement": agreement, "differ": differ})
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--machines", default="cortex-a72")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llm-devices-") as name:
        scratch = Path(name)
        folder = unpack_package(arguments.package, scratch / "package").folder
        tokenizer = load_tokenizer(folder / "tokenizer")
        tokens = encode_text(read_running_text(arguments.text), tokenizer)[: arguments.tokens]
        rows = compare(folder, tokens, arguments.machines.split(","), scratch)
    if arguments.json:
        print(json.dumps({"rows": rows}, indent=2))
        return
    print("| machine | tokens | the same token first as on x86-64 |\n|---|---|---|")
    for row in rows:
        print(f"| {row['machine']} | {row['tokens']} | {row['agreement']:.4f} |")


if __name__ == "__main__":
    main()
