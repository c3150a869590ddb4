"""Decoders in GGUF files: the shape from the header, tensors dequantized one at a time, and the blocks as stored.

The format is read by the ``gguf`` package. A file's queries and keys are ordered for rotary positions over pairs of
neighbours; their rows are put back here into the order of transformers, halves of a head. Rows are what a block never
crosses, so that the blocks stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.decoders.checkpoint import FloatArray, check_tensor
from edgeslim.decoders.shape import shape_from_config
from edgeslim.decoders.stored_blocks import BLOCK_BYTES, StoredBlocks, unpack_blocks
from edgeslim.errors import BadInputError, MissingToolError

__all__ = ["GgufCheckpoint", "open_gguf", "read_gguf_config"]

_LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_CONFIG = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
}
_FLOATS = ("F32", "F16", "BF16")


def read_gguf_config(path: Path) -> dict[str, Any]:
    """What the header of a GGUF file says of its model, in the words of a ``config.json``.

    Raises:
        BadInputError: no GGUF file, or not of a Llama-shaped model.
        MissingToolError: the ``gguf`` package isn't installed.
    """
    return _config(open_gguf(path), str(path))


class GgufCheckpoint:
    """The tensors of a GGUF file."""

    def __init__(self, path: Path) -> None:
        """Reads the header of the file at ``path``.

        Raises:
            BadInputError: no GGUF file, or not of a Llama-shaped model.
            MissingToolError: the ``gguf`` package isn't installed.
        """
        reader = open_gguf(path)
        self._where = str(path)
        self.shape = shape_from_config(_config(reader, self._where), self._where)
        self._path = path
        self._tensors = {
            tensor.name: (tensor.tensor_type.name, int(tensor.data_offset), int(tensor.n_bytes))
            for tensor in reader.tensors
        }
        self._wanted = self.shape.tensor_shapes()

    def read(self, name: str) -> FloatArray:
        """As ``Checkpoint`` has it: dequantized, where it is stored in blocks."""
        import gguf

        blocks = self.read_blocks(name)
        if blocks is not None:
            return check_tensor(blocks.dequantize(), name, self._wanted, self._where)
        kind, data = self._read(name)
        shape = self._wanted[name]
        try:
            stored = np.frombuffer(data, np.uint8)
            if kind == "F32":
                stored = stored.view("<f4")
            elif kind == "F16":
                stored = stored.view("<f2")
            values = gguf.dequantize(stored, gguf.GGMLQuantizationType[kind])
            array = np.array(values, np.float32).reshape(shape)
        except (ValueError, KeyError, NotImplementedError) as error:
            raise BadInputError(
                f"{self._where}: tensor {name}", f"{kind}: {error}", expected=f"values of the shape {list(shape)}"
            ) from error
        return check_tensor(array if len(shape) == 1 else self._ordered(name, array), name, self._wanted, self._where)

    def read_blocks(self, name: str) -> StoredBlocks | None:
        """As ``Checkpoint`` has it, for Q4_0, Q4_1 and Q8_0."""
        kind, data = self._read(name)
        shape = self._wanted[name]
        if kind not in BLOCK_BYTES or len(shape) != 2:
            return None
        try:
            blocks = unpack_blocks(np.frombuffer(data, np.uint8), kind, (shape[0], shape[1]))
        except ValueError as error:
            got, _, expected = str(error).partition(", expected ")
            raise BadInputError(f"{self._where}: tensor {name}", got, expected=expected) from error
        order = self._order(name)
        return blocks if order is None else blocks.take_rows(order)

    def kinds(self) -> Mapping[str, int]:
        """How many bytes there are of each kind of tensor."""
        found: dict[str, int] = {}
        for kind, _, size in self._tensors.values():
            found[kind] = found.get(kind, 0) + size
        return found

    def _read(self, name: str) -> tuple[str, bytes]:
        stored = _stored_name(name)
        if stored not in self._tensors:
            raise BadInputError(self._where, f'no tensor "{stored}"', expected="all tensors of a Llama-shaped decoder")
        kind, offset, size = self._tensors[stored]
        with self._path.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(size)
        if len(data) != size:
            raise BadInputError(f"{self._where}: tensor {stored}", f"{len(data)} bytes", expected=f"{size}")
        return kind, data

    def _order(self, name: str) -> npt.NDArray[np.intp] | None:
        """Where the rows of queries and keys lie in the file."""
        heads = self.shape.heads if "q_proj" in name else self.shape.kv_heads if "k_proj" in name else 0
        width = self.shape.head_width
        if not heads:
            return None
        return np.arange(heads * width).reshape(heads, width // 2, 2).swapaxes(1, 2).reshape(-1)

    def _ordered(self, name: str, array: FloatArray) -> FloatArray:
        order = self._order(name)
        return array if order is None else array[order]


def open_gguf(path: Path) -> Any:
    """The ``gguf`` package's reader of the file at ``path``.

    Raises:
        BadInputError: no GGUF file.
        MissingToolError: the package isn't installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingToolError(
            str(path), "the package gguf isn't installed", expected="it, to read GGUF files", hint="pip install gguf"
        ) from error
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # the reader trusts the file's numbers and raises whatever comes of it
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInputError(str(path), f"not a whole GGUF file: {reason[:200]}", expected="a GGUF file") from error


def _config(reader: Any, where: str) -> dict[str, Any]:
    def value(key: str) -> Any:
        field = reader.fields.get(key)
        return None if field is None else field.contents()

    kind = value("general.architecture")
    if kind != "llama":
        raise BadInputError(where, f"the architecture {kind!r}", expected="llama")
    found = {key: value(f"llama.{name}") for key, name in _CONFIG.items()}
    names = {tensor.name for tensor in reader.tensors}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in names,
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "license": value("general.license"),
        **{key: item for key, item in found.items() if item is not None},
    }


def _stored_name(name: str) -> str:
    module = name.removesuffix(".weight")
    if module.startswith("model.layers."):
        _, _, layer, inner = module.split(".", 3)
        return f"blk.{layer}.{_LAYER_NAMES[inner]}.weight"
    return f"{_NAMES[module]}.weight"
