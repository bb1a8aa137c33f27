"""What a device is doing at this moment, and whether to wait for it."""

import math
from dataclasses import dataclass

from app.devices.status import State


@dataclass(frozen=True)
class Condition:
    """A state, and why. Times are `time.monotonic()` seconds."""

    state: State
    reason: str = ""
    earliest: float = math.inf
    """The device is not ready before this."""
    latest: float = math.inf
    """From here on nobody should wait for it, until its condition changes."""

    def ready_by(self, now: float) -> float:
        """When the device may be ready; infinite without hope."""
        return max(now, self.earliest) if now < self.latest else math.inf

    @classmethod
    def starting(cls, reason: str, now: float, usual_s: float) -> "Condition":
        """Its process is being started, which usually takes no longer than this."""
        return cls("starting", reason, now, now + usual_s)

    @classmethod
    def ready(cls, now: float) -> "Condition":
        """It answers."""
        return cls("ready", "", now)

    @classmethod
    def resting(cls, reason: str, again_at: float) -> "Condition":
        """It is left alone until then."""
        return cls("waiting", reason, again_at)

    @classmethod
    def stuck(cls, reason: str) -> "Condition":
        """Its process can't be ended yet: a card in trouble holds it up in the kernel."""
        return cls("waiting", reason)

    @classmethod
    def hindered(cls, state: State, reason: str) -> "Condition":
        """Something must change outside of Reef first."""
        return cls(state, reason)

    @classmethod
    def stopped(cls) -> "Condition":
        """For good."""
        return cls("stopped", "was stopped")
