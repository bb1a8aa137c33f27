"""What a server needs of the system, and where its folders may be."""

import threading
from pathlib import Path

import pytest

from app import system
from app.devices.discovery import available_cores
from app.errors import SettingsError, SystemLacks
from app.server import CONNECTIONS, SPARE_THREADS, connections
from app.service import admitted
from tests.support import make_settings


def anybody(_folder: Path) -> bool:
    """Everybody may write everywhere."""
    return True


def nobody(_folder: Path) -> bool:
    """Nobody may write anywhere."""
    return False


@pytest.mark.parametrize("queue", [1, 32, 256])
def test_as_many_threads_are_asked_for_as_a_server_may_have(queue: int) -> None:
    told = make_settings(queue=queue)
    assert system.threads_needed(told) >= admitted(told) + SPARE_THREADS + available_cores()


def test_threads_that_can_be_had_are_given_back() -> None:
    before = threading.active_count()
    system.require_threads(20)
    assert threading.active_count() == before


@pytest.mark.parametrize(("most", "enough"), [(127, False), (128, True), (-1, True)])
def test_a_few_connections_must_be_possible(most: int, enough: bool) -> None:
    if enough:
        system.require_descriptors(most)
        return
    with pytest.raises(SystemLacks, match="at least 128 open files, and the limit is 127"):
        system.require_descriptors(most)


def test_as_many_connections_are_taken_as_the_limit_allows() -> None:
    assert system.LEAST_CONNECTIONS <= connections() <= CONNECTIONS


def test_the_heartbeat_is_in_memory_where_that_is_possible(tmp_path: Path) -> None:
    told = make_settings(run_dir=tmp_path / "run" / "reef")
    assert system.heartbeat_folder(told, in_memory=tmp_path) == tmp_path
    (tmp_path / "run").mkdir()
    assert system.heartbeat_folder(told, in_memory=tmp_path / "gone") == tmp_path / "run"
    (tmp_path / "run/reef").mkdir()
    assert system.heartbeat_folder(told, in_memory=tmp_path / "gone") == tmp_path / "run/reef"
    assert list((tmp_path / "run/reef").iterdir()) == []


def test_a_folder_that_is_still_to_be_made_is_well_where_it_can_be(tmp_path: Path) -> None:
    system.require_folder("REEF_RUN_DIR", tmp_path / "a/b/c", anybody)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SettingsError, match=rf"REEF_RUN_DIR: .*a/b/c' can't .* '{tmp_path}'"):
        system.require_folder("REEF_RUN_DIR", tmp_path / "a/b/c", nobody)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="file' is no folder"):
        system.require_folder("REEF_LOG_DIR", tmp_path / "file" / "logs", anybody)
