"""A decoder run one layer at a time, so that no more than a layer's weights are in memory.

All windows of text are at the same layer: their hidden states are kept, [windows, length, hidden] floats, and a layer
is read from the checkpoint when they get there. Its arithmetic is transformers' own ``LlamaDecoderLayer``.

``StreamedEncode`` compresses on the way, as GPTQ (Frantar et al. 2022, arXiv 2210.17323) and SparseGPT (2023, arXiv
2301.00774) do: with the hidden states as the layers before have become, it takes the second moments of what each matrix
of the layer reads, hands matrix and moments to ``compress``, and goes on through the layer as it came out. It is an
``Encode``: the writer of the graph (``edgeslim.decoders.decoder_graph``) asks for matrices layer by layer, and that
drives it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeslim.core import Batch
from edgeslim.decoders.checkpoint import Checkpoint
from edgeslim.decoders.decoder_graph import Encode, Encoded
from edgeslim.decoders.torch_decoder import make_config
from edgeslim.errors import BadInputError

__all__ = ["Compress", "LayerStream", "StreamedEncode", "as_dense", "streamed_logits"]

Matrix = npt.NDArray[np.float32]
Moment = npt.NDArray[np.float64]


class Compress(Protocol):
    """What becomes of a matrix [out, in], given Σ x xᵀ [in, in] of its inputs."""

    def __call__(self, path: str, weight: Matrix, moment: Moment) -> Encoded:
        """The matrix in another form."""
        ...


class LayerStream:
    """Windows of tokens on their way through a decoder; ``hidden`` are the states in front of the next layer."""

    def __init__(self, checkpoint: Checkpoint, batches: Sequence[Batch]) -> None:
        """Looks the tokens up.

        Raises:
            BadInputError: there are no windows, or the checkpoint can't be used.
        """
        import torch
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        if not batches:
            raise BadInputError("calibration", "no samples", expected="at least one sample", hint="--data FILE")
        self.checkpoint, self.shape = checkpoint, checkpoint.shape
        table = checkpoint.read("model.embed_tokens.weight")
        self.hidden: list[Any] = [torch.from_numpy(table[batch.feed["input_ids"]]) for batch in batches]
        del table
        self._rotary = LlamaRotaryEmbedding(make_config(self.shape, self.shape.layer(0)))

    def read_layer(self, index: int) -> Any:
        """Layer ``index`` with its weights, in eval mode; a matrix that is factorized is two linear layers."""
        import torch
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer

        from edgeslim.training.torch_model import factor_linear  # not above: it imports torch

        prefix = f"model.layers.{index}"
        names = [name for name in self.shape.tensor_shapes() if name.startswith(f"{prefix}.")]
        tensors = {name.removeprefix(f"{prefix}."): self.checkpoint.read(name) for name in names}
        with torch.device("meta"):
            layer = LlamaDecoderLayer(make_config(self.shape, self.shape.layer(index)), 0)
            for path, rank in self.shape.ranks.items():
                if path.startswith(f"{prefix}."):
                    factor_linear(layer, path.removeprefix(f"{prefix}."), rank)
        layer.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()}, assign=True)
        return layer.eval()

    def run(self, layer: Any) -> list[Any]:
        """What ``layer`` makes of the hidden states."""
        import torch

        made = []
        with torch.no_grad():
            for state in self.hidden:
                length = state.shape[1]
                places = torch.arange(length)[None]
                mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
                result = layer(
                    state,
                    attention_mask=mask,
                    position_ids=places,
                    position_embeddings=self._rotary(state, places),
                    use_cache=False,
                )
                made.append(result if isinstance(result, torch.Tensor) else result[0])
        return made


class StreamedEncode:
    """Compresses the matrices of the layers, in order; ``table`` encodes what is outside of them."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        batches: Sequence[Batch],
        compress: Compress,
        *,
        table: Encode,
    ) -> None:
        self._stream = LayerStream(checkpoint, batches)
        self._compress, self._table = compress, table
        self._next = 0
        self._made: dict[str, Encoded] = {}

    def __call__(self, checkpoint: Checkpoint, name: str) -> Encoded:
        """The tensor ``name``; the first one of a layer compresses all of that layer's matrices.

        Raises:
            ValueError: a layer is asked for out of order.
        """
        path = name.removesuffix(".weight")
        if not path.startswith("model.layers."):
            return self._table(checkpoint, name)
        if path not in self._made:
            self._advance(int(path.split(".")[2]))
        return self._made.pop(path)

    def _advance(self, index: int) -> None:
        import torch

        if index != self._next or self._made:
            raise ValueError(f"layer {index}, expected layer {self._next}")
        layer = self._stream.read_layer(index)
        linears = {path: one for path, one in layer.named_modules() if isinstance(one, torch.nn.Linear)}
        moments = _measure_moments(self._stream, layer, linears)
        for path, linear in linears.items():
            weight = linear.weight.detach().numpy()
            made = self._compress(f"model.layers.{index}.{path}", weight, moments[path])
            linear.weight = torch.nn.Parameter(torch.from_numpy(as_dense(made)), requires_grad=False)
            self._made[f"model.layers.{index}.{path}"] = made
        del moments
        self._stream.hidden = self._stream.run(layer)
        self._next += 1


def _measure_moments(stream: LayerStream, layer: Any, linears: dict[str, Any]) -> dict[str, Moment]:
    """Σ x xᵀ of each matrix's inputs; those that read the same tensor share it."""
    found: dict[str, Moment] = {}
    first: dict[str, str] = {}
    seen: list[tuple[Any, str]] = []

    def listen(path: str) -> Callable[..., None]:
        def hook(_: Any, inputs: tuple[Any, ...]) -> None:
            known = next((other for tensor, other in seen if tensor is inputs[0]), None)
            first[path] = known or path
            if known is None:
                seen.append((inputs[0], path))
                rows = inputs[0].reshape(-1, inputs[0].shape[-1])
                found[path] = found.get(path, 0) + (rows.T @ rows).double().numpy()

        return hook

    handles = [one.register_forward_pre_hook(listen(path)) for path, one in linears.items()]
    handles.append(layer.register_forward_pre_hook(lambda *_: seen.clear()))
    stream.run(layer)
    for handle in handles:
        handle.remove()
    for path, moment in found.items():
        if not np.isfinite(moment).all():
            raise BadInputError(f"calibration: {path}", "a NaN or infinite value", expected="finite activations")
    return {path: found[first[path]] for path in linears}


def as_dense(made: Encoded) -> Matrix:
    """The matrix [out, in] that an encoded one stands for."""
    if isinstance(made, tuple):
        first, second = (as_dense(part) for part in made)
        return second @ first
    return made if isinstance(made, np.ndarray) else made.dequantize()


def streamed_logits(checkpoint: Checkpoint, batches: Sequence[Batch]) -> list[Matrix]:
    """The float model's logits [1, length, vocabulary] of each window, by transformers' layers one at a time."""
    import torch
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    stream = LayerStream(checkpoint, batches)
    for index in range(checkpoint.shape.layers):
        stream.hidden = stream.run(stream.read_layer(index))
    norm = LlamaRMSNorm(checkpoint.shape.hidden, checkpoint.shape.epsilon)
    norm.weight = torch.nn.Parameter(torch.from_numpy(checkpoint.read("model.norm.weight")))
    output = torch.from_numpy(
        checkpoint.read("model.embed_tokens.weight" if checkpoint.shape.tied else "lm_head.weight")
    )
    with torch.no_grad():
        return [(norm(state) @ output.T).numpy() for state in stream.hidden]
