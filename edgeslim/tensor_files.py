"""Tensors in files, one after the other and chunk by chunk: ONNX, safetensors, and edgeslim's own packages.

Every file is looked at with suspicion. Numbers in a header are compared with the file's size before anything is read
by them, external data must lie in the model's folder, and a package is unpacked within bounds, into a scratch folder.
No more than a chunk of a tensor is in memory, except for weights inside an ``.onnx`` file, which protobuf parses as a
whole (at most 2 GiB).
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from edgeslim import codec
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph import MODEL_NAME, WEIGHTS_NAME, load_graph
from edgeslim.packaging.unpack import Package, unpack_package

__all__ = [
    "FileSize",
    "StoredTensor",
    "TensorFile",
    "alphabet_name",
    "open_package",
    "read_onnx",
    "read_part",
    "read_safetensors",
]

CHUNK_BYTES = 1 << 20
MAX_HEADER_BYTES = 100 << 20
MAX_DECODED_BYTES = 64 << 30
PACKED_NAME = "weights.esz"
_NAMES = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}
_SAFETENSORS = {
    "F64": ("float64", 64), "F32": ("float32", 32), "F16": ("float16", 16), "BF16": ("bfloat16", 16),
    "I64": ("int64", 64), "I32": ("int32", 32), "I16": ("int16", 16), "I8": ("int8", 8),
    "U64": ("uint64", 64), "U32": ("uint32", 32), "U16": ("uint16", 16), "U8": ("uint8", 8),
    "BOOL": ("bool", 8), "F8_E4M3": ("float8e4m3fn", 8), "F8_E5M2": ("float8e5m2", 8),
}  # fmt: skip
_PACKED_INPUTS = {"MatMulNBits": (1, 4), "GatherBlockQuantized": (0, 4)}
"""An input that holds several weights a byte, and the bits of each where the attribute ``bits`` is absent."""

Chunks = Callable[[], Iterator[bytes]]


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor as its file has it: ``values`` of ``bits`` each, little-endian, the earlier one in the lower bits.

    ``stored_bytes`` is what it takes in the file, ``bytes`` what it takes at run time. ``node`` names the operator
    that reads it, and ``alphabet`` how the container codes it; both are empty where there is none.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    values: int
    bits: int
    stored_bytes: int
    bytes: int
    chunks: Chunks
    node: str = ""
    alphabet: str = ""


@dataclass(frozen=True, kw_only=True)
class FileSize:
    """A file of a model or package."""

    name: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class TensorFile:
    """A model's tensors, and the files that it consists of (those of a package as they lie in the archive)."""

    kind: str
    files: tuple[FileSize, ...]
    tensors: tuple[StoredTensor, ...] = field(repr=False)


