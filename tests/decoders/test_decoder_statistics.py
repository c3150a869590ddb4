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


def test_moments_and_gradients_are_sums_over_tokens() -> None:
    import torch

    # Of gate and up projection the second alone: what they share must not depend on the first being asked for.
    paths = [f"model.layers.1.mlp.{name}_proj" for name in ("up", "down")]
    batches = [Batch(feed={"input_ids": TOKENS}, rows=1)]
    found = collect_statistics(checkpoint(), batches, seed=3, progress=Quiet(), paths=paths)
    module = make_module(checkpoint())
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for path in paths:
        module.get_submodule(path).register_forward_hook(lambda _, x, y, path=path: seen.update({path: (x[0], y)}))
    logits = module(torch.from_numpy(TOKENS)).logits[0]
    drawn = torch.multinomial(torch.softmax(logits, -1), 1, generator=torch.Generator().manual_seed(3))[:, 0]
    loss = -torch.log_softmax(logits, -1).gather(1, drawn[:, None]).sum()
    for path in paths:
        rows, output = seen[path]
        gradient = torch.autograd.grad(loss, output, retain_graph=True)[0][0].numpy()
        weights = np.square(gradient).mean(axis=1) if "down" in path else np.ones(len(gradient))
        wanted = sum(w * np.outer(x, x) for w, x in zip(weights, rows.detach().numpy()[0], strict=True))
        moments = found.moments[input_name(path)]
        np.testing.assert_allclose(moments, wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max())
        costs = np.square(gradient).sum(axis=0) / weights.sum()
        np.testing.assert_allclose(found.gradients[path], costs, rtol=1e-3, atol=1e-4 * costs.mean())
    assert input_name(paths[0]) == "model.layers.1.mlp.gate_proj"
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


@pytest.mark.parametrize("bits", [2.0, 3.5, 6.0])
def test_few_bits_lift_the_limit_on_steps(bits: float, tmp_path: Path) -> None:
    floats = load_graph(write_decoder(checkpoint(), tmp_path / "float"))
    result = QuantizeDecoder(target_bits=bits, strength=0).run(floats, context(tmp_path))
    assert result.metrics["predicted_bits"] == pytest.approx(bits, abs=0.02)
    assert result.metrics["bits_per_weight"] == pytest.approx(bits, abs=0.25)


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
