"""Logging: to stdout as text or JSON, and to a rotating file where asked."""

import fcntl
import json
import logging
import logging.handlers
import math
import os
import re
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.errors import SettingsError
from app.settings import Settings

FILE_NAME = "reef.log"
FILE_BYTES = 10 * 1024 * 1024
FILES_KEPT = 5

# What a client sent must not forge a line or drive a terminal.
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
MAX_MESSAGE = 2000

# What a log call may bring in its `extra`, of the request that it is about.
FIELDS = ("request_id", "status", "code")


class TextFormatter(logging.Formatter):
    """`2026-11-22T08:15:30.123Z INFO message`, one line, control characters escaped.

    The message of a request begins with its id in brackets.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line; a traceback follows it."""
        request = f"[{record.request_id}] " if hasattr(record, "request_id") else ""
        return f"{_timestamp(record)} {record.levelname:7} {_clean(request + record.message)}"

    def formatException(self, ei: Any) -> str:
        """The traceback: its lines are ours, but the exception's words may be a client's."""
        return "\n".join(map(_clean, super().formatException(ei).split("\n")))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message; FIELDS and a traceback where there are
    any."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        entry = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:MAX_MESSAGE],
        }
        entry |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class SharedRotatingFile(logging.handlers.WatchedFileHandler):
    """A log file that several processes append to and that rotates at `FILE_BYTES`.

    The standard library's rotating handler loses lines when two processes rotate one file; here
    the one that takes the lock rotates and the others follow, as they would follow logrotate.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; a full disk must not stop the service."""
        try:
            self._rotate_if_full()
        except OSError:
            self.handleError(record)
        try:
            super().emit(record)
        except OSError:  # it can't be opened again: its folder was removed, or made another's
            self.handleError(record)

    def _rotate_if_full(self) -> None:
        path = Path(self.baseFilename)
        if not path.exists() or path.stat().st_size < FILE_BYTES:
            return
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.stat().st_size < FILE_BYTES:
                return
            for number in range(FILES_KEPT - 1, 0, -1):
                older = path.with_name(f"{path.name}.{number}")
                if older.exists():
                    older.replace(path.with_name(f"{path.name}.{number + 1}"))
            path.replace(path.with_name(f"{path.name}.1"))


class Repeats:
    """Lets one message of a kind through a second, and counts the others."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._held: Counter[str] = Counter()

    def pass_on(self, kind: str) -> int | None:
        """How many were held back since the last one, or None to hold this one back too."""
        now = time.monotonic()
        if now - self._last.get(kind, -math.inf) < 1:
            self._held[kind] += 1
            return None
        self._last[kind] = now
        return self._held.pop(kind, 0)


def configure(settings: Settings) -> None:
    """Set up logging for this process and those forked from it.

    Raises SettingsError if the log folder can't be written.
    """
    logging.raiseExceptions = False  # a closed stdout or a full disk must not stop the service
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if settings.log_dir:
        try:
            settings.log_dir.mkdir(parents=True, exist_ok=True)
            handlers.append(SharedRotatingFile(settings.log_dir / FILE_NAME))
        except OSError as error:
            raise SettingsError(
                f"REEF_LOG_DIR: can't write to '{settings.log_dir}': {error.strerror}; "
                f"let user {os.getuid()} write there, or unset it"
            ) from error
    formatter = JsonFormatter() if settings.log_format == "json" else TextFormatter()
    for handler in handlers:
        handler.setFormatter(formatter)
    logging.basicConfig(level=settings.log_level.upper(), handlers=handlers, force=True)
    logging.getLogger("PIL").setLevel(logging.WARNING)  # it tells of every chunk at debug


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _clean(message: str) -> str:
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", message[:MAX_MESSAGE])
