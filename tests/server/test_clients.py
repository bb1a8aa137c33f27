"""Clients that are slow, broken, greedy or hostile, against a real gunicorn."""

import contextlib
import http.client
import json
import re
import socket
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from tests.client import picture, redness
from tests.server.conftest import MakeServer, Server

MIB = 1024 * 1024
HEAD = b"POST /predict HTTP/1.1\r\nHost: test\r\nContent-Type: image/bmp\r\n"


def exchange(server: Server, request: bytes, timeout_s: float = 30) -> bytes:
    """Send bytes, and read until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout_s) as sock:
        sock.sendall(request)
        return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    """Everything that comes until the other side closes or resets."""
    said = b""
    try:
        while more := sock.recv(65536):
            said += more
    except ConnectionResetError:
        pass
    return said


def status_of(answer: bytes) -> int:
    """The status in an answer's first line; 0 for no answer."""
    return int(answer.split(b" ", 2)[1]) if answer else 0


def code_of(answer: bytes) -> str:
    """The code in an error's body."""
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["code"])


def chunked(body: bytes, size: int = MIB) -> Iterator[bytes]:
    """A body in pieces, as a client that knows no length sends it."""
    for start in range(0, len(body), size):
        yield body[start : start + size]


@pytest.mark.parametrize("extra", [0, 1], ids=["the limit", "one byte more"])
@pytest.mark.parametrize("length_known", [True, False], ids=["with a length", "chunked"])
def test_a_body_of_the_limit_is_taken_and_a_larger_one_refused(
    still_serves: Server, extra: int, length_known: bool
) -> None:
    image = picture(77)
    body = image + bytes(16 * MIB - len(image) + extra)
    connection = still_serves.connect()
    headers = {"Content-Type": "image/bmp", "Connection": "close"}
    try:
        connection.request(
            "POST", "/predict?min_score=0", body if length_known else chunked(body), headers
        )
    except (BrokenPipeError, ConnectionResetError):
        assert extra  # it answered and closed before it had everything
        return
    answer = connection.getresponse()
    assert answer.status == (413 if extra else 200)
    content = json.loads(answer.read())
    assert content["code"] == "upload_too_large" if extra else redness(content) == 77
    connection.close()


def test_a_body_said_to_be_huge_is_refused_before_it_is_sent(still_serves: Server) -> None:
    began = time.monotonic()
    answer = exchange(still_serves, HEAD + b"Content-Length: 10000000000\r\n\r\n")
    assert (status_of(answer), code_of(answer)) == (413, "upload_too_large")
    assert time.monotonic() - began < 4


def test_a_body_that_stops_coming_is_408(still_serves: Server) -> None:
    answer = exchange(still_serves, HEAD + b"Content-Length: 1000\r\n\r\nBM")
    assert (status_of(answer), code_of(answer)) == (408, "upload_too_slow")


@pytest.mark.parametrize("chunks", [False, True], ids=["with a length", "chunked"])
def test_a_body_that_drips_is_408_at_the_deadline(start_server: MakeServer, chunks: bool) -> None:
    server = start_server(REEF_DEADLINE_S="2")
    head, drop = b"Content-Length: 1000\r\n\r\n", b"x"
    if chunks:
        head, drop = b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"
    with socket.create_connection(("127.0.0.1", server.port), 30) as sock:
        sock.sendall(HEAD + head)
        began = time.monotonic()
        sock.settimeout(0.2)
        answer = b""
        while not answer:
            assert time.monotonic() - began < 15
            sock.sendall(drop)
            try:
                answer = sock.recv(65536)
            except TimeoutError:
                continue
        sock.settimeout(30)
        answer += read_all(sock)
    assert (status_of(answer), code_of(answer)) == (408, "upload_too_slow")


