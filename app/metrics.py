"""What `/metrics` shows, in Prometheus' text format."""

import os
import platform
from collections.abc import Callable, Iterable
from functools import cache
from importlib import metadata

import psutil
from prometheus_client import CollectorRegistry, Counter, Histogram, Info, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app import __version__
from app.devices.pool import Pool
from app.devices.status import STATES, DeviceStatus
from app.stages import Stages

disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for every counter, which nobody reads

BUCKETS_S = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip


RUNTIMES = ("ai-edge-litert", "tflite-runtime")
"""TensorFlow Lite's packages, the first choice first, as in app/devices/runtime.py."""

Reading = Callable[[DeviceStatus], float | None]

GAUGES: tuple[tuple[str, str, Reading], ...] = (
    (
        "reef_device_utilisation_ratio",
        "Share of the last ten seconds that was spent on inferences.",
        lambda each: each.utilisation,
    ),
    (
        "reef_device_slowdown_ratio",
        "How many times as long as at its best an inference takes.",
        lambda each: each.slowdown,
    ),
    (
        "reef_device_temperature_celsius",
        "Of an Edge TPU on PCIe; a stick has no sensor.",
        lambda each: each.telemetry.temperature_c,
    ),
    (
        "reef_device_throttle_level",
        "Trip points reached: the clock is halved so many times.",
        lambda each: each.telemetry.throttle_level if each.telemetry.trip_points_c else None,
    ),
    (
        "reef_device_driver_resets",
        "Resets of the chip since its driver was loaded.",
        lambda each: each.telemetry.resets,
    ),
    (
        "reef_device_usb_bits_per_second",
        "Speed of a stick's USB link.",
        lambda each: 1e6 * each.telemetry.usb_mbits if each.telemetry.usb_mbits else None,
    ),
    (
        "reef_device_link_downgraded",
        "1 if the PCIe link is slower or narrower than card and slot allow.",
        lambda each: (
            float(each.telemetry.link != each.telemetry.link_best)
            if each.telemetry.link_best
            else None
        ),
    ),
    (
        "reef_device_warnings",
        "Things that are wrong with it, as `/devices` tells.",
        lambda each: len(each.warnings),
    ),
)


class Metrics:
    """The counters of one HTTP process; devices and processes are read when they are asked for."""

    def __init__(self, pool: Pool) -> None:
        self.registry = CollectorRegistry()
        Info("reef_build", "What runs here.", registry=self.registry).info(build())
        self._requests = Counter(
            "reef_requests", "Requests answered.", ("route", "status"), registry=self.registry
        )
        self._rejected = Counter(
            "reef_rejected", "Requests refused, by error code.", ("reason",), registry=self.registry
        )
        self._degraded = Counter(
            "reef_degraded",
            "Predictions that the CPU answered in an Edge TPU's place.",
            registry=self.registry,
        )
        self._stages = Histogram(
            "reef_stage_seconds",
            "Duration of each stage of a prediction.",
            ("stage", "device"),
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        # To look labels up anew takes longer than to count.
        self._answered = cache(self._requests.labels)
        self._stage = cache(self._stages.labels)
        self.registry.register(DeviceCollector(pool))
        self.registry.register(ProcessCollector(pool))

    def answered(self, route: str, status: int) -> None:
        """Count a request."""
        self._answered(route, str(status)).inc()

    def rejected(self, reason: str) -> None:
        """Count a refusal."""
        self._rejected.labels(reason).inc()

    def predicted(self, device: str, stages: Stages, *, degraded: bool = False) -> None:
        """Record the stages of a prediction that `device` answered."""
        if degraded:
            self._degraded.inc()
        for stage, seconds in stages.seconds.items():
            self._stage(stage, device).observe(seconds)


def build() -> dict[str, str]:
    """The versions of Reef, of Python and of TensorFlow Lite's runtime."""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "runtime": next(filter(None, map(_installed, RUNTIMES)), ""),
    }


def _installed(package: str) -> str:
    """`ai-edge-litert 2.3.0`; empty where the package isn't there. Nothing of it is imported."""
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return ""


class DeviceCollector(Collector):
    """The queue and the devices."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def collect(self) -> Iterable[Metric]:
        """Read the pool."""
        devices = self._pool.status()
        depth = GaugeMetricFamily("reef_queue_depth", "Pictures that wait for a device.")
        depth.add_metric((), self._pool.queue_depth)
        yield depth
        state = GaugeMetricFamily(
            "reef_device_state",
            "1 for the state that the device is in.",
            labels=("device", "state"),
        )
        for each in devices:
            for known in STATES:
                state.add_metric((each.id, known), float(each.state == known))
        yield state
        flight = GaugeMetricFamily(
            "reef_device_in_flight", "Pictures in the device's slots.", labels=("device",)
        )
        inferences = CounterMetricFamily(
            "reef_device_inferences", "Inferences, failed ones too.", labels=("device",)
        )
        restarts = CounterMetricFamily(
            "reef_device_restarts", "Restarts of the device's process.", labels=("device",)
        )
        failures = CounterMetricFamily(
            "reef_device_failures", "Failures, by kind.", labels=("device", "reason")
        )
        for each in devices:
            flight.add_metric((each.id,), each.in_flight)
            inferences.add_metric((each.id,), each.inferences)
            restarts.add_metric((each.id,), each.restarts)
            for reason, count in each.failures.items():
                failures.add_metric((each.id, reason), count)
        yield from (flight, inferences, restarts, failures)
        busy = CounterMetricFamily(
            "reef_device_busy_seconds", "Time spent on inferences.", labels=("device",)
        )
        for each in devices:
            busy.add_metric((each.id,), each.busy_s)
        yield busy
        for name, about, value in GAUGES:
            gauge = GaugeMetricFamily(name, about, labels=("device",))
            for each in devices:
                if (reading := value(each)) is not None:
                    gauge.add_metric((each.id,), reading)
            yield gauge
        trips = GaugeMetricFamily(
            "reef_device_trip_point_celsius",
            "From here on the driver halves the clock once more.",
            labels=("device", "point"),
        )
        for each in devices:
            for point, celsius in enumerate(each.telemetry.trip_points_c):
                trips.add_metric((each.id, str(point)), celsius)
        yield trips


class ProcessCollector(Collector):
    """CPU and memory of every process of the server."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def collect(self) -> Iterable[Metric]:
        """Ask the kernel."""
        cpu = CounterMetricFamily(
            "reef_process_cpu_seconds", "User and system CPU time.", labels=("process",)
        )
        memory = GaugeMetricFamily(
            "reef_process_resident_bytes", "Resident memory.", labels=("process",)
        )
        pids = {"master": os.getppid(), "http": os.getpid()}
        pids |= {f"device {each.id}": each.pid for each in self._pool.status() if each.pid}
        for name, pid in pids.items():
            try:
                process = psutil.Process(pid)
                times = process.cpu_times()
                resident = process.memory_info().rss
            except psutil.Error:
                continue  # it ended this moment
            cpu.add_metric((name,), times.user + times.system)
            memory.add_metric((name,), resident)
        yield from (cpu, memory)
