"""Whether calibration data can be trusted: is there enough of it, and is it like the data that evaluates?

Statistics of the inputs alone, so nothing is tuned on evaluation data: what is said here changes a note and no model.

*Too little.* Of n samples and one more, each is as likely as the others to hold the largest value of any tensor, so a
new sample leaves the calibrated range with probability 1 / (n + 1), whatever the model. Below 32 samples that is more
than 3 %. And the Hessian that GPTQ inverts has the rank of its rows at most: with fewer rows (tokens, or samples of a
model that takes vectors) than its widest layer has inputs, the rounding of that layer is partly a guess. The widest
layer of all-MiniLM-L6-v2 has 1536 inputs; in static int8 with GPTQ, calibrated on 8, 16, 32, 64, 128 and 1,000 texts
(209 to 25,108 tokens), its mean cosine is 0.986, 0.9926, 0.9959, 0.9977, 0.9983 and 0.9983.

*Unlike, whole numbers* (tokens). A unigram model of the calibration data, with 0.1 added to each count, codes each
evaluation sample; what that costs in bits a token is compared with what calibration samples cost, each of them left out
of the model's counts while it is coded (jackknife, Tukey 1958). Rare tokens cost both the same, foreign ones do not.

*Unlike, floats.* The mean and the logarithm of the standard deviation of each sample, in units of their spread over the
calibration samples.

Both must differ clearly (an effect) and certainly (its standard errors). On VADER's film, product, newspaper and tweet
snippets 1,200 random splits of one mixture into 8 to 512 and 400 samples stayed below 3.9 standard errors; 128
sentences of the Brown corpus in place of the mixture came to 0.40 bits and 5.0 (and cost the same model 0.0006 of
cosine), tweets alone to 0.75 and 7.3, film reviews alone to 0.54 and 6.6 (0.0010), Python's manual to 1.7 and 21
(0.0047). On Fashion-MNIST 240 splits stayed below 3.8; pictures of 0.8 of the brightness came to 0.59 and 12.9.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.core import Batch
from edgeslim.graphs.graph import constant_array, load_graph
from edgeslim.graphs.int8_forms import attribute

__all__ = ["judge_calibration", "judge_likeness", "judge_quantity", "widest_layer"]

FEWEST_SAMPLES = 32
MIN_BITS = 0.2
MIN_EFFECT = 0.5
MIN_ERRORS = 4.0
ADDED = 0.1

Values = npt.NDArray[Any]


def judge_calibration(calibration: Sequence[Batch], evaluation: Sequence[Batch], model: Path) -> tuple[str, ...]:
    """Notes for a report on calibration data that is too little for the graph ``model``, or unlike evaluation data."""
    return (*judge_quantity(calibration, widest_layer(model)), *judge_likeness(calibration, evaluation))


def widest_layer(model: Path) -> int:
    """The most inputs that a MatMul or Gemm with a constant weight has; 0 without any."""
    widest = 0
    for node in load_graph(model).graph:
        if node.op_type in ("MatMul", "Gemm") and node.domain in ("", "ai.onnx"):
            weight = constant_array(node.inputs[1])
            if weight is not None and weight.ndim == 2:
                turned = node.op_type == "Gemm" and attribute(node, "transB", 0)
                widest = max(widest, weight.shape[1] if turned else weight.shape[0])
    return widest


def judge_quantity(calibration: Sequence[Batch], widest: int) -> tuple[str, ...]:
    """Notes where calibration data is too little for a model whose widest layer has ``widest`` inputs."""
    samples = sum(batch.rows for batch in calibration)
    found = []
    if samples < FEWEST_SAMPLES:
        found.append(f"a new sample leaves the range of {samples} with probability 1/{samples + 1}")
    rows = _count_rows(calibration)
    if rows is not None and rows < widest:
        found.append(f"its {rows:,} rows can't tell the widest layer's {widest:,} inputs apart")
    if not found:
        return ()
    counted = f"{samples} sample" + ("" if samples == 1 else "s")
    return (f"calibration data is little ({counted}): {'; '.join(found)}; {FEWEST_SAMPLES} or more would do better",)


def judge_likeness(calibration: Sequence[Batch], evaluation: Sequence[Batch]) -> tuple[str, ...]:
    """Notes where the inputs of calibration and evaluation data come from different distributions."""
    if sum(batch.rows for batch in calibration) < 2 or not evaluation:
        return ()
    notes = []
    for name, value in calibration[0].feed.items():
        if value.dtype.kind == "f" or (value.dtype.kind in "iu" and value.ndim > 2):
            found = _compare_moments(name, _samples(calibration, name), _samples(evaluation, name))
        elif value.dtype.kind in "iu":
            found = _compare_tokens(name, list(_samples(calibration, name)), list(_samples(evaluation, name)))
        else:
            found = None
        if found is not None:
            notes.append(f"calibration data is unlike the evaluation data: {found}; calibrate on data of the same kind")
    return tuple(notes)


def _count_rows(batches: Sequence[Batch]) -> int | None:
    """How many rows a layer sees: tokens, or vectors; ``None`` where the inputs don't tell (pictures)."""
    first = batches[0].feed
    tokens = [name for name, value in first.items() if value.dtype.kind in "iu" and value.ndim == 2]
    if tokens:
        return sum(sample.size for sample in _samples(batches, tokens[0]))
    if all(value.ndim == 2 for value in first.values()):
        return sum(batch.rows for batch in batches)
    return None


