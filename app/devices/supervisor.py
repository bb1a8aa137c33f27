"""Keeps one device in service: starts its process, gives it jobs, ends it when it fails."""

import contextlib
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.detection import Outputs
from app.devices import causes, link, telemetry
from app.devices.causes import Stage
from app.devices.discovery import Device
from app.devices.job import Inference, Job
from app.devices.limits import OPEN_LIMIT_S, START_LIMIT_S, Backoff, BusyShare, Timings
from app.devices.link import Link, LinkClosed, Message, ModelFile, Setup
from app.devices.status import STARTING, DeviceStatus, State
from app.devices.telemetry import Finding, Sighting, Telemetry
from app.errors import NoDevice
from app.models import Model, Variant
from app.selftest import SelfTest, SelfTestError

log = logging.getLogger(__name__)

TICK_S = 0.25  # how often limits are looked at
IDLE_TEST_S = 60.0  # an idle device is tested again after so long
FAILURES_IN_A_ROW = 3  # so many failed inferences end the process
EXIT_GRACE_S = 2.0  # for a process whose socket was closed
REAP_PATIENCE_S = 5.0  # before the log says that a killed process is still there
STUCK_S = 60.0  # what a card in trouble may take until its killed process is gone
ABSENT_S = 3.0  # a device that is not seen for so long is gone; a reset takes it away for less
UNKNOWN_MEDIAN_S = 0.01  # until the first inference is timed
DOUBT_S = 1.0  # idle for so long, a device is tried whatever its last times were
NEARLY_WELL = 1.3  # times its best latency; a device that was slow may be told slow again after it
HOT_FACTOR = 4  # a hot device counts as so many times slower than it is, and can cool down

GONE = "is not there any more; plug it in again, or rescan its bus"
NO_MODEL = (
    "has no model: none of those served is compiled for the Edge TPU; `reef models pull "
    "ssdlite_mobiledet` fetches the default one"
)


