"""An OpenAI-compatible server on loopback that answers as a function says, and misbehaves on demand."""

import base64
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

PRIVATE = "private words of the server"  # stands in every error, and may turn up nowhere

# What the server sends instead of an answer; a number is a status.
Fault = int | str | None
FAULTS = ("hang", "cut", "half", "not json", "no choices", "empty", "null", "not an object")


class ChatServer:
    """Used as a context manager; `url` is what EndpointChat takes as its base_url.

    Args:
        answer: the content of the answer to a request's body; it may take its time.
        fault: what goes wrong with the n-th request, counted from 0; one of `FAULTS`, a status, or None.

    Attributes:
        bodies, headers: of the requests, in the order of their arrival.
        busiest: the highest number of requests that were open at the same time.
        location: where a status that redirects points to.
    """

    def __init__(
        self, answer: Callable[[dict[str, Any]], str], fault: Callable[[int], Fault] = lambda n: None
    ):
        self.answer, self.fault = answer, fault
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.busiest = self._open = 0
        self.location = ""
        self._lock, self._closing = threading.Lock(), threading.Event()

    def __enter__(self) -> "ChatServer":
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.chat = self
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait(self, seconds: float) -> None:
        """Sleeps, but not beyond the server's end."""
        self._closing.wait(seconds)

    def reply(self, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, bytes, bool]:
        """Status and body of an answer, and whether the connection is cut in the middle of it."""
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(headers)
            self._open += 1
            self.busiest = max(self.busiest, self._open)
        try:
            return self._reply(self.fault(number), body)
        finally:
            with self._lock:
                self._open -= 1

    def _reply(self, fault: Fault, body: dict[str, Any]) -> tuple[int, bytes, bool]:
        if isinstance(fault, int):
            return fault, json.dumps({"error": {"message": PRIVATE}}).encode(), False
        if fault == "hang":
            self.wait(30)
        if fault in ("not json", "no choices", "not an object"):
            text = {"not json": f"<html>{PRIVATE}", "no choices": json.dumps({"error": PRIVATE})}
            return 200, text.get(fault, json.dumps([PRIVATE])).encode(), False
        content: str | None = {"empty": "", "null": None}.get(fault or "", self.answer(body))
        if fault == "half" and content:
            content = content[: len(content) // 2]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": content},
            "finish_reason": "length" if fault == "half" else "stop",
        }
        whole = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
        }
        return 200, json.dumps(whole).encode(), fault == "cut"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    chat: ChatServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that gave up


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            self.send_error(404)
            return
        status, data, is_cut = self.server.chat.reply(dict(self.headers.items()), body)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if 300 <= status < 400:
            self.send_header("Location", self.server.chat.location)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if is_cut else data)

    def log_message(self, *_: Any) -> None:
        pass


def parts_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of a request's only message."""
    (message,) = body["messages"]
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def text_of(body: dict[str, Any]) -> str:
    """What a request asks."""
    return "\n".join(part["text"] for part in parts_of(body) if part["type"] == "text")


def images_of(body: dict[str, Any]) -> list[np.ndarray]:
    """The pictures of a request, as HxWx3 uint8 RGB."""
    urls = [part["image_url"]["url"] for part in parts_of(body) if part["type"] == "image_url"]
    opened = []
    for url in urls:
        head, data = url.split(",", 1)
        assert head == "data:image/jpeg;base64"
        opened.append(
            np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGB"))
        )
    return opened
