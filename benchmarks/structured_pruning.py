"""What taking heads, neurons and words out of models costs and gives.

    python benchmarks/structured_pruning.py [--parts WORD,...] [--calibration N] [--machines NAME,...] [--json]

Parts:

- free: all-MiniLM-L6-v2 with fewer hidden neurons and no training, calibrated on N snippets, then int8; cosine with the
  float model on 500 held-out sentences and on 300 pieces of Python's manual, latency in turns with the float model
- trained: the sample's classifier of film reviews by its recipe ``pruned``; accuracy lost, paired with its 95 %
  interval, on film reviews and on product reviews, before int8 and after it
- devices: emulated instructions of one run at 128 tokens beside those of the float model, and what quality that leaves

Evaluation data choose nothing. ``trained`` trains for some ten minutes on two free cores, once: edgeslim's cache keeps
what it made.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from devices import run_there
from measurement import classify, compare_accuracy, file_bytes, measure_latency, median_ratio, packed_bytes
from quantization import make_own
from subjects import MINILM, SAMPLES, SEQUENCE, TOKEN_INPUTS, Subject, sentence_embedding, text_classification

import edgeslim
from edgeslim.checks.package import check_weights
from edgeslim.core import Batch, Context, Quiet
from edgeslim.datasets.data import Example, load_examples
from edgeslim.datasets.encoding import encode_examples, load_tokenizer
from edgeslim.fields import read_toml
from edgeslim.graphs.graph import MODEL_NAME, WEIGHTS_NAME, load_graph, save_graph
from edgeslim.packaging.unpack import unpack_package
from edgeslim.session import open_runner
from edgeslim.source import resolve_source
from edgeslim.stages.prune_structured import PruneStructured
from edgeslim.target import load_target

PARTS = ("free", "trained", "devices")
CLASSIFIER = SAMPLES / "text-classification"
FILM = CLASSIFIER / "data" / "test.jsonl"
PRODUCTS = CLASSIFIER / "data" / "products.jsonl"
RECIPE = "pruned"
MACHINES = ("cortex-a53", "cortex-a76")
TARGET = "linux-arm64"
ROUNDS = 60
Row = dict[str, Any]


def prune(subject: Subject, keep: float, calibration: Sequence[Batch], folder: Path, **settings: Any) -> Path:
    """The subject's float graph with the share ``keep`` of its hidden neurons."""
    folder.mkdir(parents=True)
    context = Context(
        target=load_target(TARGET),
        task=subject.task,
        calibration=calibration,
        reference=open_runner(subject.graph),
        seed=0,
        work_dir=folder,
    )
    result = PruneStructured(keep_neurons=keep, **settings).run(load_graph(subject.graph), context)
    return save_graph(result.model, folder / "graph")[0]


def quantize(subject: Subject, graph: Path, calibration: Sequence[Batch], path: Path) -> Path:
    """``graph`` by the target's own recipe."""
    steps = [dict(table) for table in load_target(TARGET).steps]
    make_own(steps, Subject(**{**vars(subject), "graph": graph, "calibration": calibration}), path)
    return path


def snippets(count: int) -> tuple[Batch, ...]:
    """The first ``count`` of the sample's calibration snippets."""
    source = resolve_source(MINILM)
    assert source.tokenizer is not None
    examples = load_examples(SAMPLES / "sentence-embedding" / "data" / "calibration-large.txt")[:count]
    return encode_examples(examples, load_tokenizer(source.tokenizer), TOKEN_INPUTS, max_length=SEQUENCE)


def vectors(subject: Subject, path: Path) -> Row:
    """Cosines with the float model, in domain and outside."""
    reference, runner = open_runner(subject.graph), open_runner(path)
    row: Row = {}
    for name, batches in (("in", subject.evaluation), ("out", subject.outside)):
        found = subject.task.evaluate(runner, reference, batches, Quiet())
        row |= {f"{name}_{key}": found[key] for key in ("cosine_mean", "cosine_min", "top10_overlap")}
    return row


def without_training(folder: Path, count: int) -> Iterator[Row]:
    """MiniLM with 75 % of its neurons by each importance and 50 % by the best, and then int8."""
    subject, calibration = sentence_embedding(folder / "float"), snippets(count)
    for keep in (0.75, 0.5):
        for importance in ("obs", "activation", "taylor", "fisher") if keep > 0.5 else ("obs",):
            path = prune(subject, keep, calibration, folder / f"{importance}-{keep}", importance=importance)
            row = {"part": "free", "keep_neurons": keep, "importance": importance, "bits": 32}
            yield {**row, "bytes": file_bytes(path), **vectors(subject, path)}
            if importance == "obs":
                small = quantize(subject, path, calibration, folder / f"int8-{keep}" / MODEL_NAME)
                times = measure_latency({"float": subject.graph, "pruned": path, "int8": small}, subject.timed, ROUNDS)
                sizes = {"bytes": file_bytes(small), "packed_bytes": packed_bytes(small)}
                yield {
                    **row,
                    "bits": 8,
                    **sizes,
                    **vectors(subject, small),
                    "float_latency_ratio": median_ratio(times["pruned"], times["float"]),
                    "latency_ratio": median_ratio(times["int8"], times["float"]),
                }


