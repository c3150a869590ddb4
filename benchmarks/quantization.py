"""edgeslim's recipes beside other quantizers, on one export, one calibration set, and one machine.

Models: all-MiniLM-L6-v2 (vectors beside the float model's: in domain and on pieces of Python's manual), the sample's
classifier fine-tuned from it (accuracy on 1,000 held-out reviews), and the sample's CNN (10,000 pictures). Bytes are
those of the graph and its weights, and of the graph and an ESZ container. Latency: all candidates open in one process,
one thread, one run each in turn, medians of the ratios of a round; 128 tokens.

    python benchmarks/quantization.py [--models minilm,classifier,cnn] [--methods WORD,...] [--rounds N]
                                      [--json FILE] [--chart FILE] [--prepare]

NNCF and Olive run in environments that are made by pip. Those, the peers' models and figures that don't depend on the
moment are kept (``EDGESLIM_BENCHMARKS`` names the folder); ``--prepare`` makes them and measures no latency.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
from measurement import (
    classify,
    compare_accuracy,
    file_bytes,
    has_vnni,
    measure_latency,
    measure_vectors,
    median_ratio,
    packed_bytes,
)
from peers import PEERS, SLOW, cache_folder, fitting, make_peer, peer_version
from quantization_chart import draw_fronts
from subjects import SEQUENCE, SUBJECTS, Subject

import edgeslim
from edgeslim.core import Context, Feed, Runner
from edgeslim.datasets.samples import hash_batches
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph import MODEL_NAME, load_graph, save_graph
from edgeslim.recipe import parse_recipe
from edgeslim.session import open_runner
from edgeslim.target import load_target

Row = dict[str, Any]

FLOAT = "float32"
DYNAMIC = "ORT dynamic"
TARGET = "android-arm64"
RECIPES: dict[str, list[dict[str, Any]]] = {
    "edgeslim int8": [{"use": "quantize_int8", "activation": "auto"}],
    "edgeslim int8, static scales": [{"use": "quantize_int8"}],
    "edgeslim int8, QDQ": [{"use": "quantize_int8", "form": "qdq"}],
    "edgeslim int8 per token": [{"use": "quantize_int8", "activation": "per_token"}],
    **{
        f"edgeslim int8, {bits:g} bits stored": [{"use": "quantize_int8", "activation": "auto", "target_bits": bits}]
        for bits in (5.0, 4.0, 3.0)
    },
    "edgeslim int4": [{"use": "quantize_int4"}],
    "edgeslim int4, AWQ": [{"use": "quantize_int4", "algorithm": "awq_gptq"}],
    "edgeslim 4 and 8 bits": [{"use": "quantize_int4", "target_bits": 6.0}],
}
ON_PICTURES = ("edgeslim int8", "edgeslim int8, QDQ")


def edgeslim_methods(subject: Subject) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """The recipes that this edgeslim has, and why the others are left out."""
    found, missing = {}, {}
    for name, tables in RECIPES.items():
        if subject.kind == "plain" and name not in ON_PICTURES:
            continue
        try:
            parse_recipe(tables, name)
        except BadInputError as error:
            missing[name] = f"{error.got}: this edgeslim has no such recipe"
        else:
            found[name] = tables
    return found, missing


def make_own(tables: list[dict[str, Any]], subject: Subject, out: Path) -> Path:
    """The graph after edgeslim's stages."""
    model, reference = load_graph(subject.graph), open_runner(subject.graph)
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(
            target=load_target(TARGET),
            task=subject.task,
            calibration=subject.calibration,
            reference=reference,
            seed=0,
            work_dir=Path(scratch),
        )
        for named in parse_recipe(tables, out.parent.name).graph:
            model = named.stage.run(model, context).model
        return save_graph(model, out.parent)[0]


