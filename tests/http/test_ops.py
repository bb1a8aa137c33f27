"""What operators and programs ask: alive, ready, devices, models, metrics; and wrong routes."""

import io
import logging
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from app import __version__, logs
from app.http import create_app
from app.service import Service
from tests import colour_model
from tests.http.conftest import COLOUR, DEFAULT, Client, client_of, refused
from tests.support import build_service, flat, form, make_settings, part

ROUTES = {
    "/predict": {"POST"},
    "/health": {"GET", "HEAD"},
    "/ready": {"GET", "HEAD"},
    "/devices": {"GET", "HEAD"},
    "/models": {"GET", "HEAD"},
    "/metrics": {"GET", "HEAD"},
    "/openapi.json": {"GET", "HEAD"},
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "BREW")
WRONG = [(path, method) for path in ROUTES for method in METHODS if method not in ROUTES[path]]


@pytest.fixture
def own_service(service: Service) -> Service:
    """A service of this test's own, on the device that the others share."""
    return Service(service.settings, service.catalogue, service.pool)


@pytest.fixture
def starting(tmp_path: Path) -> Service:
    """A service whose device is not started."""
    path = colour_model.write(tmp_path / "colour.tflite")
    return build_service(make_settings(model=str(path), run_dir=tmp_path))


@pytest.fixture
def without_device(tmp_path: Path) -> Service:
    """A service whose model is for Edge TPUs, where there is none."""
    path = colour_model.write(tmp_path / "colour_edgetpu.tflite", for_edgetpu=True)
    return build_service(make_settings(model=str(path), run_dir=tmp_path))


# ---------------------------------------------------------------------------- alive and ready


def test_a_server_with_a_device_is_alive_and_ready(client: Client) -> None:
    assert client.get("/health").json == {"status": "ok"}
    answer = client.get("/ready")
    assert answer.status_code == 200
    assert answer.json == {
        "ready": True,
        "degraded": False,
        "reason": "",
        "devices": [{"id": "cpu", "state": "ready", "reason": ""}],
        "notes": [],
    }


def test_what_the_image_lacks_is_told_and_hurts_nobody(service: Service) -> None:
    notes = ("this image lacks a spoon: build it again with one",)
    client = client_of(Service(service.settings, service.catalogue, service.pool, lambda: notes))
    answer = client.get("/ready")
    assert answer.status_code == 200
    assert answer.json["notes"] == list(notes)


def test_a_server_whose_device_is_starting_is_alive_but_not_ready(starting: Service) -> None:
    client = client_of(starting)
    assert client.get("/health").status_code == 200
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert answer.json["ready"] is False
    assert answer.json["reason"] == "cpu is being started"
    assert answer.json["devices"] == [
        {"id": "cpu", "state": "starting", "reason": "is being started"}
    ]


def test_a_server_without_a_device_for_its_model_says_what_to_do(without_device: Service) -> None:
    client = client_of(without_device)
    assert client.get("/health").status_code == 200
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert "runs on edgetpu only" in answer.json["reason"]
    assert "REEF_MODEL_CPU" in answer.json["reason"]
    assert client.get("/devices").json == {"devices": []}
    assert client.get("/metrics").status_code == 200


def test_a_server_that_drains_is_not_ready_but_goes_on_serving(own_service: Service) -> None:
    client = client_of(own_service)
    own_service.draining = True
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert (answer.json["ready"], answer.json["reason"]) == (False, "Reef is being stopped")
    assert client.get("/health").status_code == 200
    assert client.predict(flat()).status_code == 200


# ---------------------------------------------------------------------------- devices and models


def test_a_device_shows_what_it_is_and_does(client: Client) -> None:
    client.predict(flat())
    (device,) = client.get("/devices").json["devices"]
    assert (device["id"], device["kind"], device["state"]) == ("cpu", "cpu", "ready")
    assert device["about"]
    assert device["runtime"].startswith("ai-edge-litert ")
    assert device["models"] == [COLOUR, DEFAULT]
    assert set(device["median_ms"]) == {COLOUR, DEFAULT}
    assert all(milliseconds > 0 for milliseconds in device["median_ms"].values())
    assert device["pid"] > 1
    assert device["inferences"] >= 1
    assert (device["restarts"], device["failures"]) == (0, {})
    assert 0 <= device["answered_s_ago"] < 60


def test_every_inference_is_counted(client: Client) -> None:
    def count() -> int:
        return int(client.get("/devices").json["devices"][0]["inferences"])

    before = count()
    for _ in range(5):
        client.predict(flat())
    assert count() == before + 5


