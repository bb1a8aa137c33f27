"""How long each stage of one request took. Measured here, once, and shown everywhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

STAGES = ("read", "decode", "queue", "inference", "post")


class Stages:
    """A stopwatch for one request; it runs from its creation."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the duration of the block to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began

    def move(self, seconds: float, source: str, target: str) -> None:
        """Count part of one stage as another: a device tells how long its share took."""
        self.seconds[source] -= seconds
        self.seconds[target] += seconds

    def milliseconds(self) -> dict[str, float]:
        """Every stage and `total`, the time since the stopwatch began; to a hundredth."""
        times = {**self.seconds, "total": time.perf_counter() - self._began}
        return {stage: round(1000 * seconds, 2) for stage, seconds in times.items()}
