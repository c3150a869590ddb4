from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_models import by_metric

from edgeslim.checks.lossless import check_lossless
from edgeslim.codec import Segment, write_container
from edgeslim.core import Finding


@pytest.fixture(scope="module", autouse=True)
def _codec(compiled_codec: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESLIM_LIBESZ", str(compiled_codec))
        yield


@pytest.fixture(scope="module")
def image() -> bytes:
    """Weights on a coarse grid, 3 MB: more than one chunk of the comparison."""
    grid = np.random.default_rng(1).normal(0, 2, (768, 4096))
    return np.clip(np.rint(grid), -128, 127).astype(np.int8).tobytes()


@pytest.fixture(scope="module")
def container(image: bytes, _codec: None, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("container") / "weights.esz"
    write_container(path, [Segment(name="w", data=image, dtype="int8", shape=(768, 4096))])
    assert path.stat().st_size < 0.6 * len(image)
    return path.read_bytes()


@pytest.fixture
def packed(tmp_path: Path, container: bytes) -> Path:
    path = tmp_path / "weights.esz"
    path.write_bytes(container)
    return path


def check(packed: Path, content: bytes, expected: str | None = None) -> dict[str, Finding]:
    weights, work = packed.parent / "weights.bin", packed.parent / "work"
    weights.write_bytes(content)
    work.mkdir()
    digest = hashlib.sha256(content).hexdigest() if expected is None else expected
    found = by_metric(list(check_lossless(packed, weights, digest, work)))
    assert list(work.iterdir()) == []
    return found


def test_a_true_copy_passes(packed: Path, image: bytes) -> None:
    found = check(packed, image)
    assert (found["differing_bytes"].value, found["differing_bytes"].verdict) == (0, "pass")
    assert (found["differing_hashes"].value, found["differing_hashes"].verdict) == (0, "pass")
    assert found["differing_bytes"].where == "weights.esz decoded, beside weights.bin"


@pytest.mark.parametrize("at", [0, 5, (1 << 20) - 1, 1 << 20, 3 * (1 << 20) - 1])
def test_one_changed_byte_fails_and_is_found(packed: Path, image: bytes, at: int) -> None:
    changed = bytearray(image)
    changed[at] ^= 1
    found = check(packed, bytes(changed))
    assert (found["differing_bytes"].value, found["differing_bytes"].verdict) == (1, "fail")
    assert found["differing_bytes"].note == f"the first at byte {at:,}"
    assert found["differing_hashes"].note.startswith("SHA-256 of the decoded file is not ")


@pytest.mark.parametrize(("missing", "extra"), [(7, 0), (0, 9)])
def test_a_shorter_or_longer_file_differs_by_the_rest(packed: Path, image: bytes, missing: int, extra: int) -> None:
    found = check(packed, image[: len(image) - missing] + bytes(extra))
    assert found["differing_bytes"].value == missing + extra
    assert found["differing_bytes"].note == f"the first at byte {len(image) - missing:,}"


def test_a_hash_other_than_the_manifests_fails(packed: Path, image: bytes) -> None:
    found = check(packed, image, expected="0" * 64)
    assert found["differing_bytes"].verdict == "pass"
    assert (found["differing_hashes"].value, found["differing_hashes"].verdict) == (2, "fail")
    assert found["differing_hashes"].note == f"SHA-256 of the decoded file and weights.bin is not {'0' * 64}"


def test_the_hash_may_be_written_in_capitals(packed: Path, image: bytes) -> None:
    assert (
        check(packed, image, expected=hashlib.sha256(image).hexdigest().upper())["differing_hashes"].verdict == "pass"
    )


def test_a_container_that_cant_be_decoded_differs_in_every_byte(packed: Path, image: bytes) -> None:
    packed.write_bytes(packed.read_bytes()[:-100])
    found = check(packed, image)
    assert (found["differing_bytes"].value, found["differing_bytes"].verdict) == (len(image), "fail")
    assert found["differing_bytes"].note.startswith("it can't be decoded: ")
    assert found["differing_hashes"].value == 1


def test_no_weights_at_all_pass(tmp_path: Path) -> None:
    path = tmp_path / "weights.esz"
    write_container(path, [])
    found = check(path, b"")
    assert {finding.verdict for finding in found.values()} == {"pass"}
