"""Keys, shares and origins, as clients meet them."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.access import KEPT_FOR_NEWCOMERS
from app.errors import NoDevice
from app.service import Service, admitted
from tests.http.conftest import Client, MakeClient, client_of, refused
from tests.support import GREEN, build_service, flat, make_settings, wait_for

pytestmark = pytest.mark.usefixtures("still_serves")

KEY = "correct-horse-battery-staple"
WRONG = "staple-battery-horse-correct"
KEYED = ("/devices", "/models", "/metrics", "/nowhere")
OPEN = ("/health", "/ready", "/openapi.json")
PAGE = "https://home.example"
PHOTO = {"data": flat(GREEN), "content_type": "image/jpeg"}


# ---------------------------------------------------------------------------- keys


@pytest.fixture
def keyed(make_client: MakeClient) -> Client:
    """A client of a server with a key."""
    return make_client(api_key=KEY)


@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}])
def test_with_the_key_everything_answers(headers: dict[str, str], keyed: Client) -> None:
    assert keyed.post("/predict", headers=headers, **PHOTO).status_code == 200
    for path in (*KEYED[:-1], *OPEN):
        assert keyed.get(path, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {WRONG}"},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": KEY},
        {"X-API-Key": WRONG},
        {"X-API-Key": KEY[:-1]},
        {"Cookie": f"key={KEY}"},
    ],
)
def test_without_it_nothing_but_probes_does(headers: dict[str, str], keyed: Client) -> None:
    for answer in (
        keyed.post("/predict", headers=headers, **PHOTO),
        *(keyed.get(path, headers=headers) for path in KEYED),
    ):
        said = refused(answer, "401 unauthorized")
        assert KEY not in said
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="reef"'
    for path in OPEN:
        assert keyed.get(path, headers=headers).status_code == 200


def test_a_key_in_the_address_or_the_form_does_not_count(keyed: Client) -> None:
    for name in ("api_key", "key", "token", "X-API-Key"):
        refused(keyed.post(f"/predict?{name}={KEY}", **PHOTO), "401 unauthorized")
    refused(keyed.post("/predict", data={"api_key": KEY}), "401 unauthorized")


def test_who_has_no_key_does_not_learn_which_paths_there_are(keyed: Client) -> None:
    answers = [keyed.open(path, method="PUT") for path in ("/predict", "/devices", "/nowhere")]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.json["error"] for answer in answers}) == 1


def test_metrics_may_be_open_and_the_rest_is_not(make_client: MakeClient) -> None:
    client = make_client(api_key=KEY, open_routes="metrics")
    assert client.get("/metrics").status_code == 200
    refused(client.get("/devices"), "401 unauthorized")
    refused(client.post("/predict", **PHOTO), "401 unauthorized")


def test_the_key_is_never_logged(keyed: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for key in (KEY, WRONG):
        keyed.get("/devices", headers={"X-API-Key": key, "Authorization": f"Bearer {key}"})
        keyed.get("/nowhere", headers={"X-API-Key": key})
        keyed.post("/predict", headers={"X-API-Key": key}, data=b"no picture")
    assert "401 unauthorized" in caplog.text
    assert KEY not in caplog.text
    assert WRONG not in caplog.text


def test_a_body_of_somebody_without_a_key_is_not_read(make_client: MakeClient) -> None:
    client = make_client(api_key=KEY, max_upload_mib=1)
    answer = client.post("/predict", data=bytes(2_000_000), content_type="image/jpeg")
    refused(answer, "401 unauthorized")  # and not 413


# ---------------------------------------------------------------------------- shares


def from_address(client: Client, address: str, **headers: str) -> int:
    """The status of a picture that comes from an address."""
    answer = client.post(
        "/predict", environ_overrides={"REMOTE_ADDR": address}, headers=headers, **PHOTO
    )
    if answer.status_code == 429:
        refused(answer, "429 too_many_requests")
        assert int(answer.headers["Retry-After"]) >= 1
    return int(answer.status_code)


def test_each_client_has_a_rate_of_its_own(make_client: MakeClient) -> None:
    client = make_client(client_rate=0.01)
    assert [from_address(client, "192.0.2.1") for _ in range(3)] == [200, 429, 429]
    assert [from_address(client, "192.0.2.2") for _ in range(2)] == [200, 429]
    assert client.get("/health").status_code == client.get("/devices").status_code == 200


def test_behind_a_proxy_that_is_named_the_client_is_who_the_proxy_says(
    make_client: MakeClient,
) -> None:
    client = make_client(client_rate=0.01, proxies="10.0.0.1")

    def ask(address: str, said: str) -> int:
        return from_address(client, address, **{"X-Forwarded-For": said})

    assert [ask("10.0.0.1", f"192.0.2.{n}") for n in (1, 2, 1)] == [200, 200, 429]
    assert [ask("198.51.100.9", f"192.0.2.{n}") for n in (3, 4)] == [200, 429]


class Held:
    """Pictures of clients that wait in the queue of a service whose device never becomes ready."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.client = client_of(service)
        self._threads = ThreadPoolExecutor(64)
        self.statuses: list[int] = []
        self._lock = threading.Lock()

    def send(self, address: str, count: int = 1) -> None:
        """Send pictures from an address; returns when all are in the queue or answered."""
        before = self.settled
        for _ in range(count):
            self._threads.submit(self._post, address)
        wait_for(lambda: self.settled == before + count)

    @property
    def settled(self) -> int:
        """How many are in the queue or answered."""
        with self.service.pool.lock:
            waiting = len(self.service.pool._queue)
        return waiting + len(self.statuses)

    def _post(self, address: str) -> None:
        client = client_of(self.service)
        answer = client.post("/predict", environ_overrides={"REMOTE_ADDR": address}, **PHOTO)
        with self._lock:
            self.statuses.append(answer.status_code)

    def waiting(self) -> list[str]:
        """The clients in the queue."""
        with self.service.pool.lock:
            return [job.client for job in self.service.pool._queue]

    def close(self) -> None:
        """Answer everybody."""
        with self.service.pool.lock:
            for job in self.service.pool._queue:
                job.fail(NoDevice("the test is over"))
        self._threads.shutdown()


