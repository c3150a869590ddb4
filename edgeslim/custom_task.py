"""A metric of the user's own, named as ``module:function``."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgeslim.core import Batch, Progress, Runner
from edgeslim.errors import BadInputError, near_miss

__all__ = ["CustomTask"]


class CustomTask:
    """A user's own metric: ``function(candidate, reference, batches)``, named as ``module:function``.

    Both models are given as callables from inputs by name to outputs by name. The function returns figures by name,
    among them ``drop``, or just the drop as a number. The module is also looked for in ``folder``, by default the
    current one.
    """

    def __init__(self, spec: str, folder: Path | None = None) -> None:
        """Imports the function.

        Raises:
            BadInputError: the module can't be imported, or has no such function.
        """
        self.name = spec
        self._metric = _import_function(spec, str(folder.absolute() if folder is not None else Path.cwd()))

    def evaluate(
        self, candidate: Runner, reference: Runner, batches: Sequence[Batch], progress: Progress
    ) -> Mapping[str, float]:
        """What the function returns.

        Raises:
            BadInputError: the function raises, or returns anything but numbers with a ``drop``.
        """
        if not batches:
            raise BadInputError("data", "no samples to evaluate on", expected="one sample or more")
        progress.step(f"evaluate with {self.name}")
        try:
            found = self._metric(candidate, _for_original(reference, batches), batches)
        except BadInputError:
            raise
        except Exception as error:  # it is the user's code
            raise BadInputError(
                self.name, f"it raised {type(error).__name__}: {error}", expected="figures by name, or one number"
            ) from error
        figures: dict[str, Any] = dict(found) if isinstance(found, Mapping) else {"drop": found}
        for key, value in figures.items():
            if not isinstance(key, str) or not _is_finite(value):
                raise BadInputError(
                    self.name,
                    f"it returned {key!r}: {value!r}",
                    expected="finite numbers by name, or one number",
                    hint='return {"drop": 0.01, "my_metric": 0.93}',
                )
        if "drop" not in figures:
            raise BadInputError(
                self.name,
                "it returned " + (", ".join(figures) or "nothing"),
                expected='a key "drop": the loss of quality that a budget limits, 0 for a perfect candidate',
                hint='return {"drop": 0.01, "my_metric": 0.93}',
            )
        return {key: float(value) for key, value in figures.items()}

    def drop(self, metrics: Mapping[str, float]) -> float:
        """The function's own ``drop``."""
        return metrics["drop"]

    def note(self, metrics: Mapping[str, float]) -> str:  # noqa: ARG002
        """What ``drop`` stands for, in words for a report."""
        return f"drop as {self.name} computes it"

    def manifest(self) -> Mapping[str, object]:
        """The metric's name."""
        return {"task": "custom", "metric": self.name}


def _for_original(reference: Runner, batches: Sequence[Batch]) -> Runner:
    """``reference``, given what it takes of the samples whose feed it is called with."""
    others = {id(batch.feed): batch.original for batch in batches if batch.original is not None}
    return (lambda feed: reference(others.get(id(feed), feed))) if others else reference


def _is_finite(value: object) -> bool:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return number and math.isfinite(cast(float, value))


def _import_function(spec: str, folder: str) -> Callable[..., object]:
    module_name, _, function_name = spec.partition(":")
    if not module_name or not function_name:
        raise BadInputError("task", f'"{spec}"', expected="module:function, as in my_metrics:rank_loss")
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        own = module_name == missing or module_name.startswith(missing + ".")
        raise BadInputError(
            f"task {spec}",
            f'no module "{missing}"' if own else f'its module imports "{missing}", which isn\'t there',
            expected=f"an installed module or one in {folder}",
        ) from error
    except Exception as error:  # it is the user's code
        raise BadInputError(
            f"task {spec}",
            f"importing it raised {type(error).__name__}: {error}",
            expected="a module that can be imported",
        ) from error
    finally:
        sys.path.remove(folder)
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise BadInputError(
            f"task {spec}",
            f'no function "{function_name}" in {module_name}',
            expected="one of " + ", ".join(sorted(known)) if known else "a function",
            hint=near_miss(function_name, known),
        )
    return cast(Callable[..., object], function)
