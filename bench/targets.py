"""Latency, throughput, start and memory: each with a target, and against a bare loop in turn."""

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bench import bare, load, usage
from bench.figures import Figure, Grid, Section
from bench.helpers import Helpers, tell
from bench.load import Block
from bench.pictures import Size, camera_pictures
from bench.rounds import rounds
from bench.server import Server, serving
from bench.usage import Memory, Neighbours

CLIENTS = 4
CAMERA: Size = (640, 480)
FULL_HD: Size = (1920, 1080)

LATENCY_TARGETS_MS = {CAMERA: 4.0, FULL_HD: 10.0}
LATENCY_ROUNDS = 24
LATENCY_REQUESTS = 20  # and as many bare inferences, in each round
STAGES = ("read", "decode", "queue", "post")

THROUGHPUT_TARGET_PERCENT = 80.0
THROUGHPUT_ROUNDS = 14
THROUGHPUT_S = 1.5  # of each side, in each round

START_TARGET_S = 3.0
STARTS = 10

MEMORY_TARGET_MB = 350.0
MEMORY_LOAD_S = 5.0
MEMORY_POLL_S = 0.25
MB = 1_000_000


def latency(helpers: Helpers) -> Section:
    """What one client waits for beyond the inference itself."""
    section = Section(
        "latency",
        "one client posts JPEGs to /predict, one behind the other",
        f"{LATENCY_ROUNDS} rounds of {LATENCY_REQUESTS} requests and then {LATENCY_REQUESTS} bare "
        f"invoke() of the same model, {bare.threads()} threads each, in a process of its own; "
        "medians, the difference is the median over the rounds; the quieter half of them counts",
    )
    with serving({"REEF_CPU_THREADS": str(bare.threads())}) as server:
        for size in LATENCY_TARGETS_MS:
            _latency(helpers, server, size, section)
    return section


def _latency(helpers: Helpers, server: Server, size: Size, section: Section) -> None:
    name = f"{size[0]}x{size[1]}"
    pictures = camera_pictures(size)
    requests = [load.post(picture) for picture in pictures]

    def measure(turn: int) -> tuple[Block, list[float]]:
        first = turn * LATENCY_REQUESTS
        return (
            helpers.clients.call(load.count, server.port, requests, LATENCY_REQUESTS, first),
            helpers.bare.call(bare.count, LATENCY_REQUESTS),
        )

    measure(0)  # warms up
    kept = rounds(f"latency, {name}", LATENCY_ROUNDS, measure)
    section.disturbances.append(kept.disturbance)
    blocks = [block for block, _ in kept.results]
    differences_ms = [
        1000 * (statistics.median(block.latencies) - statistics.median(invokes))
        for block, invokes in kept.results
    ]
    latencies_ms = [1000 * seconds for block in blocks for seconds in block.latencies]
    invokes_ms = [1000 * seconds for _, invokes in kept.results for seconds in invokes]
    timings = [each for block in blocks for each in block.timings]
    stages = {name: [each[name] for each in timings] for name in timings[0]}
    slower_ms = [value - statistics.median(invokes_ms) for value in stages["inference"]]
    outside_ms = [spent - total for spent, total in zip(latencies_ms, stages["total"], strict=True)]
    inside_ms = [
        each["total"] - sum(each[stage] for stage in (*STAGES, "inference")) for each in timings
    ]
    kilobytes = statistics.mean(len(picture) for picture in pictures) / 1000
    section.figures += [
        _milliseconds(f"{name}, {kilobytes:.0f} kB: /predict", latencies_ms),
        _milliseconds(f"{name}: bare invoke()", invokes_ms),
        Figure(
            f"{name}: difference",
            statistics.median(differences_ms),
            "ms",
            target=LATENCY_TARGETS_MS[size],
        ),
        *(_milliseconds(f"    {stage}", stages[stage]) for stage in STAGES),
        _milliseconds("    inference, slower than bare by", slower_ms),
        _milliseconds("    between the stages", inside_ms),
        _milliseconds("    gunicorn, Flask, network, client", outside_ms),
    ]


@dataclass(frozen=True)
class Contest:
    """One round of clients against the bare loop."""

    block: Block
    cpu_s: dict[str, float]
    bare_rate: float


