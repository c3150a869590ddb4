"""What training minimizes: one loss a sample, so that batches, parts and processes don't weigh samples otherwise.

Distillation compares a student with its frozen teacher in any of these ways, each with a weight of its own:

* soft labels: ``T² KL(softmax(teacher / T) ‖ softmax(student / T))`` (Hinton et al. 2015, arXiv 1503.02531)
* logits: their mean squared difference (Ba and Caruana 2014, arXiv 1312.6184)
* labels: cross entropy with the true class, where the data have labels; with the next token, of a language model
* embeddings: 1 - cosine of the vectors that the task makes of the outputs
* hidden states: the squared difference of a student's layer and its teacher's, over the teacher's own mean square. That
  ratio, unlike TinyBERT's plain square (Jiao et al. 2020, arXiv 1909.10351), doesn't depend on the scale of a layer.
  A student of another width is projected first, by a matrix that is trained along and thrown away.
* attention: ``KL(teacher ‖ student)`` of the attention that each token pays, averaged over heads and tokens; TinyBERT
  compares raw scores, which a model of transformers doesn't give.

Tokens that are padding count nowhere. Whatever precision the models multiply in, losses are float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn
from torch.nn import functional

from edgeslim.errors import BadInputError
from edgeslim.training.torch_model import TorchModel

__all__ = [
    "DistillationLoss",
    "DistillationWeights",
    "LabelLoss",
    "attention_loss",
    "cosine_loss",
    "hidden_loss",
    "next_token_loss",
    "pool",
    "soft_label_loss",
    "usual_weights",
]

Labels = Tensor | None


class LabelLoss(nn.Module):
    """Cross entropy of the student's logits with the labels; one logit tells two classes apart by its sign."""

    def __init__(self, student: TorchModel) -> None:
        super().__init__()
        self.student = student.module
        self._model = [student]

    def forward(self, inputs: Mapping[str, Tensor], labels: Labels) -> Tensor:
        """A loss for each sample."""
        model = self._model[0]
        return true_loss(model.pick(convert_to_fp32(self.student(**model.take(inputs)))), inputs, labels)


@dataclass(frozen=True, kw_only=True)
class DistillationWeights:
    """How much each part of the loss counts; 0 leaves it out."""

    soft: float = 0.0
    temperature: float = 2.0
    logits: float = 0.0
    labels: float = 0.0
    embeddings: float = 0.0
    hidden: float = 0.0
    attention: float = 0.0


def usual_weights(manifest: Mapping[str, object], *, layered: bool) -> DistillationWeights:
    """What a recipe without weights gets: soft labels where there are classes or words, else embeddings; hidden states
    if there are.
    """
    hidden = 1.0 if layered else 0.0
    if "labels" in manifest or manifest.get("task") == "causal-lm":
        return DistillationWeights(soft=1.0, hidden=hidden)
    return DistillationWeights(embeddings=1.0, hidden=hidden)


