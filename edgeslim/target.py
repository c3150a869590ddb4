"""Target profiles: what a device is, which ONNX Runtime it runs, and what a build for it must keep.

A profile is one TOML file. Those that edgeslim brings lie in ``targets/``; ``--target ./board.toml`` reads one from
anywhere. ``extends = "name"`` takes another profile's tables first and lays its own keys over them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeslim.errors import BadInputError, UsageError, near_miss
from edgeslim.fields import parse_fields, read_toml

__all__ = [
    "LOADINGS",
    "Budget",
    "Loading",
    "MachineProfile",
    "PackageProfile",
    "RuntimeProfile",
    "TargetProfile",
    "list_targets",
    "load_target",
    "profile_folder",
    "target_file",
    "target_files",
]

MAX_EXTENDS = 4

Loading = Literal["file", "tensors", "memory", "lowest"]
LOADINGS: tuple[Loading, ...] = ("file", "tensors", "memory", "lowest")
"""How packed weights reach the runtime (``edgeslim.loading``)."""


@dataclass(frozen=True, kw_only=True)
class MachineProfile:
    """The hardware: instruction set, features that change which kernels run, cores, memory in bytes.

    ``flash_bytes`` is the storage that a device has for a model: package and decoded weights together have to fit.
    """

    isa: str
    features: tuple[str, ...] = ()
    cores: int = 1
    memory_bytes: int | None = None
    flash_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class RuntimeProfile:
    """The ONNX Runtime on the device.

    ``version`` picks the table of kernels that a build is checked against. ``int8_form`` is the graph form of an
    int8 MatMul that its kernels run fastest: ``integer`` (QuantizeLinear and MatMulIntegerToFloat) or ``qdq``.
    ``fixed_shapes`` says that it takes graphs of constant dimensions only, ``fixed_length`` of how many tokens; a
    project may ask for either, too. ``kv_cache_length`` and ``kv_cache_bits`` are the form of a language model's cache:
    buffers of so many tokens, or as it grows, in float32 or int8; a recipe's own step goes first. ``loading`` is how an
    app hands the decoded weights to it; ``lowest`` is the way with the lowest peak of memory, which is a mapped file
    wherever there is room for one.
    """

    version: str
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    opset_max: int = 21
    int8_form: Literal["integer", "qdq"] = "integer"
    threads: int = 1
    fixed_shapes: bool = False
    fixed_length: int | None = None
    kv_cache_length: int | None = None
    kv_cache_bits: Literal[8, 32] = 32
    loading: Loading = "lowest"

    def __post_init__(self) -> None:
        if self.fixed_length is not None and self.fixed_length < 1:
            raise ValueError(f"fixed_length: {self.fixed_length}, expected at least 1")
        if self.kv_cache_length is not None and self.kv_cache_length < 2:
            raise ValueError(f"kv_cache_length: {self.kv_cache_length}, expected at least 2")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits that a build has to keep; ``None`` means no limit.

    ``max_drop`` is in the task's own unit (1 - mean cosine, or lost accuracy), ``max_size_bytes`` holds for the
    package, ``max_latency_ms`` for the 50th percentile on the target device, ``max_latency_ratio`` for the latency
    against the float export, measured on the building host. ``max_instructions`` holds for one run on an emulated
    machine.
    """

    max_drop: float | None = None
    max_size_bytes: int | None = None
    max_latency_ms: float | None = None
    max_latency_ratio: float | None = None
    max_peak_memory_bytes: int | None = None
    max_instructions: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value >= 0:  # so that NaN is refused, too
                raise ValueError(f"{name}: {value}, expected 0 or more")

    def over(self, other: Budget) -> Budget:
        """This budget, with ``other``'s limit wherever this one has none."""
        mine, theirs = asdict(self), asdict(other)
        return Budget(**{key: theirs[key] if value is None else value for key, value in mine.items()})


@dataclass(frozen=True, kw_only=True)
class PackageProfile:
    """How the result is packed.

    ``aar`` is an Android library, ``tar`` the plain files in a ``.tar.gz``, ``cmake`` the same with a package of
    CMake's that compiles the loader in C, ``swift`` the same as a Swift package with the loader for iOS.
    """

    kind: Literal["aar", "tar", "cmake", "swift"] = "tar"
    min_sdk: int = 24


@dataclass(frozen=True, kw_only=True)
class TargetProfile:
    """One ``targets/<name>.toml``. ``steps`` is the default recipe, ``sources`` say where its facts come from."""

    name: str
    summary: str
    machine: MachineProfile
    runtime: RuntimeProfile
    budget: Budget = field(default_factory=Budget)
    package: PackageProfile = field(default_factory=PackageProfile)
    steps: tuple[Mapping[str, Any], ...] = ()
    sources: tuple[str, ...] = ()


def list_targets() -> tuple[TargetProfile, ...]:
    """All profiles that edgeslim brings, by name."""
    return tuple(load_target(path.stem) for path in sorted(profile_folder().glob("*.toml")))


def load_target(name: str) -> TargetProfile:
    """Loads a profile by name, or from a path that ends in ``.toml``.

    Raises:
        UsageError: there is no such profile.
        BadInputError: the file is malformed.
    """
    path = target_file(name)
    return parse_fields(TargetProfile, _read(path, depth=0), str(path) if name.endswith(".toml") else f"target {name}")


def profile_folder() -> Path:
    """The folder of the built-in profiles: inside an installed package, or beside it in a source checkout."""
    inside = Path(__file__).parent / "targets"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "targets"


def target_file(name: str) -> Path:
    """The file of a profile.

    Raises:
        UsageError: there is no such profile.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise UsageError("--target", f"no file {name}", expected="the path of a target profile")
        return path
    known = [path.stem for path in sorted(profile_folder().glob("*.toml"))]
    if name not in known:
        raise UsageError(
            "--target",
            f'no target "{name}"',
            expected="one of " + ", ".join(known) + ", or the path of a .toml file",
            hint=near_miss(name, known) or "`edgeslim targets` lists them",
        )
    return profile_folder() / f"{name}.toml"


def target_files(name: str) -> tuple[Path, ...]:
    """The files of a profile and of those that it extends.

    Raises:
        UsageError: there is no such profile.
        BadInputError: a file is malformed.
    """
    found = [target_file(name)]
    while len(found) <= MAX_EXTENDS and isinstance(parent := read_toml(found[-1]).get("extends"), str):
        found.append(_parent_file(found[-1], parent))
    return tuple(found)


def _read(path: Path, depth: int) -> dict[str, Any]:
    table = read_toml(path)
    parent = table.pop("extends", None)
    if parent is None:
        return table
    if not isinstance(parent, str) or depth >= MAX_EXTENDS:
        raise BadInputError(
            str(path), f"extends = {parent!r}", expected=f"a profile's name, at most {MAX_EXTENDS} deep"
        )
    return _lay_over(_read(_parent_file(path, parent), depth + 1), table)


def _parent_file(path: Path, parent: str) -> Path:
    """The file that the profile at ``path`` extends: one beside it, or a built-in one."""
    local = path.parent / parent
    if parent.endswith(".toml") and local.is_file():
        return local
    try:
        return target_file(parent)
    except UsageError as error:  # of the file, not of the command line
        raise BadInputError(
            str(path), f'extends = "{parent}": {error.got}', expected=error.expected, hint=error.hint
        ) from error


def _lay_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _lay_over(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged
