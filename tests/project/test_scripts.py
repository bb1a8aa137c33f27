"""The scripts explain themselves, refuse what they don't know, and say what they would do."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.client import ENVIRON
from tests.support import ROOT

SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
NEEDED = ("awk", "bash", "dirname", "env", "id", "rm", "sed", "sort", "tail")


def run(script: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a script from somewhere else than the repository."""
    return subprocess.run(
        [script, *arguments],
        cwd="/",
        env={**ENVIRON, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_help_tells_how_a_script_is_used(script: Path) -> None:
    ran = run(script, "--help")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(f"Usage: scripts/{script.name} ")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_what_a_script_does_not_know_it_refuses(script: Path) -> None:
    ran = run(script, "--lunch")
    assert ran.returncode == 1
    assert "--lunch" in ran.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_half_a_script_does_nothing(script: Path) -> None:
    """Everything is in functions, and the last line calls the first of them."""
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -eu\n" in text
    assert text.endswith('\n}\n\nmain "$@"\n')


def test_the_base_image_can_be_tried_without_making_it() -> None:
    ran = run(ROOT / "scripts" / "base-image.sh", "--dry-run", "--suite", "trixie")
    assert ran.returncode == 0
    assert "+ mmdebstrap --variant=minbase " in ran.stderr
    assert "+ docker import " in ran.stderr


def test_a_release_that_is_no_name_is_refused() -> None:
    assert run(ROOT / "scripts" / "base-image.sh", "--suite", "../etc").returncode == 1


def test_without_docker_make_up_points_to_make_run(tmp_path: Path) -> None:
    for name in NEEDED:
        (tmp_path / name).symlink_to(Path("/usr/bin", name))
    ran = run(ROOT / "scripts" / "appliance.sh", "up", PATH=str(tmp_path))
    assert ran.returncode == 1
    assert "there is no Docker here; install it, or serve without it: make run" in ran.stderr


def with_docker(folder: Path, error: str) -> str:
    """A PATH whose `docker` fails with these words, and has no Compose in it."""
    for name in NEEDED:
        (folder / name).symlink_to(Path("/usr/bin", name))
    docker = folder / "docker"
    failing = f"echo '{error}' >&2; exit 1" if error else "[ $1 = version ]"
    docker.write_text(f"#!/usr/bin/env bash\n{failing}\n")
    docker.chmod(0o755)
    return str(folder)


def test_without_an_engine_make_up_points_to_make_run(tmp_path: Path) -> None:
    path = with_docker(tmp_path, "Cannot connect to the Docker daemon")
    ran = run(ROOT / "scripts" / "appliance.sh", "up", PATH=path)
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert "Cannot connect to the Docker daemon" in line
    assert "make run" in line


DENIED = "permission denied while trying to connect to the Docker daemon socket"


def test_a_user_who_may_not_use_docker_is_told_how_to(tmp_path: Path) -> None:
    ran = run(ROOT / "scripts" / "appliance.sh", "up", PATH=with_docker(tmp_path, DENIED))
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert "usermod --append --groups docker" in line
    assert "sudo" in line
    assert "no Docker engine" not in line


def test_the_doctor_tells_what_is_missing_and_goes_on(tmp_path: Path) -> None:
    ran = run(ROOT / "scripts" / "appliance.sh", "doctor", PATH=with_docker(tmp_path, DENIED))
    assert ran.returncode == 20
    assert "ERROR   there is no curl here; install it\n" in ran.stdout
    assert re.search("^WARNING this user may not use Docker; ", ran.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("version", "told"),
    [("1.25.0", "Compose 1.25.0 is too old; Reef needs 1.29 or newer"), ("1.29.2", "")],
)
def test_a_compose_that_is_too_old_is_told_as_that(tmp_path: Path, version: str, told: str) -> None:
    path = with_docker(tmp_path, "")
    old = tmp_path / "docker-compose"
    old.write_text(f"#!/usr/bin/env bash\n[ $1 != version ] || echo {version}\n")
    old.chmod(0o755)
    ran = run(ROOT / "scripts" / "appliance.sh", "down", PATH=path)
    assert ran.returncode == (1 if told else 0)
    assert told in ran.stderr
