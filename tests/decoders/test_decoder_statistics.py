"""Moments and gradients of a decoder, against sums over tokens written out, and what the grids make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_llama
from scipy import special

from edgeslim.core import Batch, Context, Quiet
from edgeslim.decoders.checkpoint import ArrayCheckpoint, Checkpoint
from edgeslim.decoders.decoder_graph import write_decoder
from edgeslim.decoders.decoder_statistics import collect_statistics, input_name
from edgeslim.decoders.rounded import RoundBlocks
from edgeslim.decoders.shape import shape_from_config
from edgeslim.decoders.torch_decoder import make_module
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph import load_graph
from edgeslim.language_task import CausalLM
from edgeslim.stages.keep_blocks import KeepBlocks
from edgeslim.stages.quantize_decoder import QuantizeDecoder
from edgeslim.target import load_target

TOKENS = np.array([[5, 77, 130, 9, 41, 200, 3, 18]])


def checkpoint() -> Checkpoint:
    state = tiny_llama.model().state_dict()
    arrays = {name: weight.numpy for name, weight in state.items()}
    return ArrayCheckpoint(arrays, shape_from_config(tiny_llama.config().to_dict(), "tiny"))


def test_moments_are_weighted_by_the_tokens_gradients() -> None:
    import torch

    found = collect_statistics(checkpoint(), [Batch(feed={"input_ids": TOKENS}, rows=1)], seed=3, progress=Quiet())
    module = make_module(checkpoint())
    layer = module.model.layers[1].mlp
    seen: dict[str, torch.Tensor] = {}
    for name in ("gate_proj", "up_proj"):
        getattr(layer, name).register_forward_hook(lambda _, x, y, name=name: seen.update({name: y, "x": x[0]}))
    logits = module(torch.from_numpy(TOKENS)).logits[0]
    drawn = torch.multinomial(torch.softmax(logits, -1), 1, generator=torch.Generator().manual_seed(3))[:, 0]
    loss = -torch.log_softmax(logits, -1).gather(1, drawn[:, None]).sum()
    gate, up = (item[0].numpy() for item in torch.autograd.grad(loss, [seen["gate_proj"], seen["up_proj"]]))
    rows = seen["x"].detach().numpy()[0]
    wanted = np.zeros((64, 64))
    for x, one, other in zip(rows, gate, up, strict=True):
        wanted += (np.mean(one**2) + np.mean(other**2)) * np.outer(x, x)
    name = input_name("model.layers.1.mlp.up_proj")
    assert name == "model.layers.1.mlp.gate_proj"
    np.testing.assert_allclose(found.moments[name], wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max())
    weight = np.mean(gate**2) + np.mean(up**2)
    np.testing.assert_allclose(
        found.gradients["model.layers.1.mlp.up_proj"], np.mean(up**2, axis=0) / weight, rtol=1e-3, atol=1e-6
    )
    shares = special.softmax(logits.detach().numpy().astype(np.float64), axis=-1)
    fisher = (shares * (1 - shares)).sum(axis=0)
    np.testing.assert_allclose(found.logit_fisher, fisher / fisher.mean(), rtol=1e-4, atol=1e-7)


def context(tmp_path: Path, *, with_checkpoint: bool = True) -> Context:
    batch = Batch(feed={"input_ids": TOKENS}, rows=1)
    return Context(
        target=load_target("linux-arm64"), task=CausalLM(), calibration=[batch], reference=lambda feed: feed, seed=0,
        work_dir=tmp_path / "work", checkpoint=checkpoint() if with_checkpoint else None,
    )  # fmt: skip


@pytest.mark.parametrize("stage", [QuantizeDecoder(), KeepBlocks()])
def test_stages_refuse_what_has_no_checkpoint_or_is_quantized(
    stage: QuantizeDecoder | KeepBlocks, tmp_path: Path
) -> None:
    floats = load_graph(write_decoder(checkpoint(), tmp_path / "float"))
    with pytest.raises(BadInputError, match="source"):
        stage.run(floats, context(tmp_path, with_checkpoint=False))
    rounded = load_graph(write_decoder(checkpoint(), tmp_path / "rounded", encode=RoundBlocks()))
    with pytest.raises(BadInputError):
        stage.run(rounded, context(tmp_path))
    with pytest.raises(BadInputError, match="no samples"):
        collect_statistics(checkpoint(), [], seed=0, progress=Quiet())


@pytest.mark.parametrize("settings", [{"target_bits": 1.0}, {"calibration_windows": 0}, {"damping": -1.0}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        QuantizeDecoder(**settings)  # type: ignore[arg-type]


def test_rounded_blocks_are_the_nearest_levels() -> None:
    made = RoundBlocks(bits=8, search=False)(checkpoint(), "model.layers.0.mlp.up_proj.weight")
    weight = checkpoint().read("model.layers.0.mlp.up_proj.weight")
    steps = np.repeat(np.abs(made.weight.grid.scale), 32, axis=1)
    inside = (made.weight.levels > 0) & (made.weight.levels < 255)  # the ends may clip
    assert inside.mean() > 0.9
    assert np.all((np.abs(made.dequantize() - weight) <= 0.501 * steps + 1e-7)[inside])
