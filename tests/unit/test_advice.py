"""What messages advise fits where they are read: in the image, or beside a checkout."""

import os
from pathlib import Path

import pytest

from app import advice
from app.advice import Place

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


def test_the_container_is_stopped_by_make_down() -> None:
    assert "make down" in IMAGE.stop
    assert "make down" not in checkout("python").stop


def test_a_file_that_may_not_be_read_is_told_with_the_user_and_the_remedy(tmp_path: Path) -> None:
    said = advice.unreadable(tmp_path / "doors.tflite", PermissionError(13, "Permission denied"))
    assert f"user {os.geteuid()}" in said
    assert "chmod a+r" in said
    assert f"chown {os.geteuid()}" in said


def test_a_file_that_is_not_there_is_told_as_that(tmp_path: Path) -> None:
    said = advice.unreadable(tmp_path / "gone", FileNotFoundError(2, "No such file or directory"))
    assert said.startswith("No such file or directory; ")
