"""Any file as a container, byte for byte: ``edgeslim pack`` and ``edgeslim unpack``.

A model's tensors become segments of their own, so that each gets the code that suits it; everything between them is
coded as bytes. What is known about a file only says where to cut. A wrong guess costs size, never a byte.

- ``.safetensors``: by its header.
- ``.onnx``: by its initializers, in the file itself or in its external data files, which are packed along.
- ``.ort``: by the initializers of its main graph (``ort_file``).
- any other file, such as GGUF: in pieces of 1 MiB.

The image of a single file is that file. Several files follow each other, and a last segment, ``edgeslim.files``, lists
their names and sizes as JSON.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.codec import ContainerInfo, Segment, decode_file, read_index, write_container
from edgeslim.codec.format import dtype_bytes
from edgeslim.errors import BadInputError
from edgeslim.packaging.ort_file import find_tensors

__all__ = ["pack_file", "unpack_file"]

LIST_NAME = "edgeslim.files"
PIECE_BYTES = 1 << 20
LEAST_TENSOR_BYTES = 64
MOST_SEGMENT_BYTES = 1 << 30
MOST_LIST_BYTES = 1 << 20
MOST_HEADER_BYTES = 100 << 20

_SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
_ONNX = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16", 17: "float8_e4m3fn", 19: "float8_e5m2", 21: "uint4x2",
    22: "int4x2",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """A stretch of a file, and what it holds."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def pack_file(source: Path, out: Path) -> ContainerInfo:
    """Codes ``source``, and the data files of an ``.onnx`` model, into the container ``out``.

    Raises:
        BadInputError: a file is missing, or the model's external data lie outside its folder.
    """
    if not source.is_file():
        raise BadInputError(str(source), "no such file", expected="a file to pack")
    if out.is_dir() or (out.exists() and out.samefile(source)):
        raise BadInputError(str(out), "the file itself, or a folder", expected="the name of another file")
    out.parent.mkdir(parents=True, exist_ok=True)
    files = {source: _tensors_of(source)}
    if source.suffix == ".onnx":
        files[source], external = _read_onnx(source)
        files |= external
    segments: list[Segment] = []
    for path, tensors in files.items():
        if not path.is_file():
            raise BadInputError(str(path), "no such file", expected=f"the external data of {source.name}")
        segments += _cut(path, tensors)
    if len(files) > 1:
        listed = [{"name": path.name, "bytes": path.stat().st_size} for path in files]
        segments.append(Segment(LIST_NAME, json.dumps(listed).encode(), "bytes", ()))
    return write_container(out, segments)


def unpack_file(container: Path, out: Path) -> list[Path]:
    """Decodes ``container`` to the file ``out``; one with several files into the folder ``out``, by their names.

    Raises:
        BadInputError: the container is damaged, or its list of files isn't one.
    """
    if not container.is_file():
        raise BadInputError(str(container), "no such file", expected="a container to unpack")
    info = read_index(container)
    if not info.segments or info.segments[-1].name != LIST_NAME:
        if out.is_dir():
            raise BadInputError(str(out), "a folder", expected=f"a file's name: {container} holds one file")
        out.parent.mkdir(parents=True, exist_ok=True)
        decode_file(container, out)
        return [out]
    listed_at = info.segments[-1].decoded_offset
    if out.is_file():
        raise BadInputError(str(out), "a file", expected=f"a folder: {container} holds several files")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        image = Path(scratch) / "image"
        decode_file(container, image)
        with image.open("rb") as file:
            file.seek(listed_at)
            sizes = _read_list(file.read(MOST_LIST_BYTES), str(container), listed_at)
            file.seek(0)
            for name, size in sizes.items():
                with (Path(scratch) / "part").open("wb") as part:
                    _copy(file, part, size)
                (Path(scratch) / "part").replace(out / name)
    return [out / name for name in sizes]


def _copy(source: Any, target: Any, size: int) -> None:
    while size > 0:
        data = source.read(min(size, PIECE_BYTES))
        target.write(data)
        size -= len(data)


def _read_list(data: bytes, container: str, total: int) -> dict[str, int]:
    """Names and sizes of the files; each name stays within the folder, and the sizes add up."""
    where = f"{container}: {LIST_NAME}"
    try:
        sizes = {str(entry["name"]): int(entry["bytes"]) for entry in json.loads(data)}
    except (ValueError, TypeError, KeyError) as error:
        raise BadInputError(where, f"{data[:60]!r}", expected="a list of names and bytes") from error
    for name, size in sizes.items():
        if name in ("", ".", "..") or any(mark in name for mark in "/\\\0:") or size < 0:
            raise BadInputError(where, f'"{name}", {size} bytes', expected="plain file names")
    if sum(sizes.values()) != total:
        raise BadInputError(where, f"files of {sum(sizes.values())} bytes", expected=f"{total} bytes")
    return sizes


