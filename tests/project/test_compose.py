"""compose.yaml, .env.example and the Dockerfile say what the code does, and the same."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import __version__, settings
from app.http_worker import MAX_HEADER_BYTES
from app.server import CONNECTIONS, MARGIN_S, SPARE_THREADS
from app.service import UPLOADING
from app.settings import Settings
from app.variables import OF_THE_CONTAINER
from tests.project import tables
from tests.project.documents import ENV_LINE, FOR_COMPOSE, GUIDES, README, SETTINGS, blocks
from tests.support import ROOT

PATHS = sorted(ROOT.glob("compose*.yaml"))
TEXT = (ROOT / "compose.yaml").read_text()
REEF: dict[str, Any] = yaml.safe_load(TEXT)["services"]["reef"]
DEFAULTS = Settings.model_validate({})
CORES = REEF["cpu_quota"] // REEF["cpu_period"]

VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)\}")
READ_BY_COMPOSE_ITSELF = {"COMPOSE_FILE": "compose.yaml"}


def read_in(text: str) -> dict[str, str]:
    """The variables of a compose file, with their defaults."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return dict(VARIABLE.findall("\n".join(lines)))


def default(name: str) -> str:
    """What compose.yaml takes when a variable is not set."""
    return read_in(TEXT)[name]


def test_every_variable_is_explained_with_its_default() -> None:
    variables = dict(READ_BY_COMPOSE_ITSELF)
    for path in PATHS:
        variables |= read_in(path.read_text())
    explained = {name: value for name, value in FOR_COMPOSE.items() if name not in handed_on()}
    own = {name: value for name, value in variables.items() if name not in handed_on()}
    assert explained == own


def test_the_settings_explained_are_those_of_the_code() -> None:
    written = tables.ENV_EXAMPLE.read_text().partition(tables.ENV_MARK)[2]
    assert written == tables.env_example(), "run: python -m tests.project.tables"


def test_a_server_knows_what_is_for_the_container_alone() -> None:
    assert {name for name in FOR_COMPOSE if name.startswith("REEF_")} - SETTINGS == OF_THE_CONTAINER


def handed_on() -> set[str]:
    """The variables that reach Reef itself."""
    return set(REEF["environment"])


def filled_in(value: Any) -> Any:
    """A part of a compose file as it is when nothing is set."""
    match value:
        case dict():
            return {name: filled_in(each) for name, each in value.items()}
        case list():
            return [filled_in(each) for each in value]
        case str():
            return VARIABLE.sub(lambda variable: variable[2], value)
    return value


def test_the_service_that_readme_offers_to_paste_is_the_one_that_is_tested() -> None:
    ((_, snippet),) = blocks(README.read_text(), "yaml")
    pasted = yaml.safe_load(snippet)
    service, tested = pasted["services"]["reef"], filled_in(REEF)
    for name in ("environment", "volumes"):
        assert set(service.pop(name)) <= set(tested[name])
    assert {name: tested[name] for name in service} == service
    assert {"cap_drop", "mem_limit", "pids_limit", "read_only", "security_opt", "user"} <= set(
        service
    )


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_every_env_that_a_guide_shows_is_right_and_opens_nothing_without_a_key(path: Path) -> None:
    for _, block in blocks(path.read_text(), "ini"):
        shown = dict(ENV_LINE.findall(block))
        assert set(shown) <= set(FOR_COMPOSE)
        reading = settings.read({name: shown[name] for name in set(shown) & SETTINGS})
        assert reading.problems == ()
        assert shown.get("REEF_BIND", "127.0.0.1") == "127.0.0.1" or reading.settings.keys


def test_the_benchmark_is_no_part_of_the_service() -> None:
    """It is started by name only, with an image of its own, and may become the user, not more."""
    bench = yaml.safe_load(TEXT)["services"]["bench"]
    assert bench["profiles"] == ["bench"]
    assert bench["image"] != REEF["image"]
    assert (bench["build"]["target"], "target" in REEF["build"]) == ("bench", False)
    assert bench["read_only"] is True
    assert (bench["cap_drop"], set(bench["cap_add"])) == (["ALL"], {"SETGID", "SETUID"})
    assert bench["security_opt"] == ["no-new-privileges:true"]


def test_every_setting_is_handed_on_but_those_that_the_image_fixes() -> None:
    fixed = {f"REEF_{name.upper()}" for name in tables.FIXED_IN_THE_IMAGE}
    assert handed_on() == SETTINGS - fixed
    dockerfile = (ROOT / "Dockerfile").read_text()
    for name in fixed - {"REEF_PORT"}:
        assert f" {name}=" in dockerfile


def test_the_port_published_is_the_one_that_the_image_serves() -> None:
    assert REEF["ports"] == [f"${{REEF_BIND:-127.0.0.1}}:${{REEF_PORT:-5000}}:{DEFAULTS.port}"]
    assert f"EXPOSE {DEFAULTS.port}\n" in (ROOT / "Dockerfile").read_text()


def test_it_is_hardened() -> None:
    assert REEF["user"] == "10001:10001"
    assert REEF["read_only"] is True
    assert REEF["cap_drop"] == ["ALL"]
    assert REEF["security_opt"] == ["no-new-privileges:true"]
    assert REEF["ulimits"] == {"core": 0}
    assert REEF["init"] is True
    assert not {"cap_add", "network_mode", "pid", "ipc", "privileged"} & set(REEF)
    assert all("noexec,nosuid,nodev" in each for each in REEF["tmpfs"])


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_no_file_asks_for_privileges_or_for_the_engine(path: Any) -> None:
    services = yaml.safe_load(path.read_text())["services"].values()
    assert not any("privileged" in service for service in services)
    assert "docker.sock" not in path.read_text()


def test_the_memory_limit_is_what_the_formula_gives() -> None:
    bodies = (DEFAULTS.queue + CORES + UPLOADING) * 2 * DEFAULTS.max_upload_mib
    pictures = math.ceil(CORES * 16 * DEFAULTS.max_pixels / 1024**2)
    (rest,) = re.findall(r"one for all, and /tmp +=  ?(\d+) MiB", TEXT)
    assert f"= {bodies} MiB" in TEXT
    assert f"= {pictures} MiB" in TEXT
    headers = math.ceil(CONNECTIONS * MAX_HEADER_BYTES / 1024**2)
    assert f"=   {headers} MiB" in TEXT
    wanted = bodies + pictures + headers + int(rest)
    assert wanted <= int(default("REEF_MEMORY").removesuffix("m")) < wanted * 1.1


def test_threads_fit_into_the_limit_of_processes() -> None:
    largest_queue = 256
    assert largest_queue + CORES + UPLOADING + SPARE_THREADS + 100 < REEF["pids_limit"]


def test_a_stop_is_given_the_time_that_it_takes() -> None:
    takes = DEFAULTS.drain_s + DEFAULTS.deadline_s + MARGIN_S
    assert int(default("REEF_STOP_GRACE").removesuffix("s")) > takes
    assert f"REEF_DRAIN_S {DEFAULTS.drain_s:g} + REEF_DEADLINE_S {DEFAULTS.deadline_s:g}" in TEXT


def test_the_image_has_the_version_of_the_code() -> None:
    assert f"ARG VERSION={__version__}\n" in (ROOT / "Dockerfile").read_text()


def test_what_belongs_to_one_computer_is_not_committed() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/.env", "/compose.devices.yaml", "/compose.volumes.yaml"} <= set(ignored)
