"""`edgeslim inspect` on a container: bits a weight beside an entropy that NumPy and hand agree on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeslim.anatomy import dissect_model
from edgeslim.codec import Segment, read_index, write_container
from edgeslim.errors import BadInputError


def entropy(values: np.ndarray) -> float:
    _, counts = np.unique(values, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


@pytest.fixture
def container(tmp_path: Path) -> Path:
    rng = np.random.default_rng(4)
    pruned = np.where(rng.random((200, 300)) < 0.9, 0, rng.integers(1, 8, (200, 300))).astype(np.int8)
    nibbles = rng.integers(0, 4, 10_001, np.uint8)
    packed = np.append(nibbles, np.uint8(0)).reshape(-1, 2)
    half = (rng.normal(size=2_000).astype("<f4").view("<u4") >> 16).astype("<u2")
    segments = [
        Segment("layer.0.weight", pruned, "int8", (200, 300)),
        Segment("layer.1.weight", packed[:, 0] | packed[:, 1] << 4, "uint4x2", (10_001,)),
        Segment("scale", half, "bfloat16", (2_000,)),
        Segment("rest@5", b"\x01\x02" * 500, "bytes", ()),
        Segment("none", b"", "float32", (0,)),
    ]
    write_container(tmp_path / "model.esz", segments)
    return tmp_path / "model.esz"


def test_bits_and_entropy_of_every_segment(container: Path) -> None:
    anatomy = dissect_model(str(container))
    coded = {segment.name: segment for segment in read_index(container).segments}
    rows = {row.name: row for row in anatomy.tensors}
    assert anatomy.kind == "container"
    assert anatomy.bytes == container.stat().st_size
    rng = np.random.default_rng(4)
    pruned = np.where(rng.random((200, 300)) < 0.9, 0, rng.integers(1, 8, (200, 300)))
    row = rows["layer.0.weight"]
    assert row.entropy_bits == pytest.approx(entropy(pruned))
    assert row.sparsity == np.mean(pruned == 0)
    assert row.bits == coded["layer.0.weight"].coded_bytes * 8 / 60_000
    assert row.bits <= row.entropy_bits * 1.03
    assert row.alphabet
    nibbles = rows["layer.1.weight"]
    assert (nibbles.dtype, nibbles.parameters) == ("uint4", 10_001)
    assert nibbles.entropy_bits == pytest.approx(entropy(rng.integers(0, 4, 10_001, np.uint8)))
    assert (rows["scale"].dtype, rows["scale"].parameters) == ("bfloat16", 2_000)
    assert rows["rest@5"].entropy_bits == pytest.approx(1.0)  # two values, equally often
    assert rows["rest@5"].parameters == 1_000
    assert rows["none"].bits is None


def test_a_damaged_container_is_refused(container: Path) -> None:
    data = bytearray(container.read_bytes())
    data[-3] ^= 1
    container.write_bytes(data)
    with pytest.raises(BadInputError, match="hash"):
        dissect_model(str(container))
    container.write_bytes(data[:90])
    with pytest.raises(BadInputError):
        dissect_model(str(container))
