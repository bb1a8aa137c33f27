"""Which device gets which waiting picture. Pure: it decides, and the pool does it."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from app.devices.job import Job
from app.fair import ranked
from app.manifest import Kind
from app.models import Model

TRIES = 2  # a picture that two devices failed at is not given to a third, but for the CPU
KEEP_TOGETHER = 4  # so many pictures of the loaded model may pass one that needs a reload
WORTHWHILE_S = 0.002  # a reload that costs less is not worth anybody's turn


class Candidate(Protocol):
    """What is asked of a device."""

    @property
    def id(self) -> str:
        """Its identity."""

    @property
    def kind(self) -> Kind:
        """What it is."""

    @property
    def usable(self) -> bool:
        """Whether it answers."""

    @property
    def free_slots(self) -> int:
        """How many pictures it would take now."""

    @property
    def loaded(self) -> str:
        """The model whose parameters its chip will hold, once it has done all it was given."""

    def expected_s(self, model: Model, ahead: int) -> float:
        """How long a picture would take from now, behind those it has and `ahead` more, without
        a reload."""

    def reload_s(self, model: Model) -> float:
        """What a change to this model costs, in seconds; 0 where it costs nothing."""

    def ready_by(self) -> float:
        """When it may be ready, in `time.monotonic()` seconds; infinite without hope."""


C = TypeVar("C", bound=Candidate)
Able = Callable[[Model], Sequence[C]]
"""The devices that may run a model, if they are well."""


@dataclass
class Plan(Generic[C]):
    """What is to be done with each job, once."""

    grants: list[tuple[Job, C]] = field(default_factory=list)
    """What each device is given, in this order."""
    waiting: list[Job] = field(default_factory=list)
    late: list[Job] = field(default_factory=list)
    hopeless: list[Job] = field(default_factory=list)
    """No device will be ready in time."""
    passed_over: list[Job] = field(default_factory=list)
    """Once for each job of another model that went before it, though its turn was later."""


def plan(queue: Sequence[Job], able: Able[C], now: float) -> Plan[C]:
    """What to do with the jobs that wait; each client's oldest has its turn first."""
    return _Round(queue, able, now).run()


def preferred(job: Job, usable: Sequence[C]) -> list[C]:
    """The usable devices that a job waits for.

    Edge TPUs come before the CPU, and those that have not failed at this job before the others.
    For a picture that two Edge TPUs failed at, the CPU is the last resort: both may have died of
    other things, and what kills an Edge TPU need not hurt the CPU.
    """
    fresh = [device for device in usable if device.id not in job.failed_on]
    if job.failures >= TRIES:
        return [device for device in fresh if device.kind == "cpu"]
    edgetpus = [device for device in usable if device.kind == "edgetpu"]
    return (
        [device for device in fresh if device.kind == "edgetpu"] or fresh or edgetpus or [*usable]
    )


def spare(job: Job, usable: Sequence[C]) -> C | None:
    """A device that has nothing to do, for a job that those it waits for can't take."""
    group = preferred(job, usable)
    return next(
        (
            device
            for device in usable
            if device not in group and device.free_slots and device.id not in job.failed_on
        ),
        None,
    )


def is_hopeless(job: Job, able: Sequence[C]) -> bool:
    """Whether no device may be ready for a job in time."""
    return all(device.ready_by() > job.deadline for device in able)


@dataclass
class _Group(Generic[C]):
    """The devices that jobs of a kind wait for, and how long they will."""

    usable: list[C]
    devices: list[C]
    """Of the usable ones, those that they wait for."""
    full: bool = False
    """None of them has a free slot; within a plan that stays so."""
    waiting: int = 0
    expected_s: tuple[float, float] | None = None
    """Of the next job, and of each one before it."""


