"""``edgeslim check PACKAGE``: every check once more, on a finished package."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeslim.commands.device_options import DeviceSamples, DeviceTimeout, DeviceWord, RuntimeWord, device_options
from edgeslim.verdict import judge_report

__all__ = ["check"]


def check(
    package: Annotated[str, typer.Argument(help="An .aar or a .tar.gz that edgeslim built.")],
    *,
    data: Annotated[
        str | None, typer.Option(help="Samples, as a build takes them; with labels, accuracy is told.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Check for this target instead of the one that it was built for.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="The float model that it was built from, to measure what was lost.", metavar="MODEL"),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="A metric of your own, module:function, beside the reference.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(min=0, help="Loss of quality allowed, in the task's unit.", metavar="X")
    ] = None,
    max_size: Annotated[str | None, typer.Option(help="Largest package, such as 21.5MB.", metavar="SIZE")] = None,
    max_latency: Annotated[
        str | None, typer.Option(help="Slowest p50 on the device, such as 40ms.", metavar="TIME")
    ] = None,
    device: DeviceWord = None,
    runtime: RuntimeWord = None,
    device_samples: DeviceSamples = None,
    device_timeout: DeviceTimeout = "600s",
    max_instructions: Annotated[
        int | None, typer.Option(min=1, help="Most instructions of a run on an emulated machine.", metavar="N")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no table.")] = False,
    require_judged: Annotated[
        bool, typer.Option("--require-judged", help="Fail if a budget could not be judged.")
    ] = False,
) -> None:
    """Repeat every check on a finished package: files, weights, operators, accuracy, size, latency."""
    from rich.console import Console

    from edgeslim.progress import TerminalProgress
    from edgeslim.recheck import CheckOptions, check_package
    from edgeslim.report import print_report

    options = CheckOptions(
        package=package,
        data=data,
        target=target,
        reference=reference,
        task=task,
        max_drop=max_drop,
        max_size=max_size,
        max_latency=max_latency,
        device=device_options(device, runtime, device_samples, device_timeout),
        max_instructions=max_instructions,
    )
    report = check_package(options, None if quiet else TerminalProgress(Console(stderr=True)))
    if as_json:
        typer.echo(report.to_json(), nl=False)
    elif not quiet:
        heading = f"edgeslim check for {report.target}"
        print_report(report, Console(soft_wrap=False), written=True, heading=heading)
    judge_report(report, require_judged=require_judged, hint="the package is left as it is")
