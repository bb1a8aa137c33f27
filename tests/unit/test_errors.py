"""The classes are those that the docstring of errors.py draws, with those statuses and codes."""

import re
from collections.abc import Iterator

import pytest

from app import errors
from app.errors import MethodNotAllowed, ReefError, RequestError, StartError

LEAF = re.compile(r"^[│ ]+[├└]── (\w+) +(\d+) +(.*)$", re.MULTILINE)
DRAWN = {name: (int(status), text) for name, status, text in LEAF.findall(errors.__doc__ or "")}

STATUSES = {400, 401, 404, 405, 408, 413, 415, 422, 429, 500, 503, 504}
"""Those of the design; a 500 is a bug."""


def leaves(root: type[ReefError]) -> Iterator[type[ReefError]]:
    """Every class below, without those that only group others."""
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from leaves(child) if child.__subclasses__() else (child,)


REFUSALS = [leaf for leaf in leaves(RequestError) if issubclass(leaf, RequestError)]
STOPS = [leaf for leaf in leaves(StartError) if issubclass(leaf, StartError)]


def test_the_docstring_draws_every_error_and_no_other() -> None:
    assert {leaf.__name__ for leaf in leaves(ReefError)} == set(DRAWN)


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_has_the_status_and_code_that_are_drawn(refusal: type[RequestError]) -> None:
    assert (refusal.status, refusal.code) == DRAWN[refusal.__name__]


@pytest.mark.parametrize("stop", STOPS)
def test_a_start_error_has_the_exit_status_that_is_drawn(stop: type[StartError]) -> None:
    assert stop.exit_status == DRAWN[stop.__name__][0]


def test_exit_statuses_differ() -> None:
    assert len({stop.exit_status for stop in STOPS}) == len(STOPS)


def test_codes_differ_and_are_snake_case() -> None:
    codes = [refusal.code for refusal in REFUSALS]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


def test_statuses_are_those_of_the_design() -> None:
    assert {refusal.status for refusal in REFUSALS} == STATUSES


@pytest.mark.parametrize("refusal", [each for each in REFUSALS if each.status == 503])
def test_a_503_says_when_to_try_again(refusal: type[RequestError]) -> None:
    assert int(refusal.headers["Retry-After"]) > 0


def test_a_405_says_what_is_allowed() -> None:
    assert MethodNotAllowed("no", "GET, HEAD").headers == {"Allow": "GET, HEAD"}


@pytest.mark.parametrize("error", [*REFUSALS, *STOPS])
def test_every_error_is_documented_in_a_sentence(error: type[ReefError]) -> None:
    assert re.fullmatch(r"[A-Z].*\.", error.__doc__ or "", re.DOTALL)
