"""From a picture to a model's input: what a build does to its samples, and an app to every picture.

The order is fixed: decode to ``channels``; resize, by ``mode``; ``(pixel * scale - mean) / std`` for each channel; put
into ``layout``. Three modes::

    stretch   resized to ``size``, whatever becomes of its proportions
    crop      resized until its shorter edge is ``shortest_edge``, then the middle of ``size`` is cut out
    none      taken as it is; a picture of another size is refused

It is a Hugging Face image processor in one table. A key of ``[preprocessing]`` in the project file goes first, then the
model's ``preprocessor_config.json``, then what its input's shape says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt

from edgeslim.errors import BadInputError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Preprocessing", "PreprocessingOptions", "read_processor", "resolve_preprocessing"]

Mode = Literal["stretch", "crop", "none"]
Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
Channels = Literal["rgb", "gray"]
Layout = Literal["nchw", "nhwc"]
DType = Literal["float32", "uint8"]
Value = TypeVar("Value")

PROCESSOR_FILE = "preprocessor_config.json"
RESAMPLES: tuple[Resample, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # as Pillow counts
MAX_JSON_BYTES = 1 << 20
MAX_SIDE = 8192


@dataclass(frozen=True, kw_only=True)
class PreprocessingOptions:
    """The keys of ``[preprocessing]``; what isn't said is left to the model's own files and its input."""

    size: tuple[int, ...] | None = None
    mode: Mode | None = None
    shortest_edge: int | None = None
    resample: Resample | None = None
    channels: Channels | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: Layout | None = None
    dtype: DType | None = None

    def given(self) -> dict[str, Any]:
        """The keys that were said."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """All of it. ``size`` is (height, width); ``mean`` and ``std`` have a number a channel, after ``scale``."""

    size: tuple[int, ...]
    mode: Mode = "stretch"
    shortest_edge: int | None = None
    resample: Resample = "bilinear"
    channels: Channels = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Layout = "nchw"
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not all(1 <= side <= MAX_SIDE for side in self.size):
            raise ValueError(f"size: {list(self.size)}, expected [height, width], each from 1 to {MAX_SIDE}")
        depth = 3 if self.channels == "rgb" else 1
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) not in (1, depth) or not all(math.isfinite(value) for value in values):
                raise ValueError(
                    f"{name}: {list(values)}, expected a finite number for each of {depth} channels, or one"
                )
            object.__setattr__(self, name, tuple(values) * (depth if len(values) == 1 else 1))
        if not all(value > 0 for value in (self.scale, *self.std)):
            raise ValueError(f"scale {self.scale} and std {list(self.std)}, expected numbers above 0")
        edge = self.shortest_edge
        if edge is not None and (self.mode != "crop" or not max(self.size) <= edge <= MAX_SIDE):
            raise ValueError(
                f'shortest_edge: {edge} with mode "{self.mode}", expected mode "crop" and an edge that covers size'
            )
        if self.dtype == "uint8" and (self.scale, set(self.mean), set(self.std)) != (1.0, {0.0}, {1.0}):
            raise ValueError("dtype: uint8 with scale, mean or std, expected scale 1, mean 0 and std 1: plain pixels")

    def prepare(self, image: Image) -> npt.NDArray[np.uint8]:
        """A decoded picture as pixels of the wanted size and channels: uint8 [height, width, channels].

        Raises:
            ValueError: the mode is ``none``, and the picture has another size.
        """
        from PIL.Image import Resampling

        height, width = self.size
        picture = image.convert("RGB" if self.channels == "rgb" else "L")
        resample = Resampling(RESAMPLES.index(self.resample))
        if self.mode == "stretch":
            picture = picture.resize((width, height), resample)
        elif self.mode == "crop":
            edge = self.shortest_edge or max(self.size)
            shorter = min(picture.size)
            wide, tall = (edge if side == shorter else int(edge * side / shorter) for side in picture.size)
            picture = picture.resize((wide, tall), resample)
            left, top = (picture.width - width) // 2, (picture.height - height) // 2
            picture = picture.crop((left, top, left + width, top + height))
        elif picture.size != (width, height):
            raise ValueError(
                f"{picture.width} x {picture.height} pixels, expected {width} x {height}: the mode is none"
            )
        return np.asarray(picture, np.uint8).reshape(height, width, -1)

    def normalize(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """The model's input: ``pixels`` uint8 [N, height, width, channels] scaled, in ``layout`` and ``dtype``."""
        values: npt.NDArray[Any] = pixels
        if self.dtype == "float32":
            mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
            values = (pixels.astype(np.float32) * np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2) if self.layout == "nchw" else values)

    def manifest(self) -> dict[str, object]:
        """All that an app has to know, as JSON values; ``shortest_edge`` only where it counts."""
        table = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        edge = table.pop("shortest_edge")
        return {**table, "shortest_edge": edge or max(self.size)} if self.mode == "crop" else table


def resolve_preprocessing(
    options: PreprocessingOptions,
    *,
    shape: Sequence[int | None],
    dtype: str = "float32",
    folder: Path | None = None,
    config: Mapping[str, object] | None = None,
) -> Preprocessing:
    """``options`` over the processor of the model's ``folder``, over what the model's input says.

    ``shape`` is that of the input, ``None`` for a free dimension; its channels are where it has 1 or 3. ``config`` is a
    model's ``config.json``, for an input with free sides.

    Raises:
        BadInputError: the input is no picture's, its size is said nowhere, or a value doesn't fit another.
    """
    if len(shape) != 4:
        raise BadInputError(
            "model",
            f"an input of shape {list(shape)}",
            expected="a picture's: [batch, channels, height, width] or [batch, height, width, channels]",
            hint="give the data as an .npz file with one array a model input",
        )
    found = {**_from_shape(shape, dtype, config or {})}
    file = folder / PROCESSOR_FILE if folder is not None else None
    if file is not None and file.is_file():
        found.update(read_processor(file))
    found.update(options.given())
    if found.get("mode") != "crop" and options.shortest_edge is None:
        found.pop("shortest_edge", None)
    if "size" not in found:
        raise BadInputError(
            "preprocessing",
            f"no size: the model's input is {list(shape)}",
            expected="size = [height, width] in [preprocessing]",
        )
    try:
        made = Preprocessing(**found)
    except ValueError as error:
        got, _, expected = str(error).partition(", expected ")
        raise BadInputError("preprocessing", got, expected=expected) from error
    _check_fits(made, shape)
    return made


