"""Stages on the torch model of a language model: what they make of it, and that its graph says the same."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llama
import torch
from torch.nn import functional

import edgeslim
from edgeslim.core import Batch, Context, TrainingData
from edgeslim.datasets.samples import DataOptions
from edgeslim.decoders.decoder_graph import write_decoder
from edgeslim.decoders.generation import CachedDecoder, empty_cache, generate
from edgeslim.decoders.language_source import load_training_windows
from edgeslim.decoders.shape import LayerSizes
from edgeslim.decoders.torch_decoder import ModuleCheckpoint, make_module
from edgeslim.errors import BadInputError
from edgeslim.language_task import CausalLM
from edgeslim.recipe import parse_recipe
from edgeslim.report import Report
from edgeslim.session import fit_feed, open_runner
from edgeslim.stage_runs import check_source
from edgeslim.stages.distill import Distill
from edgeslim.stages.finetune import Finetune
from edgeslim.stages.prune_magnitude import PruneMagnitude
from edgeslim.stages.prune_structured import PruneStructured
from edgeslim.target import load_target
from edgeslim.training.objectives import next_token_loss, soft_label_loss
from edgeslim.training.torch_model import TorchModel, factor_linear

PROMPT = [5, 77, 130, 9, 41, 200, 3]
EVALUATED = "A dog of the lazy kind jumps 12 times over a fox. " * 6
TRAINING = "A cat sat on the mat, and 1234 times it was counted. " * 200


def tiny() -> TorchModel:
    return TorchModel(module=copy.deepcopy(tiny_llama.model()), output="logits")


def windows(count: int, seed: int = 0) -> list[Batch]:
    """Windows of a text that can be learned: each token says which comes next."""
    generator = np.random.default_rng(seed)
    starts = generator.integers(0, 50, count)
    return [Batch(feed={"input_ids": (start + 3 * np.arange(24)[None]) % 60 + 5}, rows=1) for start in starts]


def context(tmp_path: Path, teacher: TorchModel | None = None) -> Context:
    return Context(
        target=load_target("linux-arm64"), task=CausalLM(), calibration=windows(12), reference=lambda feed: feed,
        work_dir=tmp_path, seed=0,
        training=TrainingData(training=windows(64, 1), validation=windows(8, 2), running=True),
        teacher=None if teacher is None else teacher.copied().frozen(),
    )  # fmt: skip


def graph_says(module: Any, folder: Path, count: int = 64) -> tuple[list[int], list[int]]:
    """Greedy tokens of the graph with its cache, and of the module without one."""
    runner = open_runner(write_decoder(ModuleCheckpoint(module), folder))
    cache = empty_cache(runner.signature()["inputs"])
    ours = list(generate(CachedDecoder(runner, cache), PROMPT, end_tokens=(), max_tokens=count))
    tokens = list(PROMPT)
    for _ in range(count):
        with torch.no_grad():
            tokens.append(int(module(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return ours, tokens[len(PROMPT) :]


def test_layers_of_different_sizes_and_factors(tmp_path: Path) -> None:
    """The graph of a model whose first layer lost a key and value head, and whose second is factorized."""
    model = tiny()
    keep = PruneStructured(keep_heads=0.5, keep_neurons=0.7, scope="global", multiple=1, importance="activation")
    pruned = keep.run(model, context(tmp_path)).model
    layer = pruned.module.model.layers[1]
    ranks = {"model.layers.1.mlp.up_proj": 20, "model.layers.1.self_attn.v_proj": 7}
    for path, rank in ranks.items():
        torch.nn.init.normal_(factor_linear(pruned.module, path, rank)[1].weight, std=0.2)
    shape = ModuleCheckpoint(pruned.module).shape
    assert shape.ranks == ranks
    assert sum(sizes.kv_heads for sizes in shape.each) == 2
    assert shape.each[1] == LayerSizes(
        heads=layer.self_attn.q_proj.out_features // 16,
        kv_heads=layer.self_attn.k_proj.out_features // 16,
        feed_forward=layer.mlp.gate_proj.out_features,
    )
    assert {sizes.heads for sizes in shape.each} == {sizes.kv_heads * 2 for sizes in shape.each}
    assert sum(sizes.feed_forward for sizes in shape.each) < 0.75 * 2 * 96
    ours, theirs = graph_says(pruned.module, tmp_path / "graph")
    assert ours == theirs
    again = make_module(ModuleCheckpoint(pruned.module))
    assert again is not pruned.module
    for name, value in pruned.module.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)


def test_a_head_that_goes_is_a_head_that_says_nothing(tmp_path: Path) -> None:
    """Without what makes up for it, removal equals zeroing what the output layer takes of a group of heads."""
    stage = PruneStructured(keep_heads=0.5, compensate=False, importance="activation")
    model = tiny()
    pruned = stage.run(model.copied(), context(tmp_path)).model
    zeroed = model.module
    for ours, theirs in zip(pruned.module.model.layers, zeroed.model.layers, strict=True):
        kept = ours.self_attn.k_proj.weight
        first = torch.equal(kept, theirs.self_attn.k_proj.weight[:16])
        assert first or torch.equal(kept, theirs.self_attn.k_proj.weight[16:])
        with torch.no_grad():  # two query heads read a key and value head
            theirs.self_attn.o_proj.weight[:, slice(32, 64) if first else slice(0, 32)] = 0
    tokens = torch.tensor([PROMPT * 3])
    with torch.no_grad():
        torch.testing.assert_close(pruned.module(tokens).logits, zeroed(tokens).logits, atol=1e-5, rtol=1e-5)


def test_losses_of_words() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, other = (torch.randn(3, 9, 40, generator=generator) for _ in range(2))
    tokens = torch.randint(0, 40, (3, 9), generator=generator)
    module = tiny_llama.model()
    ids = torch.tensor([PROMPT, PROMPT[::-1]])
    with torch.no_grad():
        known = module(ids, labels=ids)
    torch.testing.assert_close(next_token_loss(known.logits, ids).mean(), known.loss)
    assert next_token_loss(logits, tokens).shape == (3,)
    flat = soft_label_loss(logits.flatten(0, 1), other.flatten(0, 1), 2.0).view(3, 9)
    torch.testing.assert_close(soft_label_loss(logits, other, 2.0), flat.mean(1))
    divergence = functional.kl_div(
        torch.log_softmax(logits / 2, -1), torch.softmax(other / 2, -1), reduction="none"
    ).sum(-1)
    torch.testing.assert_close(soft_label_loss(logits, other, 2.0), 4 * divergence.mean(1))


def test_training_learns_the_next_word(tmp_path: Path) -> None:
    stage = Finetune(max_steps=30, batch_size=8, learning_rate=5e-3, epochs=10)
    metrics = stage.run(tiny(), context(tmp_path)).metrics
    assert metrics["validation_loss"] < 0.5 * metrics["first_loss"]


def test_distillation_brings_a_pruned_model_back(tmp_path: Path) -> None:
    original = tiny()
    pruned = PruneStructured(keep_neurons=0.5, importance="taylor").run(original.copied(), context(tmp_path)).model
    result = Distill(max_steps=30, batch_size=8, learning_rate=3e-3, epochs=10).run(pruned, context(tmp_path, original))
    assert result.metrics["validation_loss"] < 0.7 * result.metrics["first_loss"]
    student = Distill(student_layers=1, max_steps=2, soft=1.0).run(original, context(tmp_path, original))
    assert ModuleCheckpoint(student.model.module).shape.layers == 1


def test_a_tied_table_is_no_linear_layer(tmp_path: Path) -> None:
    result = PruneMagnitude(sparsity=0.5, min_elements=1).run(tiny(), context(tmp_path))
    assert result.skipped["lm_head.weight"] == "an embedding's table, too"
    assert set(result.model.masks) == {f"{path}.weight" for path, _ in linears(result.model.module)}


def linears(module: Any) -> list[tuple[str, Any]]:
    return [(name, layer) for name, layer in module.named_modules() if name.endswith("_proj")]


def test_empty_inputs_fit_the_graph() -> None:
    feed = {
        "input_ids": np.array([[1, 2]]),
        "past": np.zeros((1, 3, 0, 8), np.float32),
        "full": np.zeros((1, 3, 2, 8), np.float32),
        "gone": np.zeros(0),
    }
    floats, integers = np.dtype(np.float32), np.dtype(np.int8)
    inputs = {
        "input_ids": (np.dtype(np.int64), (None, None)),
        "past": (floats, (None, 2, None, 8)),
        "full": (floats, (1, 2, None, 8)),
        "past_length": (np.dtype(np.int64), (1,)),
    }
    fitted = fit_feed(feed, inputs)
    assert {name: value.shape for name, value in fitted.items()} == {
        "input_ids": (1, 2),
        "past": (1, 2, 0, 8),
        "full": (1, 3, 2, 8),  # what holds something is the runtime's to refuse
        "past_length": (1,),
    }
    buffer = fit_feed(feed, {"past": (integers, (1, 2, 5, 8))})["past"]
    assert (buffer.shape, buffer.dtype, int(np.abs(buffer).max())) == ((1, 2, 5, 8), integers, 0)


def build(folder: Path, steps: str, *, training: str = TRAINING, use_cache: bool = False) -> Report:
    tiny_llama.write_project(folder, "m.gguf", steps, drop=20)
    tiny_llama.write_gguf(folder / "m.gguf", {"ffn": "Q4_1", "weight": "Q8_0"})
    (folder / "training.txt").write_text(training, encoding="utf-8")
    project = (folder / "edgeslim.toml").read_text(encoding="utf-8")
    (folder / "edgeslim.toml").write_text(project.replace("stride = 16", 'stride = 16\ntraining = "training.txt"'))
    return edgeslim.build(target="linux-arm64", folder=folder, use_cache=use_cache)


def test_a_build_prunes_distills_factorizes_and_quantizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESLIM_CACHE", str(tmp_path / "cache"))
    steps = """
