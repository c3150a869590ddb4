"""``report.html``: that it says what was measured, needs nothing from outside, and reads well in a real browser."""

from __future__ import annotations

import json
import os
import re
import zipfile
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from headless import NAMES, find_browser, open_page

import edgeslim
from edgeslim import html
from edgeslim.checks import latency
from edgeslim.comparison import BlockBytes, Comparison, Levels
from edgeslim.core import ArtifactInfo, Finding, Report, StepRecord
from edgeslim.html_charts import Point, draw_bar, draw_levels, draw_points, draw_strips, percentile, text
from edgeslim.module_paths import GROUPS

EVIL = "<script>alert(1)</script>\"'&\x1b\u202e"
VOID = {"meta", "br", "wbr", "link", "img"}
FLOATS = (10.0, 12.5, 11.0, 10.5)
OURS = (5.0, 4.0, 6.0, 4.5)


class Reader(HTMLParser):
    """Checks that tags close in order; keeps the text, the tags and their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag not in ("span", "small"):
            self.words.append(" ")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def made_report(name: str = "net", **changes: Any) -> Report:
    at_most = Finding.at_most
    findings = (
        at_most("accuracy", "drop", 0.004, "", 0.01, "host, 40 samples", f"1 - mean cosine {name}"),
        at_most("size", "package_bytes", 2_000_000, "bytes", 3e6, f"{name}.aar"),
        at_most("latency", "latency_p50_ms", 4.75, "ms", None, "host: CPU", "4 rounds", OURS),
        at_most("latency", "latency_reference_p50_ms", 10.75, "ms", None, "host: CPU", samples=FLOATS),
        at_most("latency", "latency_ratio", 0.44, "ratio", None, "host: CPU"),
        at_most("latency", "device_latency_p50_ms", None, "ms", 40.0, "device", "no device was measured"),
        at_most("memory", "peak_memory_bytes", 5e6, "bytes", None, "host: CPU"),
    )
    step = {"seconds": 1.5, "metrics": {"weights_bytes": 2e6, "layers": 2.0, "odd": 0.125}}
    skipped = {f"{name}/MatMul_{index}": "no weight" for index in range(45)} | {f"{name}/Gather": "too small"}
    steps = (
        StepRecord(name="export", changed=1, bytes=8_000_000, skipped={}, engine="torch", **step),
        StepRecord(name="quantize_int8", changed=7, bytes=2_100_000, skipped=skipped, cached=True, **step),
    )
    report = Report(
        target="board",
        artifact=ArtifactInfo(path=f"out/{name}.aar", bytes=2_000_000),
        steps=steps,
        findings=findings,
        notes=(f"a note on {name}",),
        environment={"edgeslim": "0.1.0"},
    )
    return replace(report, **changes)


def made_comparison(name: str = "net") -> Comparison:
    levels = Levels(
        name=f"{name}.weight",
        dtype="int8",
        shape=(4, 4),
        grid="3 of 256 levels used",
        step=1.0,
        positions=tuple(map(float, range(-128, 128))),
        counts=(0,) * 127 + (4, 8, 4) + (0,) * 126,
        stored_bytes=4,
    )
    blocks = (
        BlockBytes(block=f"{name}.0", layers=3, before=(0, 400, 1200, 8), after=(0, 100, 300, 8)),
        BlockBytes(block=f"{name}.embed", layers=1, before=(800, 0, 0, 0), after=(200, 0, 0, 0)),
    )
    return Comparison(blocks=blocks, levels=(levels,))


# What it says


def test_it_says_what_the_report_says() -> None:
    read = Reader(html.render_report(made_report(), made_comparison())).text
    for words in (
        "net.aar for board",
        "✓ all 2 limits held; ? 1 could not be judged",
        "from 8.00 MB as float: 25.0% of it; limit 3.00 MB, pass",
        "drop 0.004 ≤ 0.01 ✓ pass",
        "device_latency_p50_ms – ≤ 40 ms ? unjudged no device was measured",
        "0.44 of float's 10.8 ms",
        "net.0 1.61 kB → 408 B, 25.4%",
        "entropy 1.50 bits; 2.00 bits stored",
        "50.0% zeros",
        "quantize_int8 7 2.10 MB 1.5 s, kept weights_bytes 2.00 MB; layers 2; odd 0.125",
        "45 × no weight",
        "and 5 more, all of them in report.json",
        "1 × too small",
        "p50 4.8 ms, p95 5.8 ms, 4 runs",
        "a note on net",
    ):
        assert words in read, words


def test_a_missed_limit_and_missing_figures() -> None:
    bad = Finding.at_most("size", "package_bytes", 5e6, "bytes", 3e6, "net.aar")
    read = Reader(html.render_report(made_report(findings=(bad,), steps=(), notes=()), None)).text
    assert "✗ 1 of 1 limits missed" in read
    assert "package_bytes 5.00 MB ≤ 3.00 MB ✗ fail" in read
    for heading in ("Bytes by layer", "grids", "Quality against size", "Latency", "left alone", "Notes"):
        assert heading not in read


@pytest.mark.parametrize("drop", [float("nan"), float("inf"), None])
def test_a_loss_that_is_no_number_has_no_picture(drop: float | None) -> None:
    page = html.render_report(made_report(findings=(Finding.at_most("accuracy", "drop", drop, "", 0.1, "host"),)), None)
    assert "Quality against size" not in page
    assert '"chart"' not in page.split("</style>")[1]


def test_stages_that_measured_themselves_are_points_too() -> None:
    first, second = made_report().steps
    report = made_report(steps=(first, replace(second, metrics={"drop": 0.002})))
    page = html.render_report(report, None)
    read = Reader(page).text
    assert "2 quantize_int8 2.10 MB 0.002 3 this package 2.00 MB 0.004" in read
    assert re.findall(r'class="strong" x="[\d.]+" y="[\d.]+" text-anchor="\w+">(\d)<', page) == ["1", "2", "3"]


def test_it_is_the_same_each_time() -> None:
    assert html.render_report(made_report(), made_comparison()) == html.render_report(made_report(), made_comparison())


def test_groups_are_those_of_the_anatomy() -> None:
    assert [name.replace("feed-forward", "ffn") for name in html.GROUPS] == list(GROUPS)


# What it must not do


@pytest.fixture(scope="module")
def evil_page() -> str:
    """A page whose every name, note and path is hostile."""
    return html.render_report(made_report(EVIL), made_comparison(EVIL))


def test_names_stay_text(evil_page: str) -> None:
    read = Reader(evil_page)
    assert {tag for tag, _ in read.tags} & {"script", "iframe", "object", "embed", "base", "form", "link"} == set()
    assert not [name for _, given in read.tags for name in given if name.startswith("on")]
    assert "<script" not in evil_page
    assert "\x1b" not in evil_page
    assert "\u202e" not in evil_page
    assert read.text.count("alert(1)") >= 8


def test_nothing_comes_from_outside(evil_page: str) -> None:
    assert not re.search(r"https?:|//[a-z]|@import|\bsrc\s*=|\bhref\s*=", evil_page)
    assert set(re.findall(r"url\(([^)]*)\)", evil_page)) <= {"#p1", "#p2", "#p3"}
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in evil_page


def test_text() -> None:
    assert text("a<b>&\"'\n\x07é漢") == "a&lt;b&gt;&amp;&quot;&#x27;��é漢"


# Pictures


def numbers(pattern: str, drawing: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, drawing)]


def test_percentiles_are_those_of_numpy() -> None:
    samples = np.random.default_rng(2).gamma(3, 4, 37)
    for share in (0, 5, 50, 95, 100):
        assert percentile(samples.tolist(), share) == pytest.approx(np.percentile(samples, share))
    assert percentile([3.0], 95) == 3.0


def test_a_bar_shows_each_part_in_its_length() -> None:
    drawing = draw_bar((10, 0, 30, 10), 200, "sizes")
    widths = numbers(r'class="g\d" x="[\d.]+%" width="([\d.]+)%"', drawing)
    assert widths == [5, 15, 5]
    assert numbers(r'class="g\d" x="([\d.]+)%"', drawing) == [0, 5, 20]
    assert 'fill="url(#p2)"' in drawing
    assert 'width="1"' in draw_bar((0, 0, 1, 0), 10**9, "tiny, but there")
    assert "<rect" not in draw_bar((0, 0), 10, "nothing")


def test_levels_rise_as_their_counts_do() -> None:
    counts = [0] * 256
    counts[100], counts[101], counts[102] = 5, 10, 20
    drawing = draw_levels(range(-128, 128), counts, 1.0, "t")
    tops = numbers(r"V(-?[\d.]+)H", drawing)
    heights = [96 - top for top in tops]
    assert len(heights) == 256
    assert heights[102] == 2 * heights[101] == 4 * heights[100] == 80
    assert sum(heights) == 140
    assert ">−128<" in drawing
    assert ">127<" in drawing


def test_a_level_far_above_the_others_is_cut_off_and_named() -> None:
    counts = [10] * 16
    counts[8] = 10_000
    drawing = draw_levels(range(-8, 8), counts, 1.0, "int4")
    assert "↑ 0: 98.5%" in drawing
    tops = numbers(r"V([\d.]+)h", drawing)
    assert min(tops) == 16
    assert 96 - tops[0] == pytest.approx(80 / 1.25)


def test_a_single_level_and_a_codebook() -> None:
    assert "NaN" not in draw_levels([0.0], [7], 0.0, "t")
    drawing = draw_levels([-1.0, 0.5, 3.0], [1, 2, 1], 0.0, "book")
    middles = [start + 1 for start in numbers(r"M([\d.]+) 96V[\d.]+h", drawing)]
    assert middles == pytest.approx([6, 6 + 348 * 1.5 / 4, 354], abs=0.1)


def test_points_lie_where_their_figures_say() -> None:
    points = [Point(label="float", bytes=100, drop=0.0), Point(label="<ours>", bytes=25, drop=0.008)]
    drawing = draw_points(points, 30, 0.01, "t")
    assert "&lt;ours&gt;" in drawing
    (x,), (y,) = numbers(r'cx="([\d.]+)"', drawing), numbers(r'cy="([\d.]+)"', drawing)
    (ours_x,) = numbers(r'class="ours" x="([\d.]+)"', drawing)
    (ours_y,) = numbers(r'class="ours" x="[\d.]+" y="([\d.]+)"', drawing)
    assert (ours_x + 4.5 - 46) / (x - 46) == pytest.approx(0.25, abs=0.005)
    assert y == 16
    assert (ours_y + 4.5 - 16) / 180 == pytest.approx(0.008 / 0.0125, abs=0.005)
    assert "drop ≤ 0.01" in drawing
    assert "≤ 30 B" in drawing
    crowd = draw_points([Point(label=str(number), bytes=50, drop=0.005) for number in range(4)], None, None, "t")
    lines = sorted(numbers(r'class="strong" x="[\d.]+" y="([\d.]+)"', crowd))
    assert np.diff(lines) == pytest.approx([13, 13, 13])
    better = draw_points([points[0], replace(points[1], drop=-0.01)], None, None, "better than float")
    assert 'class="limit"' not in better
    assert min(numbers(r' y="(-?[\d.]+)" width="9"', better)) >= 0


def test_strips_show_every_run_and_count_what_lies_far_out() -> None:
    ours = [*np.linspace(4, 5, 40).tolist(), 500.0]
    drawing = draw_strips([("float", FLOATS), ("ours", ours)], "t")
    assert len(re.findall("<circle", drawing)) == len(FLOATS) + len(ours)
    assert "1 beyond ›" in drawing
    assert max(numbers(r'cx="([\d.]+)"', drawing)) <= 348
    assert f"p50 {np.percentile(ours, 50):.1f} ms, p95 {np.percentile(ours, 95):.1f} ms, 41 runs" in drawing


# A real build


@dataclass(frozen=True, kw_only=True)
class Made:
    """A build's output."""

    out: Path
    report: Report

    @property
    def page(self) -> Path:
        return self.out / "report.html"


