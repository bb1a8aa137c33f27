#!/usr/bin/env python3
"""Starts `reef serve`, posts the self-test picture and stops it: the last step of an image's build.

    python3 scripts/try.py

Exit status 0 when the answer has the person that is in the picture and the stop was clean.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

PICTURE = Path(__file__).resolve().parent.parent / "models" / "selftest_person.jpg"
EXPECTED = "person"
ADDRESS = "http://127.0.0.1:5000"
START_S = 60


def main() -> int:
    """See above; returns the exit status."""
    with tempfile.TemporaryDirectory() as run_dir:  # whoever runs the image later makes its own
        return run({**os.environ, "REEF_RUN_DIR": run_dir})


def run(environ: dict[str, str]) -> int:
    """Start, ask, stop; returns the exit status."""
    server = subprocess.Popen(["reef", "serve"], env=environ)  # noqa: S607 - as users start it
    try:
        wait_until_ready(server)
        answer = ask("/predict", PICTURE.read_bytes())
        server.send_signal(signal.SIGTERM)
        status = server.wait(START_S)
    finally:
        server.kill()
    found = [each["class"] for each in answer["predictions"]]
    print(f"try: {answer['device']} found {found}, stopped with {status}", flush=True)  # noqa: T201
    return 0 if EXPECTED in found and status == 0 else 1


def wait_until_ready(server: subprocess.Popen[bytes]) -> None:
    """Wait for `/ready`; ends the program when it never comes."""
    deadline = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            ask("/ready")
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        else:
            return
    sys.exit(f"try: not ready after {START_S} s, or it ended")


def ask(path: str, picture: bytes | None = None) -> dict[str, list[dict[str, str]]]:
    """The answer to a request."""
    kind = {"Content-Type": "image/jpeg"}
    request = urllib.request.Request(ADDRESS + path, picture, kind)  # noqa: S310 - http
    with urllib.request.urlopen(request, timeout=START_S) as answer:  # noqa: S310 - http
        body: dict[str, list[dict[str, str]]] = json.loads(answer.read())
    return body


if __name__ == "__main__":
    sys.exit(main())
