from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeslim.errors import BadInputError, UsageError
from edgeslim.recipe import parse_recipe
from edgeslim.target import Budget, PackageProfile, list_targets, load_target, profile_folder

BOARD = """\
name = "board"
summary = "a board"
[machine]
isa = "armv8-a"
[runtime]
version = "1.29.0"
"""


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("path", sorted(profile_folder().glob("*.toml")), ids=lambda path: path.stem)
def test_profiles_that_edgeslim_brings(path: Path) -> None:
    profile = load_target(path.stem)
    assert profile.name == path.stem  # `targets` lists names, `--target` takes file names
    assert profile.summary
    assert profile.sources, "where do its facts come from?"
    assert profile.runtime.providers
    assert 1 <= profile.runtime.threads <= profile.machine.cores
    assert load_target(str(path)) == profile
    assert len(parse_recipe(profile.steps, path.name).tables) == len(profile.steps)


def test_list_targets() -> None:
    names = [profile.name for profile in list_targets()]
    assert names == sorted(names)
    assert "android-arm64" in names


def test_android() -> None:
    profile = load_target("android-arm64")
    assert profile.machine.isa == "arm64-v8a"
    assert profile.package == PackageProfile(kind="aar", min_sdk=24)
    assert profile.budget.max_drop == 0.01
    assert [step["use"] for step in profile.steps] == ["quantize_int8"]


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    profile = load_target(write(tmp_path, "any-name.toml", BOARD))
    assert (profile.name, profile.machine.isa, profile.runtime.version) == ("board", "armv8-a", "1.29.0")
    assert profile.runtime.providers == ("CPUExecutionProvider",)
    assert profile.budget == Budget()
    assert profile.package == PackageProfile(kind="tar")
    assert profile.steps == ()


def test_extends_lays_keys_over_a_built_in_profile(tmp_path: Path) -> None:
    text = 'extends = "android-arm64"\nname = "phone"\n[budget]\nmax_latency_ms = 9.5\n[runtime]\nthreads = 4\n'
    phone, android = load_target(write(tmp_path, "phone.toml", text)), load_target("android-arm64")
    assert phone.name == "phone"
    assert phone.machine == android.machine
    assert phone.runtime.threads == 4
    assert phone.runtime.version == android.runtime.version
    assert phone.budget == Budget(max_drop=0.01, max_latency_ms=9.5)
    assert phone.steps == android.steps


def test_extends_a_file_beside_it_and_steps_are_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path, "base/board.toml", BOARD + '[[steps]]\nuse = "quantize_int8"\nmethod = "entropy"\n')
    write(tmp_path, "base/middle.toml", 'extends = "board.toml"\n[runtime]\nopset_max = 19\n')
    above = write(tmp_path, "above.toml", 'extends = "base/middle.toml"\n[[steps]]\nuse = "quantize_int8"\n')
    profile = load_target(above)
    assert profile.steps == ({"use": "quantize_int8"},)
    assert (profile.name, profile.runtime.opset_max) == ("board", 19)


@pytest.mark.parametrize(
    ("name", "got", "expected", "hint"),
    [
        ("android-arm46", 'no target "android-arm46"', "android-arm64", 'did you mean "android-arm64"?'),
        ("toaster", 'no target "toaster"', "or the path of a .toml file", "`edgeslim targets` lists them"),
        ("../targets/android-arm64", "no target", "android-arm64", ""),
        ("", 'no target ""', "android-arm64", ""),
        ("nowhere.toml", "no file nowhere.toml", "the path of a target profile", ""),
    ],
)
def test_unknown_names(name: str, got: str, expected: str, hint: str, refuses: Any) -> None:
    with refuses(UsageError, where="--target", got=got, expected=expected, hint=hint):
        load_target(name)


@pytest.mark.parametrize(
    ("text", "where", "got"),
    [
        (BOARD.replace('version = "1.29.0"', ""), ": runtime", 'no key "version"'),
        (BOARD + "[buget]\nmax_drop = 1\n", "", 'unknown key "buget"'),
        (BOARD + "[budget]\nmax_drop = '1'\n", ": budget: max_drop", "'1' (str)"),
        (BOARD + "[package]\nkind = 'zip'\n", ": package: kind", "'zip'"),
        ("extends = 3\n", "", "extends = 3"),
        ('extends = "self.toml"\n', "", "extends = 'self.toml'"),
        ("extends = [", "", "not valid TOML"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, where: str, got: str, refuses: Any) -> None:
    path = write(tmp_path, "self.toml", text)
    with refuses(BadInputError, where=path + where, got=got):
        load_target(path)


def test_budget_over() -> None:
    mine, below = Budget(max_drop=0.1), Budget(max_drop=0.5, max_size_bytes=7, max_latency_ms=3.0)
    assert mine.over(below) == Budget(max_drop=0.1, max_size_bytes=7, max_latency_ms=3.0)
    assert Budget(max_drop=0.0).over(below).max_drop == 0.0  # no loss at all is a limit, not a missing one
    assert Budget().over(Budget()) == Budget()
