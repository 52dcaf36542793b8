"""A Hub that takes Spaces: creates repositories, says that every file is small, and keeps what is committed."""

import base64
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class HubServer:
    """Listens on a port of its own.

    Attributes:
        files: the contents of each repository's files, by repository and path.
        made: what was asked for when the repositories were created.
        tokens: the authorizations that came with requests.
        refuses: whether repositories can't be created.
    """

    def __init__(self, refuses: bool = False):
        self.files: dict[str, dict[str, bytes]] = {}
        self.made: list[dict] = []
        self.tokens: set[str] = set()
        self.refuses = refuses
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(hub):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self._say(200, {"sha": "0" * 40, "siblings": [], "id": "me/x", "xetEnabled": False})

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                hub.tokens.add(self.headers.get("Authorization", ""))
                if hub.refuses:
                    self._say(403, {"error": "not yours"})
                elif self.path == "/api/repos/create":
                    hub.made.append(json.loads(body))
                    name = f"{hub.made[-1].get('organization') or 'me'}/{hub.made[-1]['name']}"
                    self._say(200, {"url": f"{hub.url}/spaces/{name}", "name": name})
                elif "/preupload/" in self.path:
                    files = json.loads(body)["files"]
                    modes = [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
                    ]
                    self._say(200, {"files": modes})
                elif found := re.fullmatch(r"/api/(?:spaces|models)/([^/]+/[^/]+)/commit/main", self.path):
                    hub._keep(found[1], body)
                    commit = {
                        "commitUrl": f"{hub.url}/spaces/{found[1]}/commit/{'0' * 40}",
                        "commitOid": "0" * 40,
                    }
                    self._say(200, {"success": True, **commit})
                else:
                    self._say(200, {"errors": [], "warnings": []})

            def _say(self, status, answer):
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        return Handler

    def _keep(self, repo: str, body: bytes) -> None:
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                content = base64.b64decode(item["value"]["content"])
                self.files.setdefault(repo, {})[item["value"]["path"]] = content
