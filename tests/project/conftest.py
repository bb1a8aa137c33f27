"""A server and an application on the embedded model, as users have them."""

from collections.abc import Iterator

import pytest

from app.service import Service
from app.settings import Settings
from tests.server.conftest import Server
from tests.support import running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`python -m app serve`, with nothing set but where it listens."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "reef.yaml").touch()  # not the one that a developer may have
    server = Server(folder, REEF_CONFIG=str(folder / "reef.yaml"), REEF_DRAIN_S="0")
    server.wait_until(server.is_ready)
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose device is ready."""
    told = Settings.model_validate({"run_dir": tmp_path_factory.mktemp("run")})
    with running(told) as service:
        yield service
