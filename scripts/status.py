"""Prints the devices of the server on this host, and its notes; or only why it is not ready. It is
run in the container, with the Python that has Reef's own modules:

docker exec --interactive CONTAINER /opt/reef/venv/bin/python - [reason] <scripts/status.py
"""

import sys

from app import local, settings


def main(arguments: list[str]) -> int:
    """See above."""
    told = settings.load()
    try:
        ready = local.ask(told, "/ready").body
        lines = [ready["reason"]] if arguments else [*devices(told), *notes(ready)]
    except (local.NoServer, KeyError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    print("\n".join(lines))  # noqa: T201
    return 0


def devices(told: settings.Settings) -> list[str]:
    """A line for each."""
    return [
        f"device {each['id']} ({each['about']}): {each['state']} {each['reason']}".rstrip()
        + f"; {', '.join(each['models'])}"
        for each in local.ask(told, "/devices").body["devices"]
    ]


def notes(ready: dict[str, list[str]]) -> list[str]:
    """Why it is degraded, and what else there is to know."""
    reason = [f"reason: {ready['reason']}"] if ready["reason"] else []
    return reason + [f"note: {note}" for note in ready["notes"]]


sys.exit(main(sys.argv[1:]))
