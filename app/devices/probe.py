"""A throw-away process that loads TensorFlow Lite and libedgetpu, and opens no device.

`reef doctor` runs it: what crashes here crashes nobody else. It prints one JSON object.
"""

import json
import sys


def main(library: str) -> int:
    """Load both; returns the exit status."""
    from app.devices import runtime

    found: dict[str, object] = {"runtime": runtime.describe()}
    try:
        loaded = runtime.EdgeTpuLibrary(library)
        found |= {"libedgetpu": loaded.version, "devices": loaded.paths()}
    except (AttributeError, OSError) as error:
        found["error"] = str(error)
    print(json.dumps(found))  # noqa: T201 - that is what it is for
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
