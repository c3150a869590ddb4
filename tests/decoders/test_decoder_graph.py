"""Graphs written from checkpoints, against transformers' own model and the gguf package's own arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_llama

from edgeslim.checks.operators import check_operators
from edgeslim.decoders.checkpoint import SafetensorsCheckpoint
from edgeslim.decoders.decoder_graph import as_stored, write_decoder
from edgeslim.decoders.generation import CachedDecoder, empty_cache, generate
from edgeslim.decoders.gguf import GgufCheckpoint
from edgeslim.decoders.shape import shape_from_config
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph import load_graph
from edgeslim.session import open_runner
from edgeslim.target import load_target

PROMPT = [5, 77, 130, 9, 41, 200, 3]
ALL = {"weight": "Q8_0"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.write_huggingface(tmp_path_factory.mktemp("tiny") / "model")


def checkpoint(folder: Path) -> SafetensorsCheckpoint:
    return SafetensorsCheckpoint(folder, shape_from_config(tiny_llama.config().to_dict(), "config.json"))


def run_graph(path: Path, prompt: list[int], count: int) -> list[int]:
    runner = open_runner(path)
    cache = empty_cache(runner.signature()["inputs"])
    return list(generate(CachedDecoder(runner, cache), prompt, end_tokens=(), max_tokens=count))


def test_64_greedy_tokens_equal_transformers(folder: Path, tmp_path: Path) -> None:
    path = write_decoder(checkpoint(folder), tmp_path / "graph")
    assert run_graph(path, PROMPT, 64) == tiny_llama.greedy(PROMPT, 64)
    assert run_graph(path, PROMPT * 20, 8) == tiny_llama.greedy(PROMPT * 20, 8)  # a prompt in three pieces
    findings = list(check_operators(path, load_target("android-arm64")))
    assert all(finding.verdict != "fail" for finding in findings)
    onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)  # initializers have the shapes they claim


def test_an_untied_output_layer(folder: Path, tmp_path: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(1)
    settings = transformers.LlamaConfig.from_dict({**tiny_llama.config().to_dict(), "tie_word_embeddings": False})
    transformers.LlamaForCausalLM(settings).to(torch.bfloat16).save_pretrained(tmp_path / "untied")
    model = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "untied", dtype=torch.float32, attn_implementation="eager"
    )
    loaded = SafetensorsCheckpoint(tmp_path / "untied", shape_from_config(settings.to_dict(), "config.json"))
    runner = open_runner(write_decoder(loaded, tmp_path / "graph"))
    feed = {"input_ids": np.array([PROMPT]), **empty_cache(runner.signature()["inputs"])}
    with torch.no_grad():
        wanted = model(torch.tensor([PROMPT])).logits.numpy()
    np.testing.assert_allclose(runner(feed)["logits"], wanted, atol=2e-4)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_blocks_are_the_files_own_to_the_bit(tmp_path: Path, kind: str) -> None:
    import gguf

    path = tiny_llama.write_gguf(tmp_path / "m.gguf", {"weight": kind})
    read = GgufCheckpoint(path)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    name = "model.layers.1.mlp.down_proj.weight"
    tensor = stored["blk.1.ffn_down.weight"]
    blocks = read.read_blocks(name)
    assert blocks is not None
    wanted = gguf.dequantize(tensor.data, tensor.tensor_type)
    np.testing.assert_array_equal(blocks.dequantize(), wanted)
    np.testing.assert_array_equal(read.read(name), wanted)


@pytest.mark.parametrize("kinds", [{"ffn": "Q4_0", "weight": "Q8_0"}, {"attn": "Q4_1", "ffn": "Q4_1"}, ALL])
def test_a_graph_on_stored_blocks_equals_the_dequantized_one(tmp_path: Path, kinds: dict[str, str]) -> None:
    read = GgufCheckpoint(tiny_llama.write_gguf(tmp_path / "m.gguf", kinds))
    floats = open_runner(write_decoder(read, tmp_path / "float"))
    kept = write_decoder(read, tmp_path / "kept", encode=as_stored, levels={4: 0, 8: 0})
    nodes = [node.op_type for node in load_graph(kept).graph]
    assert nodes.count("MatMulNBits") == 14 + (kinds == ALL or "weight" in kinds)
    runner = open_runner(kept)
    feed = {"input_ids": np.array([PROMPT]), **empty_cache(runner.signature()["inputs"])}
    np.testing.assert_allclose(runner(feed)["logits"], floats(feed)["logits"], atol=2e-3, rtol=1e-4)


def test_queries_and_keys_are_put_back_in_order(tmp_path: Path) -> None:
    read = GgufCheckpoint(tiny_llama.write_gguf(tmp_path / "m.gguf", {}))
    for name, weight in tiny_llama.model().state_dict().items():
        if name != "lm_head.weight":
            np.testing.assert_array_equal(read.read(name), weight.numpy())


def test_a_tied_table_is_stored_once(tmp_path: Path) -> None:
    read = GgufCheckpoint(tiny_llama.write_gguf(tmp_path / "m.gguf", ALL))
    graph = load_graph(write_decoder(read, tmp_path / "kept", encode=as_stored)).graph
    tables = [name for name in graph.initializers if "embed_tokens.weight_q8" in name]
    assert len(tables) == 1
    assert {use.node.op_type for use in graph.initializers[tables[0]].uses()} == {"MatMulNBits", "Reshape"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["BertModel"]}, "architecture"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e5}}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": "1"}}, "rope_theta"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_key_value_heads": 3}, "heads"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ],
)
def test_what_is_no_llama_is_refused(changes: dict[str, Any], words: str) -> None:
    settings = {**tiny_llama.config().to_dict(), "architectures": ["LlamaForCausalLM"]}
    with pytest.raises(BadInputError, match=words):
        shape_from_config({**settings, **changes}, "config.json")


def test_rope_theta_is_read_from_either_place() -> None:
    settings = {**tiny_llama.config().to_dict(), "architectures": ["LlamaForCausalLM"]}
    settings = {name: value for name, value in settings.items() if not name.startswith("rope_")}
    for places in ({"rope_theta": 5e5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}):
        assert shape_from_config({**settings, **places}, "config.json").rope_theta == 5e5


def test_broken_gguf_files_are_refused(tmp_path: Path) -> None:
    whole = tiny_llama.write_gguf(tmp_path / "m.gguf", ALL).read_bytes()
    for name, data in {"cut": whole[: len(whole) // 3], "noise": b"GGUF" + bytes(range(256)) * 4, "empty": b""}.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(data)
        with pytest.raises(BadInputError):
            GgufCheckpoint(path).read("model.norm.weight")
    with pytest.raises(BadInputError, match="architecture"):
        GgufCheckpoint(tiny_llama.write_gguf(tmp_path / "other.gguf", {}, architecture="falcon"))


def test_a_checkpoint_with_missing_or_bad_tensors_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    arrays = load_file(folder / "model.safetensors")
    changes: list[tuple[dict[str, np.ndarray | None], str]] = [
        ({"model.norm.weight": None}, "no tensor"),
        ({"model.norm.weight": np.full(64, np.nan, "f4")}, "NaN"),
        ({"model.norm.weight": np.ones(63, "f4")}, "shape"),
    ]
    for change, words in changes:
        broken = {name: array for name, array in {**arrays, **change}.items() if array is not None}
        place = tmp_path / words.replace(" ", "-")
        place.mkdir()
        save_file(broken, place / "model.safetensors")
        with pytest.raises(BadInputError, match=words):
            write_decoder(checkpoint(place), place / "graph")
