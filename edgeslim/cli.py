"""The command line. Heavy modules are imported inside the commands, so that ``--help`` stays quick.

Data goes to stdout, progress and errors to stderr. Exit codes are those of ``edgeslim.errors``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from edgeslim import __version__
from edgeslim.commands.chat import chat
from edgeslim.commands.check import check
from edgeslim.commands.cmake_dir import cmake_dir
from edgeslim.commands.device_options import DeviceSamples, DeviceTimeout, DeviceWord, RuntimeWord, device_options
from edgeslim.commands.doctor import doctor
from edgeslim.commands.init import init
from edgeslim.commands.inspect import inspect_model
from edgeslim.commands.ort import write_ort
from edgeslim.commands.pack import pack
from edgeslim.commands.unpack import unpack
from edgeslim.errors import EdgeslimError
from edgeslim.processes import process_rank
from edgeslim.verdict import judge_report

__all__ = ["app", "run"]

INTERRUPTED = 130
READER_GONE = 141
_AS_IT_WAS = "the output is as it was, or finished"

app = typer.Typer(
    name="edgeslim",
    help="Turns a trained model into a small, fast, verified ONNX package for a phone, an ARM board or an IoT gateway.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
targets_app = typer.Typer(help="The devices that edgeslim knows.", invoke_without_command=True)
app.add_typer(targets_app, name="targets")
app.command("check")(check)
app.command("chat")(chat)
app.command("cmake-dir")(cmake_dir)
app.command("doctor")(doctor)
app.command("init")(init)
app.command("inspect")(inspect_model)
app.command("ort")(write_ort)
app.command("pack")(pack)
app.command("unpack")(unpack)


def _print_version(wanted: bool) -> None:  # noqa: FBT001  typer calls it so
    if wanted:
        typer.echo(f"edgeslim {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that come before a command."""


@app.command()
def build(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A Hugging Face folder or id, an .onnx file, pkg://package/path, or module:callable. "
            "Without it, edgeslim.toml in this folder says everything."
        ),
    ] = None,
    *,
    target: Annotated[str | None, typer.Option(help="A profile's name (`edgeslim targets`) or a .toml file.")] = None,
    data: Annotated[str | None, typer.Option(help="A file of samples or a folder of pictures, split in two.")] = None,
    task: Annotated[
        str | None, typer.Option(help="feature-extraction, text-classification, or module:function.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe file instead of the target's default.")] = None,
    max_drop: Annotated[
        float | None, typer.Option(min=0, help="Loss of quality allowed, in the task's unit.", metavar="X")
    ] = None,
    max_size: Annotated[str | None, typer.Option(help="Largest package, such as 21.5MB.", metavar="SIZE")] = None,
    max_latency: Annotated[
        str | None, typer.Option(help="Slowest p50 on the device, such as 40ms.", metavar="TIME")
    ] = None,
    max_instructions: Annotated[
        int | None, typer.Option(min=1, help="Most instructions of a run on an emulated machine.", metavar="N")
    ] = None,
    device: DeviceWord = None,
    runtime: RuntimeWord = None,
    device_samples: DeviceSamples = None,
    device_timeout: DeviceTimeout = "600s",
    name: Annotated[str | None, typer.Option(help="The package's name.")] = None,
    out: Annotated[str | None, typer.Option("-o", "--out", help="Output folder (default: out/TARGET).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no table.")] = False,
    require_judged: Annotated[
        bool, typer.Option("--require-judged", help="Fail if a budget could not be judged.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and why; do nothing.")] = False,
    depfile: Annotated[str | None, typer.Option(help="Write the inputs for Make or Ninja.", metavar="FILE")] = None,
    use_cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Use and keep results of earlier builds.")
    ] = True,
) -> None:
    """Compress a model for a target, pack it, and check that size, accuracy and latency hold."""
    from edgeslim.project import Overrides

    overrides = Overrides(
        model=model,
        target=target,
        name=name,
        task=task,
        data=data,
        recipe=recipe,
        max_drop=max_drop,
        max_size=max_size,
        max_latency=max_latency,
        max_instructions=max_instructions,
        out=out,
    )
    if dry_run:
        from edgeslim.explain import explain_plan

        typer.echo(explain_plan(overrides, as_json=as_json, use_cache=use_cache))
        return
    if process_rank() > 0:
        from edgeslim.cache import Cache
        from edgeslim.inputs import find_unchanged
        from edgeslim.project import plan_build
        from edgeslim.stage_runs import assist_build

        plan, store = plan_build(overrides), Cache.default() if use_cache else None
        if store is None or find_unchanged(plan, store) is None:  # as the first process finds
            assist_build(plan, store)
        return
    from rich.console import Console

    from edgeslim import build as run_build
    from edgeslim.progress import TerminalProgress
    from edgeslim.report import print_report

    progress = None if quiet else TerminalProgress(Console(stderr=True))
    options = device_options(device, runtime, device_samples, device_timeout)
    report = run_build(**asdict(overrides), use_cache=use_cache, progress=progress, device=options)
    if as_json:
        typer.echo(report.to_json(), nl=False)
    elif not quiet:
        print_report(report, Console(soft_wrap=False), written=not report.failed())
    judge_report(report, require_judged=require_judged, hint="no package was written")
    if depfile is not None:
        from edgeslim.inputs import write_depfile

        write_depfile(Path(depfile), report.artifact.path, overrides)


