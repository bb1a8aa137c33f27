"""What lies between the server and a device process: shared memory, and a socket pair.

Tensors travel through shared memory, which has more slots than the device runs inferences at a
time, so that the next tensor lies ready when one ends. Control travels as JSON, one message a
packet. The memory is an anonymous file (`memfd_create`) and so is gone when both processes are,
however they end: nothing can leak.
"""

import contextlib
import json
import math
import mmap
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.devices.words import Words

MAX_MESSAGE = 64 * 1024
ALIGNMENT = 64
RECEIVE_S = 0.25  # how exactly `Link.receive` keeps to its time
USB_TIMEOUT_MILLIS = "3000"
"""What libedgetpu waits for a stick that takes no data, before it says so and aborts; by itself it
is 6 s, more than an inference may take here, so that the cause would never be heard."""
ROOT = Path(__file__).parent.parent.parent

Message = dict[str, Any]


class LinkClosed(Exception):
    """The device process closed its end: it has ended or is about to."""


@dataclass(frozen=True)
class ModelFile:
    """What a device process must know of a model; `app.models.Variant` says what each is."""

    name: str
    path: str
    width: int
    height: int
    outputs: tuple[int, ...]
    detections: int
    normalisation: tuple[float, float]
    regular_nms: bool
    sha256: str

    @property
    def tensor_shape(self) -> tuple[int, int, int, int]:
        """Of the uint8 RGB tensor that the model is given."""
        return (1, self.height, self.width, 3)

    @property
    def output_size(self) -> int:
        """How many float32 values come back: boxes, classes, scores and count."""
        return 6 * self.detections + 1


@dataclass(frozen=True)
class Setup:
    """The first message to a device process."""

    device: str
    kind: str
    threads: int
    lock: str
    models: tuple[ModelFile, ...]
    bus: str = "cpu"
    node: str = ""
    library: str = ""
    performance: str = "default"
    root: str = "/"
    """Below it lies the host's /sys."""

    @property
    def lanes(self) -> int:
        """How many inferences run at a time: one on each thread, or one on all of them."""
        return self.threads

    @property
    def slots(self) -> int:
        """How many tensors are in shared memory: when an inference ends, the next lies ready. An
        Edge TPU may be done with that before a busy Python has brought another, so it has two."""
        return self.lanes + (1 if self.bus == "cpu" else 2)

    def to_message(self) -> Message:
        """As JSON takes it."""
        return asdict(self)

    @classmethod
    def from_message(cls, message: Message) -> "Setup":
        """The setup that `to_message` made."""
        models = tuple(
            ModelFile(**{**model, "outputs": tuple(model["outputs"])})
            for model in message["models"]
        )
        return cls(**{**message, "models": models})


class SharedSlots:
    """The slots in shared memory; each has room for the largest tensor and the largest outputs."""

    def __init__(self, descriptor: int, setup: Setup) -> None:
        models = setup.models
        self._tensor_bytes = _aligned(max(math.prod(m.tensor_shape) for m in models))
        self._slot_bytes = self._tensor_bytes + _aligned(4 * max(m.output_size for m in models))
        size = setup.slots * self._slot_bytes
        if os.fstat(descriptor).st_size < size:
            os.ftruncate(descriptor, size)
        self._memory = mmap.mmap(descriptor, size)

    def tensor(self, slot: int, model: ModelFile) -> NDArray[np.uint8]:
        """The slot's tensor for this model; a view, gone after `close`."""
        count = math.prod(model.tensor_shape)
        offset = slot * self._slot_bytes
        view = np.frombuffer(self._memory, np.uint8, count, offset)
        return view.reshape(model.tensor_shape)

    def outputs(self, slot: int, model: ModelFile) -> NDArray[np.float32]:
        """The slot's outputs for this model; a view, gone after `close`."""
        offset = slot * self._slot_bytes + self._tensor_bytes
        return np.frombuffer(self._memory, np.float32, model.output_size, offset)

    def put(self, slot: int, model: ModelFile, tensor: NDArray[np.uint8]) -> None:
        """Copy a tensor into a slot.

        As in `take`, the GIL is held, unlike by numpy's own copies: among busy threads, to get it
        back takes longer than to copy 300 kB.
        """
        if tensor.shape != model.tensor_shape:
            raise ValueError(f"{model.name} takes {model.tensor_shape}, not {tensor.shape}")
        start = slot * self._slot_bytes
        self._memory[start : start + tensor.nbytes] = np.ascontiguousarray(tensor).data

    def take(self, slot: int, model: ModelFile) -> NDArray[np.float32]:
        """A copy of the slot's outputs."""
        start = slot * self._slot_bytes + self._tensor_bytes
        return np.frombuffer(self._memory[start : start + 4 * model.output_size], np.float32)

    def close(self) -> None:
        """Give the memory back. No view may be left."""
        self._memory.close()


