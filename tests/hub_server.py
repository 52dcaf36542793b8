"""A Hub on loopback that speaks what huggingface_hub and datasets use, remembers every byte, and misbehaves.

Repositories of datasets with branches, commits and pull requests; files by LFS or in the commit. Answers were
written from the client's sources; Xet is not spoken (set HF_HUB_DISABLE_XET).
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_localTokenThatMayTurnUpNowhere"
DATE = "2026-03-14T09:30:00.000Z"
PRIVATE = "private words of the server"  # stands in every error

# What goes wrong at a step: a status, "cut" (nothing is done), "late cut" (done, but no answer) or "half" (the
# body is read to its half); None is nothing.
Fault = int | str | None


@dataclass
class Commit:
    title: str
    description: str
    files: dict[str, bytes]
    oid: str = ""


@dataclass
class Repo:
    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {"main": []})
    requests: list[str] = field(default_factory=list)  # titles of pull requests, from 1 on
    visibility: list[str] = field(default_factory=list)  # as it was set, from the beginning

    def head(self, branch: str) -> Commit:
        return self.branches[branch][-1]

    def add(self, branch: str, title: str, description: str, files: dict[str, bytes]) -> Commit:
        text = f"{branch}{len(self.branches[branch])}{title}{sorted(files)}"
        commit = Commit(title, description, files, hashlib.sha1(text.encode()).hexdigest())
        self.branches[branch].append(commit)
        return commit


class Hub:
    """Used as a context manager; `url` is the endpoint.

    Args:
        fault: what goes wrong at the n-th request, from 0, of a step: create, info, files, preupload, batch,
            upload, commit, settings, validate, branch, discussions, resolve.

    Attributes:
        repos: by name. received: everything that came in, as bytes: lines, headers, bodies.
        steps: names of the steps, in order.
        is_large: whether a file goes to LFS.
    """

    def __init__(self, fault: Callable[[str, int], Fault] = lambda step, n: None):
        self.fault = fault
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.received: list[bytes] = []
        self.steps: list[str] = []
        self.token = TOKEN
        self.counts: Counter[str] = Counter()
        self.lock = threading.RLock()

    def __enter__(self) -> "Hub":
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def is_large(self, path: str) -> bool:
        return path.endswith((".parquet", ".bin"))

    def everything(self) -> bytes:
        """All that came in and all that is kept: requests, objects, history, titles."""
        kept = [*self.received, *self.objects.values()]
        for name, repo in self.repos.items():
            kept += [name.encode(), *(title.encode() for title in repo.requests)]
            for branch, commits in repo.branches.items():
                for commit in commits:
                    kept += [branch.encode(), commit.title.encode(), commit.description.encode()]
                    kept += [part for path, data in commit.files.items() for part in (path.encode(), data)]
        return b"\n".join(kept)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class _Cut(Exception):
    """The connection ends here."""


ROUTES: list[tuple[str, str, str, str]] = [
    ("POST", r"/api/repos/create", "create", "create"),
    ("GET", r"/api/whoami-v2", "whoami", "whoami"),
    ("POST", r"/api/validate-yaml", "validate", "validate"),
    ("PUT", r"/api/datasets/([^/]+/[^/]+)/settings", "settings", "settings"),
    ("POST", r"/api/datasets/([^/]+/[^/]+)/branch/(.+)", "branch", "branch"),
    ("GET", r"/api/datasets/([^/]+/[^/]+)/discussions", "discussions", "discussions"),
    ("POST", r"/api/datasets/([^/]+/[^/]+)/preupload/([^/]+)", "preupload", "preupload"),
    ("POST", r"/api/datasets/([^/]+/[^/]+)/commit/([^/]+)", "commit", "commit"),
    ("POST", r"/api/datasets/([^/]+/[^/]+)/paths-info/([^/]+)", "files", "paths_info"),
    ("GET", r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", "files", "tree"),
    ("GET", r"/api/datasets/([^/]+/[^/]+)/refs", "info", "refs"),
    ("GET", r"/api/datasets/([^/]+/[^/]+)/revision/([^/]+)", "info", "info"),
    ("GET", r"/api/datasets/([^/]+/[^/]+)", "info", "info"),
    ("POST", r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch", "batch"),
    ("PUT", r"/lfs/([0-9a-f]{64})", "upload", "upload"),
    ("GET", r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve", "resolve"),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_any(self) -> None:
        hub = self.server.hub
        parts = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, step, name in ROUTES:
            if wanted == method and (found := re.fullmatch(pattern, parts.path)):
                with hub.lock:
                    number = hub.counts[step]
                    hub.counts[step] += 1
                    hub.steps.append(step)
                fault = hub.fault(step, number)
                body = self._body(fault)
                try:
                    if fault == "cut" or fault == "half":
                        raise _Cut
                    if isinstance(fault, int):
                        self.answer(fault, {"error": PRIVATE})
                        return
                    with hub.lock:
                        reply = getattr(self, f"on_{name}")(body, *map(_unquoted, found.groups()))
                    if fault == "late cut":
                        raise _Cut
                    self.answer(*reply)
                except _Cut:
                    self.close_connection = True
                    self.connection.close()
                return
        self._body(None)
        self.answer(404, {"error": PRIVATE})

    do_GET = do_POST = do_PUT = do_HEAD = handle_any

    def _body(self, fault: Fault) -> bytes:
        size = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        else:
            body = self.rfile.read(size // 2 if fault == "half" else size)
        head = f"{self.requestline}\n{self.headers}".replace(self.server.hub.token, "")
        with self.server.hub.lock:
            self.server.hub.received += [unquote(head).encode(), body, *_decoded(body)]
        return body

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass

    @property
    def is_signed_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.hub.token}"

    def repo(self, name: str) -> Repo | None:
        repo = self.server.hub.repos.get(name)
        return repo if repo and (not repo.private or self.is_signed_in) else None

    def refused(self, name: str = "") -> tuple[int, Any, dict[str, str]] | None:
        """The answer to somebody who may not write."""
        if not self.is_signed_in:
            return 401, {"error": PRIVATE}, {"X-Error-Message": "Invalid credentials in Authorization header"}
        if name and name not in self.server.hub.repos:
            return 404, {"error": PRIVATE}, {"X-Error-Code": "RepoNotFound"}
        return None

    def on_whoami(self, body: bytes) -> tuple[Any, ...]:
        return self.refused() or (200, {"name": "tester", "type": "user", "orgs": []})

    def on_create(self, body: bytes) -> tuple[Any, ...]:
        if refused := self.refused():
            return refused
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.hub.repos:
            return 409, {"error": "You already created this dataset repo", "url": f"/datasets/{name}"}
        repo = self.server.hub.repos[name] = Repo(asked.get("visibility") == "private")
        repo.visibility.append(asked.get("visibility"))
        repo.add("main", "initial commit", "", {".gitattributes": b"*.parquet filter=lfs\n"})
        return 200, {"url": f"{self.server.hub.url}/datasets/{name}", "name": name}

    def on_settings(self, body: bytes, name: str) -> tuple[Any, ...]:
        if refused := self.refused(name):
            return refused
        repo = self.server.hub.repos[name]
        repo.visibility.append(json.loads(body)["visibility"])
        repo.private = repo.visibility[-1] == "private"
        return 200, {}

    def on_validate(self, body: bytes) -> tuple[Any, ...]:
        try:
            text = json.loads(body)["content"]
            card = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])
            errors = [] if isinstance(card.get("license"), str) else [{"message": "license"}]
        except (TypeError, AttributeError, yaml.YAMLError):
            errors = [{"message": "not a card"}]
        return (400, {"errors": errors, "warnings": []}) if errors else (200, {"errors": [], "warnings": []})

    def on_branch(self, body: bytes, name: str, branch: str) -> tuple[Any, ...]:
        if refused := self.refused(name):
            return refused
        repo = self.server.hub.repos[name]
        if branch in repo.branches:
            return 409, {"error": "Reference already exists"}
        repo.branches[branch] = list(repo.branches["main"])
        return 200, {}

    def on_discussions(self, body: bytes, name: str) -> tuple[Any, ...]:
        repo = self.repo(name)
        found = [
            {
                "title": title, "num": number, "author": {"name": "tester"}, "createdAt": DATE, "status": "open",
                "repo": {"name": name, "type": "dataset"}, "isPullRequest": True,
            }
            for number, title in enumerate(repo.requests, 1)
        ]  # fmt: skip
        return 200, {"count": len(found), "start": 0, "discussions": found}

    def on_preupload(self, body: bytes, name: str, revision: str) -> tuple[Any, ...]:
        if refused := self.refused(name):
            return refused
        there = self.server.hub.repos[name].head(revision).files
        return 200, {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if self.server.hub.is_large(file["path"]) else "regular",
                    "shouldIgnore": False,
                    "oid": self._oid(file["path"], there[file["path"]]) if file["path"] in there else None,
                }
                for file in json.loads(body)["files"]
            ]
        }

    def _oid(self, path: str, data: bytes) -> str:
        """What preupload calls the remote oid: of the content in LFS, or of the blob in git."""
        return hashlib.sha256(data).hexdigest() if self.server.hub.is_large(path) else _blob(data)

    def on_batch(self, body: bytes, name: str) -> tuple[Any, ...]:
        if refused := self.refused(name):
            return refused
        objects = []
        for wanted in json.loads(body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.hub.objects:
                entry["actions"] = {
                    "upload": {"href": f"{self.server.hub.url}/lfs/{wanted['oid']}?signature=secret"}
                }
            objects.append(entry)
        return 200, {"transfer": "basic", "objects": objects}

    def on_upload(self, body: bytes, oid: str) -> tuple[Any, ...]:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": PRIVATE}
        self.server.hub.objects[oid] = body
        return 200, {}

    def on_commit(self, body: bytes, name: str, revision: str) -> tuple[Any, ...]:
        if refused := self.refused(name):
            return refused
        hub, repo = self.server.hub, self.server.hub.repos[name]
        head, changes = {}, dict(repo.head(revision).files)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                head = value
            elif line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in hub.objects:
                    return 400, {"error": "the object was never uploaded"}
                changes[value["path"]] = hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del changes[value["path"]]
        reply = {}
        if self.query.get("create_pr") == "1":
            repo.requests.append(head["summary"])
            revision = f"refs/pr/{len(repo.requests)}"
            repo.branches[revision] = list(repo.branches["main"])
            reply["pullRequestUrl"] = f"{hub.url}/datasets/{name}/discussions/{len(repo.requests)}"
        commit = repo.add(revision, head["summary"], head.get("description", ""), changes)
        reply |= {"commitUrl": f"{hub.url}/datasets/{name}/commit/{commit.oid}", "commitOid": commit.oid}
        return 200, reply

    def _commit(self, repo: Repo, revision: str) -> Commit | None:
        if revision in repo.branches:
            return repo.head(revision)
        every = [commit for commits in repo.branches.values() for commit in commits]
        return next((commit for commit in every if commit.oid == revision), None)

    def on_info(self, body: bytes, name: str, revision: str = "main") -> tuple[Any, ...]:
        repo = self.repo(name)
        if repo is None:
            return 401, {"error": PRIVATE}, {"X-Error-Code": "RepoNotFound"}
        commit = self._commit(repo, revision)
        if commit is None:
            return 404, {"error": PRIVATE}, {"X-Error-Code": "RevisionNotFound"}
        files = [{"rfilename": path} for path in commit.files]
        about = {"id": name, "author": name.split("/")[0], "sha": commit.oid, "private": repo.private}
        return 200, {**about, "lastModified": DATE, "tags": [], "siblings": files, "gated": False}

    def on_refs(self, body: bytes, name: str) -> tuple[Any, ...]:
        branches = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commits[-1].oid}
            for branch, commits in self.repo(name).branches.items()
        ]
        return 200, {"branches": branches, "tags": [], "converts": []}

    def on_tree(self, body: bytes, name: str, revision: str, under: str | None = None) -> tuple[Any, ...]:
        repo = self.repo(name)
        commit = self._commit(repo, revision) if repo else None
        if commit is None:
            return 404, {"error": PRIVATE}, {"X-Error-Code": "RevisionNotFound" if repo else "RepoNotFound"}
        prefix = f"{under}/" if under else ""
        found: dict[str, Any] = {}
        for path, data in commit.files.items():
            if path.startswith(prefix):
                rest = path[len(prefix) :].split("/")
                for depth in range(1, len(rest)):
                    if depth == 1 or self.query.get("recursive") in ("True", "true", "1"):
                        folder = prefix + "/".join(rest[:depth])
                        found[folder] = _folder(folder)
                if len(rest) == 1 or self.query.get("recursive") in ("True", "true", "1"):
                    found[path] = self._entry(path, data)
        return 200, list(found.values())

    def on_paths_info(self, body: bytes, name: str, revision: str) -> tuple[Any, ...]:
        repo = self.repo(name)
        commit = self._commit(repo, revision) if repo else None
        if commit is None:
            return 404, {"error": PRIVATE}, {"X-Error-Code": "RevisionNotFound" if repo else "RepoNotFound"}
        found = []
        for path in parse_qs(body.decode()).get("paths", []):
            if path in commit.files:
                found.append(self._entry(path, commit.files[path]))
            elif any(other.startswith(f"{path}/") for other in commit.files):
                found.append(_folder(path))
        return 200, found

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(data), "oid": _blob(data)}
        if self.server.hub.is_large(path):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    def on_resolve(self, body: bytes, name: str, revision: str, path: str) -> tuple[Any, ...]:
        repo = self.repo(name)
        if repo is None:
            return 401, {"error": PRIVATE}, {"X-Error-Code": "RepoNotFound"}
        commit = self._commit(repo, revision)
        if commit is None or path not in commit.files:
            code = "EntryNotFound" if commit else "RevisionNotFound"
            return 404, {"error": PRIVATE}, {"X-Error-Code": code}
        data = commit.files[path]
        headers = {
            "ETag": f'"{self._oid(path, data)}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes",
            "X-Linked-Size": str(len(data)),
        }  # fmt: skip
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(found[1]), min(int(found[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{stop}/{len(data)}"
            return 206, data[start : stop + 1], headers
        return 200, data, headers


def _unquoted(part: str | None) -> str | None:
    return None if part is None else unquote(part)


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}


def _decoded(body: bytes) -> list[bytes]:
    """The contents that a JSON body carries in base64: a secret must not hide in them."""
    found = re.findall(rb'"(?:content|sample)": ?"([A-Za-z0-9+/=]+)"', body)
    return [base64.b64decode(text) for text in found]
