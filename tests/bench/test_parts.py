"""The tool's parts: its options, the pictures it sends, how it judges answers, its files."""

import base64
import http.server
import io
import itertools
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from bench.benchmarking import (
    console,
    corpus,
    environment,
    options,
    server,
    system,
    thumbnails,
)
from bench.benchmarking.answers import Answers, difference, load_golden
from bench.benchmarking.client import Target
from bench.benchmarking.errors import WrongUsage
from bench.benchmarking.main import main
from bench.benchmarking.rows import Row, Sample, T, Writer, names, read
from bench.benchmarking.server import find_out
from bench.pictures import FORMATS
from tests.bench.made import ROW, samples, steady
from tests.bench.scripted import PREDICTIONS
from tests.bench.tool import COMMAND, finished
from tests.support import PICTURES, ROOT, flat

TARGET = Target.parse("http://127.0.0.1:5000")

# ---------------------------------------------------------------------------- options


def test_the_first_versions_defaults_are_kept() -> None:
    found = options.parse([])
    assert found.url == "http://localhost:5000"
    assert found.output == Path("benchmark_results")
    assert (found.plan.mode, found.plan.iterations, found.plan.think_s) == (None, None, 0)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("--lunch", "unrecognized arguments: --lunch"),
        ("--mode fast", "invalid choice: 'fast'"),
        ("--iterations 0", "a whole number from 1, not '0'"),
        ("--iterations x", "a whole number from 1"),
        ("--concurrent 0", "a whole number from 1"),
        ("--concurrent 4,4", "different numbers"),
        ("--concurrent 9999", "up to 512"),
        ("--rate 0", "a number above 0, not '0'"),
        ("--rate nan", "a number above 0"),
        ("--rate 5 --concurrent 2", "choose one"),
        ("--rate 5 --delay 1", "--delay is a closed loop's"),
        ("--sweep rate --rate 5", "chooses the levels itself"),
        ("--delay -1", "a number from 0"),
        ("--format tiff", "knows jpeg"),
        ("--format webp --unique", "only a JPEG or a PNG"),
        ("--size 0x5", "a size like 1920x1080"),
        ("--slo p98=5ms", "something like p99=100ms"),
        ("--slo p99=fast", "something like p99=100ms"),
        ("--url box:5000", "takes an address like http://"),
        ("--url http://box:99999", "--url: Port out of range"),
        ("--header novalue", "takes 'NAME: VALUE'"),
        ("--api-key-file /no/such", "No such file"),
        ("--api-key a --api-key-file b", "choose one"),
        ("--image /no/such.jpg", "No such file"),
        ("--golden /no/such.json", "No such file"),
        ("--golden a --save-golden b", "choose one"),
        ("--compare /no/such.json", "No such file"),
        ("--report /no/such.csv", "there is no file /no/such.csv"),
    ],
)
def test_wrong_usage_is_told_in_a_line(
    argv: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmark: ")
    assert says in line


def test_help_names_modes_files_and_exit_statuses() -> None:
    said = finished([*COMMAND, "--help"], Path())
    assert said.status == 0
    words = ["quick", "normal", "stress", "endurance", "4 no server answers", "130 interrupted"]
    words += ["benchmark_results_TIMESTAMP.csv", "system_metrics_TIMESTAMP.csv"]
    assert [word for word in words if word not in said.out] == []


def test_the_record_has_no_key() -> None:
    argv = ["--api-key", "secret", "--mode", "quick", "--header=Cookie: secret"]
    assert options.parse(argv).argv == ("--api-key", "...", "--mode", "quick", "--header=...")


def test_the_servers_own_key_is_for_the_server_beside_it_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REEF_API_KEY", "first second")
    monkeypatch.setenv("BENCH_URL", "http://reef:5000")
    beside = options.parse([])
    assert (beside.url, beside.headers) == ("http://reef:5000", {"X-API-Key": "first"})
    assert options.parse(["--url", "http://elsewhere"]).headers == {}
    assert options.parse(["--api-key", "mine"]).headers == {"X-API-Key": "mine"}


# ---------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("kind", FORMATS)
def test_built_in_pictures_are_in_the_format_asked_for(kind: str) -> None:
    pictures = corpus.built_in((64, 48), [kind])
    assert [picture.name for picture in pictures] == [
        f"{name}.{kind}" for name in ("cat", "coffee", "person")
    ]
    assert len({picture.content for picture in pictures}) == len(pictures)
    for each in pictures:
        with Image.open(io.BytesIO(each.content)) as opened:
            assert (opened.format, opened.size) == (FORMATS[kind], (64, 48))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_salt_changes_the_file_and_not_the_picture(kind: str) -> None:
    content = flat((10, 200, 30), kind=kind)
    picture = corpus.Picture("a", kind.lower(), content)
    (prepared,) = corpus.prepare(TARGET, [picture], {}, salted=True)
    bodies = set()
    for salt in itertools.islice(corpus.salts(7), 5):
        head, _, body = prepared.request(salt).partition(b"\r\n\r\n")
        assert b"Content-Length: %d" % len(body) in head
        bodies.add(body)
        with Image.open(io.BytesIO(body)) as one, Image.open(io.BytesIO(content)) as other:
            assert one.tobytes() == other.tobytes()
    assert len(bodies) == 5


def test_folders_give_their_pictures() -> None:
    found = corpus.from_files([PICTURES])
    assert [each.name for each in found] == ["chelsea.png", "coffee.png"]


def test_built_in_pictures_are_different_to_the_eye() -> None:
    """Neither the same nor mirrored under another name, of any size."""
    for size in ((640, 480), (1920, 1080)):
        seen: set[bytes] = set()
        for picture in corpus.built_in(size, ["png"]):
            with Image.open(io.BytesIO(picture.content)) as opened:
                views = {opened.tobytes(), ImageOps.mirror(opened).tobytes()}
            assert not views & seen
            seen |= views


def test_equal_files_are_one_picture_that_knows_its_copies(tmp_path: Path) -> None:
    for name, colour in (("a", 10), ("b", 99), ("c", 10), ("d", 10)):
        (tmp_path / f"{name}.png").write_bytes(flat((colour, 0, 0), kind="PNG"))
    pictures = corpus.from_files([tmp_path])
    assert {picture.name: picture.copies for picture in pictures} == {
        "a.png": ("c.png", "d.png"), "b.png": ()
    }  # fmt: skip


def test_a_thumbnail_is_small_and_the_picture() -> None:
    (cat, *_) = thumbnails.described(corpus.built_in((1920, 1080), ["jpeg"]))
    assert (cat["width"], cat["height"]) == (1920, 1080)
    head, _, content = cat["thumbnail"].partition(",")
    assert (head, len(content) < 12_000) == ("data:image/jpeg;base64", True)
    with Image.open(io.BytesIO(base64.b64decode(content))) as opened:
        assert opened.size == (144, 81)
        assert len(set(opened.convert("L").tobytes())) > 100  # it is not blank


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "1"])
def test_every_kind_of_picture_has_a_thumbnail(mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (300, 200)).save(file, "JPEG" if mode == "CMYK" else "PNG")
    (shown,) = thumbnails.described([corpus.Picture("a", "png", file.getvalue())])
    assert shown["thumbnail"]


