"""Small ONNX models for tests of graph stages, and what runs a stage on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeslim.core import Batch, Context, StepResult
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.session import OrtRunner, open_runner
from edgeslim.target import load_target
from edgeslim.task import FeatureExtraction


def write_model(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[str | int]],
    *,
    outputs: Sequence[str] = ("y",),
    opset: int = 18,
    external: bool = False,
    **tensors: np.ndarray,
) -> Path:
    """A model; inputs are float32, and int64 where their name begins with ``id``."""
    kinds = {name: TensorProto.INT64 if name.startswith("id") else TensorProto.FLOAT for name in inputs}
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    if external:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.stem}.data", size_threshold=0)
    else:
        onnx.save(model, path)
    return path


def run_stage(
    stage: Any, path: Path, work: Path, feeds: Sequence[dict[str, np.ndarray]]
) -> tuple[StepResult[Any], OrtRunner]:
    """What the stage says, and ONNX Runtime on what it made."""
    work.mkdir()
    context = Context(
        target=load_target("android-arm64"),
        task=FeatureExtraction(pooling="none", normalize=False),
        calibration=[Batch(feed=feed, rows=len(next(iter(feed.values())))) for feed in feeds],
        reference=open_runner(path),
        seed=0,
        work_dir=work,
    )
    result = stage.run(load_graph(path), context)
    return result, open_runner(save_graph(result.model, work / "out")[0])


def stored(result: StepResult[Any]) -> dict[str, np.ndarray]:
    """The initializers of what a stage made, by name."""
    return {name: value.const_value.numpy() for name, value in result.model.graph.initializers.items()}
