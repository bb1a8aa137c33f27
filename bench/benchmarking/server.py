"""What a server says of itself: who it is, and its metrics. Asked beside the load, in a thread."""

import http.client
import json
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from bench.benchmarking.client import Target
from bench.benchmarking.errors import Unreachable, WrongUsage

PATIENCE_S = 5.0
WAIT_S = 60.0  # for a server that is starting
POLL_S = 0.5

Series = dict[str, list[tuple[dict[str, str], float]]]
"""Metrics by name: each with its labels and its value."""

METRIC = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


KEY_WANTED = (401, 403)


class Asker:
    """Asks over a connection of its own, which stays open."""

    def __init__(self, target: Target, patience_s: float = PATIENCE_S) -> None:
        self._target = target
        kind = http.client.HTTPSConnection if target.tls else http.client.HTTPConnection
        more: dict[str, Any] = {"context": target.tls} if target.tls else {}
        self._connection = kind(target.host, target.port, timeout=patience_s, **more)

    def get(self, route: str) -> tuple[int, bytes]:
        """Status and body. Raises OSError or http.client.HTTPException."""
        for again in (True, False):
            try:
                self._connection.request(
                    "GET", self._target.path + route, headers=dict(self._target.headers)
                )
                answer = self._connection.getresponse()
                return answer.status, answer.read()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                self._connection.close()  # it was idle for too long
                if not again:
                    raise
            except BaseException:
                self._connection.close()
                raise
        raise AssertionError

    def json(self, route: str) -> dict[str, Any]:
        """What is answered with 200; nothing where that fails."""
        try:
            status, body = self.get(route)
            found = json.loads(body) if status == 200 else {}
        except (OSError, ValueError, http.client.HTTPException):
            return {}
        return found if isinstance(found, dict) else {}

    def metrics(self) -> Series:
        """`/metrics`; nothing where there is none."""
        try:
            status, body = self.get("/metrics")
        except (OSError, http.client.HTTPException):
            return {}
        return parse_metrics(body.decode(errors="replace")) if status == 200 else {}

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def parse_metrics(text: str) -> Series:
    """Prometheus' text format. Buckets of histograms are left out: nobody here reads them."""
    found: Series = {}
    for name, labels, value in METRIC.findall(text):
        if not name.endswith("_bucket"):
            try:
                found.setdefault(name, []).append((dict(LABEL.findall(labels)), float(value)))
            except ValueError:
                continue
    return found


def values(series: Series, name: str, **labels: str) -> list[float]:
    """The values of a metric whose labels are these, among others."""
    return [
        value
        for own, value in series.get(name, ())
        if all(own.get(k) == v for k, v in labels.items())
    ]


def total(series: Series, name: str, **labels: str) -> float | None:
    """Their sum; None where there is none."""
    found = values(series, name, **labels)
    return sum(found) if found else None


@dataclass(frozen=True)
class About:
    """What the server was at the start of the run."""

    version: str
    model: str
    models: list[Any]
    devices: list[Any]
    notes: list[str]


def find_out(target: Target, wait_s: float = WAIT_S) -> About:
    """Wait until the server is ready, and learn what it is.

    Raises Unreachable when nothing answers, and when it is not ready in time; WrongUsage when it
    wants a key and has got none, or another one.
    """
    asker = Asker(target)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            status, body = asker.get("/ready")
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(
                f"no server answers at {target.url} ({error}); is it running, and is this its "
                "address? make up starts one here"
            ) from error
        if status != 503:
            break
        if time.monotonic() > deadline:
            raise Unreachable(f"{target.url} is not ready after {wait_s:g} s: {_reason(body)}")
        time.sleep(POLL_S)
    if status not in (200, *KEY_WANTED):
        raise Unreachable(f"{target.url}/ready answers {status}; is this a Reef?")
    if asker.get("/devices")[0] in KEY_WANTED:  # /ready answers everybody
        raise WrongUsage(
            f"{target.url} wants its API key: --api-key-file FILE, or the variable REEF_API_KEY"
        )
    ready, models = asker.json("/ready"), asker.json("/models")
    about = About(
        str(asker.json("/openapi.json").get("info", {}).get("version", "")),
        str(models.get("default", "")),
        models.get("models", []),
        asker.json("/devices").get("devices", []),
        ready.get("notes", []),
    )
    asker.close()
    return about


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["reason"])
    except (ValueError, KeyError, TypeError):
        return "it doesn't say why"


def is_local(host: str) -> bool:
    """Whether a server there shares this computer."""
    try:
        there = {each[4][0] for each in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    here = {each.address for own in psutil.net_if_addrs().values() for each in own}
    return bool(there & here) or any(str(each).startswith("127.") for each in there)


def local_processes(port: int) -> list[psutil.Process]:
    """The processes of the server on this computer's port; none where that can't be seen."""
    try:
        listening = psutil.net_connections("tcp")
    except psutil.Error:
        return []
    pids = {
        each.pid
        for each in listening
        if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid
    }
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        try:
            process = psutil.Process(pid)
            if process.name().startswith("docker-proxy"):
                continue  # it stands before a container, whose processes the metrics tell
            for each in (process, *process.children(recursive=True)):
                found[each.pid] = each
        except psutil.Error:
            continue
    return list(found.values())


def mapping(found: Any) -> Mapping[str, Any]:
    """What should be an object of JSON; an empty one if it is not."""
    return found if isinstance(found, dict) else {}
