"""The seam between the server and the dialects of its clients.

A dialect is a module in `dialects/` with a `DIALECT`, and beside it its part of the API's
description. It reads a request into a `Sent` and encodes an `Answer`; what lies between is here,
once for all of them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flask import Blueprint, Request, Response, g, request

from app.access import Keys
from app.errors import RequestError
from app.http import reply
from app.http.body import Limits
from app.imaging import Fitted
from app.service import Answer, Query, Service


@dataclass(frozen=True)
class Sent:
    """What a client sent: a picture's bytes or a tensor that is ready, and what it asks for."""

    source: bytes | Fitted
    query: Query
    api_keys: Sequence[str] = ()
    """The keys that the body brought, in a dialect whose clients can't set headers."""


Read = Callable[[Request, Limits], Sent]
"""Reads a request within its limits. Raises RequestError."""

Encode = Callable[[Answer, dict[str, float]], Response]
"""Makes the answer, with the milliseconds of each stage and `total`."""


def header_keys(sent: Request) -> list[str]:
    """The API keys in the headers `X-API-Key` and `Authorization: Bearer`."""
    scheme, _, token = sent.headers.get("Authorization", "").partition(" ")
    bearer = token.strip() if scheme.lower() == "bearer" else ""
    return [key for key in (sent.headers.get("X-API-Key", ""), bearer) if key]


class Line:
    """The way from a request to its answer."""

    def __init__(self, service: Service, keys: Keys) -> None:
        self.service = service
        self._keys = keys

    def authorise(self, dialect: "Dialect", sent: Request) -> bool:
        """Whether a request may be answered, as far as its header tells: False where its body has
        yet to bring the key. Raises Unauthorized.
        """
        route = sent.url_rule.rule if sent.url_rule else None
        if self._keys.opens(route):
            return True
        api_keys = dialect.api_keys(sent)
        if not api_keys and route in dialect.body_key_routes:
            return False
        self._keys.check(api_keys)
        return True

    def answer(self, read: Read, encode: Encode) -> Response:
        """Let the request in, read it, detect, and encode the answer. Raises RequestError."""
        settings, stages = self.service.settings, g.stages
        deadline = time.monotonic() + settings.deadline_s
        with self.service.admit(g.client):
            with stages.measure("read"):
                sent = read(request, Limits(settings.max_upload_bytes, deadline))
            if not g.authorised:
                self._keys.check(sent.api_keys)
            answer = self.service.detect(sent.source, sent.query, stages, deadline)
        timings = stages.milliseconds()
        response = encode(answer, timings)
        response.headers["Server-Timing"] = reply.server_timing(timings)
        response.headers.update(reply.degraded(answer))
        return response


@dataclass(frozen=True)
class Dialect:
    """What a kind of client understands and brings, whatever the route."""

    name: str
    """Its blueprint's, too."""
    blueprint: Callable[[Line], Blueprint]
    """Makes its routes."""
    encode_error: Callable[[RequestError, str], Response]
    """The answer to a request that is refused, from the error and the request's id."""
    description: Path
    """Its part of the OpenAPI document: YAML with `paths` and `components`."""
    api_keys: Callable[[Request], Sequence[str]] = header_keys
    """The keys that a request's header brings."""
    body_key_routes: frozenset[str] = frozenset()
    """Routes whose requests may bring the key in their body instead; all of them use `Line`."""
