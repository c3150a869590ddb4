"""Trimmed vocabularies in whole builds, and what graphs are refused."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import helper
from small_graphs import write_model

import edgeslim
from edgeslim.checks import latency
from edgeslim.core import Context
from edgeslim.datasets.encoding import load_tokenizer
from edgeslim.datasets.vocabulary import read_vocabulary
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph import load_graph
from edgeslim.stages.trim_vocabulary import TrimVocabulary
from edgeslim.target import load_target
from edgeslim.task import FeatureExtraction


@pytest.fixture(scope="module")
def built(tiny_classifier: Path, text_files: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("trimmed")
    steps = f'[[steps]]\nuse = "trim_vocabulary"\ncorpus = "{text_files.txt}"\nkeep = 140\n'
    recipe = steps + '[[steps]]\nuse = "quantize_int8"\n'
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "PROBES", 1)
        report = edgeslim.build(
            str(tiny_classifier),
            target="linux-arm64",
            data=str(text_files.jsonl),
            recipe=str(folder / "recipe.toml"),
            out=str(folder / "out"),
            max_drop=1.0,
        )
    return SimpleNamespace(report=report, package=Path(report.artifact.path), folder=folder, model=tiny_classifier)


def files_of(package: Path) -> dict[str, bytes]:
    with tarfile.open(package) as archive:
        found = {}
        for info in archive:
            stream = archive.extractfile(info)
            if stream is not None:
                found[info.name.partition("/")[2]] = stream.read()
        return found


def test_the_package_has_the_trimmed_tokenizer_and_table(built: Any, tmp_path: Path) -> None:
    files = files_of(built.package)
    vocabulary = json.loads(files["tokenizer/tokenizer.json"])["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(140))
    (tmp_path / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "tokenizer" / name).write_bytes(files[f"tokenizer/{name}"])
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert loaded.unk_token_id == vocabulary["[UNK]"]
    step = next(step for step in built.report.steps if step.name == "trim_vocabulary")
    assert step.metrics["tokens"] == 140
    assert step.metrics["tokens_before"] > 200
    assert 0 < step.metrics["in_domain_lost"] < 0.8
    assert step.metrics["in_domain_unknown"] == step.metrics["in_domain_unknown_before"]
    assert step.metrics["in_domain_length"] > 1.2
    assert step.after["bytes"] < step.before["bytes"]


def test_quality_is_measured_text_by_text(built: Any) -> None:
    found = {finding.metric: finding.value for finding in built.report.findings}
    assert found["accuracy_reference"] > 0.9  # with its own tokenizer the original is as good as ever
    assert found["agreement"] > 0.4
    recording = np.load(io.BytesIO(files_of(built.package)["reference.npz"]), allow_pickle=False)
    assert len(recording["keys"]) >= 3


def test_a_check_uses_each_model_with_its_tokenizer(built: Any, text_files: Any) -> None:
    from edgeslim.recheck import CheckOptions, check_package

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "PROBES", 1)
        report = check_package(
            CheckOptions(package=str(built.package), data=str(text_files.jsonl), reference=str(built.model))
        )
    ours = {finding.metric: finding.value for finding in report.findings}
    theirs = {finding.metric: finding.value for finding in built.report.findings}
    for metric in ("accuracy", "accuracy_reference", "agreement"):
        assert ours[metric] == theirs[metric]


def stage_on(path: Path, tokenizer: Path | None, folder: Path, **settings: Any) -> Any:
    context = Context(
        target=load_target("android-arm64"),
        task=FeatureExtraction(),
        calibration=(),
        reference=lambda feed: feed,
        seed=0,
        work_dir=folder / "work",
        tokenizer=tokenizer,
        folder=folder,
    )
    (folder / "work").mkdir(exist_ok=True)
    (folder / "corpus.txt").write_text("some words\nother words\n" * 20, encoding="utf-8")
    return TrimVocabulary(corpus="corpus.txt", **settings).run(load_graph(path), context)


def graph(path: Path, *nodes: Any, rows: int = 300) -> Path:
    found = [helper.make_node("Gather", ["table", "input_ids"], ["x"], name="look"), *nodes]
    outputs = [node.output[0] for node in found if node.output[0] in ("y", "z")]
    values = np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32)
    pad = np.array(0, np.int64)
    return write_ids(path, found, outputs, table=values, pad=pad)


def write_ids(path: Path, nodes: Any, outputs: Any, **tensors: np.ndarray) -> Path:
    from onnx import TensorProto, numpy_helper, save

    kinds = {"y": TensorProto.FLOAT, "z": TensorProto.BOOL}
    made = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "s"])],
        [helper.make_tensor_value_info(name, kinds[name], None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_rows_follow_their_tokens(tiny_tokenizer: Path, tmp_path: Path) -> None:
    path = graph(tmp_path / "net.onnx", helper.make_node("Relu", ["x"], ["y"]))
    result = stage_on(path, tiny_tokenizer, tmp_path, coverage=0.9)
    (table,) = (
        value.const_value.numpy() for value in result.model.graph.initializers.values() if "table" in value.name
    )
    before, after = read_vocabulary(tiny_tokenizer).tokens, read_vocabulary(result.tokenizer).tokens
    whole = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    assert len(table) == len(after) < len(before)
    assert all(np.array_equal(table[number], whole[before[token]]) for token, number in after.items())


def test_what_is_refused(tiny_tokenizer: Path, tmp_path: Path) -> None:
    relu = helper.make_node("Relu", ["x"], ["y"])
    equal = helper.make_node("Equal", ["input_ids", "pad"], ["z"], name="find_padding")
    with pytest.raises(BadInputError, match="find_padding, a Equal, takes token ids"):
        stage_on(graph(tmp_path / "a.onnx", relu, equal), tiny_tokenizer, tmp_path, keep=120)
    with pytest.raises(BadInputError, match="200 rows"):
        stage_on(graph(tmp_path / "b.onnx", relu, rows=200), tiny_tokenizer, tmp_path, keep=120)
    with pytest.raises(BadInputError, match="no tokenizer made"):
        stage_on(graph(tmp_path / "c.onnx", relu), None, tmp_path, keep=120)
    floats = write_model(tmp_path / "d.onnx", [helper.make_node("Relu", ["x"], ["y"])], {"x": [1, 2]})
    with pytest.raises(BadInputError, match="input_ids"):
        stage_on(floats, tiny_tokenizer, tmp_path, keep=120)
    for settings in ({}, {"keep": 3, "coverage": 0.5}, {"keep": 0}, {"coverage": 1.5}):
        with pytest.raises(ValueError, match="expected"):
            TrimVocabulary(corpus="x.txt", **settings)
