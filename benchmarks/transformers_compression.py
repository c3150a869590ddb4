"""A classifier trained smaller: distilled, pruned and quantized by the recipes that ship with its sample.

``python samples/text-classification/train.py`` goes first. Each row is a build of the sample with one of its recipes:
download, latency beside the float model in turns, and accuracy lost with a paired 95 % interval, on film reviews as in
training (``test.jsonl``) and on product reviews (``products.jsonl``). Neither decides anything in a build.

``distilled`` and ``small`` share one student, trained for some eight minutes of processor time (6-layer teacher, 7,200
training texts); ``sparse`` trains for ten. edgeslim's cache keeps both, so each step is done once.

Usage: ``python benchmarks/transformers_compression.py [--json] [--recipe NAME …]``
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measurement import classify, compare_accuracy, measure_latency, median_ratio
from subjects import SAMPLES, SEQUENCE, TOKEN_INPUTS, Subject, text_classification

import edgeslim
from edgeslim.checks.package import check_weights
from edgeslim.core import Batch
from edgeslim.datasets.data import Example, load_examples
from edgeslim.datasets.encoding import encode_examples, load_tokenizer
from edgeslim.graphs.graph import MODEL_NAME
from edgeslim.packaging.unpack import unpack_package
from edgeslim.session import open_runner

FOLDER = SAMPLES / "text-classification"
RECIPES = ("distilled", "small", "sparse")
SETS = {"film": "test.jsonl", "products": "products.jsonl"}
ROUNDS = 60


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Texts with their true classes, and those that the float model gives them."""

    texts: Sequence[Example]
    truth: np.ndarray
    reference: np.ndarray


def judge(name: str, subject: Subject) -> Judged:
    """The float model's answers to a file of texts with labels."""
    texts = load_examples(FOLDER / "data" / name)
    batches = encode(texts, FOLDER / "data" / "model")
    truth = np.array([label for batch in batches for label in batch.labels])
    return Judged(texts=texts, truth=truth, reference=classify(open_runner(subject.graph, threads=1), batches))


def encode(texts: Sequence[Example], tokenizer: Path) -> tuple[Batch, ...]:
    """A text a batch."""
    return encode_examples(texts, load_tokenizer(tokenizer), TOKEN_INPUTS, max_length=SEQUENCE)


def compare(answers: Mapping[str, np.ndarray], judged: Mapping[str, Judged]) -> dict[str, float]:
    """Accuracy and what is lost of it, by the name of the texts."""
    row: dict[str, float] = {}
    for name, ours in answers.items():
        found = compare_accuracy(ours, judged[name].reference, judged[name].truth)
        row |= {f"{name}_{key}": value for key, value in found.items()}
    return row


def measure(recipe: str, subject: Subject, judged: Mapping[str, Judged], work: Path) -> dict[str, Any]:
    """The row of a recipe, texts encoded by the package's own tokenizer."""
    report = edgeslim.build(
        folder=FOLDER,
        target="android-arm64",
        recipe=str(FOLDER / "recipes" / f"{recipe}.toml"),
        max_drop=1.0,
        out=str(work / recipe),
    )
    package = Path(report.artifact.path)
    unpacked = unpack_package(package, work / f"{recipe}-package")
    assert all(finding.verdict != "fail" for finding in check_weights(unpacked))  # it decodes them, too
    folder = unpacked.folder
    runner = open_runner(folder / MODEL_NAME, threads=1)
    answers = {name: classify(runner, encode(known.texts, folder / "tokenizer")) for name, known in judged.items()}
    # Ids that any vocabulary has; what they mean makes no difference to the time.
    timed = {name: np.minimum(value, 999) for name, value in subject.timed.items()}
    times = measure_latency({"float": subject.graph, "ours": folder / MODEL_NAME}, timed, ROUNDS)
    return {
        "recipe": recipe,
        "package_bytes": package.stat().st_size,
        "packed_bytes": sum((folder / name).stat().st_size for name in (MODEL_NAME, "weights.esz")),
        "steps": [
            {"name": step.name, "before": dict(step.before), "after": dict(step.after), "metrics": dict(step.metrics)}
            for step in report.steps
        ],
        "latency_ratio": median_ratio(times["ours"], times["float"]),
        **compare(answers, judged),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, or with ``--json`` its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="only this one (may be repeated)")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        subject = text_classification(Path(folder) / "float")
        judged = {name: judge(file, subject) for name, file in SETS.items()}
        rows.append({"recipe": "float32", **compare({name: one.reference for name, one in judged.items()}, judged)})
        for recipe in (None, *(options.recipe or RECIPES)):
            if recipe is not None:
                rows.append(measure(recipe, subject, judged, Path(folder)))
            if not options.json:
                print_row(rows[-1], first=len(rows) == 1)
    if options.json:
        print(json.dumps({"rows": rows}, indent=2))
    return 0


def print_row(row: dict[str, Any], *, first: bool) -> None:
    """One line of the table."""
    if first:
        print("| recipe | package | graph and weights | latency of float | film: accuracy, lost | products |")
        print("|---|---|---|---|---|---|")
    sizes = [f"{row[key] / 1e6:.2f} MB" if key in row else "–" for key in ("package_bytes", "packed_bytes")]
    ratio = f"{row['latency_ratio']:.3f}" if "latency_ratio" in row else "1"
    cells = [
        f"{row[f'{name}_accuracy']:.3f}, {row[f'{name}_drop']:.3f} ± {row[f'{name}_drop_interval']:.3f}"
        for name in ("film", "products")
    ]
    print(f"| {row['recipe']} | {sizes[0]} | {sizes[1]} | {ratio} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
