"""A Llama-shaped decoder as an ONNX graph: prompt and continuation in one, with the KV cache going in and out.

::

    input_ids [batch, length], past_key_values.I.key/value [batch, kv_heads, past, head_width]
        -> logits [batch, length, vocabulary], present.I.key/value [batch, kv_heads, past + length, head_width]

``past`` may be 0: then ``input_ids`` is a prompt. A long prompt may come in pieces, which bounds the memory that its
logits take. All sequences of a batch are as long as each other; there is no padding, and so no mask.

The graph is written straight from a checkpoint, one matrix at a time, which takes the memory of one matrix: exporting a
loaded model takes several times that of all of them. Attention and rotary positions are ONNX Runtime's own operators
(``GroupQueryAttention``, ``RotaryEmbedding``), norms its ``SimplifiedLayerNormalization``. Cosines and sines are
computed for the positions of a run, so that no table bounds the context or takes room.

A matrix is written as floats, as a MatMul, or in blocks of few bits, as a ``MatMulNBits``. Where blocks have minima y =
d q x + m Σ x: the sums of an input's blocks are shared by all matrices that read it. A tied table is stored once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgeslim.core import Progress, Quiet
from edgeslim.decoders.checkpoint import Checkpoint
from edgeslim.decoders.shape import DecoderShape
from edgeslim.decoders.stored_blocks import StoredBlocks
from edgeslim.decoders.weights_file import WeightsWriter
from edgeslim.graphs.graph import MODEL_NAME
from edgeslim.graphs.int8_forms import MICROSOFT

__all__ = ["Encode", "Encoded", "as_floats", "as_stored", "past_names", "write_decoder"]

OPSET = 20
INT8_INPUTS = {4: 4, 8: 4}
Matrix = npt.NDArray[np.float32] | StoredBlocks
Encoded = Matrix | tuple[Matrix, Matrix]
"""A matrix [out, in], or the two [rank, in] and [out, rank] that it has become."""
Encode = Callable[[Checkpoint, str], Encoded]
"""Reads a tensor of a checkpoint in the form in which it is to be written."""


def as_floats(checkpoint: Checkpoint, name: str) -> Matrix:
    """The tensor ``name``, dequantized where it is stored in blocks."""
    return checkpoint.read(name)


def as_stored(checkpoint: Checkpoint, name: str) -> Matrix:
    """The tensor ``name`` in the blocks in which it is stored, or as floats where it is stored so."""
    blocks = checkpoint.read_blocks(name)
    return checkpoint.read(name) if blocks is None else blocks


def past_names(layers: int) -> tuple[str, ...]:
    """The inputs that hold the KV cache; those of the outputs start with ``present`` instead."""
    return tuple(f"past_key_values.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value"))


def write_decoder(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    encode: Encode = as_floats,
    levels: Mapping[int, int] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes ``model.onnx`` and ``weights.bin`` into the new ``folder``; the path of the graph.

    ``levels`` gives the ``accuracy_level`` of ``MatMulNBits`` by bits: int8 inputs (4) unless it says otherwise.

    Raises:
        BadInputError: the checkpoint lacks a tensor, or one can't be used.
    """
    with WeightsWriter(folder) as weights:
        graph = _Writer(checkpoint, weights, encode, levels or INT8_INPUTS).write(progress or Quiet())
    model = ir.Model(graph, ir_version=10, producer_name="edgeslim")
    path = folder / MODEL_NAME
    ir.save(model, path)
    return path