def hash_sources() -> str:
    """A hash of edgeslim's own code: what its stages make is kept as long as that stays the same."""
    digest = hashlib.sha256()
    folder = Path(edgeslim.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def hash_files(folder: Path) -> str:
    """A hash of the files of a model."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".onnx", ".bin", ".data"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def remember(runner: Runner) -> Runner:
    """A runner that runs each feed once; feeds are told apart by identity."""
    known: dict[int, Feed] = {}

    def run(feed: Feed) -> Feed:
        if id(feed) not in known:
            known[id(feed)] = runner(feed)
        return known[id(feed)]

    return run


class Bench:
    """One subject, its candidates, and what is known of them."""

    def __init__(self, name: str, words: list[str]) -> None:
        self.name = name
        self.words = words
        self.scratch = tempfile.TemporaryDirectory()
        self.subject = SUBJECTS[name](Path(self.scratch.name) / "export")
        self.reference = remember(open_runner(self.subject.graph))
        samples = hash_batches(self.subject.calibration) + hash_batches(self.subject.evaluation)
        self.samples = samples + hash_batches(self.subject.outside)
        self.key = hash_files(self.subject.graph.parent) + hash_batches(self.subject.calibration)
        self.missing: dict[str, str] = {}
        self._answers: tuple[np.ndarray, np.ndarray] | None = None

    def candidates(self) -> Iterator[tuple[str, Path]]:
        """Each candidate's graph by name, the float export first; made where it isn't kept."""
        yield FLOAT, self.subject.graph
        own, self.missing = edgeslim_methods(self.subject)
        sources = hash_sources()
        for method in [*own, *fitting(self.subject)]:
            if not self._wanted(method):
                continue
            inputs = sources + json.dumps(own[method]) if method in own else peer_version(method)
            digest = hashlib.sha256((self.key + method + inputs).encode()).hexdigest()[:16]
            folder = cache_folder() / "models" / f"{self.name}-{method.replace(' ', '-').replace(',', '')}-{digest}"
            if not folder.is_dir():
                folder.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                    made = Path(scratch) / "made"
                    started = time.perf_counter()
                    try:
                        if method in own:
                            make_own(own[method], self.subject, made / MODEL_NAME)
                        else:
                            make_peer(method, self.subject, made / MODEL_NAME)
                        open_runner(made / MODEL_NAME)
                    except Exception as error:  # each tool fails in a way of its own; the table says so
                        self.missing[method] = f"{type(error).__name__}: {str(error).strip()[-200:]}"
                        continue
                    seconds = time.perf_counter() - started
                    (made / "made.json").write_text(json.dumps({"seconds": seconds}), encoding="utf-8")
                    if not folder.is_dir():
                        made.rename(folder)
            out = folder / MODEL_NAME
            yield method, out

    def _wanted(self, method: str) -> bool:
        if not self.words:
            return method not in SLOW
        whole = RECIPES.keys() | PEERS.keys()
        return any(word == method if word in whole else word.lower() in method.lower() for word in self.words)

    def measure(self, method: str, graph: Path) -> Row:
        """What doesn't depend on the moment, bytes and quality, is kept by the content of model and samples."""
        digest = hashlib.sha256((hash_files(graph.parent) + self.samples).encode()).hexdigest()
        kept = cache_folder() / "figures" / f"{digest}.json"
        if kept.is_file():
            return {**json.loads(kept.read_text(encoding="utf-8")), "model": self.name, "method": method}
        row: Row = {
            "model": self.name,
            "method": method,
            "bytes": file_bytes(graph),
            "packed_bytes": packed_bytes(graph),
            **self._quality(graph),
        }
        made = graph.parent / "made.json"
        if made.is_file():
            row["build_seconds"] = json.loads(made.read_text(encoding="utf-8"))["seconds"]
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(row), encoding="utf-8")
        return row

    def _quality(self, graph: Path) -> Row:
        runner = open_runner(graph)
        if self.name == "minilm":
            inside, outside = (
                measure_vectors(runner, self.reference, batches)
                for batches in (self.subject.evaluation, self.subject.outside)
            )
            return {
                "cosine": inside["cosine_mean"],
                "worst": inside["cosine_min"],
                "top10": inside["top10_overlap"],
                "outside_cosine": outside["cosine_mean"],
                "outside_top10": outside["top10_overlap"],
            }
        if self._answers is None:
            truth = np.array([label for batch in self.subject.evaluation for label in batch.labels])
            self._answers = truth, classify(self.reference, self.subject.evaluation)
        truth, reference = self._answers
        return compare_accuracy(classify(runner, self.subject.evaluation), reference, truth)


