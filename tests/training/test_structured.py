"""Heads, neurons, channels and layers taken out of torch modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from edgeslim.core import Batch, Context
from edgeslim.errors import BadInputError
from edgeslim.export import export_huggingface
from edgeslim.recipe import parse_recipe
from edgeslim.session import open_runner
from edgeslim.stages.prune_structured import PruneStructured
from edgeslim.target import load_target
from edgeslim.task import FeatureExtraction
from edgeslim.training.torch_model import TorchModel, load_model, save_model
from edgeslim.training.unit_groups import attention_groups

IDS = torch.tensor([[1, 5, 3, 9, 2]])


def context(work: Path, batches: list[Batch], pooling: Any = "mean") -> Context:
    return Context(
        target=load_target("android-arm64"),
        task=FeatureExtraction(pooling=pooling),
        calibration=batches,
        reference=lambda feed: feed,
        seed=0,
        work_dir=work,
    )


def texts(count: int = 24) -> list[Batch]:
    random = np.random.default_rng(0)
    return [
        Batch(
            feed={"input_ids": random.integers(0, 30, (1, size)), "attention_mask": np.ones((1, size), np.int64)},
            rows=1,
        )
        for size in random.integers(3, 12, count)
    ]


def sizes(kind: Any, **extra: Any) -> Any:
    torch.manual_seed(0)
    config = kind(
        vocab_size=30,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
        **extra,
    )
    config._attn_implementation = "eager"
    return config


@pytest.fixture
def bert() -> TorchModel:
    module = transformers.BertModel(sizes(transformers.BertConfig), add_pooling_layer=False).eval()
    return TorchModel(module=module, output="last_hidden_state")


@pytest.fixture
def llama() -> TorchModel:
    config = sizes(transformers.LlamaConfig, num_key_value_heads=2, use_cache=False, pad_token_id=0)
    return TorchModel(module=transformers.LlamaModel(config).eval(), output="last_hidden_state")


def run(model: TorchModel) -> torch.Tensor:
    with torch.no_grad():
        return model.pick(model.module(input_ids=IDS))


def again(model: TorchModel, original: TorchModel, folder: Path) -> TorchModel:
    folder.mkdir()
    save_model(model, folder)
    return load_model(original, folder)


def test_a_removed_head_is_a_masked_one(bert: TorchModel, tmp_path: Path) -> None:
    pruned = PruneStructured(keep_heads=0.5, compensate=False).run(bert.copied(), context(tmp_path, texts())).model
    mask = torch.ones(3, 4)
    for layer in range(3):
        rows = pruned.module.encoder.layer[layer].attention.self.query.weight
        whole = bert.module.encoder.layer[layer].attention.self.query.weight
        for head in range(4):
            kept = any(torch.equal(rows[start : start + 8], whole[head * 8 : head * 8 + 8]) for start in (0, 8))
            mask[layer, head] = float(kept)
    assert mask.sum(1).tolist() == [2, 2, 2]
    with torch.no_grad():
        wanted = bert.module(input_ids=IDS, head_mask=mask).last_hidden_state
    assert torch.allclose(run(pruned), wanted, atol=1e-5)


def test_making_up_brings_the_layer_nearer(bert: TorchModel, tmp_path: Path) -> None:
    wanted = run(bert)
    errors = [
        float(
            (
                run(
                    PruneStructured(keep_neurons=0.5, compensate=made_up)
                    .run(bert.copied(), context(tmp_path, texts()))
                    .model
                )
                - wanted
            )
            .square()
            .mean()
        )
        for made_up in (True, False)
    ]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("importance", ["obs", "activation", "taylor", "fisher"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_all_kinds_on_bert(bert: TorchModel, tmp_path: Path, importance: Any, scope: Any) -> None:
    stage = PruneStructured(keep_heads=0.5, keep_neurons=0.5, keep_layers=2, importance=importance, scope=scope)
    result = stage.run(bert.copied(), context(tmp_path, texts()))
    model, metrics = result.model, result.metrics
    assert metrics["heads_kept"] == 0.5
    assert metrics["neurons_kept"] == 0.5
    assert metrics["parameters"] < 0.45 * metrics["parameters_before"]
    assert len(model.module.encoder.layer) == model.module.config.num_hidden_layers == 2
    assert model.layers is not None
    assert len(model.layers) == 2
    widths = {layer.intermediate.dense.out_features for layer in model.module.encoder.layer}
    assert all(width % 16 == 0 for width in widths)
    assert torch.equal(run(again(model, bert, tmp_path / "saved")), run(model))


def test_dead_neurons_go_first_and_change_nothing(bert: TorchModel, tmp_path: Path) -> None:
    with torch.no_grad():
        for layer in bert.module.encoder.layer:
            layer.intermediate.dense.weight[10:26] = 0.0
            layer.intermediate.dense.bias[10:26] = 0.0
    result = PruneStructured(keep_neurons=0.75).run(bert.copied(), context(tmp_path, texts()))
    assert result.model.module.encoder.layer[0].intermediate.dense.weight.shape == (48, 32)
    assert torch.allclose(run(result.model), run(bert), atol=1e-5)


def test_grouped_query_attention_keeps_its_groups(llama: TorchModel, tmp_path: Path) -> None:
    result = PruneStructured(keep_heads=0.5, keep_neurons=0.5).run(llama.copied(), context(tmp_path, texts()))
    model = result.model
    for layer in model.module.layers:
        attention = layer.self_attn
        shapes = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        assert [tuple(item.weight.shape) for item in shapes] == [(16, 32), (8, 32), (8, 32), (32, 16)]
        assert attention.num_key_value_groups == 2
        assert layer.mlp.gate_proj.weight.shape == layer.mlp.up_proj.weight.shape == (32, 32)
        assert layer.mlp.down_proj.weight.shape == (32, 32)
    config = model.module.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.intermediate_size) == (2, 1, 32)
    assert torch.isfinite(run(model)).all()
    assert torch.equal(run(again(model, llama, tmp_path / "saved")), run(model))


class Net(nn.Module):
    """Convolutions with a norm, a residual sum, a depthwise one, flattening and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.third = nn.Conv2d(16, 16, 3, padding="same")
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.wide, self.head = nn.Linear(16 * 4, 24), nn.Linear(24, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(image)))
        x = torch.relu(self.second(x))
        x = torch.relu(self.depthwise(x + self.third(x)))
        return self.head(torch.relu(self.wide(nn.functional.max_pool2d(x, 4).flatten(1))))


