"""A decoder layer by layer: the same numbers as the whole model, and compression that sees what came before."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llama
import torch

from edgeslim.algorithms.block_gptq import round_gptq_blocks
from edgeslim.core import Batch, Context
from edgeslim.decoders.checkpoint import ArrayCheckpoint
from edgeslim.decoders.decoder_graph import as_floats, write_decoder
from edgeslim.decoders.layer_stream import StreamedEncode, as_dense, streamed_logits
from edgeslim.decoders.shape import shape_from_config
from edgeslim.decoders.torch_decoder import ModuleCheckpoint
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.language_task import CausalLM
from edgeslim.recipe import parse_recipe
from edgeslim.session import open_runner
from edgeslim.stages.stream_decoder import LayerCompressor, StreamDecoder
from edgeslim.target import load_target
from edgeslim.training.torch_model import factor_linear


def windows(count: int = 8) -> list[Batch]:
    tokens = np.random.default_rng(0).integers(3, 300, (count, 1, 24))
    return [Batch(feed={"input_ids": row}, rows=1) for row in tokens]


def factorized() -> Any:
    """One matrix of three that read the same input is two."""
    module = copy.deepcopy(tiny_llama.model())
    torch.nn.init.normal_(factor_linear(module, "model.layers.1.self_attn.k_proj", 9)[1].weight, std=0.2)
    return module


@pytest.mark.parametrize("make", [tiny_llama.model, factorized])
def test_logits_are_those_of_the_whole_model(make: Callable[[], Any]) -> None:
    module = make()
    for batch, ours in zip(windows(3), streamed_logits(ModuleCheckpoint(module), windows(3)), strict=True):
        with torch.no_grad():
            theirs = module(torch.from_numpy(batch.feed["input_ids"])).logits.numpy()
        np.testing.assert_allclose(ours, theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [tiny_llama.model, factorized])
def test_moments_are_those_of_hooks(make: Callable[[], Any], tmp_path: Path) -> None:
    """While nothing is compressed, each matrix gets what it would see in the whole model."""
    module, seen = make(), {}
    sums: dict[str, Any] = {}

    def listen(path: str) -> Callable[..., None]:
        def hook(_: Any, inputs: tuple[Any, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1]).double().numpy()
            sums[path] = sums.get(path, 0) + rows.T @ rows

        return hook

    linears = {path: one for path, one in module.named_modules() if isinstance(one, torch.nn.Linear)}
    handles = [one.register_forward_pre_hook(listen(path)) for path, one in linears.items()]
    with torch.no_grad():
        for batch in windows():
            module(torch.from_numpy(batch.feed["input_ids"]))
    for handle in handles:
        handle.remove()

    def compress(path: str, weight: Any, moment: Any) -> Any:
        seen[path] = moment
        return weight

    checkpoint = ModuleCheckpoint(module)
    encode = StreamedEncode(checkpoint, windows(), compress, table=as_floats)
    write_decoder(checkpoint, tmp_path / "graph", encode=encode)
    assert set(seen) == set(linears) - {"lm_head"}
    for path, moment in seen.items():
        np.testing.assert_allclose(moment, sums[path], rtol=1e-3, atol=1e-3 * np.abs(sums[path]).max())


def test_a_layer_sees_what_the_one_before_became(tmp_path: Path) -> None:
    """Zeroing the first layer's feed-forward output changes what the second layer reads, and the graph says so."""
    checkpoint = ModuleCheckpoint(tiny_llama.model())
    seen: dict[bool, Any] = {}
    for zeroed in (False, True):

        def compress(path: str, weight: Any, moment: Any, zeroed: bool = zeroed) -> Any:
            if path == "model.layers.1.mlp.down_proj":
                seen[zeroed] = moment
            return weight * 0 if zeroed and path == "model.layers.0.mlp.down_proj" else weight

        encode = StreamedEncode(checkpoint, windows(), compress, table=as_floats)
        path = write_decoder(checkpoint, tmp_path / str(zeroed), encode=encode)
    assert not np.allclose(seen[False], seen[True], rtol=0.01)
    changed = copy.deepcopy(tiny_llama.model())
    with torch.no_grad():
        changed.model.layers[0].mlp.down_proj.weight.zero_()
    (wanted,) = streamed_logits(ModuleCheckpoint(changed), windows(1))
    feed = {
        **windows(1)[0].feed,
        **{name: np.zeros((1, 2, 0, 16), np.float32) for name in open_runner(path).inputs[1:]},
    }
    np.testing.assert_allclose(open_runner(path)(feed)["logits"], wanted, atol=2e-3, rtol=1e-3)


def test_one_layer_is_read_at_a_time(tmp_path: Path) -> None:
    """No tensor of a layer is read before the layer in front of it is written."""
    module = tiny_llama.model()
    order: list[str] = []

    def read(name: str, value: Any) -> Callable[[], Any]:
        def give() -> Any:
            order.append(name)
            return value.detach().numpy()

        return give

    arrays = {name: read(name, value) for name, value in module.named_parameters()}
    checkpoint = ArrayCheckpoint(arrays, shape_from_config(tiny_llama.config().to_dict(), "config.json"))

    def compress(path: str, weight: Any, moment: Any) -> Any:
        order.append(f"done {path}")
        return weight

    encode = StreamedEncode(checkpoint, windows(), compress, table=as_floats)
    write_decoder(checkpoint, tmp_path / "graph", encode=encode)
    done = [place for place, name in enumerate(order) if name.startswith("done model.layers.0.")]
    read = [place for place, name in enumerate(order) if name.startswith("model.layers.1.")]
    assert len(done) == 7
    assert len(read) == len({order[place] for place in read}) + 2  # the writer reads the norms once more
    assert max(done) < min(read)
    assert not encode._made


