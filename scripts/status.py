"""Prints the devices of the server on this host, and its notes. It is run in the container:

docker exec --interactive CONTAINER python3 - <scripts/status.py
"""

import json
import urllib.request

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
    with urllib.request.urlopen(ADDRESS + path, timeout=5) as answer:  # noqa: S310 - http
        return dict(json.loads(answer.read()))


main()