@pytest.fixture(scope="module")
def made(tiny_bert: Path, text_files: Any, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(latency, "PROBES", 1)
        report = edgeslim.build(
            str(tiny_bert), target="android-arm64", data=str(text_files.txt), max_latency="40ms", out="made"
        )
    assert not report.failed(), report.failed()
    return Made(out=folder / "made", report=report)


def test_a_build_writes_the_page_beside_its_package(made: Made) -> None:
    page = made.page.read_text(encoding="utf-8")
    read = Reader(page).text
    assert "encoder.layer.1" in read
    assert "embeddings.word_embeddings" in read
    assert "quantize_int8 left alone" in read
    assert len(re.findall('class="float dot"', page)) == len(re.findall('class="ours dot"', page)) == 30
    assert len(page) < 100_000
    with zipfile.ZipFile(made.out.parent / made.report.artifact.path) as package:
        assert not [name for name in package.namelist() if name.endswith((".html", "report.json"))]
    assert list(made.out.rglob("*.html")) == [made.page]


def test_the_single_runs_are_in_the_report_too(made: Made) -> None:
    plain = json.loads((made.out / "report.json").read_text(encoding="utf-8"))
    by_metric = {item["metric"]: item for item in plain["findings"]}
    for metric in ("latency_p50_ms", "latency_reference_p50_ms"):
        samples = by_metric[metric]["samples"]
        assert len(samples) == 30
        assert np.median(samples) == pytest.approx(by_metric[metric]["value"], abs=1e-3)
    assert "samples" not in by_metric["latency_ratio"]


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)``, as WCAG 2 defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


