from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_models import FLOAT, by_metric, make_model, make_target, node

from edgeslim.checks import latency
from edgeslim.checks.latency import HostTimes, check_latency, describe_host, measure_pair
from edgeslim.checks.probe import main, measure
from edgeslim.codec import Segment, write_container
from edgeslim.core import Artifact, Budget, Feed, Quiet
from edgeslim.errors import BadInputError, CheckError
from edgeslim.target import Loading

ROWS, SMALL, LARGE = 64, 64, 1024


def save_square(path: Path, size: int) -> Path:
    """``y = x @ w`` with ``w [size, size]`` in external data: 4 size² bytes."""
    path.parent.mkdir()
    weights = numpy_helper.from_array(np.full((size, size), 1 / size, np.float32), "w")
    cut = node("Slice", ["x", "from", "to", "axis"], ["part"])
    indices = {"from": 0, "to": size, "axis": 1}
    model = make_model(
        [cut, node("MatMul", ["part", "w"], ["y"])],
        {"x": FLOAT},
        ["y"],
        initializers=[weights, *(numpy_helper.from_array(np.array([at]), name) for name, at in indices.items())],
    )
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=64)
    return path


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A small candidate beside a reference that works 256 times as much."""
    folder = tmp_path_factory.mktemp("latency")
    small, large = (
        save_square(folder / "small" / "model.onnx", SMALL),
        save_square(folder / "large" / "model.onnx", LARGE),
    )
    packed = pack(small)
    pack(large)
    return Artifact(package=small, model=small, weights=small, packed=packed, manifest=small, reference=large)


def pack(model: Path) -> Path:
    """The container of a model's weights, as a build lays it beside them."""
    packed = model.with_name("weights.esz")
    image = model.with_name("weights.bin").read_bytes()
    write_container(packed, [Segment("w", image, "float32", (len(image) // 4,))])
    return packed


@pytest.fixture(scope="module")
def feed() -> Feed:
    return {"x": np.ones((ROWS, LARGE), np.float32)}


@pytest.fixture(autouse=True)
def _one_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "PROBES", 1)


def test_every_figure_and_its_limit(artifact: Artifact, feed: Feed) -> None:
    budget = Budget(max_latency_ms=1.0, max_latency_ratio=0.9, max_peak_memory_bytes=1 << 30)
    found = by_metric(list(check_latency(artifact, feed, make_target("1.0.0"), budget, rounds=8)))
    values = {metric: finding.value for metric, finding in found.items()}
    assert set(values) == {
        "latency_p50_ms",
        "latency_p95_ms",
        "latency_reference_p50_ms",
        "latency_ratio",
        "device_latency_p50_ms",
        "load_ms",
        "unpack_ms",
        "peak_memory_bytes",
    }
    assert values["unpack_ms"] > 0
    assert "a mapped file" in found["load_ms"].note
    assert 0 < values["latency_p50_ms"] <= values["latency_p95_ms"]
    assert 0 < values["latency_ratio"] < 0.9
    assert found["latency_ratio"].verdict == "pass"
    assert found["latency_ratio"].limit == 0.9
    assert found["load_ms"].verdict == "measured"
    assert found["peak_memory_bytes"].verdict == "pass"
    assert found["latency_p50_ms"].note == f"8 rounds in turns with the float export; x [{ROWS}, {LARGE}]"
    for metric, finding in found.items():
        assert finding.where == ("device" if metric == "device_latency_p50_ms" else describe_host(1))


def test_a_device_budget_is_unjudged_and_absent_without_a_limit(artifact: Artifact, feed: Feed) -> None:
    target = make_target("1.0.0")
    found = by_metric(list(check_latency(artifact, feed, target, Budget(max_latency_ms=30.0), rounds=1)))
    device = found["device_latency_p50_ms"]
    assert (device.value, device.limit, device.verdict, device.where) == (None, 30.0, "unjudged", "device")
    assert "host's figures are not the device's" in device.note
    found = by_metric(list(check_latency(artifact, feed, target, Budget(), rounds=1)))
    assert "device_latency_p50_ms" not in found
    assert {finding.verdict for finding in found.values()} == {"measured"}


def test_a_slower_candidate_and_a_tight_memory_budget_fail(artifact: Artifact, feed: Feed) -> None:
    swapped = replace(artifact, model=artifact.reference, reference=artifact.model)
    budget = Budget(max_latency_ratio=1.0, max_peak_memory_bytes=LARGE * LARGE)
    found = by_metric(list(check_latency(swapped, feed, make_target("1.0.0"), budget, rounds=4)))
    assert found["latency_ratio"].verdict == "fail"
    assert found["latency_ratio"].value > 1
    assert found["peak_memory_bytes"].verdict == "fail"
    assert found["peak_memory_bytes"].value >= 4 * LARGE * LARGE, "the weights alone"


def test_the_two_run_in_turns_and_each_goes_first_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def runner(name: str, pause: float) -> latency.Runner:
        def run(feed: Feed) -> Feed:
            order.append(name)
            time.sleep(pause)
            return feed

        return run

    monkeypatch.setattr(latency, "WARM_UP_ROUNDS", 2)
    times = measure_pair(runner("a", 0.004), runner("b", 0.008), {}, rounds=4, progress=Quiet())
    assert "".join(order) == "abab" + "abbaabba"
    assert len(times.reference_ms) == len(times.candidate_ms) == 4
    assert min(times.reference_ms) >= 4
    assert min(times.candidate_ms) >= 8


def test_the_ratio_is_the_median_of_the_pairs() -> None:
    """One round that the whole host slept through changes nothing; a ratio of medians would be 30 / 20."""
    times = HostTimes(reference_ms=(10.0, 20.0, 40.0), candidate_ms=(5.0, 30.0, 100.0))
    assert times.ratio == 1.5
    assert HostTimes(reference_ms=(10.0, 10.0, 500.0), candidate_ms=(5.0, 5.0, 260.0)).ratio == 0.5


def test_the_host_is_described_by_what_decides_on_kernels() -> None:
    assert re.fullmatch(r"host: .+, 1 thread, CPUExecutionProvider, [a-z0-9_ ]+", describe_host(1))
    assert ", 4 threads, " in describe_host(4)
    assert ", all cores, " in describe_host(0)
    cpuinfo = Path("/proc/cpuinfo").read_text()
    assert ("avx2" in describe_host(1).split()) == bool(re.search(r"\bavx2\b", cpuinfo))


def test_the_probe_tells_memory_and_load_time_of_a_fresh_process(
    artifact: Artifact, feed: Feed, tmp_path: Path
) -> None:
    added = {}
    for path in (artifact.model, artifact.reference):
        packed = path.with_name("weights.esz")
        (first, *_) = latency._probe(replace(artifact, model=path, packed=packed), feed, 1, "lowest")
        assert first["way"] == "file"
        assert first["unpack_ms"] > 0
        assert first["measured_by"] in ("VmHWM", "ru_maxrss")
        assert first["added_bytes"] == first["peak_bytes"] - first["baseline_bytes"]
        assert first["load_ms"] > 0
        assert first["first_run_ms"] > 0
        added[path] = first["added_bytes"]
    assert added[artifact.reference] - added[artifact.model] > 0.8 * 4 * (LARGE**2 - SMALL**2)


@pytest.mark.parametrize("way", ["tensors", "memory"])
def test_the_way_that_the_profile_chooses_is_measured(way: Loading, artifact: Artifact, feed: Feed) -> None:
    """Decoding in memory costs the weights once more than a mapped file does."""
    target = make_target("1.0.0")
    target = replace(target, runtime=replace(target.runtime, loading=way))
    large = replace(artifact, model=artifact.reference, packed=artifact.reference.with_name("weights.esz"))
    found = by_metric(list(check_latency(replace(large, reference=None), feed, target, Budget(), rounds=1)))
    assert "unpack_ms" not in found
    assert found["load_ms"].value > 0
    assert {"tensors": "an array a tensor", "memory": "one buffer"}[way] in found["load_ms"].note
    assert found["peak_memory_bytes"].value > 4 * LARGE**2


def test_any_input_name_reaches_the_probe(tmp_path: Path) -> None:
    model = make_model([node("Add", ["file", "a/b:0"], ["y"])], {"file": FLOAT, "a/b:0": FLOAT}, ["y"])
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    latency._write_feed(tmp_path / "feed.npz", {name: np.ones(3, np.float32) for name in ("file", "a/b:0")})
    assert measure(path, tmp_path / "feed.npz", 1)["load_ms"] > 0


def test_the_probe_on_the_command_line(artifact: Artifact, feed: Feed, tmp_path: Path) -> None:
    inputs = tmp_path / "feed.npz"
    np.savez(inputs, **feed)
    command = [sys.executable, "-m", "edgeslim.checks.probe", str(artifact.model), str(inputs)]
    root = str(Path(latency.__file__).parents[2])
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": root})
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {
        "way",
        "unpack_ms",
        "load_ms",
        "first_run_ms",
        "baseline_bytes",
        "peak_bytes",
        "added_bytes",
        "measured_by",
    }


def test_a_model_that_cant_be_opened(
    artifact: Artifact, feed: Feed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInputError, match="can't open it"):
        list(check_latency(replace(artifact, model=broken), feed, make_target("1.0.0"), Budget(), rounds=1))
    np.savez(tmp_path / "feed.npz", **feed)
    assert main([str(broken), str(tmp_path / "feed.npz"), "1"]) == BadInputError.exit_code
    assert "can't open it" in capsys.readouterr().err
    with pytest.raises(CheckError, match="ended with status 3"):
        latency._probe(replace(artifact, model=broken), feed, 1, "file")
