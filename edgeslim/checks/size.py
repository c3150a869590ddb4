"""What a package weighs: as built, as an app store sends it, and on the device after the first start.

``bits_per_weight`` are storage bits: the whole packed file over the weights that it holds. Scales and zero points are
no weights, though their bytes count, and weights that a kernel takes packed (2 or 4 bits in uint8) count one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx

from edgeslim.checks.operators import read_graph
from edgeslim.core import Artifact, Budget, Finding

__all__ = ["check_size", "count_weights"]

_WEIGHT_INPUTS = {
    "DequantizeLinear": (0,),
    "QuantizeLinear": (0,),
    "DynamicQuantizeMatMul": (1, 4),
    "GatherBlockQuantized": (0, 1),
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1, 6),
    "MatMulNBits": (1, 5),
    "QAttention": (1, 2),
    "QGemm": (0, 3, 6),
    "QLinearConv": (0, 3, 8),
    "QLinearMatMul": (0, 3),
}
"""Inputs that can be weights, of the operators that have scales and zero points among their inputs."""

_PACKED_INPUTS = {"MatMulNBits": (1, 4), "GatherBlockQuantized": (0, 4)}
"""An input that holds several weights a byte, and how many bits each has where the attribute ``bits`` is absent."""


def check_size(
    artifact: Artifact,
    budget: Budget,
    *,
    download_bytes: int,
    installed_bytes: int,
    memory_bytes: int | None = None,
    flash_bytes: int | None = None,
) -> Iterator[Finding]:
    """Findings on bytes. ``package_bytes`` is limited by ``budget.max_size_bytes``.

    ``download_bytes`` is the package as it is sent (an APK compresses it), ``installed_bytes`` what it takes on the
    device once the weights are decoded. ``memory_bytes``, the device's whole memory, is the limit of what must be in
    it at the least: graph and weights. ``flash_bytes``, its storage for a model, is the limit of ``installed_bytes``.

    Raises:
        BadInputError: the artifact's model can't be read.
    """
    package = artifact.package.stat().st_size
    packed = artifact.packed.stat().st_size
    sizes = (
        ("package_bytes", package, budget.max_size_bytes, artifact.package.name, ""),
        ("download_bytes", download_bytes, None, artifact.package.name, "as sent, compressed"),
        ("installed_bytes", installed_bytes, flash_bytes, "device", "package, and weights decoded once; computed"),
        ("weights_bytes", artifact.weights.stat().st_size, None, artifact.weights.name, ""),
        ("packed_bytes", packed, None, artifact.packed.name, ""),
    )
    for metric, value, limit, where, note in sizes:
        yield Finding.at_most("size", metric, value, "bytes", limit, where, note)
    if memory_bytes is not None:
        held = artifact.model.stat().st_size + artifact.weights.stat().st_size
        note = "graph and weights alone, of all the memory that the target has"
        yield Finding.at_most("size", "loaded_bytes", held, "bytes", memory_bytes, "device", note)
    weights = count_weights(read_graph(artifact.model))
    if weights:
        note = f"of {weights:,} weights"
        yield Finding.at_most("size", "bits_per_weight", packed * 8 / weights, "bits", None, artifact.packed.name, note)


def count_weights(model: onnx.ModelProto) -> int:
    """How many weights the external data of ``model`` holds, each initializer once."""
    stored = {
        item.name: math.prod(item.dims)
        for item in model.graph.initializer
        if item.data_location == onnx.TensorProto.EXTERNAL
    }
    types = {item.name: item.data_type for item in model.graph.initializer}
    weights: dict[str, int] = {}
    for node in model.graph.node:
        for index in _WEIGHT_INPUTS.get(node.op_type, range(len(node.input))):
            name = node.input[index] if index < len(node.input) else ""
            if name in stored:
                per_element = _weights_per_byte(node, index) if types[name] == onnx.TensorProto.UINT8 else 1
                weights[name] = max(weights.get(name, 0), stored[name] * per_element)
    return sum(weights.values())


def _weights_per_byte(node: onnx.NodeProto, index: int) -> int:
    where, bits = _PACKED_INPUTS.get(node.op_type, (-1, 8))
    if index != where:
        return 1
    return 8 // next((item.i for item in node.attribute if item.name == "bits" and item.i in (2, 4, 8)), bits)
