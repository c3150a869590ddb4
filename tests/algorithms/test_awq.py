"""AWQ against a grid search by hand, and its scaling written into graphs that must not change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeslim.algorithms.awq import STRENGTHS, scaling_vector, search_scaling
from edgeslim.algorithms.blockwise import round_blocks
from edgeslim.core import Quiet
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.quantizing.block_sites import find_matrices
from edgeslim.quantizing.input_scaling import scale_inputs
from edgeslim.quantizing.moments import Moments
from edgeslim.session import open_runner

RNG = np.random.default_rng(0)


def uneven(rows: int, seed: int = 1) -> np.ndarray:
    """Inputs of 32 channels, a few of which are much larger."""
    made = np.random.default_rng(seed).normal(size=(rows, 32))
    made[:, [3, 17, 30]] *= 12
    return made.astype(np.float32)


def test_vector_by_hand() -> None:
    size = np.array([2.0, 4.0, 0.0])
    np.testing.assert_allclose(scaling_vector(size, 1.0), [2**-0.5, 2**0.5, 1], rtol=1e-6)
    np.testing.assert_allclose(scaling_vector(size, 0.5), [2**-0.25, 2**0.25, 1], rtol=1e-6)


def test_equals_a_search_by_hand() -> None:
    inputs = uneven(200)
    weights = [RNG.normal(size=(24, 32)).astype(np.float32), RNG.normal(size=(8, 32)).astype(np.float32)]
    hessian = (inputs.T @ inputs).astype(np.float64)
    errors = {}
    for strength in (0.0, *STRENGTHS):
        size = np.sqrt((inputs.astype(np.float64) ** 2).sum(axis=0)) ** strength
        scale = (size / np.exp(np.log(size).mean())).astype(np.float32)
        lost = [
            (inputs / scale) @ round_blocks(weight * scale, bits=4, block_size=16).dequantize().T - inputs @ weight.T
            for weight in weights
        ]
        errors[strength] = sum(float(np.square(item, dtype=np.float64).sum()) for item in lost)
    best = search_scaling(weights, hessian, np.sqrt(np.diag(hessian)), bits=4, block_size=16, symmetric=True)
    assert best.strength == min(errors, key=lambda strength: errors[strength])
    assert best.error == pytest.approx(errors[best.strength], rel=1e-2)
    assert best.plain_error == pytest.approx(errors[0.0], rel=1e-2)
    assert best.error < 0.7 * best.plain_error


@pytest.mark.parametrize("residual", [False, True])
def test_the_scaled_graph_gives_the_same_outputs(tmp_path: Path, *, residual: bool) -> None:
    """Two layers behind a normalization: folded into it, unless a residual connection takes its output as well."""
    gamma = (1 + 9 * (RNG.random(32) > 0.85)).astype(np.float32)
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"], name="norm", axis=-1),
        helper.make_node("MatMul", ["n", "w1"], ["a"], name="first"),
        helper.make_node("Gemm", ["n", "w2"], ["b"], name="second", transB=1),
        helper.make_node("Add", ["a", "b"], ["c" if residual else "y"]),
    ]
    if residual:
        nodes.append(helper.make_node("Add", ["c", "n"], ["y"]))
    tensors = {
        "gamma": gamma,
        "beta": RNG.normal(size=32).astype(np.float32),
        "w1": RNG.normal(size=(32, 32)).astype(np.float32),
        "w2": RNG.normal(size=(32, 32)).astype(np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    model = load_graph(path)
    inputs = RNG.normal(size=(100, 32)).astype(np.float32)
    normal = (inputs - inputs.mean(axis=1, keepdims=True)) / np.sqrt(inputs.var(axis=1, keepdims=True) + 1e-5)
    rows = (normal * gamma + tensors["beta"]).astype(np.float64)
    moments = Moments(second=rows.T @ rows, total=rows.sum(axis=0), count=len(rows))
    matrices = find_matrices(model.graph, embeddings=True, min_elements=1, keep_float=(), skipped={})
    scaled = scale_inputs(
        model.graph, matrices, {"n": moments}, bits=4, block_size=16, symmetric=True, progress=Quiet()
    )
    assert (scaled.folded, scaled.multiplied) == ((0, 1) if residual else (1, 0))
    made, _ = save_graph(model, tmp_path / "scaled")
    np.testing.assert_allclose(
        open_runner(made)({"x": inputs})["y"], open_runner(path)({"x": inputs})["y"], rtol=1e-4, atol=1e-4
    )
    after = find_matrices(model.graph, embeddings=True, min_elements=1, keep_float=(), skipped={})
    assert not np.allclose(after[0].weight, matrices[0].weight)
    source = after[0].linears[0].source_name
    vector = after[0].weight[0] / matrices[0].weight[0]
    np.testing.assert_allclose(scaled.moments[source].second, (rows / vector).T @ (rows / vector), rtol=1e-3, atol=1e-2)
