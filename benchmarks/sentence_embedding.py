"""The sentence-embedding sample against the marks it has to keep, and beside ONNX Runtime's own dynamic int8.

Builds the sample for android-arm64 in a process of its own (time, peak memory), unpacks what was packed, and measures
the float export, edgeslim's model and the peer in one process: quality on the sample's 500 held-out sentences and on
300 pieces of Python's manual (out of domain), latency interleaved A B C A B C on one thread at 128 tokens.

    python benchmarks/sentence_embedding.py [--json] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from measurement import has_vnni, measure_latency, measure_vectors, median_ratio
from peers import quantize_dynamic
from subjects import SAMPLES, SEQUENCE, sentence_embedding

from edgeslim import codec
from edgeslim.session import open_runner

SAMPLE = SAMPLES / "sentence-embedding"


def build_sample(out: Path) -> dict[str, float]:
    """Builds the sample; returns wall time, peak memory and the AAR's size."""
    subprocess.run([sys.executable, str(SAMPLE / "prepare.py")], check=True, stdout=subprocess.DEVNULL)
    started = time.perf_counter()
    # A cache of its own: the first build runs whole, the second finds that nothing changed.
    environment = {**os.environ, "EDGESLIM_CACHE": str(out.parent / "cache")}
    command = [sys.executable, "-m", "edgeslim", "build", "--target", "android-arm64", "-o", str(out), "--json", "-q"]
    report = json.loads(
        subprocess.run(command, cwd=SAMPLE, env=environment, check=True, capture_output=True, text=True).stdout
    )
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    subprocess.run(command, cwd=SAMPLE, env=environment, check=True, capture_output=True)
    unchanged = time.perf_counter() - started
    found = {item["metric"]: item["value"] for item in report["findings"]}
    return {
        "build_seconds": seconds,
        "unchanged_seconds": unchanged,
        "build_peak_memory_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "aar_bytes": report["artifact"]["bytes"],
        "weights_bits": 8 * found["packed_bytes"] / found["weights_bytes"],
    }


def unpack(out: Path, folder: Path) -> Path:
    """Takes the model out of the AAR, as the loader on a phone does."""
    (aar,) = out.glob("*.aar")
    with zipfile.ZipFile(aar) as archive:
        for name in archive.namelist():
            if name.startswith("assets/") and name.endswith((".onnx", ".esz")):
                (folder / Path(name).name).write_bytes(archive.read(name))
    codec.decode_file(folder / "weights.esz", folder / "weights.bin")
    return folder / "model.onnx"


def main() -> None:
    """Prints the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        build = build_sample(folder / "out")
        subject = sentence_embedding(folder / "float")
        unpacked = folder / "unpacked"
        unpacked.mkdir()
        models = {
            "fp32": subject.graph,
            "edgeslim static int8": unpack(folder / "out", unpacked),
            "ONNX Runtime dynamic int8": quantize_dynamic(subject.graph, folder / "dynamic.onnx"),
        }
        times = measure_latency(models, subject.timed, arguments.rounds)
        reference = open_runner(subject.graph)
        rows: dict[str, dict[str, float]] = {}
        for name, path in models.items():
            runner = open_runner(path)
            rows[name] = {
                "latency_p50_ms": statistics.median(times[name]),
                "latency_ratio": median_ratio(times[name], times["fp32"]),
            }
            for key, batches in (("in domain", subject.evaluation), ("out of domain", subject.outside)):
                found = measure_vectors(runner, reference, batches)
                rows[name] |= {f"{key}: {metric}": value for metric, value in found.items()}
        vnni = has_vnni()
    result = {"build": build, "vnni": vnni, "sequence": SEQUENCE, "threads": 1, "models": rows}
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"a second build, nothing changed: {build['unchanged_seconds']:.2f} s")
    print(f"build: {build['build_seconds']:.1f} s, peak {build['build_peak_memory_bytes'] / 1e9:.2f} GB")
    print(f"AAR: {build['aar_bytes'] / 1e6:.2f} MB, weights {build['weights_bits']:.2f} bits a stored byte")
    print(f"latency on one thread, {SEQUENCE} tokens, {'with' if vnni else 'WITHOUT'} VNNI\n")
    print("| model | cosine mean / min | top-10 | out of domain | p50 ms | of fp32 |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        print(
            f"| {name} | {row['in domain: cosine_mean']:.4f} / {row['in domain: cosine_min']:.4f} "
            f"| {row['in domain: top10_overlap']:.3f} "
            f"| {row['out of domain: cosine_mean']:.4f} / {row['out of domain: top10_overlap']:.3f} "
            f"| {row['latency_p50_ms']:.1f} | {row['latency_ratio']:.3f} |"
        )


if __name__ == "__main__":
    main()
