"""One picture on its way through a device."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from app.detection import Outputs
from app.errors import RequestError
from app.models import Layout, Model, Variant


@dataclass(frozen=True)
class Inference:
    """What a device answered, and how long its `invoke` took, in seconds."""

    outputs: Outputs
    variant: Variant
    device: str
    seconds: float


@dataclass(eq=False)
class Job:
    """A picture, fitted to every layout that some device may want it in.

    `deadline` is in `time.monotonic()` seconds. A job that a device
    failed at is tried once more. Clients get their turns by `client`.
    """

    model: Model
    tensors: Mapping[Layout, NDArray[np.uint8]]
    deadline: float
    client: str = ""
    failures: int = 0
    failed_on: set[str] = field(default_factory=set)
    """The devices that failed at it; another one is tried first."""
    passed_over: int = 0
    """How many jobs of another model went before it, though its turn was first."""
    answer: Inference | None = None
    error: RequestError | None = None
    settled: threading.Event = field(default_factory=threading.Event)

    def failed(self, device: str) -> None:
        """A device failed at it."""
        self.failures += 1
        self.failed_on.add(device)

    def succeed(self, answer: Inference) -> None:
        """Hand the answer to whoever waits."""
        self.answer = answer
        self.settled.set()

    def fail(self, error: RequestError) -> None:
        """Hand the error to whoever waits."""
        self.error = error
        self.settled.set()
