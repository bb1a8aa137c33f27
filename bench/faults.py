"""Break Edge TPUs under load, and show what clients notice: on stand-ins, with real processes.

Every answer is checked against a hash that the client computed itself.
"""

import argparse
import contextlib
import http.client
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from bench import load, standin
from bench.errors import CannotMeasure
from bench.server import Server, ask, serving
from tests.standin.host import LOADED, Host

CLIENTS = 8
LATENCY = "latency_us=7000"
KINDS = ("hang", "abort", "segv", "fail")
CALM_S = 3.0
TAKEOVERS = 10
RECOVERY_LIMIT_S = 60.0
CARDS = ("pci:0000:03:00.0", "pci:0000:04:00.0")

EXPLAINED = """\
what is shown:
  faults    a hang, an abort, a crash and a failed inference, each under load from 8 clients, with
            two cards and with one card and the CPU: added latency, and whether anything was lost
  soak      --number random kills, stops and hangs (default 1000) under load, and what they leak
  hotplug   nothing, a card, that card again, a stick, the stick in another port: served throughout
  takeover  the HTTP worker killed while device processes hold the cards
  all       these four

exit status: 0 all went well, 1 something was lost, wrong, leaked or did not come back
"""


@dataclass
class Seen:
    """What clients saw: when each request was sent, how long it took, which device answered."""

    answers: list[tuple[float, float, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    refused: int = 0
    """Answers with 503, which ask the client to try again."""

    def between(self, since: float, until: float) -> list[float]:
        """The latencies of requests sent in a span of time."""
        return [took for sent, took, _ in self.answers if since <= sent < until]


class Crowd:
    """Clients that post pictures one after the other and check every answer."""

    def __init__(self, server: Server, clients: int = CLIENTS, *, patient: bool = False) -> None:
        """`patient`: a connection that is refused or cut is made again, as clients do that may."""
        self.seen = Seen()
        self.interrupted = 0
        self._server = server
        self._patient = patient
        self._pictures = standin.pictures(64)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask_on, args=(number,)) for number in range(clients)
        ]

    def __enter__(self) -> "Crowd":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self, turn: int) -> None:
        client: load.Client | None = None
        while not self._stop.is_set():
            picture = self._pictures[turn % len(self._pictures)]
            sent = time.monotonic()
            try:
                client = client or load.Client(self._server.port)
                device = picture.ask(client)["device"]
                self.seen.answers.append((sent, time.monotonic() - sent, device))
            except (OSError, CannotMeasure) as error:
                client = None
                cut = isinstance(error, OSError) or "hung up" in str(error)
                if self._patient and cut:
                    self.interrupted += 1
                    time.sleep(0.02)
                elif "HTTP/1.1 503" in str(error):
                    self.seen.refused += 1
                else:
                    self.seen.wrong.append(repr(error))
                    print(f"  WRONG after {time.monotonic() - sent:.2f} s: {error}", flush=True)
            turn += 1
        if client:
            client.close()


class Verdict:
    """What went wrong, over all that was shown."""

    def __init__(self) -> None:
        self.troubles: list[str] = []

    def expect(self, holds: object, trouble: str) -> None:
        """Remember a trouble, unless something holds."""
        if not holds:
            self.troubles.append(trouble)
            print(f"  FAILED: {trouble}", flush=True)

    def judge(self, name: str, host: Host, crowd: Crowd, *, refusals: int = 0) -> None:
        """What must hold of everything that is shown; so many 503 may be among the answers."""
        wrong, refused = crowd.seen.wrong, crowd.seen.refused
        self.expect(refused <= refusals, f"{name}: {refused} requests were refused with 503")
        self.expect(not wrong, f"{name}: {len(wrong)} requests lost or wrong: {wrong[:1]}")
        self.expect(not host.happened("double-open"), f"{name}: a device was opened twice")


def faults(verdict: Verdict, _options: argparse.Namespace) -> None:
    """Each fault once, under load."""
    print(f"FAULTS: {CLIENTS} clients, cards of 7 ms; latencies in ms")
    print("devices        fault   answered   usual p50   worst after   added   back after s")
    for cards in (2, 1):
        for kind in KINDS:
            name = f"{cards} cards, {kind}" if cards > 1 else f"1 card + CPU, {kind}"
            with standin.cards(cards, LATENCY) as (host, server):
                with Crowd(server) as crowd:
                    struck, back = _one_fault(host, server, crowd, kind, name)
                verdict.judge(name, host, crowd)
            usual = statistics.median(crowd.seen.between(struck - CALM_S + 1, struck - 0.1))
            worst = max(crowd.seen.between(struck - 0.5, time.monotonic()))
            print(
                f"{'2 cards' if cards > 1 else '1 card + CPU':14} {kind:6} "
                f"{len(crowd.seen.answers):9} {1000 * usual:11.1f} {1000 * worst:13.1f} "
                f"{1000 * (worst - usual):7.1f} {back - struck:14.1f}",
                flush=True,
            )


