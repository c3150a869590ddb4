"""What ARM machines make of edgeslim's int8: emulated instructions beside float, the same answers as x86-64, load.

    python benchmarks/devices.py [--machines NAME,...] [--parts WORD,...] [--sentences N] [--cache FOLDER] [--json]

all-MiniLM-L6-v2, one thread, 128 tokens, on machines that QEMU emulates; counts are guest instructions, never time.
Needs what `edgeslim check --device qemu` needs. Parts:

- run: one warmed-up run of the int8 graph that the recipe of `linux-arm64` makes, beside the float export
- spread: the int8 run counted in three processes
- load: decoding the container and opening a session, beside opening one on the plain file
- cosine: N held-out sentences there and here, the mean cosine of their vectors
- cnn: the sample's CNN, integer from its first convolution to its last: how many of 16 pictures have the same bits
  there, and how far the logits differ, which a float mean and a float product make of them
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from quantization import make_own
from subjects import Subject, image_classification, sentence_embedding

from edgeslim.core import Feed
from edgeslim.devices.arm_machines import MACHINES
from edgeslim.devices.device import open_device
from edgeslim.devices.runner import DeviceRun, run_on_device
from edgeslim.graphs.graph import MODEL_NAME, WEIGHTS_NAME
from edgeslim.session import open_runner
from edgeslim.stage_cost import pack_weights
from edgeslim.target import load_target

PARTS = ("run", "spread", "load", "cosine", "cnn")
TARGET = "linux-arm64"
DEFAULT = ("cortex-a53", "cortex-a76", "cortex-a7")
EVERY = ("cortex-a53", "cortex-a72", "cortex-a76", "neoverse-n1", "cortex-a7")
PICTURES = 16
TIMEOUT_S = 7200.0
Row = dict[str, Any]


def run_there(machine: str, model: Path, feeds: Sequence[Feed], *, packed: Path | None = None) -> DeviceRun:
    """``model`` on an emulated machine: each feed once, the last one once more, counted."""
    with open_device(f"qemu:{machine}", MACHINES[machine].isa) as device:
        return run_on_device(
            device,
            model=model,
            weights=model.parent / WEIGHTS_NAME,
            packed=packed,
            feeds=feeds,
            threads=1,
            rounds=1,
            warm_up=1 if len(feeds) == 1 else 0,
            timeout_s=TIMEOUT_S,
        )


def quantized(subject: Subject, folder: Path) -> Path:
    """The graph that the target's own recipe makes, kept in ``folder``."""
    path = folder / subject.name / MODEL_NAME
    if not path.is_file():
        make_own([dict(table) for table in load_target(TARGET).steps], subject, path)
    return path


def measure_minilm(subject: Subject, machine: str, parts: Sequence[str], sentences: int, folder: Path) -> Row:
    """One machine's figures for the sentence encoder."""
    model, row = quantized(subject, folder), Row()
    if not (subject.graph.parent / WEIGHTS_NAME).exists():
        raise SystemExit(f"{subject.graph.parent} has no {WEIGHTS_NAME}")
    if {"run", "load", "spread"} & set(parts):
        plain = run_there(machine, model, [subject.timed])
        assert plain.instructions is not None
        row |= {"int8": plain.instructions.run, "load_plain": plain.instructions.load, "runtime": plain.runtime}
    if "run" in parts:
        float_run = run_there(machine, subject.graph, [subject.timed]).instructions
        assert float_run is not None
        row |= {"float32": float_run.run, "of_float32": row["int8"] / float_run.run}
    if "load" in parts:
        packed = model.with_name("weights.esz")
        pack_weights(model.parent, packed)
        found = run_there(machine, model, [subject.timed], packed=packed).instructions
        assert found is not None
        row |= {"decode": found.decode, "load_of_plain": (found.decode + found.load) / row["load_plain"]}
    if "spread" in parts:
        again = [run_there(machine, model, [subject.timed]).instructions for _ in range(2)]
        counts = [row["int8"], *(item.run for item in again if item is not None)]
        row["spread"] = max(counts) - min(counts)
    if "cosine" in parts:
        row |= compare_vectors(subject, model, machine, sentences)
    return row


