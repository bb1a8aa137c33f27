"""Log lines: one per message whatever a client sent, and none lost when the file rotates."""

import json
import logging
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import logs
from app.errors import SettingsError
from app.logs import FILE_BYTES, FILES_KEPT, JsonFormatter, Repeats, TextFormatter
from tests.support import ROOT, make_settings

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) +(.*)")


def record(message: str, *args: object, level: int = logging.INFO) -> logging.LogRecord:
    """A message on its way to a handler."""
    return logging.LogRecord("app.test", level, "test.py", 1, message, args, None)


def record_of(error: Exception) -> logging.LogRecord:
    """A message with a traceback."""
    found = record("a bug", level=logging.ERROR)
    try:
        raise error
    except Exception:
        found.exc_info = sys.exc_info()
    return found


def command(script: str, *arguments: object, **told: object) -> list[str]:
    """A process that configures logging and runs a script."""
    prelude = (
        "import logging, sys\n"
        "from app import logs\n"
        "from app.settings import Settings\n"
        f"logs.configure(Settings.model_validate({told!r}))\n"
        "log = logging.getLogger('app.test')\n"
    )
    return [sys.executable, "-c", prelude + script, *map(str, arguments)]


def run(script: str, *arguments: object, **told: object) -> subprocess.CompletedProcess[str]:
    """Run that process."""
    line = command(script, *arguments, **told)
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


# ---------------------------------------------------------------------------- the form of a line


def test_a_text_line_has_time_level_and_message() -> None:
    found = LINE.fullmatch(TextFormatter().format(record("found %d cats", 3)))
    assert found
    assert found.groups() == ("INFO", "found 3 cats")


@pytest.mark.parametrize(
    ("sent", "logged"),
    [
        ("a\nERROR forged", r"a\x0aERROR forged"),
        ("a\r\nb", r"a\x0d\x0ab"),
        ("\x1b[2J\x1b[31mred", r"\x1b[2J\x1b[31mred"),
        ("\x00\x07\x7f", r"\x00\x07\x7f"),
        ("\x9b31m\x85", r"\x9b31m\x85"),
        ("\u2028\u2029", r"\x2028\x2029"),
        ("a\tb grün 猫", "a\tb grün 猫"),
    ],
)
def test_control_characters_are_escaped(sent: str, logged: str) -> None:
    assert TextFormatter().format(record("%s", sent)).endswith(f" {logged}")


@given(st.text())
def test_any_text_stays_on_one_line_and_drives_no_terminal(text: str) -> None:
    line = TextFormatter().format(record("%s", text))
    assert len(line.splitlines()) == 1
    assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]", line)


@given(st.text())
def test_any_text_is_a_json_line_that_can_be_read_back(text: str) -> None:
    line = JsonFormatter().format(record("%s", text))
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert json.loads(line)["message"] == text[: logs.MAX_MESSAGE]


def test_a_json_line_has_time_level_logger_and_message() -> None:
    entry = json.loads(JsonFormatter().format(record("found %d cats", 3)))
    assert set(entry) == {"time", "level", "logger", "message"}
    assert (entry["level"], entry["logger"]) == ("info", "app.test")


def test_a_line_about_a_request_says_which() -> None:
    refusal = record("no such route")
    refusal.__dict__ |= {"request_id": "a\n1", "status": 404, "code": "not_found"}
    assert TextFormatter().format(refusal).endswith(r" [a\x0a1] no such route")
    entry = json.loads(JsonFormatter().format(refusal))
    assert (entry["request_id"], entry["status"], entry["code"]) == ("a\n1", 404, "not_found")
    assert entry["message"] == "no such route"


def test_a_traceback_follows_a_text_line_with_its_control_characters_escaped() -> None:
    first, *following = TextFormatter().format(record_of(ValueError("\x1b[31m\r"))).split("\n")
    assert LINE.fullmatch(first)
    assert following[0] == "Traceback (most recent call last):"
    assert following[-1] == r"ValueError: \x1b[31m\x0d"


def test_a_traceback_is_part_of_its_json_line() -> None:
    line = JsonFormatter().format(record_of(ValueError("broken\nin two")))
    assert len(line.splitlines()) == 1
    assert json.loads(line)["traceback"].endswith("ValueError: broken\nin two")


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_an_endless_message_is_cut(formatter: logging.Formatter) -> None:
    assert len(formatter.format(record("x" * 1_000_000))) < 2 * logs.MAX_MESSAGE


# ---------------------------------------------------------------------------- where lines go


def test_lines_go_to_stdout_from_the_level_that_is_set() -> None:
    ran = run("log.info('hidden'); log.warning('seen')", log_level="warning")
    assert re.fullmatch(r"\S+ WARNING seen\n", ran.stdout)
    assert ran.stderr == ""