def _cut(path: Path, tensors: list[_Tensor]) -> Iterator[Segment]:
    """The file's bytes as segments: tensors where they are known and apart from each other, else pieces."""
    size = path.stat().st_size
    data = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
    at = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.start):
        end = tensor.start + tensor.size
        if tensor.start < at or end > size or not LEAST_TENSOR_BYTES <= tensor.size <= MOST_SEGMENT_BYTES:
            continue
        yield from _pieces(path.name, data, at, tensor.start)
        yield _segment(tensor, data[tensor.start : end])
        at = end
    yield from _pieces(path.name, data, at, size)


def _pieces(name: str, data: npt.NDArray[np.uint8], start: int, end: int) -> Iterator[Segment]:
    for at in range(start, end, PIECE_BYTES):
        yield Segment(f"{name[:900]}@{at}", data[at : min(at + PIECE_BYTES, end)], "bytes", ())


def _segment(tensor: _Tensor, data: npt.NDArray[np.uint8]) -> Segment:
    """The tensor's segment; as plain bytes if its description doesn't fit the format or its size."""
    name = "".join(letter if letter >= " " else "?" for letter in tensor.name)
    name = name.encode()[:1000].decode(errors="ignore")
    name += "@" if name == LIST_NAME else ""
    shape, item = tensor.shape, dtype_bytes(tensor.dtype)
    sound = len(shape) <= 8 and all(0 <= dim < 1 << 31 for dim in shape)
    if not sound or (item and math.prod(shape) * item != data.nbytes):
        return Segment(name, data, "bytes", ())
    return Segment(name, data, tensor.dtype, shape)


def _tensors_of(path: Path) -> list[_Tensor]:
    """The tensors of a safetensors or .ort file; none if it isn't one."""
    if path.suffix == ".ort" and path.stat().st_size:
        return [
            _Tensor(
                name=found.name,
                dtype=_ONNX.get(found.data_type, "bytes"),
                shape=found.shape,
                start=found.start,
                size=found.size,
            )
            for found in find_tensors(np.memmap(path, np.uint8, "r"))
        ]
    if path.suffix != ".safetensors":
        return []
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MOST_HEADER_BYTES, path.stat().st_size):
            return []
        head = file.read(length)
    try:
        return [
            _Tensor(
                name=str(name),
                dtype=_SAFETENSORS.get(entry["dtype"], "bytes"),
                shape=tuple(int(dim) for dim in entry["shape"]),
                start=8 + length + int(entry["data_offsets"][0]),
                size=int(entry["data_offsets"][1]) - int(entry["data_offsets"][0]),
            )
            for name, entry in json.loads(head).items()
            if name != "__metadata__"
        ]
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        return []


def _read_onnx(path: Path) -> tuple[list[_Tensor], dict[Path, list[_Tensor]]]:
    """The tensors in the model's own file, and those in each of its data files."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx.external_data_helper import _get_all_tensors

    data = path.read_bytes()
    try:
        model = onnx.load_from_string(data)
    except DecodeError:
        return [], {}
    inline: list[_Tensor] = []
    external: dict[Path, list[_Tensor]] = {}
    at = 0
    for tensor in _get_all_tensors(model):
        dtype = _ONNX.get(tensor.data_type, "bytes")
        shape = tuple(tensor.dims)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            file = _data_file(path, entries.get("location", ""))
            try:
                start = int(entries.get("offset", 0) or 0)
                rest = file.stat().st_size - start if file.is_file() else 0
                size = int(entries.get("length", rest) or 0)
            except ValueError:
                start = size = 0
            found = _Tensor(name=tensor.name, dtype=dtype, shape=shape, start=start, size=size)
            external.setdefault(file, []).append(found)
        elif len(tensor.raw_data) >= LEAST_TENSOR_BYTES:
            start = data.find(tensor.raw_data, at)
            if start < 0:
                start = data.find(tensor.raw_data)
            at = start + len(tensor.raw_data)
            inline.append(_Tensor(name=tensor.name, dtype=dtype, shape=shape, start=start, size=len(tensor.raw_data)))
    return inline, external


def _data_file(model: Path, location: str) -> Path:
    """A data file of the model, which must lie beside it."""
    if not location or Path(location).name != location:
        raise BadInputError(
            str(model), f'external data in "{location}"', expected="a file beside the model",
            hint="save the model with its data in one file of the same folder",
        )  # fmt: skip
    return model.parent / location
