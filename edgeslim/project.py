"""What a build is asked to do: ``edgeslim.toml``, the command line laid over it, resolved once into a ``Plan``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeslim.datasets.preprocessing import PreprocessingOptions
from edgeslim.datasets.samples import DataOptions
from edgeslim.errors import UsageError
from edgeslim.fields import parse_fields, read_toml
from edgeslim.recipe import Recipe, load_recipe, parse_recipe
from edgeslim.target import Budget, TargetProfile, list_targets, load_target, target_files
from edgeslim.units import parse_bytes, parse_ms

__all__ = [
    "PROJECT_FILE",
    "AndroidOptions",
    "DataOptions",
    "ExportOptions",
    "Overrides",
    "Plan",
    "parse_bytes",
    "parse_ms",
    "plan_build",
]

PROJECT_FILE = "edgeslim.toml"


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """Limits as people write them: ``max_size = "21.5MB"``, ``max_latency = "40ms"``."""

    max_drop: float | None = None
    max_size: str | None = None
    max_latency: str | None = None
    max_latency_ratio: float | None = None
    max_peak_memory: str | None = None
    max_instructions: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_drop", "max_latency_ratio", "max_instructions"):
            value = getattr(self, name)
            if value is not None and not value >= 0:  # so that NaN is refused, too
                raise ValueError(f"{name}: {value}, expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class AndroidOptions:
    """Maven coordinates of the Android library; ``artifact`` is the model's name unless it is given."""

    group: str = "io.edgeslim.models"
    artifact: str | None = None
    version: str = "1.0.0"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """``fixed_shapes`` makes every dimension of the graph a constant, that of the samples.

    ``fixed_length`` does so for texts, which are cut and padded to that many tokens.
    """

    fixed_shapes: bool = False
    fixed_length: int | None = None

    def __post_init__(self) -> None:
        if self.fixed_length is not None and self.fixed_length < 1:
            raise ValueError(f"fixed_length: {self.fixed_length}, expected at least 1")

    def frozen(self) -> bool:
        """Whether the graph has constant dimensions only."""
        return self.fixed_shapes or self.fixed_length is not None


