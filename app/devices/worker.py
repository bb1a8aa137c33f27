"""A device process: owns one device, one interpreter per model, and nothing else.

It is a program of its own, not a fork, because loading holds the GIL for seconds, a hung PCIe
inference never returns, and a USB error aborts: only the death of a whole process ends all three.

It tells its parent: `waiting` (another process has the device), `loading`, `ready`, then, for each
`invoke`, `done` or `failed`; and `fatal` if it can't go on. It ends when its parent closes the
socket or dies.
"""

import ctypes
import fcntl
import json
import os
import signal
import socket
import stat
import sys
import time
from pathlib import Path
from typing import TextIO

from app.devices.link import MAX_MESSAGE, Message, Setup, SharedSlots

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
    slots = SharedSlots(memory, setup.models)
    os.close(memory)
    control.send("loading")
    try:
        from app.devices import runtime  # after the lock: importing it is part of loading

        models = {
            model.name: (model, runtime.LoadedModel(model, setup.threads)) for model in setup.models
        }
    except (ImportError, KeyError, OSError, RuntimeError, ValueError) as error:
        control.send("fatal", reason=f"can't load the model: {error}")
        return 1
    control.send("ready", runtime=runtime.describe())
    while request := control.receive():
        slot = request["slot"]
        model, loaded = models[request["model"]]
        began = time.perf_counter()
        try:
            loaded.invoke(slots.tensor(slot, model), slots.outputs(slot, model))
        except (RuntimeError, ValueError) as error:
            control.send("failed", slot=slot, reason=str(error))
        else:
            control.send("done", slot=slot, seconds=time.perf_counter() - began)
    lock.close()
    return 0


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