def test_every_line_is_json_when_that_is_set() -> None:
    ran = run(
        "log.info('one\\ntwo')\ntry: 1 / 0\nexcept ZeroDivisionError: log.exception('three')",
        log_format="json",
    )
    entries = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [entry["message"] for entry in entries] == ["one\ntwo", "three"]
    assert "ZeroDivisionError" in entries[1]["traceback"]


def test_a_log_folder_is_made_and_gets_what_stdout_gets(tmp_path: Path) -> None:
    folder = tmp_path / "var" / "log"
    ran = run("log.info('seen')", log_dir=str(folder))
    assert (folder / "reef.log").read_text() == ran.stdout
    assert ran.stdout.endswith("INFO    seen\n")


def test_a_log_folder_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "log"
    with pytest.raises(SettingsError, match=f"REEF_LOG_DIR: can't write to '{folder}'.*unset it"):
        logs.configure(make_settings(log_dir=folder))


def test_a_closed_stdout_does_not_stop_the_service() -> None:
    script = (
        "import os\n"
        "reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)\n"
        "for _ in range(100): log.info('x' * 1000)\n"
        "print('went on', file=sys.stderr)\n"
    )
    assert run(script).stderr.startswith("went on\n")


def test_a_full_disk_does_not_stop_the_service(tmp_path: Path) -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "for _ in range(100): log.info('x' * 1000)\n"
    )
    ran = run(script, log_dir=str(tmp_path))
    assert ran.returncode == 0
    assert len(ran.stdout.splitlines()) == 100
    assert (tmp_path / "reef.log").stat().st_size == 10_000


# ---------------------------------------------------------------------------- rotation


def test_a_log_folder_that_goes_does_not_stop_the_service_and_is_used_again(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    script = (
        "import pathlib, shutil\n"
        f"folder = pathlib.Path({str(folder)!r})\n"
        "log.info('one'); shutil.rmtree(folder); log.info('two'); log.info('three')\n"
        "folder.mkdir(); log.info('four')\n"
    )
    ran = run(script, log_dir=str(folder))
    assert [line.split()[-1] for line in ran.stdout.splitlines()] == ["one", "two", "three", "four"]
    assert (folder / "reef.log").read_text().endswith("INFO    four\n")
    assert ran.stderr == ""


def test_two_processes_that_write_and_rotate_at_once_lose_no_line(tmp_path: Path) -> None:
    lines, width = 6200, 1800  # together more than two files
    script = (
        "name, lines, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])\n"
        "for number in range(lines):\n"
        "    log.info('%s %d %s', name, number, 'x' * width)\n"
    )
    writers = [
        subprocess.Popen(
            command(script, name, lines, width, log_dir=str(tmp_path)),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        for name in "ab"
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    files = sorted(tmp_path.glob("reef.log*"))
    assert [file.name for file in files] == ["reef.log", "reef.log.1", "reef.log.2"]
    written = [line.split()[2:4] for file in files for line in file.read_text().splitlines()]
    assert len(written) == 2 * lines
    assert {(name, int(number)) for name, number in written} == {
        (name, number) for name in "ab" for number in range(lines)
    }
    _, *rotated = (file.stat().st_size for file in files)
    assert all(FILE_BYTES <= size < FILE_BYTES + 10_000 for size in rotated)


def test_a_full_file_pushes_the_older_ones_on_and_the_oldest_out(tmp_path: Path) -> None:
    for number in range(1, FILES_KEPT + 1):
        (tmp_path / f"reef.log.{number}").write_text(f"was {number}")
    with (tmp_path / "reef.log").open("wb") as full:
        full.truncate(FILE_BYTES)
    run("log.info('first of the new file')", log_dir=str(tmp_path))
    assert (tmp_path / "reef.log").read_text().endswith("first of the new file\n")
    assert (tmp_path / "reef.log.1").stat().st_size == FILE_BYTES
    for number in range(2, FILES_KEPT + 1):
        assert (tmp_path / f"reef.log.{number}").read_text() == f"was {number - 1}"
    assert not (tmp_path / f"reef.log.{FILES_KEPT + 1}").exists()


def test_a_file_that_somebody_moved_away_is_opened_again(tmp_path: Path) -> None:
    script = (
        "import os\n"
        "log.info('one'); os.rename(sys.argv[1], sys.argv[1] + '.moved'); log.info('two')\n"
    )
    file = tmp_path / "reef.log"
    run(script, file, log_dir=str(tmp_path))
    assert file.read_text().endswith(" two\n")
    assert (tmp_path / "reef.log.moved").read_text().endswith(" one\n")


# ---------------------------------------------------------------------------- repeats


def test_a_message_is_let_through_once_a_second_with_the_number_held_back() -> None:
    repeats = Repeats()
    assert repeats.pass_on("busy") == 0
    held: list[Any] = [repeats.pass_on("busy") for _ in range(5)]
    assert repeats.pass_on("another kind") == 0
    time.sleep(1.05)
    assert held == [None] * 5
    assert repeats.pass_on("busy") == 5
