"""The table of samples/image-classification: accuracy and latency of int8 forms beside float and ONNX Runtime's own.

``python samples/image-classification/train.py`` goes first. Every candidate is timed in turns with the float model, on
one picture and one thread; the figure is the median of the ratios.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measurement import classify, compare_accuracy
from peers import quantize_static
from subjects import Subject, image_classification

from edgeslim.checks.latency import measure_pair
from edgeslim.core import Context
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.session import open_runner
from edgeslim.stages.quantize_int8 import QuantizeInt8
from edgeslim.target import load_target

ROUNDS = 4000


def candidates(subject: Subject, work: Path) -> Iterator[tuple[str, Path]]:
    """Each int8 form of the graph, by name."""
    first = next(node.name or "" for node in load_graph(subject.graph).graph if node.op_type == "Conv")
    stages = {
        "int8": QuantizeInt8(),
        "int8, QDQ form": QuantizeInt8(form="qdq"),
        "int8, a scale a tensor": QuantizeInt8(per_channel=False),
        "int8, first convolution left float": QuantizeInt8(keep_float=(first,)),
        "int8, the head alone": QuantizeInt8(convolutions=False),
    }
    for number, (name, stage) in enumerate(stages.items()):
        context = Context(
            target=load_target("android-arm64"),
            task=subject.task,
            calibration=subject.calibration,
            reference=open_runner(subject.graph),
            seed=0,
            work_dir=work / f"work-{number}",
        )
        yield name, save_graph(stage.run(load_graph(subject.graph), context).model, work / f"model-{number}")[0]
    logging.disable(logging.WARNING)
    for per_channel in (True, False):
        path = work / f"peer-{per_channel}.onnx"
        quantize_static(subject.graph, path, subject.calibration, per_channel=per_channel)
        yield f"ONNX Runtime static, a scale a {'channel' if per_channel else 'tensor'}", path


def main() -> int:
    """Prints the table."""
    print("| model | accuracy | agreement | p50 | of float |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        subject = image_classification(work / "float")
        reference = open_runner(subject.graph, threads=1)
        truth = np.array([label for batch in subject.evaluation for label in batch.labels])
        answers = classify(reference, subject.evaluation)
        for name, made in [("float32", subject.graph), *candidates(subject, work)]:
            runner = open_runner(made, threads=1)
            found = compare_accuracy(classify(runner, subject.evaluation), answers, truth)
            times = measure_pair(reference, runner, subject.timed, rounds=ROUNDS)
            p50 = statistics.median(times.candidate_ms)
            figures = f"{found['accuracy']:.4f} | {found['agreement']:.4f} | {p50:.3f} ms | {times.ratio:.2f}"
            print(f"| {name} | {figures} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
