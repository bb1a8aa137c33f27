"""gunicorn as Reef needs it: one worker, slow clients cut off, nothing lost at a stop."""

import contextlib
import logging
import math
import os
import resource
import shlex
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from wsgiref.types import WSGIApplication

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger

from app import image
from app.advice import HERE, Place
from app.devices import discovery, telemetry
from app.devices.pool import Pool
from app.devices.telemetry import Sighting
from app.devices.watch import Watch
from app.errors import AddressError
from app.http import create_app
from app.http_worker import SERVICE, Worker
from app.logs import Repeats
from app.models import Catalogue
from app.service import Service, admitted
from app.settings import Settings
from app.system import LEAST_CONNECTIONS, OTHER_DESCRIPTORS

log = logging.getLogger(__name__)

IDLE_S = 5  # a client that sends or takes nothing for so long is cut off
SPARE_THREADS = 16  # for /health and its kind, beside every admitted request
MARGIN_S = 5.0  # what a stop may take beyond the drain and the last request
BACKLOG = 256
CONNECTIONS = 4000  # open at a time, nearly all of them idle


def serve(
    settings: Settings, catalogue: Catalogue, listener: socket.socket, heartbeat: Path
) -> None:
    """Serve on a listening socket until SIGTERM or SIGINT; ends the process.

    `heartbeat` is a folder for the file by which gunicorn's worker says that it lives.
    """
    log.info("Listening on %s port %d", settings.host, settings.port)
    level, who = who_may_ask(settings)
    log.log(level, "%s", who)
    Master(Application(settings, catalogue, listener, heartbeat)).run()


def who_may_ask(settings: Settings, place: Place = HERE) -> tuple[int, str]:
    """Who may use the server, and how grave that is.

    A container can't know to whom its port is published; by compose.yaml, to its host alone.
    """
    if settings.keys:
        return logging.DEBUG, "Who brings an API key may use it"
    if settings.loopback_only:
        return logging.DEBUG, "Every program on this computer may use it"
    if place.in_image:
        return logging.INFO, "There is no API key: whoever reaches the published port may use it"
    return logging.WARNING, (
        f"There is no API key, so everybody who reaches port {settings.port} of this computer may "
        "use it: set REEF_API_KEY, or REEF_HOST=127.0.0.1"
    )


def ready_line(settings: Settings, catalogue: Catalogue, place: Place = HERE) -> str:
    """What the log says when pictures can be sent. A container can't know its published address."""
    if place.in_image:
        return "Ready"
    test = catalogue.default.selftest
    picture = os.path.relpath(test.path) if test else "PICTURE.jpg"
    key = _key_option(settings)
    return f"Ready. Try: curl {key}-F image=@{picture} {settings.local_url}/predict"


def _key_option(settings: Settings) -> str:
    """What makes the shell bring the key; the key itself is not for the log."""
    if not settings.keys:
        return ""
    file = settings.api_key_file
    key = f"$(head -n 1 {shlex.quote(str(file))})" if file else "$REEF_API_KEY"
    return f'-H "X-API-Key: {key}" '


def listen(settings: Settings) -> socket.socket:
    """The listening socket. Its timeouts are inherited by every connection that it accepts.

    Raises AddressError.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    idle = struct.pack("ll", IDLE_S, 0)  # struct timeval
    try:
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, idle)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, idle)
            if family == socket.AF_INET6:  # whatever net.ipv6.bindv6only says
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind((settings.host, settings.port))
            listener.listen(BACKLOG)
            undo.pop_all()
            return listener
    except OSError as error:
        why = error.strerror or str(error)
    except (TypeError, ValueError):  # of the name's encoding
        why = "that is no name of a computer"
    raise AddressError(
        f"can't listen on {settings.host} port {settings.port}: {why}; set REEF_HOST or REEF_PORT"
    )


def connections() -> int:
    """Raise this process's limit of descriptors as far as needed; how many connections it bears."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = min(CONNECTIONS + OTHER_DESCRIPTORS, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, most))
    return max(LEAST_CONNECTIONS, descriptors - OTHER_DESCRIPTORS)


def sightings(settings: Settings) -> list[Sighting]:
    """The devices that there are now, and how each is."""
    choice = discovery.choose(settings.devices)
    address = f"{settings.host}-{settings.port}"
    root = settings.host_root
    found = discovery.discover(address, settings.cpu_threads, root, choice)
    return [telemetry.look(device, root) for device in found]


