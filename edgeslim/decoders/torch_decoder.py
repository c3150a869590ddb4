"""A checkpoint as transformers' own model: what graphs are compared with, and what gradients go through."""

from __future__ import annotations

from typing import Any

from edgeslim.decoders.checkpoint import Checkpoint

__all__ = ["make_module"]


def make_module(checkpoint: Checkpoint) -> Any:
    """A ``LlamaForCausalLM`` in eval mode, with the weights of ``checkpoint`` in float32.

    Raises:
        BadInputError: the checkpoint lacks a tensor, or one can't be used.
    """
    import torch
    import transformers
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    shape = checkpoint.shape
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        rms_norm_eps=shape.epsilon,
        rope_theta=shape.rope_theta,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=shape.context,
        attn_implementation="eager",
    )
    with torch.device("meta"):  # its own random weights would take as much memory again
        module = transformers.LlamaForCausalLM(config)
    weights = {name: torch.from_numpy(checkpoint.read(name)) for name in shape.tensor_shapes()}
    module.load_state_dict(weights, strict=False, assign=True)
    if shape.tied:
        module.tie_weights()
    module.model.rotary_emb = LlamaRotaryEmbedding(config)  # its frequencies are computed, and were on "meta"
    return module.eval()
