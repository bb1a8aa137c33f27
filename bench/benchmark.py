#!/usr/bin/env python3
"""The benchmark: what does this box hold, and what limits it? `--help` tells the rest."""

import sys
from pathlib import Path

sys.path[0] = str(
    Path(__file__).resolve().parent.parent
)  # not bench/, whose modules have plain names

NEEDED = ("httptools", "PIL", "psutil")


def _missing() -> str | None:
    """The first library that is not there, of those that nothing works without."""
    from importlib.util import find_spec

    return next((name for name in NEEDED if find_spec(name) is None), None)


if __name__ == "__main__":
    if (name := _missing()) is not None:
        print(
            f"benchmark: there is no {name}; 'make bench ARGS=--help' installs what is needed, or: "
            "pip install --require-hashes -r requirements/bench.txt",
            file=sys.stderr,
        )
        sys.exit(2)
    from bench.benchmarking.main import main

    sys.exit(main(sys.argv[1:]))
