"""Writes a first ``edgeslim.toml``: every key with what it does, and for what a look at the model tells, its value.

Looking reads small files alone: ``config.json``, the header of safetensors, the graph of an ONNX file. Own code isn't
run. What can't be known stands there as a comment that needs one edit. The text is read back with the parser of
project files before it is written, so what ``init`` writes is what ``build`` reads.
"""

from __future__ import annotations

import json
import math
import re
import struct
import tomllib
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgeslim.errors import BadInputError
from edgeslim.fields import parse_fields
from edgeslim.graphs import graph
from edgeslim.project import PROJECT_FILE, ProjectFile
from edgeslim.replacing import replaced_when_whole
from edgeslim.source import Source, resolve_source
from edgeslim.target import TargetProfile, list_targets, load_target
from edgeslim.task import resolve_task

__all__ = ["Scaffold", "check_free", "find_model", "make_scaffold", "write_scaffold"]

SUGGESTED_TARGET = "android-arm64"
MAX_HEADER_BYTES = 64 << 20
MAX_LENGTH = 128
INT8_SHARE = 0.27
"""Of a float32 model, in bytes: int8 weights, scales, and what stays float."""
_MANY = 8
_NAMELESS = ("model", "models", "checkpoint", "final", "best", "output", "onnx")


@dataclass(frozen=True, kw_only=True)
class Scaffold:
    """The text of a project file; ``summary`` is one line on it, ``notes`` say what is left to do."""

    text: str
    summary: str
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What a look at the model told. ``inputs`` are known of ONNX files alone."""

    source: Source
    task: str | None
    weights_bytes: int | None
    inputs: tuple[str, ...] = ()
    positions: int | None = None
    arrays: str | None = None


def make_scaffold(model: str | None, target: str | None, folder: Path) -> Scaffold:
    """Looks at ``model``, or without one at what lies in ``folder``, where relative paths start.

    Raises:
        UsageError: there is no such target.
        BadInputError: there is no model, there are several, or it can't be used.
    """
    profile = load_target(target or SUGGESTED_TARGET)
    look = _look_at(find_model(folder) if model is None else model, folder)
    text = _render(look, profile, target or SUGGESTED_TARGET)
    parse_fields(ProjectFile, tomllib.loads(text), PROJECT_FILE)
    source = look.source
    notes = []
    if look.arrays:
        notes.append(f"{look.arrays} has an array for each input: it calibrates and evaluates")
    elif look.task == "image-classification":
        notes.append("a build needs data: name a folder of pictures under [data]")
    elif source.kind == "onnx" and source.tokenizer is None:
        notes.append(
            "a build needs data: name an .npz under [data], one array a model input: " + ", ".join(look.inputs)
        )
    elif source.kind == "module":
        notes.append("without data a build calibrates on the example inputs: name your own under [data]")
    else:
        notes.append("without data a build calibrates on English that Python brings: name your own under [data]")
    return Scaffold(
        text=text,
        summary=f"{_name(source)} ({source.kind}), {look.task or 'feature-extraction'}, for {profile.name}",
        notes=tuple(notes),
    )


def write_scaffold(scaffold: Scaffold, path: Path, *, force: bool) -> None:
    """Writes the project file whole or not at all; one that lies there stays unless ``force``.

    Raises:
        BadInputError: there is one already, or nothing can be written there.
    """
    check_free(path, force=force)
    try:
        with replaced_when_whole(path) as temporary:
            temporary.write_text(scaffold.text, encoding="utf-8")
            check_free(path, force=force)  # looking took a while
    except OSError as error:
        raise BadInputError(
            str(path), f"can't be written: {error.strerror or error}", expected="a folder that can be written"
        ) from error


def check_free(path: Path, *, force: bool) -> None:
    """Refuses a place that is taken.

    Raises:
        BadInputError: something lies at ``path``, and with ``force`` something other than a file.
    """
    if path.is_dir():
        raise BadInputError(str(path), "a folder", expected="a place for the project file")
    if not force and (path.exists() or path.is_symlink()):
        raise BadInputError(str(path), "it exists", expected="a folder without one", hint="--force replaces it")


def find_model(folder: Path) -> str:
    """The one model in ``folder``: the folder itself, an ``.onnx`` file, or a model's folder right below.

    Raises:
        BadInputError: there is none, or there are several.
    """
    if (folder / "config.json").is_file():
        return "."
    found = sorted(path.name for path in folder.glob("*.onnx") if path.is_file())
    found += sorted(path.parent.name for path in folder.glob("*/config.json") if any(path.parent.glob("*.safetensors")))
    if len(found) == 1:
        return found[0]
    more = f" and {len(found) - _MANY} more" if len(found) > _MANY else ""
    raise BadInputError(
        "init",
        f"{len(found)} models in {folder.absolute()}: " + ", ".join(found[:_MANY]) + more
        if found
        else f"no model in {folder.absolute()}",
        expected="one .onnx file, or one Hugging Face folder (config.json, model.safetensors)",
        hint=f"edgeslim init {found[0]}" if found else "edgeslim init MODEL looks at one that lies elsewhere",
    )


def _look_at(model: str, folder: Path) -> _Look:
    source = resolve_source(model, base=folder)
    if source.kind == "module":
        return _Look(source=source, task=None, weights_bytes=None)
    task = resolve_task(None, config=source.config).name
    assert source.path is not None
    if source.kind == "onnx":
        loaded = graph.load_graph(source.path)
        inputs = tuple(str(value.name) for value in loaded.graph.inputs)
        weights = sum(
            value.const_value.nbytes for value in loaded.graph.initializers.values() if value.const_value is not None
        )
        arrays = None if source.tokenizer else _matching_arrays(folder, inputs)
        return _Look(source=source, task=task, weights_bytes=weights, inputs=inputs, arrays=arrays)
    positions = source.config.get("max_position_embeddings")
    return _Look(
        source=source,
        task=task,
        weights_bytes=_float_bytes(source.path),
        positions=positions if type(positions) is int and positions > 0 else None,
    )


def _float_bytes(folder: Path) -> int | None:
    """What the weights of all safetensors take as float32, by their headers; ``None`` where these can't be read."""
    values = 0
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                if length > MAX_HEADER_BYTES:
                    return None
                header = json.loads(stream.read(length))
            values += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        return 4 * values if isinstance(values, int) and values > 0 else None
    return None


