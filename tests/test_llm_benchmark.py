"""benchmarks/llm.py on a tiny model: its rows, its arithmetic and what it prints."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tiny_llama

from edgeslim.decoders.gguf import GgufCheckpoint
from edgeslim.decoders.torch_decoder import make_module

FOLDER = Path(__file__).parent.parent / "benchmarks"
ROWS = "int8 inputs,coarse table,trained,int4 GPTQ,AWQ,4 and 8,2:4,neurons,low rank,ORT"


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import llm

    data = tmp_path / "data"
    data.mkdir()
    (data / "calibration.txt").write_text(tiny_llama.TEXT)
    (data / "evaluation.txt").write_text("A dog of the lazy kind jumps 12 times over a fox. " * 60)
    (data / "training.txt").write_text(" ".join(f"Fox {number} sees the dog." for number in range(300)))
    kinds = {"token_embd": "Q8_0", "": "Q4_1"}
    monkeypatch.setattr(llm, "MODEL", str(tiny_llama.write_gguf(tmp_path / "m.gguf", kinds)))
    monkeypatch.setattr(llm, "SAMPLE", tmp_path)
    stages = {name: (kind, {**settings, **TINY.get(name, {})}) for name, (kind, settings) in llm.STAGES.items()}
    monkeypatch.setattr(llm, "STAGES", stages)
    return llm


TINY = {
    "edgeslim blocks kept, coarse table": {"target_bits": 5.5},
    "edgeslim coarse, 3.15 bits, trained": {"distill_steps": 2, "distill_precision": "float32"},
    "edgeslim low rank, 90 %": {"multiple": 4, "min_elements": 1024},
}


def test_the_table(
    llm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.json"
    command = ["llm.py", "--rows", ROWS, "--tokens", "400", "--rounds", "2", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", [*command, "--keep", str(tmp_path / "kept")])
    llm.main()
    rows = {row["method"]: row for row in json.loads(out.read_text())["rows"]}
    assert next(iter(rows)) == "fp32"
    assert set(rows) - set(llm.STAGES) - {"fp32"} == {"ORT int4 RTN", "ORT 8-bit blocks", "ORT dynamic int8"}
    assert rows["fp32"]["perplexity"] == pytest.approx(perplexity(llm, tmp_path), rel=1e-4)
    for name, row in rows.items():
        assert row["perplexity_ratio"] == pytest.approx(row["perplexity"] / rows["fp32"]["perplexity"])
        assert row["tokens"] >= 400
        assert row["decode_ms"] > 0, name
        assert row["prefill_ratio"] > 0, name
        assert row["package_bytes"] > 0
    kept = rows["edgeslim blocks kept, int8 inputs"]
    assert kept["perplexity_ratio"] == pytest.approx(1, abs=0.05)
    assert rows["edgeslim blocks kept, coarse table"]["package_bytes"] < kept["package_bytes"]
    printed = capsys.readouterr().out
    assert printed.count("\n| ") == len(rows) + 1
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.onnx"))
    llm.main()
    assert before == sorted(path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.onnx"))


def perplexity(llm: ModuleType, folder: Path) -> float:
    """By transformers' model and torch's own loss, window by window."""
    import torch

    subject = llm.Subject(folder / "again", 400)
    module = make_module(GgufCheckpoint(folder / "m.gguf"))
    lost, count = 0.0, 0
    for batch in subject.evaluation:
        tokens = torch.from_numpy(np.asarray(batch.feed["input_ids"]))[0]
        with torch.no_grad():
            logits = module(tokens[None]).logits[0]
        scored = min(batch.scored, len(tokens) - 1)
        losses = torch.nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="none")
        lost, count = lost + float(losses[len(losses) - scored :].sum()), count + scored
    return math.exp(lost / count)


def test_weights_off_the_grid(llm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other weights, the same logits; a little training changes them, and rows are measured beside what came of it."""
    import off_grid
    import torch

    subject = llm.Subject(tmp_path / "on", 100)
    plain, moved = make_module(subject.checkpoint), make_module(subject.checkpoint)
    off_grid.move_scales(moved, np.random.default_rng(0))
    tokens = torch.from_numpy(subject.calibration[0].feed["input_ids"])
    with torch.no_grad():
        torch.testing.assert_close(moved(tokens).logits, plain(tokens).logits, atol=1e-4, rtol=1e-4)
    before = plain.state_dict()
    for name, weight in moved.state_dict().items():
        if weight.ndim == 2 and "embed" not in name and "lm_head" not in name:
            ratios = weight / before[name]
            assert ratios[torch.isfinite(ratios)].std() > 0.1, name
    monkeypatch.setattr(off_grid, "STEPS", 2)
    trained = llm.Subject(tmp_path / "off", 100, off_grid=True)
    with torch.no_grad():
        logits = make_module(trained.checkpoint)(tokens).logits
        assert not torch.allclose(logits, plain(tokens).logits, atol=1e-5)
        assert torch.nn.functional.cosine_similarity(logits, plain(tokens).logits, dim=-1).min() > 0.9
    rows = llm.measure_rows(["edgeslim int4 RTN", "ORT int4 RTN"], trained, 100, 0)
    assert [row["method"] for row in rows] == ["fp32", "edgeslim int4 RTN", "ORT int4 RTN"]