[[steps]]
use = "prune_structured"
keep_heads = 0.5
keep_neurons = 0.75
[[steps]]
use = "low_rank"
keep = 0.8
multiple = 4
min_elements = 256
[[steps]]
use = "distill"
max_steps = 3
batch_size = 4
[[steps]]
use = "quantize_decoder"
target_bits = 6
"""
    report = build(tmp_path / "project", steps, use_cache=True)
    assert not report.failed(), report.failed()
    found = {finding.metric: finding for finding in report.findings}
    assert found["token_p50_ms"].value > 0
    metrics = {step.name: step.metrics for step in report.steps}
    assert metrics["prune_structured"]["heads_kept"] == 0.5
    assert metrics["low_rank"]["kept"] < 0.81
    assert metrics["quantize_decoder"]["bits_per_weight"] == pytest.approx(6, abs=0.3)
    assert report.steps[4].after["bytes"] < report.steps[1].before["bytes"] / 3
    # Only the last stage is new: it takes the model that training left in the cache.
    trained = steps.replace("target_bits = 6", "target_bits = 5\ndistill_steps = 2\ndistill_batch_size = 8")
    other = build(tmp_path / "project", trained, use_cache=True)
    assert [step.cached for step in other.steps[:5]] == [True, True, True, True, False]
    assert not other.failed(), other.failed()
    assert other.steps[4].metrics["training_steps"] == 2
    assert other.steps[4].metrics["distill_loss"] < other.steps[4].metrics["distill_loss_before"]


@pytest.mark.parametrize(
    ("steps", "training", "words"),
    [
        ('[[steps]]\nuse = "prune_structured"\nkeep_heads = 0.5\n[[steps]]\nuse = "keep_blocks"', TRAINING, "blocks"),
        (
            '[[steps]]\nuse = "finetune"',
            " ".join(TRAINING.split() + EVALUATED.upper().split()),
            "words in a row that are evaluation data",
        ),
        ('[[steps]]\nuse = "distill"', "Too short.", "at least two windows"),
    ],
)
def test_what_cannot_be(tmp_path: Path, steps: str, training: str, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        build(tmp_path / "project", steps, training=training)


def test_windows_to_train_on_are_whole_and_apart(tmp_path: Path) -> None:
    folder = tiny_llama.write_huggingface(tmp_path / "model")
    (tmp_path / "training.txt").write_text(TRAINING, encoding="utf-8")
    options = DataOptions(training="training.txt", max_length=32, validation_share=0.2)
    data = load_training_windows(options, tmp_path, folder, seed=0)
    assert data is not None
    assert data.labelled()
    assert {batch.feed["input_ids"].shape for batch in (*data.training, *data.validation)} == {(1, 32)}
    assert len(data.validation) == round(0.2 * (len(data.training) + len(data.validation)))
    assert load_training_windows(DataOptions(), tmp_path, folder, seed=0) is None


def test_an_output_layer_of_its_own_is_divided_too(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(1)
    settings = {**tiny_llama.config().to_dict(), "tie_word_embeddings": False}
    module = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(settings)).eval()
    torch.nn.init.normal_(factor_linear(module, "lm_head", 24)[1].weight, std=0.2)
    assert ModuleCheckpoint(module).shape.ranks == {"lm_head": 24}
    ours, theirs = graph_says(module, tmp_path / "graph", 12)
    assert ours == theirs


def test_a_bare_graph_has_no_model_to_change_before_it_is_written_anew(tmp_path: Path) -> None:
    plan = type("Plan", (), {"recipe": parse_recipe([{"use": "low_rank"}, {"use": "quantize_decoder"}], "r.toml")})
    source = type("Source", (), {"kind": "onnx", "spec": "m.onnx"})
    with pytest.raises(BadInputError, match="low_rank works on a torch model"):
        check_source(source, plan, CausalLM())  # type: ignore[arg-type]
