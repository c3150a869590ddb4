"""Other quantizers on a subject: each makes an ONNX file in a folder of its own from the same export and samples.

ONNX Runtime's and optimum's run here; NNCF and Olive in environments of their own, for what they need doesn't go
together with what edgeslim needs. Settings are each tool's best for such a model as far as its documentation tells,
not its defaults, where those are known to fail.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import onnx
from peer_samples import write_samples
from subjects import Subject

from edgeslim.core import Batch

HERE = Path(__file__).parent
BLOCK = 32
SETTINGS = 1
"""Raised whenever a peer is run otherwise: models that were made before are made again."""


def quantize_dynamic(model: Path, out: Path) -> Path:
    """ONNX Runtime's dynamic int8, a scale a channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(model, out, per_channel=True, weight_type=QuantType.QInt8)
    return out


def quantize_static(
    model: Path, out: Path, calibration: Sequence[Batch], *, per_channel: bool = True, **options: Any
) -> Path:
    """ONNX Runtime's static int8: uint8 activations, int8 weights, the range from minimum to maximum."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    reader = _reader(calibration)
    quantize_static(
        str(model), str(out), reader, quant_format=QuantFormat.QDQ, per_channel=per_channel, **types, **options
    )
    return out


def _reader(calibration: Sequence[Batch]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rewind()

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

        def rewind(self) -> None:
            self.feeds = iter([dict(batch.feed) for batch in calibration])

    return Reader()


def _dynamic(subject: Subject, out: Path) -> None:
    quantize_dynamic(subject.graph, out)


def _static(subject: Subject, out: Path) -> None:
    """Outputs of MatMuls stay float: with them quantized, this quantizer reaches 0.69 to 0.93 of cosine on MiniLM."""
    if subject.kind == "plain":
        quantize_static(subject.graph, out, subject.calibration)
        return
    prepared = _preprocess(subject.graph, out.parent)
    options = {"OpTypesToExcludeOutputQuantization": ["MatMul"]}
    quantize_static(
        prepared, out, subject.calibration, op_types_to_quantize=["MatMul", "Gather"], extra_options=options
    )
    prepared.unlink()


def _static_per_tensor(subject: Subject, out: Path) -> None:
    quantize_static(subject.graph, out, subject.calibration, per_channel=False)


def _preprocess(graph: Path, folder: Path) -> Path:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    whole, prepared = folder / "whole.onnx", folder / "prepared.onnx"
    onnx.save(onnx.load(graph), whole)  # it copies the graph without the weights beside it
    quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
    whole.unlink()
    return prepared


def _blocks(subject: Subject, out: Path, config: Any, *, tables: bool = True) -> None:
    """MatMuls by ``config``; embedding ``tables`` in blocks of 32 with 4 bits, or float."""
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    model = onnx.load(subject.graph)
    if tables:
        nearest = DefaultWeightOnlyQuantConfig(
            block_size=BLOCK,
            is_symmetric=True,
            bits=4,
            op_types_to_quantize=("Gather",),
            quant_axes=(("Gather", 1),),
        )
        quantizer = MatMulNBitsQuantizer(model, algo_config=nearest)
        quantizer.process()
        model = quantizer.model.model
    quantizer = MatMulNBitsQuantizer(model, block_size=BLOCK, accuracy_level=4, algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out))


def _blocks8(subject: Subject, out: Path) -> None:
    """MatMuls in blocks of 128 with 8 bits; embedding tables by the dynamic quantizer, for blocks of them have 4."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig

    config = DefaultWeightOnlyQuantConfig(
        block_size=128, is_symmetric=True, accuracy_level=4, bits=8, op_types_to_quantize=("MatMul",)
    )
    blocks = out.with_name("blocks.onnx")
    _blocks(subject, blocks, config, tables=False)
    quantize_dynamic(blocks, out, op_types_to_quantize=["Gather"], weight_type=QuantType.QInt8)
    blocks.unlink()


