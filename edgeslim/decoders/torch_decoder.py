"""A checkpoint as transformers' own model: what graphs are compared with, and what gradients go through."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from edgeslim.decoders.checkpoint import ArrayCheckpoint, Checkpoint
from edgeslim.decoders.shape import DecoderShape, LayerSizes, shape_from_config

__all__ = ["ModuleCheckpoint", "make_config", "make_module"]


class ModuleCheckpoint(ArrayCheckpoint):
    """The weights of a ``LlamaForCausalLM`` whose layers may have been pruned or factorized; it isn't copied."""

    def __init__(self, module: Any) -> None:
        """Takes ``module`` as it is.

        Raises:
            BadInputError: it isn't Llama-shaped.
        """
        tensors = dict(module.named_parameters())
        super().__init__({name: tensor.detach().numpy for name, tensor in tensors.items()}, _read_shape(module))
        self.module = module


def _read_shape(module: Any) -> DecoderShape:
    """The sizes of the layers as they are, whatever the config says."""
    config = {**module.config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    shape = shape_from_config(config, "config.json")
    linears = {path: layer for path, layer in module.named_modules() if path.endswith("_proj") or path == "lm_head"}
    factors = {path: layer for path, layer in linears.items() if list(layer.children())}

    def width(path: str) -> int:
        return int((factors[path][1] if path in factors else linears[path]).out_features)

    each = tuple(
        LayerSizes(
            heads=width(f"model.layers.{index}.self_attn.q_proj") // shape.head_width,
            kv_heads=width(f"model.layers.{index}.self_attn.k_proj") // shape.head_width,
            feed_forward=width(f"model.layers.{index}.mlp.up_proj"),
        )
        for index in range(len(module.model.layers))
    )
    ranks = {path: int(layer[0].out_features) for path, layer in factors.items()}
    return replace(shape, layers=len(each), each=each, ranks=ranks)


def make_config(shape: DecoderShape, sizes: LayerSizes) -> Any:
    """The ``LlamaConfig`` of a model whose layers have ``sizes``."""
    import transformers

    return transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=sizes.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=shape.head_width,
        rms_norm_eps=shape.epsilon,
        rope_theta=shape.rope_theta,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=shape.context,
        attn_implementation="eager",
    )


def make_module(checkpoint: Checkpoint) -> Any:
    """A ``LlamaForCausalLM`` in eval mode, with the weights of ``checkpoint`` in float32.

    Raises:
        BadInputError: the checkpoint lacks a tensor, or one can't be used.
    """
    import torch
    import transformers
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    if isinstance(checkpoint, ModuleCheckpoint):
        return copy.deepcopy(checkpoint.module).eval()
    shape = checkpoint.shape
    config = make_config(shape, shape.layer(0))
    with torch.device("meta"):  # its own random weights would take as much memory again
        module = transformers.LlamaForCausalLM(config)
    weights = {name: torch.from_numpy(checkpoint.read(name)) for name in shape.tensor_shapes()}
    module.load_state_dict(weights, strict=False, assign=True)
    if shape.tied:
        module.tie_weights()
    module.model.rotary_emb = LlamaRotaryEmbedding(config)  # its frequencies are computed, and were on "meta"
    return module.eval()
