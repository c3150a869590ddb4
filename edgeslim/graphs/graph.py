"""ONNX graphs on disk: reading them with suspicion, writing them as ``model.onnx`` and ``weights.bin``.

``weights.bin`` is ordinary ONNX external data. It is covered without gaps by *spans*, one a tensor (and one for each
few bytes of padding between tensors), which are what the entropy coder sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.errors import BadInputError

__all__ = [
    "INLINE_BYTES",
    "MODEL_NAME",
    "WEIGHTS_NAME",
    "Span",
    "constant_array",
    "input_forms",
    "load_graph",
    "raise_opset",
    "save_graph",
    "weight_spans",
]

MODEL_NAME = "model.onnx"
WEIGHTS_NAME = "weights.bin"
MAX_GRAPH_BYTES = 2 << 30
INLINE_BYTES = 256
_DTYPES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "uint8",
    ir.DataType.INT32: "int32",
    ir.DataType.INT64: "int64",
    ir.DataType.INT4: "int4x2",
    ir.DataType.UINT4: "uint4x2",
}
PAGE_BYTES = 4096
PAGED_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Span:
    """A run of bytes in ``weights.bin``: a tensor, or padding (dtype ``bytes``)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


def load_graph(path: Path) -> ir.Model:
    """Reads an ONNX model; its external weights stay on disk until they are used.

    Raises:
        BadInputError: the file is no ONNX model, or external data leaves its folder or its file.
    """
    try:
        size = path.stat().st_size
        model = ir.load(path) if size <= MAX_GRAPH_BYTES else None
    except OSError as error:
        raise BadInputError(str(path), error.strerror or str(error), expected="a readable ONNX file") from error
    except Exception as error:  # protobuf and onnx_ir raise many kinds for a malformed file
        cause: BaseException = error
        while cause.__cause__ is not None:  # onnx_ir wraps each level in another that only names it
            cause = cause.__cause__
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise BadInputError(
            str(path), f"not a whole ONNX model: {reason}", expected="an ONNX file", hint="was the download cut short?"
        ) from error
    if model is None:
        raise BadInputError(str(path), f"{size:,} bytes", expected="an ONNX file of at most 2 GiB, weights external")
    if len(model.graph) == 0:
        raise BadInputError(str(path), "a graph without nodes", expected="an ONNX model with at least one operator")
    for name, tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            _check_external(path, name, tensor)
    return model


def save_graph(model: ir.Model, folder: Path) -> tuple[Path, Path]:
    """Writes ``model.onnx`` and ``weights.bin`` into the new ``folder``; tensors of up to 256 bytes stay inline.

    The model in memory is left as it was. Returns both paths; ``weights.bin`` is empty where no tensor is large.
    """
    folder.mkdir(parents=True)
    path, weights = folder / MODEL_NAME, folder / WEIGHTS_NAME
    ir.save(
        model,
        path,
        external_data=WEIGHTS_NAME,
        size_threshold_bytes=INLINE_BYTES,
        alignment=PAGE_BYTES,  # so that a runtime can map large tensors
        align_threshold=PAGED_BYTES,
        max_workers=1,
    )
    weights.touch()
    return path, weights


def raise_opset(model: ir.Model, opset: int) -> None:
    """Converts ``model`` in place to ``opset`` of the standard operators, unless it has that or a newer one.

    Raises:
        BadInputError: an operator has no known form in that opset.
    """
    from onnxscript import version_converter

    if model.graph.opset_imports.get("", 0) >= opset:
        return
    before = model.graph.opset_imports.get("", 0)
    version_converter.convert_version(model, opset)
    if model.graph.opset_imports.get("", 0) < opset:
        raise BadInputError(
            "the graph", f"opset {before}, which can't be converted", expected=f"a model of opset {opset}"
        )


def weight_spans(path: Path) -> tuple[Span, ...]:
    """The spans of the ``weights.bin`` beside the model at ``path``, in file order and without gaps."""
    total = (path.parent / WEIGHTS_NAME).stat().st_size
    found = [
        (tensor.offset or 0, tensor.length or 0, name, tensor)
        for name, tensor in _tensors(load_graph(path))
        if isinstance(tensor, ir.ExternalTensor)
    ]
    spans: list[Span] = []
    end = 0
    for offset, length, name, tensor in sorted(found, key=lambda item: item[:2]):
        if offset > end:
            spans.append(_padding(end, offset - end))
        if offset >= end:
            shape = tuple(int(dim) for dim in tensor.shape.numpy())
            spans.append(Span(name=name, dtype=_dtype_name(tensor), shape=shape, offset=offset, length=length))
            end = offset + length
    if total > end:
        spans.append(_padding(end, total - end))
    return tuple(spans)


def input_forms(model: ir.Model) -> dict[str, tuple[np.dtype[Any], tuple[int | None, ...]]]:
    """Types and shapes of a graph's inputs, ``None`` for a free dimension."""
    return {
        str(value.name): (
            (value.dtype or ir.DataType.FLOAT).numpy(),
            tuple(dim if isinstance(dim, int) else None for dim in value.shape or ()),
        )
        for value in model.graph.inputs
        if value.name not in model.graph.initializers
    }


def constant_array(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The array behind ``value`` where it is known before running; ``None`` for anything computed.

    That is an initializer or a Constant, seen through Identity and Transpose.
    """
    if value is None:
        return None
    if value.const_value is not None and (value.is_initializer() or value.producer() is not None):
        return value.const_value.numpy()
    node = value.producer()
    if node is None or value.is_graph_input():
        return None
    if node.op_type == "Constant":
        attribute = node.attributes.get("value")
        return attribute.as_tensor().numpy() if attribute is not None else None
    if node.op_type == "Identity":
        return constant_array(node.inputs[0])
    if node.op_type == "Transpose":
        inner = constant_array(node.inputs[0])
        order = node.attributes.get("perm")
        return None if inner is None else np.transpose(inner, tuple(order.as_ints()) if order is not None else None)
    return None


def _tensors(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for scope in (graph, *graph.subgraphs()):
            for name, value in scope.initializers.items():
                if value.const_value is not None:
                    yield name, value.const_value
            for node in scope:
                for attribute in node.attributes.values():
                    if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.TENSOR:
                        yield f"{node.name}.{attribute.name}", attribute.as_tensor()


def _check_external(path: Path, name: str, tensor: ir.ExternalTensor) -> None:
    folder = path.parent.resolve()
    place = (folder / str(tensor.location)).resolve()
    where = f"{path}: tensor {name}"
    if not place.is_relative_to(folder):
        raise BadInputError(where, f"external data at {tensor.location}", expected="a file inside the model's folder")
    if not place.is_file():
        raise BadInputError(where, f"external data {tensor.location} isn't there", expected="the file beside the model")
    size = place.stat().st_size
    offset, length = tensor.offset or 0, tensor.nbytes if tensor.length is None else tensor.length
    if offset < 0 or length < 0 or offset + length > size or length != tensor.nbytes:
        raise BadInputError(
            where,
            f"{length:,} bytes at {offset:,} of a file of {size:,} bytes",
            expected=f"{tensor.nbytes:,} bytes inside {tensor.location}",
        )


def _padding(offset: int, length: int) -> Span:
    return Span(name=f"pad@{offset}", dtype="bytes", shape=(length,), offset=offset, length=length)


def _dtype_name(tensor: ir.TensorProtocol) -> str:
    """The container's name of a tensor's element type; a type that it has no name for is plain bytes."""
    return _DTYPES.get(tensor.dtype, "bytes")
