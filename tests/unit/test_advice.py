"""What messages advise fits where they are read: in the image, or beside a checkout."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from app import advice, models, settings
from app.advice import Place
from app.errors import StartError
from tests import colour_model

IMAGE = Place(in_image=True, python="/opt/reef/venv/bin/python")


def checkout(python: str | Path) -> Place:
    """Not in the image, with this interpreter."""
    return Place(in_image=False, python=str(python))


def test_the_image_has_a_command_of_its_own() -> None:
    assert IMAGE.command() == "reef"
    assert IMAGE.command("doctor") == "reef doctor"


def test_a_checkout_has_its_interpreter_named_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = checkout(tmp_path / ".venv/bin/python")
    assert place.command("doctor") == ".venv/bin/python -m app doctor"
    assert checkout("/usr/bin/python3").command() == "/usr/bin/python3 -m app"


def test_a_name_that_a_shell_would_split_is_quoted() -> None:
    assert checkout("/my code/python").command("check") == "'/my code/python' -m app check"


def test_a_container_may_only_read_its_models_so_another_one_fetches_them() -> None:
    assert IMAGE.pull("finder").startswith("docker run --rm --volume ")
    assert IMAGE.pull("finder").endswith(" models pull finder")
    assert (
        checkout("/usr/bin/python3").pull("finder") == "/usr/bin/python3 -m app models pull finder"
    )


@pytest.mark.parametrize(
    ("root", "volume"),
    [
        ("/var/lib/docker/volumes/porch_models/_data", "porch_models"),
        ("/lib/docker/volumes/models/_data", "models"),
        ("/home/me/models", "FOLDER"),
    ],
)
def test_the_volume_to_fetch_into_is_the_one_that_is_mounted(root: str, volume: str) -> None:
    mounts = f"1 0 0:1 / / rw - ext4 /dev/sda1 rw\n2 1 8:1 {root} /models ro - ext4 /dev/sda1 rw\n"
    assert advice.models_volume(mounts) == volume


def test_the_container_is_stopped_by_make_down() -> None:
    assert "make down" in IMAGE.stop
    assert "make down" not in checkout("python").stop


NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may pass through, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@contextlib.contextmanager
def as_nobody() -> Iterator[int]:
    """Yields a user who is not root, and whose rights this process has meanwhile."""
    before = os.geteuid()
    user = before or NOBODY
    os.seteuid(user)
    try:
        yield user
    finally:
        os.seteuid(before)


def refusal(settings_of: Mapping[str, str]) -> str:
    """The line with which these variables stop the start."""
    with pytest.raises(StartError) as caught:
        models.load(settings.load(settings_of))
    (line,) = caught.value.problems
    return line


UNREADABLE = {
    # the setting that names it, and what the file has
    "REEF_MODEL": colour_model.build(),
    "REEF_API_KEY_FILE": b"0123456789abcdef\n",
    "REEF_CONFIG": b"queue: 7\n",
}


@pytest.mark.parametrize("setting", UNREADABLE)
def test_a_file_that_may_not_be_read_is_told_with_the_user_and_the_remedy(
    folder: Path, setting: str
) -> None:
    file = folder / "file.tflite"
    file.write_bytes(UNREADABLE[setting])
    file.chmod(0)
    with as_nobody() as user:
        line = refusal({setting: str(file)})
    assert str(file) in line
    assert f"user {user} may not read it: `chmod a+r` the file, or `chown {user}` it" in line


@pytest.mark.parametrize("setting", UNREADABLE)
def test_a_folder_that_is_closed_is_told_and_not_the_file(folder: Path, setting: str) -> None:
    shut = folder / "shut"
    shut.mkdir()
    (shut / "file.tflite").write_bytes(UNREADABLE[setting])
    shut.chmod(0)
    with as_nobody() as user:
        line = refusal({setting: str(shut / "file.tflite")})
    shut.chmod(0o700)
    assert f"user {user} may not enter the folder {shut}: `chmod a+x` that folder" in line


def test_in_a_container_files_are_the_hosts_to_open(folder: Path) -> None:
    said = advice.unreadable(folder / "m.tflite", PermissionError(13, "Permission denied"), IMAGE)
    assert f"user {os.geteuid()} may not read it: on the host, `chmod a+r` the file" in said


def test_a_file_that_is_not_there_is_told_as_that(tmp_path: Path) -> None:
    said = advice.unreadable(tmp_path / "gone", FileNotFoundError(2, "No such file or directory"))
    assert said.startswith("No such file or directory; ")
