"""Which environment variables are Reef's, and what each holds; pure."""

import ipaddress
import re
from collections.abc import Callable, Collection, Mapping

PREFIX = "REEF_"
BYTE_ORDER_MARK = "\ufeff"
QUOTED = re.compile(r"""(?P<quote>["'])(?P<content>((?!(?P=quote)).)*)(?P=quote)""", re.DOTALL)
SERVICE_URL = re.compile(r"(tcp|udp|sctp)://(\[(?P<ipv6>[^\]]+)\]|(?P<ipv4>[0-9.]+)):\d+")

OF_THE_CONTAINER = frozenset(
    {
        "REEF_APEX_GID",
        "REEF_BASE",
        "REEF_BIND",
        "REEF_BUILD_BASE",
        "REEF_CADDY",
        "REEF_IMAGE",
        "REEF_LOGS",
        "REEF_MEMORY",
        "REEF_MODELS",
        "REEF_STOP_GRACE",
        "REEF_TLS",
        "REEF_TLS_BIND",
        "REEF_TLS_FILES",
        "REEF_TLS_NAME",
        "REEF_TLS_PORT",
        "REEF_USB_GID",
    }
)
"""What `.env` holds beside settings, for whoever starts the container. A shell that has it must not
keep a server without one from starting."""


def own(environ: Mapping[str, str], known: Collection[str]) -> dict[str, str]:
    """The variables that are `known` or begin like them, by name, and their values."""
    values = {}
    for written, value in environ.items():
        name = written.lstrip(BYTE_ORDER_MARK)  # of the first line of a file that Windows wrote
        meant = name in known or (name.startswith(PREFIX) and name not in OF_THE_CONTAINER)
        if meant and not _is_of_a_service(name, value) and (name == written or name not in environ):
            values[name] = unwrapped(value)
    return values


def of_services(environ: Mapping[str, str]) -> list[str]:
    """The names that look like Reef's and are not.

    Kubernetes tells a pod of every Service in its namespace; those of a Service called `reef`, or
    `reef-anything`, begin as Reef's own do.
    """
    return sorted(name for name, value in environ.items() if _is_of_a_service(name, value))


def of_the_container(environ: Mapping[str, str]) -> list[str]:
    """The names that look like settings and are for whoever starts the container."""
    return sorted(OF_THE_CONTAINER & environ.keys())


def unwrapped(value: str) -> str:
    """A value without what comes along from a file of variables: a byte order mark, a carriage
    return, blank space, and quotes, which Compose takes off and `docker run --env-file` doesn't."""
    text = value.strip(f"{BYTE_ORDER_MARK} \t\r\n")
    quoted = QUOTED.fullmatch(text)
    return quoted["content"].strip() if quoted else text


def _is_of_a_service(name: str, value: str) -> bool:
    return any(form.fullmatch(name) and is_so(value.strip()) for form, is_so in OF_SERVICES)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_service_url(text: str) -> bool:
    """Whether it is like `tcp://10.96.12.7:5000` or `udp://[fd00::7]:53`."""
    url = SERVICE_URL.fullmatch(text)
    return url is not None and _is_address(url["ipv6"] or url["ipv4"])


OF_SERVICES: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = tuple(
    (re.compile(f"{PREFIX}([A-Z0-9_]+_)?{form}"), is_so)
    for form, is_so in (
        ("SERVICE_HOST", _is_address),
        ("SERVICE_PORT(_[A-Z0-9_]+)?", str.isdecimal),
        ("PORT", _is_service_url),
        (r"PORT_\d+_(TCP|UDP|SCTP)", _is_service_url),
        (r"PORT_\d+_(TCP|UDP|SCTP)_PROTO", {"tcp", "udp", "sctp"}.__contains__),
        (r"PORT_\d+_(TCP|UDP|SCTP)_PORT", str.isdecimal),
        (r"PORT_\d+_(TCP|UDP|SCTP)_ADDR", _is_address),
    )
)
"""What Kubernetes calls what it tells of a Service (envvars.go), and what each holds."""
