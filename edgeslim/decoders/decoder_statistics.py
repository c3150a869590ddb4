"""What calibration text says of a decoder's matrices: second moments of their inputs, squared gradients of outputs.

One forward pass a window gives H = Σ x xᵀ of each matrix's input; matrices that read the same input share it. One
backward pass, on some of the windows, gives G, the mean squared gradient by each output channel of the log-likelihood
of a text drawn from the model's own distribution: the diagonal of its Fisher information (Kunstner et al. 2019, arXiv
1905.12558, say why the text's own words won't do).

The output layer's logits need no backward pass: the Fisher information of logit v is p_v (1 - p_v). A tied table is an
embedding, too; there an error in row v costs the squared gradient by the embedding's output, as often as v comes up,
which the mean of p_v estimates for words that the calibration text hasn't.

Hessians are float32 sums of at most a window's rows, added up in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.core import Batch, Progress
from edgeslim.decoders.checkpoint import Checkpoint
from edgeslim.decoders.torch_decoder import make_module
from edgeslim.errors import BadInputError

__all__ = ["Statistics", "collect_statistics", "input_name"]

Array = npt.NDArray[np.float64]


@dataclass(kw_only=True)
class Statistics:
    """``moments`` by an input's name (``input_name``), ``gradients`` by a matrix's; ``probability`` [vocabulary].

    ``logit_fisher`` [vocabulary] is the mean of p (1 - p); ``embedding_gradient`` the mean squared gradient by a
    channel of the embedding's output; ``tokens`` is what the moments are sums over.
    """

    moments: dict[str, Array] = field(default_factory=dict)
    gradients: dict[str, Array] = field(default_factory=dict)
    probability: Array = field(default_factory=lambda: np.zeros(0))
    logit_fisher: Array = field(default_factory=lambda: np.zeros(0))
    embedding_gradient: float = 0.0
    tokens: int = 0


def input_name(path: str) -> str:
    """The name under which the input of the matrix ``path`` is known: that of the first matrix that reads it."""
    for other in ("k_proj", "v_proj"):
        path = path.replace(other, "q_proj")
    return path.replace("up_proj", "gate_proj")


def collect_statistics(
    checkpoint: Checkpoint, batches: Sequence[Batch], *, gradient_windows: int, seed: int, progress: Progress
) -> Statistics:
    """Statistics over ``batches``, windows of running text; gradients over the first ``gradient_windows`` of them.

    Raises:
        BadInputError: there are no windows, or the checkpoint can't be used.
    """
    import torch

    if not batches:
        raise BadInputError("calibration", "no samples", expected="at least one sample", hint="--data FILE")
    module = make_module(checkpoint)
    module.requires_grad_(requires_grad=False)
    found = Statistics()
    shape = checkpoint.shape
    found.probability = np.zeros(shape.vocabulary)
    found.logit_fisher = np.zeros(shape.vocabulary)
    graded = 0
    embedded: list[Any] = []
    for path, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear):
            if input_name(path) == path:
                layer.register_forward_pre_hook(_add_moments(found.moments, path))
            if path != "lm_head":
                layer.register_forward_hook(_watch_gradient(found.gradients, path))
    module.model.embed_tokens.register_forward_hook(lambda _, __, output: embedded.append(output.requires_grad_()))
    generator = torch.Generator().manual_seed(seed)
    for number, batch in enumerate(progress.track(batches, "statistics", len(batches))):
        tokens = torch.from_numpy(batch.feed["input_ids"])
        found.tokens += tokens.numel()
        embedded.clear()
        with torch.set_grad_enabled(number < gradient_windows):
            logits = module(tokens, use_cache=False).logits[0]
        shares = torch.softmax(logits.detach(), dim=-1)
        found.probability += shares.sum(0, dtype=torch.float64).numpy()
        found.logit_fisher += (shares * (1 - shares)).sum(0, dtype=torch.float64).numpy()
        if number < gradient_windows:
            drawn = torch.multinomial(shares, 1, generator=generator)[:, 0]
            torch.nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()  # type: ignore[no-untyped-call]
            graded += tokens.numel()
            found.embedding_gradient += float(embedded[0].grad.square().mean(-1).sum())
    found.probability /= found.tokens
    found.logit_fisher /= found.tokens
    found.embedding_gradient /= max(graded, 1)
    for total in found.gradients.values():
        total /= max(graded, 1)
    return found


def _add_moments(moments: dict[str, Array], path: str) -> Callable[..., None]:
    def hook(_: Any, inputs: tuple[Any, ...]) -> None:
        rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
        product = (rows.T @ rows).numpy().astype(np.float64)
        if path in moments:
            moments[path] += product
        else:
            moments[path] = product

    return hook


def _watch_gradient(gradients: dict[str, Array], path: str) -> Callable[..., None]:
    def add(gradient: Any) -> None:
        squared = gradient.reshape(-1, gradient.shape[-1]).square().sum(0).double().numpy()
        if path in gradients:
            gradients[path] += squared
        else:
            gradients[path] = squared

    def hook(_: Any, __: Any, output: Any) -> None:
        if output.requires_grad:
            output.register_hook(add)

    return hook
