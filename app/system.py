"""What the system must give before a server can run, asked for before anything that would crash.

What needs threads at its loading (OpenBLAS) ends the process in its own way when it gets none.
"""

import ctypes
import errno
import os
import resource
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from app.devices import causes, discovery
from app.errors import Problems, SettingsError, SystemLacks
from app.settings import Settings

OTHER_DESCRIPTORS = 112
"""Open files for everything that is no connection."""
LEAST_CONNECTIONS = 16
THREADS_BESIDE_QUEUE = 64
"""Those that read bodies and answer `/health`, a few for each device, and what libraries start."""
CLONE3 = 435  # <asm/unistd.h>, on every architecture
DOCKER_WITH_THREADS = "20.10.10"
"""Its seccomp profile knows clone3; before it, that is 'not permitted' and not 'no such call'."""
IN_MEMORY = Path("/dev/shm")  # noqa: S108 - only tried


def require(settings: Settings) -> None:
    """Raise SystemLacks, with every reason why no server can run here."""
    problems = Problems()
    with problems.collecting():
        require_instructions(settings.host_root)
    with problems.collecting():
        require_threads(threads_needed(settings))
    with problems.collecting():
        require_descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    problems.raise_all()


def require_instructions(root: Path) -> None:
    """Raise SystemLacks if the processor can't run TensorFlow Lite."""
    if missing := discovery.missing_instructions(root):
        raise SystemLacks(f"{causes.OLD_CPU}; it has no {', '.join(missing)}")


def threads_needed(settings: Settings) -> int:
    """How many threads a server may have at a time."""
    return settings.queue + discovery.available_cores() + THREADS_BESIDE_QUEUE


def require_threads(count: int) -> None:
    """Start so many and end them again. Raises SystemLacks if they can't be had."""
    end = threading.Event()
    waiting: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            waiting.append(thread)
    except RuntimeError as error:
        raise SystemLacks(_why_no_thread(len(waiting), count)) from error
    finally:
        end.set()
        for thread in waiting:
            thread.join()


def _why_no_thread(started: int, count: int) -> str:
    if not started and _clone3_is_forbidden():
        return (
            "this container can't start a thread: the host's Docker (before "
            f"{DOCKER_WITH_THREADS}), runc (before 1.0.0-rc93) or libseccomp (before 2.5) is too "
            "old for it and forbids the system call clone3; install a newer one on the host"
        )
    most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    limit = "" if most == resource.RLIM_INFINITY else f", which is {most}"
    return (
        f"a server needs up to {count} threads, and only {started} can be started: raise the limit "
        f"of processes (`ulimit -u`{limit}; of a container pids_limit or --pids-limit) or of memory"
    )


def _clone3_is_forbidden() -> bool:
    """Whether something answers EPERM where the kernel would find fault with the arguments."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(CLONE3, None, 0)
    return ctypes.get_errno() == errno.EPERM


def require_descriptors(most: int) -> None:
    """Raise SystemLacks if this process may not open enough files for a few connections."""
    least = OTHER_DESCRIPTORS + LEAST_CONNECTIONS
    if most != resource.RLIM_INFINITY and most < least:
        raise SystemLacks(
            f"a server needs at least {least} open files, and the limit is {most}: raise it "
            "(`ulimit -Hn`; of a container ulimits or --ulimit nofile)"
        )


def heartbeat_folder(settings: Settings, in_memory: Path = IN_MEMORY) -> Path:
    """Where the worker's heartbeat file can be: in memory, or else where anything can be written.

    Raises SystemLacks.
    """
    folders = (in_memory, settings.run_dir, settings.run_dir.parent)
    for folder in folders:
        try:
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    raise SystemLacks(
        f"no file can be made in {', '.join(map(str, dict.fromkeys(folders)))}: one of them must "
        "be writable (a container: --tmpfs /tmp, or --shm-size)"
    )


def require_folder(setting: str, folder: Path, may: Callable[[Path], bool]) -> None:
    """Raise SettingsError if nothing can be written there; nothing is made. `may`: whether this
    process may write to a folder that is there."""
    path = (folder, *folder.absolute().parents)
    nearest = next(above for above in path if os.path.lexists(above))
    if not nearest.is_dir():
        raise SettingsError(f"{setting}: '{nearest}' is no folder; name another")
    if not may(nearest):
        raise SettingsError(
            f"{setting}: '{folder}' can't be written to by user {os.geteuid()}; let it write to "
            f"'{nearest}', or name another folder"
        )


def may_write(folder: Path) -> bool:
    """Whether this process may make files in a folder."""
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=True)
