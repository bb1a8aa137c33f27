"""What a device process prints: taken at once, kept for as long as it may explain something.

A library may print within an inference, even while it holds up its device. So it writes into a pipe
that never blocks it, although whoever empties that may stand still: what finds no room is lost.
"""

import contextlib
import fcntl
import os
import select
import threading
import time
from collections import deque

PIPE_BYTES = 1024 * 1024  # as much as Linux allows everybody
READ_BYTES = 64 * 1024
PAUSE_S = 0.01  # between two looks at a process that prints all the time
KEPT_LINES = 200
KEPT_S = 60.0  # what was printed so long ago explains nothing that happens now
MAX_LINE = 4096


class Words:
    """The last lines of a process whose stdout and stderr are `writer`."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # this user has many large pipes already
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._closing = os.eventfd(0, os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._lines: deque[tuple[float, str]] = deque(maxlen=KEPT_LINES)
        self._partial = b""
        self._thread = threading.Thread(target=self._listen, name="words", daemon=True)
        self._thread.start()

    def last(self) -> list[str]:
        """The last lines, of those that are not too old; all that was printed is among them."""
        with self._lock:
            self._take()
            since = time.monotonic() - KEPT_S
            lines = [line for heard, line in self._lines if heard >= since]
            return [*lines, *([_text(self._partial)] if self._partial else [])]

    def close(self) -> None:
        """Hear no more."""
        os.eventfd_write(self._closing, 1)
        self._thread.join()
        os.close(self._reader)
        os.close(self._closing)

    def _listen(self) -> None:
        waiting = select.poll()
        waiting.register(self._reader, select.POLLIN)
        waiting.register(self._closing, select.POLLIN)
        while self._closing not in (ready := dict(waiting.poll())):
            with self._lock:
                self._take()
            if ready[self._reader] & select.POLLHUP:  # all who could print are gone
                waiting.unregister(self._reader)
            else:
                time.sleep(PAUSE_S)

    def _take(self) -> None:
        """Empty the pipe; the lock is held."""
        now = time.monotonic()
        for _ in range(PIPE_BYTES // READ_BYTES):  # even if it never stops talking
            try:
                said = os.read(self._reader, READ_BYTES)
            except BlockingIOError:
                return
            if not said:
                return
            *lines, rest = (self._partial + said).split(b"\n")
            self._partial = rest[-MAX_LINE:]
            self._lines.extend((now, _text(line)) for line in lines if line.strip())


def _text(line: bytes) -> str:
    return line[-MAX_LINE:].decode(errors="replace")
