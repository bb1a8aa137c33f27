"""One queue in front of all devices. `infer` hides the devices, their processes and failures."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app import selftest
from app.devices.discovery import Device
from app.devices.job import Inference, Job
from app.devices.link import Link, Setup
from app.devices.supervisor import IDLE_TEST_S, DeviceStatus, Served, Supervisor, start_link
from app.errors import Busy, DeadlineExceeded, DeviceFailed, NoDevice
from app.fair import in_turn, to_give_way
from app.models import Catalogue, Layout, Model

log = logging.getLogger(__name__)

TRIES = 2  # a picture that two devices failed at is not given to a third
LATE = "no device answered in time; send fewer pictures at once"
CLOSE_S = 5.0  # for all device processes to end


class Pool:
    """Devices, and the jobs that wait for one of them."""

    def __init__(
        self,
        devices: Sequence[Device],
        catalogue: Catalogue,
        *,
        queue_limit: int,
        run_dir: Path,
        backoff_max_s: float,
        on_ready: Callable[[], None] = lambda: None,
        start_process: Callable[[Setup], Link] = start_link,
        idle_test_s: float = IDLE_TEST_S,
    ) -> None:
        """Nothing is started before `start`. `on_ready` is called when the default model is."""
        self.lock = threading.Lock()
        self._queue: deque[Job] = deque()
        self._queue_limit = queue_limit
        self._models = catalogue.all
        self._default = catalogue.default
        self._on_ready: Callable[[], None] | None = on_ready
        self._supervisors = [
            Supervisor(
                device,
                served,
                self,
                run_dir=run_dir,
                backoff_max_s=backoff_max_s,
                idle_test_s=idle_test_s,
                start_process=start_process,
            )
            for device in devices
            if (served := _served(catalogue, device))
        ]

    def start(self) -> None:
        """Start every device; returns at once."""
        for supervisor in self._supervisors:
            log.info("Detected %s: %s", supervisor.device.id, supervisor.device.about)
            supervisor.start()
        for model in self._models:
            if not self._able(model):
                log.error("%s", self.why_none(model))

    def close(self) -> None:
        """End every device process."""
        for supervisor in self._supervisors:
            supervisor.close()
        with self.lock:
            while self._queue:
                self._queue.popleft().fail(NoDevice("Reef is being stopped"))
        deadline = time.monotonic() + CLOSE_S
        for supervisor in self._supervisors:
            supervisor.join(max(0.0, deadline - time.monotonic()))

    def infer(
        self,
        model: Model,
        tensors: Mapping[Layout, NDArray[np.uint8]],
        deadline: float,
        client: str = "",
    ) -> Inference:
        """Run `model` on some device; blocks until there is an answer.

        `tensors`: uint8 (1, height, width, 3) RGB, for each of the model's layouts.
        `deadline`: in `time.monotonic()` seconds.
        `client`: whose picture it is. Clients get the devices in turn, and in a full queue the one
        with the most pictures gives way.

        Raises Busy when the queue is full, NoDevice when no device can answer in time,
        DeviceFailed when two tries failed, DeadlineExceeded.
        """
        job = Job(model, tensors, deadline, client)
        with self.lock:
            if len(self._queue) >= self._queue_limit:
                full = Busy(
                    f"{len(self._queue)} pictures are waiting already; try again in a second"
                )
                greedy = to_give_way(self._queue, client)
                if greedy is None:
                    raise full
                self._queue.remove(greedy)
                greedy.fail(full)
            self._queue.append(job)
            self.dispatch()
        if not job.settled.wait(max(0.0, deadline - time.monotonic())):
            with self.lock:
                if job in self._queue:
                    self._queue.remove(job)
            raise DeadlineExceeded(LATE)
        if job.answer is None:
            raise job.error or DeviceFailed("the device gave no answer")
        return job.answer

    def status(self) -> list[DeviceStatus]:
        """Every device, as it is now."""
        with self.lock:
            return [supervisor.status() for supervisor in self._supervisors]

    def why_none(self, model: Model) -> str:
        """Why no device can run a model now, and what to do about it."""
        able = [each.status() for each in self._able(model)]
        if able:
            return "; ".join(f"{each.id} {each.reason}" for each in able)
        return (
            f"model {model.name} runs on {' or '.join(model.variants)} only, and there is no such "
            "device; REEF_MODEL_CPU names its counterpart for the CPU"
        )

    def is_ready(self, model: Model) -> bool:
        """Whether a device that can run the model is ready."""
        with self.lock:
            return self._is_ready(model)

    @property
    def queue_depth(self) -> int:
        """How many jobs wait for a device."""
        with self.lock:
            return len(self._queue)

    # ------------------------------------------------------------ what supervisors call

    def dispatch(self) -> None:
        """Give waiting jobs to free slots, each client's oldest in turn, and refuse those without
        hope."""
        waiting: deque[Job] = deque()
        now = time.monotonic()
        for job in in_turn(self._queue):
            if job.deadline <= now:
                job.fail(DeadlineExceeded(LATE))
                continue
            able = self._able(job.model)
            free = [each for each in able if each.free_slots]
            if free:
                max(free, key=lambda each: each.free_slots).give(job)
            elif any(each.ready_by() <= job.deadline for each in able):
                waiting.append(job)
            else:
                job.fail(NoDevice(self.why_none(job.model)))
        self._queue = waiting

    def take_back(self, jobs: list[Job]) -> None:
        """Put unfinished jobs back, in front; one that failed twice has failed."""
        for job in reversed(jobs):
            if job.failures < TRIES:
                self._queue.appendleft(job)
            else:
                job.fail(DeviceFailed("the device failed at this picture twice; see /devices"))
        self.dispatch()

    def became_ready(self) -> None:
        """A device can take jobs; the lock is not held."""
        with self.lock:
            self.dispatch()
            announce = self._on_ready if self._is_ready(self._default) else None
            if announce:
                self._on_ready = None
        if announce:
            announce()

    def _is_ready(self, model: Model) -> bool:
        return any(each.status().state == "ready" for each in self._able(model))

    def _able(self, model: Model) -> list[Supervisor]:
        return [each for each in self._supervisors if each.can_run(model)]


def _served(catalogue: Catalogue, device: Device) -> dict[str, Served]:
    """What a device serves: each model's variant for its kind, with a self-test."""
    return {
        variant.name: Served(variant, selftest.prepare(model, variant))
        for model in catalogue.all
        if (variant := model.variants.get(device.kind))
    }
