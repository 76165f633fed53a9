"""A local stand-in of the Hugging Face Hub's HTTP API, as far as huggingface_hub uses it for models.

It keeps contents in a folder, and gives and takes files as the Hub does: small text files inside commits, others over
the protocol of Git LFS. `HF_ENDPOINT` names it. Xet, which has a server of its own, is switched off.
"""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from places import ROOT

TOKEN = "hf_only_for_tests"
REGULAR = (".md", ".py", ".js", ".html", ".css", ".json", ".yaml")  # what the Hub takes inside a commit


@dataclass
class Repo:
    """A repository: who sees it, its branches, and the blobs of each commit by path."""

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, str]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, str]) -> str:
        """Add files to a branch; returns the commit."""
        content = {**self.commits.get(self.branches.get(branch, ""), {}), **files}
        name = hashlib.sha1(json.dumps([len(self.commits), sorted(content.items())]).encode()).hexdigest()
        self.commits[name] = content
        self.branches[branch] = name
        return name

    def find(self, revision: str) -> str | None:
        """The commit that a branch or commit names."""
        return self.branches.get(revision, revision if revision in self.commits else None)


@dataclass
class Hub:
    """The stand-in.

    Attributes:
        folder: Where contents are, by their SHA-256.
        url: For HF_ENDPOINT.
        repos: The repositories by name.
        requests: (method, path, headers) of what came, in order.
        refuse: (method, part of a path) -> (status, message, code of the Hub) for requests that are refused.
        cut: Paths of files whose first download breaks off in the middle.
    """

    folder: Path
    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    refuse: dict[tuple[str, str], tuple[int, str, str]] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)

    def paths(self, method: str) -> list[str]:
        """The paths of the requests of a kind."""
        return [path for kind, path, _ in self.requests if kind == method]

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        """The files of a branch."""
        found = self.repos[repo]
        return {path: self.read(blob) for path, blob in found.commits[found.branches[branch]].items()}

    def put(self, repo: str, files: dict[str, bytes], *, private: bool = False) -> str:
        """Add files to the main branch, without HTTP; returns the commit."""
        made = self.repos.setdefault(repo, Repo(private))
        return made.commit("main", {path: self.write(content) for path, content in files.items()})

    def write(self, content: bytes) -> str:
        """Keep a content; returns its SHA-256."""
        name = hashlib.sha256(content).hexdigest()
        (self.folder / name).write_bytes(content)
        return name

    def read(self, blob: str) -> bytes:
        """A content that is kept."""
        return (self.folder / blob).read_bytes()


