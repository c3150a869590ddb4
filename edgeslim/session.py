"""ONNX Runtime sessions as plain callables: inputs by name to outputs by name.

Telemetry is switched off before the library is loaded (ONNX Runtime 1.29 and newer send it on POSIX systems).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.core import Feed, Runner
from edgeslim.errors import BadInputError

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "PAST_LENGTH",
    "InputForm",
    "OrtRunner",
    "RunnerOnDemand",
    "close_runner",
    "element_dtype",
    "fit_feed",
    "make_options",
    "make_session",
    "max_difference",
    "open_runner",
    "runtime_version",
]

PAST_LENGTH = "past_length"
"""The input that says how many tokens are in a KV cache of a fixed length."""
_INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_ARRAY_TYPES = {"float16", "float32", "float64", "bool"} | _INTEGERS
InputForm = tuple[np.dtype[Any], Sequence[int | None]]


class OrtRunner:
    """A session that is called like a function. ``inputs`` and ``outputs`` are names in graph order."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs: tuple[str, ...] = tuple(item.name for item in session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(item.name for item in session.get_outputs())
        self._forms = {item.name: (element_dtype(item.type), _dimensions(item)) for item in session.get_inputs()}

    def __call__(self, feed: Feed) -> Feed:
        """Runs the model on the CPU, with the inputs as ``fit_feed`` has them."""
        values = self._session.run(None, fit_feed(feed, self._forms))
        return dict(zip(self.outputs, values, strict=True))

    def run_only(self, feed: Feed, names: Sequence[str], overrides: Feed | None = None) -> Feed:
        """Runs the nodes that the outputs ``names`` take, and gives those outputs.

        ``overrides`` take the place of initializers that are graph inputs, too.
        """
        import onnxruntime as ort

        options = ort.RunOptions()
        options.only_execute_path_to_fetches = True
        if not names:
            return {}
        given = {**fit_feed(feed, self._forms), **(overrides or {})}
        values = self._session.run(list(names), given, options)
        return dict(zip(names, values, strict=True))

    def signature(self) -> dict[str, list[dict[str, object]]]:
        """Names, element types and shapes (``None`` for a free dimension) of inputs and outputs."""
        return {
            "inputs": [_describe(item) for item in self._session.get_inputs()],
            "outputs": [_describe(item) for item in self._session.get_outputs()],
        }


class RunnerOnDemand:
    """A graph that takes memory only between a call and ``close``, which may be followed by further calls."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        self._path = path
        self._threads = threads
        self._runner: OrtRunner | None = None

    def __call__(self, feed: Feed) -> Feed:
        """Runs the model as ``OrtRunner`` does; opens it where it isn't open.

        Raises:
            BadInputError: the runtime refuses the model.
        """
        if self._runner is None:
            self._runner = open_runner(self._path, threads=self._threads)
        return self._runner(feed)

    def close(self) -> None:
        """Gives back what the open graph takes."""
        self._runner = None


def open_runner(path: Path, *, threads: int = 0, optimized: Path | None = None) -> OrtRunner:
    """Opens an ONNX file on the CPU with ``threads`` intra-op threads (0: all cores).

    ``optimized``, if given, receives the graph that the runtime really runs.

    Raises:
        BadInputError: the runtime refuses the model.
    """
    options = make_options(threads)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return OrtRunner(make_session(path, options))


def fit_feed(feed: Feed, inputs: Mapping[str, InputForm]) -> Feed:
    """Those of ``feed`` that a graph has, by what its ``inputs`` are.

    An input that holds nothing, as a KV cache before the first token, takes the graph's own type and fixed dimensions;
    a buffer of a fixed length then is full of zeros, and ``past_length`` says 0.
    """
    fitted: dict[str, npt.NDArray[Any]] = {}
    for name, (dtype, shape) in inputs.items():
        if name == PAST_LENGTH and name not in feed:
            fitted[name] = np.zeros(1, np.int64)
            continue
        value = feed[name]
        if value.size == 0 and value.ndim == len(shape):
            sizes = [got if dim is None else dim for dim, got in zip(shape, value.shape, strict=True)]
            value = np.zeros(sizes, dtype)
        fitted[name] = value
    return fitted


def close_runner(runner: Runner) -> None:
    """Gives back the memory of a ``RunnerOnDemand``; other runners stay as they are."""
    if isinstance(runner, RunnerOnDemand):
        runner.close()


def make_options(threads: int = 0) -> Any:
    """The ``SessionOptions`` of every session here: ``threads`` intra-op threads (0: all cores), which don't spin."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def make_session(path: Path, options: Any) -> Any:
    """An ``InferenceSession`` on the CPU.

    Raises:
        BadInputError: the runtime refuses the model.
    """
    import onnxruntime as ort

    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding raises a class of its own for each status, all of them plain Exceptions
        raise BadInputError(
            str(path),
            f"ONNX Runtime {ort.__version__} can't open it: {str(error).strip().splitlines()[0][:400]}",
            expected="a valid ONNX model whose operators this ONNX Runtime has",
        ) from error


def runtime_version() -> str:
    """The version of the ONNX Runtime on this host."""
    import onnxruntime as ort

    return str(ort.__version__)


def element_dtype(kind: str) -> np.dtype[Any]:
    """The array type of ONNX Runtime's name for one, such as ``tensor(int8)``; float32 for what arrays don't have."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    plain = {"float": "float32", "double": "float64"}.get(name, name)
    return np.dtype(plain if plain in _ARRAY_TYPES else "float32")


def _dimensions(item: Any) -> list[int | None]:
    return [dim if isinstance(dim, int) and dim > 0 else None for dim in item.shape]


def _describe(item: Any) -> dict[str, object]:
    return {"name": item.name, "type": item.type, "shape": _dimensions(item)}


def max_difference(left: Feed, right: Feed) -> tuple[float, float]:
    """Largest absolute difference and smallest cosine between outputs of two runs, matched by position.

    Infinities of one sign at one place agree. NaN agrees with nothing, itself included: then, and where numbers or
    sizes of outputs differ, the difference is infinite and the cosine 0.
    """
    if len(left) != len(right):
        return float("inf"), 0.0
    largest, smallest = 0.0, 1.0
    for a, b in zip(left.values(), right.values(), strict=True):
        x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
        if x.size != y.size:
            return float("inf"), 0.0
        finite = np.isfinite(x) & np.isfinite(y)
        if not np.all(finite | (x == y)):
            return float("inf"), 0.0
        x, y = x[finite], y[finite]
        if x.size:
            largest = max(largest, float(np.max(np.abs(x - y))))
            norm = float(np.linalg.norm(x) * np.linalg.norm(y))
            smallest = min(smallest, float(x @ y) / norm if norm else float(np.array_equal(x, y)))
    return largest, smallest
