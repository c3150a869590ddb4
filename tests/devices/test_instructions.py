"""Instructions from marks and profiles, worked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeslim.devices.instructions import Instructions, OperatorShare, count_instructions, count_operators
from edgeslim.errors import CheckError

MARKS = """1 1 10
2 1 35
1 2 40
3 1 50
3 2 60
2 2 100
1 3 110
3 3 111
3 4 115
3 5 145
3 6 146
3 7 149
2 3 200
1 3 210
3 8 211
3 9 215
3 10 255
3 11 256
3 12 266
3 13 268
2 3 300
"""
# Readings 8 to 13 are the last run: it begins at 8, a MatMul lies between 9 and 10, an Add between 11 and 12.
PROFILE = [
    {"ph": "X", "name": "model_run", "ts": 1, "dur": 4, "args": {}},
    {"ph": "X", "name": "m_kernel_time", "ts": 7, "dur": 1, "args": {"op_name": "MatMul"}},
    {"ph": "X", "name": "a_kernel_time", "ts": 9, "dur": 1, "args": {"op_name": "Add"}},
    {"ph": "X", "name": "a_kernel_time", "ts": 2, "dur": 1, "args": {"op_name": "Add"}},
    {"ph": "X", "name": "model_run", "ts": 6, "dur": 5, "args": {}},
]


def written(folder: Path, marks: str = MARKS, profile: object = PROFILE) -> tuple[Path, Path]:
    (folder / "marks.txt").write_text(marks)
    (folder / "profile.json").write_text(json.dumps(profile))
    return folder / "marks.txt", folder / "profile.json"


def test_the_last_run_counts(tmp_path: Path) -> None:
    marks, _ = written(tmp_path)
    assert count_instructions(marks, "qemu") == Instructions(decode=25, load=60, run=90)


def test_operators_of_the_last_run(tmp_path: Path) -> None:
    marks, profile = written(tmp_path)
    assert count_operators(marks, profile, "qemu") == (
        OperatorShare(operator="MatMul", nodes=1, instructions=40),
        OperatorShare(operator="Add", nodes=1, instructions=10),
    )


@pytest.mark.parametrize("marks", ["", "1 2 3\n2 2 9\n", "1 2\n", "one two three\n"])
def test_marks_that_tell_nothing(tmp_path: Path, marks: str) -> None:
    with pytest.raises(CheckError, match="qemu"):
        count_instructions(written(tmp_path, marks)[0], "qemu")


@pytest.mark.parametrize("profile", [[], {}, [{"ph": "X"}], [{"ph": "X", "name": "model_run", "ts": "x", "dur": 1}]])
def test_profiles_that_tell_nothing(tmp_path: Path, profile: object) -> None:
    with pytest.raises(CheckError, match="qemu"):
        count_operators(*written(tmp_path, profile=profile), "qemu")


def test_a_profile_of_another_run(tmp_path: Path) -> None:
    far = [*PROFILE[:-1], {"ph": "X", "name": "model_run", "ts": 6, "dur": 50, "args": {}}]
    with pytest.raises(CheckError, match="doesn't fit its marks"):
        count_operators(*written(tmp_path, profile=far), "qemu")
