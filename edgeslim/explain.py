"""What a build would do, and why, without doing it."""

from __future__ import annotations

import json
from dataclasses import asdict

from edgeslim.cache import Cache
from edgeslim.inputs import find_unchanged, input_files, why_changed
from edgeslim.project import Overrides, plan_build
from edgeslim.size_forecast import forecast_size
from edgeslim.source import resolve_source

__all__ = ["explain_plan"]


def explain_plan(overrides: Overrides, *, as_json: bool, use_cache: bool = True) -> str:
    """The resolved plan as text or JSON: source, steps, limits, and whether anything changed since the last build.

    Raises:
        EdgeslimError: what the build itself would refuse before it starts.
    """
    plan = plan_build(overrides)
    source = resolve_source(plan.model, base=plan.base, tokenizer=plan.tokenizer, name=plan.name)
    files = input_files(plan, source)
    cache = Cache.default() if use_cache else None
    unchanged = cache is not None and find_unchanged(plan, cache) is not None
    reasons = () if unchanged else why_changed(plan, cache) if cache is not None else ("the cache is off",)
    if not unchanged and not reasons:
        reasons = (f"the files in {plan.out} are not those of the last build",)
    stages = [named.name for named in (*plan.recipe.torch, *plan.recipe.graph)]
    steps = ["export", *stages, "encode", "package", "checks"]
    sized = plan.budget.max_size_bytes is not None or any("target_bits" in table for table in plan.recipe.tables)
    size_forecast = forecast_size(plan, source) if sized else None
    limits = {name: limit for name, limit in asdict(plan.budget).items() if limit is not None}
    if as_json:
        plain = {
            "source": {"kind": source.kind, "model": source.spec, "name": source.name},
            "target": plan.target.name,
            "task": plan.task,
            "steps": steps,
            "recipe": [dict(table) for table in plan.recipe.tables],
            "budget": limits,
            "size": None if size_forecast is None else asdict(size_forecast),
            "inputs": [str(path) for path in files],
            "out": str(plan.out),
            "unchanged": unchanged,
            "reasons": list(reasons),
        }
        return json.dumps(plain, indent=2, default=str)
    size = sum(path.stat().st_size for path in files)
    data = plan.data.file or plan.data.evaluation or "none given: example inputs, or English that Python brings"
    lines = [
        f"model    {source.name} ({source.kind}: {source.spec}); {len(files)} input files, {size / 1e6:.1f} MB",
        f"target   {plan.target.name}: {plan.target.summary}",
        "task     " + (plan.task or "the one that the config of the model speaks of"),
        f"data     {data}",
        "budget   " + (", ".join(f"{name} {limit:g}" for name, limit in limits.items()) or "none"),
        *([] if size_forecast is None else [f"size     {size_forecast.describe()}"]),
        f"output   {plan.out}, a package of kind {plan.target.package.kind}",
    ]
    for step in steps:
        settings = next((named.stage for named in (*plan.recipe.torch, *plan.recipe.graph) if named.name == step), None)
        lines.append(f"step     {step}" + (f": {settings}" if settings is not None else ""))
    lines.append(
        "nothing would run: inputs and output are those of an earlier build" if unchanged else "would run, since"
    )
    shown = reasons[:12]
    lines += [f"  {reason}" for reason in shown]
    if len(reasons) > len(shown):
        lines.append(f"  … and {len(reasons) - len(shown)} more")
    return "\n".join(lines)
