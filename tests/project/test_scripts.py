"""The scripts explain themselves, refuse what they don't know, and say what they would do."""

import subprocess
from pathlib import Path

import pytest

from tests.client import ENVIRON
from tests.support import ROOT

SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
NEEDED = ("bash", "dirname", "env", "tail")


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


def test_without_an_engine_make_up_points_to_make_run(tmp_path: Path) -> None:
    for name in NEEDED:
        (tmp_path / name).symlink_to(Path("/usr/bin", name))
    docker = tmp_path / "docker"
    docker.write_text(
        "#!/usr/bin/env bash\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n"
    )
    docker.chmod(0o755)
    ran = run(ROOT / "scripts" / "appliance.sh", "up", PATH=str(tmp_path))
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert "Cannot connect to the Docker daemon" in line
    assert "make run" in line
