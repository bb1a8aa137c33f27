"""A device process: owns one device, one interpreter per model, and nothing else.

It is a program of its own, not a fork, because loading holds the GIL for seconds, a hung PCIe
inference never returns, and a USB error aborts: only the death of a whole process ends all three.

It tells its parent: `waiting` (another process has the device), `loading` (the library, the device,
the models), `unloadable` (one of several models, and why), `ready`, then, for each `invoke`, `done`
or `failed`; and `fatal` if it can't go on. It ends when its parent closes the socket or dies.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from app.devices import ownership
from app.devices.link import MAX_MESSAGE, Message, ModelFile, Setup, SharedSlots, packed

if TYPE_CHECKING:  # importing it takes long, so it waits for the device's lock
    from app.devices.runtime import EdgeTpuDelegate, Engine, LoadedModel

SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # <asm/unistd.h>
SLICE_NS = 100_000  # the shortest that Linux takes
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
PF_EXITING = 0x4  # <linux/sched.h>; field 9 of /proc/PID/stat, proc_pid_stat(5)
LOCK_POLL_S = 0.2
OWNER_POLL_S = 0.5
OUT_OF_MEMORY_SCORE = 700  # of 1000: rather than the server, the kernel ends what can start again
HOW_IT_BEGINS, HOW_IT_ENDS = 300, 700  # characters of an error's text; between them it repeats

CANNOT_LOAD = (AttributeError, ImportError, KeyError, OSError, RuntimeError, ValueError)


class Control:
    """The child's end of the socket pair."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)  # or a grandchild would keep it open for us
        self._socket = socket.socket(fileno=descriptor)

    def receive(self) -> Message | None:
        """The next message; None at end-of-file."""
        packet = self._socket.recv(MAX_MESSAGE)
        message: Message | None = json.loads(packet) if packet else None
        return message

    def send(self, event: str, **fields: object) -> None:
        """Tell the parent."""
        self._socket.send(packed({"event": event, **fields}))


def main(control_descriptor: int, memory_descriptor: int) -> int:
    """Serve one device until the parent closes the socket. Returns the exit status."""
    _die_with_parent()
    _die_first()
    os.set_inheritable(memory_descriptor, False)
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # a stopping server still needs its devices
    control = Control(control_descriptor)
    try:
        message = control.receive()
        if message is None:
            return 0
        return _serve(control, Setup.from_message(message), memory_descriptor)
    except (BrokenPipeError, ConnectionResetError):
        return 0  # the parent is gone: so are we


def _serve(control: Control, setup: Setup, memory: int) -> int:
    lock = None
    if setup.bus != "cpu":  # which is nobody's alone
        try:
            lock = _lock(Path(setup.lock), control)
        except OSError as error:
            reason = f"can't lock the device ({_bounded(error)}); set REEF_RUN_DIR"
            control.send("fatal", stage="lock", reason=reason)
            return 1
        while holder := ownership.owner(setup.bus, setup.node, Path(setup.root)):
            control.send("waiting", holder=holder)
            time.sleep(OWNER_POLL_S)
        _run_promptly()
    slots = SharedSlots(memory, setup)
    os.close(memory)
    progress = _Progress(control)
    try:
        models = _load(setup, progress)
    except CANNOT_LOAD as error:
        control.send("fatal", stage=progress.stage, reason=_bounded(error))
        return 1
    control.send("ready", runtime=progress.runtime)
    _Lanes(control, slots, models, setup.lanes).run()
    del models  # the device is closed first, then unlocked
    if lock is not None:
        os.close(lock)
    return 0


class _Progress:
    """How far loading has come, for the parent, should this process die of it."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self.stage = ""
        self.runtime = ""

    def reach(self, stage: str, model: str = "") -> None:
        """The next step begins; loading each model is one."""
        self.stage = stage
        self._control.send("loading", stage=stage, model=model)

    def leave_out(self, model: ModelFile, error: Exception) -> None:
        """A model can't be loaded; the others may."""
        self._control.send("unloadable", model=model.name, reason=_bounded(error))


def _load(setup: Setup, progress: _Progress) -> dict[str, "Engine"]:
    """Open the device and load the models on it, as many as can be. Raises one of CANNOT_LOAD if
    the device can't be opened, or none of the models be loaded."""
    edgetpu = setup.bus != "cpu"
    progress.reach("library")
    from app.devices import runtime  # after the lock: importing it is part of loading

    progress.runtime = runtime.describe()
    delegate: EdgeTpuDelegate | None = None
    if edgetpu:
        library = runtime.EdgeTpuLibrary(setup.library)
        progress.runtime += f", libedgetpu {library.version}"
        progress.reach("device")
        delegate = library.open(setup.bus, setup.node, setup.performance)
    loaded: dict[str, Engine] = {}
    for model in setup.models:
        progress.reach("model", model.name)
        try:
            loaded[model.name] = runtime.Engine(model, setup.threads, delegate)
        except CANNOT_LOAD as error:
            if not loaded and model is setup.models[-1]:
                raise
            progress.leave_out(model, error)
    return loaded