def time_rows(rows: list[Row], graphs: Mapping[str, Path], subject: Subject, rounds: int) -> None:
    """Adds each row's median, and its ratio to float and to ONNX Runtime's dynamic int8 in the same round."""
    times = measure_latency(graphs, subject.timed, rounds)
    for row in rows:
        taken = times[row["method"]]
        row["latency_p50_ms"] = statistics.median(taken)
        row["latency_ratio"] = median_ratio(taken, times[FLOAT])
        if DYNAMIC in times:
            row["latency_to_dynamic"] = median_ratio(taken, times[DYNAMIC])


def print_rows(name: str, rows: list[Row]) -> None:
    """One model's table."""
    vectors = "cosine" in rows[0]
    quality = "cosine mean / worst | top-10 | out of domain" if vectors else "accuracy | lost, ± 95 %"
    print(f"\n**{name}**\n\n| method | {quality} | MB | packed | p50 ms | of fp32 | of ORT dynamic |")
    print("|---" * (8 if vectors else 7) + "|")
    for row in rows:
        if vectors:
            figures = (
                f"{row['cosine']:.4f} / {row['worst']:.4f} | {row['top10']:.3f} "
                f"| {row['outside_cosine']:.4f} / {row['outside_top10']:.3f}"
            )
        else:
            figures = f"{row['accuracy']:.4f} | {row['drop']:+.4f} ± {row['drop_interval']:.4f}"
        times = [
            f"{row[key]:.{digits}f}" if key in row else "–"
            for key, digits in (("latency_p50_ms", 2), ("latency_ratio", 3), ("latency_to_dynamic", 3))
        ]
        sizes = f"{row['bytes'] / 1e6:.2f} | {row['packed_bytes'] / 1e6:.2f}"
        print(f"| {row['method']} | {figures} | {sizes} | {' | '.join(times)} |")


def main() -> int:
    """Prints the tables, and writes JSON and the picture where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(SUBJECTS))
    parser.add_argument("--methods", default="", help="whole names, or words that names hold")
    parser.add_argument("--rounds", type=int, help="runs of each model; 100 of 128 tokens, 3,000 of a picture")
    parser.add_argument("--json", metavar="FILE", help="the rows; - for standard output instead of tables")
    parser.add_argument("--chart", metavar="FILE", help="an SVG of MiniLM's fronts: size against 1 - cosine")
    parser.add_argument("--prepare", action="store_true", help="make models, measure bytes and quality, no latency")
    arguments = parser.parse_args()
    words = [word for word in arguments.methods.split(",") if word]
    everything: list[Row] = []
    missing: dict[str, str] = {}
    for name in arguments.models.split(","):
        bench = Bench(name, words)
        graphs, rows = {}, []
        for method, graph in bench.candidates():
            rows.append(bench.measure(method, graph))
            graphs[method] = graph
            print(f"{name}: {method}", file=sys.stderr)
        if not arguments.prepare:
            time_rows(rows, graphs, bench.subject, arguments.rounds or bench.subject.rounds)
        missing |= {f"{name}: {method}": reason for method, reason in bench.missing.items()}
        everything += rows
        if arguments.json != "-":
            print_rows(name, rows)
    for method, reason in missing.items():
        print(f"not measured: {method}: {reason}", file=sys.stderr if arguments.json == "-" else sys.stdout)
    result = {"rows": everything, "missing": missing, "vnni": has_vnni(), "threads": 1, "sequence": SEQUENCE}
    if arguments.json == "-":
        print(json.dumps(result, indent=2))
    elif arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if arguments.chart:
        points = [row for row in everything if row["model"] == "minilm" and row["method"] != FLOAT]
        peers = {row["method"] for row in points if row["method"] in PEERS}
        Path(arguments.chart).write_text(draw_fronts(points, peers), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
