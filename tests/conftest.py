"""What holds in every layer of tests."""

import warnings
from pathlib import Path

import hypothesis
import pytest

from tests.corpus import make

# The same examples in every run.
hypothesis.settings.register_profile("reef", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("reef")


@pytest.fixture(autouse=True)
def _pillow_warns_in_vain() -> None:
    """As app.imaging has it, which pytest's own filters undo."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of the corpus of bad and odd pictures, by name."""
    return make.write(tmp_path_factory.mktemp("corpus"))
