"""Clients that ask again as soon as they are answered (a closed loop), at little cost in CPU.

Requests are bytes made beforehand; sockets are raw and stay open; what was answered is parsed
after the measurement. `run` belongs in a process of its own, where its GIL disturbs nobody.
"""

import json
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.errors import CannotMeasure

HOST = "127.0.0.1"
BOUNDARY = "e9c1f0b6a7d84d52"
TIMEOUT_S = 20
SEND_BUFFER = 1 << 20  # a picture leaves in one piece
RUN_IN_S = 0.3  # before the clock starts, so that every client is at work when it does
OK = b"HTTP/1.1 200 "

Timings = dict[str, float]


@dataclass
class Block:
    """What clients saw of one block of requests."""

    seconds: float = 0.0
    """How long the clock ran."""
    counted: int = 0
    """Requests answered while it ran."""
    all: int = 0
    """Requests answered in total, before and after too."""
    cpu_s: float = 0.0
    """CPU time of the clients, for all requests."""
    latencies: list[float] = field(default_factory=list)
    """Seconds from the first byte sent to the last byte received, of each request counted."""
    timings: list[Timings] = field(default_factory=list)
    """The server's own stages in milliseconds, of each request counted that has them."""

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.counted / self.seconds


def get(path: str) -> bytes:
    """A GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


def post(picture: bytes) -> bytes:
    """A JPEG for `/predict`, in a form, as `curl -F image=@picture.jpg` sends it."""
    body = (
        f"--{BOUNDARY}\r\n"
        'Content-Disposition: form-data; name="image"; filename="picture.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    ).encode() + picture
    body += f"\r\n--{BOUNDARY}--\r\n".encode()
    head = (
        f"POST /predict HTTP/1.1\r\nHost: {HOST}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Client:
    """One persistent connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((HOST, port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        # The kernel's timeout and not Python's, which would cost a call more per request.
        patience = struct.pack("ll", TIMEOUT_S, 0)  # struct timeval
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)

    def ask(self, request: bytes) -> bytes:
        """Send a request; returns the body of its answer, which must be a 200."""
        self._socket.sendall(request)
        answer = self._socket.recv(65536)
        while (split := answer.find(b"\r\n\r\n") + 4) < 4:
            answer += self._more(answer)
        head = answer[:split]
        if not head.startswith(OK):
            raise CannotMeasure(f"the server answered {answer[:300].decode(errors='replace')!r}")
        end = split + int(head.partition(b"Content-Length: ")[2].partition(b"\r")[0])
        while len(answer) < end:
            answer += self._more(answer)
        return answer[split:]

    def _more(self, answer: bytes) -> bytes:
        if not (more := self._socket.recv(65536)):
            raise CannotMeasure(f"the server hung up after {len(answer)} bytes of an answer")
        return more

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def count(port: int, requests: Sequence[bytes], number: int, first: int = 0) -> Block:
    """Ask `number` times from one client, in turn what is in `requests`, from `first` on."""
    client = Client(port)
    client.ask(requests[first % len(requests)])  # a new connection is slower
    answers, latencies = [], []
    began, cpu_began = time.perf_counter(), time.process_time()
    for turn in range(first, first + number):
        request = requests[turn % len(requests)]
        asked = time.perf_counter()
        answer = client.ask(request)
        latencies.append(time.perf_counter() - asked)
        answers.append(answer)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    client.close()
    return Block(seconds, number, number + 1, cpu_s, latencies, _timings(answers))


def run(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Block:
    """Ask from many clients at a time, each the same requests in a turn of its own."""
    crowd = [Client(port) for _ in range(clients)]
    cpu_began = time.process_time()
    began = time.perf_counter() + RUN_IN_S
    done: list[list[tuple[float, float, bytes]]] = [[] for _ in crowd]
    failures: list[Exception] = []

    def ask_on(number: int) -> None:
        client, turn, end = crowd[number], number, began + seconds
        try:
            while (asked := time.perf_counter()) < end:
                answer = client.ask(requests[turn % len(requests)])
                done[number].append((asked, time.perf_counter(), answer))
                turn += 1
        except (OSError, CannotMeasure) as error:
            failures.append(error)

    threads = [threading.Thread(target=ask_on, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cpu_s = time.process_time() - cpu_began
    for client in crowd:
        client.close()
    if failures:
        raise CannotMeasure(str(failures[0]))
    every = [one for own in done for one in own]
    counted = [one for one in every if began <= one[1] < began + seconds]
    return Block(
        seconds,
        len(counted),
        len(every),
        cpu_s,
        [answered - asked for asked, answered, _ in counted],
        _timings([answer for _, _, answer in counted]),
    )


def _timings(answers: Sequence[bytes]) -> list[Timings]:
    return [timings for answer in answers if (timings := json.loads(answer).get("timings"))]