def with_training(folder: Path) -> Iterator[Row]:
    """The classifier with half of its heads and neurons, distilled, before int8 and after it."""
    subject = text_classification(folder / "classifier")
    judged = {name: judge(path, subject) for name, path in (("film", FILM), ("products", PRODUCTS))}
    tables = read_toml(CLASSIFIER / "recipes" / f"{RECIPE}.toml")["steps"]
    for count in (2, len(tables)):
        name = RECIPE + (", float" if count < len(tables) else "")
        report = edgeslim.build(
            folder=CLASSIFIER,
            target=TARGET,
            recipe=write_recipe(tables[:count], folder / f"{name}.toml"),
            max_drop=1.0,
            max_size="100MB",
            out=str(folder / name),
        )
        package = unpack_package(Path(report.artifact.path), folder / f"{name}-package")
        assert all(finding.verdict != "fail" for finding in check_weights(package))
        steps = [{"name": one.name, "after": dict(one.after), **one.metrics} for one in report.steps]
        yield {"part": "trained", "recipe": name, **measure_package(package.folder, subject, judged), "steps": steps}


def write_recipe(tables: Sequence[Mapping[str, Any]], path: Path) -> str:
    """A recipe file of ``tables``, whose values are strings, numbers and booleans."""
    lines = []
    for table in tables:
        lines += ["[[steps]]", *(f"{key} = {json.dumps(value)}" for key, value in table.items()), ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Texts with their true classes, and those that the float model gives them."""

    texts: Sequence[Example]
    truth: np.ndarray
    reference: np.ndarray


def judge(path: Path, subject: Subject) -> Judged:
    """The float classifier's answers to a file of texts with labels."""
    texts = load_examples(path)
    tokenizer = load_tokenizer(CLASSIFIER / "data" / "model")
    batches = encode_examples(texts, tokenizer, TOKEN_INPUTS, max_length=SEQUENCE)
    truth = np.array([label for batch in batches for label in batch.labels])
    return Judged(texts=texts, truth=truth, reference=classify(open_runner(subject.graph), batches))


def measure_package(folder: Path, subject: Subject, judged: Mapping[str, Judged]) -> Row:
    """Size, latency and paired accuracy of an unpacked package, texts encoded by its own tokenizer."""
    graph = folder / MODEL_NAME
    runner, loaded = open_runner(graph), load_tokenizer(folder / "tokenizer")
    row: Row = {
        "bytes": graph.stat().st_size + (folder / WEIGHTS_NAME).stat().st_size,
        "packed_bytes": graph.stat().st_size + (folder / "weights.esz").stat().st_size,
    }
    for name, known in judged.items():
        ours = classify(runner, encode_examples(known.texts, loaded, TOKEN_INPUTS, max_length=SEQUENCE))
        found = compare_accuracy(ours, known.reference, known.truth)
        row |= {f"{name}_{key}": value for key, value in found.items()}
    timed = {name: np.minimum(value, 999) for name, value in subject.timed.items()}  # ids that any vocabulary has
    times = measure_latency({"float": subject.graph, "ours": graph}, timed, ROUNDS)
    return {**row, "latency_ratio": median_ratio(times["ours"], times["float"])}


def on_devices(folder: Path, count: int, machines: Sequence[str]) -> Iterator[Row]:
    """Emulated instructions of MiniLM: float, int8, and int8 with 75 and 50 % of the neurons."""
    subject, calibration = sentence_embedding(folder / "there"), snippets(count)
    graphs = {"float32": subject.graph}
    for keep in (1.0, 0.75, 0.5):
        path = prune(subject, keep, calibration, folder / f"there-{keep}") if keep < 1 else subject.graph
        graphs[f"int8, {keep:.0%} of neurons"] = quantize(
            subject, path, calibration, folder / f"there-int8-{keep}" / MODEL_NAME
        )
    for machine in machines:
        base = 0
        for name, path in graphs.items():
            counted = run_there(machine, path, [subject.timed]).instructions
            assert counted is not None
            base = base or counted.run
            row = {"part": "devices", "machine": machine, "model": name, "instructions": counted.run}
            yield {**row, "of_float": counted.run / base, **vectors(subject, path)}


def print_row(row: Row) -> None:
    """One line of a table."""
    if row["part"] == "trained":
        print(
            f"| {row['recipe']} | {row['packed_bytes'] / 1e6:.2f} MB | {row['latency_ratio']:.3f} "
            f"| {row['film_accuracy']:.3f}, {row['film_drop']:+.3f} ± {row['film_drop_interval']:.3f} "
            f"| {row['products_accuracy']:.3f}, {row['products_drop']:+.3f} ± {row['products_drop_interval']:.3f} |"
        )
        return
    cells = [f"{row['in_cosine_mean']:.4f} / {row['in_cosine_min']:.3f}", f"{row['in_top10_overlap']:.3f}"]
    cells.append(f"{row['out_cosine_mean']:.4f}")
    if row["part"] == "devices":
        cells = [row["machine"], row["model"], f"{row['instructions']:,}", f"{row['of_float']:.3f}", *cells]
    else:
        ratio = f"{row['latency_ratio']:.3f}" if "latency_ratio" in row else ""
        cells = [f"{row['keep_neurons']:.0%}", row["importance"], str(row["bits"]), *cells, ratio]
    print("| " + " | ".join(cells) + " |", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables, or with ``--json`` their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--calibration", type=int, default=1000)
    parser.add_argument("--machines", default=",".join(MACHINES))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        made: list[Iterator[Row]] = []
        made += [without_training(folder, options.calibration)] if "free" in parts else []
        made += [with_training(folder)] if "trained" in parts else []
        made += [on_devices(folder, options.calibration, options.machines.split(","))] if "devices" in parts else []
        for part in made:
            for row in part:
                rows.append(row)
                if not options.json:
                    print_row(row)
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
