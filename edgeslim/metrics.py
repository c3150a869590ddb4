"""How close two sets of outputs are, and how often a classifier is right: pure NumPy.

Embeddings are compared in three ways, since each hides what another shows. The *cosine* of each row with its
reference says how far a vector moved. *Spearman's rank correlation* of all sentence pairs' similarities says whether
pairs still sort alike (a rotation of all vectors changes every cosine and no pair). The *overlap of the k nearest
neighbours* says what a search over these vectors would return, and falls first.

Layouts: vectors are ``float [N, D]``, one row a sample; hidden states ``float [B, S, H]``; attention masks
``int [B, S]`` with 1 for a real token; class indices ``int [N]``. Everything is computed in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "accuracy",
    "cosine_rows",
    "f1_score",
    "l2_normalize",
    "mean_pool",
    "pairwise_cosine",
    "similarity_spearman",
    "spearman",
    "top_k_overlap",
]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


def l2_normalize(vectors: Array) -> Floats:
    """Scales each row of ``vectors [..., D]`` to length 1; a row of zeros stays as it is."""
    values = np.asarray(vectors, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # infinite rows become NaN
        lengths = np.linalg.norm(values, axis=-1, keepdims=True)
        unit: Floats = np.divide(values, lengths, out=np.zeros_like(values), where=lengths != 0)
    return unit


def mean_pool(hidden: Array, mask: Array) -> Floats:
    """The mean of ``hidden [B, S, H]`` over the tokens that ``mask [B, S]`` keeps: ``[B, H]``.

    A row whose mask is empty becomes zeros.
    """
    weights = np.asarray(mask, dtype=np.float64)[:, :, None]
    # Padding may hold anything, infinities included, and 0 * inf is not 0.
    values = np.where(weights > 0, np.asarray(hidden, dtype=np.float64), 0.0)
    with np.errstate(invalid="ignore"):
        pooled: Floats = (values * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9)
    return pooled


def cosine_rows(candidate: Array, reference: Array) -> Floats:
    """The cosine of each row of ``candidate [N, D]`` with the same row of ``reference [N, D]``: ``[N]``.

    Two rows of zeros agree (1). A row that holds NaN or infinity, or zeros on one side alone, counts as 0.
    """
    left, right = np.asarray(candidate, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    finite = np.isfinite(np.concatenate([left, right], axis=1)).all(axis=1, keepdims=True)
    left, right = (np.where(finite, side, 0.0) for side in (left, right))
    cosines = (l2_normalize(left) * l2_normalize(right)).sum(axis=1)
    both_zero = finite[:, 0] & ~left.any(axis=1) & ~right.any(axis=1)
    return np.clip(np.where(both_zero, 1.0, cosines), -1.0, 1.0)


def pairwise_cosine(vectors: Array) -> Floats:
    """The cosine of every row of ``vectors [N, D]`` with every other: ``[N, N]``; a row with NaN counts as zeros."""
    values = np.asarray(vectors, dtype=np.float64)
    unit = l2_normalize(np.where(np.isfinite(values).all(axis=1, keepdims=True), values, 0.0))
    return np.asarray(unit @ unit.T, dtype=np.float64)


def spearman(candidate: Array, reference: Array) -> float:
    """Spearman's rank correlation of two lists ``[N]``, where ties share the mean of their ranks.

    It isn't defined where one list is constant: then it is 1.0 if both are, else 0.0.
    """
    left, right = _rank(np.asarray(candidate, dtype=np.float64)), _rank(np.asarray(reference, dtype=np.float64))
    left, right = left - left.mean(), right - right.mean()
    scale = float(np.sqrt((left * left).sum() * (right * right).sum()))
    if scale == 0.0:
        return 1.0 if not left.any() and not right.any() else 0.0
    return float(np.clip((left * right).sum() / scale, -1.0, 1.0))


def similarity_spearman(candidate: Array, reference: Array) -> float:
    """Spearman's correlation of the similarities of all pairs of rows, in ``candidate [N, D]`` and in ``reference``.

    Needs three rows or more: two make a single pair, and one value has no order.
    """
    upper = np.triu_indices(len(reference), k=1)
    return spearman(pairwise_cosine(candidate)[upper], pairwise_cosine(reference)[upper])


def top_k_overlap(candidate: Array, reference: Array, k: int = 10) -> float:
    """The mean share of a row's ``k`` nearest other rows by cosine that ``candidate`` and ``reference`` have in common.

    ``k`` is at most ``N - 1``. Of rows equally near, the first ones count on both sides.
    """
    rows = len(reference)
    k = min(k, rows - 1)
    hits = np.zeros((rows, rows), dtype=np.int8)
    for vectors in (candidate, reference):
        similarities = pairwise_cosine(vectors)
        np.fill_diagonal(similarities, -np.inf)
        nearest = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
        hits[np.arange(rows)[:, None], nearest] += 1
    return float((hits == 2).sum() / (rows * k))


def accuracy(predicted: Array, truth: Array) -> float:
    """The share of ``predicted [N]`` that equals ``truth [N]``."""
    return float(np.mean(np.asarray(predicted) == np.asarray(truth)))


def f1_score(predicted: Array, truth: Array, classes: int) -> float:
    """F1 of class 1 where there are two ``classes``, else the plain mean over the classes that occur (macro F1).

    A class that is neither right once nor ever predicted counts as 0.
    """
    guesses, answers = np.asarray(predicted), np.asarray(truth)
    wanted = np.array([1]) if classes == 2 else np.union1d(guesses, answers)
    scores = []
    for index in wanted:
        right = int(((guesses == index) & (answers == index)).sum())
        total = int((guesses == index).sum() + (answers == index).sum())
        scores.append(2 * right / total if total else 0.0)
    return float(np.mean(scores))


def _rank(values: Floats) -> Floats:
    _, position, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[position], dtype=np.float64)
