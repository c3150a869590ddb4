from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from edgeslim.core import ArtifactInfo, Finding, Report, StepRecord
from edgeslim.report import format_value, print_report


def finding(metric: str, value: float | None, limit: float | None = None, **more: Any) -> Finding:
    given = {"check": "size", "unit": "bytes", "where": "host", "note": ""} | more
    return Finding.at_most(given["check"], metric, value, given["unit"], limit, given["where"], given["note"])


def report(*findings: Finding, **more: Any) -> Report:
    step = StepRecord(
        name="quantize_int8",
        seconds=1.26,
        changed=12,
        bytes=20_900_000,
        skipped={"a": "too small", "b": "too small", "c": "kept float by the recipe [head]"},
        metrics={"linear_layers": 12.0},
    )
    return Report(
        target="android-arm64",
        artifact=ArtifactInfo(path="out/tiny.aar", bytes=20_900_000),
        steps=(step,),
        findings=findings,
        **more,
    )


def shown(what: Report, *, written: bool = True, width: int = 100, colour: bool = False) -> str:
    stream = io.StringIO()
    print_report(what, Console(file=stream, width=width, force_terminal=colour), written=written)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (20_900_000, "bytes", "20.90 MB"),
        (1_000_000, "bytes", "1.00 MB"),
        (999_949, "bytes", "999.95 kB"),
        (999, "bytes", "999 B"),
        (0, "bytes", "0 B"),
        (3.2e9, "bytes", "3.20 GB"),
        (-5000, "bytes", "-5.00 kB"),
        (12.3456, "ms", "12.35 ms"),
        (12.0, "ms", "12 ms"),
        (0.992345, "", "0.9923"),
        (1.0, "", "1"),
        (0.0, "", "0"),
        (200.0, "", "200"),
        (1e-7, "", "1e-07"),
        (2e15, "", "2e+15"),
        (float("nan"), "", "nan"),
        (float("inf"), "ms", "inf ms"),
    ],
)
def test_format_value(value: float, unit: str, text: str) -> None:
    assert format_value(value, unit) == text


@pytest.mark.parametrize(
    ("value", "limit", "verdict"),
    [
        (1.0, None, "measured"),
        (None, None, "measured"),
        (1.0, 1.0, "pass"),
        (1.1, 1.0, "fail"),
        (None, 1.0, "unjudged"),
        (float("nan"), 1.0, "fail"),
    ],
)
def test_verdicts(value: float | None, limit: float | None, verdict: str) -> None:
    assert finding("m", value, limit).verdict == verdict


def test_failed_and_unjudged() -> None:
    made = report(finding("a", 1, 2), finding("b", 3, 2), finding("c", None, 2), finding("d", 1))
    assert [item.metric for item in made.failed()] == ["b"]
    assert [item.metric for item in made.unjudged()] == ["c"]


def test_json() -> None:
    made = report(finding("package_bytes", 20_900_000, 21_500_000), notes=("größer",), environment={"edgeslim": "0"})
    text = made.to_json()
    plain = json.loads(text)
    assert plain == json.loads(json.dumps(made.to_dict()))
    assert list(plain) == ["schema", "target", "artifact", "steps", "findings", "notes", "environment"]
    assert plain["schema"] == 1
    assert plain["artifact"] == {"path": "out/tiny.aar", "bytes": 20_900_000}
    assert plain["steps"][0]["skipped"]["a"] == "too small"
    assert plain["findings"] == [
        {
            "check": "size",
            "metric": "package_bytes",
            "value": 20_900_000,
            "unit": "bytes",
            "limit": 21_500_000,
            "verdict": "pass",
            "where": "host",
            "note": "",
        }
    ]
    assert text.endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_json_knows_no_nan(value: float) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} isn't JSON")

    plain = json.loads(report(finding("loss", value, 1.0)).to_json(), parse_constant=refuse)
    assert plain["findings"][0]["value"] is None


def test_what_a_person_reads() -> None:
    text = shown(
        report(
            finding("package_bytes", 20_900_000, 21_500_000),
            finding("cosine_mean", 0.99234, None, check="accuracy", unit=""),
            finding("device_latency_p50_ms", None, 40.0, check="latency", unit="ms", where="device", note="no device"),
            notes=("calibrated on [something] else",),
        )
    )
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["edgeslim"] == ["edgeslim", "build", "for", "android-arm64"]
    assert lines["quantize_int8"][:6] == ["quantize_int8", "12", "20.90", "MB", "1.3", "s"]
    assert "2 × too small" in text
    assert "1 × kept float by the recipe [head]" in text
    assert lines["package_bytes"] == ["package_bytes", "20.90", "MB", "≤", "21.50", "MB", "pass"]
    assert lines["cosine_mean"] == ["cosine_mean", "0.9923", "measured"]
    assert lines["device_latency_p50_ms"] == ["device_latency_p50_ms", "–", "≤", "40", "ms", "unjudged"]
    assert "unjudged: device_latency_p50_ms: no device" in text
    assert "note: calibrated on [something] else" in text
    assert text.splitlines()[-1] == "out/tiny.aar (20.90 MB); 1 unjudged: latency.device_latency_p50_ms"


@pytest.mark.parametrize(
    ("findings", "written", "last"),
    [
        ([finding("a", 1, 2)], True, "out/tiny.aar (20.90 MB); all checks passed"),
        ([finding("a", 3, 2), finding("b", 4, 2)], False, "no package was written; 2 failed: size.a, size.b"),
        (
            [finding("a", 3, 2), finding("b", None, 2)],
            False,
            "no package was written; 1 failed: size.a; 1 unjudged: size.b",
        ),
    ],
)
def test_the_last_line(findings: list[Finding], written: bool, last: str) -> None:
    assert shown(report(*findings), written=written).splitlines()[-1] == last


def test_a_verdict_is_a_word_with_colours_and_without() -> None:
    made = report(finding("a", 3, 2), finding("b", 1, 2), finding("c", None, 2), finding("d", 1))
    for colour in (False, True):
        text = shown(made, written=False, colour=colour)
        assert ("\x1b[" in text) == colour
        for verdict in ("fail", "pass", "unjudged", "measured"):
            assert verdict in text


@pytest.mark.parametrize("name", ["f1[macro]", "loss[/b]", "[red]x[/red]", "[link=y]"])
def test_names_of_a_users_own_are_shown_as_they_are(name: str) -> None:
    text = shown(report(finding(name, 3, 2, check="accuracy", where=f"host {name}", note=name)), written=False)
    assert text.count(name) == 5


def test_a_narrow_terminal_hides_no_figure() -> None:
    text = shown(report(finding("package_bytes", 20_900_000, 21_500_000)), width=80)
    assert "package_bytes" in text
    assert "≤ 21.50 MB" in text
    assert "pass" in text


def test_a_stage_that_fitted_a_size_says_what_came_of_it() -> None:
    fitted = {"storage_bits": 3.4012, "predicted_bytes": 9_700_000.0, "packed_bytes": 9_712_345.0}
    made = report()
    step = replace(made.steps[0], metrics=fitted)
    text = shown(replace(made, steps=(step,)))
    assert "quantize_int8: 3.40 bits a weight; weights 9.71 MB, predicted 9.70 MB" in text
    assert "bits a weight" not in shown(made)
