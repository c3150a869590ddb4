"""Equal slopes: by hand, against a numerical optimum, and against the bytes that really come of it."""

from __future__ import annotations

import numpy as np
import pytest

from edgeslim.algorithms.allocation import GridTensor, find_delta, predict_bytes
from edgeslim.algorithms.gptq import factor_inverse
from edgeslim.algorithms.rate import coded_bytes

RNG = np.random.default_rng(0)


def make_tensor(rows: int = 96, columns: int = 256, *, name: str = "t", stored_by_column: bool = False) -> GridTensor:
    mixing = RNG.normal(size=(rows, rows)) / np.sqrt(rows) + np.eye(rows)
    inputs = RNG.normal(size=(4 * rows, rows)) @ mixing
    return GridTensor(
        name=name,
        weight=(RNG.normal(size=(rows, columns)) * RNG.uniform(0.5, 2, columns)).astype(np.float32),
        upper=factor_inverse(inputs.T @ inputs / len(inputs)),
        gradients=RNG.uniform(0.1, 10, columns),
        stored_by_column=stored_by_column,
    )


def test_steps_of_a_table_by_hand() -> None:
    """U = ½ I: a mean of 1 / U² of 4. G = 1 and 4, so δ = 0.25 gives steps ⅛ and 1/16, both on the grid."""
    tensor = GridTensor(
        name="t",
        weight=np.array([[1, -1, 12.7], [0.5, 0.2, 0]], np.float32),
        upper=np.eye(2) / 2,
        gradients=np.array([1.0, 4.0, 4.0]),
        stored_by_column=True,
    )
    np.testing.assert_allclose(tensor.sensitivity, [4, 16, 16])
    np.testing.assert_allclose(tensor.steps(0.25), [1 / 8, 1 / 16, 2 ** (-26 / 8)])
    assert tensor.loss(0.25) == pytest.approx(2 / 12 * (4 / 64 + 16 / 256 + 16 * float(tensor.steps(0.25)[2]) ** 2))
    rounded = tensor.round(0.25, strength=0)
    np.testing.assert_array_equal(rounded.values, [[8, -16, 121], [4, 3, 0]])
    np.testing.assert_array_equal(tensor.stored(rounded), rounded.values.T)


def test_steps_of_columns_that_share_a_code_by_hand() -> None:
    """Mean |w| of 1 and 8, G = 1: steps of 1 to 2, and a mean squared step of δ²."""
    tensor = GridTensor(
        name="t", weight=np.array([[1, -8], [-1, 8]], np.float32), upper=np.eye(2), gradients=np.array([1.0, 1.0])
    )
    np.testing.assert_allclose(tensor.unit_steps, np.array([1, 2]) / np.sqrt(2.5))
    assert np.mean(tensor.unit_steps**2) == pytest.approx(1)


def test_integers_always_fit_into_int8() -> None:
    tensor = make_tensor()
    tensor.weight[3, 7] = 80.0
    for delta in (1e-6, 0.05, 5.0):
        values = np.rint(tensor.weight / tensor.steps(delta))
        assert np.abs(values).max() <= 127


def test_equal_slopes_beat_equal_steps() -> None:
    """At the same entropy, steps from sensitivities lose less than one step for all channels, measured."""
    tensor = make_tensor(columns=512)
    allocated = tensor.round(0.3, strength=0)
    hessian = np.linalg.inv(tensor.upper.T @ tensor.upper)

    def measured(values: np.ndarray, steps: np.ndarray) -> float:
        error = values * steps - tensor.weight
        return float(np.einsum("ji,jk,ki,i->", error, hessian, error, tensor.gradients))

    size = coded_bytes(allocated.values)
    flat = GridTensor(name="f", weight=tensor.weight, upper=tensor.upper, gradients=np.ones(512))
    delta = find_delta(
        lambda d: float(coded_bytes(flat.round(d, strength=0).values)), size, 1e-3, 100, weights=flat.weight.size
    )
    same = flat.round(delta, strength=0)
    assert coded_bytes(same.values) == pytest.approx(size, rel=0.01)
    assert measured(allocated.values, allocated.steps) < 0.92 * measured(same.values, same.steps)
    expected = tensor.loss(0.3)
    assert 0.7 * expected < measured(allocated.values, allocated.steps) < 1.3 * expected


@pytest.mark.parametrize("stored_by_column", [False, True])
def test_the_rate_term_lowers_error_and_bytes_together(stored_by_column: bool) -> None:
    tensor = make_tensor(columns=2048, stored_by_column=stored_by_column)
    hessian = np.linalg.inv(tensor.upper.T @ tensor.upper)

    def at(delta: float, strength: float) -> tuple[float, float]:
        rounded = tensor.round(delta, strength=strength)
        error = rounded.values * rounded.steps - tensor.weight
        loss = float(np.einsum("ji,jk,ki,i->", error, hessian, error, tensor.gradients))
        return loss, float(coded_bytes(tensor.stored(rounded)))

    plain_loss, plain_size = at(1.6, 0)
    finer = find_delta(lambda d: at(d, 1.0)[1], plain_size, 0.2, 3.2, weights=tensor.weight.size)
    loss, size = at(finer, 1.0)
    assert size <= 1.002 * plain_size
    assert loss < 0.98 * plain_loss


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_the_size_is_predicted_within_one_percent(strength: float) -> None:
    tensors = [make_tensor(columns=1024, name="a"), make_tensor(columns=3000, name="b", stored_by_column=True)]
    goal = 3.2 * sum(tensor.weight.size for tensor in tensors) / 8
    weights = sum(tensor.weight.size for tensor in tensors)
    delta = find_delta(lambda d: predict_bytes(tensors, d, strength=strength), goal, 1e-3, 100, weights=weights)
    made = [tensor.round(delta, strength=strength) for tensor in tensors]
    real = sum(coded_bytes(t.stored(m)) + coded_bytes(m.steps) for t, m in zip(tensors, made, strict=True))
    assert predict_bytes(tensors, delta, strength=strength) == pytest.approx(goal, rel=2e-3)
    assert real == pytest.approx(goal, rel=0.01)


def test_find_delta_stops_at_its_bounds() -> None:
    line = lambda delta: 1000 - 100 * np.log2(delta)  # noqa: E731
    assert find_delta(line, 800, 1e-3, 1e3, weights=800) == pytest.approx(4, rel=0.02)
    assert find_delta(line, 1, 1, 16, weights=800) == pytest.approx(16, rel=1e-3)
    assert find_delta(line, 5000, 1, 16, weights=800) == pytest.approx(1, rel=1e-3)
