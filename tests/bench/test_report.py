"""The report, opened in a real browser as from a mail: no error, no request, all there."""

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex
from PIL import Image

from bench.benchmarking import corpus, report, thumbnails
from bench.benchmarking.compare import compare
from bench.benchmarking.palette import DARK, LIGHT, SERIES
from bench.benchmarking.plots import shades
from bench.benchmarking.rows import Row, Sample, Writer
from bench.benchmarking.run import Files
from bench.benchmarking.strips import strips
from tests.bench.browser import Page
from tests.bench.made import made, samples, steady, summary
from tests.bench.test_verdict import some

HOSTILE = '<script>document.title="x"</script><img src="http://127.0.0.1:9/x.png">'
THUMBNAILS_SHOWN = "[...document.images].every(i => i.complete && i.naturalWidth > 90)"
CHARTS = "[...document.querySelectorAll('[role=img]')]"
LONG_NAME = f"front-door-{'2026-11-25T12-00-00-' * 5}left.jpeg"
OVERFLOWING = """
[...document.querySelectorAll('main *')].filter(e => {
  const box = e.getBoundingClientRect(), style = getComputedStyle(e);
  if (!box.width || e.closest('svg') || e.closest('.stack thead')) return false;
  const block = style.display !== 'inline';
  return box.left < 0 || box.right > innerWidth || block && e.scrollWidth > e.clientWidth + 1
    && !['TR', 'TABLE', 'TBODY', 'THEAD'].includes(e.tagName);
}).map(e => `${e.tagName} ${e.className} ${e.textContent.slice(0, 60)}`)
"""
HARD_TO_READ = """
(() => {
  const parsed = colour => colour.match(/[\\d.]+/g).map(Number);
  const luminance = rgb => rgb.slice(0, 3).map(c => c / 255)
    .map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const colour = parsed(getComputedStyle(e).backgroundColor);
      if (colour[3] !== 0) return colour;
    }
    return [255, 255, 255];
  };
  const onBars = e => e.closest('svg') && getComputedStyle(e).fill === 'rgb(255, 255, 255)';
  return [...document.querySelectorAll('body *')].filter(e => {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    return own && e.getBoundingClientRect().width && e.tagName !== 'STYLE' && !onBars(e);
  }).map(e => {
    const style = getComputedStyle(e), ink = e.closest('svg') ? style.fill : style.color;
    const [a, b] = [luminance(parsed(ink)), luminance(behind(e))].sort((a, b) => b - a);
    return [(a + .05) / (b + .05), e.textContent.slice(0, 40)];
  }).filter(([contrast]) => contrast < 4.5);
})()
"""


def reported(folder: Path, rows: list[Row], sampled: list[Sample], **known: Any) -> Files:
    """The report of these rows, which are compared with quicker ones."""
    files = Files("made", folder)
    rows_writer, samples_writer = Writer(files.results, Row), Writer(files.system, Sample)
    for row in rows:
        rows_writer.write(row)
    for sample in sampled:
        samples_writer.write(sample)
    rows_writer.close()
    samples_writer.close()
    pictures = known.pop("pictures", [])
    whole = summary(rows, sampled, **known) | {"pictures": thumbnails.described(pictures)}
    quicker = summary(made(rows, latency_ms=1.0))
    report.write(files, whole, compare(quicker, whole))
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The report of two levels, with failures whose texts try to be HTML, and a comparison."""
    rows = [
        *made(steady(60), phase="warmup"),
        *some(steady(700), 30, outcome="http", status=500, error=HOSTILE),
        *made(some(steady(300, 40.0), 9, outcome="rejected", status=503), level="2 clients"),
    ]
    sampled = samples(14, server_rss_mb=220.0, cpu_temp_c=55.0, queue_depth=1.0, in_flight=2)
    return reported(
        tmp_path_factory.mktemp("report"), rows, sampled, sweep=False, model=HOSTILE, local=True
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The report of one load, of three pictures one of which has a long name."""
    rows = steady(702)
    names = ("cat.jpeg", LONG_NAME, "$x_{$.jpeg")
    for number, row in enumerate(rows):
        row.image = names[number % 3]
        row.srv_queue_ms = row.srv_read_ms = 0.0
    built_in = corpus.built_in((640, 480), ["jpeg"])
    pictures = [replace(picture, name=name) for picture, name in zip(built_in, names, strict=True)]
    pictures[0] = replace(pictures[0], copies=("copy-of-cat.jpeg",))
    sampled = samples(
        14, cpu_pct=95.0, server_rss_mb=220.0, devices_cpu_pct=65.0, queue_depth=0.0,
        loop_lag_ms=lambda second: 1.0 + second / 10,
    )  # fmt: skip
    return reported(tmp_path_factory.mktemp("alone"), rows, sampled, local=True, pictures=pictures)


