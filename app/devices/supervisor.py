"""Keeps one device in service: starts its process, gives it jobs, ends it when it fails."""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.advice import HERE
from app.detection import Outputs
from app.devices import discovery, link, telemetry
from app.devices.condition import Condition
from app.devices.discovery import Device
from app.devices.job import Inference, Job
from app.devices.limits import (
    ABSENCE_S,
    GOOD_SERVICE_S,
    HELD_USUAL_S,
    START_USUAL_S,
    Backoff,
)
from app.devices.link import Link, Message, Setup
from app.devices.served import Served
from app.devices.session import DeviceDown, Run, Session
from app.devices.status import STARTING, DeviceStatus, State
from app.devices.telemetry import Finding, Sighting, Telemetry
from app.devices.timings import TICK_S, BusyShare, Timings
from app.errors import NoDevice
from app.logs import Repeats
from app.manifest import Kind
from app.models import Model
from app.selftest import SelfTestError, check_sane

log = logging.getLogger(__name__)

TEST_EVERY_S = 60.0  # the known picture comes by, whether the device is idle or not
REAP_PATIENCE_S = 5.0  # before the log says that a killed process is still there
ABSENT_S = 3.0  # a device that is not seen for so long is gone; a reset takes it away for less
UNKNOWN_MEDIAN_S = 0.01  # until the first inference is timed
DOUBT_S = 1.0  # idle for so long, a device is tried whatever its last times were
NEARLY_WELL = 1.3  # times its best latency; a device that was slow may be told slow again after it
HOT_FACTOR = 4  # a hot device counts as so many times slower than it is, and can cool down
HOPELESS_STARTS = 2  # failed in a row, and nobody waits for the next one
CRASHES_TO_BAR = 2  # in a row, at the start, by one model among others

BARRED = (
    f"{CRASHES_TO_BAR} processes in a row ended when they started with it; see the log, and "
    "restart Reef to try it again"
)
GONE = "is not there any more; plug it in again, or rescan its bus"
NO_MODEL = (
    "has no model: none of those served is compiled for the Edge TPU; "
    f"`{HERE.pull('ssdlite_mobiledet')}` fetches the default one"
)


class Owner(Protocol):
    """What a supervisor needs of the pool."""

    lock: threading.Lock

    def dispatch(self) -> None:
        """Hand waiting jobs to free slots, refuse those without hope; the lock is held."""

    def became_ready(self) -> None:
        """A device can take jobs; the lock is not held."""

    def take_back(self, jobs: list[Job]) -> None:
        """Put unfinished jobs back, in front; the lock is held."""


@dataclass(frozen=True)
class Hindrance:
    """Why a device is not to be started. If `urgent`, its process is ended too."""

    state: State
    reason: str
    urgent: bool = False


def start_link(setup: Setup) -> Link:
    """Start a real device process."""
    return Link(setup, link.command(), link.environment())


