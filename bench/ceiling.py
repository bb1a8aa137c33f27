"""How many requests a second the server can pass to a device that answers at once, and why.

The device runs a model that takes microseconds, so that all the rest is what is measured.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from PIL import Image

from app.devices.discovery import available_cores
from bench import load, usage
from bench.figures import Figure, Grid, Section
from bench.helpers import Helpers, tell
from bench.load import Block
from bench.pictures import camera_pictures
from bench.server import Server, serving
from bench.usage import HttpThreads, Neighbours
from tests.colour_model import write

SIDES = (320, 32)  # of the models' inputs, in pixels
SIZES = ((640, 480), (320, 320))
CLIENTS = (1, 4, 8, 16)
SHOWN = 4  # clients, where one number must do
ROUNDS = 2
BLOCK_S = 1.3
DECODES = 200
HEALTH = "/health"


@dataclass(frozen=True)
class Case:
    """What is asked: `request` names it, `side` is the model's."""

    side: int
    request: str
    clients: int


@dataclass
class Found:
    """What was seen of one case, over all rounds."""

    blocks: list[Block] = field(default_factory=list)
    cpu_s: list[dict[str, float]] = field(default_factory=list)
    threads: list[HttpThreads] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Requests per second."""
        return statistics.median(block.rate for block in self.blocks)

    def per_request(self, process: str) -> float:
        """CPU milliseconds of a process per request."""
        return 1000 * sum(each[process] for each in self.cpu_s) / self._number

    @property
    def http_ms(self) -> tuple[float, float, float]:
        """CPU milliseconds per request of the HTTP process's poller, device and pool threads."""
        sums = (
            sum(each.poller for each in self.threads),
            sum(each.devices for each in self.threads),
            sum(each.requests for each in self.threads),
        )
        poller, devices, requests = (1000 * seconds / self._number for seconds in sums)
        return poller, devices, requests

    @property
    def total_ms(self) -> float:
        """CPU milliseconds per request of everybody, the clients too."""
        return sum(self.per_request(process) for process in self.cpu_s[0])

    def stage(self, name: str) -> float:
        """Median milliseconds of one of the server's stages; 0 where there is none."""
        values = [each[name] for block in self.blocks for each in block.timings]
        return statistics.median(values) if values else 0.0

    @property
    def latency_ms(self) -> float:
        """Median milliseconds that a client waited."""
        return 1000 * statistics.median(s for block in self.blocks for s in block.latencies)

    @property
    def _number(self) -> int:
        return sum(block.all for block in self.blocks)


def ceiling(helpers: Helpers) -> Section:
    """Measure every case, in turns, and say what bounds them."""
    section = Section(
        "ceiling",
        "requests per second with a device that answers at once",
        f"{ROUNDS} rounds of {BLOCK_S:g} s for each line, in turn; CPU is milliseconds per request",
    )
    neighbours = Neighbours()
    pictures = {f"{width}x{height}": camera_pictures((width, height)) for width, height in SIZES}
    requests = {name: [load.post(each) for each in own] for name, own in pictures.items()}
    requests[HEALTH] = [load.get(HEALTH)]
    cases = [Case(side, size, n) for side in SIDES for size in pictures for n in CLIENTS]
    cases += [Case(SIDES[0], HEALTH, clients) for clients in CLIENTS]
    found = {case: Found() for case in cases}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {}
        for side in SIDES:
            model = write(scratch / f"colour_{side}.tflite", width=side, height=side)
            servers[side] = stack.enter_context(serving({"REEF_MODEL": str(model)}))
        for turn in range(ROUNDS):
            for case in cases:
                tell(f"ceiling, round {turn + 1} of {ROUNDS}: {case.request}, model {case.side}, "
                     f"{case.clients} clients")  # fmt: skip
                _measure(helpers, servers[case.side], case, requests[case.request], found[case])
    section.disturbances.append(neighbours.share())
    section.grids = [_cases(found), _threads(found)]
    unlocked = {
        (side, size): helpers.bare.call(_without_gil_ms, own, side)
        for side in SIDES
        for size, own in pictures.items()
    }
    section.grids.append(_bounds(found, unlocked))
    shown = found[Case(SIDES[0], "640x480", SHOWN)]
    section.figures = [
        Figure(f"640x480, model {SIDES[0]}x{SIDES[0]}, {SHOWN} clients", shown.rate, "/s"),
        Figure(f"{HEALTH}, {SHOWN} clients", found[Case(SIDES[0], HEALTH, SHOWN)].rate, "/s"),
    ]
    return section


