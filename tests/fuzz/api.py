"""Requests made up from /openapi.json, by schemathesis: `python -m tests.fuzz.api [EXAMPLES]`.

Every check is on but those in EXCLUDED. What it makes up is no picture, so `/predict` mostly
refuses here; what it does with pictures is for tests.fuzz.pictures.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests import colour_model
from tests.server.conftest import Server

EXAMPLES = 200
KEY = "correct-horse-battery-staple"

EXCLUDED = {
    "positive_data_acceptance": "what is a sound body for the schema, any bytes, is no picture",
}


def main(examples: int = EXAMPLES) -> int:
    """See above; returns the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        model = colour_model.write(Path(folder) / "colour.tflite")
        server = Server(Path(folder), REEF_MODEL=str(model), REEF_DRAIN_S="0", REEF_API_KEY=KEY)
        try:
            server.wait_until(server.is_ready)
            address = f"http://127.0.0.1:{server.port}"
            done = subprocess.run(
                [
                    *(str(Path(sys.executable).with_name("schemathesis")), "run"),
                    f"{address}/openapi.json",
                    *("--header", f"X-API-Key:{KEY}"),
                    *("--checks", "all", "--exclude-checks", ",".join(EXCLUDED)),
                    *("--max-examples", str(examples), "--seed", "36", "--workers", "2"),
                    *("--phases", "examples,coverage,fuzzing"),
                    *("--request-timeout", "30", "--continue-on-failure", "--no-color"),
                ],
                cwd=folder,
                check=False,
            )
            bugs = sum("a bug" in line or "Traceback" in line for line in server.lines)
        finally:
            server.stop()
    for check, why in EXCLUDED.items():
        print(f"not checked: {check}: {why}")
    print(f"{bugs} tracebacks in the log")
    return done.returncode or int(bugs > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
