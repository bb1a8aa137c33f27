"""The straight line between an upload and its answer, for every dialect alike."""

import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass

from app import detection, imaging
from app.access import Admission, Rate
from app.detection import Detection
from app.devices.discovery import available_cores
from app.devices.pool import Pool
from app.devices.status import State
from app.errors import BadParameter, DeadlineExceeded
from app.fair import FairSlots
from app.imaging import Fitted
from app.metrics import Metrics
from app.models import Catalogue, Layout, Model
from app.refusals import Refusals
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
    """The detections in a picture, `width` by `height` pixels when upright, and what made them."""

    detections: list[Detection]
    model: str
    device: str
    degraded: bool
    width: int
    height: int


@dataclass(frozen=True)
class DeviceState:
    """A device's part in that."""

    id: str
    state: State
    reason: str


@dataclass(frozen=True)
class Readiness:
    """Whether a picture would be answered now, and if not, why; `/ready` shows it as it is."""

    ready: bool
    degraded: bool
    reason: str
    devices: list[DeviceState]
    notes: list[str]


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
        self.metrics = Metrics(pool)
        self.refusals = Refusals(self.metrics)
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

    def detect(
        self, source: bytes | Fitted, query: Query, stages: Stages, deadline: float
    ) -> Answer:
        """Find objects in a picture, from its bytes or from a tensor that is ready; count it.

        `deadline` is in `time.monotonic()` seconds. Raises BadParameter for a tensor that is not
        the model's, and what `imaging.decode` and `Pool.infer` raise.
        """
        model = query.model
        if isinstance(source, bytes):
            with self._bitmap(query.client, stages, deadline), stages.measure("decode"):
                fitted = self._fit(source, model)
        else:
            fitted = _of_shape(source, model)
        with stages.measure("queue"):
            tensors = {layout: view.tensor for layout, view in fitted.items()}
            inference = self.pool.infer(model, tensors, deadline, query.client)
        stages.move(inference.seconds, "queue", "inference")
        fit = fitted[inference.variant.layout].fit
        with stages.measure("post"):
            detections = detection.read(
                inference.outputs,
                fit,
                inference.variant,
                min_score=query.min_score,
                max_results=query.max_results,
                only=query.only,
            )
        answer = Answer(
            detections,
            inference.variant.name,
            inference.device,
            degraded=self.pool.is_degraded(model, inference.variant.kind),
            width=fit.width,
            height=fit.height,
        )
        self.metrics.predicted(answer.device, stages, degraded=answer.degraded)
        return answer

    def readiness(self) -> Readiness:
        """Whether a picture would be answered now."""
        devices = self.pool.status()
        default = self.catalogue.default
        ready = self.pool.is_ready(default)
        degraded = ""
        if self.draining:
            ready, reason = False, "Reef is being stopped"
        elif ready:
            reason = degraded = self.pool.why_degraded(default)
        else:
            reason = self.pool.why_none(default)
        warnings = [warning for device in devices for warning in device.warnings]
        refusals = [
            f"{device.id} does not serve {name}: {why}"
            for device in devices
            for name, why in device.refused.items()
        ]
        return Readiness(
            ready,
            bool(degraded),
            reason,
            [DeviceState(device.id, device.state, device.reason) for device in devices],
            [*self.notes(), *refusals, *warnings],
        )

    def _fit(self, data: bytes, model: Model) -> dict[Layout, Fitted]:
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


def _of_shape(source: Fitted, model: Model) -> dict[Layout, Fitted]:
    """The layouts of a model that a tensor has the shape of."""
    fitted = {
        layout: source for layout in model.layouts if source.tensor.shape == layout.tensor_shape
    }
    if not fitted:
        takes = " or ".join(sorted(str(layout.tensor_shape) for layout in model.layouts))
        raise BadParameter(
            f"model {model.name} takes a uint8 tensor of shape {takes}, not {source.tensor.shape}"
        )
    return fitted


def admitted(settings: Settings) -> int:
    """How many requests may be between their first body byte and their answer."""
    return settings.queue + decode_slots() + UPLOADING


def decode_slots() -> int:
    """How many pictures are decoded at a time: more than the cores would only cost memory."""
    return available_cores()
