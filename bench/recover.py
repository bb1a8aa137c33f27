"""How soon service returns after each kind of fault: `python -m bench.recover [--times 50]`.

A real server with the embedded model; one client posts a picture again and again. What is measured
is the time from the fault to the first good answer to a request that was sent after it. Between
faults the device serves for a moment. Pauses before restarts are off, because faults that come one
after the other are what they are for.
"""

import argparse
import contextlib
import http.client
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping

import psutil

from bench.errors import CannotMeasure
from bench.helpers import tell
from bench.load import HOST
from bench.server import ROOT, Server, serving

PICTURE = ROOT / "models" / "selftest_person.jpg"
TIMES = 50
PATIENCE_S = 60.0
RETRY_S = 0.01
SERVES_BETWEEN_S = (0.1, 0.5)  # chosen at random, with a fixed seed

Fault = Callable[[Mapping[str, psutil.Process]], None]


def devices(processes: Mapping[str, psutil.Process]) -> list[psutil.Process]:
    """The device processes, the one that serves first."""
    return [each for name, each in processes.items() if name.startswith("device ")]


def kill_worker(processes: Mapping[str, psutil.Process]) -> None:
    """The HTTP worker dies."""
    processes["http"].send_signal(signal.SIGKILL)


def kill_device(processes: Mapping[str, psutil.Process]) -> None:
    """A device process dies."""
    devices(processes)[0].send_signal(signal.SIGKILL)


def hang_device(processes: Mapping[str, psutil.Process]) -> None:
    """A device hangs: nothing comes back any more."""
    devices(processes)[0].send_signal(signal.SIGSTOP)


def hang_all(processes: Mapping[str, psutil.Process]) -> None:
    """All devices hang."""
    for each in devices(processes):
        each.send_signal(signal.SIGSTOP)


FAULTS: dict[str, Fault] = {
    "worker killed": kill_worker,
    "device process killed": kill_device,
    "device hung": hang_device,
    "all devices hung": hang_all,
}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.recover",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--times", type=int, default=TIMES, help="of each fault; default: 50")
    told = parser.parse_args(arguments)
    settings = {"REEF_RESTART_BACKOFF_MAX_S": "0"}
    try:
        with serving(settings) as server:
            count = len(devices(server.processes()))
            print(f"{told.times} times each, with {count} device(s); seconds to the next answer")
            print(f"{'fault':24}{'median':>8}{'worst':>8}")
            for name, fault in FAULTS.items():
                seconds = measure(server, fault, told.times, name)
                print(f"{name:24}{statistics.median(seconds):8.2f}{max(seconds):8.2f}", flush=True)
    except CannotMeasure as error:
        print(f"can't measure: {error}", file=sys.stderr)
        return 1
    return 0


def measure(server: Server, fault: Fault, times: int, name: str) -> list[float]:
    """The time that each of so many faults cost, in seconds."""
    chance = random.Random(7)
    seconds = []
    for number in range(times):
        tell(f"{name}: {number} of {times}")
        pause = time.monotonic() + chance.uniform(*SERVES_BETWEEN_S)
        while time.monotonic() < pause:
            answered(server.port)
        processes = server.processes()
        began = time.monotonic()
        fault(processes)
        while not answered(server.port):
            if time.monotonic() - began > PATIENCE_S:
                raise CannotMeasure(f"{name}: no answer within {PATIENCE_S:g} s")
            time.sleep(RETRY_S)
        seconds.append(time.monotonic() - began)
        wait_until_whole(server)
    tell("")
    return seconds


def answered(port: int) -> bool:
    """Post the picture; whether a person is found in it."""
    connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE_S)
    try:
        connection.request("POST", "/predict", PICTURE.read_bytes(), {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        return b'"class":"person"' in answer.read() and answer.status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wait_until_whole(server: Server) -> None:
    """Wait until every process of the server is there again."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(
            psutil.Error, ValueError, OSError, http.client.HTTPException, TypeError, CannotMeasure
        ):
            if all(os.path.exists(f"/proc/{p.pid}") for p in server.processes().values()):
                return
        time.sleep(RETRY_S)
    raise CannotMeasure("a process did not come back")


if __name__ == "__main__":
    sys.exit(main())
