"""Recipes: which stages run, in which order, with which settings.

A recipe is a list of tables in a target profile, a project file or a file of its own::

    [[steps]]
    use = "quantize_int8"      # the file stages/quantize_int8.py, whose one public class is the stage
    method = "percentile"      # the other keys are the class's fields

Stages on the torch model run before the export, those on the graph after it, each in the order of the file. A stage
that takes either (``level = "either"``) runs on the torch model if a later step needs one, else on the graph.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslim.core import Stage
from edgeslim.errors import BadInputError, near_miss
from edgeslim.fields import parse_fields, read_toml

__all__ = ["NamedStage", "Recipe", "load_recipe", "parse_recipe", "stage_names"]


@dataclass(frozen=True, kw_only=True)
class NamedStage:
    """A stage and the name that its recipe used."""

    name: str
    stage: Stage[Any]

    @property
    def level(self) -> str:
        """The stage's level; of one that takes either, ``torch`` where its settings ask for what no graph can lose."""
        return "torch" if getattr(self.stage, "needs_module", False) else self.stage.level


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The stages of a build by the level at which they run, and the tables that they were read from."""

    torch: tuple[NamedStage, ...]
    graph: tuple[NamedStage, ...]
    tables: tuple[Mapping[str, Any], ...]

    def with_kv_cache(self, settings: Mapping[str, Any], where: str) -> Recipe:
        """This recipe with a last step ``kv_cache`` of ``settings``; where it has one, with what that leaves open.

        Raises:
            BadInputError: the step's own settings don't go with these.
        """
        own = any(table.get("use") == KV_CACHE for table in self.tables)
        tables = self.tables if own else (*self.tables, {"use": KV_CACHE})
        return parse_recipe(
            [{**settings, **table} if table.get("use") == KV_CACHE else table for table in tables], where
        )


@dataclass(frozen=True, kw_only=True)
class _RecipeFile:
    steps: tuple[Mapping[str, Any], ...]


def stage_names() -> tuple[str, ...]:
    """The names of all stages that edgeslim brings."""
    folder = Path(__file__).parent / "stages"
    return tuple(sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")))


ANEW = "writes a new one"
KV_CACHE = "kv_cache"


def load_recipe(path: Path, *, load_stages: bool = True) -> Recipe:
    """Reads a recipe file; see ``parse_recipe``.

    Raises:
        BadInputError: it is malformed, or names an unknown stage or setting.
    """
    tables = parse_fields(_RecipeFile, read_toml(path), str(path)).steps
    return parse_recipe(tables, str(path), load_stages=load_stages)


def parse_recipe(tables: Sequence[Mapping[str, Any]], where: str, *, load_stages: bool = True) -> Recipe:
    """Makes stages from their tables; ``where`` names the file in errors.

    Without ``load_stages`` the recipe has its tables alone: enough to tell whether it has changed, without the
    libraries that stages import.

    What comes before a stage that writes the graph ``anew``, from a language model's checkpoint, is done to the torch
    model, which that checkpoint then is.

    Raises:
        BadInputError: an unknown stage, settings that it doesn't have, or a stage on the graph before one on the torch
            model or one that writes the graph anew.
    """
    numbered = enumerate(tables) if load_stages else ()
    stages = [_parse_stage(table, f"{where}: steps[{index}]") for index, table in numbered]
    torch = max((index for index, named in enumerate(stages) if named.level == "torch"), default=-1)
    anew = max((index for index, named in enumerate(stages) if getattr(named.stage, "anew", False)), default=0)
    _refuse_graph_stages(stages, torch, "works on a torch model", where)
    _refuse_graph_stages(stages, anew, ANEW, where)
    split = max(torch + 1, anew)
    return Recipe(
        torch=tuple(stages[:split]),
        graph=tuple(stages[split:]),
        tables=tuple(dict(table) for table in tables),
    )


def _refuse_graph_stages(stages: Sequence[NamedStage], later: int, does: str, where: str) -> None:
    """Refuses stages on the graph in front of the stage ``later``, which goes on from something else."""
    early = next((index for index, named in enumerate(stages[: max(later, 0)]) if named.level == "graph"), None)
    if early is not None:
        first, second = stages[early].name, stages[later].name
        both = does == ANEW and getattr(stages[early].stage, "anew", False)
        raise BadInputError(
            f"{where}: steps[{early}]",
            f"{first} works on the exported graph, and {second} after it {does}",
            expected="all steps on the torch model before those on the graph",
            hint="take one of the two out" if both else f"write {first} after {second}",
        )


def _parse_stage(table: Mapping[str, Any], where: str) -> NamedStage:
    names = stage_names()
    use = table.get("use")
    if use not in names:
        raise BadInputError(
            where,
            f"use = {use!r}" if "use" in table else 'no key "use"',
            expected="one of " + ", ".join(names),
            hint=near_miss(str(use), names),
        )
    module = importlib.import_module(f"edgeslim.stages.{use}")
    (public,) = module.__all__
    settings = {key: value for key, value in table.items() if key != "use"}
    return NamedStage(name=str(use), stage=parse_fields(getattr(module, public), settings, f"{where} ({use})"))
