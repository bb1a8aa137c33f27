"""/openapi.json describes what is answered: every route, status, header and field."""

import io
import re
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from openapi_spec_validator import validate
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import TestResponse

from app import __version__, errors
from app.errors import RequestError
from app.http import create_app
from app.http.dialects.native import read_parameters
from app.imaging import Fitted
from app.service import Answer, Query, Service, admitted
from app.settings import Settings
from app.stages import Stages
from tests import colour_model
from tests.project import openapi
from tests.project.documents import rows
from tests.support import CAT, MEBIBYTE, ROOT, build_service, claiming, flat, form, part

PERSON = ROOT / "models" / "selftest_person.jpg"
JPEG = {"content_type": "image/jpeg"}
ALL_ERRORS = RequestError.__subclasses__()
ROUTE_ERRORS = (errors.NotFound, errors.MethodNotAllowed)


def client(service: Service) -> FlaskClient:
    """A client of a service."""
    return create_app(service).test_client()


def check(answer: TestResponse, path: str | None = None, method: str | None = None) -> Any:
    """Fail unless the answer is described, with its headers; returns the body."""
    request = answer.request
    described = openapi.response(path or request.path, method or request.method, answer.status_code)
    check_headers(answer, described)
    media = described["content"][answer.mimetype]
    body = answer.json if answer.mimetype == "application/json" else answer.text
    openapi.check(media["schema"], body)
    return body


def check_headers(answer: TestResponse, described: dict[str, Any]) -> None:
    """Fail unless the headers that mean something are those described."""
    assert answer.headers["Content-Length"] == str(len(answer.data))
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    headers = {name: openapi.resolve(node) for name, node in described["headers"].items()}
    required = {name for name, header in headers.items() if header["required"]}
    sent = openapi.TELLING & set(answer.headers.keys())
    assert required <= sent <= set(headers)
    for name in sent:
        header, value = headers[name], answer.headers[name]
        number = header["schema"].get("type") == "integer"
        openapi.check(header["schema"], int(value) if number else value)


# ---------------------------------------------------------------------------- the document


def test_it_is_valid() -> None:
    validate(openapi.DOCUMENT)


def test_it_is_served_with_the_version(service: Service) -> None:
    served = check(client(service).get("/openapi.json"))
    assert served["info"].pop("version") == __version__
    written = {**openapi.DOCUMENT, "info": dict(openapi.DOCUMENT["info"])}
    del written["info"]["version"]
    assert served == written


