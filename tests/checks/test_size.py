from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_models import FLOAT, UINT8, by_metric, make_model, node

from edgeslim.checks.operators import read_graph
from edgeslim.checks.size import check_size, count_weights
from edgeslim.core import Artifact, Budget
from edgeslim.errors import BadInputError

MS = "com.microsoft"


def save_external(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=64)
    return path


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    weights = numpy_helper.from_array(np.ones((32, 50), np.int8), "w")
    scale, zero = numpy_helper.from_array(np.ones(50, np.float32), "s"), numpy_helper.from_array(np.int8(0), "z")
    model = make_model(
        [node("DequantizeLinear", ["w", "s"], ["d"], axis=1), node("MatMul", ["x", "d"], ["y"])],
        {"x": FLOAT},
        ["y"],
        initializers=[weights, scale, zero],
    )
    path = save_external(model, tmp_path / "model.onnx")
    (tmp_path / "weights.esz").write_bytes(bytes(800))
    (tmp_path / "library.aar").write_bytes(bytes(2_000))
    return Artifact(
        package=tmp_path / "library.aar",
        model=path,
        weights=tmp_path / "weights.bin",
        packed=tmp_path / "weights.esz",
        manifest=tmp_path / "manifest.json",
        reference=path,
    )


def test_each_size_by_hand(artifact: Artifact) -> None:
    found = by_metric(list(check_size(artifact, Budget(), download_bytes=1_500, installed_bytes=3_600)))
    sizes = {metric: finding.value for metric, finding in found.items()}
    assert sizes == {
        "package_bytes": 2_000,
        "download_bytes": 1_500,
        "installed_bytes": 3_600,
        "weights_bytes": artifact.weights.stat().st_size,
        "packed_bytes": 800,
        "bits_per_weight": 800 * 8 / (32 * 50),
    }
    assert artifact.weights.stat().st_size >= 32 * 50 + 50 * 4
    assert {finding.verdict for finding in found.values()} == {"measured"}
    assert found["bits_per_weight"].note == "of 1,600 weights"


@pytest.mark.parametrize(("limit", "verdict"), [(2_000, "pass"), (1_999, "fail")])
def test_the_budget_holds_for_the_package_alone(artifact: Artifact, limit: int, verdict: str) -> None:
    budget = Budget(max_size_bytes=limit)
    found = by_metric(list(check_size(artifact, budget, download_bytes=9_999, installed_bytes=9_999)))
    assert (found["package_bytes"].limit, found["package_bytes"].verdict) == (limit, verdict)
    assert {finding.verdict for metric, finding in found.items() if metric != "package_bytes"} == {"measured"}


def test_a_model_without_stored_weights_has_no_bits_per_weight(artifact: Artifact) -> None:
    onnx.save(make_model([node("Relu", ["x"], ["y"])], {"x": FLOAT}, ["y"]), artifact.model)
    assert "bits_per_weight" not in by_metric(list(check_size(artifact, Budget(), download_bytes=1, installed_bytes=1)))


def test_an_unreadable_model_is_an_error(artifact: Artifact) -> None:
    artifact.model.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInputError, match="not an ONNX model"):
        list(check_size(artifact, Budget(), download_bytes=1, installed_bytes=1))


def test_packed_weights_count_one_by_one_and_scales_not_at_all(tmp_path: Path) -> None:
    """[N, K] = [8, 256] at 4 bits in blocks of 32, used twice; a table of [64, 32] at 4 bits; a float bias of 64."""
    tensors = {
        "b": np.zeros((8, 8, 16), np.uint8),
        "scales": np.zeros((8, 8), np.float32),
        "points": np.zeros((8, 64), np.uint8),
        "table": np.zeros((64, 16), np.uint8),
        "table_scales": np.zeros((64, 1), np.float32),
        "bias": np.zeros(64, np.float32),
    }
    quantized = {"K": 256, "N": 8, "bits": 4, "block_size": 32}
    model = make_model(
        [
            node("MatMulNBits", ["x", "b", "scales", "points"], ["y"], domain=MS, **quantized),
            node("MatMulNBits", ["x", "b", "scales"], ["z"], domain=MS, **quantized),
            node("GatherBlockQuantized", ["table", "i", "table_scales"], ["g"], domain=MS),
            node("Add", ["g", "bias"], ["o"]),
        ],
        {"x": FLOAT, "i": UINT8},
        ["y", "z", "o"],
        initializers=[numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    assert count_weights(model) == 0, "weights inside the graph are no part of the packed file"
    path = save_external(model, tmp_path / "model.onnx")
    assert count_weights(read_graph(path)) == 8 * 256 + 64 * 32 + 64
