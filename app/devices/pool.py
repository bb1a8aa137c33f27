"""One queue in front of all devices. `infer` hides the devices, their processes and failures."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app import selftest
from app.devices import dispatch
from app.devices.discovery import Device
from app.devices.dispatch import TRIES
from app.devices.job import Inference, Job
from app.devices.link import Link, Setup
from app.devices.served import Served
from app.devices.status import DeviceStatus
from app.devices.supervisor import TEST_EVERY_S, Supervisor, start_link
from app.devices.telemetry import Sighting
from app.errors import Busy, DeadlineExceeded, DeviceFailed, NoDevice
from app.fair import to_give_way
from app.manifest import Kind
from app.models import Catalogue, Layout, Model

log = logging.getLogger(__name__)

CLOSE_S = 5.0  # for all device processes to end
GONE_KEPT_S = 600.0  # a device that is gone for so long is forgotten
LATE = "no device answered in time"
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
        test_every_s: float = TEST_EVERY_S,
        gone_kept_s: float = GONE_KEPT_S,
        cpu_fallback: bool = True,
        expect_edgetpu: bool = False,
        library: str = "libedgetpu.so.1",
        usb_performance: str = "default",
        host_root: Path = Path("/"),
    ) -> None:
        """Nothing is started before `start`. `on_ready` is called when the default model is.

        `expect_edgetpu`: Edge TPUs were asked for by name, so that without one something is amiss.
        """
        self.lock = threading.Lock()
        self._queue: list[Job] = []
        self._queue_limit = queue_limit
        self._catalogue = catalogue
        self._models = catalogue.all
        self._default = catalogue.default
        self._on_ready: Callable[[], None] | None = on_ready
        self._cpu_fallback = cpu_fallback
        self._gone_kept_s = gone_kept_s
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
            test_every_s=test_every_s,
            start_process=start_process,
            library=library,
            usb_performance=usb_performance,
            host_root=host_root,
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
            forgotten = self._forget_gone()
            started = self._started
        for each in forgotten:
            each.close()
        for each in returned:
            _announce(each.device)
        for each in appeared if started else ():
            _announce(each.device)
            each.start()

    def _forget_gone(self) -> list[Supervisor]:
        """A stick that was moved to another port is another device: the old one is left."""
        now = time.monotonic()
        gone = [each for each in self._supervisors if each.gone_for_s(now) > self._gone_kept_s]
        self._supervisors = [each for each in self._supervisors if each not in gone]
        return gone

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
            for job in self._queue:
                job.fail(NoDevice("Reef is being stopped"))
            self._queue.clear()
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
            if self._closed:
                raise NoDevice("Reef is being stopped")
            if deadline <= time.monotonic():
                raise self._late(model)
            self._queue.append(job)
            self.dispatch()
            if len(self._queue) > self._queue_limit:
                self._make_room(job)
        if not job.settled.wait(max(0.0, deadline - time.monotonic())):
            with self.lock:
                if job in self._queue:
                    self._queue.remove(job)
                raise self._late(model)
        if job.answer is None:
            raise job.error or DeviceFailed("the device gave no answer")
        return job.answer

    def _make_room(self, newcomer: Job) -> None:
        """One job is too many: a device that has nothing to do takes the newcomer, in place of
        those that it would wait for, or else another job gives way.

        Raises Busy if none does.
        """
        if idle := dispatch.spare(newcomer, self._usable(newcomer.model)):
            self._queue.remove(newcomer)
            idle.give(newcomer)
            return
        others = [job for job in self._queue if job is not newcomer]
        leaving = to_give_way(others, newcomer.client) or newcomer
        self._queue.remove(leaving)
        full = Busy(f"{len(self._queue)} pictures are waiting already; try again in a second")
        if leaving is newcomer:
            raise full
        leaving.fail(full)

    def _late(self, model: Model) -> DeadlineExceeded:
        """The refusal of a picture that no device came to; the lock is held."""
        if self._is_ready(model):
            return DeadlineExceeded(f"{LATE}; send fewer pictures at once")
        return DeadlineExceeded(f"{LATE}: {self._why_none(model)}")

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
        refusals = ((each.id, each.why_refused(model)) for each in self._supervisors)
        if why := "; ".join(f"{device} {reason}" for device, reason in refusals if reason):
            return why
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
            usable = self._usable(model)
            if any(each.kind == "edgetpu" for each in usable) or not self.is_degraded(model, "cpu"):
                return ""
            reasons = [
                f"{each.id} {each.status().reason or each.why_refused(model)}"
                for each in self._supervisors
                if each.device.kind == "edgetpu"
            ]
        why = "; ".join(reasons)
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
        hope; the lock is held."""
        if not self._queue:  # as after nearly every inference
            return
        plan = dispatch.plan(self._queue, self._able, time.monotonic())
        self._queue = plan.waiting
        for job in plan.passed_over:
            job.passed_over += 1
        for job, supervisor in plan.grants:
            supervisor.give(job)
        for job in plan.late:
            job.fail(self._late(job.model))
        for job in plan.hopeless:
            job.fail(NoDevice(self._why_none(job.model)))

    def take_back(self, jobs: list[Job]) -> None:
        """Put unfinished jobs back, in front; one that failed too often has failed."""
        again = [job for job in jobs if job.failures < TRIES or self._last_resort(job)]
        for job in jobs:
            if job not in again:
                job.fail(DeviceFailed("the device failed at this picture twice; see /devices"))
        self._queue = again + self._queue
        self.dispatch()

    def _last_resort(self, job: Job) -> bool:
        """Whether the CPU may answer what two devices failed at."""
        return bool(dispatch.preferred(job, self._usable(job.model)))

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
        return bool(self._usable(model))

    def _usable(self, model: Model) -> list[Supervisor]:
        """The devices that run a model now."""
        return [each for each in self._able(model) if each.usable]

    def _able(self, model: Model) -> list[Supervisor]:
        """The devices that may run a model, if they are well."""
        no_cpu = not self._cpu_fallback and self.is_degraded(model, "cpu")
        return [
            each
            for each in self._supervisors
            if each.has(model)
            and not each.why_refused(model)
            and not (no_cpu and each.device.kind == "cpu")
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
