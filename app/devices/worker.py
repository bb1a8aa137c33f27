"""A device process: owns one device, one interpreter per model, and nothing else.

It is a program of its own, not a fork, because loading holds the GIL for seconds, a hung PCIe
inference never returns, and a USB error aborts: only the death of a whole process ends all three.

It tells its parent: `waiting` (another process has the device), `loading`, `ready`, then, for each
`invoke`, `done` or `failed`; and `fatal` if it can't go on. It ends when its parent closes the
socket or dies.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from app.devices.link import MAX_MESSAGE, Message, ModelFile, Setup, SharedSlots

if TYPE_CHECKING:  # importing it takes long, so it waits for the device's lock
    from app.devices.runtime import Engine, LoadedModel

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
LOCK_POLL_S = 0.2


class Control:
    """The child's end of the socket pair."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)

    def receive(self) -> Message | None:
        """The next message; None at end-of-file."""
        packet = self._socket.recv(MAX_MESSAGE)
        message: Message | None = json.loads(packet) if packet else None
        return message

    def send(self, event: str, **fields: object) -> None:
        """Tell the parent."""
        self._socket.send(json.dumps({"event": event, **fields}).encode())


def main(control_descriptor: int, memory_descriptor: int) -> int:
    """Serve one device until the parent closes the socket. Returns the exit status."""
    _die_with_parent()
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
    try:
        lock = _lock(Path(setup.lock), control)
    except OSError as error:
        control.send("fatal", reason=f"can't lock the device ({error}); set REEF_RUN_DIR")
        return 1
    slots = SharedSlots(memory, setup)
    os.close(memory)
    control.send("loading")
    try:
        from app.devices import runtime  # after the lock: importing it is part of loading

        models = {model.name: runtime.Engine(model, setup.threads) for model in setup.models}
    except (ImportError, KeyError, OSError, RuntimeError, ValueError) as error:
        control.send("fatal", reason=f"can't load the model: {error}")
        return 1
    control.send("ready", runtime=runtime.describe())
    _Lanes(control, slots, models, setup.lanes).run()
    lock.close()
    return 0


class _Lanes:
    """Threads that infer beside each other. A free one takes the next request off the socket
    itself: nobody has to be woken to hand it on."""

    def __init__(
        self, control: Control, slots: SharedSlots, models: Mapping[str, "Engine"], count: int
    ) -> None:
        self._control = control
        self._slots = slots
        self._models = models
        self._count = count
        self._receiving = threading.Lock()
        self._lock = threading.Lock()
        self._busy = 0

    def run(self) -> None:
        """Serve until the parent closes the socket."""
        others = [threading.Thread(target=self._run, args=(n,)) for n in range(1, self._count)]
        for thread in others:
            thread.start()
        self._run(0)
        for thread in others:
            thread.join()

    def _run(self, lane: int) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent is gone
            while request := self._receive():
                with self._lock:
                    self._busy += 1
                    alone = self._busy == 1
                engine = self._models[request["model"]]
                loaded = engine.on_all_threads if alone else engine.on_one_thread[lane]
                event, fields = self._infer(loaded, engine.file, request["slot"])
                with self._lock:  # before the parent hears of it: the next one is alone then
                    self._busy -= 1
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
            return "failed", {"reason": str(error)}
        return "done", {"seconds": time.perf_counter() - began}


def _lock(path: Path, control: Control) -> TextIO:
    """Take the device's lock, however long its holder takes to go; put our pid into it.

    The default folder has a name that others can foresee, so it must be ours, and no link.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = path.parent.lstat()
    if not stat.S_ISDIR(folder.st_mode) or folder.st_uid not in (0, os.geteuid()):
        raise PermissionError(f"{path.parent} is not a folder of user {os.geteuid()}")
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.fdopen(os.open(path, flags, 0o600), "r+")
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            file.seek(0)
            control.send("waiting", holder=file.read().strip())
            time.sleep(LOCK_POLL_S)
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file


def _die_with_parent() -> None:
    """Be killed when the thread that started us ends, even while something here holds the GIL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