def _closed(sock: socket.socket) -> bool:
    """Send a byte of a header; whether the server has closed."""
    try:
        sock.sendall(b"G")
        return sock.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_headers_that_drip_are_cut_off_at_the_deadline(start_server: MakeServer) -> None:
    server = start_server(REEF_DEADLINE_S="2")
    with socket.create_connection(("127.0.0.1", server.port), 30) as sock:
        began = time.monotonic()
        sock.settimeout(0.2)
        while not _closed(sock):
            assert time.monotonic() - began < 15


def test_health_answers_while_every_slow_client_is_held(server: Server) -> None:
    """Half-sent headers and half-sent bodies, many more than the server has threads."""
    slow = [b"POST /pre", HEAD + b"Content-Length: 1000\r\n\r\nBM"]
    sockets = []
    for number in range(400):
        sock = socket.create_connection(("127.0.0.1", server.port), 30)
        sock.sendall(slow[number % 2])
        sockets.append(sock)
    try:
        worst = 0.0
        for _ in range(10):
            began = time.monotonic()
            assert server.get("/health")[0] == 200
            worst = max(worst, time.monotonic() - began)
            time.sleep(0.1)
        assert worst < 2
    finally:
        for sock in sockets:
            sock.close()
    assert server.predict(picture(3))[0] == 200


def test_connections_that_send_nothing_hold_no_thread(server: Server) -> None:
    sockets = [socket.create_connection(("127.0.0.1", server.port), 30) for _ in range(300)]
    began = time.monotonic()
    assert server.get("/health")[0] == 200
    assert time.monotonic() - began < 2
    for sock in sockets:
        sock.close()


def test_two_thousand_idle_kept_connections_do_not_stop_new_ones(server: Server) -> None:
    sockets = []
    for _ in range(2000):
        sock = socket.create_connection(("127.0.0.1", server.port), 30)
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        sockets.append(sock)
    assert server.predict(picture(8))[0] == 200
    assert psutil.Process(server.worker).num_fds() < 4100
    for sock in sockets:
        sock.close()