def read_safetensors(paths: Sequence[Path]) -> TensorFile:
    """The tensors of one or several ``.safetensors`` files.

    Raises:
        BadInputError: a header that doesn't fit its file, an unknown dtype, or a name that comes twice.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in paths:
        for tensor in _safetensors(path):
            if tensor.name in tensors:
                raise BadInputError(str(path), f'a second tensor "{tensor.name}"', expected="each tensor in one file")
            tensors[tensor.name] = tensor
    files = tuple(FileSize(name=path.name, bytes=path.stat().st_size) for path in paths)
    return TensorFile(kind="safetensors", files=files, tensors=tuple(tensors.values()))


def read_onnx(path: Path, packed: Path | None = None) -> TensorFile:
    """The tensors of an ONNX file; with ``packed``, the container of its ``weights.bin``, as they are stored there.

    Raises:
        BadInputError: no ONNX model, or a tensor whose data are elsewhere or of another size than its shape says.
    """
    info = None if packed is None else codec.read_index(packed)
    coded = {} if info is None else {segment.decoded_offset: segment for segment in info.segments}
    seen: set[tuple[str, int]] = set()
    tensors = []
    places: dict[str, int] = {}
    for name, node, packing, tensor in _initializers(load_graph(path)):
        stored = _onnx_tensor(path, name, node, packing, tensor)
        if isinstance(tensor, ir.ExternalTensor):
            place = (str(tensor.location), tensor.offset or 0)
            places[place[0]] = (path.parent / place[0]).stat().st_size
            segment = coded.get(place[1])
            if place in seen:  # another tensor has these bytes already
                stored = replace(stored, stored_bytes=0)
            elif segment is not None:
                stored = replace(stored, stored_bytes=segment.coded_bytes, alphabet=alphabet_name(segment))
            seen.add(place)
        tensors.append(stored)
    if packed is not None:
        places = {packed.name: packed.stat().st_size}
    files = [FileSize(name=path.name, bytes=path.stat().st_size)]
    files += [FileSize(name=name, bytes=size) for name, size in sorted(places.items())]
    return TensorFile(kind="onnx", files=tuple(files), tensors=tuple(tensors))


@contextmanager
def open_package(path: Path) -> Iterator[TensorFile]:
    """The tensors of an ``.aar`` or ``.tar.gz``; its weights are decoded into a scratch folder as long as it is open.

    Raises:
        BadInputError: no package of edgeslim, a hostile one, or one whose weights would not fit the disk.
    """
    with tempfile.TemporaryDirectory(prefix="edgeslim-") as name:
        scratch = Path(name)
        package = unpack_package(path, scratch)
        folder = package.folder
        try:
            _decode(package)
            inner = read_onnx(folder / MODEL_NAME, folder / PACKED_NAME)
        except BadInputError as error:  # a user knows the package, not the scratch folder
            where = error.where.replace(f"{folder}/", f"{path}: ")
            raise BadInputError(where, error.got, expected=error.expected, hint=error.hint) from error
        files = tuple(FileSize(name=name, bytes=(folder / name).stat().st_size) for name in package.names)
        yield TensorFile(kind="package", files=files, tensors=inner.tensors)


def _decode(package: Package) -> None:
    """Makes ``weights.bin``, the external data of the model, from the container."""
    for needed in (MODEL_NAME, PACKED_NAME):
        if needed not in package.names:
            raise BadInputError(str(package.path), f"no {needed} inside", expected="a package that edgeslim built")
    packed = package.folder / PACKED_NAME
    size = codec.read_index(packed).decoded_bytes
    limit = min(MAX_DECODED_BYTES, shutil.disk_usage(package.folder).free)
    if size > limit:
        raise BadInputError(str(packed), f"weights of {size:,} bytes", expected=f"at most {limit:,} here")
    codec.decode_file(packed, package.folder / WEIGHTS_NAME)


def alphabet_name(segment: codec.SegmentInfo) -> str:
    """How a segment is coded, in words for a table."""
    parts = [segment.alphabet]
    parts += ["nibbles"] if segment.nibble else []
    parts += ["codebook"] if segment.value_bytes > 1 and segment.alphabet != "PLANES" else []
    return " ".join(parts)


def read_part(path: Path, offset: int, length: int) -> Chunks:
    """A stretch of a file, chunk by chunk; an error once it turns out to end too early."""

    def chunks() -> Iterator[bytes]:
        with path.open("rb") as stream:
            stream.seek(offset)
            left = length
            while left:
                wanted = min(CHUNK_BYTES, left)
                chunk = stream.read(wanted)
                if len(chunk) < wanted:
                    got = f"ends {left - len(chunk):,} bytes too early"
                    raise BadInputError(str(path), got, expected="a file that stays as it is")
                left -= len(chunk)
                yield chunk

    return chunks


def _safetensors(path: Path) -> Iterator[StoredTensor]:
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
                got = f"a header of {length:,} bytes in a file of {size:,}"
                raise BadInputError(str(path), got, expected="a whole safetensors file")
            table = json.loads(stream.read(length))
    except OSError as error:
        raise BadInputError(str(path), error.strerror or str(error), expected="a readable safetensors file") from error
    except (ValueError, RecursionError) as error:
        raise BadInputError(str(path), f"its header is no JSON: {error}", expected="a safetensors file") from error
    if not isinstance(table, dict):
        raise BadInputError(str(path), "its header is no JSON object", expected="a safetensors file")
    table.pop("__metadata__", None)
    spans = {name: _span(path, name, entry) for name, entry in table.items()}
    end = 0
    for name, (_, _, start, stop) in sorted(spans.items(), key=lambda item: item[1][2:]):
        if start != end:
            raise BadInputError(
                f"{path}: tensor {name}", f"data at {start:,}", expected=f"at {end:,}: no gap, no overlap"
            )
        end = stop
    if 8 + length + end != size:
        raise BadInputError(str(path), f"{size:,} bytes", expected=f"{8 + length + end:,}, as its header says")
    for name, (kind, shape, start, stop) in spans.items():
        dtype, bits = _SAFETENSORS[kind]
        yield StoredTensor(
            name=name,
            dtype=dtype,
            shape=shape,
            values=math.prod(shape),
            bits=bits,
            stored_bytes=stop - start,
            bytes=stop - start,
            chunks=read_part(path, 8 + length + start, stop - start),
        )


def _span(path: Path, name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    """Dtype, shape, start and end of a tensor, as its entry in the header has them."""
    where = f"{path}: tensor {name}"
    found = entry if isinstance(entry, dict) else {}
    kind, shape, offsets = found.get("dtype"), found.get("shape"), found.get("data_offsets")
    if kind not in _SAFETENSORS:
        raise BadInputError(where, f"dtype {kind!r}", expected="one of " + ", ".join(_SAFETENSORS))
    numbers = [shape, offsets]
    if not all(isinstance(item, list) and all(type(n) is int and n >= 0 for n in item) for item in numbers):
        raise BadInputError(where, f"shape {shape!r}, data_offsets {offsets!r}", expected="lists of whole numbers")
    assert isinstance(shape, list)
    assert isinstance(offsets, list)
    wanted = math.prod(shape) * _SAFETENSORS[kind][1] // 8
    if len(offsets) != 2 or offsets[1] - offsets[0] != wanted:
        raise BadInputError(where, f"data_offsets {offsets}", expected=f"{wanted:,} bytes for {kind} {shape}")
    return kind, tuple(shape), offsets[0], offsets[1]


def _initializers(model: ir.Model) -> Iterator[tuple[str, str, int, ir.TensorProtocol]]:
    """Name, first reader, bits of a value where bytes are packed (else 0), and tensor."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for scope in (graph, *graph.subgraphs()):
            for name, value in scope.initializers.items():
                if value.const_value is not None:
                    uses = list(value.uses())
                    node = (uses[0].node.name or "") if uses else ""
                    packing = max((_packing(use.node, use.idx) for use in uses), default=0)
                    yield name, node, packing, value.const_value
            for node_ in scope:
                for attribute in node_.attributes.values():
                    if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.TENSOR:
                        label = node_.name or ""
                        yield f"{label}.{attribute.name}", label, 0, attribute.as_tensor()