def texts(page: Page, chart: str) -> set[str]:
    """Every word that is drawn into a chart, as it is shown."""
    drawn = page.evaluate(
        f"[...document.querySelectorAll('section')].find(s => s.querySelector('h2').innerText === "
        f"{json.dumps(chart)}).querySelector('.wide svg').innerHTML"
    )
    return set(re.findall(r"<text[^>]*>([^<]*)</text>", drawn))


def test_it_opens_without_an_error_or_a_request(files: Files, page: Page) -> None:
    page.open(files.report)
    assert page.complaints == []
    outside = [url for url in page.requests if not url.startswith(("data:", "file:"))]
    assert outside == []
    assert [url for url in page.requests if url.startswith("file:")] == [files.report.as_uri()]
    assert page.evaluate("document.title") == "Reef benchmark"
    assert page.evaluate(f"{CHARTS}.length") == 5
    assert page.evaluate("document.scripts.length") == 0
    text = page.evaluate("document.body.innerText")
    for words in ("INVALID", "What limits it", "2 clients", "Significant differences", HOSTILE):
        assert words in text


def test_what_it_must_not_do_would_be_seen(page: Page, tmp_path: Path) -> None:
    """The test's own eyes."""
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="http://127.0.0.1:9/a.png"><script>nonsense()</script>')
    page.complaints.clear()
    page.requests.clear()
    page.open(bad)
    assert any("nonsense" in each for each in page.complaints)
    assert "http://127.0.0.1:9/a.png" in page.requests


@pytest.mark.parametrize("report_of", ["files", "alone"])
@pytest.mark.parametrize("width", [1280, 768, 390, 320])
def test_nothing_is_beside_the_screen(
    request: pytest.FixtureRequest, page: Page, width: int, report_of: str
) -> None:
    page.resize(width, 800)
    page.open(request.getfixturevalue(report_of).report)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOWING) == []
    with Image.open(io.BytesIO(base64.b64decode(page.screenshot()))) as shot:
        assert width - 20 < shot.width <= width  # but for a scroll bar
        assert len(set(shot.convert("L").resize((40, 40)).tobytes())) > 20  # it is not blank


def test_a_telephone_shows_every_latency(files: Files, page: Page) -> None:
    page.resize(390, 800)
    page.open(files.report)
    cells = page.evaluate(
        "[...document.querySelectorAll('[data-label=p50], [data-label=p90], [data-label=p95]')]"
        ".map(e => [e.getBoundingClientRect(), getComputedStyle(e, '::before').content, "
        "e.innerText]).map(([box, label, text]) => [box.left, box.right, box.height, label, text])"
    )
    assert len(cells) == 6  # of two levels
    for left, right, height, label, text in cells:
        assert 0 <= left < right <= 390
        assert height > 10
        assert label.strip('"') in ("p50", "p90", "p95")
        assert float(text.split()[0]) > 0


def test_charts_can_be_read_on_a_telephone(files: Files, page: Page) -> None:
    page.resize(390, 800)
    page.open(files.report)
    heights = page.evaluate(
        "[...document.querySelectorAll('.narrow svg text')]"
        ".map(e => [parseFloat(getComputedStyle(e).fontSize), e.getScreenCTM()])"
        ".map(([size, matrix]) => size * Math.hypot(matrix.a, matrix.b))"
    )
    assert len(heights) > 50
    assert min(heights) > 9  # pixels


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(
    files: Files, page: Page, scheme: str, width: int
) -> None:
    page.resize(width, 800)
    page.prefer(scheme)
    page.open(files.report)
    try:
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        level = sum(int(part) for part in re.findall(r"\d+", background)) / 3
        assert (level < 60) == (scheme == "dark")
        assert page.evaluate(HARD_TO_READ) == []
    finally:
        page.prefer("light")


def test_the_tests_own_eyes_see_what_is_hard_to_read(page: Page, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<main><p style='color:#bbb'>pale</p><p>clear</p>"
        "<table style='width:2000px'><tr><td>wide</td></tr></table></main>"
    )
    page.resize(390, 800)
    page.open(bad)
    assert [text for _, text in page.evaluate(HARD_TO_READ)] == ["pale"]
    assert any("wide" in element for element in page.evaluate(OVERFLOWING))


@pytest.mark.parametrize("surface", [LIGHT["surface"], DARK["surface"]])
def test_every_series_can_be_seen_on_a_light_and_on_a_dark_screen(surface: str) -> None:
    colours = [*SERIES, *(to_hex(shade) for count in (9, 10, 20) for shade in shades(count))]
    assert [colour for colour in colours if contrast(colour, surface) < 3] == []


def contrast(one: str, other: str) -> float:
    """WCAG's, of two colours like #2b7cc4."""
    first, second = sorted((luminance(one), luminance(other)), reverse=True)
    return (first + 0.05) / (second + 0.05)


