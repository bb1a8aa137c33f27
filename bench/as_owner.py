"""The container's entry: runs the benchmark as whoever owns the folder of the results, so that they
are theirs and not root's. Where root owns it, or the container runs as somebody, that stays so.
"""

import os
import sys
from pathlib import Path

RESULTS = Path("benchmark_results")
BENCHMARK = Path(__file__).with_name("benchmark.py")


def main() -> None:
    """Become the owner, and then the benchmark."""
    owner = RESULTS.stat()
    if os.getuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
    os.execv(sys.executable, [sys.executable, str(BENCHMARK), *sys.argv[1:]])  # noqa: S606


main()
