"""What a build of a language model starts from: its checkpoint, windows of running text, and the export compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeslim.core import Batch, TrainingData
from edgeslim.datasets.builtin import builtin_text
from edgeslim.datasets.encoding import load_tokenizer
from edgeslim.datasets.running_text import cut_windows, encode_text, read_running_text, refuse_shared_text
from edgeslim.datasets.samples import BUILTIN_EVALUATION, DataOptions, Samples
from edgeslim.decoders.chat_format import split_template
from edgeslim.decoders.checkpoint import Checkpoint, SafetensorsCheckpoint
from edgeslim.decoders.decoder_graph import past_names, write_decoder
from edgeslim.decoders.gguf import GgufCheckpoint
from edgeslim.decoders.layer_stream import streamed_logits
from edgeslim.decoders.shape import DecoderShape, shape_from_config
from edgeslim.decoders.torch_decoder import ModuleCheckpoint
from edgeslim.errors import BadInputError, CheckError
from edgeslim.export import TOLERANCE, Export
from edgeslim.language_task import CausalLM
from edgeslim.session import max_difference, open_runner
from edgeslim.source import Source

__all__ = [
    "complete_task",
    "empty_inputs",
    "export_decoder",
    "load_training_windows",
    "load_windows",
    "open_checkpoint",
]


def open_checkpoint(source: Source) -> Checkpoint:
    """The tensors of a Hugging Face folder or GGUF file.

    Raises:
        BadInputError: it isn't a Llama-shaped decoder, or own code.
    """
    if source.path is None or source.kind not in ("huggingface", "gguf"):
        raise BadInputError(
            source.spec,
            f"a source of the kind {source.kind}",
            expected="a Hugging Face folder or id, or a GGUF file, of a Llama-shaped decoder",
        )
    if source.kind == "gguf":
        return GgufCheckpoint(source.path)
    return SafetensorsCheckpoint(source.path, shape_from_config(source.config, f"{source.path}/config.json"))


def complete_task(task: CausalLM, source: Source, options: DataOptions) -> CausalLM:
    """``task`` with what the source says: the tokens that end an answer, the context, the chat template in pieces.

    Raises:
        BadInputError: there is no tokenizer, or its template is unusual.
    """
    if source.tokenizer is None:
        raise BadInputError(
            source.spec,
            "no tokenizer",
            expected="tokenizer.json beside the model",
            hint="name its folder with the key `tokenizer`",
        )
    tokenizer = load_tokenizer(source.tokenizer)
    ends = source.config.get("eos_token_id")
    listed = ends if isinstance(ends, list) else [ends]
    found = {item for item in (*listed, tokenizer.eos_token_id) if type(item) is int}
    context = source.config.get("max_position_embeddings")
    return replace(
        task,
        stride=options.window_stride(),
        end_tokens=tuple(sorted(found)),
        context_tokens=context if type(context) is int and context > 0 else None,
        chat=split_template(tokenizer),
    )


def empty_inputs(shape: DecoderShape) -> dict[str, Any]:
    """A KV cache that holds nothing, by the names of a graph's inputs."""
    names = past_names(shape.layers)
    return {
        name: np.zeros((1, shape.layer(index // 2).kv_heads, 0, shape.head_width), np.float32)
        for index, name in enumerate(names)
    }


def load_windows(options: DataOptions, base: Path, tokenizer: Path, empty: Mapping[str, Any], *, seed: int) -> Samples:
    """Windows that calibrate, which don't overlap, and windows that evaluate, which slide.

    Of one file the beginning calibrates. Without a file the text is Python's own manual.

    Raises:
        BadInputError: a file can't be read, or is too short.
    """
    loaded = load_tokenizer(tokenizer)
    length, stride = options.max_length, options.window_stride()

    def windows(text: str, step: int) -> tuple[Batch, ...]:
        return cut_windows(encode_text(text, loaded), length=length, stride=step, empty=empty)

    if options.calibration is not None and options.evaluation is not None:
        calibration, evaluation = (read_running_text(base / name) for name in (options.calibration, options.evaluation))
        return Samples(
            calibration=windows(calibration, length)[: options.calibration_samples],
            evaluation=windows(evaluation, stride),
        )
    notes: tuple[str, ...] = ()
    if options.file is None:
        pieces = builtin_text(options.calibration_samples + BUILTIN_EVALUATION, seed)
        text = "\n".join(piece.text for piece in pieces)
        notes = ("no data given: calibrated and evaluated on English from Python's own manual (--data FILE)",)
    else:
        text = read_running_text(base / options.file)
    tokens = encode_text(text, loaded)
    cut = min(options.calibration_samples * length, len(tokens) // 2)
    if cut < 2:
        raise BadInputError("data", f"{len(tokens)} tokens", expected="a text that can be split in two")
    return Samples(
        calibration=cut_windows(tokens[:cut], length=length, stride=length, empty=empty),
        evaluation=cut_windows(tokens[cut:], length=length, stride=stride, empty=empty),
        notes=notes,
    )


def load_training_windows(options: DataOptions, base: Path, tokenizer: Path, *, seed: int) -> TrainingData | None:
    """Windows of ``options.training`` to train on, some of them for validation; ``None`` if it names no file.

    They don't overlap, and all are as long as each other.

    Raises:
        BadInputError: the file can't be read, is too short, or shares text with the evaluation data.
    """
    if options.training is None:
        return None
    path = base / options.training
    text = read_running_text(path)
    judged = options.evaluation or options.file
    if judged is not None:
        refuse_shared_text(path, text, read_running_text(base / judged))
    tokens = encode_text(text, load_tokenizer(tokenizer))
    length = options.max_length
    if len(tokens) < 2 * length:
        raise BadInputError(
            str(path),
            f"{len(tokens)} tokens",
            expected=f"at least two windows of {length}",
            hint="a longer text, or a smaller max_length in [data]",
        )
    windows = cut_windows(tokens[: len(tokens) // length * length], length=length, stride=length)
    order = np.random.default_rng(seed).permutation(len(windows))
    held = min(len(windows) - 1, max(1, round(options.validation_share * len(windows))))
    return TrainingData(
        training=tuple(windows[row] for row in sorted(order[held:])),
        validation=tuple(windows[row] for row in sorted(order[:held])),
        running=True,
    )


def export_decoder(checkpoint: Checkpoint, samples: Sequence[Batch], folder: Path) -> Export:
    """Writes the float graph, and compares its logits with those of transformers' model of the same weights.

    Raises:
        BadInputError: the checkpoint can't be used.
        CheckError: the logits differ by more than 1e-3, and their directions by more than 1e-6.
    """
    wanted = _source_logits(checkpoint, samples)
    path = write_decoder(checkpoint, folder)
    runner = open_runner(path)
    largest, smallest = 0.0, 1.0
    for sample, logits in zip(samples, wanted, strict=True):
        difference, cosine = max_difference({"logits": logits}, {"logits": runner(sample.feed)["logits"]})
        largest, smallest = max(largest, difference), min(smallest, cosine)
    if not largest <= TOLERANCE and not smallest >= 1 - 1e-6:
        raise CheckError(
            "export",
            f"logits differ from the source model's by up to {largest:.3g} (cosine {smallest:.6f})",
            expected=f"at most {TOLERANCE:g}",
        )
    metrics = {"export_max_abs_diff": largest, "export_cosine_min": smallest, "export_samples": float(len(samples))}
    return Export(path=path, engine="decoder", metrics=metrics)


def _source_logits(checkpoint: Checkpoint, samples: Sequence[Batch]) -> list[Any]:
    """Those of transformers' model: of the module where it is in memory anyway, or layer by layer."""
    import torch

    if not isinstance(checkpoint, ModuleCheckpoint):
        return list(streamed_logits(checkpoint, samples))
    with torch.no_grad():
        return [checkpoint.module(torch.from_numpy(sample.feed["input_ids"])).logits.numpy() for sample in samples]
