"""Weights that share few values while they are trained: the trained quantization of Deep Compression.

Han et al. 2015, arXiv 1510.00149: k-means gives each layer a codebook, and from then on the gradient of a centroid is
that of all weights that have its value together. Here every weight of a cluster gets the *mean* of the cluster's
gradients; the optimizer, which treats equal histories equally, then moves them alike (Adam divides the scale out, so
that mean and sum come to the same), and after each step they are set to their mean, so that rounding can't part them.
Masked weights are no cluster: they stay zero, and no codebook value is zero but theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeslim.algorithms.clustering import fit_codebook
from edgeslim.training.gradual_pruning import prunable_weights
from edgeslim.training.hooks import Hook
from edgeslim.training.masks import Masks
from edgeslim.training.torch_model import TorchModel

__all__ = ["ShareWeights", "SharingOptions"]


@dataclass(frozen=True, kw_only=True)
class SharingOptions:
    """Codebooks of 2**``cluster_bits`` values for each weight whose parameter ``cluster`` names; 0 bits for none.

    With ``cluster_biases`` the biases of these layers get codebooks, too, where they have four times as many values.
    """

    cluster_bits: int = 0
    cluster: tuple[str, ...] = ("*",)
    cluster_biases: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.cluster_bits <= 8:
            raise ValueError(f"cluster_bits: {self.cluster_bits}, expected 0 (none) to 8")
        if self.cluster_bits and getattr(self, "sparsity", None):
            raise ValueError("cluster_bits beside sparsity, expected a step that prunes, then one that clusters")

    def sharing_hooks(self, model: TorchModel) -> list[ShareWeights]:
        """The hook for ``model``, if weights are to be shared."""
        if not self.cluster_bits:
            return []
        names, _ = prunable_weights(model.module, self.cluster)
        if self.cluster_biases:
            parameters = dict(model.module.named_parameters())
            biases = [f"{name.removesuffix('weight')}bias" for name in names]
            least = 4 * 2**self.cluster_bits
            names += [name for name in biases if name in parameters and parameters[name].numel() >= least]
        return [ShareWeights(model.module, names, self.cluster_bits, model.masks)]


class ShareWeights(Hook):
    """Keeps the weights ``names`` of ``module`` on codebooks, which move as a whole."""

    def __init__(self, module: nn.Module, names: Sequence[str], bits: int, masks: Masks) -> None:
        parameters = dict(module.named_parameters())
        self._index: dict[str, Tensor] = {}
        for name in names:
            weight = parameters[name].detach()
            pruned = weight if name not in masks else torch.where(masks[name], weight, 0.0)
            book = fit_codebook(pruned.float().cpu().numpy(), bits, keep_zero=name in masks)
            self._index[name] = torch.from_numpy(book.index.astype("int64")).to(weight.device)
            with torch.no_grad():
                parameters[name].copy_(torch.from_numpy(book.decode()))

    @torch.no_grad()
    def before_update(self, module: nn.Module) -> None:
        """Each weight's gradient becomes the mean of its cluster's."""
        for name, parameter in module.named_parameters():
            if name in self._index and parameter.grad is not None:
                parameter.grad.copy_(_cluster_means(parameter.grad, self._index[name]))

    @torch.no_grad()
    def after_update(self, module: nn.Module, step: int, total: int, learning_rate: float) -> None:  # noqa: ARG002
        """Each weight becomes its cluster's mean."""
        for name, parameter in module.named_parameters():
            if name in self._index:
                parameter.copy_(_cluster_means(parameter, self._index[name]))

    def state(self) -> dict[str, Tensor]:
        """Which cluster each weight is in."""
        return {f"{name}#cluster": index for name, index in self._index.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes the clusters back."""
        self._index = {name: state[f"{name}#cluster"] for name in self._index}

    def metrics(self) -> dict[str, float]:
        """How many weights share how many values."""
        return {
            "clustered_weights": float(sum(index.numel() for index in self._index.values())),
            "codebook_values": float(sum(int(index.max()) + 1 for index in self._index.values())),
        }


def _cluster_means(values: Tensor, index: Tensor) -> Tensor:
    flat, where = values.flatten().double(), index.flatten()
    count = int(where.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64, device=flat.device).index_add_(0, where, flat)
    sizes = torch.bincount(where, minlength=count)
    return (sums / sizes.clamp_min(1))[where].to(values.dtype).view(values.shape)
