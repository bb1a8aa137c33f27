"""The two CSV files: what is in a row, written as it arrives, and read back.

An empty cell is a value that there was none of; it is never 0.
"""

import csv
import dataclasses
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from bench.benchmarking.errors import WrongUsage

STAGES = ("read", "decode", "queue", "inference", "post")
"""The server's own, in the order of a request; `total` is all of them and what lies between."""

OK, REJECTED = "ok", "rejected"


@dataclass(slots=True)
class Row:
    """One request. `…_s` are seconds since the run began."""

    run_id: str
    seq: int
    client: int
    """Of a closed loop: which client asked; of an open loop: which connection."""
    phase: str
    """warmup, measure, baseline or recovery; only `measure` enters the statistics."""
    level: str
    load: str
    """closed or open"""
    image: str
    scheduled_s: float
    """When it should have been sent: in a closed loop, when its client was free to ask."""
    sent_s: float
    done_s: float
    latency_ms: float
    """From the schedule to the last byte of the answer: what a user waits."""
    service_ms: float
    """From the first byte sent to the last byte of the answer."""
    send_delay_ms: float
    connect_ms: float | None
    """Only where a connection had to be made; it is part of the latency."""
    status: int | None
    outcome: str
    """ok; rejected (429, 503); http (another status); connect, reset, timeout, parse (no answer);
    malformed (no prediction in it); different (not what was found in this picture before)"""
    error: str
    bytes_out: int
    bytes_in: int
    model: str
    device: str
    degraded: int | None
    detections: int | None
    classes: str
    """What was found, best first, with semicolons between."""
    mean_score: float | None
    answer_hash: str
    srv_read_ms: float | None
    srv_decode_ms: float | None
    srv_queue_ms: float | None
    srv_inference_ms: float | None
    srv_post_ms: float | None
    srv_total_ms: float | None


@dataclass(slots=True)
class Sample:
    """The system, once a second. CPU is percent of one core, but for `cpu_pct` and `tpu_…`."""

    run_id: str
    t_s: float
    phase: str
    level: str
    cpu_pct: float | None = None
    """Of all cores of the computer that runs the benchmark."""
    cpu_max_core_pct: float | None = None
    cpu_mhz: float | None = None
    cpu_temp_c: float | None = None
    throttled: int | None = None
    """1 while the processor is slowed down by heat or a weak supply."""
    load1: float | None = None
    mem_used_mb: float | None = None
    swap_mb: float | None = None
    net_rx_kbs: float | None = None
    net_tx_kbs: float | None = None
    client_cpu_pct: float | None = None
    client_rss_mb: float | None = None
    loop_lag_ms: float | None = None
    """How late the client's event loop came, 99th percentile of this second."""
    in_flight: int | None = None
    server_cpu_pct: float | None = None
    server_rss_mb: float | None = None
    http_cpu_pct: float | None = None
    http_rss_mb: float | None = None
    devices_cpu_pct: float | None = None
    devices_rss_mb: float | None = None
    server_threads: int | None = None
    server_fds: int | None = None
    queue_depth: float | None = None
    inferences: float | None = None
    """Since the server started."""
    restarts: float | None = None
    device_busy_pct: float | None = None
    """The share of this second in which the busiest device was inferring. A CPU may do several
    inferences at a time, each of which counts."""
    tpu_temp_c: float | None = None
    tpu_throttle_level: float | None = None
    """How many times the hottest Edge TPU's clock was halved by heat."""
    device_warnings: float | None = None
    """What is wrong with devices, as `/devices` tells."""
    usb_mbps: float | None = None
    """Of the slowest Edge TPU on USB: 480 is USB 2."""
    health_ms: float | None = None
    """How long `/health` took; empty when it did not answer."""


T = TypeVar("T", Row, Sample)
Parse = Callable[[str], Any]


class Writer(Generic[T]):
    """Appends rows to a CSV file. `flush` once a second: what a power cut may take is that much."""

    def __init__(self, path: Path, kind: type[T]) -> None:
        self.path = path
        self._names = names(kind)
        self._file = path.open("w", newline="", encoding="utf-8")
        self._csv = csv.writer(self._file)
        self._csv.writerow(self._names)
        self.flush()

    def write(self, row: T) -> None:
        """Add a row."""
        self._csv.writerow([_text(getattr(row, name)) for name in self._names])

    def flush(self) -> None:
        """Give what was written to the system."""
        self._file.flush()

    def close(self) -> None:
        """Write what is left."""
        self._file.close()


def names(kind: type[Row] | type[Sample]) -> list[str]:
    """The columns, in order."""
    return [field.name for field in dataclasses.fields(kind)]


def read(path: Path, kind: type[T]) -> list[T]:
    """Every whole row of a file. Raises WrongUsage when it is not such a file.

    A last line that was cut short, as a power cut leaves it, is left out.
    """
    parsers = [_parser(hint) for hint in typing.get_type_hints(kind).values()]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            if next(lines, None) != names(kind):
                raise WrongUsage(f"{path}: has not the columns of this benchmark's CSV")
            found = []
            for cells in lines:
                try:
                    found.append(
                        kind(*(read(cell) for read, cell in zip(parsers, cells, strict=True)))
                    )
                except ValueError:
                    if next(lines, None) is not None:
                        raise WrongUsage(f"{path}: line {lines.line_num} is damaged") from None
            return found
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise WrongUsage(f"{path}: {error}") from error


def _text(value: object) -> object:
    return "" if value is None else round(value, 6) if isinstance(value, float) else value


def _parser(hint: Any) -> Parse:
    if isinstance(hint, types.UnionType):
        (inner,) = (each for each in typing.get_args(hint) if each is not types.NoneType)
        return lambda cell: None if cell == "" else inner(cell)
    parse: Parse = hint
    return parse
