"""How long a device may take, and how long to leave it alone after it failed. No I/O, and
no clock of its own."""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median

from app.devices.discovery import Bus

START_LIMIT_S: Mapping[Bus, float] = {"pci": 15.0, "usb": 40.0, "cpu": 60.0}
"""Loading, and the first inference after it; a USB stick is reset and opened up to 25 times."""
OPEN_LIMIT_S: Mapping[Bus, float] = {**START_LIMIT_S, "pci": 30.0}
"""Opening: the driver gives a dead card's chip 12 s to leave its reset, and perhaps 12 more."""

HANG_FACTOR = 20
HANG_FLOOR_S = 0.5
HANG_CEILING_S: Mapping[Bus, float] = {"pci": 5.0, "usb": 5.0, "cpu": math.inf}
TIMINGS_KEPT = 101
RECENT = 3
WINDOW = 21  # inferences; their median tells whether a device has become slower

UTILISATION_S = 10  # whole seconds that the busy share is taken over

GOOD_SERVICE_S = 60.0


class Timings:
    """The last inferences of one model on one device, in seconds."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._seconds: deque[float] = deque(maxlen=TIMINGS_KEPT)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._window: list[float] = []
        self._latest = self._best = 0.0

    def record(self, seconds: float) -> None:
        """Remember one inference."""
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
    def slowdown(self) -> float:
        """How many times as long as at its best it takes now; 1 while that isn't known."""
        return self._latest / self._best if self._best else 1.0

    @property
    def median_s(self) -> float | None:
        """The median of what is remembered; None before the first."""
        return median(self._seconds) if self._seconds else None

    @property
    def hang_limit_s(self) -> float:
        """An inference that takes longer hangs."""
        usual = self.median_s
        if usual is None:
            return START_LIMIT_S[self._bus]
        return min(max(HANG_FLOOR_S, HANG_FACTOR * usual), HANG_CEILING_S[self._bus])


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


class Backoff:
    """The pauses between restarts: none after the first failure, then 1, 2, 4 … seconds.

    A minute of good service lets a device begin anew.
    """

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._failures = 0

    def pause_s(self, served_s: float) -> float:
        """The pause after a failure that came `served_s` seconds after the device was ready."""
        self._failures = 1 if served_s >= GOOD_SERVICE_S else self._failures + 1
        if self._failures == 1:
            return 0.0
        return float(min(2.0 ** min(self._failures - 2, 30), self._longest_s))