COLOURS = """(() => {
  const seen = new Set();
  for (const node of document.querySelectorAll("h1, p, td, th, code, small, b, span, figcaption, .chart text")) {
    const style = getComputedStyle(node);
    if (node.textContent.trim()) seen.add(node.closest("svg") ? style.fill : style.color);
  }
  return [...seen];
})()"""
CUT = """[...document.querySelectorAll(".chart")].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter(node => {
    const at = node.getBoundingClientRect();
    return at.left < box.left - 1 || at.right > box.right + 1 || at.bottom > box.bottom + 1 || at.top < box.top - 1;
  }).map(node => node.textContent);
})"""


@pytest.mark.slow
def test_a_browser_shows_it_whole_in_light_and_dark(made: Made, tmp_path: Path, evil_page: str) -> None:
    browser = find_browser()
    if browser is None:
        pytest.fail(f"none of {', '.join(NAMES)} is installed: apt-get install -y chromium")
    hostile = tmp_path / "evil.html"
    hostile.write_text(evil_page, encoding="utf-8")
    profile = tmp_path / "profile"
    profile.mkdir()
    papers = {}
    with open_page(browser, profile) as page:
        for path in (made.page, hostile):
            for scheme in ("light", "dark"):
                for width in (390, 1280):
                    page.open(path, width=width, scheme=scheme)
                    assert page.evaluate("document.querySelectorAll('section').length") >= 7
                    assert page.evaluate("document.documentElement.scrollWidth") == width
                    assert page.evaluate(CUT) == []
                    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
                    papers[scheme] = luminance(paper)
                    for colour in page.evaluate(COLOURS):
                        dark, light = sorted((luminance(colour), luminance(paper)))
                        assert (light + 0.05) / (dark + 0.05) >= 4.5, (scheme, colour, paper)
        assert page.complaints() == []
        assert {url.partition(":")[0] for url in page.requests()} == {"file"}
        assert len(page.requests()) == 8
        if "EDGESLIM_SCREENSHOTS" in os.environ:  # to look at
            page.screenshot(Path(os.environ["EDGESLIM_SCREENSHOTS"]) / "report.png")
    assert papers["light"] > 0.9
    assert papers["dark"] < 0.05
