"""Hours of everyday life in minutes: `python -m bench.soak [--minutes 30]`.

A real server with the embedded model, and at once: clients that send good pictures, bad ones, slow
ones, and clients that go away in the middle; a prober of `/health`; and somebody who kills or hangs
the device process every few seconds. The report says what became of every request. Exit status 1
when a request was lost, an answer was wrong, or the server grew.
"""

import argparse
import http.client
import json
import os
import random
import signal
import socket
import statistics
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from bench.errors import CannotMeasure
from bench.helpers import tell
from bench.load import HOST
from bench.server import ROOT, Server, ask, serving
from tests.corpus.mutate import mutations

MINUTES = 30.0
PATIENCE_S = 60.0
KILL_EVERY_S = (5.0, 20.0)
PROBE_EVERY_S = 0.2
SAMPLE_EVERY_S = 5.0
WARM = 0.2  # share of the run that the slopes leave out
QUIET_S = 12.0  # longer than the deadline: what was cut off is gone then
MOST_MIB_PER_HOUR = 64.0
SETTINGS = {"REEF_RESTART_BACKOFF_MAX_S": "1", "LOG_LEVEL": "warning"}

PERSON = (ROOT / "models" / "selftest_person.jpg").read_bytes()
ANSWERS = {200, 400, 408, 413, 415, 422}
REFUSALS = {429, 503, 504}


