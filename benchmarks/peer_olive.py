"""Olive's passes, run with ``requirements-olive.txt``: FLOAT.onnx SAMPLES.npz OUT.onnx METHOD.

``METHOD`` is ``static`` (OnnxStaticQuantization, a scale a channel) or ``int4`` (OnnxBlockWiseRtnQuantization: weights
and embeddings in blocks of 32 by nearest rounding).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OLIVE_DISABLE_TELEMETRY"] = os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from olive.data.config import DataComponentConfig, DataConfig
from olive.data.registry import Registry
from olive.hardware import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.passes.olive_pass import create_pass_from_dict
from olive.passes.onnx.quantization import OnnxStaticQuantization
from olive.passes.onnx.rtn_quantization import OnnxBlockWiseRtnQuantization
from peer_samples import read_samples

SAMPLES = Path(sys.argv[2])


class _Samples:
    """What Olive calibrates with: pairs of a feed and a label that nobody reads."""

    def __init__(self) -> None:
        self.feeds = read_samples(SAMPLES)

    def __len__(self) -> int:
        return len(self.feeds)

    def __iter__(self) -> Iterator[tuple[dict[str, Any], None]]:
        return ((feed, None) for feed in self.feeds)


@Registry.register_dataset("benchmark_samples")
def _dataset(**_: object) -> _Samples:
    return _Samples()


@Registry.register_dataloader("benchmark_samples")
def _dataloader(dataset: _Samples, **_: object) -> _Samples:
    return dataset


def main() -> int:
    """Quantizes."""
    graph, _, out, method = sys.argv[1:]
    plain = DataComponentConfig(type="skip_pre_process"), DataComponentConfig(type="skip_post_process")
    data = DataConfig(
        name="samples",
        load_dataset_config=DataComponentConfig(type="benchmark_samples"),
        pre_process_data_config=plain[0],
        post_process_data_config=plain[1],
        dataloader_config=DataComponentConfig(type="benchmark_samples"),
    )
    passes: dict[str, tuple[Any, dict[str, Any]]] = {
        "static": (OnnxStaticQuantization, {"data_config": data, "per_channel": True}),
        "int4": (OnnxBlockWiseRtnQuantization, {"block_size": 32, "accuracy_level": 4}),
    }
    kind, settings = passes[method]
    chosen = create_pass_from_dict(kind, settings, disable_search=True, accelerator_spec=AcceleratorSpec("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        made = chosen.run(ONNXModelHandler(graph), str(Path(folder) / "made"))
        import onnx

        onnx.save(onnx.load(made.model_path), out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
