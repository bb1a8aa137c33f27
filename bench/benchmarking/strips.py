"""What the computer and the server did meanwhile, as strips over one time axis. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bench.benchmarking.rows import Sample
from bench.benchmarking.statistics import Figures
from bench.benchmarking.verdict import LAG_MS

Points = list[tuple[float, float]]
"""Seconds since the start, and a value."""

NIL = 0.005  # in any unit: it would be written as 0.0
NIL_SHARE = 0.005  # of a stack: it could not be seen
DEVICES, HTTP, REST = "server: devices", "server: HTTP", "server: the rest"
CLIENT, OTHERS, UNTOLD = "this client", "other programs", "server and other programs"


@dataclass(frozen=True)
class Strip:
    """One of them. Several parts are stacked, as only what adds up is put into one strip."""

    title: str
    unit: str
    about: str
    parts: Mapping[str, Points] = field(default_factory=dict)

    @property
    def nil(self) -> bool:
        """Whether there is nothing to see."""
        return all(value < NIL for points in self.parts.values() for _, value in points)


LINES: Mapping[str, Strip] = {
    "cpu_max_core_pct": Strip(
        "Busiest core", "%", "one full core is a limit, even where the others are idle"
    ),
    "device_busy_pct": Strip(
        "Busiest device infers",
        "% of the time",
        "100 % is a device that never rests; a CPU may do several inferences at a time, each of "
        "which counts",
    ),
    "cpu_temp_c": Strip(
        "Processor's temperature", "°C", "a processor that is too hot slows itself down"
    ),
    "tpu_temp_c": Strip("Edge TPU's temperature", "°C", "one that is too hot halves its clock"),
    "in_flight": Strip("Under way", "requests", "sent, and not yet answered"),
    "queue_depth": Strip("In the queue", "pictures", "waiting in the server for a device"),
    "loop_lag_ms": Strip(
        "Late",
        "ms",
        "how late this client came to its own work, because its computer was busy: latencies may "
        f"be too high by as much. A mean above {LAG_MS:g} ms, or a tenth of the median, makes a "
        "run invalid",
    ),
    "health_ms": Strip("/health takes", "ms", "how long the server takes to say that it lives"),
}
"""Those of a single column of the samples."""


def strips(summary: Figures, samples: Sequence[Sample]) -> list[Strip]:
    """Every strip that at least two samples know of, also those that are nil all along."""
    lines = (
        Strip(strip.title, strip.unit, strip.about, {strip.title: _points(samples, column)})
        for column, strip in LINES.items()
    )
    candidates = [*_stacks(summary, samples), *lines]
    return [
        strip
        for strip in candidates
        if strip.parts and all(len(points) > 1 for points in strip.parts.values())
    ]


def _stacks(summary: Figures, samples: Sequence[Sample]) -> Iterator[Strip]:
    cores, local = summary["host"].get("cores"), summary["target"]["local"]
    if cores:
        yield Strip(
            "This computer's processor",
            "% of all cores",
            "who uses it, one on top of the other; 100 % is all of its cores",
            _stacked(_shares(samples, cores, local=local)),
        )
    if not cores or not local:
        yield Strip(
            "Server's processor",
            "% of a core",
            "its parts, one on top of the other; 100 % is one core",
            _stacked([_server(sample, "cpu_pct") for sample in samples]),
        )
    yield Strip(
        "Server's memory",
        "MB",
        "its parts, one on top of the other; a slope that goes on and on is a leak",
        _stacked([_server(sample, "rss_mb") for sample in samples]),
    )


Shares = tuple[float, dict[str, float]] | None


def _shares(samples: Sequence[Sample], cores: int, *, local: bool) -> list[Shares]:
    """Percent of all cores; None where it is not known. A server on this computer that doesn't tell
    its own share can't be told from other programs."""
    apart = local and any(sample.server_cpu_pct is not None for sample in samples)
    rest = UNTOLD if local and not apart else OTHERS

    def share(sample: Sample) -> Shares:
        server = _server(sample, "cpu_pct") if apart else (sample.t_s, {})
        if sample.cpu_pct is None or sample.client_cpu_pct is None or server is None:
            return None
        parts = {name: value / cores for name, value in server[1].items()}
        parts[CLIENT] = sample.client_cpu_pct / cores
        parts[rest] = max(0.0, sample.cpu_pct - sum(parts.values()))
        return sample.t_s, parts

    return [share(sample) for sample in samples]


def _server(sample: Sample, unit: str) -> Shares:
    """The server's parts; a server that doesn't tell them apart is one."""
    whole, devices, http = (
        getattr(sample, f"{process}_{unit}") for process in ("server", "devices", "http")
    )
    if whole is None:
        return None
    parts = {DEVICES: devices or 0.0, HTTP: http or 0.0}
    parts[REST] = max(0.0, whole - sum(parts.values()))
    return sample.t_s, parts


def _stacked(shares: Sequence[Shares]) -> dict[str, Points]:
    """The parts by name, but for those that could not be seen."""
    known = [share for share in shares if share is not None]
    most = max((sum(parts.values()) for _, parts in known), default=0.0)
    names = dict.fromkeys(name for _, parts in known for name in parts)
    columns = {name: [(t, parts[name]) for t, parts in known] for name in names}
    return {
        name: points
        for name, points in columns.items()
        if max(value for _, value in points) > NIL_SHARE * most
    }


def _points(samples: Sequence[Sample], column: str) -> Points:
    values = [(sample.t_s, getattr(sample, column)) for sample in samples]
    return [(t, float(value)) for t, value in values if value is not None]
