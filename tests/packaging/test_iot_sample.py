"""samples/iot_firmware, cross-compiled with a small encoder and run on emulated machines: its answers are Python's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeslim
from edgeslim.core import Batch
from edgeslim.datasets.encoding import load_tokenizer
from edgeslim.devices.device import open_device
from edgeslim.devices.runtimes import runtime_library
from edgeslim.packaging.cmake_files import CMAKE_DIR
from edgeslim.session import open_runner
from edgeslim.task import FeatureExtraction
from tests.devices.conftest import need, need_machine
from tests.packaging.test_cmake import configure, make

SAMPLE = Path(__file__).parents[2] / "samples" / "iot_firmware"


def embed(model: Path, text: str) -> np.ndarray:
    ids = np.array([load_tokenizer(model / "tokenizer")(text, truncation=True, max_length=128)["input_ids"]])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    hidden = next(iter(open_runner(model / "model.onnx")(feed).values()))
    vector: np.ndarray = FeatureExtraction()._embed(hidden, Batch(feed=feed, rows=1))[0]
    return vector


@pytest.mark.parametrize(
    ("isa", "target", "machine"),
    [
        ("armhf", "linux-armhf", "cortex-a7"),
        ("aarch64", "linux-arm64", "cortex-a53"),
    ],
)
def test_it_answers_as_python_does(
    isa: Any,
    target: str,
    machine: str,
    tiny_bert: Path,
    text_files: Any,
    labelled_texts: Any,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    need("cmake", "ninja")
    need_machine(isa)
    commands, said = [labelled_texts[index][0] for index in (1, 5, 9)], labelled_texts[30][0]
    build, firmware = tmp_path / "build", tmp_path / "firmware"
    project = [f"-DMODEL={tiny_bert}", f"-DTEXTS={text_files.txt}", f"-DTARGET={target}"]
    place = [f"-DEdgeslim_DIR={CMAKE_DIR}", f"-DEDGESLIM_COMMAND={sys.executable};-m;edgeslim"]
    configure(SAMPLE, build, isa, *project, *place)
    make(build, tmp_path_factory.getbasetemp() / "iot-cache")  # the second target takes what the first computed
    subprocess.run(["cmake", "--install", str(build), "--prefix", str(firmware)], check=True, capture_output=True)
    installed = firmware / "gateway"
    assert sorted(path.name for path in installed.iterdir()) == ["commands.txt", "gateway", "intents"]
    (installed / "commands.txt").write_text("".join(f"{line}\n" for line in commands), encoding="utf-8")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # each release calls itself by one of the two names
        shutil.copy(runtime_library(isa, "glibc"), installed / name)
    with open_device(f"qemu:{machine}", isa) as device:
        device.push({path.name: path for path in installed.iterdir() if path.is_file()})
        told = device.run(["gateway", str(installed / "intents"), "./commands.txt", said, commands[2]], timeout_s=60)
    assert told.status == 0, told.stderr
    edgeslim.load(installed / "intents")
    vectors = [embed(installed / "intents", text) for text in (*commands, said)]
    scores = [float(vectors[3] @ vector) for vector in vectors[:3]]
    first, second = (line.split("\t") for line in told.stdout.splitlines())
    assert float(first[0]) == pytest.approx(max(scores), abs=1e-3)
    assert first[1] == commands[int(np.argmax(scores))]
    assert second == ["1.000000", commands[2]]
