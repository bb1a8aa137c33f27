"""The straight line between an upload and its answer, for every dialect alike."""

import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app import detection, imaging
from app.access import Admission, Rate
from app.detection import Detection
from app.devices.discovery import available_cores
from app.devices.pool import Pool
from app.errors import DeadlineExceeded
from app.fair import FairSlots
from app.imaging import Fit
from app.models import Catalogue, Layout, Model
from app.settings import Settings
from app.stages import Stages

UPLOADING = 8
"""Requests that may read their body while the queue is full: the next picture is then at hand."""


@dataclass(frozen=True)
class Query:
    """What a client asks for beside its picture; `client` tells it from others."""

    model: Model
    min_score: float
    max_results: int
    only: Set[str]
    client: str = ""


@dataclass(frozen=True)
class Answer:
    """What was found. `width` and `height` are the upright picture's, in pixels."""

    detections: list[Detection]
    model: str
    device: str
    degraded: bool
    width: int
    height: int


class Service:
    """What one HTTP process serves with: the models, the devices, and its limits."""

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        pool: Pool,
        notes: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self.settings = settings
        self.catalogue = catalogue
        self.pool = pool
        self.notes = notes
        """What is well but not all that it could be, in whole sentences."""
        self.draining = False
        # Memory is bounded by how many requests hold a body and how many of them a bitmap.
        self._admission = Admission(admitted(settings), settings.client_requests)
        self._rate = Rate(settings.client_rate)
        self._bitmaps = FairSlots(decode_slots())

    @contextmanager
    def admit(self, client: str = "") -> Iterator[None]:
        """Let a request in before its body is read.

        Raises TooManyRequests when this client sends more than its share, Busy when too many
        requests are in.
        """
        self._admission.enter(client)
        try:
            self._rate.take(client)
            yield
        finally:
            self._admission.leave(client)

    def detect(self, data: bytes, query: Query, stages: Stages, deadline: float) -> Answer:
        """Find objects in the picture in `data`.

        `deadline` is in `time.monotonic()` seconds. Raises what `imaging.decode` and `Pool.infer`
        raise.
        """
        model = query.model
        with self._bitmap(query.client, stages, deadline), stages.measure("decode"):
            fitted = self._fit(data, model)
        with stages.measure("queue"):
            tensors = {layout: tensor for layout, (tensor, _) in fitted.items()}
            inference = self.pool.infer(model, tensors, deadline, query.client)
        stages.move(inference.seconds, "queue", "inference")
        tensor_fit = fitted[inference.variant.layout][1]
        with stages.measure("post"):
            found = detection.read(
                inference.outputs,
                tensor_fit,
                inference.variant,
                min_score=query.min_score,
                max_results=query.max_results,
                only=query.only,
            )
        return Answer(
            found,
            inference.variant.name,
            inference.device,
            degraded=self.pool.is_degraded(model, inference.variant.kind),
            width=tensor_fit.width,
            height=tensor_fit.height,
        )

    def _fit(self, data: bytes, model: Model) -> dict[Layout, tuple[NDArray[np.uint8], Fit]]:
        """A picture's tensors. The bitmap itself is gone at the end: others may decode then."""
        largest = (
            max(layout.width for layout in model.layouts),
            max(layout.height for layout in model.layouts),
        )
        picture = imaging.decode(data, largest, self.settings.max_pixels)
        return {layout: imaging.fit(picture, layout) for layout in model.layouts}

    @contextmanager
    def _bitmap(self, client: str, stages: Stages, deadline: float) -> Iterator[None]:
        with stages.measure("queue"):
            mine = self._bitmaps.acquire(client, max(0.0, deadline - time.monotonic()))
        if not mine:
            raise DeadlineExceeded("no core was free to decode the picture in time")
        try:
            yield
        finally:
            self._bitmaps.release()


def admitted(settings: Settings) -> int:
    """How many requests may be between their first body byte and their answer."""
    return settings.queue + decode_slots() + UPLOADING


def decode_slots() -> int:
    """How many pictures are decoded at a time: more than the cores would only cost memory."""
    return available_cores()
