"""The options of ``edgeslim build`` and ``edgeslim check`` that name a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgeslim.errors import UsageError

if TYPE_CHECKING:
    from edgeslim.recheck_device import DeviceOptions

__all__ = ["DeviceSamples", "DeviceTimeout", "DeviceWord", "RuntimeWord", "device_options"]

DeviceWord = Annotated[
    str | None,
    typer.Option("--device", help="Run it there: host, qemu[:CPU], ssh:USER@HOST or adb[:SERIAL].", metavar="DEVICE"),
]
RuntimeWord = Annotated[
    str | None,
    typer.Option("--runtime", help="The device's ONNX Runtime, instead of a released one.", metavar="FILE"),
]
DeviceSamples = Annotated[
    int | None,
    typer.Option("--device-samples", min=1, help="How many samples run there; few on an emulated one.", metavar="N"),
]
DeviceTimeout = Annotated[
    str, typer.Option("--device-timeout", help="When a run there counts as hung, such as 90s.", metavar="TIME")
]


def device_options(device: str | None, runtime: str | None, samples: int | None, timeout: str) -> DeviceOptions | None:
    """What was asked for, or ``None`` without a device.

    Raises:
        UsageError: an option that means nothing without a device.
        BadInputError: the timeout is no duration.
    """
    from edgeslim.recheck_device import DeviceOptions
    from edgeslim.units import parse_ms

    if device is None:
        if runtime is not None or samples is not None:
            option = "--runtime" if runtime is not None else "--device-samples"
            raise UsageError(option, "no device", expected="--device DEVICE beside it")
        return None
    return DeviceOptions(
        device=device, library=runtime, samples=samples, timeout_s=parse_ms(timeout, "--device-timeout") / 1000
    )
