from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeslim.datasets.samples import DataOptions
from edgeslim.errors import BadInputError, UsageError
from edgeslim.project import (
    PROJECT_FILE,
    AndroidOptions,
    Overrides,
    plan_build,
)
from edgeslim.stages.quantize_int8 import QuantizeInt8
from edgeslim.target import Budget
from edgeslim.units import parse_bytes, parse_ms

PROJECT = """\
model = "model"
name = "encoder"
task = "feature-extraction"
target = "android-arm64"
tokenizer = "words"
out = "made"
seed = 5

[data]
calibration = "a.txt"
evaluation = "b.txt"
max_length = 64

[budget]
max_drop = 0.02
max_size = "21.5MB"
max_latency = "40ms"
max_latency_ratio = 0.5
max_peak_memory = "64MiB"

[android]
group = "com.example"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "project"
    path.mkdir()
    return path


def write(folder: Path, text: str, name: str = PROJECT_FILE) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_project_file_says_everything(folder: Path) -> None:
    write(folder, PROJECT)
    plan = plan_build(Overrides(), folder)
    assert (plan.model, plan.base, plan.name, plan.task) == ("model", folder, "encoder", "feature-extraction")
    assert (plan.tokenizer, plan.out, plan.seed) == ("words", folder / "made", 5)
    assert plan.target.name == "android-arm64"
    assert plan.data == DataOptions(calibration="a.txt", evaluation="b.txt", max_length=64)
    assert plan.android == AndroidOptions(group="com.example", artifact=None, version="1.0.0")
    assert plan.budget == Budget(
        max_drop=0.02,
        max_size_bytes=21_500_000,
        max_latency_ms=40.0,
        max_latency_ratio=0.5,
        max_peak_memory_bytes=64 << 20,
    )


def test_the_current_folder_is_the_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, PROJECT)
    monkeypatch.chdir(folder)
    assert plan_build(Overrides()).name == "encoder"


def test_the_command_line_is_laid_over_the_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, PROJECT)
    monkeypatch.chdir(tmp_path)
    board = write(tmp_path, 'extends = "android-arm64"\nname = "board"\n', "board.toml")
    given = Overrides(
        target="board.toml",
        name="other",
        task="text-classification",
        data="mine.csv",
        max_drop=0.5,
        max_size="3kB",
        max_latency="1s",
        out="here",
    )
    plan = plan_build(given, folder)
    assert board.is_file()
    assert (plan.model, plan.target.name, plan.name) == ("model", "board", "other")
    assert (plan.task, plan.out) == ("text-classification", Path("here"))
    # Paths of the command line start at the current folder, whatever folder the project lies in.
    assert plan.data == DataOptions(file=str(tmp_path / "mine.csv"), max_length=64)
    assert (plan.budget.max_drop, plan.budget.max_size_bytes, plan.budget.max_latency_ms) == (0.5, 3000, 1000.0)
    assert plan.budget.max_latency_ratio == 0.5


def test_a_model_on_the_command_line_is_another_project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, PROJECT)
    monkeypatch.chdir(folder)
    plan = plan_build(Overrides(model="elsewhere", target="android-arm64"))
    assert (plan.model, plan.name, plan.task, plan.tokenizer) == ("elsewhere", None, None, None)
    assert (plan.base, plan.out) == (Path(), Path("out/android-arm64"))
    assert plan.data == DataOptions()
    assert plan.budget == plan.target.budget


def test_a_model_on_the_command_line_ignores_a_broken_project_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, "not TOML at all")
    monkeypatch.chdir(folder)
    assert plan_build(Overrides(model="m", target="android-arm64")).model == "m"


def test_a_budget_of_zero_is_a_budget(folder: Path) -> None:
    write(folder, PROJECT)
    assert plan_build(Overrides(max_drop=0.0), folder).budget.max_drop == 0.0


def test_the_profile_gives_what_nobody_said(folder: Path) -> None:
    write(folder, 'model = "m"\ntarget = "android-arm64"\n')
    plan = plan_build(Overrides(), folder)
    assert plan.budget == plan.target.budget
    assert [named.stage for named in plan.recipe.graph] == [QuantizeInt8(activation="auto")]
    assert plan.out == folder / "out" / "android-arm64"


def test_recipes_in_order_of_precedence(folder: Path, tmp_path: Path) -> None:
    steps = '[[steps]]\nuse = "quantize_int8"\nmethod = "{}"\n'

    def method(overrides: Overrides) -> str:
        (named,) = plan_build(overrides, folder).recipe.graph
        return str(named.stage.method)  # type: ignore[attr-defined]

    head = 'model = "m"\ntarget = "android-arm64"\n'
    write(folder, steps.format("minmax"), "beside.toml")
    given = Overrides(recipe=str(write(tmp_path, steps.format("entropy"), "given.toml")))
    write(folder, head)
    assert method(Overrides()) == "output"
    write(folder, head + steps.format("percentile"))
    assert method(Overrides()) == "percentile"
    write(folder, head + 'recipe = "beside.toml"\n' + steps.format("percentile"))
    assert method(Overrides()) == "minmax"
    assert method(given) == "entropy"


def test_a_target_file_of_the_project_starts_at_its_folder(folder: Path) -> None:
    write(folder, 'extends = "android-arm64"\nname = "board"\n', "board.toml")
    write(folder, 'model = "m"\ntarget = "board.toml"\n')
    assert plan_build(Overrides(), folder).target.name == "board"


@pytest.mark.parametrize(
    ("text", "overrides", "got", "expected"),
    [
        (None, Overrides(target="android-arm64"), "no model", "edgeslim build MODEL"),
        ("", Overrides(target="android-arm64"), "no model in", PROJECT_FILE),
        (None, Overrides(model="m"), "no target", "android-arm64"),
        ('model = "m"\n', Overrides(), "no target", "--target"),
        ('model = "m"\n', Overrides(target="toaster"), 'no target "toaster"', "android-arm64"),
        ('model = "m"\ntarget = "none.toml"\n', Overrides(), "no file", "target profile"),
    ],
)
def test_usage(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, overrides: Overrides, got: str, expected: str,
    refuses: Any,
) -> None:  # fmt: skip
    if text is not None:
        write(folder, text)
    monkeypatch.chdir(folder)
    with refuses(UsageError, where="", got=got, expected=expected):
        plan_build(overrides)


@pytest.mark.parametrize(
    ("text", "where", "got", "expected"),
    [
        ("modle = 'm'\n", "", 'unknown key "modle"', "model"),
        ("[data]\nfile = 'a'\ncalibration = 'b'\n", ": data", "file beside calibration", "either one file or two"),
        ("[data]\ncalibration = 'b'\n", ": data", "calibration without evaluation", "both, or one file to split"),
        ("[data]\nevaluation = 'b'\n", ": data", "calibration without evaluation", "both, or one file to split"),
        ("[data]\nmax_length = 0\n", ": data", "max_length: 0", "at least 1"),
        ("[data]\ncalibration_samples = -3\n", ": data", "calibration_samples: -3", "at least 1"),
        ("[budget]\nmax_size = '21.5'\n", ": budget.max_size", "'21.5'", "a size such as 21.5MB"),
        ("[budget]\nmax_size = 21\n", ": budget: max_size", "21 (int)", "a string"),
        ("[budget]\nmax_latency = '4 parsecs'\n", ": budget.max_latency", "'4 parsecs'", "a duration such as 40ms"),
        ("[budget]\nmax_peak_memory = '1s'\n", ": budget.max_peak_memory", "'1s'", "a size such as"),
        ("[[steps]]\nuse = 'magic'\n", ": steps[0]", "use = 'magic'", "quantize_int8"),
        ("recipe = 'none.toml'\n", "", "No such file", "TOML"),
        ("model", "", "not valid TOML", "key = value"),
    ],
)
def test_malformed_project_files(folder: Path, text: str, where: str, got: str, expected: str, refuses: Any) -> None:
    path = write(folder, text if text == "model" else 'model = "m"\ntarget = "android-arm64"\n' + text)
    place = folder / "none.toml" if "none.toml" in text else path
    with refuses(BadInputError, where=f"{place}{where}", got=got, expected=expected):
        plan_build(Overrides(), folder)


@pytest.mark.parametrize("option", ["max_size", "max_latency"])
def test_limits_of_the_command_line(option: str, refuses: Any) -> None:
    with refuses(BadInputError, where="--" + option.replace("_", "-"), got="'much'", expected="such as"):
        plan_build(Overrides(model="m", target="android-arm64", **{option: "much"}))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("21.5MB", 21_500_000),
        ("1 kB", 1000),
        ("1KB", 1000),
        ("64MiB", 64 << 20),
        (" 2GiB ", 2 << 30),
        ("1.5GB", 1_500_000_000),
        ("12b", 12),
        ("1KiB", 1024),
    ],
)
def test_parse_bytes(text: str, size: int) -> None:
    assert parse_bytes(text, "x") == size


@pytest.mark.parametrize(("text", "value"), [("40ms", 40.0), ("0.04s", 40.0), ("250us", 0.25), ("1 S", 1000.0)])
def test_parse_ms(text: str, value: float) -> None:
    assert parse_ms(text, "x") == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "MB", "21.5", "-1MB", "0MB", "0.0MB", "1,5MB", "1e3MB", "1TB", "1MBps", "nanMB"])
def test_no_sizes(text: str, refuses: Any) -> None:
    with refuses(BadInputError, where="--max-size", got=repr(text), expected="a size such as 21.5MB or 64MiB"):
        parse_bytes(text, "--max-size")


@pytest.mark.parametrize("text", ["", "ms", "40", "0ms", "-1ms", "40MB", "1min"])
def test_no_durations(text: str, refuses: Any) -> None:
    with refuses(BadInputError, where="--max-latency", got=repr(text), expected="a duration such as 40ms"):
        parse_ms(text, "--max-latency")


def test_a_target_of_fixed_shapes(folder: Path) -> None:
    text = 'name = "npu"\nsummary = "s"\n[machine]\nisa = "x"\n[runtime]\nversion = "1.32.0"\n'
    target = write(folder, text + "fixed_shapes = true\nfixed_length = 64\n", "npu.toml")
    write(folder, f'model = "m"\ntarget = "{target.name}"\n')
    plan = plan_build(Overrides(), folder)
    assert (plan.export.fixed_shapes, plan.export.fixed_length) == (True, 64)
    assert (plan.data.max_length, plan.data.pad) == (64, True)
    write(folder, f'model = "m"\ntarget = "{target.name}"\n[export]\nfixed_length = 32\n')
    assert plan_build(Overrides(), folder).data.max_length == 32, "the project's word goes first"
    write(folder, text + "fixed_length = 0\n", "npu.toml")
    with pytest.raises(BadInputError, match="fixed_length: 0"):
        plan_build(Overrides(), folder)


@pytest.mark.parametrize(
    ("keys", "own", "wanted"),
    [
        ("", None, None),
        ("kv_cache_length = 48", None, {"bits": 32, "length": 48}),
        ("kv_cache_bits = 8", None, {"bits": 8, "length": 0}),
        ("kv_cache_length = 48\nkv_cache_bits = 8", {"length": 64}, {"bits": 8, "length": 64}),
        ("kv_cache_length = 48", {"bits": 8}, {"bits": 8, "length": 48}),
        ("", {"bits": 8}, {"bits": 8}),
        ("fixed_shapes = true", None, {"bits": 32, "length": 128}),
        ("fixed_length = 64", None, {"bits": 32, "length": 64}),
        ("fixed_length = 64\nkv_cache_length = 512", None, {"bits": 32, "length": 512}),
    ],
)
def test_a_target_has_a_say_in_the_cache(
    folder: Path, keys: str, own: dict[str, int] | None, wanted: dict[str, int] | None
) -> None:
    text = 'name = "npu"\nsummary = "s"\n[machine]\nisa = "x"\n[runtime]\nversion = "1.32.0"\n'
    write(folder, text + keys, "npu.toml")
    step = "" if own is None else '[[steps]]\nuse = "kv_cache"\n' + "\n".join(f"{key} = {own[key]}" for key in own)
    write(folder, 'model = "m"\ntarget = "npu.toml"\n' + step)
    plan = plan_build(Overrides(), folder)
    changed = plan.for_language_model()
    assert plan.recipe.tables == ((own is not None) * ({"use": "kv_cache", **(own or {})},))
    assert changed.recipe.tables == ((wanted is not None) * ({"use": "kv_cache", **(wanted or {})},))
    assert [named.name for named in changed.recipe.graph] == ["kv_cache"] * (wanted is not None)


def test_a_cache_without_room(folder: Path) -> None:
    text = 'name = "npu"\nsummary = "s"\n[machine]\nisa = "x"\n[runtime]\nversion = "1.32.0"\nkv_cache_length = 1'
    write(folder, text, "npu.toml")
    write(folder, 'model = "m"\ntarget = "npu.toml"\n')
    with pytest.raises(BadInputError, match="kv_cache_length: 1"):
        plan_build(Overrides(), folder)
