"""edgeslim: turns a trained model into a small, fast, verified ONNX package for phones, ARM boards and IoT gateways.

``edgeslim.build`` is the command line's ``edgeslim build``. Importing this package loads nothing heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from edgeslim.core import Progress, Report
    from edgeslim.recheck_device import DeviceOptions
    from edgeslim.target import Loading

__all__ = ["__version__", "build", "load"]

__version__ = "0.1.0"


def build(
    model: str | None = None,
    *,
    target: str | None = None,
    data: str | None = None,
    task: str | None = None,
    recipe: str | None = None,
    max_drop: float | None = None,
    max_size: str | None = None,
    max_latency: str | None = None,
    max_instructions: int | None = None,
    name: str | None = None,
    out: str | None = None,
    folder: Path | None = None,
    use_cache: bool = True,
    progress: Progress | None = None,
    device: str | DeviceOptions | None = None,
) -> Report:
    """Builds a package and reports on it, as ``edgeslim build`` does.

    Args:
        model: a Hugging Face folder or id, an ``.onnx`` file, ``pkg://package/path`` or ``module:callable``; without
            one, ``edgeslim.toml`` in ``folder`` (default: the current one) names it and all else.
        target: a profile's name, or the path of a ``.toml`` file.
        data: a text, csv, jsonl, parquet or npz file, or a folder of pictures, that is split into calibration and
            evaluation samples.
        task: ``feature-extraction``, ``text-classification``, ``image-classification`` or ``module:function``.
        recipe: a recipe file instead of the target's default.
        max_drop: the loss of quality that is allowed, in the task's own unit.
        max_size: the package's largest size, such as ``"21.5MB"``.
        max_latency: the 50th percentile allowed on the device, such as ``"40ms"``.
        max_instructions: the most instructions of a run on an emulated device.
        name: the package's name.
        out: the output folder.
        folder: where the project file lies.
        use_cache: whether results of earlier builds are used, and this one's kept.
        progress: is told how far the build has come.
        device: where the package is run before it is published: ``"qemu"``, ``"ssh:pi@board"``, ``"adb"`` and others,
            as ``edgeslim check --device`` takes them. Such a build always runs its checks.

    Returns:
        The report. The package was written if, and only if, ``report.failed()`` is empty.

    Raises:
        EdgeslimError: bad input, a missing tool, or a model that can't be exported.
    """
    from edgeslim.cache import Cache
    from edgeslim.errors import UsageError
    from edgeslim.inputs import find_unchanged
    from edgeslim.processes import process_count, process_rank
    from edgeslim.project import Overrides, plan_build

    overrides = Overrides(
        model=model,
        target=target,
        data=data,
        task=task,
        recipe=recipe,
        max_drop=max_drop,
        max_size=max_size,
        max_latency=max_latency,
        max_instructions=max_instructions,
        name=name,
        out=out,
    )
    if process_rank() > 0:
        raise UsageError(
            "build",
            f"called in process {process_rank()} of {process_count()}",
            expected="`torchrun --nproc-per-node 2 -m edgeslim build …`, which lets the first process alone publish",
        )
    cache = Cache.default() if use_cache else None
    # Stages and all that they import aren't needed to see that nothing has changed.
    unchanged = (
        None
        if cache is None or device is not None
        else find_unchanged(plan_build(overrides, folder, load_stages=False), cache)
    )
    if unchanged is not None:
        if progress is not None:
            progress.step("nothing to do: inputs and output are those of an earlier build")
        return unchanged
    from edgeslim.html import render_artifact
    from edgeslim.pipeline import run_build  # only now: there is something to do, and this takes seconds

    if isinstance(device, str):
        from edgeslim.recheck_device import DeviceOptions

        device = DeviceOptions(device=device)
    return run_build(plan_build(overrides, folder), progress, cache, render_artifact, device)


def load(
    package: str | Path,
    *,
    folder: str | Path | None = None,
    loading: Loading | None = None,
    threads: int | None = None,
) -> InferenceSession:
    """Opens a package in ONNX Runtime, with its packed weights decoded in the way that it asks for.

    Args:
        package: an ``.aar`` or ``.tar.gz`` that edgeslim built, or the folder with its ``manifest.json``,
            ``model.onnx`` and ``weights.esz``. A folder starts faster: nothing has to be unpacked.
        folder: where ``weights.bin`` goes, if it is decoded to a file, and is found by the next start. By default the
            package's own folder; for an archive a folder in the user's cache.
        loading: ``file``, ``tensors`` or ``memory`` instead of what the manifest says, or ``lowest``: the way with the
            lowest peak of memory that this machine allows.
        threads: intra-op threads (0: all cores) instead of what the manifest says.

    Returns:
        An ``onnxruntime.InferenceSession`` on the CPU.

    Raises:
        BadInputError: it is no package, it is damaged, or the disk has no room for its weights.
    """
    from edgeslim.loading import load_package

    return load_package(package, folder=folder, loading=loading, threads=threads)