def test_one_client_cannot_have_every_connection(server: Server) -> None:
    hog = []
    for _ in range(3600):
        hog.append(socket.create_connection(("127.0.0.1", server.port), 30))
    assert hog[-1].recv(1) == b""  # more than its share: closed at once
    other = socket.create_connection(("127.0.0.1", server.port), 2, ("127.0.0.2", 0))
    other.sendall(b"GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
    assert other.recv(4096).startswith(b"HTTP/1.1 200")
    for sock in (*hog, other):
        sock.close()
    server.wait_until(lambda: server.get("/health")[0] == 200)  # and it may come again


def test_a_client_that_does_not_close_keeps_nobody_waiting(still_serves: Server) -> None:
    """The answer says that the connection closes; the client leaves it open."""
    with socket.create_connection(("127.0.0.1", still_serves.port), 30) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        assert sock.recv(4096)
        for _ in range(5):
            began = time.monotonic()
            still_serves.get("/health")
            assert time.monotonic() - began < 0.8


def test_clients_that_leave_in_the_middle_of_their_upload_cost_nothing(
    still_serves: Server,
) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", still_serves.port), 30) as sock:
            sock.sendall(HEAD + b"Content-Length: 100000\r\n\r\n" + b"x" * 5000)
    assert "Traceback" not in "".join(still_serves.lines)


def test_clients_that_leave_before_their_answer_cost_nothing(still_serves: Server) -> None:
    body = picture(20)
    before = psutil.Process(still_serves.worker).num_threads()
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", still_serves.port), 30) as sock:
            sock.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            # The reset comes while the picture is at work, or while its answer is written.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert "Traceback" not in still_serves.log()
    assert psutil.Process(still_serves.worker).num_threads() <= max(before, 64)


@pytest.mark.timeout(600)
def test_ten_thousand_requests_leave_memory_threads_and_descriptors_as_they_were(
    server: Server,
) -> None:
    worker = psutil.Process(server.worker)
    image = picture(90)

    def post(count: int) -> None:
        connection = server.connect()
        for _ in range(count):
            connection.request("POST", "/predict", image, {"Content-Type": "image/bmp"})
            answer = connection.getresponse()
            assert answer.read()
            assert answer.status == 200
        connection.close()

    def many(count: int) -> None:
        with ThreadPoolExecutor(4) as clients:
            list(clients.map(post, [count // 4] * 4))

    many(2_000)
    before = (worker.memory_info().rss, worker.num_threads(), worker.num_fds())
    many(10_000)
    server.wait_until(lambda: worker.num_fds() <= before[2] + 4)
    after = worker.memory_info().rss
    print(f"{before[0] / MIB:.1f} MiB after 2,000 requests, {after / MIB:.1f} after 10,000 more")
    assert after - before[0] < 16 * MIB
    assert worker.num_threads() <= before[1] + 8  # more at once were never needed before


def test_two_hundred_requests_at_once_are_answered_or_refused(server: Server) -> None:
    image = picture(99, (1600, 1200))
    busy = threading.Event()
    healthy: list[float] = []
    answered: list[float] = []

    def watch() -> None:
        while not busy.is_set():
            began = time.monotonic()
            assert server.get("/health")[0] == 200
            healthy.append(time.monotonic() - began)

    def ask(_number: int) -> tuple[int, dict[str, Any]]:
        began = time.monotonic()
        status, body = server.predict(image)
        if status == 200:
            answered.append(time.monotonic() - began)
        return status, body

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(200) as clients:
        answers = list(clients.map(ask, range(400)))
    busy.set()
    watcher.join()
    assert {status for status, _ in answers} <= {200, 503}
    assert all(redness(body) == 99 for status, body in answers if status == 200)
    assert all(body["code"] == "busy" for status, body in answers if status == 503)
    assert len(answered) >= 40
    assert statistics.median(healthy) < statistics.median(
        answered
    )  # it does not wait in their queue


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello over TLS\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello, and then it waits", 400),
        (b"GET /health HTTP/1.1\nHost: test\n\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: test\n\n", 400),
        (b"GET /health\r\n\r\n", 400),
        (b"GET /he\x00alth HTTP/1.1\r\nHost: test\r\n\r\n", 400),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
        (HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400),
        (HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: test\r\nX: " + b"x" * 20000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: test\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 3000, 431),
        (b"GET /" + b"x" * 10000 + b" HTTP/1.1\r\nHost: test\r\n\r\n", 414),
        (HEAD + b"Content-Length: 1\r\nExpect: wonders\r\n\r\nx", 417),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffff\r\nabc\r\n", 408),
    ],
    ids=[
        "TLS", "TLS that waits", "line feeds alone", "a line feed alone",
        "HTTP/0.9", "NUL", "negative length", "two lengths", "length and chunked", "long header",
        "many headers", "headers without end", "long URI", "unknown Expect", "bad chunk",
        "huge chunk",
    ],
)  # fmt: skip
def test_malformed_http_is_refused_and_not_fatal(
    still_serves: Server, request_bytes: bytes, status: int
) -> None:
    assert status_of(exchange(still_serves, request_bytes)) == status


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /nowhere HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n",
        b"GET /predict HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /" + b"x" * 10000 + b" HTTP/1.1\r\nHost: test\r\n\r\n",
        HEAD + b"Content-Length: 4\r\nConnection: close\r\n\r\nabcd",
        HEAD + b"Content-Length: x\r\n\r\n",
    ],
)
def test_no_refusal_tells_a_version_or_a_path_of_this_computer(
    still_serves: Server, request_bytes: bytes
) -> None:
    answer = exchange(still_serves, request_bytes).decode()
    assert status_of(answer.encode()) >= 400
    body = answer.lower().replace("http/1.1", "")
    assert not re.search(r"\d+\.\d+\.\d+|/app/|/opt/|\.py\b|traceback|python|werkzeug|flask", body)
    assert re.findall(r"(?m)^server: (.*?)\r$", body) in ([], ["gunicorn"])  # a name, no version


def test_malformed_requests_do_not_fill_the_log(still_serves: Server) -> None:
    before, began = len(still_serves.lines), time.monotonic()
    for number in range(50):
        exchange(still_serves, b"nonsense %d\r\n\r\n" % number)
    assert len(still_serves.lines) - before <= 5 + time.monotonic() - began


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/%00", "/predict/../predict/x", "//"])
def test_a_strange_path_is_not_found(still_serves: Server, path: str) -> None:
    answer = exchange(
        still_serves, f"GET {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n".encode()
    )
    assert status_of(answer) in (400, 404)


def test_expect_100_continue_is_answered_and_then_the_picture(still_serves: Server) -> None:
    body = picture(60)
    with socket.create_connection(("127.0.0.1", still_serves.port), 30) as sock:
        head = f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n".encode()
        sock.sendall(HEAD + head)
        assert sock.recv(4096).startswith(b"HTTP/1.1 100")
        sock.sendall(body)
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        assert (answer.status, answer.getheader("Content-Type")) == (200, "application/json")


@pytest.mark.parametrize("path", ["/health", "/ready", "/devices", "/models", "/metrics", "/nope"])
def test_no_answer_is_chunked(still_serves: Server, path: str) -> None:
    connection = still_serves.connect()
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.getheader("Content-Length") == str(len(body))
    assert answer.getheader("Transfer-Encoding") is None
    connection.close()


def test_one_connection_serves_many_requests(still_serves: Server) -> None:
    connection = still_serves.connect()
    for red in range(0, 250, 25):
        connection.request(
            "POST", "/predict?min_score=0", picture(red), {"Content-Type": "image/bmp"}
        )
        answer = connection.getresponse()
        assert redness(json.loads(answer.read())) == red
    connection.close()


def test_clients_that_send_and_never_read_hold_no_thread(server: Server) -> None:
    """Each has more requests in flight than there is room for their answers."""
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: test\r\n\r\n" * 400
    sockets = []
    for _ in range(120):
        sock = socket.create_connection(("127.0.0.1", server.port), 30)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        sockets.append(sock)
    began, took = time.monotonic(), []
    try:
        while time.monotonic() - began < 6:
            for sock in sockets:
                with contextlib.suppress(OSError):
                    sock.send(ask)
            asked = time.monotonic()
            assert server.get("/health")[0] == 200
            took.append(time.monotonic() - asked)
    finally:
        for sock in sockets:
            sock.close()
    assert statistics.median(took) < 2  # with every thread held, each would take 3 s and more
    assert server.predict(picture(4))[0] == 200


def from_address(server: Server, address: str, image: bytes) -> tuple[int, float]:
    """Post a picture from an address of this computer; the status, and how long it took."""
    began = time.monotonic()
    connection = http.client.HTTPConnection(
        "127.0.0.1", server.port, timeout=60, source_address=(address, 0)
    )
    try:
        connection.request("POST", "/predict", image, {"Content-Type": "image/bmp"})
        status = connection.getresponse().status
    finally:
        connection.close()
    return status, time.monotonic() - began


def test_a_client_with_a_hundred_connections_does_not_starve_one_with_a_single_one(
    server: Server,
) -> None:
    """The hundred are twice as many as all its threads."""
    image = picture(50, (320, 240))
    done = threading.Event()

    def flood() -> None:
        while not done.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                from_address(server, "127.0.0.2", image)

    greedy = [threading.Thread(target=flood) for _ in range(100)]
    for thread in greedy:
        thread.start()
    try:
        modest = [from_address(server, "127.0.0.3", image) for _ in range(10)]
    finally:
        done.set()
        for thread in greedy:
            thread.join()
    assert {status for status, _ in modest} == {200}
    assert statistics.median(seconds for _, seconds in modest) < 10
