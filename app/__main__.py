"""The command `reef`: `python -m app`."""

import argparse
import json
import logging
import signal
import sys
from collections.abc import Iterable
from http import HTTPStatus

from app import __version__, local, settings
from app.advice import HERE
from app.errors import StartError, SystemLacks
from app.settings import Reading

log = logging.getLogger(__name__)

EXIT_UNHEALTHY = 1


def main(arguments: list[str] | None = None) -> int:
    """Run one sub-command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=HERE.command(),
        description="An object-detection server for Google's Coral Edge TPU.",
        epilog="Settings come from REEF_* variables and reef.yaml; docs/reference.md lists them.",
    )
    parser.add_argument("--version", action="version", version=f"reef {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("serve", help="serve until SIGTERM or Ctrl-C").set_defaults(run=serve)
    commands.add_parser(
        "check",
        help="check settings, models and the port, and serve nothing",
        description="Checks everything that `serve` would: settings, models, labels, folders, the "
        "port and the system. It says everything that is wrong, a line each, and changes nothing.",
        epilog="exit status: 0 all is well, 2 a setting is wrong, 3 a model, 4 the port is taken, "
        "5 the system lacks something; of several, the first one's",
    ).set_defaults(run=check)
    commands.add_parser(
        "healthcheck", help="ask a running server whether it is ready; exit status 0 or 1"
    ).set_defaults(run=healthcheck)
    examine = commands.add_parser(
        "doctor",
        help="find out why an Edge TPU doesn't work",
        description="Looks for what keeps an Edge TPU from working. It changes nothing, and is "
        "safe while the server runs.",
        epilog="exit status: 0 all is well, 5 the system gives it no threads, 10 there are "
        "warnings, 20 there are errors",
    )
    examine.add_argument("--json", action="store_true", help="for programs")
    examine.set_defaults(run=doctor)
    add_models(commands.add_parser("models", help="list, download and verify models"))
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
    except StartError as error:
        for problem in error.problems:
            print(f"reef: {problem}", file=sys.stderr)  # noqa: T201 - before there is a log
        return error.exit_status
    return status


def add_models(parser: argparse.ArgumentParser) -> None:
    """The command line of `reef models`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="the models of the manifest, and what of them is here")
    pull = actions.add_parser("pull", help="download a model's files into REEF_MODELS_DIR")
    pull.add_argument("name", metavar="NAME", help="a model of the list")
    pull.add_argument("--for", dest="kind", choices=("cpu", "edgetpu", "all"), default="all",
                      help="only the file for this kind of device")  # fmt: skip
    pull.add_argument("--mirror", default="", metavar="URL", help="has the files by their names")
    verify = actions.add_parser("verify", help="check every byte of the files that are here")
    verify.add_argument("name", metavar="NAME", nargs="?", default="", help="default: every model")
    parser.set_defaults(run=manage_models)


def doctor(options: argparse.Namespace) -> int:
    """Examine this host, whatever else it lacks, where there are threads to do so."""
    configured = settings.load()
    from app import system  # before what needs its threads at its loading

    system.require_threads(system.threads_needed(configured))
    from app import doctor as examination

    findings = examination.examine(examination.Patient.this_host(configured))
    print(examination.report(findings, as_json=options.json))  # noqa: T201 - what was asked for
    return examination.EXIT_STATUS[examination.worst(findings)]


def manage_models(options: argparse.Namespace) -> int:
    """List, download or verify models."""
    from app.store import Store

    store, well = Store(settings.load()), True
    match options.action:
        case "list":
            lines: Iterable[str] = store.listing()
        case "pull":
            lines = store.pull(options.name, options.kind, options.mirror)
        case _:
            lines, well = store.verify(options.name)
    for line in lines:
        print(line, flush=True)  # noqa: T201 - what was asked for
    return 0 if well else EXIT_UNHEALTHY


def serve(_options: argparse.Namespace) -> int:
    """Serve; returns when stopped."""
    for number in (signal.SIGTERM, signal.SIGINT):  # until gunicorn takes them over
        signal.signal(number, lambda *_: sys.exit(0))
    reading = _read()
    from app import logs, server, start

    started = start.prepare(reading, logs.configure)
    if ignored := settings.names_of_services():
        log.debug("Of a Kubernetes Service, and no settings: %s", ", ".join(ignored))
    if unusable := start.unusable_run_folder(started.settings):
        log.warning("%s; an Edge TPU can't be used so", unusable)
    if left_out := settings.names_of_the_container():
        log.warning("For the container alone, and of no effect here: %s", ", ".join(left_out))
    server.serve(started.settings, started.catalogue, started.listener, started.heartbeat)
    return 0


def check(_options: argparse.Namespace) -> int:
    """Check everything that keeps a server from starting."""
    reading = _read()
    from app import start

    started = start.prepare(reading, start.check_folders)
    started.listener.close()
    models = ", ".join(model.name for model in started.catalogue.all)
    address = f"{started.settings.host} port {started.settings.port}"
    print(f"all is well: {models} on {address}")  # noqa: T201
    return 0


def _read() -> Reading:
    """The settings, where a server can run at all. Raises SystemLacks."""
    reading = settings.read()
    from app import memory, system  # before what needs its threads at its loading

    memory.give_memory_back()
    try:
        system.require(reading.settings)
    except SystemLacks as error:
        raise SystemLacks(*error.problems, *reading.problems) from error
    return reading


def healthcheck(_options: argparse.Namespace) -> int:
    """Ask `/ready` on this host."""
    try:
        answer = local.ask(settings.load(), "/ready")
    except local.NoServer as error:
        print(error)  # noqa: T201 - `docker inspect` shows it
        return EXIT_UNHEALTHY
    print(json.dumps(answer.body, separators=(",", ":")))  # noqa: T201
    return 0 if answer.status == HTTPStatus.OK else EXIT_UNHEALTHY


if __name__ == "__main__":
    sys.exit(main())
