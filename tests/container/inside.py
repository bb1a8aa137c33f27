"""What tests run inside a container or its network, with the image's own Python and nothing else.

`python3 -c "$(cat inside.py)" FUNCTION '[ARGUMENTS]' <DATA` prints what the function returns.
"""

import errno
import http.client
import importlib.util
import json
import os
import sys
import threading
from typing import Any

PORT = 5000
ANY_TYPE = "application/octet-stream"
LISTENING = "0A"  # TCP_LISTEN, as the kernel writes it


def whoami() -> list[int]:
    """User and group."""
    return [os.getuid(), os.getgid()]


def opened(path: str) -> str:
    """What comes of opening a file for reading and writing: `opened`, or the error's name."""
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "opened"


def parent(pid: int) -> int:
    """The pid of a process's parent."""
    with open(f"/proc/{pid}/status") as status:
        return int(next(line.split()[1] for line in status if line.startswith("PPid:")))


def command(pid: int) -> list[str]:
    """The command line of a process."""
    with open(f"/proc/{pid}/cmdline") as line:
        return line.read().rstrip("\0").split("\0")


def uncompiled(*modules: str) -> list[str]:
    """The files that Python compiles when these modules are imported."""
    for module in modules:
        importlib.import_module(module)
    sources = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
    return [
        source
        for source in sources
        if source.endswith(".py") and not os.path.exists(importlib.util.cache_from_source(source))
    ]


def kill(pid: int, number: int) -> None:
    """Send a signal."""
    os.kill(pid, number)


def zombies() -> list[int]:
    """Processes that ended and that nobody has waited for."""
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    found.append(pid)
        except OSError:
            continue  # it is gone
    return found


def users() -> list[int]:
    """The user of every process but this one."""
    pids = [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    return [os.stat(f"/proc/{pid}").st_uid for pid in pids]


def listening() -> list[int]:
    """Every TCP port that somebody listens on, and every bound UDP port."""
    found = set()
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        if not os.path.exists(f"/proc/net/{kind}"):
            continue
        with open(f"/proc/net/{kind}") as table:
            for line in list(table)[1:]:
                _, local, _, state, *_ = line.split()
                if kind.startswith("udp") or state == LISTENING:
                    found.add(int(local.rpartition(":")[2], 16))
    return sorted(found)


def oom_kills() -> int:
    """How often the kernel killed a process of this container for its memory."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        if os.path.exists(path):
            with open(path) as events:
                return int(next(line.split()[1] for line in events if line.startswith("oom_kill ")))
    raise FileNotFoundError("no cgroup tells of memory")


def predict() -> list[Any]:
    """Post DATA; status and answer."""
    return list(_post(sys.stdin.buffer.read()))


def load(clients: int, most: int, content_type: str = ANY_TYPE) -> dict[str, Any]:
    """Clients that post DATA one request after the other, `most` in all; each ends when it is
    refused a connection. `lost` has what became of requests that got no answer."""
    image = sys.stdin.buffer.read()
    statuses: dict[int, int] = {}
    refused, lost, given = 0, [], 0
    lock = threading.Lock()

    def run() -> None:
        nonlocal refused, given
        while True:
            with lock:
                if given >= most:
                    return
                given += 1
            try:
                status, _ = _post(image, content_type)
            except ConnectionRefusedError:
                with lock:
                    refused += 1
                return
            except (OSError, http.client.HTTPException, ValueError) as error:
                with lock:
                    lost.append(repr(error))
                return
            with lock:
                statuses[status] = statuses.get(status, 0) + 1

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"statuses": statuses, "refused": refused, "lost": lost}


def _post(image: bytes, content_type: str = ANY_TYPE) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    try:
        connection.request("POST", "/predict", image, {"Content-Type": content_type})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*json.loads(sys.argv[2]))))
