"""The segments of a container as tensors, so that `edgeslim inspect` can tell bits a weight beside their entropy."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeslim import codec
from edgeslim.codec.format import dtype_bytes
from edgeslim.codec.loading import decode_to_file
from edgeslim.errors import BadInputError
from edgeslim.tensor_files import FileSize, StoredTensor, TensorFile, alphabet_name, read_part

__all__ = ["open_container"]

MAX_DECODED_BYTES = 64 << 30


@contextmanager
def open_container(path: Path) -> Iterator[TensorFile]:
    """The segments of a container, decoded into a scratch folder as long as it is open.

    Raises:
        BadInputError: no container, a damaged one, or one whose image would not fit the disk.
    """
    info = codec.read_index(path)
    with tempfile.TemporaryDirectory(prefix="edgeslim-") as scratch:
        if info.decoded_bytes > MAX_DECODED_BYTES:
            got = f"it decodes to {info.decoded_bytes:,} bytes"
            raise BadInputError(str(path), got, expected=f"at most {MAX_DECODED_BYTES:,}")
        image = Path(scratch) / "image"
        decode_to_file(path, image)
        tensors = tuple(_container_tensor(image, segment) for segment in info.segments)
        yield TensorFile(
            kind="container", files=(FileSize(name=path.name, bytes=path.stat().st_size),), tensors=tensors
        )


def _container_tensor(image: Path, segment: codec.SegmentInfo) -> StoredTensor:
    """A segment as a tensor; bytes that have no type count one by one."""
    packed = segment.dtype.endswith("x2")
    width = dtype_bytes(segment.dtype) or 1
    sound = packed or math.prod(segment.shape) * width == segment.decoded_bytes
    bits = 4 if packed else 8 * width if sound else 8
    values = segment.decoded_bytes * 8 // bits
    if packed and values - 1 <= math.prod(segment.shape) <= values:
        values = math.prod(segment.shape)
    return StoredTensor(
        name=segment.name,
        dtype=segment.dtype.removesuffix("x2").replace("float8_", "float8") if sound else "bytes",
        shape=segment.shape,
        values=values,
        bits=bits,
        stored_bytes=segment.coded_bytes,
        bytes=segment.decoded_bytes,
        chunks=read_part(image, segment.decoded_offset, segment.decoded_bytes),
        alphabet=alphabet_name(segment),
    )
