from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from esz_examples import hand_worked

from edgeslim.codec import decode_container, decode_file, decode_reference, encode_container, read_index
from edgeslim.codec.encode import Segment

GOLDEN = Path(__file__).parents[1] / "golden"
DIGESTS: dict[str, str] = json.loads((GOLDEN / "golden.json").read_text())
NAMES = sorted(name.removesuffix(".esz") for name in DIGESTS if name.endswith(".esz"))
HAND_WORKED = hand_worked()


def test_golden_folder_is_what_golden_json_lists() -> None:
    found = {path.name for path in GOLDEN.iterdir()} - {"golden.json", "README.md"}
    assert found == set(DIGESTS)
    for name, digest in DIGESTS.items():
        assert hashlib.sha256((GOLDEN / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("name", NAMES)
def test_golden_decodes_to_its_image(name: str, tmp_path: Path) -> None:
    container, image = (GOLDEN / f"{name}.esz").read_bytes(), (GOLDEN / f"{name}.bin").read_bytes()
    assert decode_container(container) == image
    assert decode_reference(container) == image
    decode_file(GOLDEN / f"{name}.esz", tmp_path / "image")
    assert (tmp_path / "image").read_bytes() == image
    info = read_index(GOLDEN / f"{name}.esz")
    assert (info.decoded_bytes, info.file_bytes) == (len(image), len(container))


@pytest.mark.parametrize("name", sorted(HAND_WORKED))
def test_hand_worked_example_is_the_golden_file(name: str) -> None:
    container, image = HAND_WORKED[name]
    assert (GOLDEN / f"{name}.esz").read_bytes() == container
    assert (GOLDEN / f"{name}.bin").read_bytes() == image


def test_plain_example_byte_for_byte() -> None:
    """The whole container as literal bytes; only the three hashes are taken from the file."""
    data = (GOLDEN / "plain.esz").read_bytes()
    header = bytes.fromhex(
        "8945535a0d0a1a0a 0100 4000 00000000 00000000 01000000"
        "3300000000000000 0800000000000000 7c00000000000000"
    )  # fmt: skip
    assert data[:48] == header
    entry = bytes.fromhex("0000000000000000 7300000000000000 08000000 09000000 00000000")
    assert data[64:92] == entry
    assert data[96:115] == bytes.fromhex("0700 01 00 00 00 01 00 00 000000") + b"letters"
    assert data[115:] == bytes.fromhex("01 ff 01 41 44 21 33 32 79")


def test_encoder_writes_the_hand_worked_gap_block() -> None:
    image = HAND_WORKED["gap"][1]
    coded = encode_container([Segment("gaps", image, "int8", (44,))], small_memory=True, alphabets=("GAP",))
    assert decode_reference(coded) == image
    assert len(coded) <= len(HAND_WORKED["gap"][0]) + 4