def test_the_models_are_listed_with_their_labels_and_the_default(client: Client) -> None:
    body = client.get("/models").json
    assert body["default"] == COLOUR
    colour, embedded = body["models"]
    assert (colour["name"], embedded["name"]) == (COLOUR, DEFAULT)
    (variant,) = colour["variants"]
    assert variant["device_kind"] == "cpu"
    assert variant["input"] == {"width": 32, "height": 32, "resize": "stretch"}
    assert variant["labels"] == ["red", "green", "blue"]
    assert len(variant["sha256"]) == 64
    assert len(embedded["variants"][0]["labels"]) == 80
    assert "???" not in embedded["variants"][0]["labels"]


def test_every_label_that_is_listed_may_be_asked_for(client: Client) -> None:
    labels = client.get("/models").json["models"][1]["variants"][0]["labels"]
    answer = client.post(
        "/predict",
        query_string={"model": DEFAULT, "labels": ",".join(labels)},
        data=flat(),
        content_type="image/jpeg",
    )
    assert answer.status_code == 200


def test_the_description_of_the_api_is_json(client: Client) -> None:
    answer = client.get("/openapi.json")
    assert answer.mimetype == "application/json"
    assert answer.json["openapi"].startswith("3.")


# ---------------------------------------------------------------------------- metrics


def test_what_runs_here_is_a_metric(client: Client) -> None:
    (sample,) = metrics(client)["reef_build_info"].samples
    assert sample.value == 1
    assert sample.labels["version"] == __version__
    assert sample.labels["python"] == platform.python_version()
    assert re.fullmatch(r"(ai-edge-litert|tflite-runtime) \d\S+", sample.labels["runtime"])


