"""Decodes a container to where a runtime wants its weights: a file, one buffer, or one array a tensor.

All three read the container front to back, a coded block at a time, and decode each block straight into its place. So
they never hold more than what they hand out, plus one coded block, one directory and the decoder's own tables:

- ``decode_to_file``: for a runtime that maps ``weights.bin``. Holds one block. The file appears under its name whole,
  verified and on the disk (fsync), or not at all; where it is there already, it is used as it is.
- ``decode_into``: one buffer, for ``SessionOptions.add_external_initializers_from_files_in_memory`` and its like.
- ``iterate_tensors``: one array after the other, for a runtime that takes tensors by name.

Whatever is read may be hostile. Nothing is allocated before header and index are found sound, and no more than the
caller says he expects. Every block's hash is checked before it is decoded, the image's at the end.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from edgeslim.codec import format as esz
from edgeslim.codec.decode import _array, _Decoder, _ImageHash, _Segment
from edgeslim.errors import BadInputError
from edgeslim.replacing import replaced_when_whole

__all__ = ["decode_into", "decode_to_file", "iterate_tensors"]

Bytes = npt.NDArray[np.uint8]

_CHUNK_BYTES = 1 << 18
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NUMPY = {
    "bytes": "u1", "uint8": "u1", "int8": "i1", "uint16": "<u2", "int16": "<i2", "uint32": "<u4", "int32": "<i4",
    "uint64": "<u8", "int64": "<i8", "float16": "<f2", "float32": "<f4", "float64": "<f8", "bool": "?",
}  # fmt: skip


class _Walk:
    """A container that is decoded front to back. Header and index are sound once this is made."""

    def __init__(self, file: IO[bytes], name: str, expected_bytes: int | None) -> None:
        self._file = file
        self._name = name
        self._decoder = _Decoder(name)
        self.header = self._decoder.header(_array(file.read(esz.HEADER_BYTES)))
        if self.header.file_bytes != os.fstat(file.fileno()).st_size:
            self._decoder.check(9, 40)
        self._index = _array(file.read(self.header.index_bytes))  # the segments' names point into it
        self.segments = tuple(self._decoder.segments(self.header, self._index))
        self._end = esz.HEADER_BYTES + self.header.index_bytes
        self._hash = _ImageHash()
        size = self.header.decoded_bytes
        if expected_bytes is not None and size != expected_bytes:
            raise BadInputError(
                f"{name}: byte 32", f"it decodes to {size:,} bytes", expected=f"{expected_bytes:,}",
                hint="container and manifest are of different builds",
            )  # fmt: skip

    def blocks(self, segment: _Segment, place: Callable[[int, int], Bytes]) -> Iterator[Bytes]:
        """Decodes the next segment; each block goes to ``place(offset in the segment, size)`` and is yielded there."""
        read, decoder, number = self._file.read, self._decoder, int(segment.number)
        if any(read(segment.coded_offset - self._end)):
            decoder.check(13, self._end, number)
        decoder.begin(segment, _array(read(segment.directory_bytes)), number)
        if any(read(segment.data_offset - segment.directory_bytes)):
            decoder.check(13, segment.coded_offset + segment.directory_bytes, number)
        for block in range(segment.block_count):
            offset, coded_bytes, decoded_bytes = decoder.block_at(block)
            out = place(block * segment.block_bytes, decoded_bytes)
            decoder.block(segment, block, _array(read(coded_bytes)), out, segment.data_offset + offset)
            self._hash.add(out)
            yield out
        self._end = segment.coded_offset + segment.coded_bytes

    def decode(self, segment: _Segment, place: Callable[[int, int], Bytes]) -> None:
        """Decodes the next segment; see ``blocks``."""
        for _ in self.blocks(segment, place):
            pass

    def finish(self) -> None:
        """Compares the image's hash, once all segments are decoded."""
        self._hash.check(self.header, self._name)


def decode_to_file(container: Path, out: Path, *, sha256: str | None = None, expected_bytes: int | None = None) -> bool:
    """Makes ``out`` the image of ``container``; a file that is that already is left alone.

    It counts as that if its size and its hash are right: its SHA-256 where the caller gives one, else the hash that the
    container's header has of its image. What is written goes to a temporary file beside it, is flushed to the disk and
    renamed, so neither a crash nor a power cut leaves half a file under this name. Several processes may do so at once.

    Args:
        container: the container.
        out: the file to be; its folder is made if it isn't there.
        sha256: what the image's SHA-256 must be, in hex; the manifest has it.
        expected_bytes: what its size must be.

    Returns:
        Whether it was written, rather than found.

    Raises:
        BadInputError: the container is malformed or of another image, or the disk has no room for it.
    """
    container, out = Path(container), Path(out)
    with container.open("rb") as source:
        walk = _Walk(source, str(container), expected_bytes)
        size = int(walk.header.decoded_bytes)
        if _is_image(out, size, sha256, int(walk.header.image_hash)):
            return False
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < size:
            raise _no_room(out, f"{free:,} bytes free", size)
        try:
            _write(walk, out, str(container), sha256)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise _no_room(out, error.strerror or "no room", size) from error
    return True


