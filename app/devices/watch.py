"""Looks at the host again and again: devices that come, go, run hot or are badly connected."""

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Protocol

from app.devices.telemetry import Finding, Sighting

log = logging.getLogger(__name__)

EVERY_S = 2.0
"""It reads a few dozen small files; a card's temperature changes more slowly."""
REPEAT_S = 600.0
"""What comes and goes, like heat around a trip point, is logged no more often than this."""


STALLED_S = 30.0
"""A look that takes longer waits for the kernel, which has trouble with a bus."""


class Watched(Protocol):
    """What is told; the pool."""

    def update(self, there: list[Sighting]) -> None:
        """Hear which devices there are now."""


class Watch:
    """A thread that looks every `EVERY_S` seconds, tells the pool, and logs what is new."""

    def __init__(
        self,
        look: Callable[[], list[Sighting]],
        pool: Watched,
        every_s: float = EVERY_S,
        repeat_s: float = REPEAT_S,
        stalled_s: float = STALLED_S,
    ) -> None:
        self._look = look
        self._pool = pool
        self._every_s = every_s
        self._repeat_s = repeat_s
        self._stalled_s = stalled_s
        self._logged: dict[tuple[str, str], float] = {}  # when each was logged last
        self._known: dict[tuple[str, str], Finding] = {}
        self._looking_since: float | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def notes(self) -> list[str]:
        """What keeps it from looking, for people; empty if nothing does."""
        since = self._looking_since
        if since is None or time.monotonic() - since < self._stalled_s:
            return []
        return [
            "the kernel has not answered a look at the devices for "
            f"{time.monotonic() - since:.0f} s: until it does, none that comes, goes or runs hot "
            "is seen; see `dmesg` on the host"
        ]

    def close(self) -> None:
        """End; returns when the thread is gone."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                self._glance()
            except Exception:  # without this thread, a stick plugged in later would never serve
                log.exception("Looking for devices failed: a bug")
            if self._closing.wait(self._every_s):
                return

    def _glance(self) -> None:
        self._looking_since = time.monotonic()
        try:
            seen = self._look()
        finally:
            self._looking_since = None
        self._pool.update(seen)
        now = {
            (sighting.device.id, finding.check): finding
            for sighting in seen
            for finding in sighting.findings
        }
        for key, finding in now.items():
            if key not in self._known and self._may_say(key):
                log.log(logging.ERROR if finding.grave else logging.WARNING, "%s", finding.says)
        there = {sighting.device.id for sighting in seen}
        for device, check in self._known.keys() - now.keys():
            if device in there and self._may_say((f"{device} well", check)):
                log.info("%s: all is well again (%s)", device, check)
        self._known = now

    def _may_say(self, key: tuple[str, str]) -> bool:
        now = time.monotonic()
        if now - self._logged.get(key, -math.inf) < self._repeat_s:
            return False
        self._logged[key] = now
        return True