def _measure(
    helpers: Helpers, server: Server, case: Case, requests: Sequence[bytes], into: Found
) -> None:
    processes = server.processes()
    devices = len(processes) - 2
    before, threads_before = (
        usage.cpu(processes),
        usage.http_threads(processes["http"], devices),
    )
    block = helpers.clients.call(load.run, server.port, requests, case.clients, BLOCK_S)
    after, threads = usage.cpu(processes), usage.http_threads(processes["http"], devices)
    spent = {name: after[name] - before[name] for name in processes}
    into.blocks.append(block)
    into.threads.append(usage.less(threads, threads_before))
    into.cpu_s.append(
        {
            "http": spent.pop("http"),
            "clients": block.cpu_s,
            "device": sum(each for name, each in spent.items() if name.startswith("device")),
        }
    )


def _cases(found: dict[Case, Found]) -> Grid:
    head = ("picture, model", "clients", "req/s", "waits ms", "read", "decode", "queue",
            "inference", "post")  # fmt: skip
    rows: list[list[str | float]] = [
        [
            _name(case),
            case.clients,
            seen.rate,
            seen.latency_ms,
            *(seen.stage(stage) for stage in head[4:]),
        ]
        for case, seen in found.items()
    ]
    return Grid("What clients get, and the server's own stages in ms (medians)", head, rows)


def _threads(found: dict[Case, Found]) -> Grid:
    head = ("picture, model", "clients", "http", "= poller", "+ device thread", "+ requests",
            "device process", "clients' own", "cores busy", "http's cores")  # fmt: skip
    rows = [
        (
            _name(case),
            case.clients,
            seen.per_request("http"),
            *seen.http_ms,
            seen.per_request("device"),
            seen.per_request("clients"),
            seen.total_ms * seen.rate / 1000,
            seen.per_request("http") * seen.rate / 1000,
        )
        for case, seen in found.items()
    ]
    return Grid("CPU ms per request, by process and by the HTTP process's threads", head, rows)


def _bounds(found: dict[Case, Found], unlocked: dict[tuple[int, str], float]) -> Grid:
    """Only the lower of two bounds can hold: all cores at work, or the one GIL always held."""
    cores = available_cores()
    head = ("picture, model", "clients", "req/s", f"if {cores} cores bound", "GIL held ms",
            "if the GIL bound", "bound by")  # fmt: skip
    rows: list[tuple[str | float, ...]] = []
    for case, seen in found.items():
        if case.clients == SHOWN:
            held_ms = seen.per_request("http") - unlocked.get((case.side, case.request), 0.0)
            by_cores, by_gil = 1000 * cores / seen.total_ms, 1000 / held_ms
            bound = "cores" if by_cores < by_gil else "GIL"
            rows.append((_name(case), SHOWN, seen.rate, by_cores, held_ms, by_gil, bound))
    return Grid(
        "What bounds it: CPU of everybody / cores, or the HTTP process's CPU less what the "
        "decoder\nand the scaling take, which release the GIL / one GIL",
        head,
        rows,
    )


def _name(case: Case) -> str:
    if case.request == HEALTH:
        return HEALTH
    return f"{case.request}, {case.side}x{case.side}"


def _without_gil_ms(pictures: Sequence[bytes], side: int) -> float:
    """CPU milliseconds of a picture's decoding and scaling in C, where the GIL is released."""
    spent = []
    for turn in range(DECODES):
        picture: Image.Image = Image.open(BytesIO(pictures[turn % len(pictures)]))
        picture.draft("RGB", (side, side))
        began = time.thread_time()
        picture.load()
        picture.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=1.0)
        spent.append(1000 * (time.thread_time() - began))
    return statistics.median(spent)
