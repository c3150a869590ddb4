"""Peak memory of compressing a decoder layer by layer from safetensors, for two depths.

The checkpoint has the shape of a Llama of 1.1 billion parameters (22 layers of 2,048 channels, 4.4 GB in float32) and
random weights: only memory and time are measured. The same with 11 layers tells how the peak grows with depth. Each
conversion is a process of its own; its peak is the kernel's high-water mark of resident pages, interpreter and
libraries included. ``nearest`` rounds without data; the others calibrate on windows of random tokens, whose hidden
states go through the layers (``stream_decoder``).

    python benchmarks/llm_memory.py [--methods nearest,gptq,...] [--layers 11,22] [--json FILE] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
}

METHODS: dict[str, dict[str, Any]] = {
    "nearest": {},
    "gptq": {"algorithm": "gptq", "refine": False},
    "sparsegpt": {"bits": 32, "sparsity": 0.5},
    "svd": {"bits": 32, "keep": 0.5},
}
WINDOWS, LENGTH = 8, 128


def write_checkpoint(folder: Path, layers: int) -> None:
    """Random weights in safetensors, a file a layer."""
    from safetensors.numpy import save_file

    from edgeslim.decoders.shape import shape_from_config

    folder.mkdir(parents=True)
    config = {**SETTINGS, "num_hidden_layers": layers}
    shards: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for name, shape in shape_from_config(config, "config").tensor_shapes().items():
        shards.setdefault(name.split(".")[2] if "layers" in name else name, []).append((name, shape))
    generator = np.random.default_rng(0)
    for number, tensors in enumerate(shards.values()):
        arrays = {name: generator.standard_normal(shape, np.float32) * np.float32(0.02) for name, shape in tensors}
        save_file(arrays, folder / f"model-{number:05d}.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def make_encode(method: str, reader: Any) -> Any:
    """What the writer of the graph takes its matrices from."""
    from edgeslim.core import Batch
    from edgeslim.decoders.decoder_graph import as_floats
    from edgeslim.decoders.layer_stream import StreamedEncode
    from edgeslim.decoders.rounded import RoundBlocks
    from edgeslim.stages.stream_decoder import LayerCompressor, StreamDecoder

    if method == "nearest":
        return RoundBlocks(search=False)
    options = StreamDecoder(**METHODS[method])
    tokens = np.random.default_rng(0).integers(0, reader.shape.vocabulary, (WINDOWS, 1, LENGTH))
    return StreamedEncode(
        reader,
        [Batch(feed={"input_ids": row}, rows=1) for row in tokens],
        LayerCompressor(options=options),
        table=as_floats if options.bits == 32 else RoundBlocks(search=False),
    )


def convert(method: str, checkpoint: Path, out: Path) -> None:
    """Writes the graph and prints time and peak memory, as JSON."""
    from edgeslim.decoders.checkpoint import SafetensorsCheckpoint
    from edgeslim.decoders.decoder_graph import write_decoder
    from edgeslim.decoders.shape import shape_from_config

    config = json.loads((checkpoint / "config.json").read_text())
    started = time.perf_counter()
    reader = SafetensorsCheckpoint(checkpoint, shape_from_config(config, "config"))
    write_decoder(reader, out, encode=make_encode(method, reader))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    written = sum(path.stat().st_size for path in out.iterdir())
    print(json.dumps({"seconds": time.perf_counter() - started, "peak_bytes": peak, "written_bytes": written}))


def measure(method: str, checkpoint: Path, out: Path) -> dict[str, Any]:
    """A conversion in a process of its own."""
    command = [sys.executable, __file__, "--convert", method, str(checkpoint), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    shutil.rmtree(out)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Prints a line a method and depth, and the growth between the first depth and the last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="nearest,gptq,sparsegpt")
    parser.add_argument("--layers", default="11,22")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="where the checkpoint goes; 4.4 GB")
    parser.add_argument("--convert", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.convert:
        method, checkpoint, out = arguments.convert
        convert(method, Path(checkpoint), Path(out))
        return
    methods = arguments.methods.split(",")
    rows: list[dict[str, Any]] = []
    for layers in map(int, arguments.layers.split(",")):
        with tempfile.TemporaryDirectory(dir=arguments.keep) as name:
            checkpoint = Path(name) / "checkpoint"
            write_checkpoint(checkpoint, layers)
            size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
            for method in methods:
                row = measure(method, checkpoint, Path(name) / "out")
                rows.append({"method": method, "layers": layers, "checkpoint_bytes": size, **row})
                print(
                    f"{method}, {layers} layers: {size / 1e9:.2f} GB read, {row['written_bytes'] / 1e9:.2f} written, "
                    f"{row['seconds']:.0f} s, peak {row['peak_bytes'] / 1e9:.2f} GB",
                    flush=True,
                )
    for method in methods:
        peaks = [row["peak_bytes"] for row in rows if row["method"] == method]
        print(f"growth of the peak, {method}: {peaks[-1] / peaks[0] - 1:.1%}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