class _Lanes:
    """`count` inferences at a time, on `count` + 1 threads.

    The spare thread takes the next request off the socket while every lane is busy, and starts it
    as soon as one is free, before the thread that is done has told the parent so.
    """

    def __init__(
        self, control: Control, slots: SharedSlots, models: Mapping[str, "Engine"], count: int
    ) -> None:
        self._control = control
        self._slots = slots
        self._models = models
        self._receiving = threading.Lock()
        self._count = count
        self._free: SimpleQueue[int] = SimpleQueue()
        for lane in range(count):
            self._free.put(lane)

    def run(self) -> None:
        """Serve until the parent closes the socket."""
        others = [threading.Thread(target=self._run) for _ in range(self._count)]
        for thread in others:
            thread.start()
        self._run()
        for thread in others:
            thread.join()

    def _run(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent is gone
            while request := self._receive():
                engine = self._models[request["model"]]
                lane = self._free.get()
                alone = self._free.qsize() == self._count - 1
                loaded = engine.on_all_threads if alone else engine.on_one_thread[lane]
                event, fields = self._infer(loaded, engine.file, request["slot"])
                self._free.put(lane)  # before the parent hears of it: the next one is alone then
                self._control.send(event, slot=request["slot"], **fields)

    def _receive(self) -> Message | None:
        with self._receiving:
            return self._control.receive()

    def _infer(
        self, loaded: "LoadedModel", model: ModelFile, slot: int
    ) -> tuple[str, dict[str, object]]:
        began = time.perf_counter()
        try:
            loaded.invoke(self._slots.tensor(slot, model), self._slots.outputs(slot, model))
        except (RuntimeError, ValueError) as error:
            return "failed", {"reason": _bounded(error)}
        return "done", {"seconds": time.perf_counter() - began}


def _bounded(error: Exception) -> str:
    """An error's text, short enough for a message."""
    text = str(error)
    if len(text) <= HOW_IT_BEGINS + HOW_IT_ENDS:
        return text
    return f"{text[:HOW_IT_BEGINS]} … {text[-HOW_IT_ENDS:]}"


def _lock(path: Path, control: Control) -> int:
    """Take the device's lock, however long its holder takes to go; put our pid into it. Returns
    the descriptor that keeps it.

    The default folder has a name that others can foresee, so it must be ours, and no link.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = path.parent.lstat()
    if not stat.S_ISDIR(folder.st_mode) or folder.st_uid not in (0, os.geteuid()):
        raise PermissionError(f"{path.parent} is not a folder of user {os.geteuid()}")
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    while True:
        holder = _pid_in(os.pread(lock, 32, 0))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_leaving(holder):
                break
            fcntl.flock(lock, fcntl.LOCK_UN)
        except BlockingIOError:
            pass
        control.send("waiting", holder=holder)
        time.sleep(LOCK_POLL_S)
    with contextlib.suppress(OSError):  # a full disk: the pid is only for those who wait
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _pid_in(content: bytes) -> str:
    """The pid in a lock file; empty if it is no process that can be seen from here."""
    pid = content.decode(errors="replace").strip()
    return pid if pid.isascii() and pid.isdigit() and Path("/proc", pid).exists() else ""


def _is_leaving(holder: str) -> bool:
    """Whether a process that gave up the lock is still on its way out.

    The kernel closes a killed process's files one by one: its lock may be free while a stuck card
    still holds it up, for 50 s at worst. A zombie has closed them all.
    """
    if not holder:
        return False
    try:
        fields = Path(f"/proc/{holder}/stat").read_text().rpartition(")")[2].split()
        state, flags = fields[0], int(fields[6])
    except (OSError, ValueError, IndexError):
        return False
    # Any other process that has the pid by now, a thread of the kernel too, is not exiting.
    return state not in "ZX" and bool(flags & PF_EXITING)


def _run_promptly() -> None:
    """Ask for short slices of time, sooner: what runs an Edge TPU needs little of a busy processor,
    but at once, when an inference ends. Linux does so from 6.12 on; before, it changes nothing.

    The structure is `struct sched_attr` of <linux/sched/types.h>, in its first version.
    """
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = struct.pack("IIQiIQQQ", 48, os.SCHED_OTHER, 0, nice, 0, SLICE_NS, 0, 0)
    if number := SCHED_SETATTR.get(os.uname().machine):
        ctypes.CDLL(None).syscall(number, 0, attributes, 0)


def _die_with_parent() -> None:
    """Be killed when the thread that started us ends, even while something here holds the GIL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _die_first() -> None:
    """Where memory runs out, be what the kernel ends: this process is started again, while the
    server's end is everybody's."""
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        score.write_text(str(max(OUT_OF_MEMORY_SCORE, int(score.read_text()))))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
