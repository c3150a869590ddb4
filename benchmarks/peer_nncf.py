"""NNCF's post-training quantization, run with ``requirements-nncf.txt``: FLOAT.onnx SAMPLES.npz OUT.onnx KIND.

``KIND`` is ``transformer`` (NNCF's preset for such models) or ``plain``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nncf
import onnx
from peer_samples import read_samples


def main() -> int:
    """Quantizes."""
    graph, samples, out, kind = sys.argv[1:]
    feeds = read_samples(Path(samples))
    quantized = nncf.quantize(
        onnx.load(graph),
        nncf.Dataset(feeds, lambda feed: feed),
        subset_size=len(feeds),
        model_type=nncf.ModelType.TRANSFORMER if kind == "transformer" else None,
        preset=nncf.QuantizationPreset.MIXED,
    )
    onnx.save(quantized, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
