"""What is in the image, and what must not be: in its files, in its layers, in its description."""

import hashlib
import io
import json
import os
import re
import tarfile
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from app import __version__
from tests.container import contents
from tests.container.contents import File
from tests.container.engine import (
    IMAGE,
    INSIDE,
    LABEL,
    PORT,
    Container,
    docker,
    exported,
    once,
    saved,
    told,
)
from tests.support import ROOT

USER = 10001
MOST_BYTES = 350_000_000
LOGS = "var/log/reef"
OURS = "opt/reef/"


@pytest.fixture(scope="session")
def files(image: str) -> list[File]:
    """Every file of the image."""
    container = told("create", "--label", LABEL, image)
    with exported(container) as archive:
        return list(contents.read(archive))


@pytest.fixture(scope="session")
def buried(image: str) -> list[File]:
    """Every file of every layer: also those that a later layer hides."""
    with saved(image) as archive:
        return [file for layer in contents.layers(archive) for file in contents.read(layer)]


@pytest.fixture(scope="session")
def description(image: str) -> dict[str, Any]:
    """What the engine says of the image."""
    (found,) = json.loads(told("image", "inspect", image))
    return dict(found)


@pytest.fixture(scope="session")
def config(description: dict[str, Any]) -> dict[str, Any]:
    """What it runs, and how."""
    return dict(description["Config"])


# ---------------------------------------------------------------------------- files


def test_no_file_gives_anybody_more_rights(files: list[File]) -> None:
    assert contents.set_id(files) == []


def test_nobody_may_write_but_to_the_temporary_folders(files: list[File]) -> None:
    assert contents.writable(files) == []


def test_there_is_nothing_to_build_install_or_fetch_with(files: list[File]) -> None:
    assert contents.tools(files) == []


def test_no_certificate_was_left_by_the_build(buried: list[File]) -> None:
    assert len(buried) > 1000
    assert contents.secrets(buried) == []


def test_the_server_can_not_change_itself(files: list[File]) -> None:
    ours = {file.owner for file in files if file.path.startswith(OURS)}
    assert ours == {0}


def test_its_user_owns_its_volumes_and_nothing_else(files: list[File]) -> None:
    owned = {file.path.rstrip("/") for file in files if file.owner == USER}
    assert owned == {"models", LOGS}


def test_no_cache_or_log_of_the_build_is_left(files: list[File]) -> None:
    folders = ("var/lib/apt/lists/", "var/cache/apt/", "root/.cache/", "tmp/", "var/log/")
    left = [
        file.path
        for file in files
        if file.kind == "file"
        and file.path.startswith(folders)
        and not file.path.endswith((".keep", "/lock"))
    ]
    assert left == []


def test_python_has_nothing_left_to_compile(shared: Container) -> None:
    """It could not keep the result, and would compile at each start."""
    python, *_ = shared.inside("command", 1)
    said = shared.exec(python, "-c", INSIDE, "uncompiled", '["app.server", "app.devices.worker"]')
    assert json.loads(said.out) == [], said.err


@pytest.mark.skipif("REEF_IMAGE" in os.environ, reason="REEF_IMAGE may be of other sources")
def test_it_is_made_of_these_sources(shared: Container) -> None:
    """An image of last week would pass every other test."""
    listed = shared.exec("sh", "-c", "cd /opt/reef && find app -name '*.py' -exec sha256sum {} +")
    built = {path: digest for digest, path in map(str.split, listed.out.splitlines())}
    here = {
        str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (ROOT / "app").rglob("*.py")
    }
    assert built == here


def test_everybody_may_read_what_is_ours(files: list[File]) -> None:
    """Whatever the umask of the checkout was: any user may run it."""
    closed = [
        file.path
        for file in files
        if file.path.startswith(OURS) and file.kind in ("file", "folder")
        if file.mode & (0o005 if file.kind == "folder" else 0o004) == 0
    ]
    assert closed == []


# ---------------------------------------------------------------------------- description


def test_no_account_has_a_password(shared: Container) -> None:
    found = shared.exec("cat", "/etc/passwd").out.splitlines()
    assert {line.split(":")[1] for line in found} == {"x"}
    script = "for f in shadow shadow-; do [ ! -e /etc/$f ] || cut -d: -f2 /etc/$f; done"
    hidden = docker("run", "--rm", "--user", "0", "--entrypoint", "sh", IMAGE, "-c", script)
    assert hidden.status == 0
    assert set(hidden.out.split()) <= {"*", "!", "!*", "!!"}