def git_digest(content: bytes) -> str:
    """The name of a blob in Git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path, {name.lower(): value for name, value in self.headers.items()}))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for (method, part), (status, message, code) in self.hub.refuse.items():
            if method == self.command and part in path:
                return self._refuse(status, message, code)
        writes = self.command in ("POST", "PUT") and not path.startswith("/lfs/")
        if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "Invalid credentials in Authorization header")
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[0] == "lfs":
            return self._lfs(parts[1], body)
        if parts[:2] == ["api", "validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        if parts[:3] == ["api", "repos", "create"]:
            return self._create(json.loads(body))
        repo_parts = parts[2:4] if parts[:2] == ["api", "models"] else parts[:2]
        name = "/".join(repo_parts).removesuffix(".git")
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            return self._refuse(
                404 if self.headers.get("Authorization") else 401, "Repository not found", "RepoNotFound"
            )
        if parts[:2] == ["api", "models"]:
            return self._api(name, repo, parts[4:], body)
        if parts[2] == "resolve":
            return self._resolve(repo, parts[3], "/".join(parts[4:]))
        return self._batch(json.loads(body))

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repos:
            return self._json({"error": "You already created this model repo", "url": url}, 409)
        repo = self.hub.repos[name] = Repo(wanted.get("visibility") == "private")
        repo.commit("main", {".gitattributes": self.hub.write(b"* text\n")})
        return self._json({"url": url})

    def _api(self, name: str, repo: Repo, parts: list[str], body: bytes) -> None:
        if not parts or parts[0] == "revision":
            commit = repo.find(parts[1] if parts else "main")
            if commit is None:
                return self._refuse(404, "Invalid rev id", "RevisionNotFound")
            siblings = [{"rfilename": path} for path in repo.commits[commit]]
            found = {"id": name, "modelId": name, "sha": commit, "private": repo.private, "siblings": siblings}
            return self._json(found | {"tags": [], "downloads": 0})
        if parts[0] == "tree":
            commit = repo.find(parts[1])
            assert commit is not None
            return self._json([self._entry(path, blob) for path, blob in repo.commits[commit].items()])
        if parts[0] == "branch":
            if parts[1] in repo.branches:
                return self._json({"error": "exists"}, 409)
            repo.branches[parts[1]] = repo.branches["main"]
            return self._json({})
        if repo.find(parts[1]) is None:
            return self._refuse(404, "Invalid rev id", "RevisionNotFound")
        if parts[0] == "preupload":
            known = repo.commits[str(repo.find(parts[1]))]
            files = []
            for file in json.loads(body)["files"]:
                mode = "regular" if file["path"].endswith(REGULAR) else "lfs"
                blob = known.get(file["path"])
                oid = None if blob is None else blob if mode == "lfs" else git_digest(self.hub.read(blob))
                files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            return self._json({"files": files})
        assert parts[0] == "commit", parts
        lines = [json.loads(line) for line in body.splitlines()]
        added: dict[str, str] = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                added[value["path"]] = self.hub.write(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                assert (self.hub.folder / value["oid"]).stat().st_size == value["size"]
                added[value["path"]] = value["oid"]
        commit = repo.commit(parts[1], added)
        return self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})

    def _entry(self, path: str, blob: str) -> dict[str, Any]:
        content = self.hub.read(blob)
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_digest(content)}
        if not path.endswith(REGULAR):
            entry["lfs"] = {"oid": blob, "size": len(content), "pointerSize": 134}
        return entry

    def _batch(self, wanted: dict[str, Any]) -> None:
        objects: list[dict[str, Any]] = []
        for part in wanted["objects"]:
            if not (self.hub.folder / part["oid"]).is_file():
                place = {"href": f"{self.hub.url}/lfs/{part['oid']}"}
                part = {**part, "actions": {"upload": place, "verify": place}}
            objects.append(part)
        self._json({"transfer": "basic", "objects": objects})

    def _lfs(self, oid: str, body: bytes) -> None:
        if self.command == "PUT":
            assert self.hub.write(body) == oid
        self._json({})

    def _resolve(self, repo: Repo, revision: str, path: str) -> None:
        commit = repo.find(revision)
        if commit is None:
            return self._refuse(404, "Invalid rev id", "RevisionNotFound")
        blob = repo.commits[commit].get(path)
        if blob is None:
            return self._refuse(404, "Entry not found", "EntryNotFound")
        content = self.hub.read(blob)
        etag = git_digest(content) if path.endswith(REGULAR) else blob
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        first = 0
        if wanted := self.headers.get("Range"):
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        broken = self.command == "GET" and path in self.hub.cut
        self._send(206 if first else 200, content[first:], headers, at_most=len(content) // 2 if broken else None)
        self.hub.cut.discard(path) if broken else None

    def _refuse(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str], at_most: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:at_most])
        if at_most is not None:
            self.close_connection = True


@contextmanager
def running(folder: Path) -> Iterator[Hub]:
    """A stand-in that answers while the block runs.

    Args:
        folder: A new folder for the contents.
    """
    folder.mkdir()
    hub = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass(frozen=True)
class Machine:
    """A machine with an empty home, whose huggingface_hub talks to the stand-in: new processes, whose imports see that.

    Attributes:
        home: Its HF_HOME.
        url: The stand-in, or an address where nobody answers.
        token: HF_TOKEN, or None.
    """

    home: Path
    url: str
    token: str | None = TOKEN

    def run(self, *arguments: object, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run Python, such as ("-m", "prompt_tune", "detect", ...), and return what it printed."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        kept |= {"HF_HOME": str(self.home), "HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1"}
        kept |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | ({"HF_TOKEN": self.token} if self.token else {})
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, env=kept | variables, capture_output=True, text=True, timeout=300)

    def cli(self, *arguments: object, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run `prompt-tune`."""
        return self.run("-m", "prompt_tune", *arguments, **variables)


def talk_to(
    hub: Hub | None, home: Path, monkeypatch: pytest.MonkeyPatch, *, token: str | None = TOKEN, offline: bool = False
) -> None:
    """Let huggingface_hub in this process use the stand-in, or an address where nobody answers, and an empty home."""
    from huggingface_hub import constants

    url = hub.url if hub else "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
