"""The loader from text or picture to vector or class, over recorded outputs: there is no JNI of ONNX Runtime here."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "tokenizing"))

from texts import minilm_folder, read_sentences
from token_cases import make_case, make_minilm, texts_of
from tokenizers import Tokenizer

import edgeslim
from edgeslim import metrics
from edgeslim.checks import latency
from edgeslim.datasets.preprocessing import RESAMPLES, Preprocessing, Resample
from edgeslim.packaging.bundle import write_manifest

GOLDEN = Path(__file__).parents[1] / "golden"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
Array = npt.NDArray[Any]
RunJava = Callable[..., str]


def write_package(
    folder: Path,
    task: dict[str, Any],
    packed: bytes,
    texts: Sequence[str],
    recorded: Sequence[tuple[list[int], int, Array]],
) -> None:
    """A package around golden weights, texts in UTF-16, and for ids and their real tokens the recorded output."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.etk").write_bytes(packed)
    (folder / "model.onnx").write_bytes(b"graph")
    for name in ("bin", "esz"):
        shutil.copy(GOLDEN / f"mixed.{name}", folder / f"weights.{name}")
    pad = task.pop("pad", False)
    facts = {
        "task": task,
        "signature": {"inputs": [{"name": name} for name in INPUTS], "outputs": []},
        "tokenizer": {"folder": "tokenizer", "max_length": 24, **({"pad": True} if pad else {})},
    }
    names = ("model.onnx", "weights.bin", "weights.esz", "tokenizer/tokenizer.etk")
    write_manifest(folder / "manifest.json", facts, {name: folder / name for name in names})
    write_recording(folder, texts, recorded)