@app.command("cache")
def show_cache(
    *,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all entries.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the entries as JSON.")] = False,
) -> None:
    """Show what is kept of earlier builds, or clear it."""
    from edgeslim.cache import Cache
    from edgeslim.report import format_value

    cache = Cache.default()
    if cache is None:
        nothing: dict[str, object] = {"root": None, "limit_bytes": 0, "entries": []}
        typer.echo(json.dumps(nothing, indent=2) if as_json else "the cache is off (EDGESLIM_CACHE=off)")
        return
    if clear:
        typer.echo(f"removed {cache.clear()} entries from {cache.root}")
        return
    entries = cache.entries()
    if as_json:
        plain = {"root": str(cache.root), "limit_bytes": cache.limit_bytes, "entries": [asdict(e) for e in entries]}
        typer.echo(json.dumps(plain, indent=2))
        return
    for entry in entries:
        typer.echo(f"{entry.key[:12]}  {entry.step:<16}  {format_value(float(entry.bytes), 'bytes'):>10}")
    total = format_value(float(sum(entry.bytes for entry in entries)), "bytes")
    limit = format_value(float(cache.limit_bytes), "bytes")
    typer.echo(f"{len(entries)} entries, {total} of at most {limit}, in {cache.root}")


@targets_app.callback()
def targets(context: typer.Context) -> None:
    """List the targets, a line each."""
    if context.invoked_subcommand is None:
        from edgeslim.target import list_targets

        profiles = list_targets()
        width = max(len(profile.name) for profile in profiles)
        for profile in profiles:
            typer.echo(f"{profile.name:<{width}}  {profile.summary}")


@targets_app.command("show")
def show_target(
    name: Annotated[str, typer.Argument(help="A profile's name or a .toml file.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show all that a profile says."""
    from edgeslim.target import load_target

    plain = asdict(load_target(name))
    if as_json:
        typer.echo(json.dumps(plain, indent=2, ensure_ascii=False))
        return
    for key, value in plain.items():
        if isinstance(value, dict):
            typer.echo(f"{key}:")
            for inner, inner_value in value.items():
                typer.echo(f"  {inner}: {_plain(inner_value)}")
        elif isinstance(value, tuple | list):
            typer.echo(f"{key}:")
            for item in value:
                typer.echo(f"  - {_plain(item)}")
        else:
            typer.echo(f"{key}: {_plain(value)}")


class _Terminated(BaseException):
    """SIGTERM or SIGHUP: what is open gets closed on the way out, as with Ctrl-C."""


def _terminate(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise _Terminated(number)


def run() -> int:
    """Runs the command line and returns its exit code; no traceback reaches a user."""
    handled = []
    if threading.current_thread() is threading.main_thread():
        # What the caller ignores (nohup) stays ignored.
        handled = [item for item in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(item) is signal.SIG_DFL]
    for number in handled:
        signal.signal(number, _terminate)
    try:
        return _run()
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def _run() -> int:
    try:
        result = app(standalone_mode=False)
    except _Terminated as error:
        sys.stderr.write(f"terminated: {_AS_IT_WAS}\n")
        return 128 + int(error.args[0])
    except EdgeslimError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        result = INTERRUPTED
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):  # so typer and rich end where nobody reads any more
            raise
        return READER_GONE
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # a usage error, worded by the argument parser
            error.show()
            return int(error.exit_code)
        if os.environ.get("EDGESLIM_DEBUG"):
            traceback.print_exc()
        sys.stderr.write(
            f"internal error: {type(error).__name__}: {error}\n"
            "  hint: this is a defect of edgeslim; EDGESLIM_DEBUG=1 shows where, for a report\n"
        )
        return 1
    if result == INTERRUPTED:
        sys.stderr.write(f"interrupted: {_AS_IT_WAS}\n")
    return int(result or 0)


def _plain(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_plain(item)}" for key, item in value.items())
    return "–" if value is None else str(value)
