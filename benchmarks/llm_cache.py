"""What the form of the KV cache costs and gives: SmolLM2-135M-Instruct in its own blocks, fed token by token.

Each form reads the beginning of the sample's evaluation text, the prompt in pieces of 64 tokens and the rest one by
one, so that every key and value comes out of the cache; perplexity is on those single tokens, beside that of the
growing float32 cache. A token's time is that behind ``--past`` others, each form in turns with float32, one thread.

    python benchmarks/llm_cache.py [--tokens N] [--past N] [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from llm import Subject, build_stage
from measurement import has_vnni, median_ratio

from edgeslim.core import Context
from edgeslim.decoders.generation import CachedDecoder, empty_cache
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.session import OrtRunner, open_runner
from edgeslim.stages.kv_cache import KvCache
from edgeslim.target import load_target

LENGTH = 2048
PROMPT = 64
FORMS: Mapping[str, KvCache | None] = {
    "float32": None,
    f"float32, {LENGTH} tokens": KvCache(bits=32, length=LENGTH),
    "int8": KvCache(),
    f"int8, {LENGTH} tokens": KvCache(length=LENGTH),
}


def make_forms(subject: Subject, folder: Path) -> dict[str, Path]:
    """The graph in each form."""
    plain = build_stage("edgeslim blocks kept", subject, folder / "float32")
    made = {}
    for name, stage in FORMS.items():
        if stage is None:
            made[name] = plain
            continue
        with tempfile.TemporaryDirectory() as scratch:
            context = Context(
                target=load_target("linux-arm64"),
                task=subject.task,
                calibration=subject.calibration,
                reference=open_runner(plain),
                seed=0,
                work_dir=Path(scratch),
            )
            made[name] = save_graph(stage.run(load_graph(plain), context).model, folder / name.replace(" ", "-"))[0]
    return made


def open_decoder(runner: OrtRunner) -> CachedDecoder:
    """Its cache is empty."""
    return CachedDecoder(runner, empty_cache(runner.signature()["inputs"]))


def measure_losses(runner: OrtRunner, tokens: list[int]) -> list[float]:
    """-log p of the tokens behind the prompt, each fed by itself."""
    decoder = open_decoder(runner)
    logits = decoder.feed(tokens[:PROMPT])
    lost = []
    for token in tokens[PROMPT:]:
        shifted = logits.astype(np.float64) - float(logits.max())
        lost.append(float(np.log(np.exp(shifted).sum()) - shifted[token]))
        logits = decoder.feed([token])
    return lost


def measure_times(
    runners: Mapping[str, OrtRunner], tokens: list[int], past: int, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of a token behind ``past`` others, form by form in turns."""
    decoders = {name: open_decoder(runner) for name, runner in runners.items()}
    for decoder in decoders.values():
        decoder.feed(tokens[:past])
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, decoder in decoders.items():
            started = time.perf_counter_ns()
            decoder.feed(tokens[past : past + 1])
            times[name].append((time.perf_counter_ns() - started) / 1e6)
    return times


def main() -> None:
    """Prints a row a form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_500)
    parser.add_argument("--past", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        subject = Subject(Path(scratch), arguments.tokens)
        tokens = [
            int(token) for batch in subject.evaluation for token in batch.feed["input_ids"][0, -(batch.scored or 0) :]
        ]
        runners = {name: open_runner(path, threads=1) for name, path in make_forms(subject, Path(scratch)).items()}
        losses = {name: measure_losses(runner, tokens[: arguments.tokens]) for name, runner in runners.items()}
        times = measure_times(runners, tokens, arguments.past, arguments.rounds) if arguments.rounds else {}
        rows: list[dict[str, Any]] = []
        for name, runner in runners.items():
            cache = empty_cache(runner.signature()["inputs"]).values()
            row: dict[str, Any] = {
                "cache": name,
                "bytes_a_token": sum(part.shape[1] * part.shape[3] * part.itemsize for part in cache),
                "tokens": len(losses[name]),
                "perplexity_ratio": math.exp(statistics.fmean(losses[name]) - statistics.fmean(losses["float32"])),
            }
            if times:
                row |= {
                    "token_ms": statistics.median(times[name]),
                    "ratio": median_ratio(times[name], times["float32"]),
                }
            rows.append(row)
    if arguments.json:
        arguments.json.write_text(json.dumps({"vnni": has_vnni(), "rows": rows}, indent=2), encoding="utf-8")
    print("| KV cache | bytes a token | perplexity, of float32's | a token's time, of float32's |\n|---|---|---|---|")
    for row in rows:
        took = f"{row['ratio']:.3f}" if "ratio" in row else "–"
        print(f"| {row['cache']} | {row['bytes_a_token']:,} | {row['perplexity_ratio']:.4f} | {took} |")


if __name__ == "__main__":
    main()
