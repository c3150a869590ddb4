"""Opens a package, or the folder that it holds, in ONNX Runtime: ``edgeslim.load``.

Packed weights reach ONNX Runtime in one of three ways. ``runtime.loading`` in the manifest, which comes from the
target's profile, names one, or ``lowest``:

- ``file``: decoded once to ``weights.bin``, which the runtime maps; every later start finds it there.
- ``tensors``: each decoded into an array of its own, handed over under the initializer's name.
- ``memory``: all of ``weights.bin`` decoded into one buffer, which the runtime reads as if it were the file.
- ``lowest``: the way with the lowest peak, which is ``file`` where there is a folder with room for it, else
  ``memory``.

That order is a measurement (``benchmarks/loading.py``, all-MiniLM-L6-v2 in int8, 23.0 MB of weights): the file adds
28 MB as the plain model does, one buffer 70 MB, tensor by tensor 75 MB, of which 12 are the library that reads the
names of the initializers. So from about 50 MB of weights on, ``tensors`` comes before ``memory``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgeslim.cache import default_root, hash_file, hash_parts
from edgeslim.codec.loading import decode_into, decode_to_file, iterate_tensors
from edgeslim.errors import BadInputError
from edgeslim.packaging.manifest import Manifest, read_manifest
from edgeslim.packaging.unpack import unpack_package
from edgeslim.replacing import replaced_when_whole
from edgeslim.session import make_options, make_session
from edgeslim.target import LOADINGS, Loading

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from edgeslim.codec.format import SegmentInfo

__all__ = ["choose_loading", "load_package", "open_packed"]

MODEL, WEIGHTS, PACKED = "model.onnx", "weights.bin", "weights.esz"
MAX_MODEL_BYTES = 2 << 30


@dataclass(frozen=True, kw_only=True)
class _Initializer:
    """An initializer whose values lie in ``weights.bin``."""

    name: str
    element_type: int
    shape: tuple[int, ...]
    length: int


def load_package(
    package: str | Path,
    *,
    folder: str | Path | None = None,
    loading: Loading | None = None,
    threads: int | None = None,
) -> InferenceSession:
    """``edgeslim.load``, which documents it."""
    if loading is not None and loading not in LOADINGS:
        raise BadInputError("loading", f'"{loading}"', expected="one of " + ", ".join(LOADINGS))
    with _unpacked(Path(package)) as (source, manifest):
        _compare(source / MODEL, manifest, str(package))
        wanted = loading or manifest.runtime.loading
        size = manifest.files[WEIGHTS].bytes
        place = source if source == Path(package) else _default_folder(manifest)
        place = place if folder is None else Path(folder)
        way = choose_loading(wanted, place, size)
        count = manifest.runtime.threads if threads is None else threads
        if way != "file":
            _compare(source / PACKED, manifest, str(package))
            return open_packed(source / MODEL, source / PACKED, way, threads=count, expected_bytes=size)
        if place is None:
            raise BadInputError("folder", "none, and there is no cache", expected="where weights.bin may go")
        entry = manifest.files[WEIGHTS]
        decode_to_file(source / PACKED, place / WEIGHTS, sha256=entry.sha256, expected_bytes=entry.bytes)
        if place != source:
            _copy_model(source / MODEL, place / MODEL, manifest)
        return make_session(place / MODEL, make_options(count))


def open_packed(
    model: Path, packed: Path, way: Loading, *, threads: int = 0, expected_bytes: int | None = None
) -> InferenceSession:
    """Opens ``model`` with the weights of ``packed``, decoded in memory: ``way`` is ``memory`` or ``tensors``.

    Raises:
        BadInputError: the container or the model is malformed, or the model has weights that can't be handed over so.
    """
    options = make_options(threads)
    if way == "memory":
        image = decode_into(packed, expected_bytes=expected_bytes)
        options.add_external_initializers_from_files_in_memory([WEIGHTS], [image], [image.nbytes])
        return make_session(model, options)  # the runtime has copied what it needs when this returns
    names, values = _decode_tensors(model, packed, expected_bytes)
    options.add_external_initializers(names, values)
    session = make_session(model, options)
    session.edgeslim_weights = values  # the runtime may read from them as long as it runs
    return session


def choose_loading(wanted: Loading, folder: Path | None, size: int) -> Loading:
    """``wanted``, with ``lowest`` resolved: ``file`` if ``folder`` has room for ``size`` bytes, else ``memory``."""
    if wanted != "lowest":
        return wanted
    return "file" if folder is not None and _has_room(folder, size) else "memory"


@contextmanager
def _unpacked(package: Path) -> Iterator[tuple[Path, Manifest]]:
    """The folder with a package's files, as long as this is open, and their manifest."""
    if package.is_dir():
        yield package, read_manifest(package / "manifest.json", f"{package}/manifest.json")
        return
    if not package.is_file():
        raise BadInputError(str(package), "no such file", expected="a package, or the folder that it was unpacked to")
    with tempfile.TemporaryDirectory(prefix="edgeslim-") as scratch:
        found = unpack_package(package, Path(scratch))
        yield found.folder, found.manifest


