"""Each part of a distillation's loss against its formula, by NumPy and SciPy; padding counts nowhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from torch import nn

from edgeslim.errors import BadInputError
from edgeslim.training.objectives import (
    DistillationLoss,
    DistillationWeights,
    LabelLoss,
    attention_loss,
    cosine_loss,
    hidden_loss,
    label_loss,
    pool,
    soft_label_loss,
)
from edgeslim.training.torch_model import TorchModel

RNG = np.random.default_rng(8)


def made(*shape: int) -> torch.Tensor:
    return torch.tensor(RNG.normal(size=shape).astype(np.float32))


def test_soft_labels_by_hand() -> None:
    """Logits (0, 0) beside (2 ln 3, 0) at temperature 2: 4 (3/4 ln(3/4 / 1/2) + 1/4 ln(1/4 / 1/2))."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[2 * np.log(3.0), 0.0]], dtype=torch.float32)
    expected = 4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert soft_label_loss(student, teacher, 2.0).item() == pytest.approx(expected, abs=1e-6)


def test_soft_labels_are_a_divergence() -> None:
    student, teacher = made(5, 4), made(5, 4)
    expected = [
        9 * entropy(softmax(t / 3), softmax(s / 3)) for s, t in zip(student.numpy(), teacher.numpy(), strict=True)
    ]
    np.testing.assert_allclose(soft_label_loss(student, teacher, 3.0), expected, rtol=1e-4)
    one = soft_label_loss(student[:, :1], teacher[:, :1], 1.0)
    both = [torch.cat([torch.zeros(5, 1), value[:, :1]], 1) for value in (student, teacher)]
    np.testing.assert_allclose(one, soft_label_loss(*both, 1.0), rtol=1e-5)


def test_labels() -> None:
    logits = made(4, 3)
    expected = -log_softmax(logits.numpy(), axis=1)[range(4), [0, 2, 1, 1]]
    np.testing.assert_allclose(label_loss(logits, torch.tensor([0, 2, 1, 1])), expected, rtol=1e-5)
    single = label_loss(logits[:, :1], torch.tensor([0, 1, 1, 0])).numpy()
    chances = 1 / (1 + np.exp(-logits[:, 0].numpy()))
    np.testing.assert_allclose(single, -np.log(np.where([0, 1, 1, 0], chances, 1 - chances)), rtol=1e-4)
    for wrong in (None, torch.tensor([0, 3, 0, 0]), torch.tensor([0, -1, 0, 0])):
        with pytest.raises(BadInputError):
            label_loss(logits, wrong)


def test_hidden_states_and_attention_leave_padding_out() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    student, teacher = made(2, 3, 4), made(2, 3, 4)
    found = hidden_loss(student, teacher, mask)
    s, t = student.numpy(), teacher.numpy()
    expected = [((s[0] - t[0]) ** 2).sum() / (t[0] ** 2).sum(), ((s[1, 0] - t[1, 0]) ** 2).sum() / (t[1, 0] ** 2).sum()]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    ours, theirs = made(2, 5, 3, 3).softmax(-1), made(2, 5, 3, 3).softmax(-1)
    pairs = [[entropy(theirs[b, h, q], ours[b, h, q]) for h in range(5)] for b, q in ((0, 0), (0, 1), (0, 2), (1, 0))]
    means = np.mean(pairs, axis=1)
    np.testing.assert_allclose(attention_loss(ours, theirs, mask), [means[:3].mean(), means[3]], rtol=1e-4)
    with pytest.raises(BadInputError, match="as many heads"):
        attention_loss(ours[:, :1], theirs, mask)


def test_embeddings() -> None:
    states, mask = made(2, 3, 4), torch.tensor([[1, 1, 0], [1, 1, 1]])
    mean = pool(states, mask, "mean")
    np.testing.assert_allclose(mean[0], states[0, :2].numpy().mean(0), rtol=1e-5)
    assert torch.equal(pool(states, mask, "cls"), states[:, 0])
    assert pool(states, mask, "none")[0].tolist() == [*states[0, :2].flatten().tolist(), 0, 0, 0, 0]
    other = made(2, 4)
    expected = [cosine(a, b) for a, b in zip(mean.numpy(), other.numpy(), strict=True)]
    np.testing.assert_allclose(cosine_loss(mean, other), expected, rtol=1e-4)


class Layered(nn.Module):
    """One hidden layer with states and attention as transformers gives them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.config = type("Config", (), {"hidden_size": width})()
        self.embed, self.layer, self.head = nn.Embedding(9, width), nn.Linear(width, width), nn.Linear(width, 2)

    def forward(
        self, input_ids: torch.Tensor, *, output_hidden_states: bool = False, output_attentions: bool = False
    ) -> dict[str, Any]:
        first = self.embed(input_ids)
        second = torch.tanh(self.layer(first))
        attention = (second @ second.transpose(1, 2)).softmax(-1)[:, None]
        return {"logits": self.head(second[:, 0]), "hidden_states": (first, second), "attentions": (attention,)}


def test_the_whole_is_the_sum_of_its_parts() -> None:
    torch.manual_seed(1)
    student, teacher = (TorchModel(module=Layered(4), output="logits") for _ in range(2))
    inputs = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    labels = torch.tensor([0, 1])
    parts = {"soft": 0.5, "logits": 0.25, "labels": 2.0, "embeddings": 0.1, "hidden": 3.0, "attention": 0.7}

    def loss(**weights: float) -> torch.Tensor:
        objective = DistillationLoss(student, teacher, DistillationWeights(temperature=2.0, **weights), layers=(0,))
        return objective(inputs, labels).detach()

    single = {name: loss(**{name: weight}) for name, weight in parts.items()}
    torch.testing.assert_close(loss(**parts), torch.stack(list(single.values())).sum(0))
    assert all((value > 0).all() for value in single.values())
    mine, other = (model.module(inputs["input_ids"]) for model in (student, teacher))
    states = [
        hidden_loss(mine["hidden_states"][i], other["hidden_states"][i], inputs["attention_mask"]) for i in range(2)
    ]
    torch.testing.assert_close(single["hidden"], 3.0 * (states[0] + states[1]).detach() / 2)
    torch.testing.assert_close(single["labels"], 2 * LabelLoss(student)(inputs, labels).detach())


def test_a_narrow_student_is_projected_and_the_teacher_is_not_trained() -> None:
    student, teacher = TorchModel(module=Layered(4), output="logits"), TorchModel(module=Layered(6), output="logits")
    objective = DistillationLoss(student, teacher, DistillationWeights(hidden=1.0), layers=(0,))
    objective({"input_ids": torch.tensor([[1, 2]])}, None).sum().backward()
    assert sum(value.numel() for value in objective.project.parameters()) == 24
    assert all(not name.startswith("teacher") for name, _ in objective.named_parameters())
    assert all(value.grad is None for value in teacher.module.parameters())
