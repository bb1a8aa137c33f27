"""The report is opened in a real browser. Without one that can't be tested, which is said loudly,
and is a failure where REEF_REQUIRE_BROWSER=1."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import browser
from tests.bench.browser import Page

REQUIRE = "REEF_REQUIRE_BROWSER"
NOT_TESTED = pytest.StashKey[str]()
WHY = f"there is none of {', '.join(browser.NAMES)}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs the browser where there is none."""
    needy = [item for item in items if "page" in getattr(item, "fixturenames", ())]
    if needy and not browser.found():
        config.stash[NOT_TESTED] = WHY
        if os.environ.get(REQUIRE) != "1":
            for item in needy:
                item.add_marker(pytest.mark.skip(f"the report is not opened: {WHY}"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> Iterator[None]:
    """Below everything else that is said at the end of the run."""
    yield
    if why := config.stash.get(NOT_TESTED, None):
        terminalreporter.write_line(f"THE BENCHMARK'S REPORT WAS NOT OPENED: {why}", red=True)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of a browser that was just started."""
    command = browser.found()
    if command is None:
        pytest.fail(f"{REQUIRE}=1, but {WHY}", pytrace=False)
    with browser.browser(command, Path(tmp_path_factory.mktemp("browser"))) as page:
        yield page
