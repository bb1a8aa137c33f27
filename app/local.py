"""Asks the server on this host, for `reef healthcheck`, `reef doctor` and `make status`."""

import http.client
import json
import urllib.request
from dataclasses import dataclass
from typing import Any

from app.settings import Settings

TIMEOUT_S = 5


class NoServer(Exception):
    """Nothing there answers as Reef does."""


@dataclass(frozen=True)
class Answer:
    """The status of an answer, and its JSON."""

    status: int
    body: dict[str, Any]


def ask(settings: Settings, path: str) -> Answer:
    """What the server answers to a GET, with its API key where there is one. Raises NoServer."""
    url = settings.local_url + path
    headers = {"X-API-Key": settings.keys[0]} if settings.keys else {}
    direct = urllib.request.OpenerDirector()  # no proxy, whatever $http_proxy is; every status
    direct.add_handler(urllib.request.HTTPHandler())
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - `local_url` is http
        with direct.open(request, timeout=TIMEOUT_S) as answer:
            status, said = answer.status, answer.read()
        body = json.loads(said)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NoServer(f"{url}: {error}") from error
    if not isinstance(body, dict):
        raise NoServer(f"{url}: what answers is not Reef")
    return Answer(status, body)
