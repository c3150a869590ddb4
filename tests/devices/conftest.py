"""Models and tools for the tests of devices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeslim.core import Feed
from tests.needs import need

__all__ = ["EMULATORS", "TRIPLETS", "need", "need_machine"]

TRIPLETS = {"aarch64": "aarch64-linux-gnu", "armhf": "arm-linux-gnueabihf"}
EMULATORS = {"aarch64": "qemu-aarch64", "armhf": "qemu-arm"}


def need_machine(isa: str) -> None:
    need(EMULATORS[isa], f"{TRIPLETS[isa]}-gcc", "gcc", "npm")


@pytest.fixture(scope="session")
def integer_cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two convolutions that are integer from end to end, and a float output behind them by a power of two."""
    random = np.random.default_rng(3)

    def constant(name: str, value: np.ndarray) -> onnx.TensorProto:
        return numpy_helper.from_array(value, name)

    weights = [random.integers(-127, 128, shape).astype(np.int8) for shape in ((8, 3, 3, 3), (4, 8, 3, 3))]
    initializers = [
        constant("half", np.array(0.5, np.float32)),
        constant("zero", np.array(128, np.uint8)),
        constant("none", np.array(0, np.int8)),
        constant("small", np.array(2**-6, np.float32)),
        constant("wide", np.array(16, np.float32)),
        *(constant(f"w{index}", weight) for index, weight in enumerate(weights)),
    ]
    scales = ["half", "zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *scales], ["q"]),
        helper.make_node(
            "QLinearConv", ["q", *scales, "w0", "small", "none", "wide", "zero"], ["a"], pads=[1, 1, 1, 1]
        ),
        helper.make_node("QLinearConv", ["a", "wide", "zero", "w1", "small", "none", "wide", "zero"], ["b"]),
        helper.make_node("DequantizeLinear", ["b", "wide", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 10, 10])],
        initializers,
    )
    path = tmp_path_factory.mktemp("cnn") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    (path.parent / "weights.bin").write_bytes(b"")
    return path


@pytest.fixture(scope="session")
def pictures() -> list[Feed]:
    random = np.random.default_rng(4)
    return [{"x": random.normal(0, 20, (count, 3, 12, 12)).astype(np.float32)} for count in (1, 2)]