def _rtn(subject: Subject, out: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig

    config = DefaultWeightOnlyQuantConfig(
        block_size=BLOCK, is_symmetric=True, accuracy_level=4, bits=4, op_types_to_quantize=("MatMul",)
    )
    _blocks(subject, out, config)


def _hqq(subject: Subject, out: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import HQQWeightOnlyQuantConfig

    config = HQQWeightOnlyQuantConfig(block_size=BLOCK, bits=4, op_types_to_quantize=("MatMul",))
    _blocks(subject, out, config)


def _gptq(subject: Subject, out: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import GPTQWeightOnlyQuantConfig

    config = GPTQWeightOnlyQuantConfig(
        calibration_data_reader=_reader(subject.calibration), block_size=BLOCK, op_types_to_quantize=("MatMul",)
    )
    _blocks(subject, out, config)


@contextmanager
def _optimum(subject: Subject) -> Iterator[Any]:
    """The quantizer of optimum on the export, with the configuration that lies with its source."""
    from optimum.onnxruntime import ORTQuantizer

    assert subject.source is not None
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(onnx.load(subject.graph), Path(folder) / "model.onnx")
        shutil.copy(subject.source / "config.json", folder)
        yield ORTQuantizer.from_pretrained(folder, file_name="model.onnx"), Path(folder)


def _optimum_dynamic(subject: Subject, out: Path) -> None:
    from optimum.onnxruntime import AutoQuantizationConfig

    with _optimum(subject) as (quantizer, folder):
        quantizer.quantize(AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True), folder / "made")
        shutil.copy(folder / "made" / "model_quantized.onnx", out)


def _optimum_static(subject: Subject, out: Path) -> None:
    from datasets import Dataset
    from optimum.onnxruntime import AutoCalibrationConfig, AutoQuantizationConfig

    rows = [{name: value[0].tolist() for name, value in batch.feed.items()} for batch in subject.calibration]
    data = Dataset.from_list(rows)
    settings = AutoQuantizationConfig.avx512_vnni(is_static=True, per_channel=True)
    with _optimum(subject) as (quantizer, folder):
        ranges = quantizer.fit(
            dataset=data,
            calibration_config=AutoCalibrationConfig.minmax(data),
            onnx_augmented_model_name=folder / "augmented.onnx",
            operators_to_quantize=settings.operators_to_quantize,
        )
        quantizer.quantize(settings, folder / "made", calibration_tensors_range=ranges)
        shutil.copy(folder / "made" / "model_quantized.onnx", out)


def _elsewhere(name: str, method: str | None = None) -> Callable[[Subject, Path], None]:
    """A peer in an environment of its own: ``peer_NAME.py`` with ``requirements-NAME.txt``."""

    def make(subject: Subject, out: Path) -> None:
        python = make_environment(name)
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / "float.onnx"
            onnx.save(onnx.load(subject.graph), whole)
            write_samples(Path(folder) / "samples.npz", [dict(batch.feed) for batch in subject.calibration])
            command = [str(python), str(HERE / f"peer_{name}.py"), str(whole), str(Path(folder) / "samples.npz")]
            done = subprocess.run(
                [*command, str(out), method or subject.kind], cwd=folder, capture_output=True, text=True, check=False
            )
        if done.returncode:
            raise RuntimeError((done.stderr or done.stdout).strip()[-300:])

    return make


def make_environment(name: str) -> Path:
    """The interpreter of the environment of ``requirements-NAME.txt``, made by pip where it isn't there yet."""
    requirements = HERE / f"requirements-{name}.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    folder = cache_folder() / f"{name}-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "whole").is_file():
        print(f"installing {requirements.name} into {folder}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]
        subprocess.run([*command, str(requirements)], check=True, stdin=subprocess.DEVNULL)
        (folder / "whole").touch()
    return python


def peer_version(name: str) -> str:
    """What a peer's model depends on beside its input."""
    import onnxruntime
    import optimum.version

    parts = [name, str(SETTINGS), onnxruntime.__version__, optimum.version.__version__]
    parts += [(HERE / f"requirements-{other}.txt").read_text(encoding="utf-8") for other in ("nncf", "olive")]
    return "\n".join(parts)


def cache_folder() -> Path:
    """Where environments and peers' models are kept: ``EDGESLIM_BENCHMARKS``, or a folder of the user's cache."""
    home = os.environ.get("EDGESLIM_BENCHMARKS") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "edgeslim-benchmarks"


PEERS: dict[str, Callable[[Subject, Path], None]] = {
    "ORT dynamic": _dynamic,
    "ORT static": _static,
    "ORT static, a scale a tensor": _static_per_tensor,
    "ORT 8-bit blocks": _blocks8,
    "ORT int4 RTN": _rtn,
    "ORT int4 HQQ": _hqq,
    "ORT int4 GPTQ": _gptq,
    "optimum dynamic": _optimum_dynamic,
    "optimum static": _optimum_static,
    "NNCF": _elsewhere("nncf"),
    "Olive int4 RTN": _elsewhere("olive", "int4"),
    "Olive static": _elsewhere("olive", "static"),
}
SLOW = ("ORT int4 GPTQ",)
"""Takes minutes, so it runs only where it is named; nearly all of its integers are those of nearest rounding."""
ON_PICTURES = ("ORT dynamic", "ORT static", "ORT static, a scale a tensor", "NNCF")
"""The others know no convolutions, or want a tokenizer's configuration."""


def fitting(subject: Subject) -> list[str]:
    """The names of the peers that take ``subject``."""
    if subject.kind == "plain":
        return list(ON_PICTURES)
    return [name for name in PEERS if name != "ORT static, a scale a tensor"]


def make_peer(name: str, subject: Subject, out: Path) -> Path:
    """Makes ``out``; quantizers leave files in the working directory, so that is a scratch folder meanwhile."""
    out.parent.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch, chdir(scratch):
        PEERS[name](subject, out)
    return out