def test_channels_of_a_network_of_any_kind(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    batches = [Batch(feed={"image": random.normal(size=(1, 1, 8, 8)).astype(np.float32)}, rows=1) for _ in range(40)]
    original = TorchModel(module=Net().eval())
    stage = PruneStructured(keep_channels=0.5, keep_neurons=0.5, multiple=4, importance="taylor")
    result = stage.run(original.copied(), context(tmp_path, batches, "none"))
    net: Any = result.model.module
    assert net.first.weight.shape == (8, 1, 3, 3)
    assert net.norm.num_features == 8
    assert net.second.weight.shape == net.third.weight.shape == (8, 8, 3, 3)
    assert net.depthwise.groups == 8
    assert net.wide.weight.shape == (12, 32)
    assert net.head.weight.shape == (10, 12)
    assert "head" in result.skipped
    loaded = again(result.model, original, tmp_path / "saved")
    feed = torch.from_numpy(batches[0].feed["image"])
    assert torch.equal(loaded.module(feed), net(feed))


def test_a_convolution_that_makes_up_is_nearer_than_one_that_does_not(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    mixing = random.normal(size=(64, 64)) / 8  # neighbours hang together, so that some channels can answer for others
    pictures = (random.normal(size=(40, 64)) @ mixing).reshape(40, 1, 8, 8).astype(np.float32)
    batches = [Batch(feed={"image": picture[None]}, rows=1) for picture in pictures]
    original = TorchModel(module=Net().eval())
    with torch.no_grad():
        wanted = original.module(torch.from_numpy(pictures))
    errors = []
    for made_up in (True, False):
        stage = PruneStructured(keep_channels=0.5, multiple=4, compensate=made_up)
        model = stage.run(original.copied(), context(tmp_path, batches, "none")).model
        with torch.no_grad():
            errors.append(float((model.module(torch.from_numpy(pictures)) - wanted).square().mean()))
    assert errors[0] < errors[1]


def test_what_is_refused(bert: TorchModel, tmp_path: Path) -> None:
    ctx = context(tmp_path, texts(2))
    name = "encoder.layer.0.output.dense.weight"
    masked = TorchModel(module=bert.module, masks={name: torch.ones(32, 64, dtype=torch.bool)})
    with pytest.raises(BadInputError, match="pruned"):
        PruneStructured(keep_heads=0.5).run(masked, ctx)
    with pytest.raises(BadInputError, match="3 of 3 layers"):
        PruneStructured(keep_layers=3).run(bert, ctx)
    with pytest.raises(BadInputError, match="no channels"):
        PruneStructured(keep_channels=0.5).run(bert, ctx)
    packed = TorchModel(module=nn.TransformerEncoderLayer(16, 2, batch_first=True))
    with pytest.raises(BadInputError, match=r"no heads .*packed"):
        PruneStructured(keep_heads=0.5).run(packed, ctx)
    for settings in ({}, {"keep_heads": 0.0}, {"keep_layers": 0}, {"keep_neurons": 0.5, "multiple": 0}):
        with pytest.raises(ValueError, match="expected"):
            PruneStructured(**settings)


def test_heads_that_share_something_stay(bert: TorchModel) -> None:
    config = sizes(transformers.BertConfig, position_embedding_type="relative_key")
    skipped: dict[str, str] = {}
    assert attention_groups(transformers.BertModel(config), skipped) == []
    assert "table of positions" in next(iter(skipped.values()))


def test_the_level_follows_what_is_asked() -> None:
    heads = {"use": "prune_structured", "keep_heads": 0.5}
    neurons = {"use": "prune_structured", "keep_neurons": 0.5}
    assert [named.level for named in parse_recipe([heads], "r").torch] == ["torch"]
    assert parse_recipe([neurons], "r").torch == ()
    assert len(parse_recipe([neurons, {"use": "distill"}], "r").torch) == 2


def test_the_export_has_the_new_shapes(bert: TorchModel, tmp_path: Path) -> None:
    stage = PruneStructured(keep_heads=0.5, keep_neurons=0.5, scope="global")
    batches = [
        Batch(feed={**batch.feed, "token_type_ids": np.zeros_like(batch.feed["input_ids"])}, rows=1)
        for batch in texts(8)
    ]
    model = stage.run(bert.copied(), context(tmp_path, batches)).model
    made = export_huggingface(model.module, batches[:2], classifier=False, opset_max=21, folder=tmp_path / "graph")
    found = open_runner(made.path)(batches[0].feed)["last_hidden_state"]
    with torch.no_grad():
        inputs = {key: torch.from_numpy(value) for key, value in batches[0].feed.items()}
        wanted = model.module(**inputs).last_hidden_state
    assert np.allclose(found, wanted.numpy(), atol=1e-4)