def _samples(batches: Sequence[Batch], name: str) -> Iterable[Values]:
    """One sample's values after the other; of whole numbers those alone that the attention mask lets through."""
    for batch in batches:
        values, mask = batch.feed[name], batch.feed.get("attention_mask")
        masked = mask is not None and mask.shape == values.shape and name != "attention_mask"
        for row in range(len(values) if values.ndim else 0):
            yield values[row][mask[row] != 0] if masked and mask is not None else values[row].ravel()


def _compare_tokens(name: str, known: list[Values], new: list[Values]) -> str | None:
    known, new = [sample for sample in known if sample.size], [sample for sample in new if sample.size]
    if len(known) < 2 or not new:
        return None
    counts: dict[int, int] = {}
    for value, count in zip(*np.unique(np.concatenate(known), return_counts=True), strict=True):
        counts[int(value)] = int(count)
    total = sum(counts.values())
    size = len(counts.keys() | set(np.unique(np.concatenate(new)).tolist()))

    def cost(sample: Values, *, left_out: bool) -> tuple[float, float]:
        """Bits a token, and the share of tokens that don't occur elsewhere."""
        values, times = np.unique(sample, return_counts=True)
        seen = np.array([counts.get(int(value), 0) for value in values]) - (times if left_out else 0)
        bits = np.log2((total - (sample.size if left_out else 0) + ADDED * size) / (seen + ADDED))
        return float(bits @ times) / sample.size, float(times[seen == 0].sum()) / sample.size

    own = np.array([cost(sample, left_out=True) for sample in known])
    other = np.array([cost(sample, left_out=False) for sample in new])
    effect, errors = _difference(own[:, 0], other[:, 0])
    if effect < MIN_BITS or errors < MIN_ERRORS:
        return None
    return (
        f"by what it holds, evaluation's {name} cost {effect:.2f} bits each more than its own "
        f"({other[:, 1].mean():.0%} don't occur in it, by itself {own[:, 1].mean():.0%} would not)"
    )


def _compare_moments(name: str, known: Iterable[Values], new: Iterable[Values]) -> str | None:
    own, other = (
        np.array([_moments(sample) for sample in samples if sample.size], np.float64).reshape(-1, 2)
        for samples in (known, new)
    )
    if len(own) < 2 or not len(other):
        return None
    for column, what in enumerate(("mean", "standard deviation")):
        effect, errors = _difference(own[:, column], other[:, column])
        spread = max(float(own[:, column].std(ddof=1)), 1e-6)
        if abs(effect) >= MIN_EFFECT * spread and abs(errors) >= MIN_ERRORS:
            before, after = own[:, column].mean(), other[:, column].mean()
            if column:
                before, after = math.exp(before), math.exp(after)
            return f"the {what} of {name} is {after:.3g} instead of {before:.3g}"
    return None


def _moments(sample: Values) -> tuple[float, float]:
    """The mean, and the logarithm of the standard deviation."""
    values = np.asarray(sample, np.float64)
    return float(values.mean()), math.log(max(float(values.std()), 1e-12))


def _difference(own: Values, other: Values) -> tuple[float, float]:
    """How much larger the mean of ``other`` is, and in how many standard errors."""
    effect = float(other.mean() - own.mean())
    error = math.sqrt(float(own.var(ddof=1)) / len(own) + float(other.var()) / len(other))
    return effect, effect / error if error > 0 else math.copysign(math.inf, effect) if effect else 0.0
