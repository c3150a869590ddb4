"""A classifier trained smaller: distilled, pruned and quantized by the recipes that ship with its sample.

``python samples/text-classification/train.py`` goes first. Each row is a build of the sample with one of its recipes:
download, latency beside the float model in turns, and accuracy lost with a paired 95 % interval, on film reviews as in
training (``test.jsonl``) and on product reviews (``products.jsonl``). Neither decides anything in a build.

A recipe trains for minutes on two free cores: 6-layer teacher, 7,200 training texts. Results of an earlier run are
taken from edgeslim's cache.

Usage: ``python benchmarks/transformers_compression.py [--json] [--recipe NAME …]``
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measurement import classify, compare_accuracy
from subjects import SAMPLES, SEQUENCE, TOKEN_INPUTS, text_classification

import edgeslim
from edgeslim.checks.latency import measure_pair
from edgeslim.core import Batch
from edgeslim.datasets.data import load_examples
from edgeslim.datasets.encoding import encode_examples, load_tokenizer
from edgeslim.session import OrtRunner, open_runner

FOLDER = SAMPLES / "text-classification"
RECIPES = ("distilled", "sparse")
ROUNDS = 60


def load_labelled(name: str) -> tuple[Batch, ...]:
    """The samples of a file of texts with labels, a text a batch."""
    examples = load_examples(FOLDER / "data" / name)
    tokenizer = load_tokenizer(FOLDER / "data" / "model")
    return encode_examples(examples, tokenizer, TOKEN_INPUTS, max_length=SEQUENCE)


def measure(recipe: str | None, work: Path) -> dict[str, Any]:
    """One row: the float model itself without a recipe."""
    subject = text_classification(work / f"float-{recipe}")
    sets = {"film": subject.evaluation, "products": load_labelled("products.jsonl")}
    row: dict[str, Any] = {"recipe": recipe or "float32"}
    reference = runner = open_runner(subject.graph, threads=1)
    if recipe is not None:
        report = edgeslim.build(
            folder=FOLDER,
            target="android-arm64",
            recipe=str(FOLDER / "recipes" / f"{recipe}.toml"),
            max_drop=1.0,
            out=str(work / recipe),
        )
        package = Path(report.artifact.path)
        runner = OrtRunner(edgeslim.load(package, folder=work / recipe, loading="tensors", threads=1))
        row["package_bytes"] = package.stat().st_size
        row["steps"] = [
            {"name": step.name, "before": dict(step.before), "after": dict(step.after), "metrics": dict(step.metrics)}
            for step in report.steps
        ]
        row["latency_ratio"] = measure_pair(reference, runner, subject.timed, rounds=ROUNDS).ratio
    for name, batches in sets.items():
        truth = np.array([label for batch in batches for label in batch.labels])
        found = compare_accuracy(classify(runner, batches), classify(reference, batches), truth)
        row |= {f"{name}_{key}": value for key, value in found.items()}
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, or with ``--json`` its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="only this one (may be repeated)")
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for recipe in (None, *(options.recipe or RECIPES)):
            rows.append(measure(recipe, Path(folder)))
            if not options.json:
                print_row(rows[-1], first=len(rows) == 1)
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
    return 0


def print_row(row: dict[str, Any], *, first: bool) -> None:
    """One line of the table."""
    if first:
        print("| recipe | package | latency of float | film: accuracy, lost | products: accuracy, lost |")
        print("|---|---|---|---|---|")
    size = f"{row['package_bytes'] / 1e6:.2f} MB" if "package_bytes" in row else "–"
    ratio = f"{row['latency_ratio']:.3f}" if "latency_ratio" in row else "1"
    cells = [
        f"{row[f'{name}_accuracy']:.3f}, {row[f'{name}_drop']:.3f} ± {row[f'{name}_drop_interval']:.3f}"
        for name in ("film", "products")
    ]
    print(f"| {row['recipe']} | {size} | {ratio} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
