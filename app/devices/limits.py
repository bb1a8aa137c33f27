"""How long a device may take, and how long to leave it alone after it failed. No I/O, and
no clock of its own."""

import math
from collections import deque
from collections.abc import Mapping

from app.devices.discovery import Bus

START_LIMIT_S: Mapping[Bus, float] = {"pci": 15.0, "usb": 40.0, "cpu": 60.0}
"""Loading, and the first inference after it; a USB stick is reset and opened up to 25 times."""
OPEN_LIMIT_S: Mapping[Bus, float] = {**START_LIMIT_S, "pci": 30.0}
"""Opening: the driver gives a dead card's chip 12 s to leave its reset, and perhaps 12 more."""
START_USUAL_S: Mapping[Bus, float] = {"pci": 5.0, "usb": 15.0, "cpu": 15.0}
"""A device that is being started for longer is no hope for a picture that waits."""
HELD_USUAL_S = 2.0
"""The same for one that another process has: the process before us lets it go sooner."""

HANG_FACTOR = 20
HANG_FLOOR_S = 0.5
HANG_CEILING_S: Mapping[Bus, float] = {"pci": 5.0, "usb": 5.0, "cpu": math.inf}

GOOD_SERVICE_S = 60.0
ABSENCE_S = 10.0  # away for so long, a device was pulled or mended; a reset takes it away for less

FAILURES_IN_A_ROW = 3
FAILURES, OF_THE_LAST = 5, 50


class FailureShare:
    """Whether a device fails too often: three times in a row, or five of the last fifty."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._last: deque[bool] = deque(maxlen=OF_THE_LAST)

    def record(self, *, failed: bool) -> None:
        """Remember how one inference ended."""
        self._in_a_row = self._in_a_row + 1 if failed else 0
        self._last.append(failed)

    @property
    def too_often(self) -> str:
        """How often it failed, in words, if that is too often; else empty."""
        if self._in_a_row >= FAILURES_IN_A_ROW:
            return f"failed {self._in_a_row} times"
        if sum(self._last) >= FAILURES:
            return f"failed {sum(self._last)} of its last {len(self._last)} inferences"
        return ""


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

    def begin_anew(self) -> None:
        """Whatever made it fail may well be mended."""
        self._failures = 0
