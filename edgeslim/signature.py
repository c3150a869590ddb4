"""What a model takes, told before it is exported: from the graph, from example inputs, or from its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeslim.core import Feed
from edgeslim.datasets.encoding import load_tokenizer
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph import load_graph
from edgeslim.session import open_runner
from edgeslim.source import OwnModel, Source

__all__ = ["InputSpec", "check_feed", "source_inputs"]

_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({name})": name for name in ("bool", "float16", "int8", "uint8", "int16", "int32", "int64")},
}


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """An input; ``shape`` has ``None`` for a free dimension, and is empty where nobody says it."""

    name: str
    shape: tuple[int | None, ...] = ()
    dtype: str = ""


def source_inputs(source: Source, own: OwnModel | None, *, images: bool) -> tuple[InputSpec, ...]:
    """The inputs of a source, in its order; ``images`` says that a Hugging Face model takes pictures.

    Raises:
        BadInputError: the graph is malformed, ONNX Runtime can't open it, or the tokenizer doesn't load.
    """
    if own is not None:
        arrays = {name: value.numpy() for name, value in own.inputs.items()}
        return tuple(InputSpec(name=name, shape=value.shape, dtype=str(value.dtype)) for name, value in arrays.items())
    if source.kind == "onnx" and source.path is not None:
        load_graph(source.path)  # no runtime opens what names files elsewhere, or more bytes than there are
        return tuple(_from_graph(item) for item in open_runner(source.path).signature()["inputs"])
    if images:
        depth = source.config.get("num_channels", 3)
        return (InputSpec(name="pixel_values", shape=(None, int(depth), None, None), dtype="float32"),)
    names = load_tokenizer(source.tokenizer).model_input_names if source.tokenizer else ("input_ids",)
    return tuple(InputSpec(name=name, shape=(None, None), dtype="int64") for name in names)


def check_feed(inputs: Sequence[InputSpec], feed: Feed) -> None:
    """Compares one sample with the inputs that it is for.

    Raises:
        BadInputError: an array of another element type, number of dimensions or fixed size.
    """
    for item in inputs:
        if item.name not in feed:
            continue
        kind, shape = str(feed[item.name].dtype), feed[item.name].shape
        if item.dtype in _TYPES.values() and kind != item.dtype:
            raise BadInputError(
                "data",
                f'{kind} for the model input "{item.name}"',
                expected=item.dtype,
                hint=f'array.astype("{item.dtype}") makes it, if the values fit',
            )
        fits = len(shape) == len(item.shape) and all(
            want is None or want == size for want, size in zip(item.shape[1:], shape[1:], strict=True)
        )
        if item.shape and not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in item.shape)
            raise BadInputError(
                "data", f'shape {list(shape)} for the model input "{item.name}"', expected=f"shape [{wanted}]"
            )


def _from_graph(item: dict[str, object]) -> InputSpec:
    shape = item["shape"]
    assert isinstance(shape, list)
    kind = str(item["type"])
    return InputSpec(name=str(item["name"]), shape=tuple(shape), dtype=_TYPES.get(kind, kind))
