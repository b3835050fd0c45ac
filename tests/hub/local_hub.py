"""A Hub in miniature on 127.0.0.1: the part of its HTTP interface that pushing and pulling a model uses.

It keeps repositories as commits in memory, with branches, tags, private repositories and large files, whose downloads
redirect to another host name as the Hub's do. Faults can be ordered: a status, a connection that drops, wrong bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml

TOKENS = {"token-of-me": "me", "token-of-you": "you"}
LARGE = (".safetensors", ".png")


@dataclass(frozen=True)
class Blob:
    data: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """Git's name for it; for a large file, for the pointer that stands in git."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        data = pointer.encode() if self.large else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid

    def entry(self, path: str) -> dict[str, Any]:
        lfs = {"lfs": {"oid": self.sha256, "size": len(self.data), "pointerSize": 130}} if self.large else {}
        return {"type": "file", "path": path, "size": len(self.data), "oid": self.oid, **lfs}


@dataclass
class Repo:
    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, branch: str, files: dict[str, Blob]) -> str:
        names = json.dumps([len(self.commits), {path: blob.oid for path, blob in files.items()}])
        oid = hashlib.sha1(names.encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        return oid if oid in self.commits else None

    def files(self, revision: str = "main") -> dict[str, bytes]:
        oid = self.resolve(revision)
        assert oid is not None
        return {path: blob.data for path, blob in self.commits[oid].items()}


@dataclass
class Fault:
    """What happens to requests whose "METHOD PATH" matches, the first `times` times."""

    pattern: str
    kind: str  # "status", "drop" (before it is dealt with), "half" (of the answer), "flip" (a byte of it), "page"
    status: int = 500
    times: int = 10**6


class RefusalError(Exception):
    def __init__(self, status: int, message: str = "", code: str = "", body: dict[str, Any] | None = None) -> None:
        self.status, self.message, self.code, self.body = status, message, code, body


class LocalHub:
    """The server's state; `url` is what HF_ENDPOINT is set to, and at `nowhere` nobody answers."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._deaf = socket.socket()
        self._deaf.bind(("127.0.0.1", 0))  # and does not listen: the port is taken, and connections are refused
        self.nowhere = f"http://127.0.0.1:{self._deaf.getsockname()[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._deaf.close()

    @contextmanager
    def faulty(self, pattern: str, kind: str, status: int = 500, times: int = 10**6) -> Iterator[None]:
        self.faults = [Fault(pattern, kind, status, times)]
        try:
            yield
        finally:
            self.faults = []

    def fault(self, request: str) -> Fault | None:
        for one in self.faults:
            if one.times and re.search(one.pattern, request):
                one.times -= 1
                return one
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which has each answer's body wait for 40 ms after its head

    def log_message(self, *_: Any) -> None:
        pass

    def _any(self) -> None:
        self.path, _, self.query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = f"{self.command} {unquote(self.path)}"
        self.hub.requests.append(request)
        fault = self.hub.fault(request)
        self.fault = fault
        try:
            if fault is not None and fault.kind == "drop":
                self.close_connection = True
                return
            if fault is not None and fault.kind == "status":
                raise RefusalError(fault.status, "ordered by the test")
            if fault is not None and fault.kind == "page":  # of a proxy
                self._send(b"<!DOCTYPE html><title>Log in</title>", 200, {"Content-Type": "text/html"})
                return
            self._answer(body)
        except RefusalError as refusal:
            headers = {"X-Error-Message": refusal.message} if refusal.message else {}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            body_ = {"error": refusal.message} if refusal.body is None else refusal.body
            self._send(json.dumps(body_).encode(), refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _any  # noqa: N815  # http.server's names

    def _send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if self.fault is not None and self.fault.kind == "flip" and data:
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault is not None and self.fault.kind == "half":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.wfile.write(data)

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode())

    @property
    def user(self) -> str | None:
        word = self.headers.get("Authorization", "")
        if not word:
            return None
        if (user := TOKENS.get(word.removeprefix("Bearer "))) is None:
            raise RefusalError(401, "Invalid credentials in Authorization header")
        return user

    def _repo(self, name: str, write: bool = False) -> Repo:
        repo, user, owner = self.hub.repos.get(name), self.user, name.partition("/")[0]
        if repo is None or (repo.private and user != owner):
            raise RefusalError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if repo.gated and user != owner:
            raise RefusalError(403, "Access to model is restricted", "GatedRepo")
        if write and user != owner:
            raise RefusalError(403, "You don't have the rights")
        return repo

    def _answer(self, body: bytes) -> None:
        path = self.path
        for method, pattern, answer in _ROUTES:
            if self.command in method.split() and (match := re.fullmatch(pattern, path)):
                answer(self, body, *map(unquote, match.groups()))
                return
        raise RefusalError(404, f"no such route: {self.command} {path}")

    # The interface.

    def whoami(self, body: bytes) -> None:
        if self.user is None:
            raise RefusalError(401, "Invalid username or password.")
        self._json({"type": "user", "name": self.user, "orgs": []})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        if self.user is None:
            raise RefusalError(401, "Invalid username or password.")
        owner = asked.get("organization") or self.user
        if owner != self.user:
            raise RefusalError(403, f"You don't have the rights to create a model under {owner}")
        name = f"{owner}/{asked['name']}"
        if name in self.hub.repos:
            raise RefusalError(409, "You already created this model repo", body={"url": f"{self.hub.url}/{name}"})
        repo = self.hub.repos[name] = Repo(asked.get("visibility") == "private")
        repo.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)})
        self._json({"url": f"{self.hub.url}/{name}"})

    def validate(self, body: bytes) -> None:
        block = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        data = yaml.safe_load(block[1]) if block else {}
        wrong = [
            f'"{key}" must be a string' for key in ("license", "pipeline_tag") if not isinstance(data.get(key, ""), str)
        ]
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", data.get("base_model", "a/b")):
            wrong.append('"base_model" with value is not valid. Use a model id from https://hf.co/models.')
        if wrong:
            raise RefusalError(
                400, "Invalid metadata", body={"errors": [{"message": one} for one in wrong], "warnings": []}
            )
        self._json({"errors": [], "warnings": []})

    def info(self, body: bytes, name: str, revision: str = "main") -> None:
        repo = self._repo(name)
        oid = self._commit(repo, revision)
        siblings = [{"rfilename": path} for path in repo.commits[oid]]
        self._json({"id": name, "sha": oid, "private": repo.private, "siblings": siblings, "tags": []})

    def _commit(self, repo: Repo, revision: str) -> str:
        if (oid := repo.resolve(revision)) is None:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    def tree(self, body: bytes, name: str, revision: str) -> None:
        repo = self._repo(name)
        self._json([blob.entry(path) for path, blob in repo.commits[self._commit(repo, revision)].items()])

    def paths_info(self, body: bytes, name: str, revision: str) -> None:
        repo = self._repo(name)
        files = repo.commits[self._commit(repo, revision)]
        self._json([files[path].entry(path) for path in parse_qs(body.decode())["paths"] if path in files])

    def refs(self, body: bytes, name: str) -> None:
        repo = self._repo(name)
        self._json(
            {
                kind: [{"name": n, "ref": f"refs/{where}/{n}", "targetCommit": oid} for n, oid in refs.items()]
                for kind, where, refs in (("branches", "heads", repo.branches), ("tags", "tags", repo.tags))
            }
            | {"converts": []}
        )

    def branch(self, body: bytes, name: str, branch: str) -> None:
        repo = self._repo(name, write=True)
        if branch in repo.branches or branch in repo.tags:
            raise RefusalError(409, f"Reference already exists: {branch}")
        repo.branches[branch] = self._commit(repo, json.loads(body or b"{}").get("startingPoint", "main"))
        self._json({})

    def tag(self, body: bytes, name: str, revision: str) -> None:
        repo = self._repo(name, write=True)
        wanted = json.loads(body)["tag"]
        if wanted in repo.tags:
            raise RefusalError(409, f"Tag reference exists already: {wanted}")
        repo.tags[wanted] = self._commit(repo, revision)
        self._json({})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        repo = self._repo(name, write=True)
        there = repo.commits[self._commit(repo, revision)]
        answers = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            blob = there.get(path)
            mode = "lfs" if path.endswith(LARGE) else "regular"
            oid = None if blob is None else blob.etag
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def lfs_batch(self, body: bytes, name: str) -> None:
        self._repo(name, write=True)
        objects = []
        for one in json.loads(body)["objects"]:
            links = {
                "upload": {"href": f"{self.hub.url}/lfs-upload/{one['oid']}"},
                "verify": {"href": f"{self.hub.url}/{name}.git/info/lfs/verify"},
            }
            objects.append({**one, **({} if one["oid"] in self.hub.stored else {"actions": links})})
        self._json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusalError(400, "The content is not that of its name")
        self.hub.stored[oid] = body
        self._send(b"")

    def lfs_verify(self, body: bytes, name: str) -> None:
        if json.loads(body)["oid"] not in self.hub.stored:
            raise RefusalError(404, "not uploaded")
        self._json({})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        repo = self._repo(name, write=True)
        if revision not in repo.branches:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        lines = [json.loads(line) for line in body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and parent != repo.branches[revision]:
            raise RefusalError(412, "The parent commit is not the head of the branch any more")
        files = dict(repo.commits[repo.branches[revision]])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                files[value["path"]] = Blob(self.hub.stored[value["oid"]], True)
            else:
                del files[value["path"]]
        oid = repo.commit(revision, files)
        self._json({"commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        repo = self._repo(name)
        oid = self._commit(repo, revision)
        blob = repo.commits[oid].get(path)
        if blob is None:
            raise RefusalError(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": oid, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
        if blob.large:
            self.hub.stored[blob.sha256] = blob.data
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
            self._send(b"", 302, {**headers, "Location": f"http://localhost:{self.hub.port}/lfs/{blob.sha256}"})
        else:
            self._bytes(blob.data, headers)

    def lfs_download(self, body: bytes, oid: str) -> None:
        self._bytes(self.hub.stored[oid], {"ETag": f'"{oid}"'})

    def _bytes(self, data: bytes, headers: dict[str, str]) -> None:
        """All of it, or what is asked for from a byte on."""
        if match := re.match(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            rest = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            self._send(data[start:], 206, headers | rest)
        else:
            self._send(data, 200, headers | ({"Content-Length": str(len(data))} if self.command == "HEAD" else {}))


_ID = r"([\w.-]+/[\w.-]+)"
_ROUTES = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("GET", f"/api/models/{_ID}", _Handler.info),
    ("GET", f"/api/models/{_ID}/revision/([^/]+)", _Handler.info),
    ("GET", f"/api/models/{_ID}/tree/([^/]+)", _Handler.tree),
    ("GET", f"/api/models/{_ID}/refs", _Handler.refs),
    ("POST", f"/api/models/{_ID}/paths-info/([^/]+)", _Handler.paths_info),
    ("POST", f"/api/models/{_ID}/branch/([^/]+)", _Handler.branch),
    ("POST", f"/api/models/{_ID}/tag/([^/]+)", _Handler.tag),
    ("POST", f"/api/models/{_ID}/preupload/([^/]+)", _Handler.preupload),
    ("POST", f"/api/models/{_ID}/commit/([^/]+)", _Handler.commit),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("POST", rf"/{_ID}\.git/info/lfs/verify", _Handler.lfs_verify),
    ("PUT", "/lfs-upload/([0-9a-f]{64})", _Handler.lfs_upload),
    ("GET HEAD", f"/{_ID}/resolve/([^/]+)/(.+)", _Handler.resolve),
    ("GET HEAD", "/lfs/([0-9a-f]{64})", _Handler.lfs_download),
]
