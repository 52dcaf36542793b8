"""`u2s review`: the page on the loopback interface, with buttons that write decisions.

It shows originals, so it answers only this machine and only who has the address: a random token is part of
every path, and the Host must be the address it listens on (a foreign name that resolves here is turned away).
A decision must also come from the page itself (Origin) as JSON, which no form of another site can send.
Nothing is cached by the browser or written to a log.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from u2s_datasets.errors import UsageError
from u2s_datasets.report.decisions import Decision, decide
from u2s_datasets.report.folder import RunFolder
from u2s_datasets.report.originals import Originals
from u2s_datasets.report.page import policy, review_page
from u2s_datasets.report.rows import details_of

ADDRESS = "127.0.0.1"
SIDE = 1280
MAX_BODY = 4096  # bytes of a decision
JSON = "application/json"
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Connection": "close",
}


class ReviewServer(ThreadingHTTPServer):
    """Serves one run. `url` is where; `serve_forever` and `shutdown` as in the standard library."""

    daemon_threads = True

    def __init__(self, run: RunFolder, originals: Originals | None, port: int = 0):
        """Binds the port, 0 for a free one.

        Raises:
            UsageError: the port is taken, or the decisions are damaged.
        """
        self.run, self.originals = run, originals
        self.token = secrets.token_urlsafe(32)
        self.deciding = threading.Lock()
        review_page(run, originals, SIDE)  # damaged decisions are told before the browser opens
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            raise UsageError(
                f"port {port} can't be used ({error.strerror}); choose another --port"
            ) from error

    @property
    def origin(self) -> str:
        """Scheme, address and port."""
        return f"http://{ADDRESS}:{self.server_address[1]}"

    @property
    def url(self) -> str:
        """The address to open; whoever has it sees the originals."""
        return f"{self.origin}/{self.token}/"


class _Refused(Exception):
    """A request that is not served: its status and what the page shows."""

    def __init__(self, status: HTTPStatus, message: str = ""):
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    server_version = "u2s-review"
    sys_version = ""
    timeout = 30  # seconds of silence

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, handle: Callable[[str], tuple[str, bytes]]) -> None:
        status = HTTPStatus.OK
        try:
            kind, body = handle(self._checked_path())
        except _Refused as refused:
            status, kind, body = refused.status, JSON, _json({"error": str(refused)})
        except UsageError as error:
            status, kind, body = HTTPStatus.CONFLICT, JSON, _json({"error": str(error)})
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", policy("review") + "; frame-ancestors 'none'")
        try:
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:  # the browser has moved on
            self.close_connection = True

    def _checked_path(self) -> str:
        """What follows the token.

        Raises:
            _Refused: another Host, or no token.
        """
        if self.headers.get_all("Host") != [self.server.origin.removeprefix("http://")]:
            raise _Refused(HTTPStatus.MISDIRECTED_REQUEST)
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise _Refused(HTTPStatus.FORBIDDEN)
        _, token, *rest = [*self.path.split("/", 2), ""]
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise _Refused(HTTPStatus.NOT_FOUND)
        return rest[0]

    def _get(self, path: str) -> tuple[str, bytes]:
        server = self.server
        if path == "":
            return "text/html", review_page(server.run, server.originals, SIDE)
        folder, _, name = path.partition("/")
        if folder != "rows":
            raise _Refused(HTTPStatus.NOT_FOUND)
        return JSON, _json(details_of(server.run, server.originals, self._number(name), SIDE))

    def _post(self, path: str) -> tuple[str, bytes]:
        if path != "decisions":
            raise _Refused(HTTPStatus.NOT_FOUND)
        if self.headers.get("Origin") != self.server.origin:
            raise _Refused(HTTPStatus.FORBIDDEN)
        if self.headers.get("Content-Type") != JSON:
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > MAX_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        try:
            asked = json.loads(self.rfile.read(int(length)))
            number, value = self._number(str(asked["number"])), asked["decision"]
            decision = None if value is None else Decision(value)
        except (ValueError, KeyError, TypeError) as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, "that is no decision") from error
        with self.server.deciding:
            decide(self.server.run, number, decision)
        return JSON, _json({"decision": value})

    def _number(self, text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) >= len(self.server.run):
            raise _Refused(HTTPStatus.NOT_FOUND, "the run has no such row")
        return int(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a log of paths would hold the token."""


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