def test_it_lists_what_it_is_made_of_with_its_licences(shared: Container) -> None:
    text = shared.exec("cat", "/opt/reef/sbom.cdx.json").out
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    listed = {each["name"] for each in json.loads(text)["components"]}
    assert {"numpy", "pillow", "libc6", "python3", "efficientdet_lite0 (cpu)"} <= listed
    installed = shared.exec("dpkg-query", "--show", "--showformat", "${Package}\\n").out.split()
    assert set(installed) <= listed
    locked = re.findall(r"(?m)^([a-z0-9-]+)==", (ROOT / "requirements" / "run.txt").read_text())
    assert len(set(locked) - listed) <= 3  # what other platforms and Pythons need
    kept = shared.exec("ls", "/opt/reef/licenses").out.split()
    assert {"python-numpy", "python-pillow", "debian-libc6"} <= set(kept)
    assert (
        "copyright" in shared.exec("cat", "/opt/reef/licenses/debian-libc6/copyright").out.lower()
    )


def test_it_is_small(description: dict[str, Any]) -> None:
    assert description["Size"] <= MOST_BYTES


def test_it_says_what_it_is(config: dict[str, Any]) -> None:
    labels = config["Labels"]
    prefix = "org.opencontainers.image"
    assert labels[f"{prefix}.title"] == "Reef"
    assert labels[f"{prefix}.version"] == __version__
    assert labels[f"{prefix}.licenses"] == "Apache-2.0"
    assert {"description", "revision", "created"} <= {name.rpartition(".")[2] for name in labels}


def test_its_user_is_a_number_and_not_root(config: dict[str, Any]) -> None:
    """Kubernetes can check a number only."""
    assert config["User"] == f"{USER}:{USER}"


def test_it_runs_reef_and_takes_its_commands(config: dict[str, Any]) -> None:
    assert (config["Entrypoint"], config["Cmd"]) == (["reef"], ["serve"])
    assert config["Healthcheck"]["Test"] == ["CMD", "reef", "healthcheck"]
    assert list(config["ExposedPorts"]) == [f"{PORT}/tcp"]


def test_neither_description_nor_history_tells_of_where_it_was_built(
    description: dict[str, Any], image: str
) -> None:
    told_all = json.dumps(description) + told("history", "--no-trunc", "--format", "json", image)
    told_all = told_all.lower().replace("@sha256:", "")  # the base's digest
    for word in ("proxy", "pip_index", "ssl_cert", "pip_cert", "ca_bundle", "@"):
        assert word not in told_all.replace("$@", "")


def test_its_environment_is_reefs_own(config: dict[str, Any]) -> None:
    names = {variable.partition("=")[0] for variable in config["Env"]}
    assert {name for name in names if not name.startswith(("REEF_", "PYTHON"))} <= {"PATH", "LANG"}


# ---------------------------------------------------------------------------- at work


def test_nothing_in_it_runs_as_root(shared: Container) -> None:
    assert shared.inside("whoami") == [USER, USER]
    assert set(shared.inside("users")) == {USER}


def test_nothing_listens_but_the_server(shared: Container) -> None:
    assert shared.inside("listening") == [PORT]


def test_what_it_has_and_lacks_for_the_edge_tpu_is_told_alike(
    shared: Container, config: dict[str, Any]
) -> None:
    label, notes = config["Labels"]["reef.edgetpu"], shared.get("/ready")[1]["notes"]
    assert label
    assert all(note in label for note in notes)
    assert bool(notes) == ("lacks" in label)


@pytest.mark.usefixtures("image")
def test_its_files_can_not_be_written_even_where_the_root_is_not_read_only() -> None:
    look = "import os;print([p for p in ('/opt/reef','/usr','/etc') if os.access(p, os.W_OK)])"
    said = once("-c", look, options=("--entrypoint", "python3"))
    assert said.out == "[]\n"


# ---------------------------------------------------------------------------- the tests' own eyes

PEM = "-----BEGIN CERTIFICATE-----\n" + 20 * ("A" * 64 + "\n") + "-----END CERTIFICATE-----\n"


def test_what_should_not_be_there_would_be_seen() -> None:
    entries = {
        "usr/bin/passwd": (0o4755, ""),
        "usr/bin/x86_64-linux-gnu-gcc-14": (0o755, ""),
        "usr/bin/pip3": (0o755, ""),
        "opt/x/site-packages/pip/__init__.py": (0o644, ""),
        "usr/lib/python3.13/ensurepip/__init__.py": (0o644, ""),
        "usr/include/stdio.h": (0o644, ""),
        "srv/open": (0o666, ""),
        "tmp": (0o1777, ""),
        "usr/local/share/ca-certificates/host.crt": (0o644, PEM),
        "usr/lib/ssl.py": (0o644, "HEADER = '-----BEGIN CERTIFICATE-----'"),
        "usr/bin/python3": (0o755, ""),
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, (mode, text) in entries.items():
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = mode, len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    packed.seek(0)
    with tarfile.open(fileobj=packed) as archive:
        seen = list(contents.read(archive))
    assert contents.set_id(seen) == ["usr/bin/passwd"]
    assert contents.tools(seen) == list(entries)[1:6]
    assert contents.writable(seen) == ["srv/open"]
    assert contents.secrets(seen) == ["usr/local/share/ca-certificates/host.crt: a certificate"]