def compare_vectors(subject: Subject, model: Path, machine: str, count: int) -> Row:
    """The vectors of ``count`` held-out sentences on the machine beside those of this host, pooled as the task does."""
    batches, here = subject.evaluation, open_runner(model)
    chosen, rows = [], 0
    for batch in batches:
        if rows >= count:
            break
        chosen.append(batch)
        rows += batch.rows
    there = run_there(machine, model, [batch.feed for batch in chosen]).outputs
    cosines: list[float] = []
    for batch, output in zip(chosen, there, strict=True):
        ours = subject.task._embed(next(iter(output.values())), batch)  # type: ignore[attr-defined]
        theirs = subject.task._embed(next(iter(here(batch.feed).values())), batch)  # type: ignore[attr-defined]
        cosines += [float(value) for value in (ours * theirs).sum(axis=1)]
    return {"sentences": len(cosines), "cosine": float(np.mean(cosines)), "cosine_min": min(cosines)}


def with_integer_outputs(model: Path, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """A copy of the graph that also gives what its last integer operators made, and the names of those outputs."""
    graph = onnx.load(model)
    names = tuple(node.input[0] for node in graph.graph.node if node.op_type == "DequantizeLinear")
    graph.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in names)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(graph, folder / MODEL_NAME)
    (folder / WEIGHTS_NAME).write_bytes(b"")
    return folder / MODEL_NAME, names


def measure_cnn(subject: Subject, machine: str, folder: Path) -> Row:
    """How many of some pictures have the same bits here and there after the last convolution; how far logits differ."""
    model, integers = with_integer_outputs(quantized(subject, folder), folder / "cnn-with-integers")
    image = next(iter(subject.evaluation[0].feed))
    values = np.concatenate([batch.feed[image] for batch in subject.evaluation[:PICTURES]])[:PICTURES]
    feeds: list[Feed] = [{image: values[index : index + 1]} for index in range(len(values))]
    here, there = open_runner(model), run_there(machine, model, feeds)
    pairs = [(here(feed), output) for feed, output in zip(feeds, there.outputs, strict=True)]
    same = sum(all(np.array_equal(ours[name], theirs[name]) for name in integers) for ours, theirs in pairs)
    logits = next(name for name in pairs[0][0] if name not in integers)
    farthest = max(float(np.abs(ours[logits] - theirs[logits]).max()) for ours, theirs in pairs)
    assert there.instructions is not None
    return {"pictures": len(feeds), "identical": same, "logits": farthest, "cnn": there.instructions.run}


def print_rows(rows: dict[str, Row]) -> None:
    """One table; what was not measured is a dash."""
    columns = {
        "float32": ("float32", "{:,}"),
        "int8": ("int8", "{:,}"),
        "of float32": ("of_float32", "{:.4f}"),
        "spread": ("spread", "{:,}"),
        "load, plain file": ("load_plain", "{:,}"),
        "decode": ("decode", "{:,}"),
        "decode and load of plain": ("load_of_plain", "{:.2f}"),
        "cosine with x86-64": ("cosine", "{:.6f}"),
        "worst": ("cosine_min", "{:.5f}"),
        "CNN: same bits": ("identical", "{}"),
        "logits differ by": ("logits", "{:.1e}"),
    }
    shown = {title: item for title, item in columns.items() if any(item[0] in row for row in rows.values())}
    print("| machine | " + " | ".join(shown) + " |\n|" + "---|" * (len(shown) + 1))
    for machine, row in rows.items():
        cells = [form.format(row[key]) if key in row else "–" for key, form in shown.values()]
        print(f"| {machine} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Prints the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", default="", help="default: an A53, an A76 and an A7; for the CNN also others")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--sentences", type=int, default=500)
    parser.add_argument("--cache", type=Path, default=None, help="where quantized graphs are kept for the next run")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    named = tuple(arguments.machines.split(",")) if arguments.machines else ()
    unknown = [*(set(parts) - set(PARTS)), *(set(named) - set(MACHINES))]
    if unknown:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}; {', '.join(MACHINES)}")
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(prefix="edgeslim-devices-") as scratch:
        work, kept = Path(scratch), arguments.cache or Path(scratch) / "quantized"
        if set(parts) - {"cnn"}:
            subject = sentence_embedding(work / "float")
            for machine in named or DEFAULT:
                rows[machine] = measure_minilm(subject, machine, parts, arguments.sentences, kept)
        if "cnn" in parts:
            pictures = image_classification(work / "cnn")
            for machine in named or EVERY:
                rows.setdefault(machine, {}).update(measure_cnn(pictures, machine, kept))
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        print_rows(rows)


if __name__ == "__main__":
    main()
