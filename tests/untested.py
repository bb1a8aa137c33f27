"""What can't be tested on this computer is said loudly, and is a failure where it is required."""

import os
from dataclasses import dataclass
from typing import NoReturn

import pytest

_LACKING = pytest.StashKey[dict["Need", str]]()


@dataclass(frozen=True)
class Need:
    """Something that tests need of the computer that they run on.

    `variable` set to 1 makes its lack a failure; `loudly` says what is not tested without it.
    """

    variable: str
    loudly: str

    @property
    def required(self) -> bool:
        """Whether its lack is a failure."""
        return os.environ.get(self.variable) == "1"

    def lack(self, config: pytest.Config, why: str) -> None:
        """Have the run end with these words."""
        config.stash.setdefault(_LACKING, {})[self] = why

    def why_lacking(self, config: pytest.Config) -> str | None:
        """What `lack` was told, if it was."""
        return config.stash.get(_LACKING, {}).get(self)

    def fail(self, why: str) -> NoReturn:
        """Fail the test that needs it."""
        pytest.fail(f"{self.variable}=1, but {why}", pytrace=False)


def lines(config: pytest.Config) -> list[str]:
    """What to say at the end of the run."""
    return [f"{need.loudly}: {why}" for need, why in config.stash.get(_LACKING, {}).items()]