def _matching_arrays(folder: Path, inputs: Sequence[str]) -> str | None:
    """The one ``.npz`` in ``folder`` that has an array for each input, and nothing but labels besides."""
    found = []
    for path in sorted(folder.glob("*.npz")):
        with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            if names - {"label"} == set(inputs):
                found.append(path.name)
    return found[0] if len(found) == 1 else None


def _render(look: _Look, profile: TargetProfile, target: str) -> str:
    source, budget, name = look.source, profile.budget, _name(look.source)
    targets = "".join(f"#   {item.name}: {item.summary}\n" for item in list_targets())
    length = min(MAX_LENGTH, look.positions or MAX_LENGTH)
    guess = None if look.weights_bytes is None else _round_up(look.weights_bytes * INT8_SHARE + 500_000)
    sizes = "" if guess is None else f"; about {_mb(look.weights_bytes or 0)} as float32"
    drop = 0.01 if budget.max_drop is None else budget.max_drop
    licence = f"; its licence: {source.licence}" if source.licence else ""
    task = look.task or "feature-extraction"
    about_task = "from its config" if look.task else "a guess, since own code isn't run"
    data = "samples.npz" if look.source.tokenizer is None and "input_ids" not in look.inputs else "texts.txt"
    data = "pictures" if task == "image-classification" else data
    steps = ", ".join(str(step.get("use")) for step in profile.steps) or "none"
    return f"""\
# What `edgeslim build` reads in this folder. Paths are relative to this file; options on the command line go first.
# Lines that begin with "# key = value" are settings that are off: take the "# " away and put in your own.

# The model: a Hugging Face folder or id, an .onnx file, pkg://package/path, or module:callable{licence}
model = {_quote(source.spec)}
# The package's name: lower-case letters, digits and dashes
name = {_quote(name)}
# What the model is for, and so how its quality is measured ({about_task}):
# feature-extraction, text-classification, image-classification, or module:function for a metric of your own
{"" if look.task else "# "}task = {_quote(task)}
# The device: a name, or the path of a profile of your own (.toml)
{targets}target = {_quote(target)}
# The folder of the tokenizer, where it doesn't lie beside the model
# tokenizer = "path/to/tokenizer"
# A file with the steps, instead of [[steps]] below or the target's own
# recipe = "recipe.toml"
# Where the package goes
# out = {_quote(f"out/{profile.name}")}
# Decides how data is split, and whatever else is drawn
# seed = 0
# The classes in the order of the logits, where the model's config doesn't name them
# labels = ["no", "yes"]

[data]
# Samples: .txt (a line each), .csv, .jsonl or .parquet with a text column, .npz with an array a model input, or a
# folder of pictures, a folder a class.
# One file is split in two: some calibrate, the rest evaluates ...
{"" if look.arrays else "# "}file = {_quote(look.arrays or data)}
# ... or name two files that share no sample
# calibration = "calibration.txt"
# evaluation = "evaluation.txt"
# The columns, where they have no usual names (text, sentence, label, ...); labels make accuracy a figure
# text_column = "text"
# label_column = "label"
# Texts are cut at so many tokens{f"; the model takes {look.positions}" if look.positions else ""}
{"# " if length == MAX_LENGTH else ""}max_length = {length}
# ... and, if you like, shorter ones padded to as many
# pad = true
# For causal-lm: running text is read in windows of max_length tokens, which begin so many tokens apart (default: half)
# stride = {max(1, length // 2)}
# How many samples of a split file calibrate
# calibration_samples = 128
# What steps such as distill and finetune train on: a file that shares no sample with the evaluation data. So much of it
# isn't trained on, and decides when to stop
# training = {_quote({"samples.npz": "training.npz", "pictures": "training"}.get(data, "training.jsonl"))}
# validation_share = 0.1

[preprocessing]
# For pictures: what an app does to one before it gives it to the model. What isn't said here is taken from the model's
# preprocessor_config.json, then from the shape of its input.
# Height and width
# size = [224, 224]
# "stretch" to that size, "crop" the middle after resizing, or "none": pictures of another size are refused
# mode = "stretch"
# With mode = "crop": what the shorter edge becomes before the middle is cut out
# shortest_edge = 256
# Between pixels: nearest, lanczos, bilinear, bicubic, box, hamming
# resample = "bilinear"
# "rgb" or "gray"
# channels = "rgb"
# The input is (pixel * scale - mean) / std, with a mean and a std for each channel, or one for all
# scale = 0.00392156862745098
# mean = [0.485, 0.456, 0.406]
# std = [0.229, 0.224, 0.225]
# "nchw" (channels first) or "nhwc"
# layout = "nchw"
# "float32", or "uint8" for plain pixels
# dtype = "float32"

[export]
# For runtimes that take no free dimensions: every size of the graph becomes a constant, that of the samples ...
# fixed_shapes = true
# ... or, for texts, this many tokens: shorter ones are padded
# fixed_length = {length}

[budget]
# A build that misses one of these writes no package.
# Loss of quality: 1 - mean cosine with the float model, or accuracy lost
max_drop = {drop:g}
# The package{sizes}, and int8 makes a quarter of it
# max_size = {_quote(_mb(guess) if guess else "20MB")}
# The 50th percentile on the device: unjudged, with a warning, until one was measured
# max_latency = "40ms"
# Latency over that of the float model, both on the building host
# max_latency_ratio = 0.8
# Instructions of one run on an emulated machine: unjudged without --device qemu
# max_instructions = 220_000_000
# Memory that opening the model and running it once adds, on the building host
# max_peak_memory = {_quote(_mb(2 * guess) if guess else "100MB")}

[android]
# Under which name Gradle finds the library (only an .aar has one)
# group = "io.edgeslim.models"
# artifact = {_quote(name)}
# version = "1.0.0"

# The steps, one table each, in order; without any, the target's own run: {steps}
# [[steps]]
# use = "quantize_int8"
# method = "mse"
"""


def _name(source: Source) -> str:
    """The model's name; where its folder has a name that says nothing, that of the package or folder around it."""
    if source.name not in _NAMELESS or source.path is None:
        return source.name
    around = source.spec.removeprefix("pkg://").partition("/")[0] if source.spec.startswith("pkg://") else ""
    name = around or (source.path.parent if source.kind == "onnx" else source.path).resolve().parent.name
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or source.name


def _quote(text: str) -> str:
    """A basic string of TOML, which is JSON's but for one character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def _round_up(value: float) -> int:
    """To two figures."""
    unit: int = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit) * unit


def _mb(value: float) -> str:
    return f"{value / 1e6:.4g}MB"
