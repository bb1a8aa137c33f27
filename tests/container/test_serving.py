"""What a running container does for its clients, and what it leaves behind."""

import re

import pytest

from tests import support
from tests.client import picture, redness
from tests.container.conftest import Start
from tests.container.engine import HARDENED, Container, once

PERSON = (support.ROOT / "models" / "selftest_person.jpg").read_bytes()
LOGS = "/var/log/reef"


def classes(answer: dict[str, list[dict[str, str]]]) -> list[str]:
    """The classes found, the likeliest first."""
    return [found["class"] for found in answer["predictions"]]


def test_it_serves_a_detection(shared: Container) -> None:
    status, answer = shared.predict(PERSON, "")
    assert (status, classes(answer)) == (200, ["person"])


@pytest.mark.parametrize("user", ["65534", "1000:1000", "12345", "0:0"])
def test_any_user_may_run_it_with_no_rights_at_all(start: Start, user: str) -> None:
    container = start("--user", user, *HARDENED)
    assert container.inside("whoami")[0] == int(user.partition(":")[0])
    assert classes(container.predict(PERSON, "")[1]) == ["person"]


def test_it_needs_no_network(start: Start) -> None:
    container = start("--network", "none", *HARDENED, published=False, wait=False)
    container.wait_until(lambda: container.exec("reef", "healthcheck").status == 0)
    status, answer = container.inside("predict", data=PERSON)
    assert (status, classes(answer)) == (200, ["person"])
    container.wait_until(lambda: container.health == "healthy")


def test_a_thousand_requests_change_no_file(start: Start, colour: tuple[str, ...]) -> None:
    container = start("--tmpfs", "/tmp", *colour)  # noqa: S108 - the container's own
    for red in range(250):
        status, answer = container.predict(picture(red))
        assert (status, redness(answer)) == (200, red)
        assert container.predict(b"no picture")[0] == 415
        assert container.get("/nowhere")[0] == 404
        assert container.get("/devices")[0] == 200
    assert container.changes() == ""


def test_own_model_and_labels_through_a_bind_mount(start: Start, colour: tuple[str, ...]) -> None:
    own = {"REEF_MODEL": "unlabelled.tflite", "REEF_LABELS": "/models/labels.txt"}
    container = start(*HARDENED, *colour, settings=own)
    status, answer = container.predict(picture(255))
    assert status == 200
    assert answer["model"] == "unlabelled"
    assert classes(answer)[0] == "tomato"


def test_a_volume_gets_the_log(start: Start, colour: tuple[str, ...], volume: str) -> None:
    options = (*HARDENED, *colour, "--volume", f"{volume}:{LOGS}")
    first = start(*options, settings={"REEF_LOG_DIR": LOGS})
    first.predict(b"no picture")
    assert first.stop() == 0
    said = first.log()
    first.remove()
    second = start(*options, settings={"REEF_LOG_DIR": LOGS})
    kept = second.exec("cat", f"{LOGS}/reef.log").out
    assert "not_an_image" in said
    assert kept.startswith(said)
    assert len(re.findall(r" Ready$", kept, re.MULTILINE)) == 2


@pytest.mark.usefixtures("image")
def test_a_log_folder_of_somebody_else_stops_it_with_one_line() -> None:
    said = once(options=("--user", "12345", "--env", f"REEF_LOG_DIR={LOGS}"))
    assert said.status == 2
    (line,) = said.lines
    assert line.startswith(f"reef: REEF_LOG_DIR: can't write to '{LOGS}'")
    assert "let user 12345 write there" in line


def test_the_log_names_no_address_that_may_not_be_the_hosts(shared: Container) -> None:
    """Where its port is published, if at all, a container can't know."""
    log = shared.log()
    assert re.search(r" Ready$", log, re.MULTILINE)
    assert "127.0.0.1" not in log
