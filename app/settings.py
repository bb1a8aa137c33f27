"""Every setting, once: its name, default, unit and help. Read once, at the edge, then frozen.

The environment comes first, then the YAML file, then the default. The table in `docs/reference.md`
and the messages about wrong values are made from what stands here.
"""

import difflib
import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SecretStr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo

from app import variables
from app.advice import unreadable
from app.errors import SettingsError
from app.variables import PREFIX

CONFIG_VARIABLE = "REEF_CONFIG"
DEFAULT_CONFIG = "reef.yaml"
KEY_FILE = "api_key_file"
LOCAL = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}  # noqa: S104 - where it is reached from here
"""Who listens on every address of IPv6 takes IPv4 too, and IPv6 may have no loopback."""
MAX_RESULTS = 1000
MAX_KEY_FILE_BYTES = 64 * 1024
KEYS = re.compile(r"[\x21-\x7e]{16,256}(\n[\x21-\x7e]{16,256})*")  # one a line
EMBEDDED_MODELS = Path(__file__).parent.parent / "models"


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _is_key(value: SecretStr) -> SecretStr:
    if value.get_secret_value() and not KEYS.fullmatch(value.get_secret_value()):
        raise ValueError("no key that is hard to guess and easy to send")
    return value


def _temporary_folder() -> Path:
    """Where others keep such files; where that can't be written, whoever writes says so."""
    try:
        return Path(gettempdir())
    except FileNotFoundError:
        return Path("/tmp")  # noqa: S108 - a name for the message


Lower = BeforeValidator(_lower)
ON_OFF = ("on", "off")
Switch = Annotated[Literal["on", "off"], Lower]
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Origin = Annotated[str, StringConstraints(pattern=r"^(\*|https?://[^/\s,]+)$")]
Key = Annotated[SecretStr, AfterValidator(_is_key)]