@dataclass(frozen=True, kw_only=True)
class ProjectFile:
    """The keys of ``edgeslim.toml``."""

    model: str | None = None
    name: str | None = None
    task: str | None = None
    target: str | None = None
    tokenizer: str | None = None
    recipe: str | None = None
    out: str | None = None
    seed: int = 0
    labels: tuple[str, ...] = ()
    data: DataOptions = field(default_factory=DataOptions)
    preprocessing: PreprocessingOptions = field(default_factory=PreprocessingOptions)
    export: ExportOptions = field(default_factory=ExportOptions)
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    android: AndroidOptions = field(default_factory=AndroidOptions)
    steps: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What the command line said; ``None`` leaves the project file's word. Paths start at the current folder."""

    model: str | None = None
    target: str | None = None
    name: str | None = None
    task: str | None = None
    data: str | None = None
    recipe: str | None = None
    max_drop: float | None = None
    max_size: str | None = None
    max_latency: str | None = None
    max_instructions: int | None = None
    out: str | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A build, resolved: nothing is left to decide. Relative paths in ``model`` and ``data`` start at ``base``.

    ``files`` are the profile and recipe files that were read.
    """

    model: str
    base: Path
    name: str | None
    task: str | None
    tokenizer: str | None
    target: TargetProfile
    recipe: Recipe
    data: DataOptions
    budget: Budget
    android: AndroidOptions
    out: Path
    seed: int
    labels: tuple[str, ...] = ()
    preprocessing: PreprocessingOptions = field(default_factory=PreprocessingOptions)
    export: ExportOptions = field(default_factory=ExportOptions)
    files: tuple[Path, ...] = ()

    def for_language_model(self) -> Plan:
        """The plan with the form of the KV cache that the target asks for; one that keeps shapes has it fixed."""
        runtime = self.target.runtime
        length = runtime.kv_cache_length or (self.data.max_length if self.export.frozen() else 0)
        if not length and runtime.kv_cache_bits == 32:  # as the export has it
            return self
        settings = {"bits": runtime.kv_cache_bits, "length": length}
        return replace(self, recipe=self.recipe.with_kv_cache(settings, f"target {self.target.name}"))


def plan_build(overrides: Overrides, folder: Path | None = None, *, load_stages: bool = True) -> Plan:
    """Reads ``folder``'s project file if there is one (a missing one is fine where a model was named) and resolves all.

    Without ``load_stages`` the plan can be compared with an earlier one, and not be built.

    Raises:
        UsageError: no model or no target was named.
        BadInputError: the project file, the recipe or the profile is malformed.
    """
    folder = Path() if folder is None else folder
    path = folder / PROJECT_FILE
    # A model named on the command line is another project than the one that may lie in this folder.
    project = (
        parse_fields(ProjectFile, read_toml(path), str(path)) if overrides.model is None and path.is_file() else None
    )
    base = folder if project is not None else Path()
    file = project or ProjectFile()
    model = overrides.model or file.model
    if model is None:
        raise UsageError(
            "build",
            "no model" + (f" in {path}" if project is not None else ""),
            expected=f"edgeslim build MODEL, or a folder with an {PROJECT_FILE} that names one",
        )
    target_name = overrides.target or file.target
    if target_name is None:
        names = ", ".join(profile.name for profile in list_targets())
        raise UsageError("build", "no target", expected="--target with one of " + names)
    if overrides.target is None and target_name.endswith(".toml"):
        target_name = str(base / target_name)
    target = load_target(target_name)
    data = (
        replace(file.data, calibration=None, evaluation=None, file=_here(overrides.data))
        if overrides.data
        else file.data
    )
    length = target.runtime.fixed_length if file.export.fixed_length is None else file.export.fixed_length
    export = ExportOptions(fixed_shapes=file.export.fixed_shapes or target.runtime.fixed_shapes, fixed_length=length)
    recipe_file = Path(overrides.recipe) if overrides.recipe else base / file.recipe if file.recipe else None
    if recipe_file is not None:
        recipe = load_recipe(recipe_file, load_stages=load_stages)
    elif file.steps:
        recipe = parse_recipe(file.steps, str(path), load_stages=load_stages)
    else:
        recipe = parse_recipe(target.steps, f"target {target.name}", load_stages=load_stages)
    out = Path(overrides.out) if overrides.out else base / (file.out or Path("out") / target.name)
    return Plan(
        model=model,
        base=base,
        name=overrides.name or file.name,
        task=overrides.task or file.task,
        tokenizer=file.tokenizer,
        target=target,
        recipe=recipe,
        data=data if length is None else replace(data, max_length=length, pad=True),
        budget=_budget(overrides, file.budget, str(path)).over(target.budget),
        android=file.android,
        out=out,
        seed=file.seed,
        labels=file.labels,
        preprocessing=file.preprocessing,
        export=export,
        files=(*target_files(target_name), *((recipe_file,) if recipe_file is not None else ())),
    )


def _budget(overrides: Overrides, file: BudgetOptions, where: str) -> Budget:
    size, latency = file.max_size, file.max_latency
    given = Budget(
        max_drop=overrides.max_drop,
        max_size_bytes=None if overrides.max_size is None else parse_bytes(overrides.max_size, "--max-size"),
        max_latency_ms=None if overrides.max_latency is None else parse_ms(overrides.max_latency, "--max-latency"),
        max_instructions=overrides.max_instructions,
    )
    written = Budget(
        max_drop=file.max_drop,
        max_size_bytes=None if size is None else parse_bytes(size, f"{where}: budget.max_size"),
        max_latency_ms=None if latency is None else parse_ms(latency, f"{where}: budget.max_latency"),
        max_latency_ratio=file.max_latency_ratio,
        max_instructions=file.max_instructions,
        max_peak_memory_bytes=None
        if file.max_peak_memory is None
        else parse_bytes(file.max_peak_memory, f"{where}: budget.max_peak_memory"),
    )
    return given.over(written)


def _here(path: str) -> str:
    return str(Path(path).absolute())