def write_recording(folder: Path, texts: Sequence[str], recorded: Sequence[tuple[list[int], int, Array]]) -> None:
    units = [text.encode("utf-16-be", "surrogatepass") for text in texts]
    content = struct.pack(">I", len(units)) + b"".join(struct.pack(">I", len(one) // 2) + one for one in units)
    (folder / "texts.bin").write_bytes(content)
    recording = struct.pack(">I", len(recorded))
    for ids, real, output in recorded:
        recording += struct.pack(f">I{len(ids)}II", len(ids), *ids, real)
        recording += struct.pack(f">I{output.ndim}I", output.ndim, *output.shape) + output.astype(">f4").tobytes()
    (folder / "recording.bin").write_bytes(recording)


def encode(reference: Tokenizer, texts: Sequence[str], *, pad: bool = False) -> list[tuple[list[int], int]]:
    cut = Tokenizer.from_str(reference.to_str())
    cut.enable_truncation(24)
    if pad:
        cut.enable_padding(length=24)
    return [(item.ids, sum(item.attention_mask)) for item in cut.encode_batch(list(texts))]


def choose_texts(start: int, count: int) -> list[str]:
    """Texts whose ids differ, without lone surrogates: a recording has one output for the ids of each."""
    reference = make_minilm().reference
    texts = [
        text for text in texts_of(2500)[start : start + count] if not any("\ud800" <= one <= "\udfff" for one in text)
    ]
    return list({tuple(ids): text for text, (ids, _) in zip(texts, encode(reference, texts), strict=True)}.values())


def vectors_of(folder: Path) -> Array:
    return np.fromfile(folder / "out.bin", ">f4").astype(np.float32)


@pytest.mark.parametrize("pooling", ["mean", "cls", "none"])
@pytest.mark.parametrize("pad", [False, True])
def test_texts_to_vectors(run_java: RunJava, tmp_path: Path, pooling: str, *, pad: bool) -> None:
    case, random = make_minilm(), np.random.default_rng(1)
    texts = choose_texts(200, 40)
    encoded = encode(case.reference, texts, pad=pad)
    outputs = [
        random.normal(size=(1, 8) if pooling == "none" else (1, len(ids), 8)).astype(np.float32) for ids, _ in encoded
    ]
    recorded = [(ids, real, output) for (ids, real), output in zip(encoded, outputs, strict=True)]
    task = {
        "task": "feature-extraction",
        "pooling": pooling,
        "normalize": pooling != "cls",
        "output": "last_hidden_state",
    }
    write_package(tmp_path, task | {"pad": pad}, case.packed, texts, recorded)
    run_java("RunnerMain", "embed", tmp_path)
    found = vectors_of(tmp_path).reshape(len(texts), 8)
    for vector, (ids, real), output in zip(found, encoded, outputs, strict=True):
        mask = np.array([[1] * real + [0] * (len(ids) - real)])
        pooled = {"mean": lambda: metrics.mean_pool(output, mask), "cls": lambda: output[:, 0], "none": lambda: output}  # noqa: B023
        expected = pooled[pooling]()
        expected = metrics.l2_normalize(expected) if pooling != "cls" else expected
        np.testing.assert_allclose(vector, expected[0], rtol=2e-6, atol=2e-7)


def test_texts_to_classes(run_java: RunJava, tmp_path: Path) -> None:
    case, random = make_minilm(), np.random.default_rng(2)
    texts = choose_texts(300, 30)
    outputs = [random.normal(size=(1, 3)).astype(np.float32) * 4 for _ in texts]
    recorded = [(ids, real, output) for (ids, real), output in zip(encode(case.reference, texts), outputs, strict=True)]
    labels = ["negative", "neutral", "positive"]
    write_package(tmp_path, {"task": "text-classification", "labels": labels}, case.packed, texts, recorded)
    lines = run_java("RunnerMain", "classify", tmp_path).splitlines()
    shares = vectors_of(tmp_path).reshape(len(texts), 3)
    for line, share, output in zip(lines, shares, outputs, strict=True):
        best = int(output.argmax())
        powers = np.exp(output[0].astype(np.float64) - output.max())
        np.testing.assert_allclose(share, powers / powers.sum(), rtol=1e-6)
        assert line == f"{best} {labels[best]}"


def test_sessions_come_and_go(run_java: RunJava, tmp_path: Path) -> None:
    case = make_minilm()
    ((ids, real),) = encode(case.reference, ["a text"])
    task = {"task": "feature-extraction", "pooling": "mean", "normalize": True}
    write_package(tmp_path, task, case.packed, ["a text"], [(ids, real, np.ones((1, len(ids), 8), np.float32))])
    assert run_java("RunnerMain", "lifecycle", tmp_path) == "closed: the model is closed\n"


SIZES = [(224, 224), (640, 425), (300, 20), (48, 48), (40, 31)]
NARROW = [(31, 57), (5, 300)]


def prepare_pictures(
    run_java: RunJava, folder: Path, cases: Sequence[tuple[Preprocessing, tuple[int, int]]]
) -> tuple[bytes, bytes]:
    """What Java and what Python make of random pictures of given widths and heights."""
    random, expected, shapes = np.random.default_rng(3), b"", []
    for number, (table, (width, height)) in enumerate(cases):
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        prepared = table.normalize(table.prepare(Image.fromarray(pixels))[np.newaxis])
        expected += prepared.astype(">f4" if table.dtype == "float32" else np.uint8).tobytes()
        shapes.append(list(prepared.shape))
        (folder / f"{number}.json").write_text(json.dumps(table.manifest()), encoding="utf-8")
        colours = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        (folder / f"{number}.bin").write_bytes(struct.pack(">II", width, height) + colours.astype(">u4").tobytes())
    lines = run_java("RunnerMain", "pictures", folder).splitlines()
    assert [json.loads(line) for line in lines] == shapes
    return (folder / "out.bin").read_bytes(), expected


def test_pictures_come_out_as_pillow_makes_them(run_java: RunJava, tmp_path: Path) -> None:
    """Every filter and mode, pixel for pixel before scaling, and float for float after."""
    cases: list[tuple[Preprocessing, tuple[int, int]]] = [
        (Preprocessing(size=(48, 40), resample=resample, scale=1.0, dtype="uint8"), size)
        for resample in RESAMPLES
        for size in SIZES
    ]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    cases += [
        (Preprocessing(size=(32, 32), mode="crop", shortest_edge=36, resample="bicubic", mean=mean, std=std), size)
        for size in SIZES
    ]
    cases += [
        (Preprocessing(size=(28, 28), channels="gray", mean=(0.2861,), std=(0.353,)), (61, 40)),
        (Preprocessing(size=(30, 20), mode="none", layout="nhwc", mean=mean, std=std), (20, 30)),
    ]
    found, expected = prepare_pictures(run_java, tmp_path, cases)
    assert found == expected


def test_narrow_pictures_differ_little(run_java: RunJava, tmp_path: Path) -> None:
    """Pillow 13 resizes their columns first, and rounds and clips in between: this is noise, the worst case."""
    resamples: tuple[Resample, ...] = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
    cases = [
        (Preprocessing(size=(48, 40), resample=resample, scale=1.0, dtype="uint8"), size)
        for resample in resamples
        for size in NARROW
    ]
    both = [np.frombuffer(one, np.uint8).astype(int) for one in prepare_pictures(run_java, tmp_path, cases)]
    differences = np.abs(both[0] - both[1]).reshape(len(resamples), -1)
    assert not differences[0].any()
    assert (differences[1:4] <= 1).all()
    assert (differences.mean(axis=1) < 1).all()


def test_share_of_nodes_that_fall_back(run_java: RunJava, tmp_path: Path) -> None:
    """A profile that ONNX Runtime itself wrote, counted a second time here; then one with two providers in it."""
    import onnx_ir as ir

    value = ir.val("x", ir.DataType.FLOAT, [2])
    nodes = [ir.node("Relu", [value])]
    nodes.append(ir.node("Sigmoid", [nodes[0].outputs[0]]))
    graph = ir.Graph([value], [nodes[1].outputs[0]], nodes=nodes, opset_imports={"": 17})
    nodes[1].outputs[0].type, nodes[1].outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([2])
    ir.save(ir.Model(graph, ir_version=9), tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.ones(2, np.float32)})
    written = Path(session.end_profiling())
    events = json.loads(written.read_text(encoding="utf-8"))
    ran = [event for event in events if event.get("cat") == "Node" and "provider" in event["args"]]
    assert len(ran) == 2
    written.rename(tmp_path / "profile.json")
    micros = sum(event["dur"] for event in ran)
    said = run_java("RunnerMain", "profile", tmp_path).strip()
    assert said == f"{{CPUExecutionProvider=2}} {{CPUExecutionProvider={micros}}} 1.0"
    other = {**ran[0], "args": {**ran[0]["args"], "provider": "XnnpackExecutionProvider"}, "dur": 7}
    (tmp_path / "profile.json").write_text(json.dumps([*events, other, other]), encoding="utf-8")
    said = run_java("RunnerMain", "profile", tmp_path).strip()
    assert said.startswith("{CPUExecutionProvider=2, XnnpackExecutionProvider=2} ")
    assert said.endswith("XnnpackExecutionProvider=14} 0.5")


def test_a_package_as_it_was_built(
    run_java: RunJava, tiny_bert: Path, text_files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a build's AAR to vectors, by the manifest and the tokenizer in it; beside Python on the same session."""
    monkeypatch.setattr(latency, "PROBES", 1)
    out = str(tmp_path / "out")
    report = edgeslim.build(str(tiny_bert), target="android-arm64", data=str(text_files.txt), out=out, use_cache=False)
    with zipfile.ZipFile(report.artifact.path) as aar:
        aar.extractall(tmp_path / "aar")
    (folder,) = (tmp_path / "aar" / "assets" / "edgeslim").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    session = edgeslim.load(report.artifact.path, folder=tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(manifest["tokenizer"]["max_length"])
    texts = [*text_files.txt.read_text(encoding="utf-8").splitlines()[:5], "word " * 300, ""]
    recorded, expected = [], []
    for item in tokenizer.encode_batch(texts):
        feed = {"input_ids": item.ids, "attention_mask": item.attention_mask, "token_type_ids": item.type_ids}
        inputs = {one.name: np.array([feed[one.name]], np.int64) for one in session.get_inputs()}
        (hidden,) = session.run([manifest["task"]["output"] or session.get_outputs()[0].name], inputs)
        recorded.append((item.ids, len(item.ids), hidden))
        expected.append(metrics.l2_normalize(metrics.mean_pool(hidden, np.ones((1, len(item.ids)))))[0])
    assert (manifest["task"]["pooling"], manifest["task"]["normalize"]) == ("mean", True)
    write_recording(folder, texts, recorded)
    run_java("RunnerMain", "embed", folder)
    np.testing.assert_allclose(vectors_of(folder).reshape(len(texts), -1), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_real_vectors(run_java: RunJava, tmp_path: Path) -> None:
    """all-MiniLM-L6-v2's hidden states, pooled here and by sentence-transformers: the same vectors."""
    import torch
    from sentence_transformers import SentenceTransformer

    folder = minilm_folder()
    texts = read_sentences("evaluation.txt")[:12]
    model = SentenceTransformer(str(folder), device="cpu")
    model.max_seq_length = 24
    expected = model.encode(texts, batch_size=1)
    case = make_case("minilm", Tokenizer.from_file(str(folder / "tokenizer.json")))
    recorded = []
    for ids, real in encode(case.reference, texts):
        feed = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, real, dtype=torch.int64)}
        with torch.no_grad():
            hidden = model[0].auto_model(**feed).last_hidden_state
        recorded.append((ids, real, hidden.numpy()))
    task = {"task": "feature-extraction", "pooling": "mean", "normalize": True, "output": "last_hidden_state"}
    write_package(tmp_path, task, case.packed, texts, recorded)
    run_java("RunnerMain", "embed", tmp_path)
    np.testing.assert_allclose(vectors_of(tmp_path).reshape(expected.shape), expected, atol=1e-6)
