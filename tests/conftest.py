"""What holds in every layer of tests."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests import untested
from tests.corpus import make
from tests.standin import host as standin
from tests.untested import Need

# The same examples in every run.
hypothesis.settings.register_profile("reef", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("reef")


@pytest.fixture(autouse=True)
def _pillow_warns_in_vain() -> None:
    """As app.imaging has it, which pytest's own filters undo."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> Iterator[None]:
    """Below everything else that is said at the end of the run."""
    yield
    for line in untested.lines(config):
        terminalreporter.write_line(line, red=True)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of the corpus of bad and odd pictures, by name."""
    return make.write(tmp_path_factory.mktemp("corpus"))


# ---------------------------------------------------------------------------- Edge TPUs

COMPILER = Need("REEF_REQUIRE_COMPILER", "EDGE TPUS WERE NOT TESTED")


@pytest.fixture(scope="session")
def edgetpu_library(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """The stand-in libedgetpu. Without a C compiler nothing of Edge TPUs can be tested, which is
    said loudly, and is a failure where REEF_REQUIRE_COMPILER=1."""
    try:
        return standin.library(tmp_path_factory.mktemp("libedgetpu"))
    except standin.NoCompiler as error:
        COMPILER.lack(pytestconfig, str(error))
        if COMPILER.required:
            COMPILER.fail(str(error))
        pytest.skip(f"Edge TPUs are not tested: {error}")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> standin.Host:
    """A host whose Edge TPUs are the stand-in's; device processes started here live on it."""
    made = standin.Host(tmp_path / "host")
    monkeypatch.setenv(standin.MARKER, str(made.root))
    return made