class Settings(BaseModel):
    """What Reef was told. Build it with `load`, which explains what is wrong in one line."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen on; `0.0.0.0` serves the whole network.",
    )
    port: int = Field(5000, ge=1, le=65535, description="Port to listen on.")

    model: str = Field(
        "", description="Default model: a name from the manifest, or a `.tflite` file of your own."
    )
    labels: Path | None = Field(
        None, description="Labels of the file in `REEF_MODEL`: one per line, or `id name`."
    )
    model_cpu: str = Field(
        "", description="The CPU's counterpart of a `REEF_MODEL` compiled for the Edge TPU."
    )
    extra_models: Names = Field(
        (), description="More models to serve, for the parameter `model`: names or files."
    )
    models_dir: Path = Field(
        EMBEDDED_MODELS, description="Where model files are looked up, before the embedded ones."
    )

    devices: Names = Field(
        ("auto",),
        description="`auto`, `cpu`, `pci`, `usb`, or devices by their ids in `/devices`.",
    )
    cpu_fallback: Switch = Field(
        "on", description="Whether the CPU answers while no Edge TPU can, marked as degraded."
    )
    usb_performance: Annotated[Literal["default", "low", "medium", "high", "max"], Lower] = Field(
        "default", description="Clock of Edge TPUs on USB; `max` makes them hot."
    )
    libedgetpu: str = Field(
        "libedgetpu.so.1", min_length=1, description="The Edge TPU's library: a name, or a path."
    )
    host_root: Path = Field(
        Path("/"), description="Where the host's `/sys`, `/dev` and `/proc` are found."
    )
    cpu_threads: int = Field(
        0,
        ge=0,
        le=64,
        description="Threads of one inference on the CPU; 0 takes every core, at most 4.",
    )

    min_score: float = Field(
        0.4, ge=0, le=1, allow_inf_nan=False, description="Default of the parameter `min_score`."
    )
    max_results: int = Field(
        100, ge=1, le=MAX_RESULTS, description="Default of the parameter `max_results`."
    )
    only_labels: Names = Field((), description="Default of the parameter `labels`.")

    deadline_s: float = Field(
        10.0,
        gt=0,
        le=300,
        allow_inf_nan=False,
        description="Longest time from a request's header to its answer or refusal.",
        json_schema_extra={"unit": "s"},
    )
    queue: int = Field(
        32,
        ge=1,
        le=256,
        description="Pictures that may wait for a device; more requests than these get 503.",
    )
    max_upload_mib: int = Field(
        16, ge=1, le=256, description="Largest request body.", json_schema_extra={"unit": "MiB"}
    )
    max_megapixels: float = Field(
        25.0,
        gt=0,
        le=44,  # four times that is as far as Pillow goes
        allow_inf_nan=False,
        description="Largest picture decoded whole; a baseline JPEG may have four times that.",
        json_schema_extra={"unit": "MP"},
    )

    api_key: Key = Field(
        SecretStr(""),
        description="Key that a request must bring; none: everybody who reaches the port may ask.",
        json_schema_extra={"takes": "16 to 256 visible ASCII characters", "secret": True},
    )
    api_key_file: Path | None = Field(
        None,
        description="File with such keys instead, one a line; any of them opens.",
    )
    open_routes: Annotated[
        tuple[Literal["devices", "metrics", "models"], ...], BeforeValidator(_split)
    ] = Field(
        (),
        description="Routes that need no key, beside `/health`, `/ready` and `/openapi.json`.",
        json_schema_extra={"takes": "any of devices, metrics, models, with commas between"},
    )
    client_requests: int = Field(
        0,
        ge=0,
        le=256,
        description="Pictures of one client that may be here at once; 0: as many as have room.",
    )
    client_rate: float = Field(
        0.0,
        ge=0,
        le=10_000,
        allow_inf_nan=False,
        description="Pictures that one client may send in a second, on average; 0: no limit.",
    )
    proxies: Annotated[tuple[IPvAnyNetwork, ...], BeforeValidator(_split)] = Field(
        (),
        description="Proxies whose `X-Forwarded-For` names the client for the two limits above.",
        json_schema_extra={"takes": "addresses or networks, with commas between"},
    )
    cors_origins: Annotated[tuple[Origin, ...], BeforeValidator(_split)] = Field(
        (),
        description="Web pages that a browser lets ask Reef; `*`: any.",
        json_schema_extra={"takes": "origins like https://home.example, with commas between"},
    )

    drain_s: float = Field(
        2.0,
        ge=0,
        le=300,
        allow_inf_nan=False,
        description="How long to go on taking requests after SIGTERM, with `/ready` at 503.",
        json_schema_extra={"unit": "s"},
    )
    restart_backoff_max_s: float = Field(
        60.0,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="Longest pause before a failing device is started again.",
        json_schema_extra={"unit": "s"},
    )
    run_dir: Path = Field(
        _temporary_folder() / f"reef-{os.getuid()}",
        description="Where each device's lock file is kept.",
    )

    log_level: Annotated[Literal["debug", "info", "warning", "error"], Lower] = Field(
        "info", description="Least severe message that is logged."
    )
    log_format: Annotated[Literal["text", "json"], Lower] = Field(
        "text", description="Form of a log line."
    )
    log_dir: Path | None = Field(
        None, description="Folder for a rotating `reef.log` beside what goes to stdout."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, value: object, about: ValidationInfo) -> object:
        """YAML reads `yes` and `on` as true, which Python takes for 1."""
        if isinstance(value, bool):
            if get_args(cls.model_fields[str(about.field_name)].annotation) == ON_OFF:
                return "on" if value else "off"
            raise ValueError("no such setting is true or false")
        return value

    @property
    def keys(self) -> tuple[str, ...]:
        """The API keys, wherever they came from; none where everybody may ask."""
        return tuple(self.api_key.get_secret_value().split())

    @property
    def local_url(self) -> str:
        """Where this host reaches the server: `http://127.0.0.1:5000`."""
        host = LOCAL.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def loopback_only(self) -> bool:
        """Whether other computers can't reach the address to listen on."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def max_upload_bytes(self) -> int:
        """Largest request body, in bytes."""
        return self.max_upload_mib * 1024 * 1024

    @property
    def max_pixels(self) -> int:
        """Largest picture that may be decoded whole, in pixels."""
        return int(self.max_megapixels * 1_000_000)


