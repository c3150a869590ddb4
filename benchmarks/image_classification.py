"""The table of samples/image-classification: accuracy and latency of int8 forms beside float and ONNX Runtime's own.

``python samples/image-classification/train.py`` goes first. Every candidate is timed in turns with the float model, on
one picture and one thread; the figure is the median of the ratios.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgeslim.checks.latency import measure_pair
from edgeslim.core import Batch, Context, Quiet
from edgeslim.export import export_own
from edgeslim.fields import parse_fields, read_toml
from edgeslim.graph import load_graph, save_graph
from edgeslim.preprocessing import PreprocessingOptions, resolve_preprocessing
from edgeslim.samples import DataOptions, load_samples
from edgeslim.session import open_runner
from edgeslim.source import load_own, resolve_source
from edgeslim.stages.quantize_int8 import QuantizeInt8
from edgeslim.target import load_target
from edgeslim.task import ImageClassification

SAMPLE = Path(__file__).parent.parent / "samples" / "image-classification"
ROUNDS = 4000


def candidates(reference: Path, calibration: Sequence[Batch], work: Path) -> Iterator[tuple[str, Path]]:
    """Each int8 form of the graph at ``reference``, by name."""
    first = next(node.name or "" for node in load_graph(reference).graph if node.op_type == "Conv")
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
            task=ImageClassification(),
            calibration=calibration,
            reference=open_runner(reference),
            seed=0,
            work_dir=work / f"work-{number}",
        )
        yield name, save_graph(stage.run(load_graph(reference), context).model, work / f"model-{number}")[0]
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter([dict(batch.feed) for batch in calibration])

        def get_next(self) -> dict[str, object] | None:
            return next(self.feeds, None)

    logging.disable(logging.WARNING)
    for per_channel in (True, False):
        path = work / f"peer-{per_channel}.onnx"
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(
            str(reference), str(path), Reader(), quant_format=QuantFormat.QDQ, per_channel=per_channel, **types
        )
        yield f"ONNX Runtime static, a scale a {'channel' if per_channel else 'tensor'}", path


def main() -> int:
    """Prints the table."""
    project = read_toml(SAMPLE / "edgeslim.toml")
    own = load_own(resolve_source(project["model"], base=SAMPLE))
    options = parse_fields(PreprocessingOptions, project["preprocessing"], "preprocessing")
    samples = load_samples(
        parse_fields(DataOptions, project["data"], "data"),
        base=SAMPLE,
        tokenizer=None,
        input_names=list(own.inputs),
        labels={name: index for index, name in enumerate(project["labels"])},
        example=None,
        seed=0,
        preprocessing=resolve_preprocessing(options, shape=own.inputs["image"].shape),
    )
    task = ImageClassification()
    print("| model | accuracy | agreement | p50 | of float |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        path = export_own(own, samples.calibration[:8], opset_max=21, folder=work / "float").path
        reference = open_runner(path, threads=1)
        for name, made in [("float32", path), *candidates(path, samples.calibration, work)]:
            runner = open_runner(made, threads=1)
            found = task.evaluate(runner, reference, samples.evaluation, Quiet())
            times = measure_pair(reference, runner, samples.evaluation[0].feed, rounds=ROUNDS)
            p50 = statistics.median(times.candidate_ms)
            figures = f"{found['accuracy']:.4f} | {found['agreement']:.4f} | {p50:.3f} ms | {times.ratio:.2f}"
            print(f"| {name} | {figures} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
