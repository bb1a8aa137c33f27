"""The life of one device process: it loads, proves itself, infers, and ends.

A supervisor drives it from its own thread; from `admit` on, the pool's lock guards `free` and
`runs`.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from app.detection import Outputs
from app.devices import causes
from app.devices.causes import Stage
from app.devices.discovery import Device
from app.devices.job import Job
from app.devices.limits import OPEN_LIMIT_S, START_LIMIT_S, FailureShare
from app.devices.link import Link, LinkClosed, Message, Setup
from app.devices.served import Served
from app.devices.timings import TICK_S, RunningTime, Timings
from app.selftest import SelfTestError, check_same

EXIT_GRACE_S = 2.0  # from the end of a process's socket to its death, where all is well


class DeviceDown(Exception):
    """The device can't go on. `kind` is one word for the metrics, the message is for people;
    `model` is the one that it was busy with, where that may be to blame."""

    def __init__(self, kind: str, message: str, model: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.model = model


@dataclass
class Run:
    """What a slot is busy with; without a job it is a test of the device."""

    slot: int
    served: Served
    job: Job | None
    reloads: bool
    """Whether it comes after an inference of another model."""
    began: float | None = None
    """When the device turned to it, of `RunningTime`; None while it waits for one before it."""


class Session:
    """One process, with the models that it serves."""

    def __init__(
        self,
        device: Device,
        link: Link,
        setup: Setup,
        models: Mapping[str, Served],
        timings: Mapping[str, Timings],
        references: MutableMapping[str, Outputs],
        *,
        closing: threading.Event,
        tick: Callable[[], None],
    ) -> None:
        """`models`, `timings` and `references` by the variant's name.

        `references`: what each known picture gave when the device was first proven; those of a
        model that has none are added. `closing`: nobody needs the process any more. `tick` is
        called now and then until there are jobs, and may raise DeviceDown.
        """
        self.link = link
        self.refused: dict[str, str] = {}
        """Why some models are not served, by the variant's name."""
        self.testable: list[str] = []
        """The models that the process has, served or not."""
        self.failures = FailureShare()
        self.free: list[int] = []
        self.runs: dict[int, Run] = {}  # by slot, in the order of their sending
        self.runtime = ""
        self.throttled = ""
        """Why a stick runs slower than it was asked to; else empty."""
        self.loaded = ""
        """The model whose parameters the chip holds after the last run."""
        self._models = models
        self._setup = setup
        self._timings = timings
        self._closing = closing
        self._device = device
        self._stage: Stage = ""
        self._busy = ""  # the model that the process loads or proves
        self._clock = RunningTime()
        self._references = references
        self._tick = tick

    @property
    def opening(self) -> bool:
        """Whether the device is not open yet: a stick that gets its firmware leaves the bus."""
        return self._stage in ("", "lock", "library", "device")

    # ------------------------------------------------------------ before there are jobs

    def load(self, wait: Callable[[str], None]) -> None:
        """Wait until the process has its models; those that it can't load are refused.

        `wait` is told why it waits. Raises DeviceDown.
        """
        bus = self._device.bus
        limit_s = START_LIMIT_S[bus]
        since = self._clock.look(time.monotonic())  # the step that it is at
        while True:
            message = self._receive()
            now = self._clock.at(time.monotonic())
            if message is None:
                if now > since + limit_s:
                    what = "open" if self._stage == "device" else "load its models"
                    raise DeviceDown("start", f"did not {what} within {limit_s:g} s", self._busy)
                continue
            since = now
            match message["event"]:
                case "waiting":  # for as long as it takes: a second open could kill the first
                    holder = message["holder"]
                    who = f"process {holder}" if holder.isdigit() else holder or "another process"
                    wait(f"waits for {who}, which has the device")
                case "loading":
                    self._stage, self._busy = message["stage"], message["model"]
                    limit_s = (OPEN_LIMIT_S if self._stage == "device" else START_LIMIT_S)[bus]
                case "unloadable":
                    name = message["model"]
                    self.refused[name] = causes.why_left_out(message["reason"], bus)
                case "fatal":
                    self.link.reaped(EXIT_GRACE_S)  # then all of its words are here
                    stage, reason = message["stage"], message["reason"]
                    words = self.link.last_words()
                    why = causes.why_not_loaded(stage, reason, words, bus)
                    raise DeviceDown("load", reason if stage == "lock" else why)
                case "ready":
                    self._stage, self._busy = "ready", ""
                    self.runtime = message["runtime"]
                    self.throttled = causes.why_not_max(self.link.last_words())
                    return

    def prove(self) -> None:
        """Have every model that was loaded infer its known picture.

        The first must pass, which tells that the device is well; another one that fails is
        refused. Raises DeviceDown.
        """
        self.testable = [name for name in self._models if name not in self.refused]
        if not self.testable:
            raise DeviceDown("load", "; ".join(self.refused.values()))
        for name in self.testable:
            try:
                self._prove(self._models[name])
            except DeviceDown as down:
                if name == self.testable[0] or down.kind not in ("invoke", "selftest"):
                    raise
                self.refused[name] = str(down)

    def _prove(self, served: Served) -> None:
        """Infer twice, as the first is slower than all others, and check the answer.

        An Edge TPU must give it again after another picture: a late answer is that one's.
        """
        name, picture = served.file.name, served.selftest.tensor
        timings = self._timings[name]
        self._infer(served, picture)
        timings.record(self._infer(served, picture))
        outputs = self.outputs(0, served)
        try:
            served.selftest.check(outputs)
            if self._on_edgetpu:
                reference = self._references.setdefault(name, outputs)
                check_same(outputs, reference)
                self._infer(served, ~picture)
                self._infer(served, picture)
                check_same(self.outputs(0, served), reference)
        except SelfTestError as error:
            raise DeviceDown("selftest", str(error), name) from error

    def _infer(self, served: Served, tensor: NDArray[np.uint8]) -> float:
        """Run one picture before there are jobs; returns the inference's seconds."""
        name = served.file.name
        self._busy = name
        self.link.slots.put(0, served.file, tensor)
        self._invoke(0, served)
        limit_s = START_LIMIT_S[self._device.bus]
        deadline = self._clock.look(time.monotonic()) + limit_s
        while (message := self._receive()) is None:
            if self._clock.at(time.monotonic()) > deadline:
                hung = f"hung in its self-test for more than {limit_s:.1f} s"
                raise DeviceDown("hang", hung, name)
        self.loaded = name
        if message["event"] == "failed":
            raise DeviceDown("invoke", f"failed its self-test: {message['reason']}", name)
        return float(message["seconds"])

    # ------------------------------------------------------------ while there are; under the lock

    def admit(self) -> None:
        """From now on it takes jobs."""
        self.free = list(range(self._setup.slots))
        self._busy = ""

    def withdraw(self) -> list[Run]:
        """It takes no more jobs; returns what it was busy with."""
        runs = list(self.runs.values())
        self.free.clear()
        self.runs.clear()
        return runs

    def receive(self) -> Message | None:
        """The next message, or None when there is none within TICK_S; without the lock.

        Raises DeviceDown when the process has ended or is about to.
        """
        try:
            message = self.link.receive(TICK_S)
        except LinkClosed as closed:
            raise DeviceDown("died", "its process has ended", self._busy) from closed
        self._clock.look(time.monotonic())
        return message

    def send(self, served: Served, job: Job | None, tensor: NDArray[np.uint8]) -> None:
        """Put a tensor, uint8 (1, height, width, 3) RGB, into a free slot."""
        slot = self.free.pop()
        name = served.file.name
        reloads = self._on_edgetpu and self.loaded != name
        self.loaded = name
        self.link.slots.put(slot, served.file, tensor)
        self.runs[slot] = Run(slot, served, job, reloads)
        self._turn_to_next()
        self._invoke(slot, served)

    def settle(self, slot: int) -> Run:
        """A run has ended: its slot is free."""
        run = self.runs.pop(slot)
        self.free.append(slot)
        self._turn_to_next()
        return run

    def outputs(self, slot: int, served: Served) -> Outputs:
        """A slot's outputs."""
        values = self.link.slots.take(slot, served.file)
        return Outputs.unpack(values, served.variant.detections)

    def check(self, run: Run) -> None:
        """Raise SelfTestError unless a run's outputs are right for the known picture."""
        outputs = self.outputs(run.slot, run.served)
        run.served.selftest.check(outputs)
        if self._on_edgetpu:
            check_same(outputs, self._references.setdefault(run.served.file.name, outputs))

    def check_limits(self) -> None:
        """Raise DeviceDown if an inference takes too long."""
        now = self._clock.at(time.monotonic())
        for run in self.runs.values():
            name = run.served.file.name
            limit_s = self._timings[name].hang_limit_s(reloads=run.reloads)
            if run.began is not None and now - run.began > limit_s:
                hung = f"hung in an inference for more than {limit_s:.1f} s"
                raise DeviceDown("hang", hung, name)

    # ------------------------------------------------------------ its end

    def end(self, down: DeviceDown | None = None) -> None:
        """End the process; `link.reaped` tells when it is gone.

        One that is asked to end, or is ending by itself, has a moment for that: how it ended, and
        its last words, tell why.
        """
        self.link.end(EXIT_GRACE_S if down is None or down.kind == "died" else 0.0)

    def explain(self, down: DeviceDown) -> DeviceDown:
        """The same failure with what the process's end tells of it."""
        words, bus = self.link.last_words(), self._device.bus
        match down.kind:
            case "died":
                why = causes.why_ended(self._stage, self.link.process.poll(), words, bus)
            case "start" if self._stage == "device":
                why = causes.why_slow(str(down), words, bus)
            case "start" | "hang" | "invoke" | "selftest":
                why = causes.why_failed(str(down), words, bus)
            case _:
                return down
        return DeviceDown(down.kind, why, down.model)

    # ------------------------------------------------------------ small things

    @property
    def _on_edgetpu(self) -> bool:
        return self._device.kind == "edgetpu"

    def _receive(self) -> Message | None:
        """The same before there are jobs."""
        message = self.receive()
        if self._closing.is_set():
            raise DeviceDown("stopped", "was stopped while it was being started")
        self._tick()
        return message

    def _turn_to_next(self) -> None:
        """The device takes what was sent in its order, so many at a time."""
        now = self._clock.at(time.monotonic())
        for run in islice(self.runs.values(), self._setup.lanes):
            if run.began is None:
                run.began = now

    def _invoke(self, slot: int, served: Served) -> None:
        with contextlib.suppress(LinkClosed):  # `receive` meets it too
            self.link.send({"slot": slot, "model": served.file.name})