@dataclass(frozen=True)
class Reading:
    """The settings that are right, the others at their defaults; and what is wrong."""

    settings: Settings
    wrong: frozenset[str] = frozenset()
    """The names of the settings whose values can't be used."""
    problems: tuple[str, ...] = ()


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings from `environ` (default: the process's), the YAML file and the defaults.

    Raises SettingsError naming each wrong setting and what it takes.
    """
    reading = read(environ)
    if reading.problems:
        raise SettingsError(*reading.problems)
    return reading.settings


def read(environ: Mapping[str, str] | None = None) -> Reading:
    """As `load`, but what is wrong stops nothing."""
    known = {variable(name) for name in Settings.model_fields} | {CONFIG_VARIABLE}
    own = variables.own(os.environ if environ is None else environ, known)
    problems = [f"{name}: no such setting{_meant(name, known)}" for name in sorted({*own} - known)]
    named = own.get(CONFIG_VARIABLE, "")
    config = Path(named or DEFAULT_CONFIG)
    from_environ = {
        name: own[variable(name)] for name in Settings.model_fields if own.get(variable(name))
    }
    try:
        values = _from_file(config, named=bool(named)) | from_environ
    except SettingsError as error:
        problems += error.problems
        values = dict(from_environ)
    wrong: set[str] = set()
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        wrong = {str(problem["loc"][0]) for problem in error.errors()}
        problems += _explain(error, from_environ, config)
        right = {name: value for name, value in values.items() if name not in wrong}
        settings = Settings.model_validate(right)
    if settings.api_key_file:
        try:
            settings = _with_keys(settings)
        except SettingsError as error:
            wrong.add(KEY_FILE)
            problems += error.problems
    return Reading(settings, frozenset(wrong), tuple(problems))


def names_of_services(environ: Mapping[str, str] | None = None) -> list[str]:
    """Variables in `environ` (default: the process's) that a platform set, and are no settings."""
    return variables.of_services(os.environ if environ is None else environ)


def names_of_the_container(environ: Mapping[str, str] | None = None) -> list[str]:
    """Variables in `environ` (default: the process's) that are read where containers start."""
    return variables.of_the_container(os.environ if environ is None else environ)


def variable(name: str) -> str:
    """The environment variable of a setting: `min_score` → `REEF_MIN_SCORE`."""
    return "LOG_LEVEL" if name == "log_level" else PREFIX + name.upper()


def takes(field: FieldInfo) -> str:
    """What a setting takes, in words: `a whole number from 1 to 65535`."""
    kind: Any = field.annotation
    if in_words := _extra(field, "takes"):
        return in_words
    if get_origin(kind) is Literal:
        return _either(get_args(kind))
    if kind in (int, float):
        bounds = {type(rule).__name__: rule for rule in field.metadata}
        low = getattr(bounds.get("Ge"), "ge", getattr(bounds.get("Gt"), "gt", None))
        span = f"above {low:g}, up to " if "Gt" in bounds else f"from {low:g} to "
        noun = "a whole number" if kind is int else "a number"
        return f"{noun} {span}{bounds['Le'].le:g} {unit_of(field)}".strip()
    if kind is str:
        return "text"
    return "a path" if Path in (kind, *get_args(kind)) else "names, with commas between"


def unit_of(field: FieldInfo) -> str:
    """The unit of a setting, or an empty text."""
    return _extra(field, "unit")


def _extra(field: FieldInfo, name: str) -> str:
    extra = field.json_schema_extra
    return str(extra.get(name, "")) if isinstance(extra, dict) else ""


def _with_keys(settings: Settings) -> Settings:
    """The settings, with the keys that the file has."""
    name, path = variable(KEY_FILE), settings.api_key_file
    assert path  # noqa: S101 - for the type checker
    if settings.keys:
        raise SettingsError(f"{name}: there is a key in {variable('api_key')} too; set one of them")
    try:
        with path.open(encoding="ascii") as file:
            lines = file.read(MAX_KEY_FILE_BYTES).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = unreadable(path, error) if isinstance(error, OSError) else "it is not ASCII"
        raise SettingsError(f"{name}: '{path}' can't be read: {why}") from error
    keys = [line.strip() for line in lines if line.strip()]
    try:
        checked = Settings.model_validate({"api_key": "\n".join(keys)})
    except ValidationError:
        keys = []
    if not keys:
        kind = takes(Settings.model_fields["api_key"])
        raise SettingsError(f"{name}: '{path}' must hold a key a line, each {kind}")
    return settings.model_copy(update={"api_key": checked.api_key})


def _from_file(config: Path, *, named: bool) -> dict[str, Any]:
    """The values of the YAML file; `named`: somebody said that it is there."""
    try:
        values = yaml.safe_load(config.read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        if named:
            why = f"{CONFIG_VARIABLE}: no such file '{config}'; mount it or unset it"
            raise SettingsError(why) from error
        return {}
    except OSError as error:
        raise SettingsError(f"{config}: can't be read: {unreadable(config, error)}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{config}: can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict | None):
        raise SettingsError(f"{config}: must hold lines of the form 'setting: value'")
    return {str(name): value for name, value in (values or {}).items() if value is not None}


def _explain(
    error: ValidationError, from_environ: Mapping[str, str], config: Path
) -> Iterator[str]:
    """A sentence for each wrong setting."""
    first = {str(problem["loc"][0]): problem for problem in reversed(error.errors())}
    for name, problem in reversed(first.items()):
        field = Settings.model_fields.get(name)
        where = variable(name) if name in from_environ else f"{config}: {name}"
        if field is None:
            meant = _meant(name, set(Settings.model_fields))
            yield f"{config}: no such setting '{name}'{meant}"
        elif _extra(field, "secret"):
            yield f"{where}: takes {takes(field)}; what it has is something else"
        else:
            yield f"{where}: takes {takes(field)}, not {str(problem['input'])[:80]!r}"


def _either(words: tuple[str, ...]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}"


def _meant(name: str, known: set[str]) -> str:
    bare = {each.removeprefix(PREFIX): each for each in sorted(known)}  # all are alike by it
    close = difflib.get_close_matches(name.removeprefix(PREFIX), bare, n=1)
    return f"; did you mean {bare[close[0]]}?" if close else "; docs/reference.md lists them"
