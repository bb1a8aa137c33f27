"""A server on stand-in Edge TPUs, and pictures whose right answer is known without the server."""

import io
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from bench import load
from bench.errors import CannotMeasure
from bench.server import Server, ask, serving
from tests import colour_model
from tests.standin import compiled_model
from tests.standin.host import LOADED, Host, NoCompiler, library

SIDE = 320  # of the models' inputs, in pixels
READY_LIMIT_S = 60.0


@dataclass(frozen=True)
class Picture:
    """A picture as large as the model's input, so that its tensor is the picture itself."""

    request: bytes
    hash: int
    """Of its tensor, computed here from the pixels."""
    red: int
    """Mean of its red, which the CPU's model finds."""

    def check(self, body: Mapping[str, Any]) -> str:
        """What is wrong with an answer; empty if it is this picture's."""
        try:
            if body["device"] == "cpu":
                scores = {found["class"]: found["score"] for found in body["predictions"]}
                right = abs(round(255 * float(scores["red"])) - self.red) <= 1
            else:
                right = compiled_model.hash_in(body) == self.hash
        except (AssertionError, KeyError):
            right = False
        return "" if right else f"the answer is another picture's: {body}"

    def ask(self, client: load.Client) -> dict[str, Any]:
        """Post it; returns the answer. Raises CannotMeasure if it is wrong or refused."""
        body: dict[str, Any] = json.loads(client.ask(self.request))
        if wrong := self.check(body):
            raise CannotMeasure(wrong)
        return body


def pictures(number: int) -> list[Picture]:
    """Pictures of noise, each with a red of its own."""
    made = []
    for seed in range(number):
        red = seed * 251 % 256
        pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        pixels[..., 0] = red
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "BMP")
        expected = compiled_model.hash_of(pixels[None])
        made.append(Picture(load.post(file.getvalue()), expected, red))
    return made


@contextmanager
def host() -> Iterator[tuple[Host, dict[str, str]]]:
    """A host without devices, and the settings of a server that lives on it.

    Raises CannotMeasure where there is no C compiler.
    """
    with TemporaryDirectory(prefix="reef-standin-") as scratch:
        folder = Path(scratch)
        try:
            made = library(folder / "lib")
        except NoCompiler as error:
            raise CannotMeasure(str(error)) from error
        found = Host(folder / "host")
        yield (
            found,
            {
                **found.environ(made),
                "REEF_MODEL": str(compiled_model.write(folder / "finder_edgetpu.tflite", SIDE)),
                "REEF_MODEL_CPU": str(
                    colour_model.write(folder / "colour.tflite", width=SIDE, height=SIDE)
                ),
                "REEF_CPU_THREADS": "1",
                "REEF_MIN_SCORE": "0",
            },
        )


@contextmanager
def cards(number: int, how: str, **settings: str) -> Iterator[tuple[Host, Server]]:
    """A server with so many cards, all of which behave in one way; all are ready."""
    with edgetpus(number, 0, how, **settings) as (made, server):
        yield made, server


@contextmanager
def edgetpus(cards: int, sticks: int, how: str, **settings: str) -> Iterator[tuple[Host, Server]]:
    """A server with so many cards and sticks, all of which behave in one way; all are ready."""
    with host() as (made, told):
        made.behave("default", how)
        for card in range(cards):
            made.add_pci(card)
        for stick in range(sticks):
            made.add_usb(f"2-{stick + 1}", LOADED)
        with serving(told | settings) as server:
            wait_ready(server, cards + sticks + 1)
            yield made, server


def wait_ready(server: Server, number: int) -> None:
    """Wait until so many devices are ready."""
    deadline = time.monotonic() + READY_LIMIT_S
    while sum(each["state"] == "ready" for each in devices(server)) < number:
        if time.monotonic() > deadline:
            raise CannotMeasure(f"not all of {number} devices became ready: {devices(server)}")
        time.sleep(0.02)


def devices(server: Server) -> list[dict[str, Any]]:
    """The devices, as the server shows them."""
    shown: list[dict[str, Any]] = ask(server.port, "/devices")["devices"]
    return shown
