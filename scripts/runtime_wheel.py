"""A release of ONNX Runtime, unpacked from its wheel, and what a process that sees only it answers."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ASK = Path(__file__).resolve().parent / "ask_runtime.py"


@dataclass(frozen=True)
class Runtime:
    """An unpacked wheel, and the interpreter that runs it."""

    python: tuple[str, ...]
    folder: Path
    work: Path

    def run(self, *arguments: str) -> int:
        """Runs ``ask_runtime.py`` inside, and gives the exit status."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "ORT_DISABLE_TELEMETRY": "1"}
        command = [*self.python, str(ASK), *arguments]
        return subprocess.run(command, env=environment, cwd=self.work, stderr=subprocess.DEVNULL).returncode

    def dump(self) -> dict[str, Any]:
        """Kernels and schemas."""
        out = self.work / "dump.json"
        if self.run("dump", str(out)) != 0:
            raise SystemExit(f"the runtime can't be loaded by {' '.join(self.python)}")
        loaded: dict[str, Any] = json.loads(out.read_text())
        return loaded

    def open_models(self, models: Sequence[bytes]) -> list[str]:
        """What the runtime says to each model: ``ok``, an error, or ``crash``."""
        source, results = self.work / "models.bin", self.work / "results.jsonl"
        source.write_bytes(b"".join(struct.pack("<I", len(model)) + model for model in models))
        results.write_text("")
        done = 0
        while done < len(models):
            status = self.run("probe", str(source), str(results), str(done))
            done = len(results.read_text().splitlines())
            if status != 0 and done < len(models):
                with results.open("a") as out:
                    out.write('"crash"\n')
                done += 1
        return [json.loads(line) for line in results.read_text().splitlines()]


def fetch_wheel(version: str, platform: str, folder: Path) -> Path:
    """Downloads the wheel of ``version``."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(folder), "-q"]
    if platform:
        command += ["--platform", platform, "--implementation", "cp"]
        command += ["--python-version", f"{sys.version_info.major}.{sys.version_info.minor}"]
    subprocess.run([*command, f"onnxruntime=={version}"], check=True)
    return next(folder.glob("onnxruntime-*.whl"))


def unpack(wheel: Path, folder: Path) -> None:
    """Lays the wheel's packages into ``folder``, as ``pip install --no-deps --target`` does."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


def accepted(runtime: Runtime, domain: str) -> tuple[int, int]:
    """The newest IR version, and the newest opset of ``domain``, with which a model opens."""
    import onnx

    def model(ir_version: int, opset: int) -> bytes:
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
        graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [result])
        imports = {"": 13, domain: opset}
        opsets = [onnx.helper.make_opsetid(key, number) for key, number in imports.items()]
        proto: bytes = onnx.helper.make_model(graph, ir_version=ir_version, opset_imports=opsets).SerializeToString()
        return proto

    numbers = range(1, 64)
    irs = runtime.open_models([model(number, 13 if domain == "" else 1) for number in range(3, 32)])
    opsets = runtime.open_models([model(8, number) for number in numbers])
    ir = max(number for number, answer in zip(range(3, 32), irs, strict=True) if answer == "ok")
    return ir, max(number for number, answer in zip(numbers, opsets, strict=True) if answer == "ok")
