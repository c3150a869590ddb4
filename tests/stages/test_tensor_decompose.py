"""Convolutions in parts: the parts against NumPy, what runs against ONNX Runtime on the whole one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from small_graphs import run_stage, stored, write_model

from edgeslim.errors import BadInputError, MissingToolError
from edgeslim.fields import parse_fields
from edgeslim.session import open_runner
from edgeslim.stages.tensor_decompose import TensorDecompose

RANDOM = np.random.default_rng(0)
IMAGES = {"x": RANDOM.normal(size=(2, 16, 11, 10)).astype(np.float32)}


def tucker_kernel(noise: float) -> np.ndarray:
    core = RANDOM.normal(size=(4, 3, 3, 3))
    kernel = np.einsum("or,rshw,is->oihw", RANDOM.normal(size=(24, 4)), core, RANDOM.normal(size=(16, 3)))
    return (kernel + noise * RANDOM.normal(size=kernel.shape)).astype(np.float32)


def cp_kernel(noise: float) -> np.ndarray:
    factors = [RANDOM.normal(size=(size, 3)) for size in (24, 16, 3, 3)]
    kernel = np.einsum("or,ir,hr,wr->oihw", *factors)
    return (kernel + noise * RANDOM.normal(size=kernel.shape)).astype(np.float32)


def network(folder: Path, kernel: np.ndarray, **attributes: object) -> Path:
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", **attributes)]
    bias = RANDOM.normal(size=len(kernel)).astype(np.float32)
    return write_model(folder / "conv.onnx", nodes, {"x": ["n", 16, 11, 10]}, w=kernel, b=bias)


GEOMETRIES = [
    {},
    {"pads": [1, 2, 0, 1], "strides": [2, 1]},
    {"dilations": [1, 2], "strides": [1, 3]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(("method", "make", "parts"), [("tucker", tucker_kernel, 3), ("cp", cp_kernel, 4)])
def test_an_exact_structure_is_found_and_runs_the_same(
    tmp_path: Path, geometry: dict, method: str, make: object, parts: int
) -> None:
    path = network(tmp_path, make(0.0), **geometry)
    stage = TensorDecompose(method=method, max_error=1e-5)
    result, run = run_stage(stage, path, tmp_path / "work", [])
    assert result.changed == 1
    assert sorted(stored(result)) == ["b", *(f"w.part{number}" for number in range(1, parts + 1))]
    wanted, got = open_runner(path)(IMAGES)["y"], run(IMAGES)["y"]
    assert got.shape == wanted.shape
    assert np.square(got - wanted).sum() < 1e-4 * np.square(wanted).sum()
    if method == "tucker":
        assert stored(result)["w.part2"].shape == (4, 3, 3, 3)
        assert result.metrics["kept"] == pytest.approx((16 * 3 + 4 * 3 * 9 + 24 * 4) / (24 * 16 * 9))


def test_vbmf_finds_the_ranks_under_noise(tmp_path: Path) -> None:
    path = network(tmp_path, tucker_kernel(0.3))
    result, _ = run_stage(TensorDecompose(ranks="vbmf"), path, tmp_path / "work", [])
    assert stored(result)["w.part2"].shape == (4, 3, 3, 3)


@pytest.mark.parametrize("method", ["tucker", "cp"])
def test_the_error_is_kept(tmp_path: Path, method: str) -> None:
    path = network(tmp_path, (tucker_kernel if method == "tucker" else cp_kernel)(0.2))
    for bound in (0.02, 0.2):
        result, _ = run_stage(TensorDecompose(method=method, max_error=bound), path, tmp_path / str(bound), [])
        assert result.changed == 1
        assert result.metrics["weight_error"] <= bound


def test_what_is_left_alone(tmp_path: Path) -> None:
    tensors = {
        "noise": RANDOM.normal(size=(24, 16, 3, 3)),
        "flat": RANDOM.normal(size=(80, 16, 1, 1)),
        "grouped": RANDOM.normal(size=(16, 8, 3, 3)),
    }
    nodes = [
        helper.make_node("Conv", ["x", name], [f"y_{name}"], group=2 if name == "grouped" else 1) for name in tensors
    ]
    path = write_model(
        tmp_path / "m.onnx", nodes, {"x": ["n", 16, 11, 10]}, outputs=[f"y_{name}" for name in tensors],
        **{name: array.astype(np.float32) for name, array in tensors.items()},
    )  # fmt: skip
    result, _ = run_stage(TensorDecompose(max_error=0.01), path, tmp_path / "work", [])
    assert result.changed == 0
    assert result.skipped == {
        "noise": "its parts would have no fewer parameters",
        "flat": "a 1×1 convolution",
        "grouped": "a grouped convolution",
    }


def test_refusals(tmp_path: Path, refuses: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for settings in ({"max_error": 0.0}, {"method": "cp", "ranks": "vbmf"}, {"min_elements": 0}):
        with refuses(BadInputError, where="recipe", got=list(settings)[-1]):
            parse_fields(TensorDecompose, settings, "recipe")
    pruned = tucker_kernel(0.0)
    pruned[np.abs(pruned) < np.quantile(np.abs(pruned), 0.4)] = 0
    (tmp_path / "pruned").mkdir()
    with refuses(BadInputError, where="recipe: tensor_decompose", got="40% of it zero", hint="keep"):
        stage = TensorDecompose(max_error=0.5)
        run_stage(stage, network(tmp_path / "pruned", pruned), tmp_path / "zeros", [])
    monkeypatch.setitem(sys.modules, "tensorly.decomposition", None)
    monkeypatch.setitem(sys.modules, "tensorly", None)
    with refuses(MissingToolError, where="tensor_decompose", got="TensorLy", hint="edgeslim[decompose]"):
        run_stage(TensorDecompose(), network(tmp_path, tucker_kernel(0.0)), tmp_path / "work", [])