def read_processor(path: Path) -> dict[str, Any]:
    """The keys of ``Preprocessing`` that a ``preprocessor_config.json`` speaks of.

    Raises:
        BadInputError: the file is malformed, or wants something that edgeslim doesn't do.
    """
    table = _read_json(path)
    where = path.name
    known: dict[str, Any] = {}
    size = _size(table.get("size"), where)
    crop = _size(table.get("crop_size"), where) if table.get("do_center_crop") else None
    if table.get("do_pad"):
        raise BadInputError(where, "do_pad", expected="pictures that are stretched or cropped")
    if not table.get("do_resize", True):
        known["mode"] = "none"
        known["size"] = size if isinstance(size, tuple) else None
    elif isinstance(size, tuple) and crop is None:
        known.update(mode="stretch", size=size)
    elif isinstance(size, tuple) and isinstance(crop, tuple | int):
        raise BadInputError(where, "a stretched size and a crop of it", expected="one of them")
    elif size is not None:
        known.update(_crop(size, crop, _number(table.get("crop_pct"), where, "crop_pct")))
    resample = table.get("resample")
    if isinstance(resample, int) and 0 <= resample < len(RESAMPLES):
        known["resample"] = RESAMPLES[resample]
    scale = _number(table.get("rescale_factor"), where, "rescale_factor")
    known["scale"] = (1 / 255 if scale is None else scale) if table.get("do_rescale", True) else 1.0
    for name in ("mean", "std"):
        values = table.get(f"image_{name}") if table.get("do_normalize", True) else None
        if isinstance(values, list) and all(_number(value, where, f"image_{name}") is not None for value in values):
            known[name] = tuple(float(value) for value in values)
    return {key: value for key, value in known.items() if value is not None}


def _crop(edge: tuple[int, int] | int | None, crop: tuple[int, int] | int | None, part: float | None) -> dict[str, Any]:
    """A shorter ``edge`` and what is cut out; ConvNext says ``part`` instead, and stretches from 384 on."""
    assert isinstance(edge, int)
    if part is not None and crop is None:
        square = (edge, edge)
        return (
            {"mode": "crop", "size": square, "shortest_edge": int(edge / part)}
            if edge < 384
            else {"mode": "stretch", "size": square}
        )
    side = edge if crop is None else crop
    return {"mode": "crop", "size": side if isinstance(side, tuple) else (side, side), "shortest_edge": edge}


def _size(value: object, where: str) -> tuple[int, int] | int | None:
    """(height, width), or the shorter edge as one number."""
    sides: object = value
    if isinstance(value, Mapping):
        whole = {"height", "width"} <= set(value)
        sides = (value["height"], value["width"]) if whole else value.get("shortest_edge")
    each = sides if isinstance(sides, tuple) else (sides,)
    if value is None or all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in each):
        return cast("tuple[int, int] | int | None", sides)
    raise BadInputError(where, f"size {value!r}", expected=f"height and width, or shortest_edge, from 1 to {MAX_SIDE}")


def _number(value: object, where: str, key: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInputError(f"{where}: {key}", repr(value), expected="a number")
    return float(value)


def _from_shape(shape: Sequence[int | None], dtype: str, config: Mapping[str, object]) -> dict[str, Any]:
    depth = {1: "gray", 3: "rgb"}
    last = shape[1] not in depth and shape[3] in depth
    sides = (shape[1], shape[2]) if last else (shape[2], shape[3])
    found: dict[str, Any] = {"layout": "nhwc" if last else "nchw", "channels": depth.get(shape[3 if last else 1] or 3)}
    image_size = config.get("image_size")
    if None not in sides:
        found["size"] = sides
    elif isinstance(image_size, int):
        found["size"] = (image_size, image_size)
    if dtype == "uint8":
        found.update(dtype="uint8", scale=1.0)
    if found["channels"] is None:
        raise BadInputError(
            "model",
            f"an input of shape {list(shape)}",
            expected="a picture of 1 or 3 channels",
            hint="give an .npz file",
        )
    return found


def _check_fits(made: Preprocessing, shape: Sequence[int | None]) -> None:
    depth = 3 if made.channels == "rgb" else 1
    ours = (depth, *made.size) if made.layout == "nchw" else (*made.size, depth)
    if any(theirs is not None and theirs != mine for mine, theirs in zip(ours, shape[1:], strict=True)):
        raise BadInputError(
            "preprocessing",
            f"size {list(made.size)}, {made.channels}, {made.layout} makes {list(ours)}",
            expected=f"the model's input {list(shape[1:])}",
        )


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BadInputError(str(path), f"{path.stat().st_size:,} bytes", expected=f"at most {MAX_JSON_BYTES:,}")
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(str(path), f"not valid JSON: {error}", expected="a JSON object") from error
    if not isinstance(table, dict):
        raise BadInputError(str(path), f"a JSON {type(table).__name__}", expected="a JSON object")
    return table
