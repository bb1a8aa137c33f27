"""Keeps one device in service: starts its process, gives it jobs, ends it when it fails."""

import contextlib
import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from app.detection import Outputs
from app.devices import link
from app.devices.discovery import Device
from app.devices.job import Inference, Job
from app.devices.limits import START_LIMIT_S, Backoff, Timings
from app.devices.link import Link, LinkClosed, Message, ModelFile, Setup
from app.errors import NoDevice
from app.models import Kind, Model, Variant
from app.selftest import SelfTest, SelfTestError

log = logging.getLogger(__name__)

TICK_S = 0.25  # how often limits are looked at
IDLE_TEST_S = 60.0  # an idle device is tested again after so long
FAILURES_IN_A_ROW = 3  # so many failed inferences end the process
EXIT_GRACE_S = 2.0  # for a process whose socket was closed
REAP_PATIENCE_S = 5.0  # before the log says that a killed process is still there

STARTING = "is being started"

State = Literal["starting", "ready", "waiting", "stopped"]


class DeviceDown(Exception):
    """The device can't go on. `kind` is one word for the metrics, the message is for people."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Owner(Protocol):
    """What a supervisor needs of the pool."""

    lock: threading.Lock

    def dispatch(self) -> None:
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
class DeviceStatus:
    """A device as `/devices`, `/ready` and `/metrics` show it; durations in seconds."""

    id: str
    kind: Kind
    about: str
    state: State
    reason: str
    pid: int | None
    runtime: str
    models: tuple[str, ...]
    in_flight: int
    inferences: int
    restarts: int
    failures: Mapping[str, int]
    median_s: Mapping[str, float]
    answered_s_ago: float | None


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
    ) -> None:
        """`models`: what the device serves, by the variant's name."""
        self.device = device
        self._models = models
        self._owner = owner
        self._setup = Setup(
            device=device.id,
            kind=device.kind,
            threads=device.threads,
            lock=str(run_dir / f"{device.lock}.lock"),
            models=tuple(served.file for served in models.values()),
        )
        self._idle_test_s = idle_test_s
        self._start_process = start_process
        self._backoff = Backoff(backoff_max_s)
        self._timings = {name: Timings(device.kind) for name in models}
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
        self._thread = threading.Thread(target=self._run, name=device.id, daemon=True)

    # ------------------------------------------------------------ what the pool calls

    def start(self) -> None:
        """Begin; `status` tells when the device is ready."""
        self._thread.start()

    def close(self) -> None:
        """Ask the device to end; `join` waits for it."""
        self._closing.set()

    def join(self, timeout_s: float) -> None:
        """Wait until the device has ended."""
        self._thread.join(timeout_s)

    def can_run(self, model: Model) -> bool:
        """Whether the device has the model."""
        variant = model.variants.get(self.device.kind)
        return variant is not None and variant.name in self._models

    @property
    def free_slots(self) -> int:
        """How many jobs the device would take now."""
        return len(self._free)

    def ready_by(self) -> float:
        """When the device may be ready, in `time.monotonic()` seconds."""
        return self._again_at if self._state == "waiting" else time.monotonic()

    def give(self, job: Job) -> None:
        """Put a job into a free slot."""
        variant = job.model.variants[self.device.kind]
        self._send(self._models[variant.name], job, job.tensors[variant.layout])

    def status(self) -> DeviceStatus:
        """How the device is."""
        medians = {name: timings.median_s for name, timings in self._timings.items()}
        return DeviceStatus(
            id=self.device.id,
            kind=self.device.kind,
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
            answered_s_ago=time.monotonic() - self._answered if self._answered else None,
        )

    # ------------------------------------------------------------ the device's thread

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
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

    def _bring_up(self) -> None:
        with self._owner.lock:
            self._state, self._ready_at = "starting", 0.0
            self._reason = f"is being started again: {self._down}" if self._down else STARTING
        try:
            self._link = self._start_process(self._setup)
        except OSError as error:
            raise DeviceDown("spawn", f"its process can't be started: {error}") from error
        self._await_ready(self._link)
        for served in self._models.values():
            self._prove(self._link, served)
        now = time.monotonic()
        with self._owner.lock:
            self._state, self._reason, self._down = "ready", "", None
            self._ready_at = self._answered = now
            self._failed_in_a_row = 0
            self._free = list(range(self._setup.slots))
        log.info("%s: ready: %s on %s", self.device.id, ", ".join(self._models), self._runtime)
        self._owner.became_ready()

    def _await_ready(self, started: Link) -> None:
        limit_s = START_LIMIT_S[self.device.kind]
        deadline = time.monotonic() + limit_s
        while True:
            message = self._receive(started)
            if message is None:
                if time.monotonic() > deadline:
                    raise DeviceDown("start", f"did not load its models within {limit_s:g} s")
                continue
            match message["event"]:
                case "waiting":  # for as long as it takes: a second open could kill the first
                    deadline = time.monotonic() + limit_s
                    reason = f"waits for process {message['holder']}, which has the device"
                    if self._reason != reason:
                        log.warning("%s: %s", self.device.id, reason)
                    with self._owner.lock:
                        self._reason = reason
                case "loading":
                    deadline = time.monotonic() + limit_s
                case "fatal":
                    raise DeviceDown("load", message["reason"])
                case "ready":
                    self._runtime = message["runtime"]
                    return

    def _prove(self, started: Link, served: Served) -> None:
        """Infer twice, as the first is slower than all others, and check the answer."""
        timings = self._timings[served.variant.name]
        self._infer(started, served, START_LIMIT_S[self.device.kind])
        timings.record(self._infer(started, served, timings.hang_limit_s))
        self._check(served, self._outputs(started, 0, served))

    def _infer(self, started: Link, served: Served, limit_s: float) -> float:
        """Run the self-test's picture before there are jobs; returns the inference's seconds."""
        started.slots.tensor(0, served.file)[...] = served.selftest.tensor
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
        while not self._closing.is_set():
            message = self._receive(self._link)
            with self._owner.lock:
                if message:
                    self._settle(self._link, message)
                else:
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
            outputs = self._outputs(running, run.slot, run.served)
            if run.job:
                answer = Inference(outputs, run.served.variant, self.device.id, seconds)
                run.job.succeed(answer)
            else:
                self._check(run.served, outputs)
            self._owner.dispatch()
            return
        self._failures["invoke"] += 1
        self._failed_in_a_row += 1
        log.warning("%s: an inference failed: %s", self.device.id, message["reason"])
        too_often = self._failed_in_a_row == FAILURES_IN_A_ROW
        if too_often:
            self._free.clear()  # or the job would come straight back
        if run.job:
            run.job.failures += 1
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
            served = next(iter(self._models.values()))
            self._send(served, None, served.selftest.tensor)

    def _bring_down(self, down: DeviceDown) -> None:
        if self._closing.is_set():
            return
        now = time.monotonic()
        with self._owner.lock:
            self._state, self._reason, self._down = "starting", str(down), down
            self._failures[down.kind] += 1
            self._counts["restarts"] += 1
            self._free.clear()
            jobs = [run.job for run in self._runs.values() if run.job]
            for run in self._runs.values():
                if run.job and run.began:  # what only lay ready is not to blame
                    run.job.failures += 1
            self._runs.clear()
            self._owner.take_back(jobs)
        if self._link:
            self._discard(self._link, 0.0)
        pause_s = self._backoff.pause_s(now - self._ready_at if self._ready_at else 0.0)
        when = f"in {pause_s:g} s" if pause_s else "at once"
        log.error("%s: %s; starting it again %s", self.device.id, down, when)
        with self._owner.lock:
            self._state, self._again_at = "waiting", time.monotonic() + pause_s
            self._reason = f"{down}; it is started again {when}"
            self._owner.dispatch()
        self._closing.wait(pause_s)

    def _discard(self, old: Link, grace_s: float) -> None:
        """End a process and wait until it is gone: only then is its device free."""
        old.end(grace_s)
        if not old.reaped(REAP_PATIENCE_S):
            log.error(
                "%s: process %d is stuck in the kernel; waiting", self.device.id, old.process.pid
            )
            while not old.reaped(REAP_PATIENCE_S) and not self._closing.is_set():
                pass
        with self._owner.lock:
            self._link = None
        old.close()

    # ------------------------------------------------------------ small things

    def _send(self, served: Served, job: Job | None, tensor: NDArray[np.uint8]) -> None:
        assert self._link  # noqa: S101 - for the type checker
        slot = self._free.pop()
        self._link.slots.tensor(slot, served.file)[...] = tensor
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
            raise DeviceDown("died", _obituary(started)) from closed
        if self._closing.is_set() and not self._ready_at:
            raise DeviceDown("stopped", "was stopped while it was being started")
        return message

    def _outputs(self, running: Link, slot: int, served: Served) -> Outputs:
        values = running.slots.outputs(slot, served.file).copy()
        return Outputs.unpack(values, served.variant.detections)

    def _check(self, served: Served, outputs: Outputs) -> None:
        try:
            served.selftest.check(outputs)
        except SelfTestError as error:
            raise DeviceDown("selftest", str(error)) from error


def _obituary(ended: Link) -> str:
    """How a process ended, and its last words, where libraries tell the cause."""
    status = ended.process.returncode if ended.reaped(1.0) else None
    if status is None:
        how = "closed its socket"
    elif status < 0:
        known = {each.value: each.name for each in signal.Signals}
        how = f"was killed by {known.get(-status, f'signal {-status}')}"
    else:
        how = f"ended with status {status}"
    said = " | ".join(ended.last_words()[-3:])
    return f"its process {how}" + (f": {said}" if said else "")
