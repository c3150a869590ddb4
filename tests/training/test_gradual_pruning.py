"""Pruning by the cubic schedule, and quantization simulated in training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeslim.training.gradual_pruning import (
    GradualPruning,
    PruningOptions,
    cubic_sparsity,
    magnitude_masks,
    prunable_weights,
)
from edgeslim.training.simulation import (
    SimulationOptions,
    fake_quantize_inputs,
    fake_quantize_weight,
    simulate_quantization,
)
from edgeslim.training.torch_model import TorchModel


def test_the_cubic_schedule_by_hand() -> None:
    assert [cubic_sparsity(0.8, share) for share in (-1, 0, 0.5, 1, 2)] == pytest.approx([0, 0, 0.7, 0.8, 0.8])


def test_masks_by_hand_and_by_numpy() -> None:
    weights = {"a": torch.tensor([[3.0, -1.0], [2.0, 0.5]]), "b": torch.tensor([10.0, -0.1])}
    made = magnitude_masks(weights, 0.5)
    assert made["a"].tolist() == [[True, False], [True, False]]
    assert made["b"].tolist() == [True, False]
    both = magnitude_masks(weights, 0.5, scope="global")
    assert both["a"].tolist() == [[True, False], [True, False]]
    assert magnitude_masks(weights, 1 / 3, scope="global")["a"].tolist() == [[True, True], [True, False]]
    values = np.random.default_rng(0).normal(size=(40, 30))
    kept = magnitude_masks({"w": torch.tensor(values)}, 0.7)["w"].numpy()
    assert np.abs(values)[kept].min() >= np.quantile(np.abs(values), 0.7)
    assert kept.sum() == 360
    assert magnitude_masks({"w": torch.zeros(10)}, 0.3)["w"].tolist() == [False] * 3 + [True] * 7  # equals: no more


def test_sparsity_rises_and_never_falls() -> None:
    torch.manual_seed(0)
    model = TorchModel(module=nn.Sequential(nn.Embedding(20, 5), nn.Linear(5, 8), nn.LayerNorm(8)))
    options = PruningOptions(sparsity=0.75, embedding_sparsity=0.5, prune_every=2, prune_begin=0.2, prune_end=0.8)
    hook, skipped = options.pruning_hook(model)
    shares, masks = [], {}
    for step in range(20):
        with torch.no_grad():
            for value in model.module.parameters():
                value.add_(0.1 * torch.randn(value.shape))
        hook.after_update(model.module, step, 20, 0.1)
        assert all(not (mask & ~masks.get(name, mask)).any() for name, mask in hook.masks.items())
        assert all((model.module.get_parameter(name)[~mask] == 0).all() for name, mask in hook.masks.items())
        masks = dict(hook.masks)
        shares.append(1 - float(masks["1.weight"].float().mean()) if masks else 0.0)
        assert hook.settled(step, 20) == (step >= 15)
    assert shares[:4] == [0, 0, 0, 0]
    assert shares == sorted(shares)
    assert shares[15] == shares[-1] == 0.75
    assert (~masks["0.weight"]).sum() == 50
    assert skipped == {"0.weight": "a Embedding, no linear or convolutional layer"}
    assert hook.metrics() == {"pruned_weights": 80.0, "sparsity": 80 / 140}


def test_masks_of_before_are_kept_and_state_comes_back() -> None:
    module = nn.Linear(4, 4)
    old = {"weight": torch.rand(4, 4, generator=torch.Generator().manual_seed(1)) > 0.5}
    hook = GradualPruning(PruningOptions(sparsity=0.5, prune_end=0.5), {"weight": 0.5}, old)
    for step in range(4):
        hook.after_update(module, step, 4, 0.1)
    assert not (hook.masks["weight"] & ~old["weight"]).any()
    other = GradualPruning(PruningOptions(sparsity=0.5), {"weight": 0.5}, {})
    other.load_state(hook.state())
    assert torch.equal(other.masks["weight"], hook.masks["weight"])


def test_which_weights() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 2), nn.Embedding(3, 2))
    assert prunable_weights(module, ("*",))[0] == ["0.weight", "1.weight"]
    assert prunable_weights(module, ("*",), embeddings=True)[0] == ["2.weight"]
    assert prunable_weights(module, ("1.*",))[1]["0.weight"] == "not among the recipe's patterns"


@pytest.mark.parametrize("wrong", [{"sparsity": 1.0}, {"prune_begin": 0.7}, {"prune_every": 0}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PruningOptions(**wrong)


def test_weights_are_rounded_as_torch_rounds_them() -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(2))
    scale = weight.abs().amax(1) / 127
    zero = torch.zeros(6, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)
    torch.testing.assert_close(fake_quantize_weight(weight, 8), expected)
    grouped = fake_quantize_weight(weight, 4, group=32)
    blocks = weight.view(12, 32)
    expected = torch.fake_quantize_per_channel_affine(
        blocks, blocks.abs().amax(1) / 7, torch.zeros(12, dtype=torch.int32), 0, -7, 7
    )
    torch.testing.assert_close(grouped, expected.view(6, 64))
    assert fake_quantize_weight(torch.randn(3, 40), 4, group=32).shape == (3, 40)


def test_inputs_are_rounded_within_half_a_step_and_zero_stays() -> None:
    values = torch.tensor([[0.0, 1.0, -0.5], [3.0, 2.0, 0.0]])
    rounded = fake_quantize_inputs(values, per_sample=False)
    assert (rounded - values).abs().max() <= 3 / 255
    assert rounded[0, 0] == rounded[1, 2] == 0


def test_simulation_rounds_for_a_while_and_gradients_pass() -> None:
    layer = nn.Sequential(nn.Linear(8, 4), nn.Conv1d(1, 2, 3))
    linear, conv = layer[0], layer[1]
    x = torch.randn(3, 8)
    plain = linear(x)
    with simulate_quantization(layer, SimulationOptions(simulate="int8", simulate_inputs=False)):
        rounded = linear(x)
        expected = nn.functional.linear(x, fake_quantize_weight(linear.weight, 8), linear.bias)
        assert conv(torch.randn(1, 1, 5)).shape == (1, 2, 3)
        rounded.sum().backward()
    torch.testing.assert_close(rounded, expected)
    assert not torch.equal(rounded, plain)
    torch.testing.assert_close(linear.weight.grad, x.sum(0).expand(4, 8))
    assert torch.equal(linear(x), plain)
    with simulate_quantization(layer, SimulationOptions()):
        assert torch.equal(linear(x), plain)
