"""The processes that measure, beside the one that commands: clients, and the bare loop."""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from bench.errors import CannotMeasure

P = ParamSpec("P")
T = TypeVar("T")


class Helper:
    """A process that calls functions for us, one after the other, and keeps their state."""

    def __init__(self) -> None:
        # Not by fork: nothing of this process comes along.
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(1, context, initializer=_hush)

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a module's function there; returns what it returns and raises what it raises.

        Raises CannotMeasure if the process dies of it.
        """
        try:
            return self._executor.submit(function, *args, **kwargs).result()
        except BrokenProcessPool as error:
            raise CannotMeasure(f"the process that ran {function.__name__} died") from error

    def close(self) -> None:
        """End the process."""
        self._executor.shutdown()


@dataclass(frozen=True)
class Helpers:
    """One process for clients, one for the bare loop: neither disturbs the other or the server."""

    clients: Helper
    bare: Helper


@contextlib.contextmanager
def helpers() -> Iterator[Helpers]:
    """The helpers, for as long as a measurement takes."""
    both = Helpers(Helper(), Helper())
    try:
        yield both
    finally:
        both.clients.close()
        both.bare.close()


def tell(text: str) -> None:
    """Progress, for whoever watches; an empty text wipes it away."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _hush() -> None:
    """TensorFlow Lite greets on stderr; errors come back to `call` as exceptions."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
