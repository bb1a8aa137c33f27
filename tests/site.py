"""A web site on this machine, for what downloads."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class QuietHandler(BaseHTTPRequestHandler):
    """Answers, and tells the terminal nothing of it."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class LocalSite:
    """Serves with a handler of the caller's, at 127.0.0.1, until it is closed."""

    def __init__(self, handler: type[BaseHTTPRequestHandler], port: int = 0) -> None:
        """`port` 0: a free one."""
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """Go away."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