def build_pool(
    settings: Settings, catalogue: Catalogue, on_ready: Callable[[], None] = lambda: None
) -> Pool:
    """The pool, with the devices that there are now; nothing is started."""
    pool = Pool(
        [],
        catalogue,
        queue_limit=settings.queue,
        run_dir=settings.run_dir,
        backoff_max_s=settings.restart_backoff_max_s,
        on_ready=on_ready,
        cpu_fallback=settings.cpu_fallback == "on",
        expect_edgetpu=discovery.choose(settings.devices).asks_for_edgetpu,
        library=settings.libedgetpu,
        usb_performance=settings.usb_performance,
    )
    pool.update(sightings(settings))
    return pool


class Application(BaseApplication):  # type: ignore[misc]
    """What gunicorn runs, and how."""

    def __init__(
        self, settings: Settings, catalogue: Catalogue, listener: socket.socket, heartbeat: Path
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._listener = listener
        self._heartbeat = heartbeat
        super().__init__()

    def load_config(self) -> None:
        """gunicorn's settings. They are not Reef's users' to change."""
        settings = self._settings
        for name, value in {
            "bind": f"fd://{self._listener.detach()}",
            "worker_class": "app.http_worker.Worker",
            "workers": 1,  # two would fight over the devices
            "threads": admitted(settings) + SPARE_THREADS,
            "timeout": 60,  # the worker's main loop only; devices have limits of their own
            "graceful_timeout": math.ceil(settings.drain_s + settings.deadline_s + MARGIN_S),
            "keepalive": IDLE_S,
            "worker_connections": connections(),
            "control_socket_disable": True,
            "forwarded_allow_ips": "",  # no client is believed what a proxy might say,
            "forwarder_headers": "",  # nor may it name its own SCRIPT_NAME
            "worker_tmp_dir": str(self._heartbeat),
            "logger_class": "app.server.Log",
            "proc_name": "reef",
            "worker_exit": _close_service,
        }.items():
            self.cfg.set(name, value)

    def load(self) -> WSGIApplication:
        """Build the WSGI application; called in the worker, which then owns the devices."""
        settings = self._settings
        pool = build_pool(settings, self._catalogue, self._announce)
        service = Service(settings, self._catalogue, pool, image.notes())
        app = create_app(service)
        app.extensions[SERVICE] = service
        pool.start()
        Watch(lambda: sightings(settings), pool).start()
        return app

    def _announce(self) -> None:
        log.info("%s", ready_line(self._settings, self._catalogue))


class Master(Arbiter):  # type: ignore[misc]
    """gunicorn's master: Ctrl-C drains like SIGTERM, and no signal starts a second worker."""

    def handle_term(self) -> None:
        """SIGTERM."""
        log.info("Stopping: first the requests that are here or come before the drain ends")
        super().handle_term()

    def handle_int(self) -> None:
        """SIGINT."""
        self.handle_term()

    def handle_hup(self) -> None:
        """SIGHUP and the signals for more, fewer or new workers."""
        log.warning("Reef neither reloads nor scales on a signal; restart it to change settings")

    handle_ttin = handle_ttou = handle_usr2 = handle_hup


class Log(Logger):  # type: ignore[misc]
    """gunicorn's messages, through Reef's logging."""

    def setup(self, cfg: Any) -> None:
        """Hand everything to the root logger; gunicorn's routine messages only at debug."""
        self.cfg = cfg
        self._repeats = Repeats()
        self._access_log_enabled = False
        self.error_log.propagate = True
        debugging = logging.getLogger().isEnabledFor(logging.DEBUG)
        self.error_log.setLevel(logging.DEBUG if debugging else logging.WARNING)

    def warning(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """Once a second of a kind: what clients send must not fill the log."""
        held = self._repeats.pass_on(msg.partition("=")[0])  # what follows is a client's
        if held is not None:
            more = f" (and {held} more like it)" if held else ""
            self.error_log.warning(f"{msg}{more}", *args, **kwargs)

    def exception(self, msg: str, *args: Any, **kwargs: Any) -> None:
        """A client that stalled is no error of ours."""
        if isinstance(sys.exception(), BlockingIOError | TimeoutError):
            self.warning("A client neither sent nor took anything for %d s", IDLE_S)
        else:
            super().exception(msg, *args, **kwargs)

    def access(self, *args: Any) -> None:
        """There is no access log: `/metrics` counts requests, and refusals are logged."""


def _close_service(_master: Arbiter, worker: Worker) -> None:
    if worker.booted:
        worker.service.pool.close()
