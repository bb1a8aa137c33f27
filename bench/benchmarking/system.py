"""The computer and the server, once a second: rows of system_metrics_TIMESTAMP.csv.

CPU and memory of the server's processes come from its own `/metrics`, which has them from psutil:
so they are there for a server in a container or on another computer too. What can't be had is an
empty cell.
"""

import http.client
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from bench.benchmarking.client import Target, now
from bench.benchmarking.loops import Gauge
from bench.benchmarking.rows import Sample
from bench.benchmarking.server import Asker, Series, local_processes, total, values

PERIOD_S = 1.0
MB = 1_000_000
EDGE_TPU_USB = {("1a6e", "089a"), ("18d1", "9302")}  # before and after its firmware is loaded
THROTTLED_NOW = 0b1111  # of a Raspberry Pi: low voltage, capped, throttled, too hot, this moment
HEALTH_PATIENCE_S = 5.0


class Sampler(threading.Thread):
    """Takes a sample a second until it is stopped."""

    def __init__(
        self,
        run_id: str,
        target: Target,
        gauge: Gauge,
        began: float,
        on_sample: Callable[[Sample], None],
        *,
        local: bool,
        root: Path = Path("/"),
    ) -> None:
        super().__init__(name="sampler", daemon=True)
        self._run_id = run_id
        self._gauge = gauge
        self._began = began
        self._on_sample = on_sample
        self._ended = threading.Event()
        self._host = Host(root)
        self._server = Server(target, local=local)

    def run(self) -> None:
        """See above. Samples keep to the second; when one took too long, the next ones come later:
        what is a difference of counters would mean little over a moment."""
        self._take()  # counters have a difference from the second sample on
        due = now()
        while not self._ended.is_set():
            due = max(due + PERIOD_S, now() + PERIOD_S / 2)
            if not self._ended.wait(max(0.0, due - now())):
                self._on_sample(self._take())
        self._server.close()

    def stop(self) -> None:
        """End it; returns when it has ended."""
        self._ended.set()
        self.join()

    def _take(self) -> Sample:
        gauge = self._gauge
        sample = Sample(self._run_id, now() - self._began, gauge.phase, gauge.level)
        sample.in_flight = gauge.in_flight
        sample.loop_lag_ms = gauge.lag_ms()
        self._host.fill(sample)
        self._server.fill(sample)
        return sample


class Rates:
    """Differences of counters over time. One that went back, or is new, has none."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, float]] = {}

    def per_second(self, name: str, value: float | None) -> float | None:
        """How fast a counter rose since it was last asked for."""
        if value is None:
            self._last.pop(name, None)
            return None
        before, self._last[name] = self._last.get(name), (now(), value)
        if before is None or value < before[1] or now() <= before[0]:
            return None
        return (value - before[1]) / (now() - before[0])


class Host:
    """This computer and this program."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._rates = Rates()
        self._self = psutil.Process()
        self._pi_throttling = (root / "usr/bin/vcgencmd").exists()

    def fill(self, sample: Sample) -> None:
        """Set what this computer tells."""
        cores = psutil.cpu_percent(percpu=True)
        sample.cpu_pct = sum(cores) / len(cores)
        sample.cpu_max_core_pct = max(cores)
        sample.load1 = os.getloadavg()[0]
        sample.mem_used_mb = psutil.virtual_memory().used / MB
        sample.swap_mb = psutil.swap_memory().used / MB
        sample.cpu_mhz = cpu_mhz()
        sample.cpu_temp_c = cpu_temperature(self._root)
        sample.throttled = self._throttled()
        rate = self._rates.per_second
        if traffic := psutil.net_io_counters():
            sample.net_rx_kbs = _scaled(rate("rx", traffic.bytes_recv), 1e-3)
            sample.net_tx_kbs = _scaled(rate("tx", traffic.bytes_sent), 1e-3)
        times = self._self.cpu_times()
        sample.client_cpu_pct = _scaled(rate("client", times.user + times.system), 100)
        sample.client_rss_mb = self._self.memory_info().rss / MB
        sample.usb_mbps = usb_speed(self._root)
        sample.tpu_temp_c = apex_temperature(self._root)

    def _throttled(self) -> int | None:
        """Of a Raspberry Pi by its own word, of an Intel processor by its counter of events."""
        if self._pi_throttling:
            try:
                said = subprocess.run(
                    ["/usr/bin/vcgencmd", "get_throttled"],
                    capture_output=True,
                    text=True,
                    timeout=2,
                    check=True,
                ).stdout
                return int(bool(int(said.partition("=")[2], 16) & THROTTLED_NOW))
            except (OSError, ValueError, subprocess.SubprocessError):
                return None
        pattern = "sys/devices/system/cpu/cpu*/thermal_throttle/package_throttle_count"
        counts = [_number(path) for path in self._root.glob(pattern)]
        known = [count for count in counts if count is not None]
        if not known:
            return None
        rate = self._rates.per_second("throttling", sum(known))
        return None if rate is None else int(rate > 0)


