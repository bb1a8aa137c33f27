"""Start, stop, and processes that die or hang inside a running container."""

import json
import signal
import time

import pytest

from tests.client import picture
from tests.container.conftest import Start
from tests.container.engine import EAGER_HEALTH, HARDENED, Container

CLIENTS = 8
GRACE_S = 10  # what `docker stop` gives when not told otherwise


@pytest.mark.parametrize("init", [(), ("--init",)], ids=["first process", "below an init"])
def test_a_stop_under_load_loses_nothing_and_ends_in_time(
    start: Start, colour: tuple[str, ...], init: tuple[str, ...]
) -> None:
    container = start(*HARDENED, *colour, *init)
    with container.neighbour("load", CLIENTS, 1_000_000, data=picture(7)) as clients:
        container.wait_until(lambda: inferences(container) > 100)
        began = time.monotonic()
        assert container.stop() == 0
        assert time.monotonic() - began < GRACE_S
        found = json.loads(clients.communicate(timeout=30)[0])
    assert found["lost"] == []
    assert list(found["statuses"]) == ["200"]
    assert found["refused"] == CLIENTS
    assert not container.inspect()["State"]["OOMKilled"]


def test_a_stop_during_the_start_is_quick_and_quiet(start: Start) -> None:
    container = start(*HARDENED, "--init", wait=False)
    began = time.monotonic()
    container.stop()
    assert time.monotonic() - began < GRACE_S
    assert "Traceback" not in container.log()


def test_a_killed_http_worker_comes_back(start: Start, colour: tuple[str, ...]) -> None:
    container = start(*HARDENED, *colour)
    worker = container.worker
    container.kill(worker, signal.SIGKILL)
    container.wait_until(lambda: container.is_ready() and container.worker != worker)
    assert container.predict(picture(1))[0] == 200
    assert container.running


def test_a_killed_device_process_comes_back(start: Start, colour: tuple[str, ...]) -> None:
    container = start(*HARDENED, *colour)
    device = container.device
    assert device
    container.kill(device, signal.SIGKILL)
    container.wait_until(lambda: container.is_ready() and container.device not in (None, device))
    assert container.predict(picture(1))[0] == 200


def test_no_dead_process_is_left_behind(start: Start, colour: tuple[str, ...]) -> None:
    container = start(*HARDENED, *colour)
    for _ in range(2):
        device, worker = container.device, container.worker
        assert device
        container.kill(worker, signal.SIGKILL)  # its device process ends too, an orphan
        container.wait_until(lambda: container.is_ready() and container.worker != worker)  # noqa: B023
        assert device != container.device
    container.wait_until(lambda: container.inside("zombies") == [])


def test_it_is_unhealthy_while_no_device_answers_and_healthy_after(
    start: Start, colour: tuple[str, ...]
) -> None:
    container = start(*HARDENED, *EAGER_HEALTH, *colour)
    container.wait_until(lambda: container.health == "healthy")
    killed: set[int | None] = {None}
    for _ in range(4):  # after which Reef leaves the device alone for 4 s
        container.wait_until(lambda: container.device not in killed)
        device = container.device
        assert device
        container.kill(device, signal.SIGKILL)
        killed.add(device)
    container.wait_until(lambda: container.health == "unhealthy")
    container.wait_until(lambda: container.health == "healthy")


def test_it_is_unhealthy_while_every_device_hangs_and_healthy_after(
    start: Start, colour: tuple[str, ...]
) -> None:
    container = start(*HARDENED, *EAGER_HEALTH, *colour)
    container.wait_until(lambda: container.health == "healthy")
    hung: set[int | None] = {None}
    for _ in range(4):  # after which Reef leaves the device alone for 4 s
        container.wait_until(lambda: container.device not in hung and container.is_ready())
        device = container.device
        assert device
        container.kill(device, signal.SIGSTOP)
        hung.add(device)
        assert container.predict(picture(1))[0] in (200, 503)  # somebody must meet it
    container.wait_until(lambda: container.health == "unhealthy")
    container.wait_until(lambda: container.health == "healthy")


def test_it_is_unhealthy_while_http_hangs_and_healthy_after(
    start: Start, colour: tuple[str, ...]
) -> None:
    container = start(*HARDENED, *EAGER_HEALTH, *colour)
    container.wait_until(lambda: container.health == "healthy")
    worker = container.worker
    container.kill(worker, signal.SIGSTOP)
    container.wait_until(lambda: container.health == "unhealthy")
    container.kill(worker, signal.SIGCONT)
    container.wait_until(lambda: container.health == "healthy")


def test_a_device_process_that_hangs_is_replaced(start: Start, colour: tuple[str, ...]) -> None:
    container = start(*HARDENED, *colour)
    device = container.device
    assert device
    container.kill(device, signal.SIGSTOP)
    began = time.monotonic()
    assert container.predict(picture(1))[0] == 200
    assert time.monotonic() - began < 5
    assert container.device != device


def test_without_its_device_it_stays_up_unhealthy_and_says_why(
    start: Start, colour: tuple[str, ...]
) -> None:
    container = start(
        *HARDENED, *EAGER_HEALTH, *colour, settings={"REEF_MODEL": "compiled.tflite"}, wait=False
    )
    container.wait_until(lambda: "runs on edgetpu only" in last_check(container))
    assert container.health == "unhealthy"
    status, answer = container.get("/ready")
    assert status == 503
    assert answer["reason"].startswith("model compiled runs on edgetpu only")
    assert container.get("/health")[0] == 200
    assert container.running


def last_check(container: Container) -> str:
    """What the newest check of its health said."""
    return "".join(check["Output"] for check in container.inspect()["State"]["Health"]["Log"][-1:])


def inferences(container: Container) -> int:
    """How many its device has made."""
    return int(container.get("/devices")[1]["devices"][0]["inferences"])
