"""Taking heads, neurons, channels and layers out of a torch module, chosen and made up for by what calibration says."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgeslim.core import Context
from edgeslim.errors import BadInputError
from edgeslim.quantizing.unit_choice import Taker, UnitOptions, choose_kept, fit_kept
from edgeslim.training.batching import collate
from edgeslim.training.channels import dependent_groups
from edgeslim.training.student import count_layers, layer_names, shrink
from edgeslim.training.torch_model import TorchModel, changed_sizes, read_sizes
from edgeslim.training.unit_groups import (
    Group,
    Kind,
    attention_groups,
    feed_forward_groups,
    read_matrix,
    write_columns,
)
from edgeslim.training.unit_statistics import UnitStatistics, block_influence, measure_gradients, measure_moments

__all__ = ["check_prunable", "drop_layers", "prune_units"]


def check_prunable(model: TorchModel) -> None:
    """Refuses a model whose weights earlier steps pruned or factorized.

    Raises:
        BadInputError: it has masks or factors.
    """
    if model.masks or model.factors:
        done = "pruned" if model.masks else "factorized"
        raise BadInputError(
            "recipe: prune_structured",
            f"weights that an earlier step {done}",
            expected="whole weights: what makes up for removed units fills zeros and factors again",
            hint="write prune_structured before that step",
        )


def drop_layers(model: TorchModel, keep: int, ctx: Context) -> tuple[TorchModel, dict[str, float]]:
    """The model with the ``keep`` layers that change their input most, and metrics.

    Raises:
        BadInputError: the model isn't one of transformers, or has no more layers than that.
    """
    count = count_layers(model.module)
    if not count or keep >= count:
        got = f"{keep} of {count} layers" if count else f"layers of a {type(model.module).__name__}"
        raise BadInputError("recipe: keep_layers", got, expected="fewer than a model of transformers has")
    names = layer_names(model.module, count)
    influence = block_influence(model, names, ctx)
    ranked = sorted(range(count), key=lambda layer: influence[names[layer]])
    kept = sorted(ranked[count - keep :])
    metrics = {f"influence_of_layer_{layer}": round(influence[name], 5) for layer, name in enumerate(names)}
    return shrink(model, kept, {}, ctx.seed), {**metrics, "layers_kept": float(keep)}


def prune_units(
    model: TorchModel, shares: Mapping[Kind, float], options: UnitOptions, ctx: Context, skipped: dict[str, str]
) -> tuple[TorchModel, int, dict[str, float]]:
    """Takes units out of ``model``'s module in place: the model with its new sizes, layers changed, and metrics.

    Raises:
        BadInputError: there are no units of a kind that is asked for.
        MissingToolError: torch-pruning isn't installed, and the module's layers aren't known.
    """
    before = read_sizes(model.module)
    metrics: dict[str, float] = {}
    changed = 0
    for kind, share in shares.items():
        if share == 1:
            continue
        groups = _groups(model, kind, options, ctx, skipped)
        takers = _takers(model, groups, options, ctx)
        chosen = choose_kept(takers, share, options, multiple=1 if kind == "heads" else None)
        for group, layers, kept in zip(groups, takers, chosen, strict=True):
            if len(kept) == group.count:
                continue
            for part, taker in zip(group.consumers, layers, strict=True):
                columns, weight, shift = fit_kept(taker, kept, options)
                write_columns(model.module.get_submodule(part.name), columns, weight, shift)
        for group, kept in zip(groups, chosen, strict=True):  # not above: a layer may take one group and make another
            if len(kept) < group.count:
                group.remove(kept)
                changed += 1
        total = sum(group.count for group in groups)
        metrics |= {kind: float(total), f"{kind}_kept": sum(map(len, chosen)) / total}
    metrics["parameters"] = float(sum(item.numel() for item in model.module.parameters()))
    sizes = changed_sizes(before, model.module)
    merged = {name: {**model.resized.get(name, {}), **sizes.get(name, {})} for name in {**model.resized, **sizes}}
    return _update_config(replace(model, resized=merged)), changed, metrics


def _groups(model: TorchModel, kind: Kind, options: UnitOptions, ctx: Context, skipped: dict[str, str]) -> list[Group]:
    if kind == "heads":
        found = attention_groups(model.module, skipped)
    elif kind == "neurons":
        found = feed_forward_groups(model.module, skipped)
    else:
        found = []
    if not found and kind != "heads" and not count_layers(model.module):
        inputs, _ = collate(ctx.calibration[:1], {})
        found = dependent_groups(model.module, model.take(inputs), kind, skipped)
    groups = []
    for group in found:
        names = (group.name, *(part.name for part in group.consumers))
        if any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in options.keep):
            skipped[group.name] = "kept by the recipe"
        else:
            groups.append(group)
    if not groups:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        raise BadInputError(
            f"recipe: keep_{kind}",
            f"no {kind} that can go in a {type(model.module).__name__}" + (f" ({reasons})" if reasons else ""),
            expected="a model of BERT's or Llama's kind, or convolutions and linear layers in a row",
        )
    return groups


def _update_config(model: TorchModel) -> TorchModel:
    """Says the new sizes in a transformers config, where all layers have the same; the module is right in any case."""
    config: Any = getattr(model.module, "config", None)
    if not hasattr(config, "to_dict"):
        return model
    widths = {group.count for group in feed_forward_groups(model.module, {})}
    for key in ("intermediate_size", "hidden_dim"):
        if len(widths) == 1 and isinstance(getattr(config, key, None), int):
            setattr(config, key, widths.pop())
            break
    pairs = {group.count for group in attention_groups(model.module, {})}
    known = getattr(config, "num_key_value_heads", None)
    if len(pairs) == 1 and isinstance(known, int) and isinstance(getattr(config, "head_dim", None), int):
        kept = pairs.pop()
        config.num_attention_heads = config.num_attention_heads * kept // known
        config.num_key_value_heads = kept
    return replace(model, config=config.to_dict())


def _takers(model: TorchModel, groups: Sequence[Group], options: UnitOptions, ctx: Context) -> list[list[Taker]]:
    parts = [part for group in groups for part in group.consumers]
    names = list(dict.fromkeys(part.name for part in parts))
    moments = measure_moments(model, names, ctx)
    statistics = UnitStatistics()
    if options.importance != "activation":
        training = () if ctx.training is None else tuple(ctx.training.training)
        labelled = [batch for batch in training if batch.labels]
        usable = options.importance != "obs" and labelled
        batches = (labelled if usable else list(ctx.calibration))[: options.gradient_samples]
        statistics = measure_gradients(model, parts, batches, ctx)
    scores = statistics.taylor if options.importance == "taylor" else statistics.fisher
    made = []
    for group in groups:
        layers: list[Any] = [model.module.get_submodule(part.name) for part in group.consumers]
        made.append(
            [
                Taker(
                    matrix=read_matrix(layer),
                    units=part.units,
                    moments=moments[part.name],
                    gradients=statistics.outputs.get(part.name),
                    scores=scores.get(part.name),
                    bias=layer.bias is not None,
                )
                for layer, part in zip(layers, group.consumers, strict=True)
            ]
        )
    return made