class DeviceDown(Exception):
    """The device can't go on. `kind` is one word for the metrics, the message is for people."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Owner(Protocol):
    """What a supervisor needs of the pool."""

    lock: threading.Lock

    def dispatch(self) -> None:
        """Hand waiting jobs to free slots, refuse those without hope; the lock is held."""

    def refill(self) -> None:
        """Hand waiting jobs to free slots; the lock is held."""

    def became_ready(self) -> None:
        """A device can take jobs; the lock is not held."""

    def take_back(self, jobs: list[Job]) -> None:
        """Put unfinished jobs back, in front; the lock is held."""


@dataclass(frozen=True)
class Served:
    """A model as one device serves it."""

    variant: Variant
    selftest: SelfTest

    @cached_property
    def file(self) -> ModelFile:
        """What the device process must know."""
        variant = self.variant
        return ModelFile(
            name=variant.name,
            path=str(variant.path),
            width=variant.layout.width,
            height=variant.layout.height,
            outputs=variant.outputs,
            detections=variant.detections,
            normalisation=variant.normalisation,
            regular_nms=variant.regular_nms,
            sha256=variant.sha256,
        )


@dataclass(frozen=True)
class Hindrance:
    """Why a device is not to be started. If `urgent`, its process is ended too."""

    state: State
    reason: str
    urgent: bool = False


@dataclass
class _Run:
    """What a slot is busy with; without a job it is the test of an idle device."""

    slot: int
    served: Served
    job: Job | None
    began: float | None = None
    """When the device turned to it; None while it waits for one before it to end."""


def start_link(setup: Setup) -> Link:
    """Start a real device process."""
    return Link(setup, link.command(), link.environment())


class Supervisor:
    """Drives one device from a thread of its own.

    The pool's lock guards `_free`, `_runs`, `_state` and what `status` shows.
    """

    def __init__(
        self,
        device: Device,
        models: Mapping[str, Served],
        owner: Owner,
        *,
        run_dir: Path,
        backoff_max_s: float,
        idle_test_s: float,
        start_process: Callable[[Setup], Link],
        library: str,
        usb_performance: str,
    ) -> None:
        """`models`: what the device serves, by the variant's name."""
        self.device = device
        self._models = models
        self._owner = owner
        self._run_dir = run_dir
        self._library = library
        self._usb_performance = usb_performance
        self._setup = self._make_setup()
        self._idle_test_s = idle_test_s
        self._start_process = start_process
        self._backoff_max_s = backoff_max_s
        self._backoff = Backoff(backoff_max_s)
        self._timings = {name: Timings(device.bus) for name in models}
        self._busy = BusyShare()
        self._busy_s = 0.0
        self._telemetry = Telemetry()
        self._findings: tuple[Finding, ...] = ()
        self._hindrance: Hindrance | None = None
        self._slow_told = False
        self._throttled: tuple[Finding, ...] = ()
        self._unloadable: dict[str, str] = {}  # why, by the model's name
        self._absent_since: float | None = None
        self._stage: Stage = ""
        self._link: Link | None = None
        self._free: list[int] = []
        self._runs: dict[int, _Run] = {}  # by slot, in the order of their sending
        self._state: State = "starting"
        self._reason = STARTING
        self._down: DeviceDown | None = None  # why it is not ready, until it is again
        self._ready_at = 0.0
        self._again_at = 0.0
        self._answered = 0.0
        self._failed_in_a_row = 0
        self._runtime = ""
        self._counts: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._closing = threading.Event()
        self._wake = threading.Event()  # a hindrance came or went, or it is being closed
        self._thread = threading.Thread(target=self._run, name=device.id, daemon=True)

    # ------------------------------------------------------------ what the pool calls

    def start(self) -> None:
        """Begin; `status` tells when the device is ready."""
        self._thread.start()

    def close(self) -> None:
        """Ask the device to end; `join` waits for it."""
        self._closing.set()
        self._wake.set()

    def join(self, timeout_s: float) -> None:
        """Wait until the device has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def see(self, sighting: Sighting | None, unneeded: str = "") -> bool:
        """Hear how the device is, None if it is not there; `unneeded` says why nobody needs it.

        The lock is held. Returns whether it has come back.
        """
        was_gone = self._hindrance is not None and self._hindrance.state == "gone"
        if sighting is None:
            self._miss()
            return False
        self._absent_since = None
        self.device = sighting.device
        self._telemetry = sighting.telemetry
        self._findings = sighting.findings + self._throttled
        if slow := telemetry.slowed(self.device, self._slowdown):
            self._findings += (slow,)
            if not self._slow_told:
                log.warning("%s", slow.says)
            self._slow_told = True
        elif self._slowdown < NEARLY_WELL:
            self._slow_told = False
        problem = sighting.device.problem or ("" if self._models else NO_MODEL)
        if unneeded:
            self._hinder(Hindrance("unusable", unneeded, urgent=True))
        elif problem:
            self._hinder(Hindrance("unusable", problem))
        else:
            self._hinder(None)
        return was_gone

    def _miss(self) -> None:
        now = time.monotonic()
        if self._absent_since is None:
            self._absent_since = now
        coming = self._link is not None and self._state == "starting"  # its firmware is loaded
        if not coming and (self._link is None or now - self._absent_since >= ABSENT_S):
            self._hinder(Hindrance("gone", GONE, urgent=True))

    def _hinder(self, hindrance: Hindrance | None) -> None:
        if hindrance != self._hindrance:
            self._hindrance = hindrance
            self._wake.set()

    @property
    def absent(self) -> bool:
        """Whether the device was not seen when it was looked for last."""
        return self._absent_since is not None

    @property
    def has_process(self) -> bool:
        """Whether a process may still have the device open."""
        return self._link is not None

    @property
    def usable(self) -> bool:
        """Whether it answers."""
        return self._state == "ready"

    def expected_s(self, model: Model, ahead: int) -> float:
        """How long a job would take from now, behind its own jobs and `ahead` more of them.

        A device that was slow and therefore is left alone may be well again, which only an
        inference shows: once a second it is given the benefit of the doubt.
        """
        timings = self._timings[model.variants[self.device.kind].name]
        one = timings.recent_s or UNKNOWN_MEDIAN_S
        if self._telemetry.throttle_level:
            one *= HOT_FACTOR
        elif not self._runs and time.monotonic() - self._answered > DOUBT_S:
            one = 0.0
        return (len(self._runs) + ahead + 1) * one

    def can_run(self, model: Model) -> bool:
        """Whether the device has the model."""
        variant = model.variants.get(self.device.kind)
        return (
            variant is not None
            and variant.name in self._models
            and variant.name not in self._unloadable
        )

    @property
    def free_slots(self) -> int:
        """How many jobs the device would take now."""
        return len(self._free)

    def ready_by(self) -> float:
        """When the device may be ready, in `time.monotonic()` seconds."""
        if self._state in ("gone", "unusable", "stopped"):
            return math.inf
        return self._again_at if self._state == "waiting" else time.monotonic()

    def give(self, job: Job) -> None:
        """Put a job into a free slot."""
        variant = job.model.variants[self.device.kind]
        self._send(self._models[variant.name], job, job.tensors[variant.layout])

    def status(self) -> DeviceStatus:
        """How the device is."""
        now = time.monotonic()
        medians = {name: timings.median_s for name, timings in self._timings.items()}
        return DeviceStatus(
            id=self.device.id,
            kind=self.device.kind,
            bus=self.device.bus,
            about=self.device.about,
            state=self._state,
            reason=self._reason,
            pid=self._link.process.pid if self._link else None,
            runtime=self._runtime,
            models=tuple(self._models),
            in_flight=len(self._runs),
            inferences=self._counts["inferences"],
            restarts=self._counts["restarts"],
            failures=dict(self._failures),
            median_s={name: seconds for name, seconds in medians.items() if seconds is not None},
            slowdown=self._slowdown,
            busy_s=self._busy_s,
            utilisation=self._busy.share(now),
            answered_s_ago=now - self._answered if self._answered else None,
            telemetry=self._telemetry,
            warnings=tuple(finding.says for finding in self._findings),
        )

    @property
    def _slowdown(self) -> float:
        return max((each.slowdown for each in self._timings.values()), default=1.0)

    # ------------------------------------------------------------ the device's thread

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                if self._hindered():
                    continue
                self._bring_up()
                self._serve()
            except DeviceDown as down:
                self._bring_down(down)
            except Exception as error:  # without this thread the device would be gone, unsaid
                log.exception("%s: a bug", self.device.id)
                self._bring_down(DeviceDown("bug", f"a bug in Reef: {error!r}"))
        with self._owner.lock:
            self._free.clear()
            self._state, self._reason = "stopped", "was stopped"
            for run in self._runs.values():
                if run.job:
                    run.job.fail(NoDevice("Reef is being stopped"))
            self._runs.clear()
        if self._link:
            self._discard(self._link, EXIT_GRACE_S)

    def _hindered(self) -> bool:
        """Wait for what stands in the way to go or to change; whether there was something."""
        self._wake.clear()
        if self._closing.is_set():  # it may have been told so before the wake was cleared
            return True
        with self._owner.lock:
            hindrance = self._hindrance
            if hindrance is None:
                return False
            self._state, self._reason = hindrance.state, hindrance.reason
            self._owner.dispatch()
        self._wake.wait()
        self._backoff = Backoff(self._backoff_max_s)  # it may well be mended
        self._down = None
        return True

    def _bring_up(self) -> None:
        with self._owner.lock:
            self._state, self._ready_at, self._stage = "starting", 0.0, ""
            self._reason = f"is being started again: {self._down}" if self._down else STARTING
            self._setup = self._make_setup()  # its node may have another name than last time
            self._unloadable = {}
        try:
            started = self._start_process(self._setup)
        except OSError as error:
            raise DeviceDown("spawn", f"its process can't be started: {error}") from error
        with self._owner.lock:
            self._link = started
        self._await_ready(started)
        for served in self._loaded:
            self._prove(started, served)
        now = time.monotonic()
        with self._owner.lock:
            self._state, self._reason, self._down = "ready", "", None
            self._ready_at = self._answered = now
            self._failed_in_a_row = 0
            self._free = list(range(self._setup.slots))
        names = ", ".join(served.variant.name for served in self._loaded)
        log.info("%s: ready: %s on %s", self.device.id, names, self._runtime)
        self._owner.became_ready()

    def _make_setup(self) -> Setup:
        device = self.device
        return Setup(
            device=device.id,
            kind=device.kind,
            threads=device.threads,
            lock=str(self._run_dir / f"{device.lock}.lock"),
            models=tuple(served.file for served in self._models.values()),
            bus=device.bus,
            node=device.node,
            library=self._library,
            performance=self._usb_performance,
        )

    def _await_ready(self, started: Link) -> None:
        limit_s = START_LIMIT_S[self.device.bus]
        deadline = time.monotonic() + limit_s
        while True:
            message = self._receive(started)
            if message is None:
                if time.monotonic() > deadline:
                    raise DeviceDown("start", self._why_slow(started, limit_s))
                continue
            match message["event"]:
                case "waiting":  # for as long as it takes: a second open could kill the first
                    deadline = time.monotonic() + limit_s
                    holder = message["holder"]
                    who = f"process {holder}" if holder else "another process"
                    reason = f"waits for {who}, which has the device"
                    if self._reason != reason:
                        log.warning("%s: %s", self.device.id, reason)
                    with self._owner.lock:
                        self._reason = reason
                case "loading":
                    self._stage = message["stage"]
                    limits = OPEN_LIMIT_S if self._stage == "device" else START_LIMIT_S
                    limit_s = limits[self.device.bus]
                    deadline = time.monotonic() + limit_s
                case "unloadable":
                    name = message["model"]
                    why = causes.why_left_out(name, message["reason"], self.device.bus)
                    log.warning("%s: %s", self.device.id, why)
                    with self._owner.lock:
                        self._unloadable[name] = why
                case "fatal":
                    raise DeviceDown("load", self._why_not_loaded(started, message))
                case "ready":
                    self._stage = "ready"
                    self._runtime = message["runtime"]
                    self._look_for_throttling(started)
                    return

    @property
    def _loaded(self) -> list[Served]:
        """The models that the process could load."""
        return [each for name, each in self._models.items() if name not in self._unloadable]

    def _look_for_throttling(self, started: Link) -> None:
        """libedgetpu tells at the opening what it makes of REEF_USB_PERFORMANCE=max."""
        why = causes.why_not_max(started.last_words())
        if why and not self._throttled:
            log.warning("%s %s", self.device.id, why)
        with self._owner.lock:
            says = f"{self.device.id} {why}"
            self._throttled = (Finding("usb_performance", says),) if why else ()
            self._findings = (*self._findings, *self._throttled)

    def _prove(self, started: Link, served: Served) -> None:
        """Infer twice, as the first is slower than all others, and check the answer."""
        timings = self._timings[served.variant.name]
        self._infer(started, served, START_LIMIT_S[self.device.bus])
        timings.record(self._infer(started, served, timings.hang_limit_s))
        self._check(served, self._outputs(started, 0, served))

    def _infer(self, started: Link, served: Served, limit_s: float) -> float:
        """Run the self-test's picture before there are jobs; returns the inference's seconds."""
        started.slots.put(0, served.file, served.selftest.tensor)
        self._invoke(started, 0, served)
        deadline = time.monotonic() + limit_s
        while (message := self._receive(started)) is None:
            if time.monotonic() > deadline:
                raise DeviceDown("hang", f"hung in its self-test for more than {limit_s:.1f} s")
        if message["event"] == "failed":
            raise DeviceDown("invoke", f"failed its self-test: {message['reason']}")
        return float(message["seconds"])

    def _serve(self) -> None:
        assert self._link  # noqa: S101 - for the type checker
        looked = time.monotonic()
        while not self._closing.is_set():
            message = self._receive(self._link)
            with self._owner.lock:
                if message:
                    self._settle(self._link, message)
                if self._hindrance and self._hindrance.urgent:
                    raise DeviceDown("gone", self._hindrance.reason)
                if message is None or time.monotonic() - looked > TICK_S:
                    looked = time.monotonic()
                    self._check_limit()
                    self._test_if_idle()

    def _settle(self, running: Link, message: Message) -> None:
        run = self._runs.pop(message["slot"])
        self._free.append(run.slot)
        self._answered = time.monotonic()
        self._turn_to_next()
        self._counts["inferences"] += 1
        if message["event"] == "done":
            self._failed_in_a_row = 0
            seconds = message["seconds"]
            self._timings[run.served.variant.name].record(seconds)
            self._busy.record(seconds, self._answered)
            self._busy_s += seconds
            outputs = self._outputs(running, run.slot, run.served)
            if run.job:
                answer = Inference(outputs, run.served.variant, self.device.id, seconds)
                run.job.succeed(answer)
            else:
                self._check(run.served, outputs)
            self._owner.refill()
            return
        self._failures["invoke"] += 1
        self._failed_in_a_row += 1
        log.warning("%s: an inference failed: %s", self.device.id, message["reason"])
        too_often = self._failed_in_a_row == FAILURES_IN_A_ROW
        if too_often:
            self._free.clear()  # or the job would come straight back
        if run.job:
            run.job.failed(self.device.id)
            self._owner.take_back([run.job])
        if too_often:
            raise DeviceDown("invoke", f"failed {FAILURES_IN_A_ROW} times: {message['reason']}")

    def _check_limit(self) -> None:
        now = time.monotonic()
        for run in self._runs.values():
            limit_s = self._timings[run.served.variant.name].hang_limit_s
            if run.began and now - run.began > limit_s:
                raise DeviceDown("hang", f"hung in an inference for more than {limit_s:.1f} s")

    def _test_if_idle(self) -> None:
        if self._free and not self._runs and self._answered + self._idle_test_s < time.monotonic():
            served = self._loaded[0]
            self._send(served, None, served.selftest.tensor)

    def _bring_down(self, down: DeviceDown) -> None:
        if self._closing.is_set():
            return
        if self._link and down.kind in ("hang", "invoke", "selftest"):
            words = self._link.last_words()
            down = DeviceDown(down.kind, causes.why_failed(str(down), words, self.device.bus))
        now = time.monotonic()
        with self._owner.lock:
            self._state, self._reason, self._down = "starting", str(down), down
            self._failures[down.kind] += 1
            gone = self._hindrance is not None and self._hindrance.urgent
            self._counts["restarts"] += not gone
            self._free.clear()
            jobs = [run.job for run in self._runs.values() if run.job]
            for run in self._runs.values():
                if run.job and run.began:  # what only lay ready is not to blame
                    run.job.failed(self.device.id)
            self._runs.clear()
            self._owner.take_back(jobs)
        if self._link:
            self._discard(self._link, 0.0)
        if gone:
            log.warning("%s: %s", self.device.id, down)
            return
        pause_s = self._backoff.pause_s(now - self._ready_at if self._ready_at else 0.0)
        when = f"in {pause_s:g} s" if pause_s else "at once"
        log.error("%s: %s; starting it again %s", self.device.id, down, when)
        with self._owner.lock:
            self._state, self._again_at = "waiting", time.monotonic() + pause_s
            self._reason = f"{down}; it is started again {when}"
            self._owner.dispatch()
        self._wake.wait(pause_s)

    def _discard(self, old: Link, grace_s: float) -> None:
        """End a process and wait until it is gone: only then is its device free."""
        old.end(grace_s)
        if not old.reaped(REAP_PATIENCE_S):
            stuck = (
                f"its killed process {old.process.pid} is stuck in the kernel; a card in trouble "
                "may take a minute, and is not opened again before"
            )
            log.error("%s: %s", self.device.id, stuck)
            with self._owner.lock:
                self._state, self._reason = "waiting", stuck
                self._again_at = time.monotonic() + STUCK_S
                self._owner.dispatch()
            while not old.reaped(REAP_PATIENCE_S) and not self._closing.is_set():
                pass
        with self._owner.lock:
            self._link = None
        old.close()

    # ------------------------------------------------------------ small things

    def _send(self, served: Served, job: Job | None, tensor: NDArray[np.uint8]) -> None:
        assert self._link  # noqa: S101 - for the type checker
        slot = self._free.pop()
        self._link.slots.put(slot, served.file, tensor)
        self._runs[slot] = _Run(slot, served, job)
        self._turn_to_next()
        self._invoke(self._link, slot, served)

    def _turn_to_next(self) -> None:
        """The device takes what was sent in its order, so many at a time."""
        now = time.monotonic()
        for run in islice(self._runs.values(), self._setup.lanes):
            run.began = run.began or now

    def _invoke(self, running: Link, slot: int, served: Served) -> None:
        with contextlib.suppress(LinkClosed):  # `_receive` meets it too, and knows what to do
            running.send({"slot": slot, "model": served.file.name})

    def _receive(self, started: Link) -> Message | None:
        try:
            message = started.receive(TICK_S)
        except LinkClosed as closed:
            status = started.process.returncode if started.reaped(1.0) else None
            words = started.last_words()
            ended = causes.why_ended(self._stage, status, words, self.device.bus)
            raise DeviceDown("died", ended) from closed
        if self._closing.is_set() and not self._ready_at:
            raise DeviceDown("stopped", "was stopped while it was being started")
        return message

    def _outputs(self, running: Link, slot: int, served: Served) -> Outputs:
        return Outputs.unpack(running.slots.take(slot, served.file), served.variant.detections)

    def _check(self, served: Served, outputs: Outputs) -> None:
        try:
            served.selftest.check(outputs)
        except SelfTestError as error:
            raise DeviceDown("selftest", str(error)) from error

    def _why_not_loaded(self, started: Link, message: Message) -> str:
        if message["stage"] == "lock":
            return str(message["reason"])
        started.reaped(1.0)  # then all of its words are here
        return causes.why_not_loaded(
            message["stage"],
            message["reason"],
            started.last_words(),
            self.device.bus,
        )

    def _why_slow(self, started: Link, limit_s: float) -> str:
        words = started.last_words()
        if self._stage == "device":
            return causes.why_slow(f"did not open within {limit_s:g} s", words, self.device.bus)
        return causes.why_failed(
            f"did not load its models within {limit_s:g} s", words, self.device.bus
        )
