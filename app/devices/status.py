"""A device as it is now, for everybody who asks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from app.devices.discovery import Bus
from app.devices.telemetry import Telemetry
from app.manifest import Kind

State = Literal["starting", "ready", "waiting", "gone", "unusable", "stopped"]
STATES: tuple[State, ...] = get_args(State)
STARTING = "is being started"
"""The reason of a device in the state `starting` that has not failed, and waits for nobody."""


@dataclass(frozen=True)
class DeviceStatus:
    """A device as `/devices`, `/ready` and `/metrics` show it; durations in seconds."""

    id: str
    kind: Kind
    bus: Bus
    about: str
    state: State
    reason: str
    pid: int | None
    runtime: str
    models: tuple[str, ...]
    refused: Mapping[str, str]
    """Why it does not serve some of its models, by the variant's name."""
    in_flight: int
    inferences: int
    restarts: int
    failures: Mapping[str, int]
    median_s: Mapping[str, float]
    slowdown: float
    """How many times as long as at its best an inference takes now."""
    busy_s: float
    utilisation: float
    """The busy share of the last ten seconds, from 0 to 1."""
    answered_s_ago: float | None
    telemetry: Telemetry
    warnings: tuple[str, ...]
