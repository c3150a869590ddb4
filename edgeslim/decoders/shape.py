"""What a Llama-shaped decoder consists of, as ``config.json`` or the header of a GGUF file says it.

Llama-shaped means: RMS norms before attention and feed-forward layer, rotary positions over half-split heads, grouped
queries, a gated SiLU feed-forward layer, and no biases. What departs from that is refused, never approximated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeslim.errors import BadInputError

__all__ = ["DecoderShape", "LayerSizes", "shape_from_config"]

ARCHITECTURES = ("LlamaForCausalLM",)
MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20


@dataclass(frozen=True, kw_only=True)
class LayerSizes:
    """What layers may differ in."""

    heads: int
    kv_heads: int
    feed_forward: int


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Sizes of a decoder. ``tied`` says that the output layer is the embedding's table.

    ``each`` has those of every layer where pruning made them differ. ``ranks`` are those of the matrices that are
    factorized, by path: ``x Aᵀ Bᵀ``, where ``A [rank, in]`` is the tensor ``PATH.0.weight`` and ``B [out, rank]`` is
    ``PATH.1.weight``.
    """

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    epsilon: float
    rope_theta: float
    tied: bool
    context: int
    each: tuple[LayerSizes, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)

    def layer(self, index: int) -> LayerSizes:
        """The sizes of one layer."""
        if self.each:
            return self.each[index]
        return LayerSizes(heads=self.heads, kv_heads=self.kv_heads, feed_forward=self.feed_forward)

    def linear_shapes(self, layer: int) -> dict[str, tuple[int, int]]:
        """Output and input width of each matrix of a layer, by its name in a checkpoint, as if none were factorized."""
        sizes = self.layer(layer)
        query, kv = sizes.heads * self.head_width, sizes.kv_heads * self.head_width
        return {
            "self_attn.q_proj": (query, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, query),
            "mlp.gate_proj": (sizes.feed_forward, self.hidden),
            "mlp.up_proj": (sizes.feed_forward, self.hidden),
            "mlp.down_proj": (self.hidden, sizes.feed_forward),
        }

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of a checkpoint, by its name."""
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            for name, (outputs, inputs) in self.linear_shapes(layer).items():
                path = f"model.layers.{layer}.{name}"
                if path in self.ranks:
                    found[f"{path}.0.weight"] = (self.ranks[path], inputs)
                    found[f"{path}.1.weight"] = (outputs, self.ranks[path])
                else:
                    found[f"{path}.weight"] = (outputs, inputs)
            for name in ("input_layernorm", "post_attention_layernorm"):
                found[f"model.layers.{layer}.{name}.weight"] = (self.hidden,)
        found["model.norm.weight"] = (self.hidden,)
        if not self.tied and "lm_head" in self.ranks:
            found["lm_head.0.weight"] = (self.ranks["lm_head"], self.hidden)
            found["lm_head.1.weight"] = (self.vocabulary, self.ranks["lm_head"])
        elif not self.tied:
            found["lm_head.weight"] = (self.vocabulary, self.hidden)
        return found


def shape_from_config(config: Mapping[str, Any], where: str) -> DecoderShape:
    """The shape that a ``config.json`` describes; ``where`` names the file in errors.

    Raises:
        BadInputError: another architecture, a variant that isn't Llama-shaped, or sizes that don't fit together.
    """
    architecture = (config.get("architectures") or [""])[0]
    if architecture not in ARCHITECTURES:
        raise BadInputError(where, f"the architecture {architecture!r}", expected="one of " + ", ".join(ARCHITECTURES))
    for key, plain in (("rope_scaling", None), ("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if config.get(key, plain) != plain:
            raise BadInputError(f"{where}: {key}", repr(config[key]), expected=repr(plain), hint="not yet supported")
    rotary = _rotary_settings(config, where)
    hidden, heads = _size(config, "hidden_size", where), _size(config, "num_attention_heads", where)
    shape = DecoderShape(
        layers=_size(config, "num_hidden_layers", where, most=MAX_LAYERS),
        hidden=hidden,
        feed_forward=_size(config, "intermediate_size", where),
        heads=heads,
        kv_heads=_size(config, "num_key_value_heads", where, heads),
        head_width=_size(config, "head_dim", where, max(1, hidden // heads)),
        vocabulary=_size(config, "vocab_size", where),
        epsilon=_number(config, "rms_norm_eps", where, 1e-6),
        rope_theta=_number(rotary, "rope_theta", where, 10000.0),
        tied=bool(config.get("tie_word_embeddings", False)),
        context=_size(config, "max_position_embeddings", where, 2048, most=1 << 31),
    )
    if shape.heads % shape.kv_heads or shape.head_width % 2:
        raise BadInputError(
            where,
            f"{shape.heads} heads of {shape.head_width} channels, {shape.kv_heads} of them with keys",
            expected="heads of an even width, a multiple of those with keys",
        )
    return shape


def _rotary_settings(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Where ``rope_theta`` stands: transformers 5 writes it into a table of its own."""
    table = config.get("rope_parameters")
    if table is None:
        return config
    if not isinstance(table, Mapping) or table.get("rope_type", "default") != "default":
        raise BadInputError(
            f"{where}: rope_parameters", repr(table)[:200], expected='"rope_type": "default"', hint="not yet supported"
        )
    if table.get("partial_rotary_factor", 1) != 1:
        where = f"{where}: rope_parameters.partial_rotary_factor"
        raise BadInputError(where, repr(table["partial_rotary_factor"]), expected="1", hint="not yet supported")
    return {**config, **table}


def _size(config: Mapping[str, Any], key: str, where: str, default: int | None = None, *, most: int = MAX_WIDTH) -> int:
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or not 0 < value <= most:
        raise BadInputError(f"{where}: {key}", repr(value), expected=f"a whole number from 1 to {most}")
    return value


def _number(config: Mapping[str, Any], key: str, where: str, default: float) -> float:
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e12:
        raise BadInputError(f"{where}: {key}", repr(value), expected="a number above 0")
    return float(value)
