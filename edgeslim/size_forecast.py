"""What a package will weigh, told from a model's files alone: before anything is exported, calibrated or run.

Weights are rounded to int8 as finely as can be and coded by the container's own coder, so the figure is that of plain
``quantize_int8`` but for what smoothing and GPTQ move (a hundredth). Where a budget asks for less, or ``target_bits``
for bits a weight, the stage meets it by the bytes of real files; then the forecast is how many bits a weight are left,
and whether that is within reach. Nothing is known of graphs that other stages, or own code, make first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.algorithms.rate import coded_bytes
from edgeslim.anatomy import open_model
from edgeslim.numerics import quantize_weight
from edgeslim.packaging.archive import deflated_bytes
from edgeslim.packaging.bundle import tokenizer_extras
from edgeslim.project import Plan
from edgeslim.quantizing.storage_grid import AIM, MIN_BITS
from edgeslim.runtime import LOADER_JAR
from edgeslim.source import Source
from edgeslim.stages.quantize_int8 import QuantizeInt8
from edgeslim.tensor_files import StoredTensor

__all__ = ["SizeForecast", "forecast_size"]

SMALL_FILES_BYTES = 96_000
"""About what the graph, the manifest and the recorded outputs take in an archive."""
EMBEDDINGS = ("embed", "wte", "wpe")


@dataclass(frozen=True, kw_only=True)
class SizeForecast:
    """Bytes of a package: ``plain_bytes`` in int8 as fine as can be, ``bytes`` as it will be, ``least_bytes`` at best.

    ``bits`` are those of a stored weight, of which there are ``weights``.
    """

    bytes: int
    bits: float
    plain_bytes: int
    least_bytes: int
    weights: int

    @property
    def within_reach(self) -> bool:
        """Whether so few bits are to be had."""
        return self.bits >= MIN_BITS

    def describe(self) -> str:
        """A line for people."""
        if not self.within_reach:
            return f"out of reach: at least {_mb(self.least_bytes)}; int8 takes about {_mb(self.plain_bytes)}"
        if self.bytes == self.plain_bytes:
            return f"about {_mb(self.bytes)}: plain int8, {self.bits:.2f} bits a weight"
        return (
            f"about {_mb(self.bytes)}: grids of {self.bits:.2f} bits a weight; plain int8 takes {_mb(self.plain_bytes)}"
        )


def forecast_size(plan: Plan, source: Source) -> SizeForecast | None:
    """What the package of ``plan`` will weigh; ``None`` where its recipe is another than int8 alone, or its model code.

    Raises:
        BadInputError: the model's files can't be read.
    """
    stages: list[object] = [named.stage for named in (*plan.recipe.torch, *plan.recipe.graph)]
    stage, pooler = stages[0] if len(stages) == 1 else None, "classification" in (plan.task or "classification")
    if not isinstance(stage, QuantizeInt8) or source.kind not in ("huggingface", "onnx"):
        return None
    matrices: list[int] = []
    weights = rest = 0
    with open_model(str(source.path)) as (_, file):
        for tensor in file.tensors:
            if "float" not in tensor.dtype or ("pooler." in tensor.name and not pooler):
                continue  # counters, and a head that encoders are exported without
            if len(tensor.shape) < 2 or tensor.values < stage.min_elements:
                rest += 4 * tensor.values
                continue
            values, scale = _rounded(tensor, by_row=source.kind == "huggingface" or len(tensor.shape) > 2)
            matrices.append(coded_bytes(values, scale))
            weights += values.size
    if not weights:
        return None
    extras = [path for _, path in tokenizer_extras(source.tokenizer)]
    extras += [source.licence_file] if source.licence_file is not None else []
    other = rest + SMALL_FILES_BYTES + sum(deflated_bytes(path) for path in extras)
    if plan.target.package.kind == "aar":
        other += deflated_bytes(LOADER_JAR)
    plain, limit = sum(matrices) + other, plan.budget.max_size_bytes
    bits = 8 * sum(matrices) / weights
    if stage.target_bits is not None:
        bits = min(bits, stage.target_bits)
    elif limit is not None and limit < plain and stage.fit:
        bits = 8 * (limit * AIM - other) / weights
    size = plain if bits == 8 * sum(matrices) / weights else round(other + bits * weights / 8)
    least = round(other + MIN_BITS * weights / 8)
    return SizeForecast(bytes=size, bits=bits, plain_bytes=plain, least_bytes=least, weights=weights)


def _rounded(tensor: StoredTensor, *, by_row: bool) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """The int8 form of a tensor as a graph will hold it, and its scales."""
    array = _read(tensor).reshape(tensor.shape[0], -1)
    table = tensor.node == "Gather" or any(word in tensor.name for word in EMBEDDINGS)
    if by_row and not table and len(tensor.shape) == 2:
        array = array.T
    made = quantize_weight(array, axis=0 if table or len(tensor.shape) > 2 else 1)
    return np.ascontiguousarray(made.values), made.scale


def _read(tensor: StoredTensor) -> npt.NDArray[np.float32]:
    data = b"".join(_chunks(tensor))
    if tensor.dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    kinds: dict[int, Any] = {16: "<f2", 32: "<f4", 64: "<f8"}
    return np.frombuffer(data, kinds[tensor.bits]).astype(np.float32)


def _chunks(tensor: StoredTensor) -> Iterator[bytes]:
    return tensor.chunks()


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