def luminance(colour: str) -> float:
    """Relative to white."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(c * weight for c, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


def test_what_is_nil_is_in_no_legend_and_in_words(alone: Files, page: Page) -> None:
    page.open(alone.report)
    shown = texts(page, "Where the time of a request goes")
    assert {"decode", "inference", "outside"} <= shown
    assert not shown & {"queue", "read", "waiting to be sent"}
    meanwhile = texts(page, "Meanwhile")
    assert not any("queue" in text for text in meanwhile)
    text = page.evaluate("document.body.innerText")
    assert "Below 0.5 % of a request: waiting to be sent, read, queue" in text
    assert "Nil all along: In the queue." in text


def test_what_a_strip_shows_is_explained(alone: Files, page: Page) -> None:
    page.open(alone.report)
    terms = page.evaluate("[...document.querySelectorAll('dt')].map(e => e.innerText)")
    drawn = {text.rpartition(", ")[0] for text in texts(page, "Meanwhile") if ", " in text}
    assert {"Late", "This computer's processor", "/health takes"} <= drawn
    assert {f"{title}:" for title in drawn} <= set(terms)
    assert "how late this client came to its own work" in page.evaluate("document.body.innerText")


def test_who_used_the_processor_is_stacked_and_adds_up() -> None:
    sampled = samples(5, cpu_pct=90.0, devices_cpu_pct=40.0)
    processor = strips(summary(steady(70), sampled, local=True), sampled)[0]
    shares = {name: points[0][1] for name, points in processor.parts.items()}
    assert shares == {
        "server: devices": 20.0, "server: HTTP": 15.0, "this client": 2.5, "other programs": 52.5
    }  # fmt: skip


def test_a_server_that_tells_nothing_is_not_taken_for_other_programs() -> None:
    sampled = samples(5, cpu_pct=90.0, server_cpu_pct=None)
    processor = strips(summary(steady(70), sampled, local=True), sampled)[0]
    assert set(processor.parts) == {"this client", "server and other programs"}


@pytest.mark.parametrize("rows", [[], made(steady(5), outcome="reset", srv_total_ms=None)])
def test_a_run_without_a_success_has_a_report_too(
    page: Page, tmp_path: Path, rows: list[Row]
) -> None:
    page.complaints.clear()
    page.open(reported(tmp_path, rows, []).report)
    assert page.complaints == []
    assert "INVALID" in page.evaluate("document.body.innerText")


def test_charts_and_thumbnails_say_what_they_show(alone: Files, page: Page) -> None:
    page.open(alone.report)
    labels = page.evaluate(f"{CHARTS}.map(e => e.getAttribute('aria-label'))")
    latency, percentiles, throughput, stages, pictures, system = labels
    assert re.match(r"Latency of every answer over time. 1 client, 702 answers in 14 s: median "
                    r"20\.\d ms, fastest 1\d\.\d ms, slowest 2\d\.\d ms", latency)  # fmt: skip
    assert re.search(r"p50 20\.\d ms, p90 20\.\d ms, p95 2\d\.\d ms, p99 21", percentiles)
    assert re.search(r"in 10 slices of time: \d\d\.\d to \d\d\.\d answers a second", throughput)
    assert "inference 12.0 ms" in stages
    assert re.search(r"cat.jpeg: median 20\.\d ms of 234 answers", pictures)
    assert "other programs" in system
    assert re.search(r"Late, ms: 1\.[67]", system)
    alts = page.evaluate("[...document.images].map(i => i.alt)")
    assert alts == [
        f"{name}, in which was found: cat" for name in ("$x_{$.jpeg", "cat.jpeg", LONG_NAME)
    ]


def test_each_picture_is_shown_once(alone: Files, page: Page) -> None:
    page.open(alone.report)
    sources = page.evaluate("[...document.images].map(i => i.src)")
    assert len(sources) == len(set(sources)) == 3
    assert page.evaluate(THUMBNAILS_SHOWN)
    assert "also as copy-of-cat.jpeg" in page.evaluate("document.body.innerText")


def test_busy_neighbours_are_blamed_on_top(alone: Files, page: Page) -> None:
    page.open(alone.report)
    verdict = page.evaluate("document.querySelector('.verdict').innerText")
    assert "INVALID" in verdict
    assert "What limits it: the other programs on this computer (they took 5" in verdict
    assert "Edge TPU" not in verdict


def test_it_is_small_enough_for_a_mail(files: Files) -> None:
    assert files.report.stat().st_size < 2_000_000


def test_plots_are_there_as_pictures_too(files: Files) -> None:
    for name in ("latency", "percentiles", "throughput", "stages", "system"):
        with Image.open(files.plot(name)) as plot:
            assert plot.width > 800
