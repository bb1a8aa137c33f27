"""How long a device may take, and how long to leave it alone after it failed. Pure."""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median

from app.models import Kind

START_LIMIT_S: Mapping[Kind, float] = {"edgetpu": 40.0, "cpu": 60.0}
"""Loading, and the first inference after it; a USB stick is reset and opened up to 25 times."""

HANG_FACTOR = 20
HANG_FLOOR_S = 0.5
HANG_CEILING_S: Mapping[Kind, float] = {"edgetpu": 5.0, "cpu": math.inf}
TIMINGS_KEPT = 101

GOOD_SERVICE_S = 60.0


class Timings:
    """The last inferences of one model on one device, in seconds."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._seconds: deque[float] = deque(maxlen=TIMINGS_KEPT)

    def record(self, seconds: float) -> None:
        """Remember one inference."""
        self._seconds.append(seconds)

    @property
    def median_s(self) -> float | None:
        """The median of what is remembered; None before the first."""
        return median(self._seconds) if self._seconds else None

    @property
    def hang_limit_s(self) -> float:
        """An inference that takes longer hangs."""
        usual = self.median_s
        if usual is None:
            return START_LIMIT_S[self._kind]
        return min(max(HANG_FLOOR_S, HANG_FACTOR * usual), HANG_CEILING_S[self._kind])


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
