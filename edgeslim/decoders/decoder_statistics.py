"""What calibration text says of a decoder's matrices: second moments of their inputs, squared gradients of outputs.

A forward and a backward pass a window. The gradient g is that of the log-likelihood of a text drawn from the model's
own distribution, so its squares are the diagonal of the Fisher information (Kunstner et al. 2019, arXiv 1905.12558, say
why the text's own words won't do). An error E in a matrix changes that likelihood by Σ g_ti² (E x_t)_i² over tokens t
and channels i, to second order. With g_ti² taken for a product r_t c_i this is c_i times (E H Eᵀ)_ii for H = Σ r_t x_t
x_tᵀ. Matrices that read the same input share H.

Where tokens are about as large as each other, r_t is 1: gradients have heavy tails, so that weighting by them leaves H
few tokens to rest on. (SmolLM2's queries, 3.4 to 3.6 bits a weight: weights r_t taken from queries, keys and values
together came to a perplexity ratio of 1.16, none to 1.004, 6,144 tokens.) Inputs of the second feed-forward matrix
aren't: the first token of a window carries activations a thousand times those of the others, and hardly any gradient;
it would rule H. There, and at the output layer, r_t is the mean of g_ti² over channels.

The output layer's logits need no backward pass: the Fisher information of logit v is p_v (1 - p_v). A tied table is an
embedding, too; there an error in row v costs the squared gradient by the embedding's output, as often as v comes up,
which the mean of p_v estimates for words that the calibration text hasn't.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
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
TINY = 1e-300


@dataclass(kw_only=True)
class Statistics:
    """``moments`` H by an input's name (``input_name``), float32; ``gradients`` c [out] by a matrix's.

    ``logit_fisher`` [vocabulary] is p (1 - p) over its sum, a
    token at a time, and ``lookup_fisher`` [vocabulary] what a squared error of 1 in each channel of a row costs.
    """

    moments: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    gradients: dict[str, Array] = field(default_factory=dict)
    logit_fisher: Array = field(default_factory=lambda: np.zeros(0))
    lookup_fisher: Array = field(default_factory=lambda: np.zeros(0))
    tokens: int = 0


def input_name(path: str) -> str:
    """The name under which the input of the matrix ``path`` is known: that of the first matrix that reads it.

    The second factor of a factorized matrix reads what nobody else does.
    """
    if path.endswith(".1"):
        return path
    for other in ("k_proj", "v_proj"):
        path = path.replace(other, "q_proj")
    return path.replace("up_proj", "gate_proj")


def collect_statistics(
    checkpoint: Checkpoint,
    batches: Sequence[Batch],
    *,
    seed: int,
    progress: Progress,
    paths: Container[str] | None = None,
) -> Statistics:
    """Statistics over ``batches``, windows of running text; of the matrices ``paths``, and of the logits in any case.

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
    probability, embedding = np.zeros(shape.vocabulary), 0.0
    watched: dict[str, tuple[Any, Any]] = {}
    embedded: list[Any] = []
    for path, layer in module.named_modules():
        if isinstance(layer, torch.nn.Linear) and (paths is None or path in paths or path == "lm_head"):
            layer.register_forward_hook(_watch(watched, path))
    module.model.embed_tokens.register_forward_hook(lambda _, __, output: embedded.append(output.requires_grad_()))
    generator = torch.Generator().manual_seed(seed)
    found.logit_fisher = np.zeros(shape.vocabulary)
    for batch in progress.track(batches, "statistics", len(batches)):
        tokens = torch.from_numpy(batch.feed["input_ids"])
        found.tokens += tokens.numel()
        embedded.clear()
        logits = module(tokens, use_cache=False).logits[0]
        shares = torch.softmax(logits.detach(), dim=-1)
        probability += shares.sum(0, dtype=torch.float64).numpy()
        fisher = shares * (1 - shares)
        found.logit_fisher += fisher.sum(0, dtype=torch.float64).numpy()
        drawn = torch.multinomial(shares, 1, generator=generator)[:, 0]
        torch.nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()  # type: ignore[no-untyped-call]
        embedding += float(embedded[0].grad.square().mean(-1).sum())
        done: set[str] = set()
        for path, (rows, output) in watched.items():
            squared = fisher if path == "lm_head" else output.grad[0].square()
            if path != "lm_head":
                total = squared.sum(0, dtype=torch.float64).numpy()
                found.gradients[path] = found.gradients.get(path, 0) + total
            name = input_name(path)
            if name not in done:
                done.add(name)
                weighted = rows[0] * squared.mean(-1)[:, None] if _weighs_tokens(path) else rows[0]
                found.moments[name] = found.moments.get(name, 0) + (rows[0].T @ weighted).numpy()
        watched.clear()
    found.lookup_fisher = probability * embedding / max(found.tokens, 1)
    _normalize(found)
    return found


def _normalize(found: Statistics) -> None:
    """Divides the sums of g² by those of r: so that c H is what a channel's error costs."""
    for path, total in found.gradients.items():
        weight = float(total.mean()) if _weighs_tokens(path) else found.tokens
        found.gradients[path] = total / max(weight, TINY)
    found.logit_fisher /= max(float(found.logit_fisher.mean()), TINY)


def _weighs_tokens(path: str) -> bool:
    """Whether r_t comes from gradients."""
    return path == "lm_head" or path.endswith(("down_proj", "down_proj.0"))


def _watch(watched: dict[str, tuple[Any, Any]], path: str) -> Callable[..., None]:
    def hook(_: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if path != "lm_head":
            output.retain_grad()
        watched[path] = (inputs[0].detach(), output)

    return hook
