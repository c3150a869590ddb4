"""Which samples a training step takes, and how they become one batch.

The order comes from the seed and the epoch alone, so a training that is taken up again needs no state for it. Samples
of about one length are taken together, so that little of a batch is padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgeslim.core import Batch, TrainingData

__all__ = ["Order", "collate", "sample_length"]

BUCKET = 16
"""Batches' worth of samples that are sorted by length together, so that little is padded."""


class Order:
    """Which samples each step takes: a new order for each epoch, from the seed alone."""

    def __init__(self, data: TrainingData, size: int, seed: int) -> None:
        self._samples = data.training
        self._size, self._seed = size, seed
        self._batches = math.ceil(len(data.training) / size)
        self._lengths = np.array([sample_length(sample) for sample in data.training]) if data.padding else None
        self._epoch, self._order = -1, np.array([], np.int64)

    def batch(self, step: int) -> list[Batch]:
        """The global batch of ``step``."""
        epoch, index = divmod(step, self._batches)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(np.random.default_rng((self._seed, epoch)))
        return [self._samples[row] for row in self._order[index] if row >= 0]

    def _shuffle(self, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        """Rows ``[batches, size]``, -1 where the last batch has none."""
        order, wide = generator.permutation(len(self._samples)), BUCKET * self._size
        if self._lengths is not None:
            chunks = [order[start : start + wide] for start in range(0, len(order), wide)]
            order = np.concatenate([chunk[np.argsort(self._lengths[chunk], kind="stable")] for chunk in chunks])
        order = np.pad(order, (0, self._batches * self._size - len(order)), constant_values=-1)
        order = order.reshape(self._batches, self._size)
        return generator.permutation(order) if self._lengths is not None else order


def sample_length(sample: Batch) -> int:
    """The longest last axis of a sample's inputs."""
    return max(int(value.shape[-1]) for value in sample.feed.values())


def collate(batches: Sequence[Batch], padding: Mapping[str, int]) -> tuple[dict[str, Tensor], Tensor | None]:
    """One batch of several: sequences are padded at their end to the longest, with ``padding`` or 0."""
    inputs = {}
    for name in batches[0].feed:
        values = [np.asarray(batch.feed[name]) for batch in batches]
        longest = max(value.shape[1] for value in values) if values[0].ndim > 1 else 0
        padded = [
            np.pad(
                value,
                [(0, 0), (0, longest - value.shape[1]), *[(0, 0)] * (value.ndim - 2)],
                constant_values=padding.get(name, 0),
            )
            if value.ndim > 1 and value.shape[1] < longest
            else value
            for value in values
        ]
        inputs[name] = torch.from_numpy(np.concatenate(padded))
    labels = [label for batch in batches for label in batch.labels]
    return inputs, torch.tensor(labels) if labels else None
