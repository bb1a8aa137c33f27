"""The Flask application: routes, error answers, and what every answer carries."""

import logging
import re
import uuid
from collections.abc import Sequence

from flask import Flask, Request, Response, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import MapAdapter

from app import errors
from app.access import Keys, client_of
from app.errors import Bug, RequestError
from app.http import ops
from app.http.dialect import Dialect, Line
from app.http.dialects import DIALECTS, NATIVE
from app.service import Service
from app.settings import Settings
from app.stages import Stages

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

# Where a route has chosen no others: an answer is for its client alone, is what it says, and as a
# page would do nothing.
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}
CORS_MAX_AGE_S = 600


class App(Flask):
    """Routes by the path alone: whatever a client calls this host, it is answered."""

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Flask would answer 500 to a `Host` that is no name for a host, as `a..b`."""
        if request is None:
            return super().create_url_adapter(request)
        return self.url_map.bind("reef", path_info=request.path, default_method=request.method)


def create_app(service: Service, dialects: Sequence[Dialect] = DIALECTS) -> Flask:
    """The WSGI application that answers with `service`, in these dialects."""
    app = App("reef", static_folder=None)
    app.url_map.merge_slashes = False  # it would redirect to a host that no client knows
    settings = service.settings
    keys = Keys(settings.keys, frozenset(f"/{name}" for name in settings.open_routes))
    line = Line(service, keys)
    app.register_blueprint(ops.blueprint(service))
    by_name = {dialect.name: dialect for dialect in dialects}
    for dialect in dialects:
        app.register_blueprint(dialect.blueprint(line))

    def dialect_of(asked: Request) -> Dialect:
        """The native dialect where the route has no other."""
        return by_name.get(asked.blueprint or "", NATIVE)

    @app.before_request
    def begin() -> None:
        request_id = request.headers.get("X-Request-ID", "")
        g.request_id = request_id if REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex
        g.stages = Stages()
        g.client = client_of(
            request.remote_addr or "", request.headers.get("X-Forwarded-For", ""), settings.proxies
        )
        if request.method == "OPTIONS":
            return  # a browser asks so what it may send, and brings no key
        g.authorised = line.authorise(dialect_of(request), request)

    @app.after_request
    def finish(response: Response) -> Response:
        response.headers["X-Request-ID"] = g.request_id
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if settings.cors_origins:
            response.headers.update(_cors(request, settings))
        # An unknown path is no label: anybody could fill the memory with them.
        route = request.url_rule.rule if request.url_rule else "-"
        service.metrics.answered(route, response.status_code)
        return response

    @app.errorhandler(RequestError)
    def refuse(error: RequestError) -> Response:
        service.refusals.record(error, f"{request.method} {request.path}", g.request_id)
        response = dialect_of(request).encode_error(error, g.request_id)
        response.headers.update(error.headers)
        return response

    @app.errorhandler(HTTPException)
    def refuse_route(error: HTTPException) -> Response:
        if isinstance(error, MethodNotAllowed):
            methods = sorted(error.valid_methods or ())
            useful = " or ".join(name for name in methods if name not in ("HEAD", "OPTIONS"))
            message = f"{request.path} takes {useful}, not {request.method}"
            return refuse(errors.MethodNotAllowed(message, ", ".join(methods)))
        if isinstance(error, NotFound):
            return refuse(errors.NotFound("no such route; GET /openapi.json lists them"))
        return apologise(error)

    @app.errorhandler(Exception)
    def apologise(error: Exception) -> Response:
        fields = {"request_id": g.request_id}
        log.exception("%s: a bug", request.path, exc_info=error, extra=fields)
        return refuse(Bug("this is a bug in Reef; its log has more under this request_id"))

    return app


def _cors(asked: Request, settings: Settings) -> dict[str, str]:
    """What lets a page of an origin that the settings name read the answer."""
    origin = asked.headers.get("Origin", "")
    headers = {"Vary": "Origin"}
    if origin and (origin in settings.cors_origins or "*" in settings.cors_origins):
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = "X-Request-ID, Server-Timing, Retry-After"
        headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        if asked.method == "OPTIONS":
            headers["Access-Control-Allow-Methods"] = "GET, POST"
            headers["Access-Control-Allow-Headers"] = (
                "Authorization, Content-Type, X-API-Key, X-Request-ID"
            )
            headers["Access-Control-Max-Age"] = str(CORS_MAX_AGE_S)
    return headers
