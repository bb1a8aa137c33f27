"""Prints the devices of the server on this host, and its notes. It is run in the container, with
the Python that has Reef's own modules:

docker exec --interactive CONTAINER /opt/reef/venv/bin/python - <scripts/status.py
"""

import json
import urllib.request

from app import settings

ADDRESS = "http://127.0.0.1:5000"


def main() -> None:
    """See above."""
    for device in ask("/devices")["devices"]:
        models = ", ".join(device["models"])
        state = f"{device['state']} {device['reason']}".strip()
        print(f"device {device['id']} ({device['about']}): {state}; {models}")  # noqa: T201
    ready = ask("/ready")
    if ready["reason"]:
        print(f"reason: {ready['reason']}")  # noqa: T201
    for note in ready["notes"]:
        print(f"note: {note}")  # noqa: T201


def ask(path: str) -> dict[str, list]:  # type: ignore[type-arg]
    """What the server answers."""
    keys = settings.load().keys
    headers = {"X-API-Key": keys[0]} if keys else {}
    request = urllib.request.Request(ADDRESS + path, headers=headers)  # noqa: S310 - http
    with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - http
        return dict(json.loads(answer.read()))


main()
