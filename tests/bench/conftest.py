"""The report is opened in a real browser. Without one that can't be tested, which is said loudly,
and is a failure where REEF_REQUIRE_BROWSER=1."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import browser
from tests.bench.browser import Page
from tests.untested import Need

BROWSER = Need("REEF_REQUIRE_BROWSER", "THE BENCHMARK'S REPORT WAS NOT OPENED")
WHY = f"there is none of {', '.join(browser.NAMES)}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs the browser where there is none."""
    needy = [item for item in items if "page" in getattr(item, "fixturenames", ())]
    if needy and not browser.found():
        BROWSER.lack(config, WHY)
        if not BROWSER.required:
            for item in needy:
                item.add_marker(pytest.mark.skip(f"the report is not opened: {WHY}"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of a browser that was just started."""
    command = browser.found()
    if command is None:
        BROWSER.fail(WHY)
    with browser.browser(command, Path(tmp_path_factory.mktemp("browser"))) as page:
        yield page
