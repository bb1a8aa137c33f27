"""What inferences took, and what that says of a device. No I/O, and no clock of its own."""

import math
from collections import deque
from statistics import median

from app.devices.discovery import Bus
from app.devices.limits import HANG_CEILING_S, HANG_FACTOR, HANG_FLOOR_S, START_LIMIT_S

TIMINGS_KEPT = 101
RECENT = 3
WINDOW = 21  # inferences; their median tells whether a device has become slower
RELOADS_KEPT = 5
UNKNOWN_RELOAD_S = 0.01  # until the first one is timed: 8 MB over PCIe, as edge-tpu.md estimates

UTILISATION_S = 10  # whole seconds that the busy share is taken over

TICK_S = 0.25  # how often whoever watches a device looks at the clock
STANDSTILL_S = 0.5  # no look for so long: the server itself stood still


class Timings:
    """The last inferences of one model on one device, in seconds.

    The first inference after another model's loads the model's parameters into the chip again.
    Such a reload is kept apart: it says nothing about heat.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._best = 0.0
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget all but the best: a new process may find the device in another state."""
        self._seconds: deque[float] = deque(maxlen=TIMINGS_KEPT)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._reloads: deque[float] = deque(maxlen=RELOADS_KEPT)
        self._window: list[float] = []
        self._latest = 0.0

    def record(self, seconds: float, *, reloaded: bool = False) -> None:
        """Remember one inference; `reloaded`: it came after one of another model."""
        if reloaded:
            self._reloads.append(seconds)
            return
        self._seconds.append(seconds)
        self._recent.append(seconds)
        self._window.append(seconds)
        if len(self._window) == WINDOW:
            self._latest = median(self._window)
            self._best = min(self._best or math.inf, self._latest)
            self._window.clear()

    @property
    def recent_s(self) -> float | None:
        """The median of the last few; None before the first."""
        return median(self._recent) if self._recent else None

    @property
    def reload_s(self) -> float:
        """What a change to this model costs beside the inference itself."""
        if not self._reloads:
            return UNKNOWN_RELOAD_S
        return max(0.0, median(self._reloads) - (self.median_s or 0.0))

    @property
    def slowdown(self) -> float:
        """How many times as long as at its best it takes now; 1 while that isn't known."""
        return self._latest / self._best if self._best and self._latest else 1.0

    @property
    def median_s(self) -> float | None:
        """The median of what is remembered; None before the first."""
        return median(self._seconds) if self._seconds else None

    def hang_limit_s(self, *, reloads: bool = False) -> float:
        """An inference that takes longer hangs; `reloads`: it comes after one of another model."""
        usual = self.median_s
        if usual is None:
            return START_LIMIT_S[self._bus]
        ceiling = HANG_CEILING_S[self._bus]
        if reloads and not self._reloads:
            return min(ceiling, START_LIMIT_S[self._bus])
        if reloads:
            usual = max(usual, median(self._reloads))
        return min(max(HANG_FLOOR_S, HANG_FACTOR * usual), ceiling)


class BusyShare:
    """The share of the last seconds that a device was busy. `now` is a monotonic clock's."""

    def __init__(self) -> None:
        self._busy = [0.0] * (UTILISATION_S + 1)
        self._second = 0

    def record(self, seconds: float, now: float) -> None:
        """It was busy for so long, until now."""
        self._turn(now)
        self._busy[self._second % len(self._busy)] += seconds

    def share(self, now: float) -> float:
        """From 0 to 1, of the last whole seconds."""
        self._turn(now)
        current = self._busy[self._second % len(self._busy)]
        return min(1.0, (sum(self._busy) - current) / UTILISATION_S)

    def _turn(self, now: float) -> None:
        second = int(now)
        for passed in range(max(self._second + 1, second - UTILISATION_S), second + 1):
            self._busy[passed % len(self._busy)] = 0.0
        self._second = max(second, self._second)


class RunningTime:
    """The time during which the server itself was running. `now` is a monotonic clock's.

    A process that is stopped, or a virtual machine that is moved, finds afterwards that every
    limit has passed, though no device was slow. So whoever watches a device looks at this clock
    every TICK_S: of a gap between two looks, no more than that is time.
    """

    def __init__(self) -> None:
        self._looked: float | None = None
        self._lost = 0.0

    def look(self, now: float) -> float:
        """A look at the clock; returns its time, in seconds."""
        if self._looked is not None and now - self._looked > STANDSTILL_S:
            self._lost += now - self._looked - TICK_S
        self._looked = now
        return self.at(now)

    def at(self, now: float) -> float:
        """Its time, as far as it is known."""
        return now - self._lost
