"""Training on with coarse grids simulated: what is learned is what the graph runs, and it says what the model said."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llama
import torch

from edgeslim.algorithms.allocation import Rounded
from edgeslim.core import Batch, Context, TrainingData
from edgeslim.decoders import grid_distillation
from edgeslim.decoders.decoder_graph import write_decoder
from edgeslim.decoders.grid_distillation import train_grids
from edgeslim.decoders.language_source import empty_inputs
from edgeslim.decoders.torch_decoder import ModuleCheckpoint
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.language_task import CausalLM
from edgeslim.quantizing import grid_training
from edgeslim.session import open_runner
from edgeslim.stages.quantize_decoder import QuantizeDecoder
from edgeslim.target import load_target

PATH = "model.layers.0.mlp.up_proj"


def windows(count: int, seed: int) -> list[Batch]:
    tokens = np.random.default_rng(seed).integers(3, 60, (count, 1, 24))
    return [Batch(feed={"input_ids": row}, rows=1) for row in tokens]


def context(folder: Path) -> Context:
    checkpoint = ModuleCheckpoint(tiny_llama.model())
    return Context(
        target=load_target("linux-arm64"), task=CausalLM(), calibration=windows(12, 0), reference=lambda feed: feed,
        work_dir=folder, seed=0, checkpoint=checkpoint,
        training=TrainingData(training=windows(64, 1), validation=windows(40, 2), running=True),
    )  # fmt: skip


def run(folder: Path, **settings: Any) -> tuple[Any, dict[str, float]]:
    folder.mkdir(parents=True)
    made = context(folder)
    floats = load_graph(write_decoder(made.checkpoint, folder / "float"))
    result = QuantizeDecoder(target_bits=2.5, distill_batch_size=16, **settings).run(floats, made)
    return open_runner(save_graph(result.model, folder / "saved")[0]), dict(result.metrics)


def divergence(runner: Any) -> float:
    """KL(float ‖ graph) a token, on windows that nothing was trained on."""
    module = tiny_llama.model()
    total = []
    for batch in windows(16, 5):
        with torch.no_grad():
            wanted = torch.log_softmax(module(torch.from_numpy(batch.feed["input_ids"])).logits, -1)
        ours = runner({**batch.feed, **empty_inputs(ModuleCheckpoint(module).shape)})["logits"]
        got = torch.log_softmax(torch.from_numpy(ours), -1)
        total.append(float((wanted.exp() * (wanted - got)).sum(-1).mean()))
    return float(np.mean(total))


def test_what_is_learned_is_in_the_graph_and_answers_better(tmp_path: Path) -> None:
    plain, before = run(tmp_path / "plain")
    trained, after = run(tmp_path / "trained", distill_steps=40, distill_rate=0.03)
    assert after["distill_loss"] < 0.8 * after["distill_loss_before"]
    assert divergence(trained) < 0.8 * divergence(plain)
    assert after["bits_per_weight"] == pytest.approx(before["bits_per_weight"], rel=0.02)
    assert after["log2_delta"] == before["log2_delta"]


def grids(checkpoint: ModuleCheckpoint, paths: list[str], levels: int = 3) -> dict[str, Rounded]:
    found = {}
    for path in paths:
        weight = checkpoint.read(f"{path}.weight").T
        steps = (np.abs(weight).max(axis=0) / levels).astype(np.float32)
        found[path] = Rounded(values=np.rint(weight / steps).astype(np.int8), steps=steps)
    return found


def test_matrices_and_norms_that_were_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module that was trained, and transformers' own model with the integers and norms that came out."""
    made = context(tmp_path)
    kept: list[grid_distillation.GridDecoder] = []
    make = grid_distillation.GridDecoder.__init__

    def keep(self: grid_distillation.GridDecoder, *arguments: Any) -> None:
        kept.append(self)
        make(self, *arguments)

    monkeypatch.setattr(grid_distillation.GridDecoder, "__init__", keep)
    rounded = grids(made.checkpoint, [PATH, "model.layers.1.self_attn.q_proj", "model.embed_tokens"])
    options = QuantizeDecoder(distill_steps=6, distill_batch_size=8, distill_rate=0.05)
    learned = train_grids(made.checkpoint, rounded, options, made)
    assert set(learned.matrices) == {PATH, "model.layers.1.self_attn.q_proj"}, "tables stay"
    module = copy.deepcopy(tiny_llama.model())
    for path, matrix in {**rounded, **learned.matrices}.items():
        module.get_submodule(path).weight.data = torch.from_numpy((matrix.values * matrix.steps).T.copy())
        np.testing.assert_array_equal(matrix.steps, rounded[path].steps)
    assert np.any(learned.matrices[PATH].values != rounded[PATH].values)
    moved = [name for name in made.checkpoint.shape.tensor_shapes() if name.endswith("norm.weight")]
    assert len(moved) == 5
    for name in moved:
        vector = learned.checkpoint.read(name)
        assert not np.array_equal(vector, made.checkpoint.read(name))
        module.get_parameter(name).data = torch.from_numpy(vector)
    assert np.array_equal(learned.checkpoint.read(f"{PATH}.weight"), made.checkpoint.read(f"{PATH}.weight"))
    tokens = torch.from_numpy(windows(1, 9)[0].feed["input_ids"])
    with torch.no_grad():
        wanted, got = (one(tokens, use_cache=False).logits for one in (module, kept[0].module))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_nothing_is_learned_that_loses_more(tmp_path: Path) -> None:
    made = context(tmp_path)
    options = QuantizeDecoder(distill_steps=5, distill_batch_size=8, distill_rate=0.49)
    learned = train_grids(made.checkpoint, grids(made.checkpoint, [PATH], levels=100), options, made)
    assert not learned.matrices
    assert learned.checkpoint is made.checkpoint
    assert (
        learned.metrics["distill_loss"] == learned.metrics["distill_loss_before"] < learned.metrics["validation_loss"]
    )


def test_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="keep"):
        QuantizeDecoder(distill_steps=5, keep="blocks")
    with pytest.raises(ValueError, match="distill_rate"):
        QuantizeDecoder(distill_rate=0.7)
    made = context(tmp_path)
    rounded = grids(made.checkpoint, [PATH])
    with pytest.raises(BadInputError, match="no training data"):
        train_grids(made.checkpoint, rounded, QuantizeDecoder(distill_steps=5), replace(made, training=None))
    monkeypatch.setattr(grid_training, "process_count", lambda: 2)
    with pytest.raises(BadInputError, match="2 processes"):
        train_grids(made.checkpoint, rounded, QuantizeDecoder(distill_steps=5), made)
