"""The application in-process, on a real device process with the colour model and the default."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from app.http import create_app
from app.models import Catalogue
from app.service import Service
from app.settings import Settings
from tests import colour_model
from tests.support import GREEN, flat, make_settings, running

COLOUR, DEFAULT = "colour", "efficientdet_lite0"
JSON = "application/json"


class Client(FlaskClient):
    """A client that checks what holds for every answer."""

    get: Any  # so that `json` of an answer may be anything
    post: Any
    head: Any
    options: Any
    origins: frozenset[str] = frozenset()
    """Those whose pages may read an answer."""

    def crosses(self, answer: Any) -> bool:
        """Whether the page that asked may read the answer."""
        return answer.request.headers.get("Origin") in self.origins

    def open(self, *args: Any, **kwargs: Any) -> Any:
        """Send a request; returns the answer."""
        answer = super().open(*args, **kwargs)
        head = answer.request.method == "HEAD"
        assert head or answer.headers["Content-Length"] == str(len(answer.data))
        assert "Transfer-Encoding" not in answer.headers
        assert answer.headers["X-Request-ID"]
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert ("Access-Control-Allow-Origin" in answer.headers) == self.crosses(answer)
        if answer.mimetype == JSON and answer.data:
            json.loads(answer.data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        return answer

    def predict(self, image: bytes, query: str = "", kind: str = "image/jpeg") -> Any:
        """Post a picture as the body."""
        return self.post(f"/predict?{query}", data=image, content_type=kind)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose default is the colour model; the embedded one is served beside it."""
    folder = tmp_path_factory.mktemp("service")
    path = colour_model.write(folder / f"{COLOUR}.tflite")
    told = make_settings(model=str(path), extra_models=(DEFAULT,), run_dir=folder)
    with running(told) as service:
        yield service


MakeClient = Callable[..., Client]


def client_of(service: Service) -> Client:
    """A client of an application that is made for it."""
    app = create_app(service)
    app.test_client_class = Client
    client = app.test_client()
    assert isinstance(client, Client)
    return client


@pytest.fixture
def client(service: Service) -> Client:
    """A client of a service on that device, whose counters begin at zero."""
    return client_of(Service(service.settings, service.catalogue, service.pool))


@pytest.fixture
def make_client(service: Service) -> MakeClient:
    """Makes clients of services with other settings, on the same device."""

    def make(default: str = COLOUR, **told: object) -> Client:
        known = service.catalogue.by_name
        catalogue = Catalogue(known[default], known)
        settings = Settings.model_validate(service.settings.model_dump() | told)
        client = client_of(Service(settings, catalogue, service.pool))
        client.origins = frozenset(settings.cors_origins)
        return client

    return make


@pytest.fixture
def still_serves(service: Service) -> Iterator[None]:
    """After the test, whatever it did, the server lives and a good picture is detected."""
    yield
    client = client_of(service)
    assert client.get("/health").status_code == 200
    answer = client.predict(flat(GREEN))
    assert answer.status_code == 200
    assert [each["class"] for each in answer.json["predictions"]] == ["green"]


def refused(answer: Any, outcome: str) -> str:
    """Check that an answer is this refusal, in the one error form; returns what it says."""
    assert f"{answer.status_code} {answer.json['code']}" == outcome, answer.json
    assert answer.mimetype == JSON
    assert set(answer.json) == {"error", "code", "request_id"}
    assert answer.json["request_id"] == answer.headers["X-Request-ID"]
    said: str = answer.json["error"]
    assert said
    assert "\n" not in said
    assert "Traceback" not in said
    assert len(said) < 1000
    return said
