"""What stops a benchmark before its verdict.

BenchmarkError
├── WrongUsage     2   an option, or a file that one names, is not what it may be
└── Unreachable    4   no server answers at the URL
"""


class BenchmarkError(Exception):
    """The root of the tree: one line for the user, and the exit status."""

    exit_status = 1


class WrongUsage(BenchmarkError):
    """An option, or a file that one names, is not what it may be."""

    exit_status = 2


class Unreachable(BenchmarkError):
    """No server answers at the URL, or what answers is no Reef."""

    exit_status = 4