@dataclass
class Tally:
    """What became of requests; several threads write to it."""

    sent: Counter[str] = field(default_factory=Counter)
    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    probes: list[float] = field(default_factory=list)
    samples: list[tuple[float, int, int, int]] = field(default_factory=list)
    """Seconds, and of the HTTP process then: bytes resident, descriptors, threads."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, kind: str, status: int) -> None:
        """An answer came."""
        with self.lock:
            self.statuses.setdefault(kind, Counter())[status] += 1


class Client:
    """Sends one request after the other in a thread, each over a connection of its own."""

    kind = ""

    def __init__(self, server: Server, tally: Tally, seed: int) -> None:
        self.port = server.port
        self.tally = tally
        self.chance = random.Random(seed)

    def run(self, stop: threading.Event) -> None:
        """Until it is told to stop."""
        while not stop.is_set():
            with self.tally.lock:
                self.tally.sent[self.kind] += 1
            try:
                self.once()
            except (OSError, http.client.HTTPException, ValueError) as error:
                with self.tally.lock:
                    self.tally.lost.append(f"{self.kind}: {error!r}")

    def once(self) -> None:
        """One request."""
        raise NotImplementedError

    def connect(self) -> socket.socket:
        """A connection."""
        return socket.create_connection((HOST, self.port), PATIENCE_S)

    def head(self, length: int) -> bytes:
        """The header of a picture."""
        kind = "POST /predict HTTP/1.1\r\nHost: reef\r\nConnection: close\r\n"
        return f"{kind}Content-Type: image/jpeg\r\nContent-Length: {length}\r\n\r\n".encode()

    def answer(self, sock: socket.socket) -> tuple[int, bytes]:
        """Read an answer; it is counted."""
        read = http.client.HTTPResponse(sock)
        read.begin()
        body = read.read()
        json.loads(body)
        self.tally.count(self.kind, read.status)
        return read.status, body


class Good(Client):
    """Sends a picture of a person, and wants the person."""

    kind = "good"

    def once(self) -> None:
        """See above."""
        with self.connect() as sock:
            sock.sendall(self.head(len(PERSON)) + PERSON)
            status, body = self.answer(sock)
        if (status == 200 and b'"class":"person"' not in body) or status not in REFUSALS | {200}:
            with self.tally.lock:
                self.tally.wrong.append(f"{status} {body[:200]!r}")
        time.sleep(self.chance.uniform(0, 0.02))


class Bad(Client):
    """Sends damaged pictures."""

    kind = "bad"

    def __init__(self, server: Server, tally: Tally, seed: int) -> None:
        super().__init__(server, tally, seed)
        self.pictures = mutations([PERSON[:20_000], PERSON], 10**9, seed)

    def once(self) -> None:
        """See above."""
        body = next(self.pictures)
        with self.connect() as sock:
            sock.sendall(self.head(len(body)) + body)
            status, said = self.answer(sock)
        if status not in ANSWERS | REFUSALS:
            with self.tally.lock:
                self.tally.wrong.append(f"{status} {said[:200]!r}")
        time.sleep(self.chance.uniform(0, 0.05))


class Slow(Client):
    """Sends a picture in drops, now and then slower than the server waits for."""

    kind = "slow"

    def once(self) -> None:
        """See above."""
        request = self.head(len(PERSON)) + PERSON
        pause = self.chance.choice((0.05, 0.2, 1.5))
        with self.connect() as sock:
            try:
                for start in range(0, len(request), 4096):
                    sock.sendall(request[start : start + 4096])
                    time.sleep(pause)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has answered already
            self.answer(sock)


class Aborting(Client):
    """Goes away in the middle of its header, of its picture or of the answer."""

    kind = "aborted"

    def once(self) -> None:
        """See above."""
        request = self.head(len(PERSON)) + PERSON
        with self.connect() as sock:
            sock.sendall(request[: self.chance.choice((20, 2000, len(request)))])
            if self.chance.random() < 0.5:  # with a reset, not an end
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        time.sleep(self.chance.uniform(0, 0.1))


CLIENTS: tuple[tuple[type[Client], int], ...] = ((Good, 3), (Bad, 2), (Slow, 4), (Aborting, 2))


def probe(server: Server, tally: Tally, stop: threading.Event) -> None:
    """Ask `/health` again and again."""
    while not stop.wait(PROBE_EVERY_S):
        began = time.monotonic()
        try:
            ask(server.port, "/health")
        except (CannotMeasure, OSError, http.client.HTTPException) as error:
            with tally.lock:
                tally.lost.append(f"/health: {error!r}")
        tally.probes.append(time.monotonic() - began)


def torment(server: Server, tally: Tally, stop: threading.Event, seed: int) -> None:
    """Kill or hang the device process again and again."""
    chance = random.Random(seed)
    while not stop.wait(chance.uniform(*KILL_EVERY_S)):
        devices = [each["pid"] for each in ask(server.port, "/devices")["devices"] if each["pid"]]
        if devices:
            number = chance.choice((signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV))
            try:
                os.kill(chance.choice(devices), number)
            except ProcessLookupError:
                continue
            tally.kills[number.name] += 1


def sample(worker: psutil.Process, tally: Tally, stop: threading.Event) -> None:
    """Note what the HTTP process takes."""
    began = time.monotonic()
    while not stop.wait(SAMPLE_EVERY_S):
        taken = (worker.memory_info().rss, worker.num_fds(), worker.num_threads())
        tally.samples.append((time.monotonic() - began, *taken))


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="default: 30")
    parser.add_argument("--seed", type=int, default=42)
    told = parser.parse_args(arguments)
    try:
        with serving(SETTINGS) as server:
            return run(server, told.minutes * 60, told.seed)
    except CannotMeasure as error:
        print(f"the server failed: {error}", file=sys.stderr)
        return 1


def run(server: Server, seconds: float, seed: int) -> int:
    """Torment a server for so long; returns the exit status."""
    tally, stop, after = Tally(), threading.Event(), threading.Event()
    worker = server.processes()["http"]
    before = state(server)
    jobs: list[Callable[[], None]] = [
        lambda: torment(server, tally, stop, seed),
        lambda: probe(server, tally, after),
        lambda: sample(worker, tally, stop),
    ]
    for kind, count in CLIENTS:
        for number in range(count):
            client = kind(server, tally, seed + number)
            jobs.append(lambda client=client: client.run(stop))  # type: ignore[misc]
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        tell(f"{left / 60:.1f} minutes left: {sum(tally.sent.values())} requests")
        time.sleep(min(left, 2.0))
    stop.set()
    time.sleep(QUIET_S)
    after.set()
    for thread in threads:
        thread.join()
    tell("")
    same = server.processes()["http"].pid == worker.pid
    return report(tally, before, state(server), same, seconds)


def state(server: Server) -> dict[str, int]:
    """What the server has open."""
    processes = server.processes()
    worker = processes["http"]
    return {
        "descriptors": worker.num_fds(),
        "threads": worker.num_threads(),
        "child processes": len(psutil.Process(server.pid).children(recursive=True)),
        "resident MiB": worker.memory_info().rss // 1024**2,
    }


def report(
    tally: Tally, before: dict[str, int], after: dict[str, int], same: bool, seconds: float
) -> int:
    """Print what happened; returns the exit status."""
    total = sum(tally.sent.values())
    print(f"{seconds / 60:.0f} minutes, {total} requests sent: {dict(tally.sent)}")
    every: Counter[int] = Counter()
    for kind, statuses in tally.statuses.items():
        print(f"  {kind:9}{dict(sorted(statuses.items()))}")
        every += statuses
    print(f"answered {sum(every[each] for each in ANSWERS)}")
    print(f"refused  {sum(every[each] for each in REFUSALS)} (429, 503, 504)")
    print(f"lost     {len(tally.lost)}")
    print(f"wrong    {len(tally.wrong)}")
    for each in [*tally.lost[:5], *tally.wrong[:5]]:
        print(f"  {each}")
    print(f"device processes killed or hung: {sum(tally.kills.values())} {dict(tally.kills)}")
    slope = memory_slope([each for each in tally.samples if each[0] > WARM * seconds])
    print(f"memory of the HTTP process: {slope:+.1f} MiB an hour after the first {WARM:.0%}")
    for name, was in before.items():
        print(f"  {name:16}{was:6} before, {after[name]:6} after")
    worst, median = max(tally.probes), statistics.median(tally.probes)
    print(f"/health: worst {1000 * worst:.0f} ms, median {1000 * median:.1f} ms")
    print(f"the HTTP process is the same as before: {same}")
    leaks = after["descriptors"] > before["descriptors"] + 8 or slope > MOST_MIB_PER_HOUR
    return 1 if tally.lost or tally.wrong or leaks or not same else 0


def memory_slope(samples: list[tuple[float, int, int, int]]) -> float:
    """By how many MiB the process grows in an hour."""
    if len(samples) < 3:
        return 0.0
    line = statistics.linear_regression(
        [each[0] for each in samples], [each[1] for each in samples]
    )
    return line.slope * 3600 / 1024**2


if __name__ == "__main__":
    sys.exit(main())