def metrics(client: Client) -> dict[str, Metric]:
    """`/metrics`, parsed, by name."""
    answer = client.get("/metrics")
    assert answer.mimetype == "text/plain"
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def samples(family: Metric, suffix: str = "") -> dict[tuple[str, ...], float]:
    """The values of a metric by the values of its labels, which are in the order of their names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for sample in family.samples
        if sample.name == family.name + suffix
    }


def test_requests_are_counted_by_route_and_status(client: Client) -> None:
    for _ in range(3):
        client.predict(flat())
    client.predict(b"no picture")
    client.get("/health")
    client.get("/no/such/route")
    client.get("/another")
    counted = samples(metrics(client)["reef_requests"], "_total")
    assert counted == {
        ("/predict", "200"): 3,
        ("/predict", "415"): 1,
        ("/health", "200"): 1,
        ("-", "404"): 2,
    }


def test_refusals_are_counted_by_their_code(client: Client) -> None:
    for _ in range(2):
        client.predict(b"no picture")
    client.predict(flat(), "min_score=2")
    client.get("/no/such/route")
    counted = samples(metrics(client)["reef_rejected"], "_total")
    assert counted == {("not_an_image",): 2, ("bad_parameter",): 1, ("not_found",): 1}


def test_a_million_unknown_paths_make_one_series(client: Client) -> None:
    for number in range(50):
        client.get(f"/{number}")
        client.open(f"/{number}", method=f"METHOD{number}")
    assert len(samples(metrics(client)["reef_requests"], "_total")) == 1


def test_every_stage_of_every_prediction_is_in_a_histogram(client: Client) -> None:
    total = 0.0
    for _ in range(4):
        total += client.predict(flat()).json["timings"]["inference"] / 1000
    client.predict(b"no picture")
    family = metrics(client)["reef_stage_seconds"]
    assert samples(family, "_count") == {
        ("cpu", stage): 4 for stage in ("read", "decode", "queue", "inference", "post")
    }
    assert samples(family, "_sum")["cpu", "inference"] == pytest.approx(total, abs=0.0001)


def test_devices_and_queue_are_shown(client: Client) -> None:
    client.predict(flat())
    shown = metrics(client)
    assert samples(shown["reef_queue_depth"]) == {(): 0}
    states = samples(shown["reef_device_state"])
    assert states["cpu", "ready"] == 1
    assert sum(states.values()) == 1
    assert samples(shown["reef_device_in_flight"]) == {("cpu",): 0}
    assert samples(shown["reef_device_inferences"], "_total")["cpu",] >= 1
    assert samples(shown["reef_device_restarts"], "_total") == {("cpu",): 0}


def test_memory_and_cpu_of_every_process_are_shown(client: Client) -> None:
    shown = metrics(client)
    for name, suffix in (
        ("reef_process_resident_bytes", ""),
        ("reef_process_cpu_seconds", "_total"),
    ):
        values = samples(shown[name], suffix)
        assert set(values) == {("master",), ("http",), ("device cpu",)}
        assert all(value >= 0 for value in values.values())
    assert samples(shown["reef_process_resident_bytes"])["device cpu",] > 10_000_000


def test_every_metric_is_explained(client: Client) -> None:
    client.predict(flat())
    client.predict(b"")
    assert all(family.documentation.endswith(".") for family in metrics(client).values())


# ---------------------------------------------------------------------------- wrong routes


def test_the_routes_are_these(service: Service) -> None:
    rules = create_app(service).url_map.iter_rules()
    assert {rule.rule: (rule.methods or set()) - {"OPTIONS"} for rule in rules} == ROUTES


@pytest.mark.parametrize(("path", "method"), WRONG)
def test_a_wrong_method_is_405_with_those_allowed(path: str, method: str, client: Client) -> None:
    answer = client.open(path, method=method)
    assert answer.status_code == 405
    assert set(answer.headers["Allow"].split(", ")) == ROUTES[path] | {"OPTIONS"}
    if method != "HEAD":
        assert path in refused(answer, "405 method_not_allowed")


@pytest.mark.parametrize("path", ROUTES)
def test_options_says_what_is_allowed(path: str, client: Client) -> None:
    answer = client.options(path)
    assert answer.status_code == 200
    assert answer.data == b""
    assert set(answer.headers["Allow"].split(", ")) == ROUTES[path] | {"OPTIONS"}


@pytest.mark.parametrize("path", [path for path in ROUTES if "HEAD" in ROUTES[path]])
def test_head_answers_as_get_without_a_body(path: str, client: Client) -> None:
    get, head = client.get(path), client.head(path)
    assert (head.status_code, head.data) == (get.status_code, b"")
    assert head.mimetype == get.mimetype
    assert int(head.headers["Content-Length"]) > 0


def test_another_origin_is_promised_nothing(client: Client) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = client.options("/predict", headers=headers)
    assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]


UNKNOWN = ["/", "/Predict", "/health/", "/predict/x", "/../../etc/passwd", "/%2e%2e/etc/passwd",
           "//predict", "/predict//", "/health//", "/x//y", "/static/x",
           "/a%00b", "/\xff", "/.env", "/x" * 2000]  # fmt: skip


@pytest.mark.parametrize("path", UNKNOWN)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_404_and_says_where_to_look(
    path: str, method: str, client: Client
) -> None:
    said = refused(client.open(path, method=method), "404 not_found")
    assert "/openapi.json" in said
    assert "passwd" not in said


# ---------------------------------------------------------------------------- the log


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the application logs, as text."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs.TextFormatter())
    logger = logging.getLogger("app")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield written
    logger.removeHandler(handler)
    logger.setLevel(before)


def test_a_refusal_is_one_line_with_its_request_id(client: Client, log: io.StringIO) -> None:
    answer = client.predict(b"no picture")
    (line,) = log.getvalue().splitlines()
    assert "POST /predict 415 not_an_image: " in line
    assert answer.json["request_id"] in line


def test_refusals_in_a_row_are_counted_and_not_logged_one_by_one(
    client: Client, log: io.StringIO
) -> None:
    for _ in range(50):
        client.predict(b"no picture")
    assert len(log.getvalue().splitlines()) <= 5


def test_an_answer_is_not_logged(client: Client, log: io.StringIO) -> None:
    client.predict(flat())
    client.get("/health")
    assert log.getvalue() == ""


@pytest.mark.parametrize(
    "path",
    ["/%0d%0aERROR%20forged", "/%1b%5b2J", "/predict?labels=%0aERROR%20forged%1b%5b31m",
     "/predict?min_score=%0d%0aERROR", "/predict?model=%c2%9b31m%e2%80%a8"],
)  # fmt: skip
def test_a_client_can_neither_forge_a_line_nor_drive_a_terminal(
    path: str, client: Client, log: io.StringIO
) -> None:
    answer = client.post(path, data=flat(), content_type="image/jpeg")
    assert answer.status_code in (400, 404)
    (line,) = log.getvalue().splitlines()
    assert "\x1b" not in line
    assert "\x9b" not in line


def test_a_filename_is_not_logged(client: Client, log: io.StringIO) -> None:
    client.post("/predict", **form(part("image", b"no picture", "secret\x1b[31m.jpg")))
    assert "secret" not in log.getvalue()
