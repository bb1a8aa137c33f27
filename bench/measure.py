"""Measure Reef against its targets, on this machine, with a real server and a real model.

Whatever is compared is measured in turns in one run, so that a machine that is slow today or busy
with other things changes both sides alike. Nothing needs to be running beforehand.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app import __version__
from app.devices.discovery import available_cores, cpu_name
from bench import targets
from bench.ceiling import ceiling
from bench.container import container
from bench.devices import devices
from bench.errors import CannotMeasure
from bench.figures import Section
from bench.helpers import Helpers, helpers, tell

MEASUREMENTS: Mapping[str, Callable[[Helpers], Section]] = {
    "latency": targets.latency,
    "throughput": targets.throughput,
    "start": targets.start,
    "memory": targets.memory,
    "ceiling": ceiling,
    "devices": devices,
    "container": container,
}
ON_DEMAND = ("container", "devices")  # they need Docker, and a C compiler
EXPLAINED = """\
what is measured:
  latency     what one client waits for beyond the inference itself
  throughput  what of a bare inference loop's speed reaches four clients
  start       how soon after its start the server is ready
  memory      what all its processes take together, at work
  ceiling     requests per second if the device took no time, and what bounds them
  devices     what of one, two and four Edge TPUs' speed reaches clients, on stand-ins
  container   the image: its size, its start, its memory, its speed beside the others
  all         all of these but devices and the container, in about four minutes

exit status: 0 all targets are met, 1 one is missed or could not be measured, 2 wrong usage
"""


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.measure",
        description=__doc__,
        epilog=EXPLAINED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what", nargs="?", default="all", choices=[*MEASUREMENTS, "all"], help="default: all"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file too")
    arguments = parser.parse_args()
    everywhere = [name for name in MEASUREMENTS if name not in ON_DEMAND]
    chosen = [arguments.what] if arguments.what != "all" else everywhere

    machine = _machine()
    print(f"Reef {machine['reef']}, {machine['cpu']}, {machine['cores']} cores, {machine['when']}")
    sections: list[Section] = []
    try:
        with helpers() as started:
            for name in chosen:
                section = MEASUREMENTS[name](started)
                sections.append(section)
                tell("")
                print(f"\n{section.text()}", flush=True)
    except CannotMeasure as error:
        tell("")
        print(error, file=sys.stderr)
        return 1
    if arguments.json:
        content = {**machine, "sections": [section.as_json() for section in sections]}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    missed = [f"{section.name}: {name}" for section in sections for name in section.missed]
    print(f"\nMISSED: {'; '.join(missed)}" if missed else "\nAll targets are met.")
    return 1 if missed else 0


def _machine() -> dict[str, Any]:
    return {
        "reef": __version__,
        "cpu": cpu_name(),
        "cores": available_cores(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


if __name__ == "__main__":
    sys.exit(main())
