"""A tiny random Llama and a byte-level tokenizer: as a Hugging Face folder and as a GGUF file."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 320
ROPE_THETA = 10000.0
TEXT = "The quick brown fox jumps over the lazy dog, 1234 times; the dog doesn't mind. " * 30

PROJECT = """
model = "{model}"
name = "tiny"
task = "causal-lm"

[data]
calibration = "calibration.txt"
evaluation = "evaluation.txt"
max_length = 32
stride = 16

[budget]
max_drop = {drop}
{steps}
"""
KEEP = """
[[steps]]
use = "keep_blocks"
"""


@functools.cache
def config() -> Any:
    import transformers

    return transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5, rope_theta=ROPE_THETA, tie_word_embeddings=True,
        max_position_embeddings=256, bos_token_id=1, eos_token_id=2, attn_implementation="eager",
        initializer_range=0.2, architectures=["LlamaForCausalLM"],
    )  # fmt: skip


@functools.cache
def model() -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    made = transformers.LlamaForCausalLM(config())
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "norm" in name:
                weight += 0.3 * torch.randn(weight.shape)
    return made.eval()


@functools.cache
def vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator([TEXT, "and a wörld of ünïcode 😀"], trainer)
    import json

    state = json.loads(made.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    tokens += [f"<|unused_{index}|>" for index in range(VOCABULARY - len(tokens))]
    return tokens, [tuple(merge) for merge in state["merges"]]


def write_gguf(path: Path, kinds: dict[str, str], **changes: Any) -> Path:
    """``kinds`` gives the kind of tensor by a part of its stored name; others are F32."""
    import gguf

    settings = config()
    writer = gguf.GGUFWriter(path, changes.get("architecture", "llama"))
    writer.add_block_count(settings.num_hidden_layers)
    writer.add_context_length(settings.max_position_embeddings)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_feed_forward_length(settings.intermediate_size)
    writer.add_head_count(settings.num_attention_heads)
    writer.add_head_count_kv(settings.num_key_value_heads)
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_vocab_size(settings.vocab_size)
    tokens, merges = vocabulary()
    writer.add_tokenizer_model(changes.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, array in stored_arrays().items():
        kind = next((kind for part, kind in kinds.items() if part in name and array.ndim == 2), "F32")
        if kind == "F32":
            writer.add_tensor(name, array)
        else:
            code = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quantize(array, code), raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def stored_arrays() -> dict[str, np.ndarray]:
    """The weights by their names in a GGUF file; queries and keys in its order of rows, pairs of neighbours."""
    found = {}
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, weight in model().state_dict().items():
        array = weight.numpy()
        if name == "lm_head.weight":
            continue
        if name.startswith("model.layers."):
            _, _, layer, inner, _ = name.replace("self_attn.", "self_attn:").replace("mlp.", "mlp:").split(".")
            inner = inner.replace(":", ".")
            if inner.endswith(("q_proj", "k_proj")):
                heads = 4 if inner.endswith("q_proj") else 2
                array = array.reshape(heads, 2, 8, 64).swapaxes(1, 2).reshape(array.shape)
            found[f"blk.{layer}.{names[inner]}.weight"] = np.ascontiguousarray(array)
        else:
            found[
                {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
            ] = array
    return found


def write_huggingface(folder: Path) -> Path:
    from edgeslim.decoders.gguf_tokenizer import write_gguf_tokenizer

    model().save_pretrained(folder)
    write_gguf_tokenizer(write_gguf(folder.with_suffix(".gguf"), {}), folder)
    return folder


def greedy(prompt: list[int], count: int) -> list[int]:
    """What transformers' own loop of forward passes without a cache says."""
    import torch

    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model()(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def write_project(folder: Path, model: str, steps: str = KEEP, drop: float = 0.05) -> Path:
    """A project that builds the model at ``model``, and its texts."""
    folder.mkdir(exist_ok=True)
    (folder / "edgeslim.toml").write_text(PROJECT.format(model=model, steps=steps, drop=drop))
    (folder / "calibration.txt").write_text(TEXT[:700])
    (folder / "evaluation.txt").write_text("A dog of the lazy kind jumps 12 times over a fox. " * 6)
    return folder
