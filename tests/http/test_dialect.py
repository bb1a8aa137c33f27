"""The seam between the server and its dialects, with one that no real client speaks."""

import logging
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Request, Response, jsonify
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers
from werkzeug.test import EnvironBuilder

from app.errors import BadParameter, RequestError
from app.http.app import create_app
from app.http.body import Limits, read_body
from app.http.dialect import Dialect, Line, Sent, header_keys
from app.http.dialects import NATIVE
from app.service import Answer, Query, Service
from app.settings import Settings
from tests.support import GREEN, flat

KEY = "correct-horse-battery"
POLICY = "default-src 'self'"


# ---------------------------------------------------------------------------- keys in headers


def keys_of(**headers: str) -> list[str]:
    """The keys that a request with these headers brings."""
    names = Headers({name.replace("_", "-"): value for name, value in headers.items()})
    return header_keys(Request(EnvironBuilder(headers=names).get_environ()))


@pytest.mark.parametrize(
    ("authorization", "api_key", "expected"),
    [
        (f"Bearer {KEY}", "", [KEY]),
        (f"bearer  {KEY} ", "", [KEY]),
        ("", KEY, [KEY]),
        ("Basic dXNlcjpwYXNz", KEY, [KEY]),  # a proxy's own authentication beside it
        ("Bearer of-a-proxy", KEY, [KEY, "of-a-proxy"]),
        ("", "", []),
        ("Bearer", "", []),
        ("Bearer ", "", []),
        (KEY, "", []),
        (f"Basic {KEY}", "", []),
        (f"Bearer {KEY} x", "", [f"{KEY} x"]),
    ],
)
def test_a_key_comes_in_either_header(
    authorization: str, api_key: str, expected: list[str]
) -> None:
    assert keys_of(Authorization=authorization, X_API_Key=api_key) == expected


@given(st.text(st.characters(codec="latin-1", exclude_characters="\r\n")))
def test_no_header_is_too_odd(text: str) -> None:
    keys_of(Authorization=text, X_API_Key=text)


# ---------------------------------------------------------------------------- another dialect


def encode_error(error: RequestError, _request_id: str) -> Response:
    """A refusal as a client takes it that only ever looks at one field."""
    return jsonify(success=False, reason=error.code)


def blueprint(line: Line) -> Blueprint:
    """A route that takes the key as the body's first line, and one that has a page's policy."""
    routes = Blueprint("toy", __name__)
    model = line.service.catalogue.default

    def read(request: Request, limits: Limits) -> Sent:
        key, _, picture = read_body(request, limits).partition(b"\n")
        if not picture:
            raise BadParameter("no picture")
        return Sent(picture, Query(model, 0.0, 10, frozenset()), [key.decode()])

    def encode(answer: Answer, timings: dict[str, float]) -> Response:
        assert timings["total"] > 0
        best = answer.detections[0].label if answer.detections else ""
        return jsonify(success=True, best=best)

    @routes.post("/toy/detect")
    def detect() -> Response:
        return line.answer(read, encode)

    @routes.post("/toy/page")
    def page() -> Response:
        return Response("", headers={"Content-Security-Policy": POLICY, "Cache-Control": "private"})

    return routes


TOY = Dialect(
    "toy",
    blueprint,
    encode_error,
    Path(),
    api_keys=lambda request: [key for key in [request.headers.get("toy-key", "")] if key],
    body_key_routes=frozenset({"/toy/detect"}),
)


@pytest.fixture
def keyed(service: Service) -> Service:
    """A service that wants a key."""
    settings = Settings.model_validate(service.settings.model_dump() | {"api_key": KEY})
    return Service(settings, service.catalogue, service.pool)


@pytest.fixture
def toy(keyed: Service) -> Any:
    """A client of the application that speaks both dialects."""
    return create_app(keyed, (NATIVE, TOY)).test_client()


def test_the_key_comes_as_the_dialect_brings_it(toy: Any) -> None:
    picture = flat(GREEN)
    answers = [
        toy.post("/toy/detect", data=KEY.encode() + b"\n" + picture),
        toy.post("/toy/detect", data=b"\n" + picture, headers={"toy-key": KEY}),
    ]
    for answer in answers:
        assert answer.json == {"success": True, "best": "green"}
        assert answer.headers["Server-Timing"].startswith("read;dur=")


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/toy/detect", b"wrong\n" + flat(), {}),
        ("/toy/detect", b"\n" + flat(), {}),
        ("/toy/detect", KEY.encode() + b"\n" + flat(), {"toy-key": "wrong"}),
        ("/toy/detect", b"\n" + flat(), {"X-API-Key": KEY}),  # no header of this dialect
        ("/toy/page", KEY.encode() + b"\n", {}),  # whose body is not read
        ("/toy/page", b"", {"toy-key": "wrong"}),
    ],
)
def test_without_the_key_no_route_answers(
    path: str, body: bytes, headers: dict[str, str], toy: Any
) -> None:
    answer = toy.post(path, data=body, headers=headers)
    assert answer.json == {"success": False, "reason": "unauthorized"}


def test_a_body_can_not_bring_the_native_dialects_key(toy: Any) -> None:
    answer = toy.post("/predict", data=KEY.encode() + b"\n" + flat(), content_type="image/jpeg")
    assert (answer.status_code, answer.json["code"]) == (401, "unauthorized")


def test_refusals_are_counted_and_logged_whatever_their_form(
    toy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        answer = toy.post("/toy/detect", data=KEY, headers={"X-Request-ID": "this-one"})
    assert (answer.status_code, answer.json["reason"]) == (200, "bad_parameter")
    (record,) = [record for record in caplog.records if record.name == "app.refusals"]
    assert record.getMessage() == "POST /toy/detect 400 bad_parameter: no picture"
    assert record.__dict__["request_id"] == "this-one"
    metrics = toy.get("/metrics", headers={"X-API-Key": KEY}).text
    assert 'reef_rejected_total{reason="bad_parameter"} 1.0' in metrics
    assert 'reef_requests_total{route="/toy/detect",status="200"} 1.0' in metrics


def test_a_route_chooses_its_own_headers(toy: Any) -> None:
    answer = toy.post("/toy/page", headers={"toy-key": KEY})
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert answer.headers["Cache-Control"] == "private"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
