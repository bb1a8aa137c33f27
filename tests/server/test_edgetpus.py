"""A whole server on stand-in Edge TPUs: what its clients and operators see."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from app.devices.link import ROOT
from tests import colour_model
from tests.server.conftest import MakeServer, Server, alive
from tests.standin import compiled_model, failures
from tests.standin.host import LOADED, Host

SIZE = 32
PCI, PCI_2 = "pci:0000:03:00.0", "pci:0000:04:00.0"

Start = Callable[..., Server]


def picture(seed: int) -> tuple[bytes, int]:
    """A BMP as large as the model's input, and the hash of its pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "BMP")
    return file.getvalue(), compiled_model.hash_of(pixels[None])


@pytest.fixture
def start(
    host: Host, edgetpu_library: Path, start_server: MakeServer, tmp_path: Path
) -> Callable[..., Server]:
    """Starts servers on that host, with the compiled model and its counterpart for the CPU."""

    def begin(*ready: str, **settings: str) -> Server:
        told = host.environ(edgetpu_library) | {
            "REEF_MODEL": str(compiled_model.write(tmp_path / "finder_edgetpu.tflite")),
            "REEF_MODEL_CPU": str(colour_model.write(tmp_path / "colour.tflite")),
            "REEF_RESTART_BACKOFF_MAX_S": "0.2",
        }
        server = start_server(**told | settings)
        for device in ready:
            server.wait_until(lambda device=device: state(server, device) == "ready")  # type: ignore[misc]
        return server

    return begin


def state(server: Server, device: str) -> str:
    """A device's state; empty if the server doesn't answer, or knows it not."""
    try:
        shown = server.get("/devices")[1]["devices"]
    except OSError:
        return ""
    return next((each["state"] for each in shown if each["id"] == device), "")


def predict(server: Server, image: bytes) -> tuple[dict[str, Any], str | None]:
    """An answer, and the header that says whether it is degraded."""
    connection = server.connect()
    connection.request("POST", "/predict?min_score=0", image, {"Content-Type": "image/bmp"})
    answer = connection.getresponse()
    body: dict[str, Any] = json.loads(answer.read())
    connection.close()
    assert answer.status == 200, body
    return body, answer.headers["X-Reef-Degraded"]


def test_a_card_serves_without_any_setting(host: Host, start: Start) -> None:
    host.add_pci()
    server = start(PCI)
    for seed in range(10):
        image, expected = picture(seed)
        body, degraded = predict(server, image)
        assert (body["device"], body["model"], body["degraded"]) == (PCI, "finder_edgetpu", False)
        assert degraded is None
        assert compiled_model.hash_in(body) == expected
    ready = server.get("/ready")[1]
    assert (ready["ready"], ready["degraded"], ready["reason"]) == (True, False, "")
    assert re.search(rf"^\S+ INFO +Detected {PCI}: Edge TPU on PCIe", server.log(), re.MULTILINE)


def test_a_degraded_answer_says_so_everywhere(host: Host, start: Start) -> None:
    host.add_pci()
    server = start(PCI)
    host.behave("apex_0", "create=permission invoke=abort")
    body, degraded = predict(server, picture(1)[0])
    assert (body["device"], body["degraded"], degraded) == ("cpu", True, "cpu")
    server.wait_until(lambda: "no permission to open it" in server.get("/ready")[1]["reason"])
    ready = server.get("/ready")[1]
    assert (ready["ready"], ready["degraded"]) == (True, True)
    assert ready["reason"].startswith(f"the CPU answers instead of an Edge TPU: {PCI} ")
    host.behave("apex_0", "")
    server.wait_until(lambda: state(server, PCI) == "ready")
    assert predict(server, picture(2)[0])[0]["device"] == PCI
    assert not server.get("/ready")[1]["degraded"]