class Server:
    """The server, by what it says, and by what this computer sees of its processes."""

    def __init__(self, target: Target, *, local: bool) -> None:
        self._asker = Asker(target, HEALTH_PATIENCE_S)
        self._rates = Rates()
        self._processes = local_processes(target.port) if local else []

    def close(self) -> None:
        """Hang up."""
        self._asker.close()

    def fill(self, sample: Sample) -> None:
        """Set what is known of the server."""
        began = time.monotonic()
        try:
            if self._asker.get("/health")[0] == 200:
                sample.health_ms = 1000 * (time.monotonic() - began)
        except (OSError, http.client.HTTPException):
            pass
        series = self._asker.metrics()
        self._fill_processes(sample, series)
        sample.queue_depth = total(series, "reef_queue_depth")
        sample.inferences = total(series, "reef_device_inferences_total")
        sample.restarts = total(series, "reef_device_restarts_total")
        counters = series.get("reef_device_busy_seconds_total") or [
            each
            for each in series.get("reef_stage_seconds_sum", ())
            if each[0].get("stage") == "inference"
        ]
        busy = [
            self._rates.per_second(f"busy {labels.get('device')}", seconds)
            for labels, seconds in counters
        ]
        sample.device_busy_pct = _scaled(_most(busy), 100)
        fill_edge_tpu(sample, series)
        sample.server_threads = self._sum(lambda process: int(process.num_threads()))
        sample.server_fds = self._sum(lambda process: int(process.num_fds()))

    def _fill_processes(self, sample: Sample, series: Series) -> None:
        cpu = {"http": 0.0, "devices": 0.0, "server": 0.0}
        memory = dict(cpu)
        known = False
        for labels, seconds in series.get("reef_process_cpu_seconds_total", ()):
            name = labels.get("process", "")
            used = self._rates.per_second(f"cpu {name}", seconds)
            known = known or used is not None
            for group in _groups(name):
                cpu[group] += 100 * (used or 0.0)
        resident = series.get("reef_process_resident_bytes", ())
        for labels, size in resident:
            for group in _groups(labels.get("process", "")):
                memory[group] += size / MB
        if known:
            sample.server_cpu_pct = cpu["server"]
            sample.http_cpu_pct = cpu["http"]
            sample.devices_cpu_pct = cpu["devices"]
        if resident:
            sample.server_rss_mb = memory["server"]
            sample.http_rss_mb = memory["http"]
            sample.devices_rss_mb = memory["devices"]

    def _sum(self, of: Callable[[psutil.Process], int]) -> int | None:
        """Of every process of a server on this computer; None when one can't be seen."""
        try:
            return sum(of(process) for process in self._processes) or None
        except psutil.Error:
            return None


def fill_edge_tpu(sample: Sample, series: Series) -> None:
    """What the server tells of its Edge TPUs: the hottest, the slowest on USB, the throttled."""
    if found := values(series, "reef_device_temperature_celsius"):
        sample.tpu_temp_c = max(found)
    if found := values(series, "reef_device_usb_bits_per_second"):
        sample.usb_mbps = min(found) / 1e6
    if found := values(series, "reef_device_throttle_level"):
        sample.tpu_throttle_level = max(found)
    if found := values(series, "reef_device_warnings"):
        sample.device_warnings = sum(found)


def cpu_mhz() -> float | None:
    """What the cores run at; some boards and virtual machines don't tell."""
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError, AttributeError):
        return None
    return frequency.current if frequency and frequency.current else None


def cpu_temperature(root: Path = Path("/")) -> float | None:
    """The hottest thermal zone of the processor in °C."""
    found = []
    for zone in root.glob("sys/class/thermal/thermal_zone*"):
        kind = _word(zone / "type").lower()
        if any(word in kind for word in ("cpu", "x86_pkg", "soc", "core")):
            found.append(_number(zone / "temp"))
    for monitor in root.glob("sys/class/hwmon/hwmon*"):
        if _word(monitor / "name") in ("coretemp", "k10temp", "cpu_thermal"):
            found += [_number(path) for path in monitor.glob("temp*_input")]
    known = [value / 1000 for value in found if value is not None]
    return max(known, default=None)


def apex_temperature(root: Path = Path("/")) -> float | None:
    """°C of the hottest Edge TPU on this computer's PCIe. One that fell off the bus says -89.7."""
    found = [_number(path) for path in root.glob("sys/class/apex/apex_*/temp")]
    return max((value / 1000 for value in found if value is not None and value > 0), default=None)


def usb_speed(root: Path = Path("/")) -> float | None:
    """Mbit/s of the slowest Edge TPU on this computer's USB."""
    found = []
    for folder in root.glob("sys/bus/usb/devices/*"):
        if (_word(folder / "idVendor"), _word(folder / "idProduct")) in EDGE_TPU_USB:
            found.append(_number(folder / "speed"))
    return min((speed for speed in found if speed is not None), default=None)


def _groups(process: str) -> tuple[str, ...]:
    if process == "http":
        return ("http", "server")
    return ("devices", "server") if process.startswith("device") else ("server",)


def _most(found: list[float | None]) -> float | None:
    return max((each for each in found if each is not None), default=None)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_word(path))
    except ValueError:
        return None