class _Round(Generic[C]):
    """One plan in the making."""

    def __init__(self, queue: Sequence[Job], able: Able[C], now: float) -> None:
        self._queue = ranked(queue)
        self._able = able
        self._now = now
        self._plan = Plan[C]()
        self._groups: dict[Hashable, _Group[C]] = {}
        self._taken: set[Job] = set()
        self._given: Counter[str] = Counter()  # in this plan, by device
        self._ahead: Counter[str] = Counter()  # jobs that had better wait for it, by device
        self._loaded: dict[str, str] = {}  # after this plan, by device

    def run(self) -> Plan[C]:
        """Make it."""
        for index, (_, job) in enumerate(self._queue):
            if job in self._taken:
                continue
            if job.deadline <= self._now:
                self._plan.late.append(job)
            else:
                self._place(index, job)
        return self._plan

    def _place(self, index: int, job: Job) -> None:
        group = self._group(job)
        if not group.devices:
            hopeless = is_hopeless(job, self._able(job.model))
            (self._plan.hopeless if hopeless else self._plan.waiting).append(job)
            return
        group.full = group.full or not any(map(self._free, group.devices))
        if group.full:
            if self._too_long(job, group):
                idle = spare(job, group.usable)
                if idle and self._free(idle):
                    self._grant(job, idle)
                    return
            group.waiting += 1
            self._plan.waiting.append(job)
            return
        while self._free(best := self._fastest(job, group.devices)):
            companion = self._companion(index, job, best)
            self._grant(companion or job, best)
            if companion is None:
                return
            self._plan.passed_over.append(job)
        self._ahead[best.id] += 1
        self._plan.waiting.append(job)

    def _group(self, job: Job) -> _Group[C]:
        key: Hashable = job.model.name
        if job.failures:
            key = key, job.failures >= TRIES, frozenset(job.failed_on)
        group = self._groups.get(key)
        if group is None:
            usable = [device for device in self._able(job.model) if device.usable]
            group = self._groups[key] = _Group(usable, preferred(job, usable))
        return group

    def _free(self, device: C) -> int:
        return device.free_slots - self._given[device.id]

    def _fastest(self, job: Job, devices: Sequence[C]) -> C:
        """The device that would be done with a job first, even if it has no free slot yet."""
        if len(devices) == 1:
            return devices[0]
        return min(devices, key=lambda device: self._expected_s(job, device))

    def _expected_s(self, job: Job, device: C) -> float:
        ahead = self._given[device.id] + self._ahead[device.id]
        return device.expected_s(job.model, ahead) + self._reload_s(job, device)

    def _reload_s(self, job: Job, device: C) -> float:
        variant = job.model.variants[device.kind].name
        loaded = self._loaded.get(device.id, device.loaded)
        return 0.0 if variant == loaded else device.reload_s(job.model)

    def _too_long(self, job: Job, group: _Group[C]) -> bool:
        """Whether the devices that a job waits for will come to it too late."""
        if group.expected_s is None:
            device = self._fastest(job, group.devices)
            first = device.expected_s(job.model, 0)
            more = device.expected_s(job.model, 1) - first
            group.expected_s = first, more / len(group.devices)
        first, more = group.expected_s
        return self._now + first + more * group.waiting > job.deadline

    def _companion(self, index: int, job: Job, device: C) -> Job | None:
        """A later job for the model that a device has loaded, which may go before one that needs a
        reload: one of the same client, or of the same turn. Each job is passed only so often."""
        passed = job.passed_over + self._plan.passed_over.count(job)
        if passed >= KEEP_TOGETHER or self._reload_s(job, device) < WORTHWHILE_S:
            return None
        turn = self._queue[index][0]
        for rank, later in self._queue[index + 1 :]:
            if (
                (rank == turn or later.client == job.client)
                and later not in self._taken
                and later.deadline > self._now
                and device in self._group(later).devices
                and not self._reload_s(later, device)
            ):
                return later
        return None

    def _grant(self, job: Job, device: C) -> None:
        self._plan.grants.append((job, device))
        self._taken.add(job)
        self._given[device.id] += 1
        self._loaded[device.id] = job.model.variants[device.kind].name
