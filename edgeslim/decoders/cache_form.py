"""The KV cache of a decoder's graph in another form: int8, and in buffers of a fixed length.

ONNX Runtime's ``GroupQueryAttention`` takes an int8 cache as it is, with a scale a channel of each key and value head
(``k_quant_type`` PER_CHANNEL; on CPUs since 1.28): what a step appends is rounded, and attention reads the integers. A
quarter of the memory, which grows with each token. Float16 caches go with float16 arithmetic only, so they are no form
here. Scales are constants: the largest magnitude of a channel in calibration by 127; what exceeds it is cut off. Of
keys, which positions turn in pairs of channels, it is that of the pair, so that it holds at any position.

With a fixed length the inputs are buffers of so many tokens, of which the new input ``past_length`` [1] (int64) are in
use; the outputs are the same buffers with the new tokens behind those. No shape depends on how far a text has come,
which is what runtimes without free dimensions want, and memory is known beforehand. The numbers stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.core import Batch, Progress, Runner
from edgeslim.errors import BadInputError
from edgeslim.session import PAST_LENGTH

__all__ = ["PAST_KEY", "attention_nodes", "fix_length", "largest_magnitudes", "quantize_cache"]

LEVELS = 127
TINY = 1e-8
PAST_KEY, PAST_VALUE, K_SCALE, V_SCALE = 3, 4, 12, 13
Magnitudes = Mapping[str, npt.NDArray[np.float32]]


def attention_nodes(model: ir.Model) -> list[ir.Node]:
    """The attentions with a cache.

    Raises:
        BadInputError: there are none, or they have another form already.
    """
    nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention" and len(node.outputs) > 2]
    if not nodes:
        raise BadInputError("graph", "no attention with a KV cache", expected="a language model's graph")
    for node in nodes:
        past = node.inputs[PAST_KEY]
        if past is None or past.dtype != ir.DataType.FLOAT or past.shape is None or isinstance(past.shape[2], int):
            raise BadInputError(str(node.name), "a KV cache of another form", expected="float32 of any length")
    return nodes


def largest_magnitudes(run: Runner, batches: Sequence[Batch], progress: Progress) -> dict[str, npt.NDArray[np.float32]]:
    """The largest magnitude of each channel [kv_heads, head_width] over ``batches``, by the name of a cache's output.

    Raises:
        BadInputError: there are no batches, or a value isn't finite.
    """
    if not batches:
        raise BadInputError("calibration", "no samples", expected="at least one sample", hint="--data FILE")
    found: dict[str, npt.NDArray[np.float32]] = {}
    for batch in progress.track(batches, "KV cache", len(batches)):
        for name, value in run(batch.feed).items():
            if name.startswith("present."):
                most = _magnitudes(value, turned=name.endswith(".key")).max(axis=(0, 2)).astype(np.float32)
                found[name] = np.maximum(found[name], most) if name in found else most
    for name, most in found.items():
        if not np.isfinite(most).all():
            raise BadInputError(f"calibration: {name}", "a NaN or infinite value", expected="finite keys and values")
    return found


def _magnitudes(value: npt.NDArray[np.float32], *, turned: bool) -> npt.NDArray[np.float32]:
    """Of each channel; ``turned`` by positions, that of its pair."""
    if not turned:
        return np.abs(value)
    half = value.shape[-1] // 2
    pair = np.hypot(value[..., :half], value[..., half:])
    return np.concatenate([pair, pair], axis=-1)


def quantize_cache(model: ir.Model, magnitudes: Magnitudes) -> int:
    """Makes the cache int8 in place; returns how many attentions have it."""
    nodes = attention_nodes(model)
    for node in nodes:
        node.resize_inputs(V_SCALE + 1)
        for place, kind, value in _parts(node):
            most = np.maximum(magnitudes[str(value.name)], TINY) / LEVELS
            scale = ir.Value(name=f"{node.name}.{kind}_scale", const_value=ir.tensor(most.reshape(len(most), 1, -1)))
            scale.shape, scale.dtype = ir.Shape([len(most), 1, most.shape[1]]), ir.DataType.FLOAT
            model.graph.register_initializer(scale)
            node.replace_input_with(place, scale)
            node.attributes[f"{kind}_quant_type"] = ir.AttrString(f"{kind}_quant_type", "PER_CHANNEL")
        node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
        for cached in _cached(node):
            cached.dtype = ir.DataType.INT8
    return len(nodes)


def fix_length(model: ir.Model, length: int) -> int:
    """Makes the cache buffers of ``length`` tokens in place; returns how many attentions have them.

    Raises:
        BadInputError: the graph counts its tokens otherwise than edgeslim's do.
    """
    nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention" and len(node.outputs) > 2]
    counted = [
        node
        for node in model.graph
        if node.op_type == "Shape" and node.inputs[0] in {item.inputs[PAST_KEY] for item in nodes}
    ]
    if len(counted) != 1:
        raise BadInputError("graph", f"{len(counted)} nodes that tell the cache's length", expected="one")
    used = ir.Value(name=PAST_LENGTH, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
    counted[0].outputs[0].replace_all_uses_with(used)
    model.graph.remove(counted[0], safe=True)
    model.graph.inputs.append(used)
    for node in nodes:
        for cached in _cached(node):
            assert cached.shape is not None
            batch, heads, _, width = cached.shape
            cached.shape = ir.Shape([batch, heads, length, width])
    return len(nodes)


def _parts(node: ir.Node) -> Iterator[tuple[int, str, ir.Value]]:
    """Where a scale goes, what it is of, and the output that it is told by."""
    yield K_SCALE, "k", node.outputs[1]
    yield V_SCALE, "v", node.outputs[2]


def _cached(node: ir.Node) -> Iterator[ir.Value]:
    for value in (node.inputs[PAST_KEY], node.inputs[PAST_VALUE], node.outputs[1], node.outputs[2]):
        assert value is not None
        yield value
