"""Shared weights by hand, and through the training loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeslim.core import Batch, Context, TrainingData
from edgeslim.stages.finetune import Finetune
from edgeslim.target import load_target
from edgeslim.task import Classification
from edgeslim.training.masks import check_masks
from edgeslim.training.torch_model import TorchModel
from edgeslim.training.weight_sharing import ShareWeights, SharingOptions


def test_one_step_by_hand() -> None:
    module = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 3.0, 0.0, 10.0]]))
    mask = {"weight": torch.tensor([[True, True, False, True]])}
    hook = ShareWeights(module, ["weight"], 1, mask)  # zero takes one of the two values
    assert module.weight.tolist() == [[pytest.approx(14 / 3), pytest.approx(14 / 3), 0.0, pytest.approx(14 / 3)]]
    module.weight.grad = torch.tensor([[3.0, 0.0, 7.0, 0.0]])
    hook.before_update(module)
    assert module.weight.grad.tolist() == [[1.0, 1.0, 7.0, 1.0]]  # masks see to the third


def test_training_moves_centroids_as_their_gradients_say() -> None:
    """Against a model whose parameters are the centroids themselves."""
    torch.manual_seed(0)
    inputs, target = torch.randn(64, 12), torch.randn(64, 5)
    module = nn.Linear(12, 5, bias=False)
    hook = ShareWeights(module, ["weight"], 2, {})
    index = hook.state()["weight#cluster"]
    centroids = torch.tensor([module.weight[index == k][0].item() for k in range(4)], requires_grad=True)
    optimizers = torch.optim.Adam(module.parameters(), lr=0.05), torch.optim.Adam([centroids], lr=0.05)
    for step in range(20):
        nn.functional.mse_loss(module(inputs), target).backward()
        hook.before_update(module)
        nn.functional.mse_loss(inputs @ centroids[index].T, target).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        hook.after_update(module, step, 20, 0.05)
        assert len(torch.unique(module.weight.detach())) == 4
    assert module.weight.detach().numpy() == pytest.approx(centroids[index].detach().numpy(), abs=1e-4)


def test_a_checkpoint_takes_clusters_back() -> None:
    torch.manual_seed(1)
    module, other = nn.Linear(16, 16), nn.Linear(16, 16)
    hook, fresh = ShareWeights(module, ["weight"], 3, {}), ShareWeights(other, ["weight"], 3, {})
    fresh.load_state(hook.state())
    other.load_state_dict(module.state_dict())
    fresh.after_update(other, 0, 1, 0.1)
    assert np.allclose(other.weight.detach(), module.weight.detach())
    assert hook.metrics() == {"clustered_weights": 256.0, "codebook_values": 8.0}


def test_refusals() -> None:
    assert SharingOptions().sharing_hooks(None) == []
    with pytest.raises(ValueError, match="cluster_bits: 9"):
        SharingOptions(cluster_bits=9)
    with pytest.raises(ValueError, match="cluster_bits beside sparsity"):
        Finetune(cluster_bits=2, sparsity=0.5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 32), nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def test_prune_then_cluster_as_deep_compression_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    values = np.random.default_rng(0).normal(size=(200, 1, 6)).astype(np.float32)
    rows = [Batch(feed={"x": row}, rows=1, labels=(int(row.sum() > 0),)) for row in values]
    context = Context(
        target=load_target("android-arm64"), task=Classification(), calibration=(), reference=lambda feed: feed,
        seed=0, work_dir=tmp_path, training=TrainingData(training=rows[:150], validation=rows[150:]),
    )  # fmt: skip
    settings = {"batch_size": 10, "learning_rate": 0.02, "weight_decay": 0.0}
    model = Finetune(epochs=6, sparsity=0.6, **settings).run(TorchModel(module=Net()), context).model
    result = Finetune(epochs=4, cluster_bits=2, cluster_biases=True, **settings).run(model, context)
    check_masks(result.model.module, model.masks, result.model.masks, "finetune")
    for name in ("first.weight", "second.weight"):
        weight = dict(result.model.module.named_parameters())[name].detach()
        assert len(torch.unique(weight)) <= 4
        assert torch.equal(weight == 0, ~result.model.masks[name])
    with torch.no_grad():
        wrong = result.model.module(torch.tensor(values[150:, 0])).argmax(1).numpy() != [
            row.labels[0] for row in rows[150:]
        ]
    assert wrong.mean() < 0.15
    assert len(torch.unique(result.model.module.first.bias.detach())) <= 4
    assert len(torch.unique(result.model.module.second.bias.detach())) == 2  # too few to share
    assert result.metrics["clustered_weights"] == 288.0
