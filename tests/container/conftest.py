"""Containers of the image named in REEF_IMAGE. Without a Docker engine nothing here can be tested,
which is said loudly, and is a failure where REEF_REQUIRE_CONTAINER=1."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import colour_model
from tests.client import ENVIRON
from tests.container.engine import (
    BENCH_IMAGE,
    HARDENED,
    IMAGE,
    LABEL,
    Container,
    docker,
    sweep,
    told,
    why_no_engine,
)
from tests.support import ROOT
from tests.untested import Need

ENGINE = Need("REEF_REQUIRE_CONTAINER", "THE CONTAINER IMAGE WAS NOT TESTED")
BUILD_LIMIT_S = 1800

Start = Callable[..., Container]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs the image where there is no engine. The first test of the image waits until
    it is built, which the limit must not count."""
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    why = why_no_engine() if ours else None
    for item in ours:
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(120, func_only=True))
        if why and "image" in getattr(item, "fixturenames", ()):
            ENGINE.lack(config, why)
            if not ENGINE.required:
                item.add_marker(pytest.mark.skip(f"the container image is not tested: {why}"))


@pytest.fixture(scope="session")
def image(pytestconfig: pytest.Config) -> Iterator[str]:
    """The image under test: the one that REEF_IMAGE names, or what these sources build. The
    builder's cache makes that quick where nothing has changed."""
    if why := ENGINE.why_lacking(pytestconfig):
        ENGINE.fail(why)
    if "REEF_IMAGE" not in os.environ:
        _build("image", REEF_IMAGE=IMAGE)
    elif docker("image", "inspect", IMAGE).status:
        pytest.fail(f"REEF_IMAGE: there is no image {IMAGE}", pytrace=False)
    yield IMAGE
    sweep()


@pytest.fixture(scope="session")
def bench_image(image: str) -> str:
    """The benchmark's image, as these sources build it."""
    _build("bench-image", BENCH_IMAGE=BENCH_IMAGE)
    return BENCH_IMAGE


def _build(target: str, **variables: str) -> None:
    built = subprocess.run(
        ["make", target],
        cwd=ROOT,
        env=ENVIRON | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_LIMIT_S,
        check=False,
    )
    if built.returncode:
        pytest.fail(f"make {target} failed:\n{built.stdout[-3000:]}", pytrace=False)


@pytest.fixture
def start(image: str) -> Iterator[Start]:
    """Starts containers, waits until they serve, and removes them."""
    started: list[Container] = []

    def run(*options: str, wait: bool = True, **more: object) -> Container:
        container = Container.run(*options, **more)  # type: ignore[arg-type]
        started.append(container)
        if wait:
            container.wait_until(container.is_ready)
        return container

    yield run
    for container in started:
        container.remove()


@pytest.fixture(scope="session")
def shared(image: str) -> Iterator[Container]:
    """A hardened container of the embedded model, for tests that leave it as it was."""
    container = Container.run(*HARDENED)
    container.wait_until(container.is_ready)
    yield container
    container.remove()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the colour model, its labels beside it, and one that only Edge TPUs run."""
    folder = tmp_path_factory.mktemp("models")
    colour_model.write(folder / "colour.tflite")
    colour_model.write(folder / "unlabelled.tflite", labels=None)
    (folder / "labels.txt").write_text("tomato\nlettuce\nsky\n")
    colour_model.write(folder / "compiled.tflite", for_edgetpu=True)
    (folder / "broken.tflite").write_bytes(b"TFL3 is not at its place")
    folder.chmod(0o755)  # whoever the container runs as must get in
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


@pytest.fixture
def colour(models: Path) -> tuple[str, ...]:
    """Options for a container of the colour model, whose inferences take microseconds."""
    return ("--volume", f"{models}:/models:ro", "--env", "REEF_MODEL=/models/colour.tflite")


@pytest.fixture
def volume(image: str) -> str:
    """A new volume."""
    return told("volume", "create", "--label", LABEL)
