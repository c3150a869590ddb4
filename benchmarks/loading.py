"""Load time and peak memory of each way to hand packed weights to ONNX Runtime, beside the plain model.

    python benchmarks/loading.py [PACKAGE] [--rounds N] [--threads N] [--json]

PACKAGE is an .aar, .tar.gz or the folder inside; by default what `edgeslim build --target android-arm64` left in
samples/sentence-embedding. Each measurement is a process of its own that opens the model and runs it once on 128
tokens. Its peak is the kernel's high-water mark (VmHWM), set back once interpreter, ONNX Runtime and the decoder are
loaded; `added` is what comes on top of that. All ways take turns, round after round; times are medians, peaks maxima.

- plain: model.onnx with the decoded weights.bin beside it, which ONNX Runtime maps
- file, first start: decode to a file, flush it to the disk, then as plain
- file, later starts: the file is found, its SHA-256 compared, then as plain
- tensors: one array a tensor, decoded in place and handed over by name
- memory: one buffer, handed over as the contents of weights.bin
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgeslim.checks.probe import _peak_bytes, _reset_peak
from edgeslim.packaging.unpack import unpack_package

WAYS = ("plain", "file, first start", "file, later starts", "tensors", "memory")
DEFAULT = Path(__file__).parents[1] / "samples" / "sentence-embedding" / "out" / "android-arm64"
TOKENS = 128


def measure(folder: Path, way: str, threads: int) -> dict[str, float]:
    """One way, in this process: milliseconds of decoding and opening, bytes at the peak."""
    import numpy as np
    import onnxruntime  # noqa: F401  (the baseline holds the library)

    from edgeslim.codec.library import load_library
    from edgeslim.codec.loading import decode_to_file
    from edgeslim.loading import open_packed
    from edgeslim.packaging.manifest import read_manifest
    from edgeslim.session import make_options, make_session

    load_library()
    entry = read_manifest(folder / "manifest.json", "manifest.json").files["weights.bin"]
    weights = folder / "weights.bin"
    if way == "file, first start":
        weights.unlink(missing_ok=True)
    if not _reset_peak():
        raise SystemExit("this system's high-water mark can't be set back")
    baseline = _peak_bytes("VmHWM")
    started = time.perf_counter()
    if way.startswith("file"):
        decode_to_file(folder / "weights.esz", weights, sha256=entry.sha256, expected_bytes=entry.bytes)
    decoded, decode_peak = time.perf_counter(), _peak_bytes("VmHWM")
    if way in ("tensors", "memory"):
        session = open_packed(folder / "model.onnx", folder / "weights.esz", way, threads=threads)
    else:
        session = make_session(folder / "model.onnx", make_options(threads))
    opened = time.perf_counter()
    session.run(None, {item.name: np.ones((1, TOKENS), np.int64) for item in session.get_inputs()})
    peak = _peak_bytes("VmHWM")
    return {
        "unpack_ms": (decoded - started) * 1000,
        "load_ms": (opened - decoded) * 1000,
        "unpack_added_bytes": decode_peak - baseline,
        "added_bytes": peak - baseline,
        "peak_bytes": peak,
    }


def run_all(folder: Path, rounds: int, threads: int) -> dict[str, dict[str, float]]:
    """Every way, ``rounds`` times in turns, each in a fresh process."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    command = [sys.executable, __file__, str(folder), "--threads", str(threads), "--way"]
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    subprocess.run([*command, WAYS[1]], env=environment, check=True, capture_output=True)  # weights.bin, warm caches
    for _ in range(rounds):
        for way in WAYS:
            done = subprocess.run([*command, way], env=environment, check=True, capture_output=True, text=True)
            found[way].append(json.loads(done.stdout))
    return {
        way: {key: (max if key.endswith("bytes") else statistics.median)([row[key] for row in rows]) for key in rows[0]}
        for way, rows in found.items()
    }


def main() -> None:
    """Prints the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="?", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way is not None:
        print(json.dumps(measure(arguments.package, arguments.way, arguments.threads)))
        return
    package = arguments.package or next(iter(sorted(DEFAULT.glob("*.aar"))), DEFAULT)
    with tempfile.TemporaryDirectory(prefix="edgeslim-") as scratch:
        folder = Path(scratch)
        if package.is_dir():
            for name in ("manifest.json", "model.onnx", "weights.esz"):
                (folder / name).write_bytes((package / name).read_bytes())
        else:
            folder = unpack_package(package, folder).folder
        packed = (folder / "weights.esz").stat().st_size
        rows = run_all(folder, arguments.rounds, arguments.threads)
        decoded = (folder / "weights.bin").stat().st_size
    if arguments.json:
        print(json.dumps({"weights_bytes": decoded, "packed_bytes": packed, "ways": rows}, indent=2))
        return
    print(f"weights {decoded / 1e6:.2f} MB, packed {packed / 1e6:.2f} MB, {arguments.rounds} rounds\n")
    print("| way | decode or compare | open | peak added | of which decoding | process's peak |")
    print("|---|---|---|---|---|---|")
    for way, row in rows.items():
        own = f"{row['unpack_ms']:.0f} ms" if way.startswith("file") else "–"
        decoding = f"{row['unpack_added_bytes'] / 1e6:.1f} MB" if way.startswith("file") else "–"
        print(
            f"| {way} | {own} | {row['load_ms']:.0f} ms | {row['added_bytes'] / 1e6:.1f} MB | {decoding} "
            f"| {row['peak_bytes'] / 1e6:.1f} MB |"
        )


if __name__ == "__main__":
    main()