class Supervisor:
    """Drives one device from a thread of its own.

    The pool's lock guards `_condition`, `_session`, and what `status` shows.
    """

    def __init__(
        self,
        device: Device,
        models: Mapping[str, Served],
        owner: Owner,
        *,
        run_dir: Path,
        backoff_max_s: float,
        test_every_s: float,
        start_process: Callable[[Setup], Link],
        library: str,
        usb_performance: str,
        host_root: Path,
    ) -> None:
        """`models`: what the device serves, by the variant's name."""
        self.device = device
        self._models = models
        self._owner = owner
        self._run_dir = run_dir
        self._library = library
        self._usb_performance = usb_performance
        self._host_root = host_root
        self._test_every_s = test_every_s
        self._start_process = start_process
        self._condition = Condition.starting(STARTING, time.monotonic(), START_USUAL_S[device.bus])
        self._session: Session | None = None
        self._refused: Mapping[str, str] = {}
        self._crashes: Counter[str] = Counter()  # at the start, in a row, by model
        # How it did until now.
        self._timings = {name: Timings(device.bus) for name in models}
        self._references: dict[str, Outputs] = {}  # what the known pictures gave at first
        self._busy = BusyShare()
        self._busy_s = 0.0
        self._runtime = ""
        self._counts: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._answered = self._tested = 0.0
        self._tests = 0
        # How it looks from outside.
        self._telemetry = Telemetry()
        self._findings: tuple[Finding, ...] = ()
        self._throttled: tuple[Finding, ...] = ()
        self._slowness_logged = False
        self._hindrance: Hindrance | None = None
        self._absent_since: float | None = None
        # When it is started again.
        self._backoff = Backoff(backoff_max_s)
        self._down: DeviceDown | None = None  # why it is not ready, until it is again
        self._failed_starts = 0  # in a row, that did not come as far as the self-test
        self._ready_at = 0.0
        self._again_at = 0.0
        self._repeats = Repeats()
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
        if self._absent_since and time.monotonic() - self._absent_since >= ABSENCE_S:
            self._begin_anew()
        self._absent_since = None
        self.device = sighting.device
        self._telemetry = sighting.telemetry
        self._findings = sighting.findings + self._throttled
        if slow := telemetry.slowed(self.device, self._slowdown):
            self._findings += (slow,)
            if not self._slowness_logged:
                log.warning("%s", slow.says)
            self._slowness_logged = True
        elif self._slowdown < NEARLY_WELL:
            self._slowness_logged = False
        problem = sighting.device.problem or ("" if self._models else NO_MODEL)
        if unneeded:
            self._hinder(Hindrance("unusable", unneeded, urgent=True))
        elif sighting.off_the_bus:  # not only useless: it must not be open when it is removed
            self._hinder(Hindrance("unusable", telemetry.LOST, urgent=True))
        elif problem:
            self._hinder(Hindrance("unusable", problem))
        else:
            self._hinder(None)
        return was_gone

    def _miss(self) -> None:
        now = time.monotonic()
        if self._absent_since is None:
            self._absent_since = now
        if self._session and self._session.opening:  # its firmware may be being loaded
            return
        if self._session is None or now - self._absent_since >= ABSENT_S:
            self._hinder(Hindrance("gone", GONE, urgent=True))

    def _hinder(self, hindrance: Hindrance | None) -> None:
        if hindrance == self._hindrance:
            return
        if self._hindrance and self._hindrance.state != "gone":
            self._begin_anew()
        self._hindrance = hindrance
        self._wake.set()

    def _begin_anew(self) -> None:
        """Somebody saw to it: what it failed of before may well be mended."""
        self._backoff.begin_anew()
        self._again_at = 0.0
        self._down, self._failed_starts = None, 0

    @property
    def absent(self) -> bool:
        """Whether the device was not seen when it was looked for last."""
        return self._absent_since is not None

    def gone_for_s(self, now: float) -> float:
        """How long it has been gone, without any process that may still have it; else 0."""
        gone = self._condition.state == "gone" and self._session is None
        return now - self._absent_since if gone and self._absent_since else 0.0

    @property
    def has_process(self) -> bool:
        """Whether a process may still have the device open."""
        return self._session is not None

    # ------------------------------------------------------------ what a dispatch asks

    @property
    def id(self) -> str:
        """The device's identity."""
        return self.device.id

    @property
    def kind(self) -> Kind:
        """The device's kind."""
        return self.device.kind

    @property
    def usable(self) -> bool:
        """Whether it answers."""
        return self._condition.state == "ready"

    @property
    def free_slots(self) -> int:
        """How many jobs the device would take now."""
        return len(self._session.free) if self._session else 0

    @property
    def loaded(self) -> str:
        """The model whose parameters the chip will hold once it has done all it was given."""
        return self._session.loaded if self._session else ""

    def expected_s(self, model: Model, ahead: int) -> float:
        """How long a job would take from now, behind its own jobs and `ahead` more of them.

        A device that was slow and therefore is left alone may be well again, which only an
        inference shows: once a second it is given the benefit of the doubt.
        """
        busy_with = len(self._session.runs) if self._session else 0
        one = self._timings[self._variant(model)].recent_s or UNKNOWN_MEDIAN_S
        if self._telemetry.throttle_level:
            one *= HOT_FACTOR
        elif not busy_with and time.monotonic() - self._answered > DOUBT_S:
            one = 0.0
        return (busy_with + ahead + 1) * one

    def reload_s(self, model: Model) -> float:
        """What a change to this model costs; the CPU has room for all."""
        if self.device.kind == "cpu":
            return 0.0
        return self._timings[self._variant(model)].reload_s

    def ready_by(self) -> float:
        """When the device may be ready, in `time.monotonic()` seconds."""
        return self._condition.ready_by(time.monotonic())

    def has(self, model: Model) -> bool:
        """Whether the device is of a kind that the model has a variant for."""
        variant = model.variants.get(self.device.kind)
        return variant is not None and variant.name in self._models

    def why_refused(self, model: Model) -> str:
        """That the device does not serve a model that it has, and why; else empty."""
        variant = model.variants.get(self.device.kind)
        why = self._refused.get(variant.name, "") if variant else ""
        return f"does not serve {model.name}: {why}" if why else ""

    def _variant(self, model: Model) -> str:
        return model.variants[self.device.kind].name

    def give(self, job: Job) -> None:
        """Put a job into a free slot."""
        assert self._session  # noqa: S101 - it has free slots
        variant = job.model.variants[self.device.kind]
        self._session.send(self._models[variant.name], job, job.tensors[variant.layout])

    def status(self) -> DeviceStatus:
        """How the device is."""
        now = time.monotonic()
        medians = {name: timings.median_s for name, timings in self._timings.items()}
        session = self._session
        return DeviceStatus(
            id=self.device.id,
            kind=self.device.kind,
            bus=self.device.bus,
            about=self.device.about,
            state=self._condition.state,
            reason=self._condition.reason,
            pid=session.link.process.pid if session else None,
            runtime=self._runtime,
            models=tuple(name for name in self._models if name not in self._refused),
            refused=dict(self._refused),
            in_flight=len(session.runs) if session else 0,
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
        return max((timings.slowdown for timings in self._timings.values()), default=1.0)

    # ------------------------------------------------------------ the device's thread

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                if self._hindered() or self._resting():
                    continue
                self._serve(self._bring_up())
            except DeviceDown as down:
                self._bring_down(down)
            except Exception as error:  # without this thread the device would be gone, unsaid
                log.exception("%s: a bug", self.device.id)
                self._bring_down(DeviceDown("bug", f"a bug in Reef: {error!r}"))
        with self._owner.lock:
            self._condition = Condition.stopped()
            for run in self._session.withdraw() if self._session else ():
                if run.job:
                    run.job.fail(NoDevice("Reef is being stopped"))
        if self._session:
            self._session.end()
            self._await_end(self._session)

    def _become(self, condition: Condition) -> None:
        """The lock is not held."""
        with self._owner.lock:
            self._condition = condition
            self._owner.dispatch()

    def _hindered(self) -> bool:
        """Wait for what stands in the way to go or to change; whether there was something."""
        self._wake.clear()
        if self._closing.is_set():  # it may have been told so before the wake was cleared
            return True
        hindrance = self._hindrance
        if hindrance is None:
            return False
        if hindrance.state == "gone":
            log.warning("%s: %s", self.device.id, hindrance.reason)
        self._become(Condition.hindered(hindrance.state, hindrance.reason))
        self._wake.wait()
        return True

    def _resting(self) -> bool:
        """Leave the device alone for as long as its failures ask for; whether it had to be."""
        pause_s = self._again_at - time.monotonic()
        if pause_s <= 0:
            return False
        reason = f"{self._down}; it is started again in {pause_s:.0f} s"
        self._become(Condition.resting(reason, math.inf if self._hopeless else self._again_at))
        self._wake.wait(pause_s)
        return True

    @property
    def _hopeless(self) -> bool:
        """Whether it can't even be opened, again and again."""
        return self._failed_starts >= HOPELESS_STARTS

    def _bring_up(self) -> Session:
        if not discovery.on_bus(self.device, self._host_root):  # the next look tells for how long
            with self._owner.lock:
                self._absent_since = self._absent_since or time.monotonic()
                self._hindrance = Hindrance("gone", GONE, urgent=True)
            raise DeviceDown("gone", GONE)
        now = time.monotonic()
        reason = f"is being started again: {self._down}" if self._down else STARTING
        models, barred = self._worth_loading()
        setup = self._make_setup(models)  # its node may have another name than last time
        with self._owner.lock:
            self._ready_at = 0.0
            usual_s = 0.0 if self._hopeless else START_USUAL_S[self.device.bus]
            self._condition = Condition.starting(reason, now, usual_s)
            for timings in self._timings.values():
                timings.begin_anew()
        try:
            process = self._start_process(setup)
        except OSError as error:
            raise DeviceDown("spawn", f"its process can't be started: {error}") from error
        session = Session(
            self.device,
            process,
            setup,
            models,
            self._timings,
            self._references,
            closing=self._closing,
            tick=self._while_starting,
        )
        session.refused.update(barred)
        with self._owner.lock:
            self._session = session
        session.load(self._wait_for_another)
        session.prove()
        now = time.monotonic()
        with self._owner.lock:
            self._down, self._failed_starts = None, 0
            self._ready_at = self._answered = self._tested = now
            self._runtime = session.runtime
            self._refused = session.refused
            self._condition = Condition.ready(now)
            says = f"{self.device.id} {session.throttled}"
            throttled = (Finding("usb_performance", says),) if session.throttled else ()
            self._findings = (*self._findings, *throttled)
            session.admit()
        served = [name for name in self._models if name not in session.refused]
        log.info("%s: ready: %s on %s", self.device.id, ", ".join(served), session.runtime)
        if throttled and not self._throttled:
            log.warning("%s", says)
        self._throttled = throttled
        for name, why in session.refused.items():
            log.error("%s: does not serve %s: %s", self.device.id, name, why)
        self._owner.became_ready()
        return session

    def _worth_loading(self) -> tuple[dict[str, Served], dict[str, str]]:
        """The models to load, and why not the others: they ended the process again and again."""
        barred = {name for name, times in self._crashes.items() if times >= CRASHES_TO_BAR}
        if barred >= set(self._models):
            self._crashes.clear()
            barred = set()
        models = {name: served for name, served in self._models.items() if name not in barred}
        return models, dict.fromkeys(sorted(barred), BARRED)

    def _make_setup(self, models: Mapping[str, Served]) -> Setup:
        device = self.device
        return Setup(
            device=device.id,
            kind=device.kind,
            threads=device.threads,
            lock=str(self._run_dir / f"{device.lock}.lock"),
            models=tuple(served.file for served in models.values()),
            bus=device.bus,
            node=device.node,
            library=self._library,
            performance=self._usb_performance,
            root=str(self._host_root),
        )

    def _while_starting(self) -> None:
        """Nobody waits for a device that is being started for longer than usual."""
        if self._hindrance and self._hindrance.urgent:
            raise DeviceDown("gone", self._hindrance.reason)
        if math.isinf(self.ready_by()):
            with self._owner.lock:
                self._owner.dispatch()

    def _wait_for_another(self, reason: str) -> None:
        """Another process has the device."""
        if self._condition.reason == reason:
            return
        log.warning("%s: %s", self.device.id, reason)
        with self._owner.lock:
            self._condition = Condition.starting(reason, time.monotonic(), HELD_USUAL_S)

    def _serve(self, session: Session) -> None:
        looked = time.monotonic()
        while not self._closing.is_set():
            message = session.receive()
            with self._owner.lock:
                if message:
                    self._settle(session, message)
                if self._hindrance and self._hindrance.urgent:
                    raise DeviceDown("gone", self._hindrance.reason)
                now = time.monotonic()
                if message is None or now - looked > TICK_S:
                    looked = now
                    session.check_limits()
                    self._test_if_due(session)

    def _settle(self, session: Session, message: Message) -> None:
        run = session.settle(message["slot"])
        self._answered = time.monotonic()
        self._counts["inferences"] += 1
        problem = self._answer(session, run, message)
        session.failures.record(failed=bool(problem))
        if not problem:
            self._test_if_due(session)  # before the next job takes the slot
            self._owner.dispatch()
            return
        self._failures["invoke"] += 1
        held = self._repeats.pass_on("an inference failed")
        if held is not None:
            more = f" (and {held} more before it)" if held else ""
            log.warning("%s: an inference failed: %s%s", self.device.id, problem, more)
        too_often = session.failures.too_often
        if too_often:
            session.free.clear()  # or the job would come straight back
        if run.job:
            run.job.failed(self.device.id)
            self._owner.take_back([run.job])
        if too_often:
            raise DeviceDown("invoke", f"{too_often}: {problem}")

    def _answer(self, session: Session, run: Run, message: Message) -> str:
        """Hand on what the device answered; what is wrong with it, if anything is."""
        if message["event"] == "failed":
            return str(message["reason"])
        seconds = float(message["seconds"])
        self._busy.record(seconds, self._answered)
        self._busy_s += seconds
        outputs = session.outputs(run.slot, run.served)
        if run.job is None:
            self._check(session, run)
        else:
            try:
                check_sane(outputs)
            except SelfTestError as error:
                return str(error)
            variant = run.served.variant
            run.job.succeed(Inference(outputs, variant, self.device.id, seconds))
        self._timings[run.served.file.name].record(seconds, reloaded=run.reloads)
        return ""

    def _test_if_due(self, session: Session) -> None:
        """The known picture comes by under load too: a device may answer nonsense quickly."""
        now = time.monotonic()
        if session.free and now - self._tested >= self._test_every_s:
            self._tested = now
            names = session.testable
            served = self._models[names[self._tests % len(names)]]
            self._tests += 1
            session.send(served, None, served.selftest.tensor)

    def _bring_down(self, down: DeviceDown) -> None:
        """Take the jobs back from a process that can't do them any more, and end it."""
        if self._closing.is_set():
            return
        now = time.monotonic()
        gone = down.kind == "gone"
        session = self._session
        with self._owner.lock:
            self._condition = Condition.starting(str(down), now, START_USUAL_S[self.device.bus])
            self._failures[down.kind] += 1
            self._counts["restarts"] += not gone
            runs = session.withdraw() if session else []
            for run in runs:
                if run.job and run.began is not None:  # what only lay ready is not to blame
                    run.job.failed(self.device.id)
            self._owner.take_back([run.job for run in runs if run.job])
        served_s = now - self._ready_at if self._ready_at else 0.0
        if down.kind == "selftest":
            served_s = 0.0  # nobody knows for how long it had been giving wrong answers
        if down.kind in ("spawn", "load", "start"):
            self._failed_starts += 1
        self._blame(down, served_s)
        if session:
            session.end(down)
            down = session.explain(down)
        self._down = down
        pause_s = 0.0 if gone else self._backoff.pause_s(served_s)
        when = f"in {pause_s:g} s" if pause_s else "at once"
        if not gone:
            log.error("%s: %s; starting it again %s", self.device.id, down, when)
        if session:
            self._await_end(session)
        self._again_at = time.monotonic() + pause_s

    def _blame(self, down: DeviceDown, served_s: float) -> None:
        """A model that ends the process at each start keeps no other from being served."""
        if served_s >= GOOD_SERVICE_S:
            self._crashes.clear()
        elif down.model and not served_s:
            self._crashes[down.model] += 1

    def _await_end(self, session: Session) -> None:
        """Wait until a process is gone: only then is its device free."""
        process = session.link
        if not process.reaped(REAP_PATIENCE_S):
            stuck = (
                f"its killed process {process.process.pid} is stuck in the kernel; a card in "
                "trouble may take a minute, and is not opened again before"
            )
            log.error("%s: %s", self.device.id, stuck)
            self._become(Condition.stuck(f"{self._down}; {stuck}" if self._down else stuck))
            while not process.reaped(REAP_PATIENCE_S) and not self._closing.is_set():
                pass
        with self._owner.lock:
            self._session = None
        process.close()

    def _check(self, session: Session, run: Run) -> None:
        """Judge the answer for the known picture; a model that was refused may be well now."""
        name = run.served.file.name
        try:
            session.check(run)
        except SelfTestError as error:
            if name in session.refused:
                return
            raise DeviceDown("selftest", str(error)) from error
        if session.refused.pop(name, ""):
            log.info("%s: serves %s again", self.device.id, name)
