"""Arrays: what an ``.npz`` may hold, and how it is split and cut into batches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeslim.datasets import arrays as module
from edgeslim.datasets.arrays import Arrays
from edgeslim.errors import BadInputError


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_load_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=np.arange(12, dtype=np.float32).reshape(3, 4), label=np.array([2, 0, 1]))
    arrays = module.load_arrays(tmp_path / "a.npz")
    assert arrays.rows == 3
    assert arrays.labels == (2, 0, 1)
    batches = module.batch_arrays(arrays, ["image"], batch_size=2)
    assert [(batch.rows, batch.labels) for batch in batches] == [(2, (2, 0)), (1, (1,))]
    np.testing.assert_array_equal(batches[1].feed["image"], [[8, 9, 10, 11]])


@pytest.mark.parametrize(
    ("arrays", "got"),
    [
        ({}, "no arrays"),
        ({"label": np.array([1])}, "no arrays"),
        ({"a": np.zeros((2, 3)), "b": np.zeros((3, 3))}, "arrays of different lengths: a 2, b 3"),
        ({"a": np.zeros((2, 3)), "label": np.zeros(3, dtype=np.int64)}, "arrays of different lengths"),
        ({"a": np.zeros((2, 3)), "label": np.zeros(2)}, "float64 [2]"),
        ({"a": np.array(3.0)}, "shape []"),
        ({"a": np.zeros((0, 3))}, "shape [0, 3]"),
        ({"a": np.array([{}], dtype=object)}, "can't be read"),
    ],
)
def test_load_arrays_refuses(tmp_path: Path, arrays: dict[str, Any], got: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(BadInputError, match=re.escape(got)):
        module.load_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off", b"\x93NUMPY\x01\x00 cut off"])
def test_load_arrays_refuses_what_is_no_npz(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BadInputError, match="can't be read"):
        module.load_arrays(write(tmp_path, "a.npz", content))


def test_load_arrays_refuses_a_single_array_and_a_missing_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(BadInputError, match="can't be read"):
        module.load_arrays(tmp_path / "a.npz")
    with pytest.raises(BadInputError, match="no such file"):
        module.load_arrays(tmp_path / "b.npz")


def test_batch_arrays_refuses_other_inputs() -> None:
    arrays = Arrays(inputs={"image": np.zeros((2, 3)), "extra": np.zeros(2)})
    with pytest.raises(BadInputError, match='no array for the model input "pixels"; an array "image"'):
        module.batch_arrays(arrays, ["pixels", "extra"])


def test_split_arrays_keeps_content_apart() -> None:
    values = np.arange(10, dtype=np.float32)
    arrays = Arrays(inputs={"x": np.concatenate([values, values])[:, None]}, labels=tuple(range(20)))
    calibration, evaluation = module.split_arrays(arrays, calibration=4, seed=0)
    assert (calibration.rows, evaluation.rows) == (4, 12)
    assert not set(calibration.inputs["x"].ravel()) & set(evaluation.inputs["x"].ravel())
    assert [label % 10 for label in evaluation.labels] == evaluation.inputs["x"].ravel().tolist()