class DistillationLoss(nn.Module):
    """Compares ``student`` with ``teacher``; ``layers[i]`` is the teacher's layer that the student's ``i`` stands for.

    ``pooling`` makes a vector of the outputs ``[B, S, H]``, as the task does.
    """

    def __init__(
        self,
        student: TorchModel,
        teacher: TorchModel,
        weights: DistillationWeights,
        *,
        layers: Sequence[int] = (),
        pooling: Literal["mean", "cls", "none"] = "none",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.student = student.module
        # In a list, so that the teacher is no part of this module: it is neither trained nor saved.
        self._models = [student, teacher]
        self._weights, self._layers, self._pooling = weights, tuple(layers), pooling
        widths = [_width(model.module) for model in (student, teacher)]
        self.project: nn.Module = nn.Identity()
        if weights.hidden and widths[0] != widths[1]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.project = nn.Linear(widths[0], widths[1], bias=False)

    def forward(self, inputs: Mapping[str, Tensor], labels: Labels) -> Tensor:
        """A loss for each sample."""
        weights = self._weights
        student, teacher = self._models
        asked: dict[str, Any] = {}
        if weights.hidden:
            asked["output_hidden_states"] = True
        if weights.attention:
            asked["output_attentions"] = True
        with torch.no_grad():
            theirs = convert_to_fp32(teacher.module(**teacher.take(inputs), **asked))
        ours = convert_to_fp32(self.student(**student.take(inputs), **asked))
        out, target = student.pick(ours), teacher.pick(theirs)
        mask = inputs.get("attention_mask")
        total = torch.zeros(len(out), dtype=out.dtype, device=out.device)
        if weights.soft:
            total = total + weights.soft * soft_label_loss(out, target, weights.temperature)
        if weights.logits:
            total = total + weights.logits * (out - target).square().flatten(1).mean(1)
        if weights.labels:
            total = total + weights.labels * true_loss(out, inputs, labels)
        if weights.embeddings:
            vectors = [pool(value, mask, self._pooling) for value in (out, target)]
            total = total + weights.embeddings * cosine_loss(*vectors)
        if weights.hidden:
            pairs = [(0, 0), *((index + 1, layer + 1) for index, layer in enumerate(self._layers))]
            for mine, other in pairs:
                state = self.project(ours["hidden_states"][mine])
                part = hidden_loss(state, theirs["hidden_states"][other], mask)
                total = total + weights.hidden / len(pairs) * part
        if weights.attention:
            for index, layer in enumerate(self._layers):
                part = attention_loss(ours["attentions"][index], theirs["attentions"][layer], mask)
                total = total + weights.attention / len(self._layers) * part
        return total


def true_loss(logits: Tensor, inputs: Mapping[str, Tensor], labels: Labels) -> Tensor:
    """A loss a sample: ``label_loss``, or for the logits ``[B, S, V]`` of a language model ``next_token_loss``."""
    if logits.dim() == 3 and labels is None and "input_ids" in inputs:
        return next_token_loss(logits, inputs["input_ids"])
    return label_loss(logits, labels)


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross entropy of ``logits [B, S, V]`` with the ``tokens [B, S]`` that follow, ``[B]``."""
    lost = functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    return lost.mean(1)


def label_loss(logits: Tensor, labels: Labels) -> Tensor:
    """Cross entropy of ``logits [B, C]`` with class indices ``[B]``.

    Raises:
        BadInputError: there are no labels, or more classes than logits.
    """
    if labels is None:
        raise BadInputError("data", "training data without labels", expected="a label for each sample")
    classes = max(2, logits.shape[1])
    if int(labels.max()) >= classes or int(labels.min()) < 0:
        raise BadInputError("data", f"class index {int(labels.max())}", expected=f"0 to {classes - 1}")
    if logits.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype), reduction="none")
    return functional.cross_entropy(logits, labels, reduction="none")


def soft_label_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T² KL(teacher ‖ student)`` of logits ``[B, C]``, softened by the temperature; one logit is a sigmoid's.

    Of logits ``[B, S, V]`` it is the mean over tokens.
    """
    if student.shape[-1] == 1:
        student, teacher = (torch.cat([torch.zeros_like(value), value], -1) for value in (student, teacher))
    if temperature != 1:  # a division of all logits is an eighth of a language model's time
        student, teacher = student / temperature, teacher / temperature
    ours = functional.log_softmax(student, dim=-1)
    theirs = functional.log_softmax(teacher, dim=-1)
    divergence = temperature**2 * functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
    return divergence.flatten(1).mean(1) if divergence.dim() > 1 else divergence


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of vectors ``[B, D]``."""
    return 1 - functional.cosine_similarity(student, teacher, dim=1)


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Squared difference of states ``[B, S, H]`` over real tokens, by the teacher's mean square over them."""
    if teacher.dim() != 3 or mask is None:
        return (student - teacher).square().flatten(1).mean(1) / teacher.square().flatten(1).mean(1).clamp_min(1e-12)
    weight = mask.to(teacher.dtype)[:, :, None]
    difference = ((student - teacher).square() * weight).sum((1, 2))
    return difference / (teacher.square() * weight).sum((1, 2)).clamp_min(1e-12)


def attention_loss(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """``KL(teacher ‖ student)`` of attention ``[B, heads, S, S]``, a mean over heads and real tokens.

    Raises:
        BadInputError: the two have different numbers of heads.
    """
    if student.shape != teacher.shape:
        raise BadInputError(
            "distill: attention",
            f"attention {list(student.shape)} of the student",
            expected=f"as the teacher's {list(teacher.shape)}",
            hint="a student with as many heads, or attention = 0",
        )
    tiny = 1e-9
    divergence = (teacher * ((teacher + tiny).log() - (student + tiny).log())).sum(-1).mean(1)
    if mask is None:
        return divergence.mean(1)
    weight = mask.to(divergence.dtype)
    return (divergence * weight).sum(1) / weight.sum(1)


def pool(values: Tensor, mask: Tensor | None, pooling: Literal["mean", "cls", "none"]) -> Tensor:
    """A vector a sample, ``[B, D]``: of the real tokens' mean, the first token, or all values."""
    if values.dim() == 3 and pooling == "cls":
        return values[:, 0]
    if values.dim() == 3 and pooling == "mean" and mask is not None:
        weight = mask.to(values.dtype)[:, :, None]
        return (values * weight).sum(1) / weight.sum(1).clamp_min(1e-9)
    if values.dim() == 3 and mask is not None:
        values = values * mask.to(values.dtype)[:, :, None]
    return values.flatten(1)


def _width(module: nn.Module) -> int:
    config = getattr(module, "config", None)
    return int(getattr(config, "hidden_size", getattr(config, "dim", 0)) or 0)