def _default_folder(manifest: Manifest) -> Path | None:
    """Where the decoded files of an archive stay; ``None`` if there is no such place."""
    if os.environ.get("EDGESLIM_CACHE") == "off":
        return None
    version = hash_parts(manifest.files[MODEL].sha256, manifest.files[WEIGHTS].sha256)[:32]
    try:
        return default_root() / "loaded" / f"{manifest.name}-{version}"
    except RuntimeError:  # a user without a home
        return None


def _has_room(folder: Path, size: int) -> bool:
    there = folder / WEIGHTS
    if there.is_file() and there.stat().st_size == size:
        return True
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > size


def _compare(path: Path, manifest: Manifest, package: str) -> None:
    """A file against the manifest's size and hash."""
    entry = manifest.files[path.name]
    if not path.is_file():
        raise BadInputError(f"{package}: {path.name}", "no such file", expected="the files that the manifest names")
    size = path.stat().st_size
    if size != entry.bytes or hash_file(path) != entry.sha256:
        got = f"{size:,} bytes" if size != entry.bytes else "another SHA-256"
        raise BadInputError(
            f"{package}: {path.name}", got, expected=f"{entry.bytes:,} bytes, SHA-256 {entry.sha256}",
            hint="the package is damaged: copy or build it again",
        )  # fmt: skip


def _copy_model(model: Path, out: Path, manifest: Manifest) -> None:
    if out.is_file() and hash_file(out) == manifest.files[MODEL].sha256:
        return
    with replaced_when_whole(out) as temporary:
        shutil.copyfile(model, temporary)


def _decode_tensors(model: Path, packed: Path, expected_bytes: int | None) -> tuple[list[str], list[Any]]:
    """Names and values of the initializers, as ONNX Runtime takes them: each over an array that it doesn't own."""
    import onnxruntime as ort

    wanted = _external_initializers(model)
    names: list[str] = []
    values: list[Any] = []

    def allocate(info: SegmentInfo) -> npt.NDArray[np.uint8]:
        sharing = wanted.pop(info.decoded_offset, ())
        if not sharing:  # padding between tensors
            return np.empty(info.decoded_bytes, np.uint8)
        first = sharing[0]
        if any(one.length != info.decoded_bytes for one in sharing):
            raise _unfit(model, first.name, f"{first.length:,} bytes, its segment {info.decoded_bytes:,}")
        # The binding takes an array of the tensor's shape; where two values share a byte, only its front is used.
        count = int(np.prod(first.shape, dtype=np.int64))
        items = np.empty(first.shape, f"V{first.length // count}" if first.length >= count > 0 else "u1")
        items = items.view(f"u{items.itemsize}") if items.itemsize in (1, 2, 4, 8) else items
        for one in sharing:
            names.append(one.name)
            values.append(ort.OrtValue.ortvalue_from_numpy_with_onnx_type(items.reshape(one.shape), one.element_type))
        return items.reshape(-1).view(np.uint8)[: info.decoded_bytes]

    for _ in iterate_tensors(packed, allocate=allocate, expected_bytes=expected_bytes):
        pass
    if wanted:
        raise _unfit(model, next(iter(wanted.values()))[0].name, "its values are no segment of the container")
    return names, values


def _external_initializers(model: Path) -> dict[int, tuple[_Initializer, ...]]:
    """The initializers in ``weights.bin`` by their offset there; several may share one."""
    import onnx

    try:
        if model.stat().st_size > MAX_MODEL_BYTES:
            raise BadInputError(str(model), f"{model.stat().st_size:,} bytes", expected="at most 2 GiB")
        graph = onnx.load(model, load_external_data=False).graph
    except OSError as error:
        raise BadInputError(str(model), error.strerror or str(error), expected="a readable ONNX file") from error
    except ValueError as error:
        raise BadInputError(str(model), "not a whole ONNX model", expected="an ONNX file") from error
    external = onnx.TensorProto.EXTERNAL
    found: dict[int, tuple[_Initializer, ...]] = {}
    for tensor in graph.initializer:
        if tensor.data_location != external:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        try:
            offset, length = int(entries.get("offset", "0")), int(entries.get("length", "-1"))
        except ValueError:
            offset = length = -1
        if entries.get("location") != WEIGHTS or offset < 0 or length < 0 or any(dim < 0 for dim in tensor.dims):
            raise _unfit(model, tensor.name, f"its values are at {dict(entries)}")
        one = _Initializer(
            name=tensor.name, element_type=tensor.data_type, shape=tuple(tensor.dims), length=length
        )  # fmt: skip
        found[offset] = (*found.get(offset, ()), one)
    for name in _elsewhere(graph, external):
        raise _unfit(model, name, "its values are external, and it is no initializer of the main graph")
    return found


def _elsewhere(graph: Any, external: int) -> Iterator[str]:
    """External tensors that no name reaches from outside: in attributes, and in the graphs of If and Loop."""
    for node in graph.node:
        for attribute in node.attribute:
            tensors = [attribute.t, *attribute.tensors]
            for inner in [attribute.g, *attribute.graphs]:
                tensors += inner.initializer
                yield from _elsewhere(inner, external)
            yield from (f"{node.name}.{attribute.name}" for tensor in tensors if tensor.data_location == external)


def _unfit(model: Path, name: str, got: str) -> BadInputError:
    return BadInputError(
        f"{model}: tensor {name[:200]}", got[:400], expected=f"an initializer in {WEIGHTS}, one segment of {PACKED}",
        hint='load it with loading = "memory" or "file"',
    )  # fmt: skip