def test_a_broken_picture_has_none_and_stops_nothing() -> None:
    whole = flat((1, 2, 3), kind="JPEG")
    broken = [whole[:4], whole[: len(whole) // 2], b"RIFF1234", b""]
    shown = thumbnails.described([corpus.Picture("a", "jpeg", content) for content in broken])
    assert [picture["thumbnail"] for picture in shown] == [None] * 4


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("hello")
    for path in (tmp_path, tmp_path / "a.jpg"):
        with pytest.raises(WrongUsage, match="no JPEG, PNG, WebP, BMP or GIF"):
            corpus.from_files([path])
    with pytest.raises(WrongUsage, match="the same name"):
        corpus.from_files([PICTURES, PICTURES])


def test_parameters_and_headers_go_into_each_request() -> None:
    target = Target.parse("http://[::1]:81/reef/", {"X-API-Key": "k"})
    picture = corpus.Picture("a", "jpeg", b"body")
    (prepared,) = corpus.prepare(target, [picture], {"min_score": "0.1"}, salted=False)
    lines = prepared.request().split(b"\r\n")
    assert lines[0] == b"POST /reef/predict?min_score=0.1 HTTP/1.1"
    assert {b"Host: [::1]:81", b"X-API-Key: k", b"Content-Type: image/jpeg"} <= set(lines)


# ---------------------------------------------------------------------------- answers


def answer(predictions: object = PREDICTIONS, device: str = "cpu") -> bytes:
    return json.dumps({"predictions": predictions, "model": "m", "device": device}).encode()


def test_another_device_may_answer_otherwise() -> None:
    """A fail-over changes answers legitimately: each is held against its own first."""
    answers = Answers()
    other = [PREDICTIONS[0] | {"score": 0.7}]
    assert answers.judge("a", answer()).outcome == "ok"
    assert answers.judge("a", answer(other, "pci:0")).outcome == "ok"
    assert answers.judge("a", answer(other)).outcome == "different"
    assert answers.judge("b", answer(other)).outcome == "ok"
    assert answers.judge("a", answer()).outcome == "ok"


def test_a_golden_file_leaves_room_for_another_processor(tmp_path: Path) -> None:
    path = tmp_path / "golden.json"
    path.write_text(json.dumps({"a": {"predictions": PREDICTIONS}}))
    answers = Answers(load_golden(path))
    near = [PREDICTIONS[0] | {"score": 0.86, "bbox": [6.0, 8.0, 363.0, 505.0]}, PREDICTIONS[1]]
    assert answers.judge("a", answer(near)).outcome == "ok"
    far = [PREDICTIONS[0] | {"bbox": [16.0, 8.0, 363.0, 505.0]}, PREDICTIONS[1]]
    assert answers.judge("a", answer(far, "pci:0")).outcome == "different"
    assert answers.judge("other", answer()).error == "the golden file does not have this picture"


def test_order_is_part_of_an_answer() -> None:
    assert difference(PREDICTIONS, PREDICTIONS) == ""
    assert difference(PREDICTIONS, PREDICTIONS[::-1]) == "the same objects in another order"


# ---------------------------------------------------------------------------- files


def assert_alike(one: Row | Sample, other: Row | Sample) -> None:
    """The same but for the last digits, which are not written."""
    for name in names(type(one)):
        found, wanted = getattr(one, name), getattr(other, name)
        assert type(found) is type(wanted)
        assert found == (pytest.approx(wanted, abs=1e-6) if isinstance(found, float) else wanted)


def assert_round_trip(path: Path, given: list[T], kind: type[T]) -> None:
    """What is written to a file is read from it again."""
    writer = Writer(path, kind)
    for each in given:
        writer.write(each)
    writer.close()
    for each, again in zip(given, read(path, kind), strict=True):
        assert_alike(each, again)


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    given = [*steady(5), ROW, replace(ROW, srv_read_ms=None, error='a "b", c\nd')]
    assert_round_trip(tmp_path / "rows", given, Row)


def test_samples_come_back_as_they_were_written(tmp_path: Path) -> None:
    given = samples(3, usb_mbps=480.0, throttled=1)
    assert_round_trip(tmp_path / "samples", given, Sample)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "benchmark_results_1.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(WrongUsage, match="has not the columns"):
        read(path, Row)


def test_the_first_versions_columns_are_there() -> None:
    assert {"status", "latency_ms", "srv_inference_ms", "detections"} <= set(names(Row))
    assert {"cpu_pct", "mem_used_mb", "cpu_temp_c", "tpu_temp_c"} <= set(names(Sample))


# ---------------------------------------------------------------------------- the computer


def test_temperatures_and_speeds_are_read_from_sysfs(tmp_path: Path) -> None:
    for name, text in {
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": "61500",
        "sys/class/thermal/thermal_zone1/type": "battery",
        "sys/class/thermal/thermal_zone1/temp": "99000",
        "sys/class/apex/apex_0/temp": "54800",
        "sys/class/apex/apex_1/temp": "-89700",
        "sys/bus/usb/devices/2-1/idVendor": "18d1",
        "sys/bus/usb/devices/2-1/idProduct": "9302",
        "sys/bus/usb/devices/2-1/speed": "480",
        "sys/bus/usb/devices/2-2/idVendor": "dead",
        "sys/bus/usb/devices/2-2/idProduct": "beef",
        "sys/bus/usb/devices/2-2/speed": "12",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    assert system.cpu_temperature(tmp_path) == 61.5
    assert system.apex_temperature(tmp_path) == 54.8
    assert system.usb_speed(tmp_path) == 480
    empty = tmp_path / "nothing"
    assert system.cpu_temperature(empty) is None
    assert system.apex_temperature(empty) is None
    assert system.usb_speed(empty) is None


def test_metrics_are_read_as_prometheus_writes_them() -> None:
    found = server.parse_metrics(
        "# HELP x y\n# TYPE x counter\n"
        'x_total{device="pci:0",note="a \\"b\\" c"} 3.0\nx_total{device="cpu"} 4.5\n'
        'h_bucket{le="1.0"} 9.0\nplain 1e+06\nbroken abc\n'
    )
    assert server.total(found, "x_total") == 7.5
    assert server.values(found, "x_total", device="cpu") == [4.5]
    assert server.total(found, "plain") == 1e6
    assert "h_bucket" not in found
    assert server.total(found, "missing") is None


def test_what_the_server_tells_of_edge_tpus_is_taken() -> None:
    (sample,) = samples(1)
    system.fill_edge_tpu(sample, server.parse_metrics(
        'reef_device_temperature_celsius{device="pci:0"} 61.0\n'
        'reef_device_temperature_celsius{device="pci:1"} 72.5\n'
        'reef_device_usb_bits_per_second{device="usb:1"} 4.8e+08\n'
        'reef_device_throttle_level{device="pci:1"} 1.0\n'
        'reef_device_warnings{device="pci:1"} 2.0\n'
    ))  # fmt: skip
    assert (sample.tpu_temp_c, sample.usb_mbps) == (72.5, 480)
    assert (sample.tpu_throttle_level, sample.device_warnings) == (1, 2)


def test_this_computer_is_known_as_such() -> None:
    assert server.is_local("localhost")
    assert server.is_local("127.0.0.1")
    assert not server.is_local("192.0.2.1")
    assert environment.host()["cores"] >= 1
    assert len(environment.tool()["sha256"]) == 64


def test_a_line_that_is_too_long_is_wrapped() -> None:
    found = console.verdict(
        {
            "verdict": {"valid": False, "notes": ["note " * 40],
                        "reasons": [{"text": "reason " * 30, "advice": "do " * 60}]},
            "bottleneck": {"what": "x " * 60, "seen": "y", "remedy": "z"},
        }
    )  # fmt: skip
    assert max(map(len, found.splitlines())) <= console.WIDTH


def test_the_map_of_the_folder_has_every_part() -> None:
    text = (ROOT / "bench" / "README.md").read_text()
    parts = {path.name for path in (ROOT / "bench" / "benchmarking").glob("*.py")}
    assert [name for name in parts - {"__init__.py"} if f"`benchmarking/{name}`" not in text] == []


class WantsKey(http.server.BaseHTTPRequestHandler):
    """Ready, and for whoever has the key."""

    def do_GET(self) -> None:
        """`/ready` answers everybody."""
        self.send_response(200 if self.path == "/ready" else 401)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


def test_a_server_that_wants_a_key_is_not_measured_without() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), WantsKey) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            with pytest.raises(WrongUsage, match="wants its API key: --api-key-file FILE"):
                find_out(Target.parse(url))
        finally:
            server.shutdown()
