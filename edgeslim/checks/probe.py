"""Opens a model in a process of its own and runs it once: load time and peak memory, as one line of JSON.

``python -m edgeslim.checks.probe MODEL FEED.npz [THREADS [WAY PACKED]]`` prints ``load_ms``, ``first_run_ms``,
``baseline_bytes`` (resident once the runtime's library and the inputs are loaded), ``peak_bytes`` (the most that was
resident from then on) and their difference ``added_bytes``.

With a way to load the weights of the container ``PACKED`` (``edgeslim.loading``), it is that way that is measured:
``file`` first decodes the container to a file of its own, which takes ``unpack_ms``, and opens the model with the
``weights.bin`` that lies beside it; ``tensors`` and ``memory`` decode while they load, in every process.

``measured_by`` says how: ``VmHWM`` is the kernel's high-water mark, set back
before the model is opened; ``ru_maxrss``, where that isn't to be had, can't be set back, so a peak while importing
hides a smaller one later.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from edgeslim.target import Loading

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["main", "measure"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
WEIGHTS = "weights.bin"


def measure(
    model: Path, feed: Path, threads: int = 0, way: Loading = "file", packed: Path | None = None
) -> dict[str, float | str]:
    """What the module describes. The process should be a fresh one.

    Raises:
        BadInputError: the runtime refuses the model, or the container is malformed.
    """
    import onnxruntime  # noqa: F401  (the baseline holds the library)

    from edgeslim.codec import read_index
    from edgeslim.codec.library import load_library
    from edgeslim.loading import choose_loading, open_packed
    from edgeslim.session import OrtRunner, open_runner

    load_library()

    with np.load(feed, allow_pickle=False) as archive:
        inputs = {name: archive[name] for name in archive.files}
    how = "VmHWM" if _reset_peak() else "ru_maxrss"
    baseline = _peak_bytes(how)
    unpack_ms = 0.0
    if packed is not None:
        way = choose_loading(way, model.parent, read_index(packed).decoded_bytes)
        if way == "file":
            unpack_ms = _unpack(packed)
    started = time.perf_counter()
    if packed is None or way == "file":
        runner = open_runner(model, threads=threads)
    else:
        runner = OrtRunner(open_packed(model, packed, way, threads=threads))
    loaded = time.perf_counter()
    runner(inputs)
    ended = time.perf_counter()
    peak = _peak_bytes(how)
    return {
        "way": way,
        "unpack_ms": unpack_ms,
        "load_ms": (loaded - started) * 1000,
        "first_run_ms": (ended - loaded) * 1000,
        "baseline_bytes": baseline,
        "peak_bytes": peak,
        "added_bytes": peak - baseline,
        "measured_by": how,
    }


def _unpack(packed: Path) -> float:
    """Milliseconds of decoding to a file, flushed to the disk."""
    from edgeslim.codec.loading import decode_to_file

    with tempfile.TemporaryDirectory(prefix="edgeslim-") as folder:
        started = time.perf_counter()
        decode_to_file(packed, Path(folder) / WEIGHTS)
        return (time.perf_counter() - started) * 1000


def _reset_peak() -> bool:
    """Sets the kernel's high-water mark back to what is resident now, if there is such a mark."""
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return "VmHWM:" in _STATUS.read_text()


def _peak_bytes(how: str) -> int:
    if how == "VmHWM":
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(arguments: Sequence[str]) -> int:
    """Runs the command line; the exit status is that of the error, if one is to be told."""
    from edgeslim.errors import EdgeslimError

    model, feed, *more = arguments
    threads, way, packed = (*more, *("0", "file", "")[len(more) :])
    try:
        container = Path(packed) if packed else None
        found = measure(Path(model), Path(feed), int(threads), cast(Loading, way), container)
    except EdgeslimError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
