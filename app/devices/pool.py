"""One queue in front of all devices. `infer` hides the devices, their processes and failures."""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app import selftest
from app.devices.discovery import Device
from app.devices.job import Inference, Job
from app.devices.link import Link, Setup
from app.devices.status import DeviceStatus
from app.devices.supervisor import IDLE_TEST_S, Served, Supervisor, start_link
from app.devices.telemetry import Sighting
from app.errors import Busy, DeadlineExceeded, DeviceFailed, NoDevice
from app.fair import in_turn, to_give_way
from app.manifest import Kind
from app.models import Catalogue, Layout, Model

log = logging.getLogger(__name__)

TRIES = 2  # a picture that two devices failed at is not given to a third, but for the CPU
LATE = "no device answered in time; send fewer pictures at once"
CLOSE_S = 5.0  # for all device processes to end
PASSED_OVER = 2  # jobs per device that `refill` leaves waiting before it looks no further
NO_FALLBACK = "is not used beside Edge TPUs, because REEF_CPU_FALLBACK is off"


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
        cpu_fallback: bool = True,
        expect_edgetpu: bool = False,
        library: str = "libedgetpu.so.1",
        usb_performance: str = "default",
    ) -> None:
        """Nothing is started before `start`. `on_ready` is called when the default model is.

        `expect_edgetpu`: Edge TPUs were asked for by name, so that without one something is amiss.
        """
        self.lock = threading.Lock()
        self._queue: deque[Job] = deque()
        self._queue_limit = queue_limit
        self._catalogue = catalogue
        self._models = catalogue.all
        self._default = catalogue.default
        self._on_ready: Callable[[], None] | None = on_ready
        self._cpu_fallback = cpu_fallback
        self._edgetpu_asked = expect_edgetpu
        self._edgetpu_known = expect_edgetpu
        self._started = False
        self._closed = False
        self._supervisors: list[Supervisor] = []
        self._supervisor = partial(
            Supervisor,
            owner=self,
            run_dir=run_dir,
            backoff_max_s=backoff_max_s,
            idle_test_s=idle_test_s,
            start_process=start_process,
            library=library,
            usb_performance=usb_performance,
        )
        self.update([Sighting(device) for device in devices])

    def start(self) -> None:
        """Start every device; returns at once."""
        with self.lock:
            self._started = True
            supervisors = list(self._supervisors)
        for supervisor in supervisors:
            _announce(supervisor.device)
            supervisor.start()
        with self.lock:
            why = [self._why_none(model) for model in self._models if not self._able(model)]
        for each in why:
            log.error("%s", each)

    def update(self, there: Sequence[Sighting]) -> None:
        """Hear which devices there are now: new ones are started, those that have gone are left."""
        now = {sighting.device.id: sighting for sighting in there}
        appeared: list[Supervisor] = []
        returned: list[Supervisor] = []
        with self.lock:
            if self._closed:
                return
            self._edgetpu_known |= any(each.device.kind == "edgetpu" for each in there)
            for each in self._supervisors:
                sighting = now.pop(each.device.id, None)
                if each.see(sighting, self._why_unneeded(each.device)):
                    returned.append(each)
            # A stick may come back elsewhere with its firmware: nobody else opens it meanwhile.
            leaving = any(
                each.device.bus == "usb" and each.absent and each.has_process
                for each in self._supervisors
            )
            for sighting in now.values():
                if leaving and sighting.device.bus == "usb":
                    continue
                if new := self._add(sighting):
                    appeared.append(new)
            started = self._started
        for each in returned:
            _announce(each.device)
        for each in appeared if started else ():
            _announce(each.device)
            each.start()

    def _add(self, sighting: Sighting) -> Supervisor | None:
        device = sighting.device
        served = _served(self._catalogue, device)
        if not served and device.kind == "cpu":
            return None
        new = self._supervisor(device, served)
        new.see(sighting, self._why_unneeded(device))
        self._supervisors.append(new)
        self._supervisors.sort(key=lambda each: each.device.kind == "cpu")  # stable: the CPU last
        return new

    def _why_unneeded(self, device: Device) -> str:
        """Why nobody needs the CPU, where that is so."""
        if device.kind != "cpu" or self._cpu_fallback or not self._edgetpu_known:
            return ""
        twin = self._default.variants.get("cpu")  # it has a name of its own, but is the fallback
        only_there = [model for model in self._models if "edgetpu" not in model.variants]
        needed = any(model.variants.get("cpu") is not twin for model in only_there)
        return "" if needed else NO_FALLBACK

    def close(self) -> None:
        """End every device process."""
        with self.lock:
            self._closed = True
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
        if deadline <= time.monotonic():
            raise DeadlineExceeded(LATE)
        job = Job(model, tensors, deadline, client)
        with self.lock:
            if self._closed:
                raise NoDevice("Reef is being stopped")
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
            self.refill()
            if job in self._queue and not self._hope(job):
                self._queue.remove(job)
                raise NoDevice(self._why_none(model))
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
        with self.lock:
            return self._why_none(model)

    def _why_none(self, model: Model) -> str:
        """The same; the lock is held."""
        able = [each.status() for each in self._able(model)]
        if able:
            return "; ".join(f"{each.id} {each.reason}" for each in able)
        kinds = " or ".join(model.variants)
        if "cpu" in model.variants:
            return f"model {model.name}: the CPU {NO_FALLBACK}, and no Edge TPU is there"
        return (
            f"model {model.name} runs on {kinds} only, and there is no such device; "
            "REEF_MODEL_CPU names its counterpart for the CPU"
        )

    def is_degraded(self, model: Model, kind: Kind) -> bool:
        """Whether a device of that kind answers for a model in an Edge TPU's place."""
        asked = self._edgetpu_asked and model is self._default
        return kind == "cpu" and (asked or (self._edgetpu_known and "edgetpu" in model.variants))

    def why_degraded(self, model: Model) -> str:
        """Why the CPU would answer in an Edge TPU's place now; empty when it would not."""
        with self.lock:
            able = self._able(model)
            usable = any(each.usable for each in able if each.device.kind == "edgetpu")
            if usable or not self.is_degraded(model, "cpu"):
                return ""
            there = [each for each in self._supervisors if each.device.kind == "edgetpu"]
            edgetpus = [each.status() for each in there]
        why = "; ".join(f"{each.id} {each.reason}" for each in edgetpus)
        return f"the CPU answers instead of an Edge TPU: {why or 'none is there'}"

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
        self._hand_out(thorough=True)

    def refill(self) -> None:
        """Give waiting jobs to free slots, for as long as there are any."""
        self._hand_out(thorough=False)

    def _hand_out(self, *, thorough: bool) -> None:
        self._queue = deque(in_turn(self._queue))
        waiting: list[Job] = []
        ahead: Counter[Supervisor] = Counter()  # jobs that had better wait for each
        now = time.monotonic()
        most = len(self._queue) if thorough else PASSED_OVER * len(self._supervisors)
        while self._queue and len(waiting) <= most:
            if not thorough and not any(each.free_slots for each in self._supervisors):
                break
            job = self._queue.popleft()
            if job.deadline <= now:
                job.fail(DeadlineExceeded(LATE))
                continue
            best = self._best(job, ahead)
            if best and best.free_slots:
                best.give(job)
                continue
            if best:
                ahead[best] += 1
            elif not self._hope(job):
                job.fail(NoDevice(self._why_none(job.model)))
                continue
            waiting.append(job)
        self._queue.extendleft(reversed(waiting))

    def _best(self, job: Job, ahead: Counter[Supervisor]) -> Supervisor | None:
        """The usable device that would be done with a job first, even if it has no free slot yet.

        Edge TPUs come before the CPU, and those that have not failed at this job before the others.
        """
        if job.failures >= TRIES:
            return next(iter(self._last_resort(job)), None)
        usable = [each for each in self._able(job.model) if each.usable]
        edgetpus = [each for each in usable if each.device.kind == "edgetpu"]
        for group in (edgetpus, usable):
            fresh = [each for each in group if each.device.id not in job.failed_on]
            if fresh:
                break
        chosen = fresh or edgetpus or usable
        if len(chosen) < 2:
            return chosen[0] if chosen else None
        return min(chosen, key=lambda each: each.expected_s(job.model, ahead[each]))

    def _last_resort(self, job: Job) -> list[Supervisor]:
        """The CPU, for a picture that two Edge TPUs failed at: both may have died of other things,
        and what kills an Edge TPU need not hurt the CPU."""
        return [
            each
            for each in self._able(job.model)
            if each.device.kind == "cpu" and each.usable and each.device.id not in job.failed_on
        ]

    def _hope(self, job: Job) -> bool:
        """Whether a device may be ready for a job in time."""
        return any(each.ready_by() <= job.deadline for each in self._able(job.model))

    def take_back(self, jobs: list[Job]) -> None:
        """Put unfinished jobs back, in front; one that failed too often has failed."""
        for job in reversed(jobs):
            if job.failures < TRIES or self._last_resort(job):
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
        return any(each.usable for each in self._able(model))

    def _able(self, model: Model) -> list[Supervisor]:
        """The devices that may run a model, if they are well."""
        no_cpu = not self._cpu_fallback and self.is_degraded(model, "cpu")
        return [
            each
            for each in self._supervisors
            if each.can_run(model) and not (no_cpu and each.device.kind == "cpu")
        ]


def _announce(device: Device) -> None:
    """Whoever looks for a device in the log looks for this word."""
    if device.problem:
        log.warning("Detected %s: %s, but it %s", device.id, device.about, device.problem)
    else:
        log.info("Detected %s: %s", device.id, device.about)


def _served(catalogue: Catalogue, device: Device) -> dict[str, Served]:
    """What a device serves: each model's variant for its kind, with a self-test."""
    return {
        variant.name: Served(variant, selftest.prepare(model, variant))
        for model in catalogue.all
        if (variant := model.variants.get(device.kind))
    }
