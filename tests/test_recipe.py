from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest

from edgeslim.errors import BadInputError
from edgeslim.recipe import load_recipe, parse_recipe, stage_names
from edgeslim.stages.quantize_int8 import QuantizeInt8


def test_stage_names_are_file_names() -> None:
    names = stage_names()
    assert "quantize_int8" in names
    assert list(names) == sorted(names)
    assert not [name for name in names if name.startswith("_")]


@pytest.mark.parametrize("name", stage_names())
def test_every_stage_is_one_frozen_dataclass_whose_fields_are_its_keys(name: str) -> None:
    module = importlib.import_module(f"edgeslim.stages.{name}")
    assert len(module.__all__) == 1
    stage = getattr(module, module.__all__[0])
    assert dataclasses.is_dataclass(stage)
    assert stage.__dataclass_params__.frozen
    assert all(item.kw_only for item in dataclasses.fields(stage))
    assert stage.level in ("torch", "graph", "either")
    assert module.__doc__, "method, paper, layouts"


def test_parse_recipe() -> None:
    tables = [
        {"use": "quantize_int8", "method": "percentile", "percentile": 99.9, "keep_float": ["head*"]},
        {"use": "quantize_int8", "min_elements": 1},
    ]
    recipe = parse_recipe(tables, "r.toml")
    assert [named.name for named in recipe.graph] == ["quantize_int8", "quantize_int8"]
    first, second = (named.stage for named in recipe.graph)
    assert first == QuantizeInt8(method="percentile", percentile=99.9, keep_float=("head*",))
    assert second == QuantizeInt8(min_elements=1)
    assert recipe.torch == ()
    assert recipe.tables == tuple(tables)


def test_tables_are_copies() -> None:
    table: dict[str, Any] = {"use": "quantize_int8"}
    recipe = parse_recipe([table], "r.toml")
    table["use"] = "changed"
    assert recipe.tables == ({"use": "quantize_int8"},)


def test_no_steps() -> None:
    recipe = parse_recipe([], "r.toml")
    assert (recipe.torch, recipe.graph, recipe.tables) == ((), (), ())


def test_load_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('[[steps]]\nuse = "quantize_int8"\nform = "qdq"\n', encoding="utf-8")
    assert load_recipe(path).graph[0].stage == QuantizeInt8(form="qdq")


def test_the_samples_recipes() -> None:
    paths = sorted((Path(__file__).parent.parent / "samples").glob("*/recipes/*.toml"))
    assert len(paths) >= 4
    for path in paths:
        recipe = load_recipe(path)
        assert recipe.torch or any(getattr(named.stage, "trains", False) for named in recipe.graph), path
        assert recipe.graph[-1].name in ("quantize_int8", "quantize_int4", "quantize_decoder"), path


@pytest.mark.parametrize(
    ("step", "where", "got", "expected", "hint"),
    [
        ({"method": "mse"}, "", 'no key "use"', "quantize_int8", ""),
        ({"use": "quantise_int8"}, "", "use = 'quantise_int8'", "quantize_int8", 'did you mean "quantize_int8"?'),
        ({"use": "__init__"}, "", "use = '__init__'", "quantize_int8", ""),
        ({"use": 8}, "", "use = 8", "quantize_int8", ""),
        ({"use": ["quantize_int8"]}, "", "use = ['quantize_int8']", "quantize_int8", ""),
        (
            {"use": "quantize_int8", "methd": "mse"},
            " (quantize_int8)",
            'unknown key "methd"',
            "method",
            'did you mean "method"?',
        ),
        ({"use": "quantize_int8", "level": "torch"}, " (quantize_int8)", 'unknown key "level"', "method", ""),
        ({"use": "quantize_int8", "method": "mean"}, " (quantize_int8): method", "'mean'", "'mse'", ""),
        ({"use": "quantize_int8", "per_channel": 1}, " (quantize_int8): per_channel", "1 (int)", "true or false", ""),
        ({"use": "quantize_int8", "percentile": 30}, " (quantize_int8)", "percentile: 30.0", "at most 100", ""),
        ({"use": "quantize_int8", "min_elements": 0}, " (quantize_int8)", "min_elements: 0", "at least 1", ""),
    ],
)
def test_refusals(step: dict[str, Any], where: str, got: str, expected: str, hint: str, refuses: Any) -> None:
    with refuses(BadInputError, where=f"r.toml: steps[1]{where}", got=got, expected=expected, hint=hint):
        parse_recipe([{"use": "quantize_int8"}, step], "r.toml")


@pytest.mark.parametrize(
    ("text", "got"),
    [("", 'no key "steps"'), ("steps = 1\n", "1 (int)"), ("steps = [1]\n", "1 (int)"), ("s = ", "TOML")],
)
def test_malformed_files(tmp_path: Path, text: str, got: str, refuses: Any) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text, encoding="utf-8")
    with refuses(BadInputError, where=str(path), got=got):
        load_recipe(path)


def test_the_samples_pruned_recipe_is_read() -> None:
    """README and docs/devices.md quote its figures: half of the hidden neurons, then int8."""
    recipe = load_recipe(Path(__file__).parents[1] / "samples" / "sentence-embedding" / "pruned.toml")
    assert recipe.torch == ()
    pruned, quantized = recipe.graph
    assert (pruned.name, quantized.name) == ("prune_structured", "quantize_int8")
    assert vars(pruned.stage)["keep_neurons"] == 0.5
    assert vars(quantized.stage)["activation"] == "auto"
