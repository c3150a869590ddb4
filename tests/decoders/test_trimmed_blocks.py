"""Blocks of a file with fewer significant bits in their scales, and a coarse table beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import tiny_llama
from scipy import stats

from edgeslim.core import Batch, Context, StepResult
from edgeslim.decoders.decoder_graph import write_decoder
from edgeslim.decoders.gguf import GgufCheckpoint
from edgeslim.decoders.stored_blocks import StoredBlocks, unpack_blocks
from edgeslim.decoders.trimmed_blocks import count_entropy_bits, trim_scales
from edgeslim.errors import BadInputError
from edgeslim.graphs.graph import constant_array, load_graph
from edgeslim.language_task import CausalLM
from edgeslim.stages.quantize_decoder import QuantizeDecoder
from edgeslim.target import load_target


def stored(kind: str = "Q4_1") -> StoredBlocks:
    import gguf

    weight = np.random.default_rng(0).normal(size=(48, 96)).astype(np.float32)
    data = gguf.quantize(weight, gguf.GGMLQuantizationType[kind])
    return unpack_blocks(data, kind, weight.shape)


def test_levels_stay_and_scales_have_few_significant_bits() -> None:
    before = stored()
    after = trim_scales(before, 6)
    np.testing.assert_array_equal(after.weight.levels, before.weight.levels)
    assert after.minimum is not None
    for values in (after.weight.grid.scale, after.minimum):
        mantissa = np.frexp(values)[0] * 64
        np.testing.assert_array_equal(mantissa, np.rint(mantissa))
    assert count_entropy_bits(after) < count_entropy_bits(before)


def test_a_minimum_makes_up_for_its_scales_rounding() -> None:
    before = stored()
    after = trim_scales(before, 6)
    assert before.minimum is not None
    assert after.minimum is not None
    lost = (after.dequantize() - before.dequantize()).reshape(48, 3, 32)
    half_step = 0.5 / 32 * np.abs(before.minimum)  # of a minimum of 6 significant bits, at most
    assert np.all(np.abs(lost.mean(axis=2)) <= half_step * 1.1)
    apart = replace(after, minimum=trim_scales(replace(before, weight=after.weight), 6).minimum)
    assert np.square(lost).sum() < np.square(apart.dequantize() - before.dequantize()).sum()


def test_blocks_of_equal_weights_keep_a_scale_of_zero() -> None:
    import gguf

    data = gguf.quantize(np.full((1, 32), 0.375, np.float32), gguf.GGMLQuantizationType.Q4_1)
    np.testing.assert_array_equal(trim_scales(unpack_blocks(data, "Q4_1", (1, 32)), 4).dequantize(), 0.375)


def test_entropies_are_those_of_scipy() -> None:
    blocks = stored("Q4_0")
    wanted = 0.0
    for values in (blocks.weight.levels, blocks.weight.grid.scale):
        wanted += stats.entropy(np.unique(values, return_counts=True)[1], base=2) * values.size
    assert count_entropy_bits(blocks) == pytest.approx(wanted)


def run(folder: Path, kinds: dict[str, str], stage: QuantizeDecoder) -> tuple[GgufCheckpoint, StepResult[ir.Model]]:
    checkpoint = GgufCheckpoint(tiny_llama.write_gguf(folder / "m.gguf", kinds))
    tokens = np.array([[5, 77, 130, 9, 41, 200, 3, 18]])
    context = Context(
        target=load_target("linux-arm64"), task=CausalLM(), calibration=[Batch(feed={"input_ids": tokens}, rows=1)],
        reference=lambda feed: feed, seed=0, work_dir=folder / "work", checkpoint=checkpoint,
    )  # fmt: skip
    return checkpoint, stage.run(load_graph(write_decoder(checkpoint, folder / "float")), context)


def test_kept_blocks_stay_and_the_rest_takes_what_is_left(tmp_path: Path) -> None:
    stage = QuantizeDecoder(keep="blocks", target_bits=5.0, arithmetic="mixed")
    checkpoint, result = run(tmp_path, {"token_embd": "Q8_0", "": "Q4_1"}, stage)
    assert result.metrics["matrices_kept"] == 14
    assert result.metrics["bits_per_weight"] == pytest.approx(5, abs=0.1)
    values = result.model.graph.initializers
    for path in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        blocks = checkpoint.read_blocks(f"{path}.weight")
        assert blocks is not None
        np.testing.assert_array_equal(constant_array(values[f"{path}.weight_q4"]), blocks.weight.packed())
    kinds = {
        node.attributes["bits"].as_int(): node.attributes["accuracy_level"].as_int()
        for node in result.model.graph
        if node.op_type == "MatMulNBits"
    }
    assert kinds == {4: 0, 8: 4}


def test_what_keeping_leaves_no_room_for_is_refused(tmp_path: Path) -> None:
    for name, kinds, bits, match in (
        ("low", {"token_embd": "Q8_0", "": "Q4_1"}, 3.0, "at least"),
        ("all", {"": "Q4_1"}, 5.0, "all are blocks"),
    ):
        (tmp_path / name).mkdir()
        with pytest.raises(BadInputError, match=match):
            run(tmp_path / name, kinds, QuantizeDecoder(keep="blocks", target_bits=bits))