def _one_fault(
    host: Host, server: Server, crowd: Crowd, kind: str, name: str
) -> tuple[float, float]:
    """When the fault struck, and when its card was back in service."""
    time.sleep(CALM_S)
    before = _failures(server, CARDS[0])
    host.behave("apex_0", f"{LATENCY} invoke={kind} once")
    struck = time.monotonic()
    _await(lambda: _failures(server, CARDS[0]) > before, f"{name}: it did not strike")
    _await(lambda: _state(server, CARDS[0]) == "ready", f"{name}: it did not return")
    back = time.monotonic()
    _await_answer(crowd, CARDS[0], back)
    time.sleep(1)
    return struck, back


def soak(verdict: Verdict, options: argparse.Namespace) -> None:
    """Very many faults, and what is left of them."""
    chance = random.Random(4)
    number: int = options.number
    print(f"SOAK: {number} kills, stops and hangs of two cards, {CLIENTS} clients, back-off 0 s")
    with standin.cards(2, LATENCY, REEF_RESTART_BACKOFF_MAX_S="0") as (host, server):
        with Crowd(server, 3 * CLIENTS):  # so that gunicorn's pool has all the threads it may need
            time.sleep(3)
        standin.wait_ready(server, 3)
        began, before, struck = time.monotonic(), _held(server), Counter[str]()
        with Crowd(server) as crowd:
            for turn in range(number):
                card = turn % 2
                kind = chance.choice(("kill", "kill", "kill", "segv", "stop", "hang", "abort"))
                _strike(host, server, card, kind)
                struck[kind] += 1
                if turn % 50 == 49:
                    seen = crowd.seen
                    counts = f"{len(seen.answers)} answers, {len(seen.wrong)} wrong"
                    print(f"  {turn + 1} of {number}: {counts}, {seen.refused} refused", flush=True)
        standin.wait_ready(server, 3)
        time.sleep(1)
        after = _held(server)
        # A picture whose two devices were killed one after the other is refused; all are answered.
        verdict.judge("soak", host, crowd, refusals=number // 100)
    took = [seconds for _, seconds, _ in crowd.seen.answers]
    by = Counter(device for *_, device in crowd.seen.answers)
    print(f"  {sum(struck.values())} faults in {time.monotonic() - began:.0f} s: {dict(struck)}")
    refused = crowd.seen.refused
    print(f"  {len(took)} answers, by device: {dict(by)}; {refused} refused with 503")
    print(f"  latency: median {1000 * statistics.median(took):.0f} ms, worst {max(took):.2f} s")
    print(f"  held before: {before}\n  held after:  {after}")
    verdict.expect(after == before, f"soak: leaked: {before} → {after}")
    verdict.expect(sum(struck.values()) == number, f"soak: only {struck} faults struck")


def _strike(host: Host, server: Server, card: int, kind: str) -> None:
    """Break a card's process once it is ready; returns when the server has noticed."""
    name = CARDS[card]
    status: dict[str, Any] = {}

    def ready() -> bool:
        status.update(_status(server, name) or {})
        return status["state"] == "ready" and bool(status["pid"])

    _await(ready, f"{name} did not return")
    if kind in ("hang", "abort", "segv"):
        host.behave(f"apex_{card}", f"{LATENCY} invoke={kind} once")
    else:
        os.kill(status["pid"], signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    _await(lambda: _failures(server, name) > sum(status["failures"].values()), f"no {kind}")


def hotplug(verdict: Verdict, _options: argparse.Namespace) -> None:
    """Devices come and go."""
    print("HOTPLUG: what served, in a fixture tree of the kernel's")
    with standin.host() as (host, told):
        host.behave("default", LATENCY)
        with serving(told) as server, Crowd(server, 2) as crowd:
            _await_answer(crowd, "cpu", time.monotonic())
            steps: list[tuple[str, Callable[[], object], str, str]] = [
                ("a card appears", host.add_pci, CARDS[0], "ready"),
                ("it is removed from the bus", host.remove_pci, CARDS[0], "gone"),
                ("the bus is rescanned", host.add_pci, CARDS[0], "ready"),
                ("a stick appears", lambda: host.add_usb("2-1"), "usb:2-1", "ready"),
                ("the card is removed", host.remove_pci, CARDS[0], "gone"),
                ("the stick is unplugged", lambda: host.remove_usb("2-1"), "usb:2-1", "gone"),
                ("into another port", lambda: host.add_usb("2-3", LOADED), "usb:2-3", "ready"),
            ]
            for what, change, device, state in steps:
                began = time.monotonic()
                change()
                _await(lambda d=device, s=state: _state(server, d) == s, what)  # type: ignore[misc]
                reached = time.monotonic()
                served = _await_answer(crowd, "" if state == "gone" else device, reached)
                print(
                    f"  {what:28} {device} {state} after {reached - began:.1f} s; {served} serves"
                )
            failures = {each["id"]: each["failures"] for each in standin.devices(server)}
            log = server.log()
        detected = [line for line in log.splitlines() if "Detected" in line]
        print("\n".join(f"  {line[25:]}" for line in detected))
        print(f"  {len(crowd.seen.answers)} answers; failures: {failures}")
        words = [line.split("Detected ")[1].split(": ")[0] for line in detected]
        expected = ["cpu", CARDS[0], CARDS[0], "usb:2-1", "usb:2-3"]
        verdict.expect(words == expected, f"hotplug: detected {words}, not {expected}")
        # On a machine that is overloaded, a stand-in's sleep may look like a hang.
        odd = {kind for each in failures.values() for kind in each} - {"gone", "hang"}
        verdict.expect(not odd, f"hotplug: failures {failures}")
        verdict.judge("hotplug", host, crowd)


def takeover(verdict: Verdict, _options: argparse.Namespace) -> None:
    """The HTTP worker dies; the next one waits for what its device processes hold."""
    print("TAKEOVER: the HTTP worker is killed under load, ten times")
    with standin.cards(2, LATENCY) as (host, server):
        outages = []
        with Crowd(server, patient=True) as crowd:
            for _ in range(TAKEOVERS):
                time.sleep(1)
                outages.append(_one_takeover(server))
        opened, twice = len(host.happened("opened")), len(host.happened("double-open"))
        verdict.judge("takeover", host, crowd)
    print(f"  both cards ready again after {min(outages):.1f} to {max(outages):.1f} s")
    print(f"  {len(crowd.seen.answers)} answers, {crowd.interrupted} connections cut by the kill")
    print(f"  cards were opened {opened} times, by two processes at once {twice} times")
    expected = 2 + 2 * TAKEOVERS
    verdict.expect(
        opened == expected, f"takeover: cards were opened {opened} times, not {expected}"
    )


def _one_takeover(server: Server) -> float:
    (worker,) = psutil.Process(server.pid).children()
    old = {each["pid"] for each in standin.devices(server)}
    worker.kill()
    killed = time.monotonic()
    _await(lambda: _ready_again(server, old), "the cards did not return")
    return time.monotonic() - killed


# ---------------------------------------------------------------------------- small things


def _ready_again(server: Server, old: set[int]) -> bool:
    try:
        shown = standin.devices(server)
    except (OSError, ValueError, http.client.HTTPException):  # there is no worker yet
        return False
    return all(each["state"] == "ready" and each["pid"] not in old for each in shown)


def _status(server: Server, device: str) -> dict[str, Any] | None:
    return next((each for each in standin.devices(server) if each["id"] == device), None)


def _state(server: Server, device: str) -> object:
    found = _status(server, device)
    return found["state"] if found else ""


def _failures(server: Server, device: str) -> int:
    shown = ask(server.port, "/devices")["devices"]
    return sum(sum(each["failures"].values()) for each in shown if each["id"] == device)


def _await(condition: Callable[[], bool], trouble: str) -> None:
    deadline = time.monotonic() + RECOVERY_LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise CannotMeasure(trouble)
        time.sleep(0.02)


def _await_answer(crowd: Crowd, device: str, since: float) -> str:
    """Wait until a device, or any, has answered a request sent since then; returns it."""

    def answers() -> Iterator[str]:
        return (by for sent, _, by in crowd.seen.answers[-200:] if sent >= since)

    def served() -> str:
        return next((by for by in answers() if not device or by == device), "")

    _await(lambda: bool(served()), f"{device or 'nobody'} answered")
    return served()


def _held(server: Server) -> dict[str, int]:
    """What the server's processes hold that could leak."""
    master = psutil.Process(server.pid)
    (worker,) = master.children()
    links = []
    for descriptor in Path(f"/proc/{worker.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(descriptor))
    # Connections of clients come and go with them, and so do the threads that serve them.
    kept = [link for link in links if not link.startswith("socket:")]
    return {
        "processes": len(master.children(recursive=True)),
        "descriptors": len(kept),
        "shared memory": sum("memfd:" in link for link in links),
        "files in /dev/shm": len(os.listdir("/dev/shm")),  # noqa: S108
        "threads": worker.num_threads(),
    }


SHOWS = {"faults": faults, "soak": soak, "hotplug": hotplug, "takeover": takeover}


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.faults",
        description=__doc__,
        epilog=EXPLAINED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="?", default="all", choices=[*SHOWS, "all"])
    parser.add_argument("--number", type=int, default=1000, help="of the soak's faults")
    options = parser.parse_args()
    verdict = Verdict()
    for name, show in SHOWS.items():
        if options.what in (name, "all"):
            try:
                show(verdict, options)
            except CannotMeasure as error:
                verdict.expect(False, f"{name}: {error}")
            print()
    print("All went well." if not verdict.troubles else f"{len(verdict.troubles)} troubles.")
    return 1 if verdict.troubles else 0


if __name__ == "__main__":
    sys.exit(main())
