"""The command `reef`: `python -m app`."""

import argparse
import http.client
import signal
import sys
import urllib.error
import urllib.request

from app import __version__, settings
from app.errors import StartError
from app.settings import Settings

EXIT_UNHEALTHY = 1
HEALTHCHECK_TIMEOUT_S = 5


def main(arguments: list[str] | None = None) -> int:
    """Run one sub-command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="reef",
        description="An object-detection server for Google's Coral Edge TPU.",
        epilog="Settings come from REEF_* variables and reef.yaml; README.md lists them.",
    )
    parser.add_argument("--version", action="version", version=f"reef {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("serve", help="serve until SIGTERM or Ctrl-C").set_defaults(run=serve)
    commands.add_parser(
        "healthcheck", help="ask a running server whether it is ready; exit status 0 or 1"
    ).set_defaults(run=healthcheck)
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(settings.load())
    except StartError as error:
        print(f"reef: {error}", file=sys.stderr)  # noqa: T201 - before there is a log
        return error.exit_status
    return status


def serve(told: Settings) -> int:
    """Serve; returns when stopped."""
    for number in (signal.SIGTERM, signal.SIGINT):  # until gunicorn takes them over
        signal.signal(number, lambda *_: sys.exit(0))
    from app import logs, models, server  # here, because `healthcheck` must be quick

    logs.configure(told)
    server.serve(told, models.load(told))
    return 0


def healthcheck(told: Settings) -> int:
    """Ask `/ready` on this host."""
    url = f"{told.local_url}/ready"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever $http_proxy is
    try:
        with direct.open(url, timeout=HEALTHCHECK_TIMEOUT_S) as answer:
            said, status = answer.read(), 0
    except urllib.error.HTTPError as refusal:
        said, status = refusal.read(), EXIT_UNHEALTHY
    except (OSError, http.client.HTTPException) as error:
        said, status = f"{url}: {error}".encode(), EXIT_UNHEALTHY
    print(said.decode(errors="replace"))  # noqa: T201 - `docker inspect` shows it
    return status


if __name__ == "__main__":
    sys.exit(main())
