"""The report, opened in a real browser as from a mail: no error, no request, all there."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from bench.benchmarking import report
from bench.benchmarking.compare import compare
from bench.benchmarking.rows import Row, Sample, Writer
from bench.benchmarking.run import Files
from tests.bench.browser import Page
from tests.bench.made import made, samples, steady, summary
from tests.bench.test_verdict import some

HOSTILE = '<script>document.title="x"</script><img src="http://127.0.0.1:9/x.png">'
IMAGES_SHOWN = "[...document.images].every(i => i.complete && i.naturalWidth > 500)"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The report of two levels, with failures whose texts try to be HTML, and a comparison."""
    files = Files("made", tmp_path_factory.mktemp("report"))
    rows = [
        *made(steady(60), phase="warmup"),
        *some(steady(700), 30, outcome="http", status=500, error=HOSTILE),
        *made(some(steady(300, 40.0), 9, outcome="rejected", status=503), level="2 clients"),
    ]
    rows_writer, samples_writer = Writer(files.results, Row), Writer(files.system, Sample)
    for row in rows:
        rows_writer.write(row)
    for sample in samples(14, server_rss_mb=220.0, cpu_temp_c=55.0, queue_depth=1.0, in_flight=2):
        samples_writer.write(sample)
    rows_writer.close()
    samples_writer.close()
    found = summary(rows, sweep=False, model=HOSTILE)
    report.write(files, found, compare(summary(made(rows, latency_ms=1.0)), found))
    return files


def test_it_opens_without_an_error_or_a_request(files: Files, page: Page) -> None:
    page.open(files.report)
    assert page.complaints == []
    outside = [url for url in page.requests if not url.startswith(("data:", "file:"))]
    assert outside == []
    assert [url for url in page.requests if url.startswith("file:")] == [files.report.as_uri()]
    assert page.evaluate("document.title") == "Reef benchmark"
    assert page.evaluate("document.images.length") == 5
    assert page.evaluate(IMAGES_SHOWN)
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


@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_a_screen_and_a_telephone(files: Files, page: Page, width: int) -> None:
    page.resize(width, 800)
    page.open(files.report)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    with Image.open(io.BytesIO(base64.b64decode(page.screenshot()))) as shot:
        assert width - 20 < shot.width <= width  # but for a scroll bar
        assert len(set(shot.convert("L").resize((40, 40)).tobytes())) > 20  # it is not blank


def test_it_is_small_enough_for_a_mail(files: Files) -> None:
    assert files.report.stat().st_size < 2_000_000


def test_plots_are_there_as_pictures_too(files: Files) -> None:
    for name in ("latency", "percentiles", "throughput", "stages", "system"):
        with Image.open(files.plot(name)) as plot:
            assert plot.width > 800