def decode_into(container: Path, target: Any | None = None, *, expected_bytes: int | None = None) -> Bytes:
    """Decodes ``container`` into one buffer.

    Args:
        container: the container.
        target: a writable C-contiguous buffer of exactly the image's size (bytearray, mmap, NumPy array); without one,
            an array is made.
        expected_bytes: what the image's size must be.

    Returns:
        uint8 [decoded bytes]: ``target`` itself, as an array that shares its memory, or the new array. After an error
        the buffer's content is undefined.

    Raises:
        BadInputError: the container is malformed or of another size than the buffer.
    """
    container = Path(container)
    with container.open("rb") as source:
        walk = _Walk(source, str(container), expected_bytes)
        size = int(walk.header.decoded_bytes)
        if target is None:
            image = np.empty(size, np.uint8)
        else:
            view = memoryview(target)
            if view.readonly or not view.c_contiguous or view.nbytes != size:
                kind = "a read-only" if view.readonly else "a" if view.c_contiguous else "an interrupted"
                raise BadInputError(
                    "target", f"{kind} buffer of {view.nbytes:,} bytes", expected=f"a writable one of {size:,} bytes"
                )  # fmt: skip
            image = np.frombuffer(view.cast("B"), np.uint8) if size else np.empty(0, np.uint8)
        for segment in walk.segments:
            start = int(segment.decoded_offset)

            def place(offset: int, length: int, start: int = start) -> Bytes:
                return image[start + offset : start + offset + length]

            walk.decode(segment, place)
        walk.finish()
    return image


def iterate_tensors(
    container: Path,
    *,
    allocate: Callable[[esz.SegmentInfo], Bytes] | None = None,
    expected_bytes: int | None = None,
) -> Iterator[tuple[esz.SegmentInfo, npt.NDArray[Any]]]:
    """Yields each segment of ``container`` and its values, in an array that is the caller's to keep or to drop.

    The array has the segment's shape and dtype where NumPy has that dtype and the size fits it; packed nibbles,
    bfloat16, float8 and plain bytes are uint8 [decoded bytes]. The image's hash is compared after the last one, so
    an error may come when the iterator is asked for the next after that.

    Args:
        container: the container.
        allocate: gives the memory for a segment, uint8 [decoded bytes]; without it, new arrays are made.
        expected_bytes: what the image's size must be.

    Raises:
        BadInputError: the container is malformed, or of another size than expected.
    """
    container = Path(container)
    with container.open("rb") as source:
        header = esz.parse_header(source.read(esz.HEADER_BYTES), str(container))
        listed = esz.parse_index(header, source.read(header.index_bytes), str(container)).segments
        source.seek(0)
        walk = _Walk(source, str(container), expected_bytes)
        for info, segment in zip(listed, walk.segments, strict=True):
            data = np.empty(info.decoded_bytes, np.uint8) if allocate is None else allocate(info)
            if data.nbytes != info.decoded_bytes:
                raise ValueError(f"{data.nbytes} bytes for {info.name}, which has {info.decoded_bytes}")

            def place(offset: int, length: int, data: Bytes = data) -> Bytes:
                return data[offset : offset + length]

            walk.decode(segment, place)
            shaped = _shaped(info, data)
            del data, place
            yield info, shaped
            del shaped
        walk.finish()


def _shaped(info: esz.SegmentInfo, data: Bytes) -> npt.NDArray[Any]:
    dtype = _NUMPY.get(info.dtype)
    if dtype is None or info.dtype == "bytes":
        return data
    kind = np.dtype(dtype)
    count = 1
    for dim in info.shape:
        count *= dim
    return data.view(kind).reshape(info.shape) if count * kind.itemsize == data.nbytes else data


def _write(walk: _Walk, out: Path, container: str, sha256: str | None) -> None:
    block = np.empty(max((int(segment.block_bytes) for segment in walk.segments), default=0), np.uint8)
    digest = hashlib.sha256()
    with replaced_when_whole(out) as temporary, temporary.open("wb", buffering=0) as file:
        for segment in walk.segments:
            for decoded in walk.blocks(segment, lambda _, size: block[:size]):
                if sha256 is not None:
                    digest.update(decoded.data)
                _write_all(file, decoded)
        walk.finish()
        if sha256 is not None and digest.hexdigest() != sha256.lower():
            raise BadInputError(
                container, f"it decodes to SHA-256 {digest.hexdigest()}", expected=sha256,
                hint="container and manifest are of different builds",
            )  # fmt: skip
        os.fsync(file.fileno())
    _sync_folder(out.parent)


def _write_all(file: Any, data: Bytes) -> None:
    """An unbuffered file may take less than it is given."""
    view = data.data
    while view.nbytes:
        view = view[file.write(view) :]


def _sync_folder(folder: Path) -> None:
    """The rename itself, on the disk; not every system lets a folder be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _is_image(path: Path, size: int, sha256: str | None, image_hash: int) -> bool:
    """Whether ``path`` is a file with these bytes, by size and hash."""
    if not path.is_file() or path.stat().st_size != size:
        return False
    digest, own = hashlib.sha256(), _ImageHash()
    with path.open("rb") as file:
        chunk = bytearray(_CHUNK_BYTES)
        while length := file.readinto(chunk):
            if sha256 is not None:
                digest.update(memoryview(chunk)[:length])
            else:
                own.add(np.frombuffer(chunk, np.uint8, length))
    if sha256 is not None:
        return digest.hexdigest() == sha256.lower()
    return bool(own.library.esz_hash_end(own.state) == image_hash)


def _no_room(out: Path, got: str, size: int) -> BadInputError:
    return BadInputError(
        str(out), got, expected=f"room for {size:,} bytes of decoded weights",
        hint="free some space, name another folder, or load the weights in memory",
    )  # fmt: skip