def test_its_routes_are_those_served(service: Service) -> None:
    served = {
        (rule.rule, method.lower())
        for rule in create_app(service).url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    paths = openapi.DOCUMENT["paths"]
    assert served == {(path, method) for path, methods in paths.items() for method in methods}


def test_its_errors_are_those_of_the_code() -> None:
    described: dict[str, set[str]] = defaultdict(set)
    not_found = ("", "404", openapi.DOCUMENT["components"]["responses"]["NotFound"])
    for _, status, response in (*openapi.responses(), not_found):
        media = response["content"].get("application/json", {})
        if "allOf" in media.get("schema", {}):
            described[status] |= openapi.codes(media)
    raised: dict[str, set[str]] = defaultdict(set)
    for error in ALL_ERRORS:
        raised[str(error.status)].add(error.code)
    assert described == raised
    listed = openapi.DOCUMENT["components"]["schemas"]["Error"]["properties"]["code"]["enum"]
    assert listed == [error.code for error in ALL_ERRORS]


def test_its_examples_are_what_its_schemas_say() -> None:
    seen = 0
    for _, _, response in openapi.responses():
        for media in response["content"].values():
            for example in openapi.examples(media):
                openapi.check(media["schema"], example)
                seen += 1
    assert seen > 20
    for parameter in openapi.DOCUMENT["components"]["parameters"].values():
        openapi.check(parameter["schema"], parameter["example"])


def test_its_parameters_are_those_read() -> None:
    described = openapi.DOCUMENT["components"]["parameters"].values()
    query = {each["name"] for each in described if each["in"] == "query"}
    fields = openapi.DOCUMENT["components"]["schemas"]["PredictForm"]["properties"]
    assert query == set(fields) - {"image"}
    sent = {name: ["1"] for name in query}
    assert set(read_parameters(sent)) == query
    assert set(read_parameters({"other": ["1"]})) == set()


def test_its_kinds_of_failure_are_those_of_the_code() -> None:
    modules = (ROOT / "app" / "devices" / name for name in ("supervisor.py", "session.py"))
    source = "".join(module.read_text() for module in modules)
    raised = set(re.findall(r'DeviceDown\("(\w+)"', source)) - {"stopped"}  # that one isn't counted
    failures = openapi.DOCUMENT["components"]["schemas"]["Device"]["properties"]["failures"]
    assert set(failures["propertyNames"]["enum"]) == raised
    assert {each for each in raised if f"`{each}`" in failures["description"]} == raised


# ---------------------------------------------------------------------------- real answers


@pytest.mark.parametrize("path", ["/health", "/ready", "/devices", "/models"])
def test_what_operators_ask(service: Service, path: str) -> None:
    answer = client(service).get(path)
    assert answer.status_code == 200
    assert check(answer)


def test_a_picture_as_a_form(service: Service) -> None:
    answer = client(service).post("/predict", **form(part("image", PERSON.read_bytes(), "p.jpg")))
    assert check(answer)["predictions"][0]["class"] == "person"


def test_a_picture_as_the_body(service: Service) -> None:
    answer = client(service).post("/predict", data=CAT.read_bytes(), content_type="image/png")
    assert check(answer)["predictions"][0]["class"] == "cat"


def test_a_picture_of_nothing(service: Service) -> None:
    answer = client(service).post("/predict", data=flat(), **JPEG)
    assert check(answer)["predictions"] == []


def test_every_parameter(service: Service) -> None:
    query = "min_score=0&max_results=3&labels=cat,%20dog&model=efficientdet_lite0"
    headers = {"X-Request-ID": "driveway-camera-1182"}
    answer = client(service).post(
        f"/predict?{query}", data=CAT.read_bytes(), headers=headers, **JPEG
    )
    body = check(answer)
    assert body["request_id"] == answer.headers["X-Request-ID"] == "driveway-camera-1182"
    assert len(body["predictions"]) == 3
    assert {found["class"] for found in body["predictions"]} <= {"cat", "dog"}


def test_the_metrics(service: Service) -> None:
    asked = client(service)
    asked.post("/predict", data=CAT.read_bytes(), content_type="image/png")
    asked.post("/predict")
    families = [
        family
        for family in text_string_to_metric_families(check(asked.get("/metrics")))
        if not family.name.endswith("_created")  # prometheus_client's own
    ]
    description = openapi.DOCUMENT["paths"]["/metrics"]["get"]["description"]
    described = {
        name.strip("`"): (kind, set(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels, _ in rows(description)
    }
    served = {
        family.name + "_total" * (family.type == "counter"): family.type for family in families
    }
    assert served == {name: kind for name, (kind, _) in described.items()}
    for family in families:
        for sample in family.samples:
            _, labels = described[family.name + "_total" * (family.type == "counter")]
            assert set(sample.labels) - {"le"} == labels


class Stalled(io.BytesIO):
    """The body of a client that has stopped sending."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As a socket with a timeout does."""
        raise TimeoutError


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "bad_parameter": ("/predict?min_score=1.1", {"data": flat(), **JPEG}),
    "image_missing": ("/predict", form(part("other", flat(), "a.jpg"))),
    "image_ambiguous": ("/predict", form(part("image", flat(), "a"), part("image", flat(), "b"))),
    "upload_broken": ("/predict", {"data": b"--x\r\n", "content_type": "multipart/form-data"}),
    "unknown_model": ("/predict?model=yolo", {"data": flat(), **JPEG}),
    "upload_too_slow": (
        "/predict",
        {"data": flat(), **JPEG, "environ_overrides": {"wsgi.input": Stalled()}},
    ),
    "upload_too_large": ("/predict", {"data": bytes(16 * MEBIBYTE + 1), **JPEG}),
    "image_too_large": ("/predict", {"data": claiming(flat(kind="PNG"), 8000, 6000), **JPEG}),
    "unsupported_type": ("/predict", {"data": flat(), "content_type": "text/plain"}),
    "not_an_image": ("/predict", {"data": b"no picture at all", **JPEG}),
    "image_corrupt": ("/predict", {"data": PERSON.read_bytes()[:20000], **JPEG}),
}


@pytest.mark.parametrize("code", REFUSED)
def test_a_request_that_is_refused(service: Service, code: str) -> None:
    path, request = REFUSED[code]
    assert check(client(service).post(path, **request))["code"] == code


@pytest.mark.parametrize("path", openapi.DOCUMENT["paths"])
def test_another_method(service: Service, path: str) -> None:
    (method,) = openapi.DOCUMENT["paths"][path]
    answer = client(service).delete(path)
    assert check(answer, method=method)["code"] == "method_not_allowed"
    assert method.upper() in answer.headers["Allow"].split(", ")


def test_a_path_that_is_not_there(service: Service) -> None:
    answer = client(service).get("/predictions")
    described = openapi.DOCUMENT["components"]["responses"]["NotFound"]
    check_headers(answer, described)
    openapi.check(described["content"]["application/json"]["schema"], answer.json)
    assert answer.status_code == 404


def test_too_many_at_once(service: Service) -> None:
    full = Service(service.settings, service.catalogue, service.pool)
    with ExitStack() as requests:
        for number in range(admitted(full.settings)):
            requests.enter_context(full.admit(f"client {number}"))
        assert check(client(full).post("/predict", data=flat(), **JPEG))["code"] == "busy"


KEY = "correct-horse-battery-staple"


def guarded(service: Service, **told: object) -> FlaskClient:
    """A client of the same devices with other settings."""
    settings = Settings.model_validate(service.settings.model_dump() | told)
    return client(Service(settings, service.catalogue, service.pool))


def test_who_brings_no_key(service: Service) -> None:
    asked = guarded(service, api_key=KEY)
    for path, methods in openapi.DOCUMENT["paths"].items():
        for method, operation in methods.items():
            answer = asked.open(path, method=method.upper())
            assert (answer.status_code == 401) == ("security" not in operation)
            check(answer)
    assert check(asked.get("/devices", headers={"X-API-Key": KEY}))
    assert check(asked.get("/devices", headers={"Authorization": f"Bearer {KEY}"}))


def test_who_sends_more_than_its_share(service: Service) -> None:
    asked = guarded(service, client_rate=0.001)
    asked.post("/predict", data=flat(), **JPEG)
    assert check(asked.post("/predict", data=flat(), **JPEG))["code"] == "too_many_requests"


def test_too_late(service: Service) -> None:
    hasty = service.settings.model_copy(update={"deadline_s": 1e-6})
    late = Service(hasty, service.catalogue, service.pool)
    answer = client(late).post("/predict", data=flat(), **JPEG)
    assert check(answer)["code"] == "deadline_exceeded"


def test_a_model_that_no_device_can_run(tmp_path: Path) -> None:
    compiled = colour_model.write(tmp_path / "doors_edgetpu.tflite", for_edgetpu=True)
    told = {"model": str(compiled), "run_dir": tmp_path}
    asked = client(build_service(Settings.model_validate(told)))
    assert check(asked.post("/predict", data=flat(), **JPEG))["code"] == "no_device"
    assert check(asked.get("/ready"))["ready"] is False
    assert check(asked.get("/devices")) == {"devices": []}
    assert check(asked.get("/models"))["default"] == "doors_edgetpu"


def test_devices_that_were_not_started_yet(tmp_path: Path) -> None:
    asked = client(build_service(Settings.model_validate({"run_dir": tmp_path})))
    answer = asked.get("/ready")
    assert answer.status_code == 503
    assert check(answer)["devices"][0]["state"] == "starting"
    assert check(asked.get("/devices"))["devices"][0]["pid"] is None


def test_a_server_that_is_being_stopped(service: Service) -> None:
    stopping = Service(service.settings, service.catalogue, service.pool)
    stopping.draining = True
    answer = client(stopping).get("/ready")
    assert answer.status_code == 503
    assert check(answer)["reason"] == "Reef is being stopped"


class Failing(Service):
    """A service that fails as it is told to."""

    def __init__(self, service: Service, error: Exception) -> None:
        super().__init__(service.settings, service.catalogue, service.pool)
        self._error = error

    def detect(
        self, source: bytes | Fitted, query: Query, stages: Stages, deadline: float
    ) -> Answer:
        """Fail."""
        raise self._error


@pytest.mark.parametrize(
    "error",
    [each("what is wrong") for each in ALL_ERRORS if each not in ROUTE_ERRORS],
    ids=lambda error: error.code,
)
def test_every_error(service: Service, error: RequestError) -> None:
    answer = client(Failing(service, error)).post("/predict", data=flat(), **JPEG)
    assert answer.status_code == error.status
    assert check(answer)["code"] == error.code


def test_a_bug(service: Service) -> None:
    answer = client(Failing(service, ZeroDivisionError())).post("/predict", data=flat(), **JPEG)
    assert answer.status_code == 500
    assert check(answer)["code"] == "internal_error"
