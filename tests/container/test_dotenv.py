"""The file .env means the same to Compose 1.29, Compose 2 and the scripts, or these refuse it."""

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.client import ENVIRON
from tests.container.test_compose import COMPOSES, missing
from tests.support import ROOT

COMPOSE_FILE = "services: {reef: {image: '${REEF_IMAGE:-none}'}}\n"
WANTED = "reef:of the test"

UNDERSTOOD = [
    "REEF_IMAGE={}",
    "REEF_IMAGE={}\r\nREEF_PORT=5000\r\n",
    "\ufeffREEF_IMAGE={}\r\n",
    'REEF_IMAGE="{}"\r\n',
    "REEF_IMAGE='{}'\r\n",
    "export REEF_IMAGE={}\n",
    "  export   REEF_IMAGE  =  '{}'  \r\n",
    "REEF_IMAGE = {}\t\n",
    "REEF_IMAGE={} # a comment\n",
    'REEF_IMAGE="{}" # a comment\n',
    "REEF_IMAGE=another\n# REEF_IMAGE=a third\n\n\tREEF_IMAGE={}\n",
]
REFUSED = [
    ("REEF_PORT=1\nREEF_IMAGE\n", ".env, line 2: takes the form NAME=value"),
    ("REEF_IMAGE: {}\n", ".env, line 1: takes the form NAME=value"),
    ("set REEF_IMAGE={}\r\n", ".env, line 1: takes the form NAME=value"),
    ('$env:REEF_IMAGE = "{}"\r\n', ".env, line 1: takes the form NAME=value"),
    ('REEF_IMAGE="{}\r\n', ".env, line 1: REEF_IMAGE has an odd quote"),
    ("REEF_IMAGE='{}' or so\n", ".env, line 1: REEF_IMAGE has an odd quote"),
    ('REEF_IMAGE="{}\\n"\n', ".env, line 1: REEF_IMAGE has an odd quote, or a $ or \\ in double"),
    ('REEF_IMAGE="{}$HOME"\n', ".env, line 1: REEF_IMAGE has an odd quote, or a $ or \\ in double"),
    ("REEF_IMAGE={}$HOME\n", ".env, line 1: REEF_IMAGE has a $"),
    ("REEF_IMAGE={}\rREEF_PORT=5000\r", ".env, line 1: REEF_IMAGE has a $ or an odd line end"),
]


def read(folder: Path) -> subprocess.CompletedProcess[str]:
    """What the scripts read in a folder's .env."""
    script = f'say() {{ echo "$*" >&2; }}; . "{ROOT}/scripts/lib/compose.sh"; dotenv_read .env'
    return subprocess.run(
        ["bash", "-euc", script], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("form", UNDERSTOOD)
def test_the_scripts_understand(form: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(form.format(WANTED).encode())
    done = read(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    *_, last = (line for line in done.stdout.splitlines() if line.startswith("REEF_IMAGE="))
    assert last == f"REEF_IMAGE={WANTED}"


@pytest.mark.parametrize("version", COMPOSES)
@pytest.mark.parametrize("form", UNDERSTOOD)
def test_compose_understands_the_same(version: str, form: str, tmp_path: Path) -> None:
    if why := missing(COMPOSES[version]):
        pytest.skip(why)
    (tmp_path / ".env").write_bytes(form.format(WANTED).encode())
    (tmp_path / "compose.yaml").write_text(COMPOSE_FILE)
    config = subprocess.run(
        [*COMPOSES[version], "config"], cwd=tmp_path, env=ENVIRON, capture_output=True, check=True
    ).stdout
    assert yaml.safe_load(config)["services"]["reef"]["image"] == WANTED


@pytest.mark.parametrize(("form", "told"), REFUSED)
def test_what_they_would_read_differently_is_refused_with_its_line(
    form: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_bytes(form.replace("{}", WANTED).encode())
    done = read(tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(told)
    assert WANTED not in line  # it may be a key


@pytest.mark.parametrize(("encoding", "told"), [("utf-16", "is UTF-16"), ("cp1252", "not UTF-8")])
def test_another_encoding_is_told_by_its_name(encoding: str, told: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes("REEF_ONLY_LABELS=Zoë\r\n".encode(encoding))
    done = read(tmp_path)
    assert done.returncode == 1
    assert told in done.stderr
    assert "save it as" in done.stderr


def test_variables_of_others_are_not_looked_into(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text('OTHER="$HOME"\nREEF_PORT=5000\n')
    assert read(tmp_path).stdout == "REEF_PORT=5000\n"