def throughput(helpers: Helpers) -> Section:
    """What of the bare loop's speed reaches clients."""
    section = Section(
        "throughput",
        f"{CLIENTS} clients post 640x480 JPEGs, each as soon as it is answered",
        f"{THROUGHPUT_ROUNDS} rounds of {THROUGHPUT_S:g} s of requests and then "
        f"{THROUGHPUT_S:g} s of a bare invoke() loop, {bare.threads()} threads each; medians, the "
        "share is the median over the rounds; the quieter half of them counts; the clients run on "
        "the same machine",
    )
    requests = [load.post(picture) for picture in camera_pictures(CAMERA)]
    with serving({"REEF_CPU_THREADS": str(bare.threads())}) as server:
        processes = server.processes()

        def measure(_turn: int) -> Contest:
            before = usage.cpu(processes)
            block = helpers.clients.call(load.run, server.port, requests, CLIENTS, THROUGHPUT_S)
            after = usage.cpu(processes)
            cpu_s = {name: after[name] - before[name] for name in processes}
            cpu_s["clients"] = block.cpu_s
            return Contest(block, cpu_s, helpers.bare.call(bare.run, THROUGHPUT_S))

        measure(0)  # warms up
        kept = rounds("throughput", THROUGHPUT_ROUNDS, measure)
    section.disturbances.append(kept.disturbance)
    contests = kept.results
    number = sum(each.block.all for each in contests)
    latencies_ms = [1000 * seconds for each in contests for seconds in each.block.latencies]
    section.figures = [
        Figure("/predict", statistics.median(each.block.rate for each in contests), "/s"),
        Figure("bare invoke() loop", statistics.median(each.bare_rate for each in contests), "/s"),
        Figure(
            "share of the bare loop that reaches clients",
            statistics.median(100 * each.block.rate / each.bare_rate for each in contests),
            "%",
            target=THROUGHPUT_TARGET_PERCENT,
            at_least=True,
        ),
        _milliseconds("a client waits", latencies_ms),
        *(
            Figure(
                f"    CPU per request: {name}",
                1000 * sum(each.cpu_s[name] for each in contests) / number,
                "ms",
            )
            for name in contests[0].cpu_s
        ),
    ]
    return section


def start(_helpers: Helpers) -> Section:
    """How soon a server can be used."""
    section = Section(
        "start",
        "from the start of the process to the first 200 of /ready",
        f"median of the quieter half of {STARTS} starts, files in the page cache",
    )

    def measure(_turn: int) -> tuple[float, float]:
        with serving() as server:
            return server.answered_s, server.ready_s

    kept = rounds("start", STARTS, measure)
    section.disturbances.append(kept.disturbance)
    answered, ready = zip(*kept.results, strict=True)
    section.figures = [
        Figure("HTTP answers", statistics.median(answered), "s"),
        Figure("ready", statistics.median(ready), "s", target=START_TARGET_S),
        Figure("ready, the slowest start", max(ready), "s"),
    ]
    return section


def memory(helpers: Helpers) -> Section:
    """What the server takes of the machine's memory at work."""
    section = Section(
        "memory",
        f"all processes of the server while {CLIENTS} clients post 1920x1080 JPEGs",
        f"the most in {MEMORY_LOAD_S:g} s, looked at every {MEMORY_POLL_S:g} s, after a warm-up; "
        "RSS counts what processes share once for each, PSS once in all",
    )
    requests = [load.post(picture) for picture in camera_pictures(FULL_HD)]
    neighbours = Neighbours()
    samples: list[dict[str, Memory]] = []
    tell("memory")
    with serving() as server, ThreadPoolExecutor(1) as aside:
        helpers.clients.call(load.run, server.port, requests, CLIENTS, 1.0)
        processes = server.processes()
        busy = aside.submit(
            helpers.clients.call, load.run, server.port, requests, CLIENTS, MEMORY_LOAD_S
        )
        while not busy.done():
            samples.append(usage.memory(processes))
            time.sleep(MEMORY_POLL_S)
        busy.result()
    section.disturbances.append(neighbours.share())
    most = max(samples, key=lambda sample: sum(each.rss for each in sample.values()))
    rss, pss = (sum(getattr(each, kind) for each in most.values()) for kind in ("rss", "pss"))
    section.figures = [
        Figure("RSS in total", rss / MB, "MB", target=MEMORY_TARGET_MB),
        Figure("PSS in total", pss / MB, "MB"),
    ]
    rows = [(name, each.rss / MB, each.pss / MB) for name, each in most.items()]
    section.grids = [Grid("MB by process", ("process", "RSS", "PSS"), rows)]
    return section


def _milliseconds(name: str, values: Sequence[float]) -> Figure:
    p95 = statistics.quantiles(values, n=20)[-1]
    return Figure(name, statistics.median(values), "ms", p95)