class Link:
    """The server's end: starts the device process, talks to it, and can always end it."""

    def __init__(self, setup: Setup, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """Start `command` with the numbers of its socket and of the shared memory behind it."""
        with contextlib.ExitStack() as undo:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.enter_context(self._control)
            self._words = Words()
            undo.callback(self._words.close)
            memory = os.memfd_create(f"reef-{setup.device}")
            with theirs, os.fdopen(memory), os.fdopen(self._words.writer, "wb") as prints:
                self.slots = SharedSlots(memory, setup)
                undo.callback(self.slots.close)
                self.process = subprocess.Popen(
                    [*command, str(theirs.fileno()), str(memory)],
                    stdin=subprocess.DEVNULL,
                    stdout=prints,
                    stderr=prints,
                    pass_fds=(theirs.fileno(), memory),
                    env=dict(environ),
                    process_group=0,  # out of reach of the terminal's Ctrl-C
                )
            undo.pop_all()  # from here on `end` and `close` do it
        # The kernel's timeout: one call a message, where waiting for two files would take two.
        patience = struct.pack("ll", 0, int(1e6 * RECEIVE_S))  # struct timeval
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
        with contextlib.suppress(LinkClosed):  # `receive` tells
            self.send(setup.to_message())

    def send(self, message: Message) -> None:
        """Send one message. Raises LinkClosed if nobody is there to take it."""
        try:
            self._control.send(packed(message))
        except OSError as error:
            raise LinkClosed(str(error)) from error

    def receive(self, timeout_s: float) -> Message | None:
        """The next message, or None when there is none in time; that is looked at every
        RECEIVE_S. Raises LinkClosed at the end."""
        deadline = time.monotonic() + timeout_s
        while True:
            packet: bytes | None = None
            try:
                packet = self._control.recv(MAX_MESSAGE)
            except BlockingIOError:
                pass
            except OSError as error:
                raise LinkClosed(str(error)) from error
            if packet:
                message: Message = json.loads(packet)
                return message
            if packet is not None:
                raise LinkClosed("the device process ended")
            if time.monotonic() >= deadline:
                return None

    def last_words(self) -> list[str]:
        """The last lines that the process, or a library in it, wrote to stdout or stderr."""
        return self._words.last()

    def end(self, grace_s: float) -> None:
        """Close our end, which ends the process, and kill it after `grace_s` seconds.

        Returns without waiting for a killed process: `reaped` tells when it is gone.
        """
        self._control.close()
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def reaped(self, timeout_s: float) -> bool:
        """Wait for the process to be gone; a stuck PCIe device may keep it for 50 s."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """Free what is left once the process is gone."""
        self._words.close()
        self.slots.close()


def command() -> list[str]:
    """How a device process is started."""
    return [sys.executable, "-m", "app.devices.worker"]


def environment() -> dict[str, str]:
    """A device process's environment: ours, and where to find Reef's code."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {
        "USB_TIMEOUT_MILLIS": USB_TIMEOUT_MILLIS,
        **os.environ,
        "PYTHONPATH": path,
        "OPENBLAS_NUM_THREADS": "1",
    }


def packed(message: Message) -> bytes:
    """A message as one packet. Raises ValueError if the other end would get only part of it."""
    packet = json.dumps(message).encode()
    if len(packet) > MAX_MESSAGE:
        raise ValueError(f"a message of {len(packet)} bytes")
    return packet


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