@pytest.fixture
def held(tmp_path: object) -> Iterator[Held]:
    """A service with a queue of eight that nobody empties."""
    held = Held(build_service(make_settings(queue=8, deadline_s=60, run_dir=tmp_path)))
    yield held
    held.close()


def test_one_client_cannot_keep_another_out_of_the_queue(held: Held) -> None:
    held.send("192.0.2.1", 8)
    held.send("192.0.2.2")
    assert held.statuses == [503]  # of the one that had eight
    assert sorted(held.waiting()) == ["192.0.2.1"] * 7 + ["192.0.2.2"]
    held.send("192.0.2.2", 5)
    assert sorted(held.waiting()) == ["192.0.2.1"] * 4 + ["192.0.2.2"] * 4
    assert set(held.statuses) == {503}


def test_one_client_cannot_keep_another_from_uploading(service: Service) -> None:
    most = admitted(service.settings)
    entered = [service.admit("greedy") for _ in range(most - KEPT_FOR_NEWCOMERS)]
    for each in entered:
        each.__enter__()
    try:
        client = client_of(service)
        greedy = client.post("/predict", environ_overrides={"REMOTE_ADDR": "192.0.2.9"}, **PHOTO)
        assert greedy.status_code == 200
        with pytest.raises(Exception, match="too many requests at once"):
            service.admit("greedy").__enter__()
    finally:
        for each in entered:
            each.__exit__(None, None, None)


def test_a_client_may_be_held_to_so_many_at_once(service: Service) -> None:
    told = service.settings.model_copy(update={"client_requests": 1})
    held = Service(told, service.catalogue, service.pool)
    client = client_of(held)
    with held.admit("192.0.2.1"):
        assert from_address(client, "192.0.2.1") == 429
        assert from_address(client, "192.0.2.2") == 200
    assert from_address(client, "192.0.2.1") == 200


# ---------------------------------------------------------------------------- origins

PREFLIGHT = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}


def test_a_page_that_is_named_may_read_answers(make_client: MakeClient) -> None:
    client = make_client(api_key=KEY, cors_origins=PAGE)
    asked = client.options("/predict", headers=PREFLIGHT)
    assert asked.status_code == 200
    assert asked.headers["Access-Control-Allow-Origin"] == PAGE
    assert "X-API-Key" in asked.headers["Access-Control-Allow-Headers"]
    assert "POST" in asked.headers["Access-Control-Allow-Methods"]
    answer = client.post("/predict", headers={"Origin": PAGE, "X-API-Key": KEY}, **PHOTO)
    assert (answer.status_code, answer.headers["Vary"]) == (200, "Origin")
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    refusal = client.get("/devices", headers={"Origin": PAGE})
    assert refused(refusal, "401 unauthorized")  # and the page can read why


def test_any_other_page_may_not(make_client: MakeClient) -> None:
    client = make_client(cors_origins=PAGE)
    for origin in ("https://evil.example", f"{PAGE}.evil.example", "null", f"{PAGE}:444"):
        answer = client.options("/predict", headers=PREFLIGHT | {"Origin": origin})
        assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]
        assert answer.headers["Vary"] == "Origin"


def test_every_page_may_where_that_was_asked_for(make_client: MakeClient) -> None:
    client = make_client(cors_origins="*")
    client.origins = frozenset({PAGE})
    answer = client.get("/health", headers={"Origin": PAGE})
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert "Access-Control-Allow-Credentials" not in answer.headers