def test_a_cause_is_told_by_devices_ready_the_log_and_doctor(host: Host, start: Start) -> None:
    """A third of the ways not to open a device, by as many devices."""
    says = {}
    for number, failure in enumerate(failures.OPENING[::3]):
        if failure.bus == "pci":
            device, key = host.add_pci(number), f"apex_{number}"
        else:
            device, key = host.add_usb(f"2-{number}", LOADED), f"2-{number}"
        host.behave(key, failure.behaviour)
        says[device] = failure.says
    server = start("cpu", REEF_RESTART_BACKOFF_MAX_S="60")
    server.wait_until(lambda: all(state(server, each) == "waiting" for each in says), 60)
    shown = {each["id"]: each["reason"] for each in server.get("/devices")[1]["devices"]}
    ready = server.get("/ready")[1]["reason"]
    command = [sys.executable, "-m", "app", "doctor", "--json"]
    ran = subprocess.run(command, env=server.environ, cwd=ROOT, capture_output=True, text=True)
    findings = json.loads(ran.stdout)["findings"]
    told = [each["says"] for each in findings if each["check"] == "server_device"]
    for device, cause in says.items():
        assert cause in shown[device]
        assert f"{device} " in ready
        assert cause in ready
        assert any(f"{device}: " in line and cause in line for line in server.lines)
        assert any(f"{device} " in line and cause in line for line in told)


def test_heat_and_a_bad_link_are_shown_and_logged_once(host: Host, start: Start) -> None:
    host.add_pci()
    server = start(PCI)
    host.apex(temp="91000")
    server.wait_until(lambda: bool(server.get("/ready")[1]["notes"]))
    (shown,) = (each for each in server.get("/devices")[1]["devices"] if each["id"] == PCI)
    assert shown["telemetry"]["temperature_c"] == 91.0
    assert shown["telemetry"]["throttle_level"] == 2
    assert "runs at 1/4 of its clock" in shown["warnings"][0]
    connection = server.connect()
    connection.request("GET", "/metrics")
    metrics = connection.getresponse().read().decode()
    connection.close()
    assert f'reef_device_temperature_celsius{{device="{PCI}"}} 91.0' in metrics
    assert f'reef_device_trip_point_celsius{{device="{PCI}",point="0"}} 84.8' in metrics
    server.stop()
    assert server.log().count("runs at 1/4 of its clock") == 1


def test_a_killed_http_worker_leaves_no_device_to_two_processes(host: Host, start: Start) -> None:
    host.add_pci(0)
    host.add_pci(1)
    server = start(PCI, PCI_2)
    old = [child.pid for child in psutil.Process(server.worker).children()]
    os.kill(server.worker, signal.SIGKILL)
    server.wait_until(lambda: not any(map(alive, old)), 60)
    server.wait_until(lambda: state(server, PCI) == "ready" and state(server, PCI_2) == "ready", 60)
    assert len(host.happened("opened")) == 4
    assert host.happened("double-open") == []
    image, expected = picture(3)
    assert compiled_model.hash_in(predict(server, image)[0]) == expected


def test_a_server_that_stood_still_takes_no_device_for_hung(host: Host, start: Start) -> None:
    """As in a virtual machine's snapshot: afterwards every limit has passed, of no device."""
    host.add_pci()
    host.behave("apex_0", "latency_us=100000")  # it hangs after 2 s
    server = start(PCI, "cpu")
    image, expected = picture(4)
    for _ in range(5):
        predict(server, image)
    worker = psutil.Process(server.worker)
    processes = [worker, *worker.children(recursive=True)]
    stop = threading.Event()

    def ask_on() -> None:
        while not stop.is_set():
            assert compiled_model.hash_in(predict(server, image)[0]) == expected

    with ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(ask_on) for _ in range(4)]
        try:
            for _ in range(2):
                time.sleep(0.3)  # pictures are on their way
                for process in processes:
                    process.suspend()
                time.sleep(3.0)
                worker.resume()
                time.sleep(0.5)  # now it looks at its devices
                for process in processes:
                    process.resume()
        finally:
            stop.set()
        for client in asking:
            client.result()
    assert [device["failures"] for device in server.get("/devices")[1]["devices"]] == [{}, {}]


def test_a_stop_closes_the_card_and_leaves_it_to_the_next(host: Host, start: Start) -> None:
    host.add_pci()
    assert start(PCI).stop() == 0
    assert [event.what for event in host.events] == ["opened", "closed"]


def test_a_word_that_names_no_device_stops_the_start(start_server: MakeServer) -> None:
    server = start_server(wait=False, REEF_DEVICES="gpu")
    assert server.wait() == 2
    assert "REEF_DEVICES: takes auto, cpu, pci, usb" in server.log()
