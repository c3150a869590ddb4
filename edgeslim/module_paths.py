"""Which layer, block and group a tensor belongs to, by its module path.

Groups come from words that the field uses for embeddings, attention and feed-forward layers, not from a list of models.
What else has weights in a repeated block that has attention (BERT's ``output.dense``) is feed-forward too. Norms,
heads and whatever has no path are "other".
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["GROUPS", "block_path", "group_layers", "layer_path"]

GROUPS = ("embeddings", "attention", "ffn", "other")
_EMBEDDINGS = {"wte", "wpe", "embed", "embeds", "embedding", "embeddings", "embedder"}
_ATTENTION = {"attn", "attention", "attentions", "qkv", "crossattention", "selfattention"}
_ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "in_proj", "q_lin", "k_lin", "v_lin", "out_lin"}
_FFN = {"mlp", "ffn", "feedforward", "intermediate", "expert", "experts", "moe", "fc1", "fc2", "lin1", "lin2"}
_FFN_PARTS = {"feed_forward", "up_proj", "down_proj", "gate_proj", "gate_up_proj"}
_NORMS = re.compile(r"norm|^ln(_|\d|$)|^bn\d*$", re.IGNORECASE)


def layer_path(name: str, node: str = "") -> str:
    """The path of the module that a tensor belongs to, with dots: from its own name, or that of its operator."""
    for text in (name, node):
        if "::" in text or not re.search(r"[./]", text):
            continue
        if "/" in text:  # /encoder/layer.0/output/dense/MatMul.weight_int8: an operator comes last
            return text.rpartition("/")[0].strip("/").replace("/", ".")
        return text.rpartition(".")[0]
    return node


def block_path(layer: str) -> str:
    """``layer`` up to its first number, so all of one repeated block (``encoder.layer.0``); else ``layer`` itself."""
    parts = layer.split(".")
    first = next((index for index, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: first + 1])


def group_layers(layers: Iterable[str]) -> dict[str, str]:
    """The group of each layer, one of ``GROUPS``."""
    named = {layer: _group_by_words(layer) for layer in layers}
    attentive = {block_path(layer) for layer, group in named.items() if group == "attention"}

    def group(layer: str, word: str) -> str:
        if word:
            return word
        block = block_path(layer)
        return "ffn" if block in attentive and layer != block and block.rpartition(".")[2].isdigit() else "other"

    return {layer: group(layer, word) for layer, word in named.items()}


def _group_by_words(layer: str) -> str:
    """The group that a path speaks of; "other" for a norm, and nothing where no word is known."""
    parts = [re.sub(r"(?<=[a-z])(?=[A-Z])", "_", part).lower() for part in layer.split(".")]
    words = {word for part in parts for word in (part, *part.split("_"))}
    if words & _EMBEDDINGS:
        return "embeddings"
    if any(_NORMS.search(part) for part in parts):
        return "other"
    if words & _ATTENTION or words & _ATTENTION_PARTS:
        return "attention"
    if words & _FFN or words & _FFN_PARTS:
        return "ffn"
    return "" if layer else "other"
