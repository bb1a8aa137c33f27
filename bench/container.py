"""The container image against its targets: size, start, memory, and speed beside `make run`."""

import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil

from bench import load
from bench.errors import CannotMeasure
from bench.figures import Figure, Section
from bench.helpers import Helpers, tell
from bench.load import HOST
from bench.pictures import camera_pictures
from bench.rounds import rounds
from bench.server import serving
from bench.targets import CAMERA, CLIENTS, FULL_HD, MB, MEMORY_LOAD_S, MEMORY_POLL_S

IMAGE = os.environ.get("REEF_IMAGE") or "reef:local"
# As in compose.yaml; Docker's own limits cost nothing to speak of.
HARDENED = (
    *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--init"),  # noqa: S108 - in there
    *("--security-opt", "no-new-privileges:true", "--pids-limit", "512"),
)
PORT = 5000

SIZE_TARGET_MB = 350.0
HEALTHY_TARGET_S = 12.0  # one interval of the image's health check, and some
HEALTHY_LIMIT_S = 60.0
POLL_S = 0.05
STARTS = 5
MEMORY_TARGET_MB = 400.0
SPEED_TARGET_PERCENT = 95.0
SPEED_ROUNDS = 14
SPEED_S = 1.5  # of each side, in each round


def container(helpers: Helpers) -> Section:
    """What the image costs, compared with the same program without a container."""
    section = Section(
        "container",
        f"{IMAGE}, as hardened as in compose.yaml",
        f"median of {STARTS} starts; {SPEED_ROUNDS} rounds of {SPEED_S:g} s of requests from "
        f"{CLIENTS} clients to the container, then to python -m app serve; medians, the share is "
        "the median over the rounds; the quieter half of them counts",
    )
    size = int(docker("image", "inspect", "--format", "{{.Size}}", IMAGE)) / MB
    section.figures.append(Figure("size of the image", size, "MB", target=SIZE_TARGET_MB))
    tell("container: start")
    healthy = statistics.median(_healthy_s() for _ in range(STARTS))
    section.figures.append(Figure("start to healthy", healthy, "s", target=HEALTHY_TARGET_S))
    with running() as (name, port), serving() as server:
        _await_healthy(name)
        tell("container: memory")
        processes = _processes(name)
        memory = _memory(helpers, processes, port) / MB
        section.figures.append(
            Figure("memory at work, RSS in total", memory, "MB", target=MEMORY_TARGET_MB)
        )
        requests = [load.post(picture) for picture in camera_pictures(CAMERA)]

        def contest(turn: int) -> tuple[float, float]:
            ports = (port, server.port) if turn % 2 else (server.port, port)
            rates = {
                each: helpers.clients.call(load.run, each, requests, CLIENTS, SPEED_S).rate
                for each in ports
            }
            return rates[port], rates[server.port]

        contest(0)  # warms up
        speed = rounds("container: speed", SPEED_ROUNDS, contest, processes)
    section.disturbances.append(speed.disturbance)
    inside, outside = zip(*speed.results, strict=True)
    section.figures += [
        Figure("/predict in the container", statistics.median(inside), "/s"),
        Figure("/predict without it", statistics.median(outside), "/s"),
        Figure(
            "share of the speed without it",
            statistics.median(100 * one / other for one, other in speed.results),
            "%",
            target=SPEED_TARGET_PERCENT,
            at_least=True,
        ),
    ]
    return section


@contextmanager
def running() -> Iterator[tuple[str, int]]:
    """A container of the image, just started: its id and its port here; removed at the end."""
    name = docker("run", "--detach", *HARDENED, "--publish", f"{HOST}::{PORT}", IMAGE)
    try:
        yield name, int(docker("port", name, f"{PORT}/tcp").rpartition(":")[2])
    finally:
        docker("rm", "--force", "--volumes", name)


def docker(*arguments: str) -> str:
    """What a `docker` command says; raises CannotMeasure when it fails."""
    try:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True)  # noqa: S607
    except FileNotFoundError as error:
        raise CannotMeasure("there is no command docker") from error
    except subprocess.CalledProcessError as error:
        raise CannotMeasure(f"docker {arguments[0]}: {error.stderr.strip()}") from error
    return done.stdout.strip()


def _healthy_s() -> float:
    began = time.perf_counter()
    with running() as (name, _port):
        _await_healthy(name)
        return time.perf_counter() - began


def _await_healthy(name: str) -> None:
    deadline = time.monotonic() + HEALTHY_LIMIT_S
    while docker("inspect", "--format", "{{.State.Health.Status}}", name) != "healthy":
        if time.monotonic() > deadline:
            raise CannotMeasure("the container did not become healthy; docker logs says why")
        time.sleep(POLL_S)


def _processes(name: str) -> list[psutil.Process]:
    return [psutil.Process(int(pid)) for pid in docker("top", name, "-o", "pid").split()[1:]]


def _memory(helpers: Helpers, processes: Sequence[psutil.Process], port: int) -> int:
    """The most that all its processes take while it is at work, in bytes."""
    requests = [load.post(picture) for picture in camera_pictures(FULL_HD)]
    helpers.clients.call(load.run, port, requests, CLIENTS, 1.0)
    most = 0
    with ThreadPoolExecutor(1) as aside:
        busy = aside.submit(helpers.clients.call, load.run, port, requests, CLIENTS, MEMORY_LOAD_S)
        while not busy.done():
            most = max(most, sum(process.memory_info().rss for process in processes))
            time.sleep(MEMORY_POLL_S)
        busy.result()
    return most