def run(folder: Path, **settings: Any) -> tuple[Any, dict[str, float], dict[str, str]]:
    checkpoint = ModuleCheckpoint(tiny_llama.model())
    floats = write_decoder(checkpoint, folder / "floats")
    context = Context(
        target=load_target("linux-arm64"), task=CausalLM(), calibration=windows(40), reference=lambda feed: feed,
        seed=0, work_dir=folder / "work", checkpoint=checkpoint,
    )  # fmt: skip
    result = StreamDecoder(**settings).run(load_graph(floats), context)
    out, _ = save_graph(result.model, folder / "out")
    empty = {name: np.zeros((1, 2, 0, 16), np.float32) for name in open_runner(out).inputs[1:]}
    tokens = np.random.default_rng(5).integers(3, 300, (1, 24))
    ours, theirs = (open_runner(path)({"input_ids": tokens, **empty})["logits"] for path in (out, floats))
    return ours - theirs, dict(result.metrics), dict(result.skipped)


def test_gptq_is_better_than_nearest_levels(tmp_path: Path) -> None:
    errors = {}
    for algorithm in ("rtn", "gptq"):
        difference, metrics, _ = run(tmp_path / algorithm, algorithm=algorithm)
        errors[algorithm] = (float(np.square(difference).mean()), metrics["lost_mean"])
    assert errors["gptq"][0] < 0.85 * errors["rtn"][0]  # the tables are rounded to nearest in both
    assert errors["gptq"][1] < 0.75 * errors["rtn"][1]


def test_what_is_pruned_and_divided(tmp_path: Path) -> None:
    _, metrics, _ = run(tmp_path / "half", bits=32, sparsity=0.5)
    assert metrics["sparsity"] == pytest.approx(0.5, abs=0.01)
    _, metrics, _ = run(tmp_path / "pattern", pattern="2:4")
    assert metrics["sparsity"] >= 0.5
    difference, metrics, _ = run(tmp_path / "thin", bits=32, keep=0.75)
    assert metrics["kept"] < 0.76
    assert np.isfinite(difference).all()
    _, metrics, skipped = run(tmp_path / "whole", bits=32, keep=0.75, max_error=0.0)
    assert metrics["kept"] == 1
    assert set(skipped.values()) == {"two factors would lose too much"}


def test_the_compressor_is_the_algorithms() -> None:
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(24, 64)).astype(np.float32)
    rows = generator.normal(size=(300, 64)) * np.linspace(0.1, 3, 64)
    moment = rows.T @ rows
    compressor = LayerCompressor(options=StreamDecoder())
    made = as_dense(compressor("a", weight, moment))
    wanted = round_gptq_blocks(weight, moment, bits=4, block_size=32).dequantize()
    np.testing.assert_array_equal(made, wanted)
    lost = np.square(rows @ (weight - wanted).T).sum() / np.square(rows @ weight.T).sum()
    assert compressor.lost["a"] == pytest.approx(lost, rel=1e-4)


def test_what_cannot_be(tmp_path: Path) -> None:
    context = Context(
        target=load_target("linux-arm64"), task=CausalLM(), calibration=(), reference=lambda feed: feed, seed=0,
        work_dir=tmp_path,
    )  # fmt: skip
    floats = write_decoder(ModuleCheckpoint(tiny_llama.model()), tmp_path / "floats")
    with pytest.raises(BadInputError, match="no Llama-shaped"):
        StreamDecoder().run(load_graph(floats), context)
    with pytest.raises(BadInputError, match="no samples"):
        StreamDecoder().run(
            load_graph(floats), dataclasses.replace(context, checkpoint=ModuleCheckpoint(tiny_llama.model()))
        )
    for settings in ({"keep": 0.5, "sparsity": 0.5}, {"bits": 32}, {"keep": 2.0}, {"calibration_windows": 0}):
        with pytest.raises(ValueError, match="expected"):
            StreamDecoder(**settings)


def test_what_comes_before_a_graph_that_is_written_anew() -> None:
    """Either-level stages go to the torch model, and stages on the graph are refused: their work would be lost."""
    tables = [{"use": "low_rank"}, {"use": "prune_magnitude"}, {"use": "stream_decoder"}, {"use": "kv_cache"}]
    recipe = parse_recipe(tables, "r.toml")
    assert [named.name for named in recipe.torch] == ["low_rank", "prune_magnitude"]
    assert [named.name for named in recipe.graph] == ["stream_decoder", "kv_cache"]
    with pytest.raises(BadInputError, match=r"kv_cache works on the exported graph, and quantize_decoder after it"):
        parse_recipe([{"use": "kv_cache"}, {"use": "quantize_decoder"}], "r.toml")