class _Writer:
    """Nodes in the order in which they run, and the initializers that they read."""

    def __init__(
        self, checkpoint: Checkpoint, weights: WeightsWriter, encode: Encode, levels: Mapping[int, int]
    ) -> None:
        self.checkpoint = checkpoint
        self.shape: DecoderShape = checkpoint.shape
        self.weights = weights
        self.encode = encode
        self.levels = levels
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.sums: dict[str, ir.Value] = {}

    def write(self, progress: Progress) -> ir.Graph:
        shape = self.shape
        ids = _value("input_ids", ir.DataType.INT64, ["batch", "length"])
        past = [
            _value(name, ir.DataType.FLOAT, ["batch", shape.layer(index // 2).kv_heads, "past", shape.head_width])
            for index, name in enumerate(past_names(shape.layers))
        ]
        table = self.encode(self.checkpoint, "model.embed_tokens.weight")
        assert not isinstance(table, tuple)
        hidden, tied = self._embed(ids, table)
        lengths, angles = self._positions(ids, past[0])
        outputs: list[ir.Value] = []
        for layer in progress.track(range(shape.layers), "writing layers", shape.layers):
            self.sums.clear()
            hidden, present = self._layer(layer, hidden, past[2 * layer : 2 * layer + 2], lengths, angles)
            outputs += present
        hidden = self._norm("model.norm", hidden)
        logits = self._tied_output(hidden, table, tied) if shape.tied else self._linear("lm_head", hidden)
        logits.name = "logits"
        logits.shape, logits.dtype = ir.Shape(["batch", "length", shape.vocabulary]), ir.DataType.FLOAT
        return ir.Graph(
            [ids, *past],
            [logits, *outputs],
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": OPSET, MICROSOFT: 1},
            name="decoder",
        )

    def node(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, int | float | str] | None = None,
        *,
        name: str,
        domain: str = "",
        outputs: int = 1,
    ) -> tuple[ir.Value, ...]:
        made = ir.node(kind, inputs, attributes, domain=domain, name=name, num_outputs=outputs)
        for index, value in enumerate(made.outputs):
            value.name = name if index == 0 else f"{name}.{index}"
        self.nodes.append(made)
        return tuple(made.outputs)

    def constant(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        if name not in self.initializers:
            tensor = self.weights.add(name, array)
            self.initializers[name] = ir.Value(
                name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype)
            )
        return self.initializers[name]

    def _positions(self, ids: ir.Value, past: ir.Value) -> tuple[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value]]:
        """(Last position of each sequence, length with the past), and (cosines, sines) [length, half]."""
        one, zero = self.constant("one", np.array([1], np.int64)), self.constant("first_position", np.array([0]))
        (before,) = self.node("Shape", [past], {"start": 2, "end": 3}, name="past_length")
        (length,) = self.node("Shape", [ids], {"start": 1, "end": 2}, name="length")
        (batch,) = self.node("Shape", [ids], {"start": 0, "end": 1}, name="batch")
        (total,) = self.node("Add", [before, length], name="total_length")
        (last,) = self.node("Sub", [total, one], name="last_position")
        (last,) = self.node("Cast", [last], {"to": ir.DataType.INT32}, name="last_position_int32")
        (last,) = self.node("Expand", [last, batch], name="last_positions")
        scalars = [self.node("Squeeze", [value, zero], name=f"{value.name}_scalar")[0] for value in (before, total)]
        (total32,) = self.node("Cast", [scalars[1]], {"to": ir.DataType.INT32}, name="total_length_int32")
        step = self.constant("step", np.array(1, np.int64))
        (places,) = self.node("Range", [*scalars, step], name="positions")
        (places,) = self.node("Cast", [places], {"to": ir.DataType.FLOAT}, name="positions_float")
        (places,) = self.node("Unsqueeze", [places, one], name="positions_column")
        width = self.shape.head_width
        exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
        frequencies = (1 / np.float32(self.shape.rope_theta) ** exponents)[None].astype(np.float32)
        (turns,) = self.node("Mul", [places, self.constant("rotary_frequencies", frequencies)], name="rotary_angles")
        angles = (self.node("Cos", [turns], name="rotary_cos")[0], self.node("Sin", [turns], name="rotary_sin")[0])
        return (last, total32), angles

    def _layer(
        self,
        layer: int,
        hidden: ir.Value,
        past: Sequence[ir.Value],
        lengths: tuple[ir.Value, ir.Value],
        angles: tuple[ir.Value, ir.Value],
    ) -> tuple[ir.Value, tuple[ir.Value, ...]]:
        path, sizes = f"model.layers.{layer}", self.shape.layer(layer)
        normed = self._norm(f"{path}.input_layernorm", hidden)
        query, key, value = (self._linear(f"{path}.self_attn.{kind}_proj", normed) for kind in "qkv")
        first = self.constant("first_position", np.array([0]))
        query, key = (
            self.node(
                "RotaryEmbedding", [item, first, *angles], domain=MICROSOFT, name=f"{path}.self_attn.{kind}_rotary"
            )[0]
            for kind, item in (("q", query), ("k", key))
        )
        attended, *present = self.node(
            "GroupQueryAttention",
            [query, key, value, *past, *lengths],
            {"num_heads": sizes.heads, "kv_num_heads": sizes.kv_heads},
            domain=MICROSOFT,
            name=f"{path}.self_attn.attention",
            outputs=3,
        )
        for made, kind in zip(present, ("key", "value"), strict=True):
            made.name = f"present.{layer}.{kind}"
            made.shape = ir.Shape(["batch", sizes.kv_heads, "total", self.shape.head_width])
            made.dtype = ir.DataType.FLOAT
        attended = self._linear(f"{path}.self_attn.o_proj", attended)
        (hidden,) = self.node("Add", [hidden, attended], name=f"{path}.self_attn.residual")
        normed = self._norm(f"{path}.post_attention_layernorm", hidden)
        gate, up = (self._linear(f"{path}.mlp.{kind}_proj", normed) for kind in ("gate", "up"))
        (gated,) = self.node("Sigmoid", [gate], name=f"{path}.mlp.act_fn.sigmoid")
        (gated,) = self.node("Mul", [gate, gated], name=f"{path}.mlp.act_fn")
        (gated,) = self.node("Mul", [gated, up], name=f"{path}.mlp.gated")
        (hidden,) = self.node(
            "Add", [hidden, self._linear(f"{path}.mlp.down_proj", gated)], name=f"{path}.mlp.residual"
        )
        return hidden, tuple(present)

    def _norm(self, path: str, hidden: ir.Value) -> ir.Value:
        gain = self.constant(f"{path}.weight", self.checkpoint.read(f"{path}.weight"))
        attributes: dict[str, int | float | str] = {"axis": -1, "epsilon": self.shape.epsilon, "stash_type": 1}
        return self.node("SimplifiedLayerNormalization", [hidden, gain], attributes, name=path)[0]

    def _linear(self, path: str, source: ir.Value) -> ir.Value:
        if path in self.shape.ranks:
            return self._linear(f"{path}.1", self._linear(f"{path}.0", source))
        made = self.encode(self.checkpoint, f"{path}.weight")
        if isinstance(made, tuple):
            return self._matrix(f"{path}.1", self._matrix(f"{path}.0", source, made[0]), made[1])
        return self._matrix(path, source, made)

    def _matrix(self, path: str, source: ir.Value, matrix: Matrix) -> ir.Value:
        if isinstance(matrix, StoredBlocks):
            return self._blocks(path, source, matrix)
        weight = self.constant(f"{path}.weight", matrix.T)
        return self.node("MatMul", [source, weight], name=path)[0]

    def _blocks(self, path: str, source: ir.Value, matrix: StoredBlocks, stored: str | None = None) -> ir.Value:
        grid, width = matrix.weight.grid, matrix.weight.levels.shape[1]
        inputs = [source, *self._stored(stored or path, matrix)]
        attributes: dict[str, int | float | str] = {
            "K": width,
            "N": len(grid.scale),
            "bits": grid.bits,
            "block_size": grid.block_size,
            "accuracy_level": self.levels[grid.bits],
        }
        name = f"{path}.levels" if matrix.minimum is not None else path
        (made,) = self.node("MatMulNBits", inputs, attributes, domain=MICROSOFT, name=name)
        if matrix.minimum is None:
            return made
        minimum = self.constant(f"{path}.weight_minimum", matrix.minimum.T)
        (offset,) = self.node("MatMul", [self._block_sums(source, grid.block_size), minimum], name=f"{path}.minima")
        return self.node("Add", [made, offset], name=path)[0]

    def _block_sums(self, source: ir.Value, size: int) -> ir.Value:
        name = f"{source.name}.block_sums"
        if name not in self.sums:
            split = self.constant(f"split_blocks_of_{size}", np.array([0, 0, -1, size], np.int64))
            (blocks,) = self.node("Reshape", [source, split], name=f"{source.name}.blocks")
            last = self.constant("last_axis", np.array([-1], np.int64))
            (self.sums[name],) = self.node("ReduceSum", [blocks, last], {"keepdims": 0}, name=name)
        return self.sums[name]

    def _stored(self, name: str, matrix: StoredBlocks) -> list[ir.Value]:
        made = matrix.weight
        values = [
            self.constant(f"{name}.weight_q{made.grid.bits}", made.packed()),
            self.constant(f"{name}.weight_scale", made.grid.scale),
        ]
        zeros = made.packed_zero_points()
        return values if zeros is None else [*values, self.constant(f"{name}.weight_zero_point", zeros)]

    def _embed(self, ids: ir.Value, table: Matrix) -> tuple[ir.Value, list[ir.Value]]:
        """The rows of the tokens, and the initializers that the output layer shares."""
        path = "model.embed_tokens"
        if not isinstance(table, StoredBlocks):
            stored = [self.constant(f"{path}.weight", table)]
            return self.node("Gather", [stored[0], ids], name=path)[0], stored
        if table.minimum is not None:
            floats = [self.constant(f"{path}.weight", table.dequantize())]
            return self.node("Gather", [floats[0], ids], name=path)[0], floats
        grid = table.weight.grid
        stored = self._stored(path, table)
        whole = self.constant(f"{path}.table_shape", np.array([self.shape.vocabulary, -1], np.int64))
        (levels,) = self.node("Reshape", [stored[0], whole], name=f"{path}.table")
        attributes: dict[str, int | float | str] = {
            "bits": grid.bits,
            "block_size": grid.block_size,
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        made = self.node("GatherBlockQuantized", [levels, ids, *stored[1:]], attributes, domain=MICROSOFT, name=path)
        return made[0], stored

    def _tied_output(self, hidden: ir.Value, table: Matrix, stored: list[ir.Value]) -> ir.Value:
        if len(stored) > 1 and isinstance(table, StoredBlocks):
            return self._blocks("lm_head", hidden, table, "model.embed_tokens")
        (turned,) = self.node("Transpose", [stored[0]], name="lm_head.transposed")
        return self.node("MatMul", [hidden, turned], name="lm_head")[0]


def _value(name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
