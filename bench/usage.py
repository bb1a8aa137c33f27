"""CPU and memory of processes, as the kernel counts them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

Processes = Mapping[str, psutil.Process]


@dataclass(frozen=True)
class Memory:
    """Of one process, in bytes: `pss` counts what n processes share as an n-th for each."""

    rss: int
    pss: int


@dataclass(frozen=True)
class HttpThreads:
    """CPU seconds of the HTTP process's threads, by what they do."""

    poller: float
    """gunicorn's main thread: takes connections, waits for requests on all of them."""
    devices: float
    """One thread per device: hands tensors to its process and takes answers."""
    requests: float
    """gunicorn's pool: one thread for each request under way."""


def cpu(processes: Processes) -> dict[str, float]:
    """CPU seconds that each process has taken since its start."""
    return {name: _own(process) for name, process in processes.items()}


def memory(processes: Processes) -> dict[str, Memory]:
    """The memory of each process."""
    full = {name: process.memory_full_info() for name, process in processes.items()}
    return {name: Memory(each.rss, each.pss) for name, each in full.items()}


def http_threads(process: psutil.Process, devices: int) -> HttpThreads:
    """What the threads of the HTTP process have taken since their start."""
    # Threads have no names that the kernel knows, but are numbered in order: devices are started
    # before the first request comes.
    taken = [
        each.user_time + each.system_time
        for each in sorted(process.threads(), key=lambda each: each.id)
    ]
    return HttpThreads(taken[0], sum(taken[1 : 1 + devices]), sum(taken[1 + devices :]))


def less(after: HttpThreads, before: HttpThreads) -> HttpThreads:
    """What was taken in between."""
    return HttpThreads(
        after.poller - before.poller,
        after.devices - before.devices,
        after.requests - before.requests,
    )


class Neighbours:
    """How much of the machine processes take that are not this one's or its children's."""

    def __init__(self, also_ours: Sequence[psutil.Process] = ()) -> None:
        """`also_ours`: what is measured and is no child, as the processes of a container."""
        self._also_ours = also_ours
        self._machine, self._idle, self._ours = _snapshot(also_ours)

    def share(self) -> float:
        """Since the creation, from 0 to 1."""
        machine, idle, ours = _snapshot(self._also_ours)
        passed = machine - self._machine
        others = passed - (idle - self._idle) - (ours - self._ours)
        return min(1.0, max(0.0, others / passed)) if passed else 0.0


def _snapshot(also_ours: Sequence[psutil.Process]) -> tuple[float, float, float]:
    """CPU seconds of the machine in total and idle, and ours."""
    machine = psutil.cpu_times()
    idle = machine.idle + machine.iowait
    total = idle + machine.user + machine.nice + machine.system
    total += machine.irq + machine.softirq + machine.steal
    ours = 0.0
    this = psutil.Process(os.getpid())
    for process in (this, *this.children(recursive=True), *also_ours):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        ours += times.user + times.system + times.children_user + times.children_system
    return total, idle, ours


def _own(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