def _packing(node: ir.Node, index: int) -> int:
    where, bits = _PACKED_INPUTS.get(node.op_type, (-1, 0))
    if index != where:
        return 0
    attribute = node.attributes.get("bits")
    return attribute.as_int() if attribute is not None else bits


def _onnx_tensor(path: Path, name: str, node: str, packing: int, tensor: ir.TensorProtocol) -> StoredTensor:
    where = f"{path}: tensor {name}"
    shape = tuple(int(dim) for dim in tensor.shape.numpy())
    values = math.prod(shape)
    if any(dim < 0 for dim in shape):
        raise BadInputError(where, f"shape {list(shape)}", expected="no negative dimension")
    if tensor.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return StoredTensor(
            name=name,
            dtype="string",
            shape=shape,
            values=values,
            bits=0,
            stored_bytes=0,
            bytes=0,
            chunks=lambda: iter(()),
            node=node,
        )
    dtype, bits = _NAMES.get(tensor.dtype, tensor.dtype.name.lower()), tensor.dtype.bitwidth
    size = -(-values * bits // 8)
    if isinstance(tensor, ir.ExternalTensor):  # load_graph has compared its place and length
        chunks = read_part(path.parent / str(tensor.location), tensor.offset or 0, size)
    else:
        chunks = _inline(where, tensor, size)
    if packing in (1, 2, 4) and dtype == "uint8":
        dtype, bits, values = f"uint{packing}", packing, values * (8 // packing)
    return StoredTensor(
        name=name,
        dtype=dtype,
        shape=shape,
        values=values,
        bits=bits,
        stored_bytes=size,
        bytes=size,
        chunks=chunks,
        node=node,
    )


def _inline(where: str, tensor: ir.TensorProtocol, size: int) -> Chunks:
    try:
        data = tensor.tobytes()
    except Exception as error:  # onnx_ir raises many kinds for data that don't fit
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInputError(where, reason, expected=f"{size:,} bytes") from error
    if len(data) != size:
        raise BadInputError(where, f"{len(data):,} bytes", expected=f"{size:,}, as its shape says")
    return lambda: (data[at : at + CHUNK_BYTES] for at in range(0, size, CHUNK_BYTES))
